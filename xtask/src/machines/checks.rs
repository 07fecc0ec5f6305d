//! What is tried on one interface, in this order, and what came of it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::arrange::{Arranged, State};
use super::daemon::{Daemon, Started};
use super::interfaces::Row;
use super::outside::{Outside, Who};
use super::qemu::{Dead, Machine};

/// The most instructions that a verifier may look at: half of what it gives up at.
const MOST_INSTRUCTIONS: u64 = 500_000;

/// How long an interface that was taken down and up, or whose driver ignores the program, may go unprotected.
const PROTECTED_WITHIN: Duration = Duration::from_secs(5);

/// Packets of a flood.
const FLOOD: u32 = 600;

/// The most of them that may pass: the burst that strangers have, and what a few seconds add to it.
const FLOOD_PASSES: u64 = 200;

/// Bytes over TCP, each way.
const BYTES: usize = 200_000;

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
    /// Seconds from the start of the daemon until it was ready.
    pub(crate) ready: Option<f64>,
}

impl Outcome {
    /// Whether all is right.
    pub(crate) fn is_right(&self) -> bool {
        self.checks.iter().all(|check| check.result.is_ok())
    }
}

/// The checks of one row.
pub(crate) struct Checks<'a> {
    machine: &'a mut Machine,
    row: &'a Row,
    outside: &'a Outside,
    arranged: Arranged,
    before: State,
    outcome: Outcome,
}

/// Does everything. An error means that the machine itself is no longer of use.
pub(crate) fn run(machine: &mut Machine, row: &Row, arranged: Arranged, outside: &Outside) -> Result<Outcome> {
    let before = arranged.state(machine)?;
    let mut checks = Checks { machine, row, outside, arranged, before, outcome: Outcome::default() };
    checks.check("reachable without a filter", |checks| {
        checks.outside.reach()?;
        Ok("answers".to_owned())
    })?;
    if checks.automatic()? {
        checks.traffic()?;
    }
    checks.single_modes()?;
    let arranged = checks.arranged;
    arranged.take_down(checks.machine)?;
    Ok(checks.outcome)
}

impl Checks<'_> {
    /// Notes what a check says. Only a machine that no longer answers ends the row.
    fn check(&mut self, name: &'static str, body: impl FnOnce(&mut Self) -> Result<String>) -> Result<bool> {
        let result = match body(self) {
            Ok(said) => Ok(said),
            Err(error) if error.is::<Dead>() => return Err(error),
            Err(error) => Err(format!("{error:#}")),
        };
        let fine = result.is_ok();
        self.outcome.checks.push(Check { name, result });
        Ok(fine)
    }

    fn daemon(&mut self) -> Daemon<'_> {
        Daemon { machine: self.machine, interface: &self.arranged.interface }
    }

    /// Packets that arrived from somebody since they were last forgotten.
    fn arrived(&mut self, who: Who) -> Result<u64> {
        let counts = self.machine.ask(&json!({"do": "counts"}))?;
        Ok(counts[self.outside.address(who).to_string()].as_u64().unwrap_or(0))
    }

    /// `doctor`, then `run` with its own choice of the mode; whether it filters.
    fn automatic(&mut self) -> Result<bool> {
        self.daemon().configure(&[5060, 5061])?;
        let doctor = self.daemon().sip_xdp(&["doctor", "--json"])?;
        let started = self.daemon().start("auto")?;
        let (is_ready, log) = (started.ready, started.log.clone());
        self.outcome.ready = Some(started.seconds);
        self.check("run", |checks| {
            if !started.ready {
                checks.outcome.reason = Some(started.last_line());
                bail!("{}", started.last_line());
            }
            checks.state_of_filter(&log)
        })?;
        self.check("doctor and run agree", |checks| agree(&doctor.json()?, is_ready, checks.outcome.mode.as_deref()))?;
        if !is_ready {
            return Ok(false);
        }
        self.check("verifier", |checks| {
            let held = checks.machine.ask(&json!({"do": "programs"}))?;
            let programs = held["programs"].as_array().into_iter().flatten();
            let most = programs.filter_map(|program| program["instructions"].as_u64()).max();
            checks.outcome.instructions = most;
            match most {
                Some(most) if most > MOST_INSTRUCTIONS => bail!("{most} instructions, at most {MOST_INSTRUCTIONS}"),
                Some(most) => Ok(format!("{most} instructions")),
                None => Ok("this kernel does not say".to_owned()),
            }
        })?;
        Ok(true)
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
            let reason = log.lines().find(|line| line.contains("generic mode") && line.contains("WARN"));
            self.outcome.reason = reason.map(|line| line.split("WARN").nth(1).unwrap_or(line).trim().to_owned());
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

    /// Twenty packets of a blocked source, and of a stranger. Where the driver ignores the program, it may take a few
    /// seconds until that was noticed.
    fn blocked(&mut self) -> Result<String> {
        let address = self.outside.address(Who::Blocked).to_string();
        self.daemon().must(&["block", "add", &address])?;
        let deadline = Instant::now() + PROTECTED_WITHIN;
        let mut leaked = 0;
        loop {
            self.machine.ask(&json!({"do": "forget"}))?;
            self.outside.send(Who::Blocked, "OPTIONS", 20, Duration::from_millis(4))?;
            self.outside.send(Who::Stranger, "OPTIONS", 3, Duration::from_millis(20))?;
            self.settle(Who::Stranger, 3)?;
            let (blocked, stranger) = (self.arrived(Who::Blocked)?, self.arrived(Who::Stranger)?);
            if stranger == 0 {
                bail!("nothing of a stranger arrives either");
            }
            if blocked == 0 {
                break;
            }
            leaked += blocked;
            if Instant::now() >= deadline {
                bail!("{leaked} packets of a blocked source arrived in {} s", PROTECTED_WITHIN.as_secs());
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        let explained = self.daemon().json(&["explain", &address])?;
        let hits = explained["matches"][0]["hits"].as_u64().unwrap_or(0);
        if hits < 20 {
            bail!("20 packets were dropped, {hits} are counted");
        }
        Ok(if leaked == 0 { "20 of 20".to_owned() } else { format!("after {leaked} had passed") })
    }

    /// Waits a moment for what was sent.
    fn settle(&mut self, who: Who, wanted: u64) -> Result<()> {
        for _ in 0..40 {
            if self.arrived(who)? >= wanted {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
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
                bail!("{mode}, though this driver can: {}", self.outcome.reason.as_deref().unwrap_or("no reason"))
            }
            (false, "native") => bail!("native, though this driver cannot"),
            (false, _) => match &self.outcome.reason {
                Some(reason) => Ok(reason.clone()),
                None => bail!("generic, and no reason is given"),
            },
        }
    }

    fn registration(&mut self) -> Result<String> {
        self.outside.register()?;
        let address = self.outside.address(Who::Phone).to_string();
        let good = self.daemon().explained(&address, Duration::from_secs(15), |explained| {
            !explained["good_until"].is_null()
                || explained["good_ports"].as_array().is_some_and(|ports| !ports.is_empty())
        })?;
        if !good {
            bail!("registered, and not known good 15 s later");
        }
        Ok("known good".to_owned())
    }

    fn tcp(&mut self) -> Result<String> {
        self.outside.echo_inwards(BYTES).context("to the machine")?;
        let (address, echo) = self.outside.echo_outwards()?;
        let answer = self
            .machine
            .ask(&json!({"do": "echo", "address": address.to_string(), "bytes": BYTES, "timeout": 20}))
            .context("from the machine")?;
        if answer["same"] != true {
            bail!("other bytes came back to the machine than it sent");
        }
        // It ends when the machine closes the connection, which it did.
        let _ = echo.join();
        Ok(format!("{BYTES} bytes"))
    }

    fn flood(&mut self) -> Result<String> {
        let address = self.outside.address(Who::Flooder).to_string();
        self.machine.ask(&json!({"do": "forget"}))?;
        // Longer than the second for which a flood is watched before anybody is banned for it.
        self.outside.send(Who::Flooder, "REGISTER", FLOOD, Duration::from_millis(5))?;
        let banned = self.daemon().explained(&address, Duration::from_secs(20), |explained| {
            explained["matches"].as_array().into_iter().flatten().any(|entry| entry["list"] == "block")
        })?;
        let arrived = self.arrived(Who::Flooder)?;
        if arrived > FLOOD_PASSES {
            bail!("{arrived} of {FLOOD} arrived");
        }
        if !banned {
            bail!("{arrived} of {FLOOD} arrived, but the source is not banned 20 s later");
        }
        Ok(format!("{arrived} of {FLOOD} arrived, banned"))
    }

    /// A datagram in several buffers of the card.
    fn large(&mut self) -> Result<String> {
        self.machine.ask(&json!({"do": "forget"}))?;
        let size = usize::from(self.row.mtu) - 500;
        for who in [Who::Blocked, Who::Gateway] {
            self.outside.send_large(who, size)?;
        }
        self.settle(Who::Gateway, 1)?;
        match (self.arrived(Who::Gateway)?, self.arrived(Who::Blocked)?) {
            (0, _) => bail!("a datagram of {size} bytes does not arrive"),
            (_, 0) => Ok(format!("{size} bytes")),
            (_, leaked) => bail!("{leaked} datagrams of {size} bytes of a blocked source arrived"),
        }
    }

    /// Takes the interface down and up, or changes its MTU; it must be protected again soon, and that must be said.
    fn reset(&mut self, how: &str) -> Result<String> {
        let card = self.arranged.interface.clone();
        let said_before = self.daemon().log()?.lines().count();
        if how == "mtu" {
            self.machine.must(&format!("ip link set dev {card} mtu 1400"))?;
        } else {
            self.machine.must(&format!("ip link set dev {card} down"))?;
            self.machine.must(&format!("ip link set dev {card} up"))?;
        }
        let since = Instant::now();
        self.outside.reach()?;
        let stream = self.outside.keep_sending()?;
        let mut last = None;
        let mut seen = self.arrived(Who::Blocked)?;
        while since.elapsed() < PROTECTED_WITHIN + Duration::from_secs(3) {
            let now = self.arrived(Who::Blocked)?;
            if now > seen {
                (seen, last) = (now, Some(since.elapsed()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let sent = stream.stop();
        if let Some(last) = last.filter(|last| *last > PROTECTED_WITHIN) {
            bail!("packets of a blocked source still arrive {:.1} s later", last.as_secs_f64());
        }
        if how == "mtu" {
            self.machine.must(&format!("ip link set dev {card} mtu {}", self.row.mtu))?;
        }
        let log = self.daemon().log()?;
        let said: Vec<_> = log.lines().skip(said_before).filter(|line| line.contains(&card)).collect();
        let gap =
            last.map_or("no packet passed".to_owned(), |last| format!("protected after {:.1} s", last.as_secs_f64()));
        if last.is_some() && said.is_empty() {
            bail!("{gap}, and nothing was said");
        }
        Ok(format!("{gap} ({sent} sent)"))
    }

    /// A new daemon takes over while a blocked source goes on sending: after a crash, or with another program.
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
        Ok(format!("none of {sent} passed"))
    }

    fn unload(&mut self) -> Result<String> {
        self.daemon().stop("TERM")?;
        self.daemon().must(&["unload"])?;
        self.nothing_left()
    }

    /// Waits until everything is as it was; the kernel frees programs a moment later.
    fn nothing_left(&mut self) -> Result<String> {
        let mut differences = Vec::new();
        for _ in 0..25 {
            let now = self.arranged.state(self.machine)?;
            differences = self.before.differences(&now);
            if differences.is_empty() {
                return Ok("as before".to_owned());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        bail!("{}", differences.join("; "))
    }

    /// `run` in native mode, which works or says why not, and in generic mode, which always works.
    fn single_modes(&mut self) -> Result<()> {
        self.check("native mode", |checks| {
            let started = checks.daemon().start("native")?;
            let refused = (!started.ready).then(|| started.last_line());
            let native = checks.row.is_native(&checks.machine.release);
            let result = match &refused {
                None => checks.blocked().map(|_| "native".to_owned()),
                Some(reason) if native => Err(anyhow::anyhow!("refused, though this driver can: {reason}")),
                Some(reason) => Ok(format!("refused: {reason}")),
            };
            checks.finish(refused.is_none())?;
            match result {
                // What the driver takes and ignores is an error that the daemon has to find.
                Err(error) if !native => {
                    let log = started.log;
                    let found = checks.outcome.reason.is_some() && log.contains("blind");
                    if found { Ok("taken and ignored by the driver, which is said".to_owned()) } else { Err(error) }
                }
                other => other,
            }
        })?;
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
        self.check("unload after single modes", Self::nothing_left)?;
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

/// Whether what `doctor` foretold is what `run` did.
pub(crate) fn agree(doctor: &Value, ready: bool, mode: Option<&str>) -> Result<String> {
    let checks = doctor["checks"].as_array().context("doctor lists no checks")?;
    let about = |status: &str, name: Option<&str>| {
        checks.iter().find(|check| check["status"] == status && name.is_none_or(|name| check["check"] == name))
    };
    let words = |check: &Value| {
        format!("{}: {}", check["check"].as_str().unwrap_or_default(), check["detail"].as_str().unwrap_or_default())
    };
    if let Some(failed) = about("fail", None) {
        if ready {
            bail!("doctor fails ({}), and run works", words(failed));
        }
        return Ok(format!("both refuse: {}", words(failed)));
    }
    if !ready {
        bail!("doctor finds nothing wrong, and run fails");
    }
    let foretold = if about("ok", Some("driver")).is_some() { "native" } else { "generic" };
    if mode != Some(foretold) {
        let said = checks.iter().find(|check| check["check"] == "driver").map(words).unwrap_or_default();
        bail!("doctor foretells {foretold} mode ({said}), run is in {} mode", mode.unwrap_or("no"));
    }
    Ok(format!("both say {foretold}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doctor(status: &str) -> Value {
        json!({"checks": [
            {"check": "kernel", "status": "ok", "detail": "Linux"},
            {"check": "driver", "status": status, "detail": "igb"},
        ]})
    }

    #[test]
    fn doctor_and_run_must_say_the_same() {
        let agrees = |status, ready, mode| agree(&doctor(status), ready, mode).is_ok();
        assert!(agrees("ok", true, Some("native")));
        assert!(agrees("warn", true, Some("generic")));
        assert!(agrees("fail", false, None));
        assert!(!agrees("ok", true, Some("generic")));
        assert!(!agrees("warn", true, Some("native")));
        assert!(!agrees("ok", false, None));
        assert!(!agrees("fail", true, Some("native")));
    }
}
