//! A laboratory for end-to-end tests: network namespaces with the filter, a real registrar, real phones and real attack
//! tools, none of which ever touches the machine's own interfaces.
//!
//! Everything here cleans up when it is dropped; what a killed run left behind is swept by the next one.

pub mod attack;
pub mod capture;
pub mod cpu;
pub mod dns;
pub mod fail2ban;
pub mod filter;
pub mod foreign;
pub mod generator;
pub mod namespace;
pub mod office;
pub mod phone;
pub mod private;
pub mod process;
pub mod programs;
pub mod registrar;
pub mod sip;
pub mod stream;
pub mod supervise;
pub mod topology;
pub mod usage;
pub mod wire;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use attack::Attacker;
pub use capture::Capture;
pub use dns::NameServer;
pub use fail2ban::Fail2ban;
pub use filter::{Filter, FilterOptions};
pub use generator::Generator;
pub use namespace::Namespace;
pub use office::Office;
pub use phone::Phone;
pub use registrar::{Registrar, RegistrarOptions};
pub use stream::Stream;
pub use topology::Lab;
pub use wire::Wire;

/// Fails with what to do unless we are root.
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("needs root: run it through `cargo xtask`, or with sudo");
    }
    Ok(())
}

/// Asks every few milliseconds until `condition` holds; fails with `what` when it does not in time. Returns how long it took.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<Duration> {
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
