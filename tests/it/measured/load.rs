//! How long the kernel takes to load the programs, which is how long a start or an upgrade takes.
//! Needs root.

use std::time::Duration;

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};
use sip_xdp::dataplane::loader::trial;

use crate::kernel::harness::settings;

/// The most that verifier and compiler may take for both programs, of CPU time.
const MOST: Duration = Duration::from_secs(2);

/// CPU time of this thread: the verifier runs in the caller's, and a loaded machine makes it no
/// longer.
fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

#[test]
fn the_programs_are_loaded_within_two_seconds() -> Result<()> {
    let before = cpu_time()?;
    let figures = trial(&settings())?;
    let took = cpu_time()? - before;
    println!("loaded in {took:?} of CPU time: {figures:?}");
    assert!(took > Duration::ZERO && took <= MOST, "{took:?}, at most {MOST:?}");
    Ok(())
}
