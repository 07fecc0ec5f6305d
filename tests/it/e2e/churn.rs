//! Bans, expiry, synchronisations and restarts for half a minute; with `SIP_XDP_LONG=1` for an
//! hour, or for `SIP_XDP_CHURN` seconds. Memory, file and tables must not grow. Needs root and
//! Linux 6.6 or later.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::dataplane::tables::ledger::Ledger;
use sip_xdp_common::abi::names;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, PHONE, WAN};
use sip_xdp_tests::usage::memory;
use sip_xdp_tests::{
    Draw, Filter, FilterOptions, Lab, ListServer, Registrar, Reply, short_or_long, stream,
    wait_until,
};

const SOON: Duration = Duration::from_secs(30);
/// Number of table rows.
const ROWS: u32 = 12;
/// Number of networks per version of the feed, and number that the next version lacks.
const LISTED: u32 = 20_000;
const CHANGING: u32 = 4_000;

/// One observation.
struct Seen {
    memory: f64,
    file: u64,
    entries: usize,
    blocked: u64,
}

fn duration() -> Duration {
    let given = env::var("SIP_XDP_CHURN")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .map(Duration::from_secs);
    given.unwrap_or_else(|| short_or_long(Duration::from_secs(30), Duration::from_secs(3_600)))
}

fn version(number: u32) -> Reply {
    let first = (number % 8) * CHANGING;
    let line = |n: u32| format!("{}\n", Ipv4Addr::from(0x1700_0000 + 11 * n));
    Reply::list((first..first + LISTED).map(line).collect::<String>())
}

fn sync(filter: &Filter<'_>) -> Result<()> {
    let answer = filter.call(&json!({ "command": "feed_sync", "name": "lab", "accept": false }))?;
    let round = answer["rounds"]["lab"].as_u64().context("no round")?;
    wait_until("the feed is synchronised", SOON, || {
        let rows = filter.call(&json!({ "command": "feed_list" }))?;
        ensure!(rows[0]["error"].is_null(), "{rows}");
        Ok(rows[0]["round"].as_u64() >= Some(round))
    })
    .map(drop)
}

fn look(filter: &Filter<'_>) -> Result<Seen> {
    let size =
        |name: &str| fs::metadata(filter.state_directory().join(name)).map_or(0, |file| file.len());
    Ok(Seen {
        memory: memory(filter.pid().context("no daemon")?)?,
        file: size("state.db") + size("state.db-wal"),
        entries: Ledger::new(Pins::new(filter.pins()).open(names::LEDGER)?)?.entries()?.len(),
        blocked: filter.json(&["stats"])?["blocklist"]["ipv4"].as_u64().context("no count")?,
    })
}

#[test]
fn nothing_grows() -> Result<()> {
    let duration = duration();
    let mut draw = Draw::seeded("churn");
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let place = SocketAddr::from((PHONE, 8_000));
    let server = ListServer::start_in(&lab.phone, place, version(0))?;
    let configuration = format!(
        "[bans]\nfirst = \"2s\"\nunproven = \"2s\"\n\n[[feeds]]\nname = \"lab\"\nurl \
         = \"http://{place}/list\"\nevery = \"1h\"\n\
         [feeds.guards]\nshrink = 0\ngrow = 0\n"
    );
    let options = FilterOptions {
        interfaces: vec![WAN.to_owned()],
        configuration,
        ..FilterOptions::default()
    };
    let mut filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    sync(&filter)?;
    let attack = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 200)?;

    let start = Instant::now();
    let (mut commands, mut syncs, mut restarts) = (0_u64, 0_u32, 0_u32);
    let mut seen = Vec::new();
    println!("  seconds  memory MiB  file KiB  entries  blocked  commands   syncs  restarts");
    for row in 1..=ROWS {
        let end = duration * row / ROWS;
        while start.elapsed() < end {
            for _ in 0..50 {
                let network = Ipv4Addr::from(0xc612_0000 + draw.below(4_000) as u32);
                let request = match draw.below(3) {
                    0 => json!({ "command": "delete", "list": "block", "network": network }),
                    _ => {
                        json!({
                            "command": "add", "list": "block", "network": network,
                            "ttl": 1 + draw.below(5), "reason": "churn", "force": false,
                            "operator": null,
                        })
                    }
                };
                // Removing a missing entry is refused.
                let _ = filter.call(&request);
                commands += 1;
            }
            syncs += 1;
            server.reply(version(syncs));
            sync(&filter)?;
        }
        let now = look(&filter)?;
        println!(
            "{:9} {:11.1} {:9} {:8} {:8} {commands:9} {syncs:7} {restarts:9}",
            start.elapsed().as_secs(),
            now.memory,
            now.file / 1_024,
            now.entries,
            now.blocked,
        );
        seen.push(now);
        // Each daemon lives for a third of the time, so that growth would show.
        if row % (ROWS / 3) == 0 && row < ROWS {
            if restarts % 2 == 0 {
                filter.restart()?
            } else {
                filter.kill9().and_then(|()| filter.launch())?
            }
            restarts += 1;
        }
    }
    attack.stop()?;
    wait_until("all that was to end has ended", SOON, || Ok(look(&filter)?.entries == 0))?;
    assert_eq!(look(&filter)?.blocked, u64::from(LISTED), "something is left in the table");
    // First and last row of each daemon's life.
    for life in seen.chunks(seen.len() / 3) {
        let (first, last) = (&life[0], &life[life.len() - 1]);
        ensure!(
            last.memory <= first.memory * 1.3 + 8.0,
            "from {:.1} MiB to {:.1} MiB",
            first.memory,
            last.memory
        );
    }
    let (first, last) = (&seen[0], &seen[seen.len() - 1]);
    ensure!(
        last.file <= first.file * 2 + (8 << 20),
        "the file grew from {} to {} bytes",
        first.file,
        last.file
    );
    ensure!(commands > 100 && syncs > 2 && restarts == 2, "too little happened");
    Ok(())
}
