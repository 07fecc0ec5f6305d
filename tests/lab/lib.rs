//! A laboratory for end-to-end tests: network namespaces with the filter, a real registrar, real
//! phones and real attack tools, none of which ever touches the machine's own interfaces.
//!
//! Everything here cleans up when it is dropped; what a killed run left behind is swept by the next
//! one.

pub mod attack;
pub mod bans;
pub mod browser;
pub mod capture;
pub mod cpu;
pub mod crowdsec;
pub mod digest;
pub mod dns;
pub mod draw;
pub mod exchange;
pub mod fail2ban;
pub mod faketime;
pub mod filter;
pub mod foreign;
pub mod forger;
pub mod generator;
pub mod guesser;
mod handset;
pub mod http;
pub mod lists;
pub mod machine;
pub mod manual;
pub mod message;
pub mod mix;
pub mod namespace;
pub mod nat;
pub mod office;
pub mod party;
pub mod pcap;
pub mod phone;
pub mod phones;
pub mod private;
pub mod process;
pub mod programs;
pub mod registrar;
pub mod root;
pub mod seccomp;
pub mod sip;
pub mod spelling;
pub mod stream;
pub mod supervise;
pub mod terminal;
pub mod topology;
pub mod usage;
pub mod wire;

use std::env;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

pub use attack::{Attacker, Disguise};
pub use browser::Browser;
pub use capture::Capture;
pub use crowdsec::Crowdsec;
pub use dns::NameServer;
pub use draw::Draw;
pub use fail2ban::Fail2ban;
pub use faketime::FakeTime;
pub use filter::{Filter, FilterOptions};
pub use generator::Generator;
pub use guesser::{Guess, Guesser};
pub use lists::{ListServer, Reply};
pub use machine::Machine;
pub use namespace::Namespace;
pub use nat::Nat;
pub use office::Office;
pub use party::Party;
pub use phone::Phone;
pub use phones::{Phones, PhonesOptions};
pub use registrar::{Mood, Registrar, RegistrarOptions};
pub use root::Root;
pub use stream::Stream;
pub use terminal::Terminal;
pub use topology::Lab;
pub use wire::Wire;

/// Fails with what to do unless we are root.
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("needs root: run it through `cargo xtask`, or with sudo");
    }
    Ok(())
}

/// The short duration of something that lasts longer in the field; the long one when SIP_XDP_LONG
/// is set to 1.
pub fn short_or_long(short: Duration, long: Duration) -> Duration {
    if env::var_os("SIP_XDP_LONG").is_some_and(|value| value == "1") { long } else { short }
}

/// Waits for the next second of the wall clock: within one, the registrar gives the same nonce to
/// everybody, and who echoes it proves less than with a nonce that nobody else has.
pub fn wait_for_a_nonce_of_its_own() {
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let now = second();
    while second() == now {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Asks every few milliseconds until `condition` holds; fails with `what` when it does not in time.
/// Returns how long it took.
pub fn wait_until(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        if condition()? {
            return Ok(start.elapsed());
        }
        if start.elapsed() > timeout {
            bail!("not within {timeout:?}: {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
