//! Resource usage of the daemon: memory and CPU with long lists, idle and during floods that do not
//! concern it.

use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sip_xdp::net::network::Network;
use sip_xdp_tests::generator::{Sources, spread};
use sip_xdp_tests::namespace::sweep;
use sip_xdp_tests::topology::WAN;
use sip_xdp_tests::usage::{cpu_time, memory};
use sip_xdp_tests::{Filter, FilterOptions, Generator, Wire, wait_until};

use super::{MILLION, row};
use crate::contenders::REQUEST;
use crate::networks::mixed;
use crate::report::{Budget, Plan, Row};
use crate::table::thousands;

/// Entries of the list that budgets are for. The first of them are the sources that flood.
const LISTED: u32 = 100_000;
const SOURCES: u32 = 1_024;
/// A host that is no entry of any feed.
const BANNED: u32 = 8 * MILLION;

/// How long nothing happens before anything is read.
const SETTLE: Duration = Duration::from_millis(1_500);
/// How long the idle daemon is watched.
const IDLE: Duration = Duration::from_secs(5);
/// How much larger the daemon may be during a flood than before, in MiB.
const GROWTH: f64 = 1.0;

/// What the daemon used, round by round.
#[derive(Default)]
struct Used {
    /// In MiB, at the end of each round.
    memory: Vec<f64>,
    /// Of one core, in per cent.
    share: Vec<f64>,
    /// Packets dropped.
    dropped: u64,
}

/// All rows.
pub(super) fn rows(plan: &Plan) -> Result<Vec<Row>> {
    sweep()?;
    let (rounds, flood) =
        if plan.quick { (1, Duration::from_millis(500)) } else { (3, Duration::from_secs(2)) };
    let wires = [Wire::new()?, Wire::new()?];
    let mut filter = start(&wires[0], String::new())?;
    let empty = memory_of(&filter)?;
    fill(&mut filter, LISTED)?;
    let banned = spread(BANNED);
    filter.put("block", &[banned.to_string()], Some(Duration::from_secs(3600)))?;
    let mut large = start(&wires[1], "capacity.networks = 1048576\n".to_owned())?;
    fill(&mut large, MILLION)?;

    let listed = (0..SOURCES).map(source).collect::<Vec<_>>();
    let mut one = wires[0].generator(&Sources::InTurn(vec![banned]), REQUEST.as_bytes())?;
    let mut many = wires[0].generator(&Sources::InTurn(listed), REQUEST.as_bytes())?;
    sleep(SETTLE);
    let [mut idle, mut one_source, mut many_sources] = [(); 3].map(|()| Used::default());
    let mut of_million = Vec::new();
    for _ in 0..rounds {
        idle.watch(&filter, || {
            sleep(IDLE);
            Ok(())
        })?;
        of_million.push(memory_of(&large)?);
        one_source.flood(&filter, &wires[0], &mut one, flood)?;
        many_sources.flood(&filter, &wires[0], &mut many, flood)?;
    }

    let entries = format!("{} entries", thousands(LISTED));
    let name = |what: &str, when: &str| format!("daemon's {what}, {when}");
    let idle_memory = name("memory", &format!("idle, {entries}"));
    let mut rows = vec![
        row(
            name("memory", "idle, nothing listed"),
            "MiB",
            vec![empty],
            None,
            "its resident memory".to_owned(),
        ),
        row(idle_memory.clone(), "MiB", idle.memory, Some(Budget::AtMost(60.0)), String::new()),
        row(name("memory", "idle, 1,000,000 entries"), "MiB", of_million, None, String::new()),
        row(
            name("CPU", &format!("idle, {entries}")),
            "%",
            idle.share,
            Some(Budget::AtMost(1.0)),
            String::new(),
        ),
    ];
    let floods = [("a banned source", one_source), ("1,024 listed sources", many_sources)];
    for (whence, used) in floods {
        let note = format!("{} packets dropped, all that arrived", thousands(used.dropped));
        let memory = row(
            name("memory", &format!("flood from {whence}")),
            "MiB",
            used.memory,
            Some(Budget::OverBaselineAtMost(GROWTH)),
            note,
        );
        rows.push(Row { baseline: Some(idle_memory.clone()), ..memory });
        rows.push(row(
            name("CPU", &format!("flood from {whence}")),
            "%",
            used.share,
            None,
            String::new(),
        ));
    }
    Ok(rows)
}

fn start(wire: &Wire, configuration: String) -> Result<Filter<'_>> {
    let options = FilterOptions {
        interfaces: vec![WAN.to_owned()],
        configuration,
        ..FilterOptions::default()
    };
    Filter::start_with(&wire.receiver, wire.directory(), options)
}

/// Makes so many entries of a feed.
fn fill(filter: &mut Filter<'_>, count: u32) -> Result<()> {
    let hosts = (0..SOURCES).map(|number| Network::host(source(number).into()));
    let others = (0..count - SOURCES).map(mixed);
    let loaded = filter.feed(hosts.chain(others).collect())?;
    ensure!(loaded.total == count as usize, "{} of {count} entries were loaded", loaded.total);
    Ok(())
}

/// A source that is listed, by a number of its own.
fn source(number: u32) -> Ipv4Addr {
    spread(BANNED + 1 + number)
}

fn memory_of(filter: &Filter<'_>) -> Result<f64> {
    memory(filter.pid().context("the daemon is gone")?)
}

impl Used {
    /// Watches the daemon while something goes on.
    fn watch(&mut self, filter: &Filter<'_>, action: impl FnOnce() -> Result<()>) -> Result<()> {
        let pid = filter.pid().context("the daemon is gone")?;
        let (before, start) = (cpu_time(pid)?, Instant::now());
        action()?;
        let used = cpu_time(pid)?.saturating_sub(before);
        self.share.push(100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64());
        self.memory.push(memory(pid)?);
        Ok(())
    }

    /// Watches it while packets arrive, all of which must be dropped.
    fn flood(
        &mut self,
        filter: &Filter<'_>,
        wire: &Wire,
        generator: &mut Generator<'_>,
        duration: Duration,
    ) -> Result<()> {
        let reading =
            || Ok::<_, anyhow::Error>((wire.received()?, filter.packets(WAN, "drop.blocked")?));
        let before = reading()?;
        self.watch(filter, || generator.send_for(duration).map(drop))?;
        wait_until("every packet of the flood is dropped", Duration::from_secs(2), || {
            let now = reading()?;
            Ok(now.0 - before.0 == now.1 - before.1)
        })?;
        self.dropped += reading()?.1 - before.1;
        Ok(())
    }
}
