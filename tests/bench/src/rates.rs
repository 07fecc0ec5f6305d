//! Section b: packets per second of listed sources that one core can drop.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use sip_xdp_tests::generator::{Sources, spread};
use sip_xdp_tests::namespace::sweep;
use sip_xdp_tests::{Generator, Wire, wait_until};

use crate::contenders::{
    ALL, BASELINE, Contender, FLOORS, OURS_ALONE, OURS_FULL, OURS_HALF, REQUEST, Set,
};
use crate::report::{Budget, Plan, Row, Section};
use crate::table::thousands;

/// Sources that attack at the same time.
const SOURCES: u32 = 1_024;

/// What twice as long a list may change, in per cent.
const LITTLE: f64 = 5.0;

/// A contender and what it did so far.
struct Entry<'w> {
    name: &'static str,
    wire: &'w Wire,
    contender: Box<dyn Contender + 'w>,
    generator: Generator<'w>,
    samples: Vec<f64>,
    totals: Flow,
}

/// Where packets got to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Flow {
    /// Made by the generator.
    sent: u64,
    /// Taken in by the receiving interface.
    received: u64,
    /// Counted by the contender.
    stopped: u64,
}

/// The section.
pub(crate) fn run(plan: &Plan) -> Result<Section> {
    sweep()?;
    let sources: Vec<_> = (0..SOURCES).map(spread).collect();
    let wires = ALL.iter().map(|_| Wire::new()).collect::<Result<Vec<_>>>()?;
    let mut entries: Vec<_> = ALL
        .iter()
        .zip(&wires)
        .map(|((name, set), wire)| {
            eprintln!("bench: {name} is put in place");
            (*name, Entry::place(name, *set, wire, &sources))
        })
        .collect();
    // Many short rounds: a neighbour of the machine slows it down for seconds, and a median of few
    // would be his.
    let rounds = if plan.quick { 3 } else { 21 };
    let duration = Duration::from_millis(if plan.quick { 150 } else { 170 });
    for _ in 0..rounds {
        for (_, entry) in &mut entries {
            // One that failed in a round is out of the race.
            if let Ok(contender) = entry
                && let Err(error) = contender.round(duration)
            {
                *entry = Err(error);
            }
        }
    }
    let rows = entries
        .iter()
        .map(|(name, entry)| entry.as_ref().map_or_else(|error| failed(name, error), Entry::row));
    let rows: Vec<_> = rows.collect();
    let mut remarks = remarks(rounds, duration);
    remarks.extend(standing(&rows));
    remarks.extend(doubling(&rows));
    Ok(Section {
        letter: 'b',
        title: "Packets of 1,024 listed sources dropped per second, one core",
        rows,
        remarks,
    })
}

impl<'w> Entry<'w> {
    fn place(name: &'static str, set: Set, wire: &'w Wire, sources: &[Ipv4Addr]) -> Result<Self> {
        let contender = set(wire, sources)?;
        let generator = wire.generator(&Sources::InTurn(sources.to_vec()), REQUEST.as_bytes())?;
        let mut entry =
            Self { name, wire, contender, generator, samples: Vec::new(), totals: Flow::default() };
        // Not counted: caches and branch predictors, and the generator learns how fast it goes
        // here.
        entry.generator.send_for(Duration::from_millis(50))?;
        Ok(entry)
    }

    fn flow(&self) -> Result<Flow> {
        Ok(Flow { sent: 0, received: self.wire.received()?, stopped: self.contender.stopped()? })
    }

    /// Sends for a while, and sees that every packet ended where it should.
    fn round(&mut self, duration: Duration) -> Result<()> {
        let before = self.flow()?;
        let sent = self.generator.send_for(duration)?;
        let mut flow = Flow::default();
        // A last batch may still be on its way to a counter.
        let settled = wait_until("every packet is counted", Duration::from_secs(1), || {
            let now = self.flow()?;
            flow = Flow {
                sent: sent.packets,
                received: now.received - before.received,
                stopped: now.stopped - before.stopped,
            };
            Ok(flow.stopped == flow.received)
        });
        settled.with_context(|| {
            format!(
                "the interface took in {} packets, but {} were stopped ({})",
                thousands(flow.received),
                thousands(flow.stopped),
                self.contender.counter()
            )
        })?;
        self.samples.push(sent.million_per_second(flow.stopped));
        self.totals.sent += flow.sent;
        self.totals.received += flow.received;
        self.totals.stopped += flow.stopped;
        Ok(())
    }

    fn row(&self) -> Row {
        let Flow { sent, received, stopped } = self.totals;
        let mut note = format!(
            "{} of {} stopped: {}",
            thousands(stopped),
            thousands(received),
            self.contender.counter()
        );
        if sent > received {
            note +=
                &format!("; {} more found the interface's queue full", thousands(sent - received));
        }
        Row {
            name: self.name.to_owned(),
            populated: self.contender.populated(),
            unit: "Mpps",
            samples: self.samples.clone(),
            baseline: Some(BASELINE.to_owned()),
            budget: budget(self.name),
            note,
        }
    }
}

fn budget(name: &str) -> Option<Budget> {
    match name {
        OURS_ALONE => Some(Budget::RatioAtLeast(0.95)),
        OURS_FULL => Some(Budget::RatioAtLeast(0.88)),
        _ => None,
    }
}

/// A row without samples, which says so loudly.
fn failed(name: &str, error: &Error) -> Row {
    let failure = format!("FAILED: {error:#}");
    eprintln!("bench: {name} {failure}");
    Row {
        name: name.to_owned(),
        populated: String::new(),
        unit: "Mpps",
        samples: Vec::new(),
        baseline: Some(BASELINE.to_owned()),
        budget: budget(name),
        note: failure,
    }
}

/// Whether sip-xdp, as it stands in the field, drops more than every other filter: round by round,
/// as rates change with what else the machine does.
fn standing(rows: &[Row]) -> Option<String> {
    let ours =
        rows.iter().find(|row| row.name == OURS_FULL).filter(|row| !row.samples.is_empty())?;
    let no_peers = [&FLOORS[..], &[BASELINE, OURS_ALONE, OURS_HALF, OURS_FULL]].concat();
    let faster: Vec<_> = rows
        .iter()
        .filter(|row| !no_peers.contains(&row.name.as_str()))
        .filter_map(|row| {
            let times = row.against(ours, |theirs, ours| theirs / ours)?;
            (times >= 1.0).then(|| format!("{} ({times:.2} times as much)", row.name))
        })
        .collect();
    Some(if faster.is_empty() {
        format!("{OURS_FULL} drops more than every other filter here (median of the rounds).")
    } else {
        format!("{OURS_FULL} drops LESS than {} (median of the rounds).", faster.join(", "))
    })
}

/// What twice as long a list changes, round by round.
fn doubling(rows: &[Row]) -> Option<String> {
    let row = |name| rows.iter().find(|row| row.name == name);
    let change =
        row(OURS_FULL)?.against(row(OURS_HALF)?, |full, half| 100.0 * (full / half - 1.0))?;
    let verdict = if change.abs() < LITTLE { "less" } else { "NOT less" };
    Some(format!(
        "Twice as long a list, {OURS_FULL} beside {OURS_HALF}, changes the drop rate by \
         {change:+.1} % (median of the \
         rounds), {verdict} than {LITTLE} %."
    ))
}

fn remarks(rounds: usize, duration: Duration) -> Vec<String> {
    vec![
        format!(
            "{rounds} rounds, each of {} ms for every candidate in turn.",
            duration.as_millis()
        ),
        "One core makes the packets, hands them over a veth pair and runs the filter at its other \
         end, so a rate is that \
         of all three together. The share of making and handing over is what is left when \
         everything is dropped."
            .to_owned(),
        "1,024 sources all over the address space, in turn; a REGISTER to port 5060. Counted is \
         what the filter's own \
         counter says."
            .to_owned(),
        "The receiving interface has GRO on. Without a filter, packets end at a UDP socket whose \
         queue is full."
            .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, samples: &[f64]) -> Row {
        Row { samples: samples.to_vec(), ..failed(name, &anyhow::anyhow!("a row to be filled")) }
    }

    #[test]
    fn it_is_compared_with_others_round_by_round() {
        let said = |peer| {
            let floor = row(FLOORS[0], &[9.0, 9.0, 9.0]);
            standing(&[floor, row(OURS_FULL, &[2.0, 4.0, 3.0]), row("a peer", peer)])
        };
        assert!(said(&[1.9, 3.9, 9.0]).unwrap().contains("more than every other filter"));
        assert!(said(&[2.1, 4.2, 1.0]).unwrap().contains("LESS than a peer (1.05 times as much)"));
        assert!(said(&[]).unwrap().contains("more than every other filter"));
        assert_eq!(standing(&[row("a peer", &[1.0])]), None);
    }

    #[test]
    fn twice_as_long_a_list_is_compared_round_by_round() {
        let said = |full| doubling(&[row(OURS_HALF, &[2.0, 4.0, 3.0]), row(OURS_FULL, full)]);
        assert!(
            said(&[1.96, 4.0, 2.0])
                .unwrap()
                .contains("by -2.0 % (median of the rounds), less than 5 %")
        );
        assert!(
            said(&[1.8, 3.0, 3.0])
                .unwrap()
                .contains("by -10.0 % (median of the rounds), NOT less than 5 %")
        );
        assert_eq!(said(&[]), None);
    }
}
