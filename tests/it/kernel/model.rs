//! The lists in the kernel against a plain model: entries with expiry, trusted networks and two
//! feeds change at random, and after each change many addresses are compared.
//!
//! `SIP_XDP_PROBES` sets the total number, `SIP_XDP_SEED` the selection.

mod draw;
mod reference;
mod world;

use std::net::Ipv4Addr;
use std::time::Instant;

use sip_xdp::dataplane::loader::{Capacity, Settings};
use sip_xdp::net::network::Network;

use self::world::{Plan, Tally, World};
use crate::kernel::harness::{Kernel, settings};

/// Default number of probes: some ten seconds without optimizations.
const PROBES: u64 = 300_000;

/// A number from the environment.
fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is to be a number")))
}

fn compare(capacity: u32, plan: Plan, probes: u64) -> Tally {
    let seed = variable("SIP_XDP_SEED", 1);
    println!("seed {seed}");
    let capacity = Capacity { networks: capacity, sources: 64 };
    let mut world = World::new(&Settings { capacity, ..settings() }, plan, seed);
    let start = Instant::now();
    while world.tally.probes < probes {
        world.change();
        world.ask();
    }
    world.agree_on_entries();
    println!("{}, in {:.1} s", world.tally, start.elapsed().as_secs_f64());
    world.tally
}

#[test]
fn the_kernel_says_what_a_plain_model_says() {
    let tally =
        compare(16_384, Plan { feed: 2_000, each: 500 }, variable("SIP_XDP_PROBES", PROBES));
    assert_eq!(tally.refused, 0, "there is room for everything");
    let (enough, unlisted) = (tally.probes / 20, tally.probes - tally.blocked - tally.trusted);
    assert!(
        [tally.blocked, tally.trusted, unlisted].iter().all(|kind| *kind > enough),
        "too few of a kind: {tally}"
    );
}

#[test]
fn refused_changes_have_no_effect() {
    let tally = compare(256, Plan { feed: 180, each: 100 }, variable("SIP_XDP_PROBES", PROBES) / 5);
    assert!(tally.refused >= tally.changes / 50, "too few were refused: {tally}");
    assert_eq!(tally.crowded, 0, "some found no place: {tally}");
}

#[test]
fn a_feed_can_change_altogether() {
    let listed = 1_000;
    let capacity = Capacity { networks: 1_024, sources: 64 };
    let mut kernel = Kernel::new(&Settings { capacity, ..settings() });
    let host = |number: u32| Network::host(Ipv4Addr::from(0x0a00_0000 + number * 7).into());
    for from in [0, 250, 1_000, 2_000, 0] {
        let list = (from..from + listed).map(host).collect();
        let refresh = kernel
            .lists
            .replace_feed("one", list)
            .unwrap_or_else(|error| panic!("from {from}: {error}"));
        assert_eq!(refresh.total, listed as usize);
    }
}
