//! A registrar at the receiving end of a wire, behind a contender, with phones on another
//! interface.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use sip_xdp_tests::generator::{Sources, Steady};
use sip_xdp_tests::registrar::USERS;
use sip_xdp_tests::topology::{PBX_LAN, PHONE};
use sip_xdp_tests::{Generator, Namespace, Office, Registrar, RegistrarOptions, Wire, wait_until};

use super::{PHONES, RATE};
use crate::contenders::{Contender, REQUEST, Set};
use crate::table::thousands;

/// How long phones register, or a flood lasts, before anything is counted.
const WARM_UP: Duration = Duration::from_millis(150);

/// Who runs where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cpus {
    /// The registrar's CPU.
    pub(super) serving: usize,
    /// The other one.
    pub(super) other: usize,
}

/// The CPU and the rate of the flood. The phones have the other CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flood {
    /// On the registrar's CPU, at a constant rate.
    Shared,
    /// On the other CPU, as fast as that can.
    PerHost,
}

/// The network of one contender.
#[derive(Debug)]
pub(super) struct Ground {
    wire: Wire,
    phones: Namespace,
    cpus: Cpus,
}

impl Ground {
    pub(super) fn new(cpus: Cpus) -> Result<Self> {
        let wire = Wire::new()?;
        let phones = wire.phones()?;
        Ok(Self { wire, phones, cpus })
    }
}

/// A contender in place, and all that is measured with it.
pub(super) struct Site<'g> {
    ground: &'g Ground,
    _registrar: Registrar,
    contender: Option<Box<dyn Contender + 'g>>,
    generator: Generator<'g>,
}

/// One contender, one flood, one round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    /// Registrations a second.
    pub(super) rate: f64,
    /// Requests of phones that had to be sent again.
    pub(super) repeated: u64,
    /// Packets a second, in millions, that the interface took in meanwhile.
    pub(super) intake: f64,
    /// What a flood of a constant rate cost.
    pub(super) steady: Steady,
    /// Packets of the flood that the interface took in in all.
    pub(super) received: u64,
    /// Packets that the contender stopped in all.
    pub(super) stopped: u64,
}

impl<'g> Site<'g> {
    /// Puts a contender in place; none is the bare host.
    pub(super) fn place(
        ground: &'g Ground,
        set: Option<Set>,
        sources: &[Ipv4Addr],
    ) -> Result<Self> {
        let Ground { wire, cpus, .. } = ground;
        let options = RegistrarOptions {
            log_requests: false,
            cpu: Some(cpus.serving),
            ..RegistrarOptions::default()
        };
        let registrar = Registrar::start_with(&wire.receiver, wire.directory(), &options)?;
        let contender = set.map(|set| set(wire, sources)).transpose()?;
        let sources = Sources::InTurn(sources.to_vec());
        let mut generator = wire.generator(&sources, REQUEST.as_bytes())?;
        // Not counted: caches and branch predictors, and the generator learns how fast it goes
        // here.
        generator.send_for(WARM_UP / 5)?;
        Ok(Self { ground, _registrar: registrar, contender, generator })
    }

    /// With everybody where the flood wants them, but without it.
    pub(super) fn calm(&mut self, flood: Flood, window: Duration) -> Result<f64> {
        let office = self.office(flood)?;
        sleep(WARM_UP);
        Ok(count(&office, &self.ground.wire, window)?.rate)
    }

    /// With a flood.
    pub(super) fn flooded(&mut self, flood: Flood, window: Duration) -> Result<Measured> {
        let (received, stopped) = (self.ground.wire.received()?, self.stopped()?);
        let office = self.office(flood)?;
        sleep(WARM_UP);
        let (ground, generator, stop) = (self.ground, &mut self.generator, AtomicBool::new(false));
        let measured = thread::scope(|scope| {
            let flood = scope.spawn(|| match flood {
                Flood::Shared => {
                    generator.send_steadily(ground.cpus.serving, RATE, &stop).map(Some)
                }
                Flood::PerHost => generator.send_until(&stop).map(|_| None),
            });
            sleep(WARM_UP);
            let measured = count(&office, &ground.wire, window);
            stop.store(true, Ordering::Relaxed);
            let steady = flood
                .join()
                .map_err(|_| anyhow!("the flood's thread panicked"))?
                .context("the flood failed")?;
            anyhow::Ok(Measured { steady: steady.unwrap_or_default(), ..measured? })
        });
        drop(office);
        self.settle(Measured { received, stopped, ..measured? })
    }

    /// Sees that every packet of the flood ended where it should; until now the counts are those
    /// from before.
    fn settle(&self, before: Measured) -> Result<Measured> {
        let mut after = before;
        let settled = wait_until("every packet is counted", Duration::from_secs(1), || {
            let received = self.ground.wire.received()? - before.received;
            after = Measured { received, stopped: self.stopped()? - before.stopped, ..before };
            Ok(self.counter().is_none() || after.stopped == after.received)
        });
        let counts = || {
            format!("{} taken in, {} stopped", thousands(after.received), thousands(after.stopped))
        };
        settled.with_context(counts)?;
        Ok(after)
    }

    fn office(&self, flood: Flood) -> Result<Office> {
        let Ground { phones, cpus, .. } = self.ground;
        let cpu = if flood == Flood::Shared { cpus.other } else { cpus.serving };
        Office::open(phones, PHONE, PBX_LAN, PHONES, USERS[0], cpu)
    }

    fn stopped(&self) -> Result<u64> {
        match &self.contender {
            Some(contender) if self.counter().is_some() => contender.stopped(),
            _ => Ok(0),
        }
    }

    /// What the contender counts with, if that counts nothing but the flood.
    pub(super) fn counter(&self) -> Option<&'static str> {
        self.contender.as_ref().and_then(|contender| contender.own_counter())
    }

    /// Contents of its tables besides the attacking sources.
    pub(super) fn populated(&self) -> String {
        self.contender.as_ref().map(|contender| contender.populated()).unwrap_or_default()
    }
}

/// What the phones achieve in a while, and what the interface takes in.
fn count(office: &Office, wire: &Wire, window: Duration) -> Result<Measured> {
    let (received, start) = (wire.received()?, Instant::now());
    let (before, registering) = (office.tally(), Instant::now());
    sleep(window);
    let (after, registered) = (office.tally(), registering.elapsed());
    let (received, took) = (wire.received()? - received, start.elapsed());
    if after.refused != before.refused {
        bail!("{} registrations were refused", after.refused - before.refused);
    }
    Ok(Measured {
        rate: (after.registered - before.registered) as f64 / registered.as_secs_f64(),
        repeated: after.repeated - before.repeated,
        intake: received as f64 / took.as_secs_f64() / 1e6,
        steady: Steady::default(),
        received: 0,
        stopped: 0,
    })
}
