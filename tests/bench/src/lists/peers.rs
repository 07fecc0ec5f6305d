//! Load times of other filters for the same hosts.

use std::fmt::Write as _;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use aya::maps::LpmTrie;
use aya::maps::lpm_trie::Key;
use sip_xdp_tests::generator::spread;
use sip_xdp_tests::namespace::{Namespace, unique_name};
use sip_xdp_tests::process::succeed;
use sip_xdp_tests::programs;

use super::load::first_load;
use super::{MILLION, row};
use crate::report::{Plan, Row};
use crate::table::thousands;

/// Loads so many hosts and says how long it took, in seconds.
type Load = fn(u32) -> Result<f64>;

/// All of them.
const PEERS: [(&str, Load); 3] =
    [("LPM trie of the kernel", trie), ("nft -f", nftables), ("ipset restore", ipset)];

/// One row each. One that fails has none of the others fail.
pub(super) fn rows(plan: &Plan) -> Vec<Row> {
    let size = if plan.quick { MILLION / 10 } else { MILLION };
    let row = |(name, load): (&str, Load)| {
        let (samples, note) = match load(size) {
            Ok(seconds) => (vec![seconds], String::new()),
            Err(error) => (Vec::new(), format!("FAILED: {error:#}")),
        };
        let name = format!("{name}, {} hosts", thousands(size));
        Row { baseline: Some(first_load(size)), ..row(name, "s", samples, None, note) }
    };
    PEERS.map(row).into()
}

fn trie(size: u32) -> Result<f64> {
    let mut object = programs::load(programs::TRIE4)?;
    let map = object.map_mut(programs::TRIE4_MAP).context("there is no trie")?;
    let mut trie: LpmTrie<_, [u8; 4], u32> = map.try_into()?;
    let start = Instant::now();
    for number in 0..size {
        trie.insert(&Key::new(32, spread(number).octets()), 1, 0)?;
    }
    Ok(start.elapsed().as_secs_f64())
}

fn nftables(size: u32) -> Result<f64> {
    let mut rules =
        String::from("table inet bench {\nset sources { type ipv4_addr; elements = {\n");
    for number in 0..size {
        // Writing to a string is infallible.
        let _ = writeln!(rules, "{},", spread(number));
    }
    rules.push_str("}\n}\n}\n");
    timed("nft", &["-f"], &rules)
}

fn ipset(size: u32) -> Result<f64> {
    let mut rules = format!("create sources hash:ip maxelem {size}\n");
    for number in 0..size {
        let _ = writeln!(rules, "add sources {}", spread(number));
    }
    timed("ipset", &["restore", "-file"], &rules)
}

/// How long a program takes that reads rules from a file, in a namespace that goes away with all of
/// them.
fn timed(program: &str, arguments: &[&str], rules: &str) -> Result<f64> {
    let namespace = Namespace::new("load")?;
    let directory = tempfile::Builder::new().prefix(&format!("{}-", unique_name())).tempdir()?;
    let file = directory.path().join("rules");
    fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
    let start = Instant::now();
    succeed(namespace.command(program).args(arguments).arg(&file))?;
    Ok(start.elapsed().as_secs_f64())
}
