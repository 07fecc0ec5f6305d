//! A trial (`run --confirm`) that nobody confirmed: past its deadline nothing is dropped, without
//! any daemon.

use sip_xdp::dataplane::loader::Settings;
use sip_xdp_common::abi::layout::{EventKind, IN_DRY_RUN, List, NEVER};
use sip_xdp_common::verdict::Reason;

use crate::kernel::frames::{request, sip};
use crate::kernel::harness::{Kernel, SECOND, START, settings};

const BLOCKED: &str = "192.0.2.7";
const STRANGER: &str = "192.0.2.8";

fn blocking(settings: &Settings) -> Kernel {
    let mut kernel = Kernel::new(settings);
    kernel.list(List::Block, BLOCKED, NEVER);
    kernel
}

#[test]
fn past_the_deadline_nothing_is_dropped() {
    let mut kernel = blocking(&Settings { trial: true, ..settings() });
    let frame = sip(BLOCKED, &request("REGISTER"));
    // Without a deadline it is confirmed.
    assert!(kernel.run(&frame).dropped);
    kernel.set_deadline(START + 60 * SECOND);
    for (now, dropped) in
        [(START, true), (START + 60 * SECOND - 1, true), (START + 60 * SECOND, false)]
    {
        kernel.set_clock(now);
        let outcome = kernel.run(&frame);
        assert_eq!((outcome.dropped, outcome.would), (dropped, !dropped), "{now}");
        assert_eq!(outcome.reason, Reason::Blocked);
    }
    // What is over its limit passes, too, and the limits count on as in a dry run.
    let flood = sip(STRANGER, &request("REGISTER"));
    let outcomes: Vec<_> = (0..60).map(|_| kernel.run(&flood)).collect();
    assert!(outcomes.iter().all(|outcome| !outcome.dropped));
    assert_eq!(outcomes.iter().filter(|outcome| outcome.would).count(), 10);
    // Somebody confirms after all.
    kernel.set_deadline(0);
    assert!(kernel.run(&frame).dropped && kernel.run(&flood).dropped);
}

/// Before its deadline a trial is no dry run, whatever is said to the daemon.
#[test]
fn its_events_are_not_those_of_a_dry_run() {
    let mut kernel = blocking(&Settings { trial: true, ..settings() });
    kernel.set_deadline(START + SECOND);
    let flood = sip(STRANGER, &request("REGISTER"));
    for _ in 0..51 {
        kernel.run(&flood);
    }
    let events = kernel.events();
    let limited: Vec<_> =
        events.iter().filter(|event| event.kind == EventKind::Limited as u8).collect();
    assert!(limited.len() == 1 && limited[0].flags & IN_DRY_RUN == 0, "{}", limited.len());
}

#[test]
fn other_programs_know_no_deadline() {
    for dry_run in [false, true] {
        let mut kernel = blocking(&Settings { dry_run, ..settings() });
        kernel.set_deadline(1);
        assert_eq!(kernel.run(&sip(BLOCKED, &request("REGISTER"))).dropped, !dry_run);
    }
    let mut both = blocking(&Settings { dry_run: true, trial: true, ..settings() });
    assert!(!both.run(&sip(BLOCKED, &request("REGISTER"))).dropped);
}
