//! Section c: capacity that is left for the host. Phones register with a real registrar at full
//! speed, while listed sources flood another interface of its machine.

mod site;

use std::time::Duration;

use anyhow::{Error, Result, bail};
use sip_xdp_tests::cpu::{sending_cpu, serving_cpu};
use sip_xdp_tests::generator::spread;
use sip_xdp_tests::namespace::sweep;

use self::site::{Cpus, Flood, Ground, Measured, Site};
use crate::contenders::{ALL, FLOORS, NO_FILTER, OURS_ALONE};
use crate::report::{Plan, Row, Section};
use crate::table::{number, thousands};

/// Sources that attack at the same time.
const SOURCES: u32 = 1_024;
/// Phones that register at the same time.
const PHONES: usize = 64;
/// Packets a second of the flood that the registrar's own CPU has to take in.
const RATE: u32 = 1_000_000;
/// Under a flood that nothing filters, as it reaches a registrar.
const UNFILTERED: &str = "no filter";
const CALM: &str = "no flood";
const UNIT: &str = "registrations/s";

/// A contender and what it left of the host, by flood.
struct Entry<'g> {
    name: &'static str,
    site: Result<Site<'g>>,
    measured: Vec<(Flood, Vec<Measured>)>,
}

/// The section.
pub(crate) fn run(plan: &Plan) -> Result<Section> {
    sweep()?;
    let cpus = Cpus { serving: serving_cpu()?, other: sending_cpu()? };
    if cpus.serving == cpus.other {
        bail!("a flood and a registrar need a CPU each, and there is only one");
    }
    let (rounds, window) =
        if plan.quick { (1, Duration::from_millis(700)) } else { (3, Duration::from_millis(1500)) };
    let floods: &[Flood] =
        if plan.quick { &[Flood::Shared] } else { &[Flood::Shared, Flood::PerHost] };
    let sources: Vec<_> = (0..SOURCES).map(spread).collect();
    // One alone on the list says no more here than among others.
    let contenders: Vec<_> =
        ALL.iter().filter(|(name, _)| *name != OURS_ALONE && !FLOORS.contains(name)).collect();
    let grounds = contenders.iter().map(|_| Ground::new(cpus)).collect::<Result<Vec<_>>>()?;
    let mut entries: Vec<_> = contenders
        .iter()
        .zip(&grounds)
        .map(|((name, set), ground)| {
            eprintln!("bench: {name} is put in place");
            let set = (*name != NO_FILTER).then_some(*set);
            let site = Site::place(ground, set, &sources);
            Entry {
                name,
                site,
                measured: floods.iter().map(|flood| (*flood, Vec::new())).collect(),
            }
        })
        .collect();
    let mut calm: Vec<_> = floods.iter().map(|flood| (*flood, Vec::new())).collect();
    for _ in 0..rounds {
        // The bare host, unless even that could not be set up.
        if let Some(site) = entries.iter_mut().rev().find_map(|entry| entry.site.as_mut().ok()) {
            for (flood, samples) in &mut calm {
                samples.push(site.calm(*flood, window)?);
            }
        }
        for entry in &mut entries {
            entry.round(window);
        }
    }
    let mut rows = Vec::new();
    for (flood, samples) in calm {
        rows.push(reference(flood, samples));
        rows.extend(entries.iter().map(|entry| entry.row(flood)));
    }
    Ok(Section {
        letter: 'c',
        title: "What a flood from 1,024 listed sources leaves of a registrar",
        rows,
        remarks: remarks(cpus, rounds, window, floods),
    })
}

impl Entry<'_> {
    /// Measures under each flood. One that fails in a round is out of the race.
    fn round(&mut self, window: Duration) {
        for (flood, measured) in &mut self.measured {
            let Ok(site) = &mut self.site else { return };
            match site.flooded(*flood, window) {
                Ok(result) => measured.push(result),
                Err(error) => self.site = Err(error),
            }
        }
    }

    fn row(&self, flood: Flood) -> Row {
        let name = if self.name == NO_FILTER { UNFILTERED } else { self.name };
        let name = row_name(name, flood);
        let measured = self.measured.iter().find(|(candidate, _)| *candidate == flood);
        match (&self.site, measured) {
            (Ok(site), Some((_, measured))) => Row {
                name,
                populated: site.populated(),
                unit: UNIT,
                samples: measured.iter().map(|measured| measured.rate).collect(),
                baseline: Some(row_name(CALM, flood)),
                budget: None,
                note: note(site, flood, measured),
            },
            (Err(error), _) => failed(name, flood, error),
            (_, None) => failed(name, flood, &Error::msg("it was not measured")),
        }
    }
}

fn row_name(name: &str, flood: Flood) -> String {
    format!("{name} ({})", flood.name())
}

fn reference(flood: Flood, samples: Vec<f64>) -> Row {
    Row {
        name: row_name(CALM, flood),
        populated: String::new(),
        unit: UNIT,
        samples,
        baseline: Some(row_name(CALM, flood)),
        budget: None,
        note: format!("{PHONES} phones, each starts again when it is registered"),
    }
}

/// A row without samples, which says so loudly.
fn failed(name: String, flood: Flood, error: &Error) -> Row {
    let note = format!("FAILED: {error:#}");
    eprintln!("bench: {name} {note}");
    Row {
        name,
        populated: String::new(),
        unit: UNIT,
        samples: Vec::new(),
        baseline: Some(row_name(CALM, flood)),
        budget: None,
        note,
    }
}

fn note(site: &Site<'_>, flood: Flood, measured: &[Measured]) -> String {
    let sum = |count: fn(&Measured) -> u64| thousands(measured.iter().map(count).sum::<u64>());
    let mean = |value: fn(&Measured) -> f64| {
        let sum: f64 = measured.iter().map(value).sum();
        number(sum / measured.len().max(1) as f64)
    };
    let mut note = format!(
        "{} Mpps, {} packets taken in",
        mean(|measured| measured.intake),
        sum(|measured| measured.received)
    );
    if let Some(counter) = site.counter() {
        note += &format!(", {} stopped: {counter}", sum(|measured| measured.stopped));
    }
    if flood == Flood::Shared {
        let cost = |measured: &Measured| {
            let timed = measured.steady.timed;
            timed.elapsed.as_nanos() as f64 / timed.packets.max(1) as f64
        };
        note += &format!("; {} ns of the CPU for each", mean(cost));
        if measured.iter().any(|measured| measured.steady.overloaded) {
            note += ", too much for it";
        }
    }
    format!("{note}; phones asked again {} times", sum(|measured| measured.repeated))
}

impl Flood {
    fn name(self) -> String {
        match self {
            Self::Shared => format!("{} Mpps, same CPU", f64::from(RATE) / 1e6),
            Self::PerHost => "full speed, other CPU".to_owned(),
        }
    }
}

fn remarks(cpus: Cpus, rounds: usize, window: Duration, floods: &[Flood]) -> Vec<String> {
    let Cpus { serving, other } = cpus;
    let mut remarks = vec![
        format!(
            "{rounds} rounds, each of {} ms for every candidate and flood in turn.",
            window.as_millis()
        ),
        format!(
            "{PHONES} phones register through an interface of their own, each again and again: a \
             challenge, then \
             credentials, then 200. The registrar is Kamailio, on CPU {serving}."
        ),
        format!(
            "\"{}\": each millisecond as many packets as are due are made, handed over and \
             filtered on CPU {serving}, before \
             all other work there. Where that takes more than the CPU has, it goes on among other \
             work, and what is not \
             done in time is lost before any filter: so does the kernel with what a network card \
             receives. Phones behind \
             the same card would lose as much; these are not. That the flood is made there too \
             costs about as much as all of \
             it against \"drop everything\". The phones have CPU {other}.",
            Flood::Shared.name()
        ),
    ];
    if floods.contains(&Flood::PerHost) {
        remarks.push(format!(
            "\"{}\": packets are made, handed over and filtered on CPU {other} alone, and phones \
             share CPU {serving} with \
             the registrar, which loses nothing to a filter but what both CPUs share. Without one \
             the flood fills its \
             socket.",
            Flood::PerHost.name()
        ));
    }
    remarks
}
