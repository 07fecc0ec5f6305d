//! The checks of one interface, in order, with their results.
//!
//! More than 400 lines: one method per check, in the order of their execution.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::Mode;
use super::arrange::{Arranged, State};
use super::daemon::{Daemon, Started};
use super::doctor::{agree, load_seconds};
use super::interfaces::{Above, Row, version_of};
use super::outside::{Outside, Who};
use super::qemu::{Dead, Machine};
use crate::command::say;

/// The most instructions that a verifier may look at: half of what it gives up at.
const MOST_INSTRUCTIONS: u64 = 500_000;

/// How the log names a program that the driver never calls.
const BLIND: &str = "kind=blind";

/// The result of one check: what was seen, or what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) result: std::result::Result<String, String>,
}

/// All of one row on one kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) checks: Vec<Check>,
    /// How the filter ended up when it was left to choose.
    pub(crate) mode: Option<String>,
    /// How responses are read.
    pub(crate) egress: Option<String>,
    /// What was said about generic mode, or about a failure.
    pub(crate) reason: Option<String>,
    /// The most that the verifier looked at for one program.
    pub(crate) instructions: Option<u64>,
    /// Seconds that loading both programs took.
    pub(crate) load: Option<f64>,
    /// Seconds from the start of the daemon until it was ready.
    pub(crate) ready: Option<f64>,
}

impl Outcome {
    /// Whether all is right.
    pub(crate) fn is_right(&self) -> bool {
        self.checks.iter().all(|check| check.result.is_ok())
    }
}

/// Selection and verbosity.
pub(crate) struct Scope {
    pub(crate) modes: Vec<Mode>,
    /// Whether each check is told as it happens.
    pub(crate) verbose: bool,
}

/// The checks of one row.
pub(crate) struct Checks<'a> {
    pub(super) machine: &'a mut Machine,
    pub(super) row: &'a Row,
    pub(super) outside: &'a Outside,
    pub(super) arranged: Arranged,
    before: State,
    /// How many of our programs its driver may have lost without freeing them.
    pub(super) lost: usize,
    outcome: Outcome,
    verbose: bool,
}

/// Does everything. An error means that the machine itself is no longer of use.
pub(crate) fn run(
    machine: &mut Machine,
    row: &Row,
    arranged: Arranged,
    outside: &Outside,
    scope: &Scope,
) -> Result<Outcome> {
    let before = arranged.state(machine)?;
    let mut checks = Checks {
        machine,
        row,
        outside,
        arranged,
        before,
        lost: 0,
        outcome: Outcome::default(),
        verbose: scope.verbose,
    };
    checks.check("reachable without a filter", |checks| {
        checks.outside.reach()?;
        Ok("answers".to_owned())
    })?;
    if scope.modes.contains(&Mode::Auto) && checks.automatic()? {
        checks.traffic()?;
    }
    if scope.modes.contains(&Mode::Native) {
        checks.native()?;
    }
    if scope.modes.contains(&Mode::Generic) {
        checks.generic()?;
    }
    let arranged = checks.arranged;
    arranged.take_down(checks.machine)?;
    Ok(checks.outcome)
}

impl Checks<'_> {
    /// Notes what a check says. Only a machine that no longer answers ends the row.
    fn check(
        &mut self,
        name: &'static str,
        body: impl FnOnce(&mut Self) -> Result<String>,
    ) -> Result<bool> {
        let since = Instant::now();
        let result = match body(self) {
            Ok(said) => Ok(said),
            Err(error) if error.is::<Dead>() => return Err(error),
            Err(error) => Err(format!("{error:#}")),
        };
        let fine = result.is_ok();
        if self.verbose {
            let (word, detail) = match &result {
                Ok(detail) => ("right", detail),
                Err(detail) => ("WRONG", detail),
            };
            say(format!("    {word} in {:.1} s: {name}: {detail}", since.elapsed().as_secs_f64()));
        }
        self.outcome.checks.push(Check { name, result });
        Ok(fine)
    }

    pub(super) fn daemon(&mut self) -> Daemon<'_> {
        Daemon { machine: self.machine, interface: &self.arranged.interface }
    }

    /// Packets that arrived from somebody since they were last forgotten.
    pub(super) fn arrived(&mut self, who: Who) -> Result<u64> {
        let counts = self.machine.ask(&json!({"do": "counts"}))?;
        Ok(counts[self.outside.address(who).to_string()].as_u64().unwrap_or(0))
    }

    /// `doctor`, then `run` with its own choice of the mode; whether it filters.
    fn automatic(&mut self) -> Result<bool> {
        self.daemon().configure(&[5060, 5061])?;
        let doctor = self.daemon().sip_xdp(&["doctor", "--json"])?;
        self.outcome.load = doctor.json().ok().and_then(|doctor| load_seconds(&doctor));
        let started = self.daemon().start("auto")?;
        let (is_ready, log) = (started.ready, started.log.clone());
        self.outcome.ready = Some(started.seconds);
        self.check("run", |checks| {
            if !started.ready {
                checks.outcome.reason = Some(started.last_line());
                if is_too_old(&checks.machine.release) {
                    return Ok(format!("refused: {}", started.last_line()));
                }
                bail!("{}", started.last_line());
            }
            checks.state_of_filter(&log)
        })?;
        self.check("doctor and run agree", |checks| {
            let refused = (!is_ready).then(|| started.last_line());
            checks.foretold(&doctor.json()?, refused.as_deref())
        })?;
        if !is_ready {
            return Ok(false);
        }
        self.check("verifier", |checks| {
            let held = checks.machine.ask(&json!({"do": "programs"}))?;
            let programs = held["programs"].as_array().into_iter().flatten();
            let most = programs.filter_map(|program| program["instructions"].as_u64()).max();
            checks.outcome.instructions = most;
            match most {
                Some(most) if most > MOST_INSTRUCTIONS => {
                    bail!("{most} instructions, at most {MOST_INSTRUCTIONS}")
                }
                Some(most) => Ok(format!("{most} instructions")),
                None => Ok("this kernel does not say".to_owned()),
            }
        })?;
        Ok(true)
    }

    /// Holds what `doctor` said against what `run` did.
    fn foretold(&self, doctor: &Value, refused: Option<&str>) -> Result<String> {
        let Outcome { mode, egress, .. } = &self.outcome;
        agree(doctor, refused, mode.as_deref(), egress.as_deref())
    }

    /// Reads mode and egress from `status`, and the reason for generic mode from the log.
    fn state_of_filter(&mut self, log: &str) -> Result<String> {
        let status = self.daemon().status()?;
        let interface = &status["interfaces"][0];
        let text = |key: &str| interface[key].as_str().map(str::to_owned);
        self.outcome.mode = text("mode");
        self.outcome.egress = text("egress");
        let mode = text("mode").context("status names no mode")?;
        if mode == "generic" {
            self.outcome.reason = reason(log);
        }
        if status["enforcing"] != true {
            bail!("status does not say that it enforces");
        }
        let egress = text("egress").context("nothing reads responses")?;
        Ok(format!("{mode}, responses by {egress}"))
    }

    /// Everything that needs packets, with the daemon running; ends with `unload`.
    fn traffic(&mut self) -> Result<()> {
        self.check("blocked source dropped", Self::blocked)?;
        self.check("mode", Self::mode)?;
        self.check("doctor agrees while it runs", |checks| {
            let doctor = checks.daemon().sip_xdp(&["doctor", "--json"])?;
            checks.foretold(&doctor.json()?, None)
        })?;
        self.check("registration seen, known good", Self::registration)?;
        self.check("TCP both ways", Self::tcp)?;
        self.check("flood limited and banned", Self::flood)?;
        if self.row.mtu > 1500 {
            self.check("large packets", Self::large)?;
        }
        if self.row.resets {
            self.check("protected after down and up", |checks| checks.reset("down"))?;
            self.check("protected after an MTU change", |checks| checks.reset("mtu"))?;
        }
        self.check("adoption after kill -9", |checks| checks.swap(true))?;
        self.check("upgrade", |checks| checks.swap(false))?;
        self.check("unload leaves nothing", Self::unload)?;
        Ok(())
    }

    /// The mode after packets have arrived: native where the driver can, and said where it cannot.
    fn mode(&mut self) -> Result<String> {
        let log = self.daemon().log()?;
        self.state_of_filter(&log)?;
        let mode = self.outcome.mode.clone().unwrap_or_default();
        let native = self.row.is_native(&self.machine.release);
        match (native, mode.as_str()) {
            (true, "native") => Ok(mode),
            (true, _) => {
                bail!(
                    "{mode}, though this driver can: {}",
                    self.outcome.reason.as_deref().unwrap_or("no reason")
                )
            }
            (false, "native") => bail!("native, though this driver cannot"),
            (false, _) => match &self.outcome.reason {
                Some(reason) => Ok(reason.clone()),
                None => bail!("generic, and no reason is given"),
            },
        }
    }

    /// A new daemon takes over while a blocked source goes on sending: after a crash, or with
    /// another program.
    fn swap(&mut self, crash: bool) -> Result<String> {
        self.machine.ask(&json!({"do": "forget"}))?;
        let stream = self.outside.keep_sending()?;
        let before = self.arranged.state(self.machine)?;
        let started: Started = if crash {
            self.daemon().stop("KILL")?;
            std::thread::sleep(Duration::from_millis(500));
            self.daemon().start("auto")?
        } else {
            self.daemon().stop("TERM")?;
            // Other ports are other constants of the program.
            self.daemon().configure(&[5060, 5061, 5070])?;
            self.daemon().start("auto")?
        };
        let sent = stream.stop();
        if !started.ready {
            bail!("{}", started.last_line());
        }
        let leaked = self.arrived(Who::Blocked)?;
        let after = self.arranged.state(self.machine)?;
        if leaked > 0 {
            bail!("{leaked} of {sent} packets of a blocked source arrived meanwhile");
        }
        if !started.log.contains("adopting what was there") {
            bail!("the new daemon does not say that it adopted anything");
        }
        if before.same_programs(&after) {
            bail!("the program is still the old one");
        }
        if self.is_native() && matches!(self.row.above, Above::Bond(_)) {
            self.lost += 1;
        }
        Ok(format!("none of {sent} passed"))
    }

    fn unload(&mut self) -> Result<String> {
        self.daemon().stop("TERM")?;
        self.daemon().must(&["unload"])?;
        self.nothing_left()
    }

    /// Whether the filter was in native mode when it was left to choose.
    pub(super) fn is_native(&self) -> bool {
        self.outcome.mode.as_deref() == Some("native")
    }

    /// Waits until everything is as it was; the kernel frees programs a moment later.
    ///
    /// Two drivers never free some programs, and so many may stay, but no more: of bonds those that
    /// another has taken the place of (`bond_xdp_set` lets go of the old one only where there is no
    /// new one), of vmxnet3 those that were there when its rings were made anew
    /// (`vmxnet3_rq_cleanup_all` forgets them).
    fn nothing_left(&mut self) -> Result<String> {
        let mut differences = Vec::new();
        for _ in 0..25 {
            let now = self.arranged.state(self.machine)?;
            differences = self.before.differences(&now, self.lost);
            if differences.is_empty() {
                return Ok(match now.programs_more_than(&self.before) {
                    0 => "as before".to_owned(),
                    more => {
                        format!("as before, but for {more} programs that the driver never frees")
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        bail!("{}", differences.join("; "))
    }

    /// `run` in native mode, which works or says why not.
    fn native(&mut self) -> Result<()> {
        self.daemon().configure(&[5060, 5061])?;
        self.check("native mode", |checks| {
            let started = checks.daemon().start("native")?;
            let refused = (!started.ready).then(|| started.last_line());
            let native = checks.row.is_native(&checks.machine.release);
            let result = match &refused {
                None => checks.blocked().map(|_| "native".to_owned()),
                Some(reason) if native => {
                    Err(anyhow::anyhow!("refused, though this driver can: {reason}"))
                }
                Some(reason) => Ok(format!("refused: {reason}")),
            };
            let log = if refused.is_none() { checks.daemon().log()? } else { String::new() };
            checks.finish(refused.is_none())?;
            match result {
                // What the driver takes and ignores is an error that the daemon has to find.
                Err(_) if !native && log.contains(BLIND) => {
                    Ok("ignored by the driver, and said".to_owned())
                }
                other => other,
            }
        })?;
        self.check("unload after native mode", Self::nothing_left)?;
        Ok(())
    }

    /// `run` in generic mode, which always works.
    fn generic(&mut self) -> Result<()> {
        self.daemon().configure(&[5060, 5061])?;
        self.check("generic mode", |checks| {
            let started = checks.daemon().start("generic")?;
            if !started.ready {
                checks.finish(false)?;
                bail!("{}", started.last_line());
            }
            let result = checks.blocked();
            checks.finish(true)?;
            result
        })?;
        self.check("unload after generic mode", Self::nothing_left)?;
        Ok(())
    }

    /// Stops the daemon and takes the filter off.
    fn finish(&mut self, running: bool) -> Result<()> {
        if running {
            self.daemon().stop("TERM")?;
        }
        self.daemon().sip_xdp(&["unload"])?;
        Ok(())
    }
}

/// Whether a kernel lacks helpers that the programs call: the last came with 5.18.
fn is_too_old(release: &str) -> bool {
    version_of(release) < (5, 18)
}

/// Why generic mode, from the log's last word on it.
fn reason(log: &str) -> Option<String> {
    let about = |line: &&str| line.contains("generic mode") || line.contains(BLIND);
    let warned = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    let line = log.lines().filter(warned).rfind(about)?;
    Some(
        line.split_once(" WARN ")
            .or_else(|| line.split_once(" ERROR "))
            .map_or(line, |(_, said)| said)
            .trim()
            .to_owned(),
    )
}
