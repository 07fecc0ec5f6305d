//! A laboratory for end-to-end tests: network namespaces with the filter, a real registrar, real
//! phones and real attack tools, which never touch the machine's own interfaces.
//!
//! Everything cleans up when dropped; remains of killed runs are swept by the next one.

pub mod asterisk;
pub mod attack;
pub mod attackers;
pub mod bans;
pub mod browser;
pub mod capture;
pub mod connection;
pub mod cpu;
pub mod crowdsec;
pub mod day;
pub mod digest;
pub mod dns;
pub mod draw;
pub mod encrypted;
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
pub mod softphone;
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

pub use asterisk::Asterisk;
pub use attack::{Attacker, Disguise};
pub use browser::Browser;
pub use capture::Capture;
pub use connection::{Connection, Pieces};
pub use crowdsec::Crowdsec;
pub use dns::NameServer;
pub use draw::Draw;
pub use encrypted::{Carrier, Certificate, Encrypted};
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
pub use softphone::Softphone;
pub use stream::Stream;
pub use terminal::Terminal;
pub use topology::Lab;
pub use wire::Wire;

/// Fails with instructions unless run as root.
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("needs root: run it through `cargo xtask`, or with sudo");
    }
    Ok(())
}

/// The short duration, or the realistic one when SIP_XDP_LONG is set to 1.
pub fn short_or_long(short: Duration, long: Duration) -> Duration {
    if env::var_os("SIP_XDP_LONG").is_some_and(|value| value == "1") { long } else { short }
}

/// Waits for the next second of the wall clock: within one second the registrar gives everybody the
/// same nonce, and an echo proves less.
pub fn wait_for_a_nonce_of_its_own() {
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let now = second();
    while second() == now {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Polls every few milliseconds until `condition` holds; fails with `what` on a timeout. Returns
/// the time taken.
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
