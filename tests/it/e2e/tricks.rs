//! Unusual spellings of a guesser's requests: the filter understands what the registrar
//! understands. Needs root and Linux 6.6 or later.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use sip_xdp_tests::spelling::SPELLINGS;
use sip_xdp_tests::topology::PBX_WAN;
use sip_xdp_tests::{
    Filter, FilterOptions, Guess, Guesser, Lab, Phone, Registrar, wait_for_a_nonce_of_its_own,
};

/// Time from the first password to the ban: twenty are sent per second.
const PROMPT: Duration = Duration::from_secs(8);
/// Maximum number of passwords that pass.
const PASSWORDS: usize = 30;

#[test]
fn no_spelling_helps_a_guesser() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    // Twelve sources that try one user would make it a decoy.
    let configuration = "[detect.decoy]\nenabled = false\n".to_owned();
    let options = FilterOptions { configuration, ..FilterOptions::default() };
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    let phone = Phone::new(&lab.phone, lab.directory());
    assert_eq!(phone.register()?.status, 200, "the phone before the attacks");
    let mut complaints = Vec::new();
    for (number, spelling) in (0..).zip(SPELLINGS) {
        let address = lab.further_attacker(number)?;
        let (from, to) = (SocketAddr::from((address, 5060)), SocketAddr::from((PBX_WAN, 5060)));
        wait_for_a_nonce_of_its_own();
        let guesser =
            Guesser::start(&lab.attacker, Guess { spelling, ..Guess::new(from, to, "101") })?;
        let ban = filter.wait_for_ban(&address.to_string(), PROMPT);
        drop(guesser);
        let name = spelling.name;
        let tried = registrar.failures_of(address).len();
        match ban {
            Ok(ban) => {
                let kind = filter.ban_kind(&address.to_string()).unwrap_or_default();
                println!(
                    "{name:32} {kind:12} {:9} after {tried:3} passwords; \"{}\"",
                    ban.tier, ban.reason
                );
                if tried > PASSWORDS || kind != "rejected" || ban.tier != "proven" {
                    complaints.push(format!(
                        "{name}: at most {PASSWORDS} passwords and a ban for proven, rejected \
                         credentials were expected, \
                         but it took {tried} and was for {} {kind}",
                        ban.tier
                    ));
                }
            }
            Err(error) => {
                println!("{name:32} NOT BANNED             after {tried:3} passwords");
                complaints.push(format!("{name}: {error:#}"));
            }
        }
    }
    assert_eq!(phone.register()?.status, 200, "the phone after the attacks");
    assert!(complaints.is_empty(), "{}", complaints.join("\n\n"));
    Ok(())
}
