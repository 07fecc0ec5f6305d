//! The product inside a machine: daemon and commands.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::qemu::{Machine, Ran};

/// How long a daemon may take to be ready, or to refuse, on an emulated machine of a busy host.
const START: u64 = 300;

/// How long it may take to stop.
const STOP: u64 = 120;

/// What the daemon is called towards the agent.
const NAME: &str = "daemon";

/// The product on one interface.
pub(crate) struct Daemon<'a> {
    pub(crate) machine: &'a mut Machine,
    pub(crate) interface: &'a str,
}

/// A start of the daemon.
#[derive(Debug)]
pub(crate) struct Started {
    /// Whether it got ready.
    pub(crate) ready: bool,
    /// Until it was ready, or had ended.
    pub(crate) seconds: f64,
    /// Its log.
    pub(crate) log: String,
}

impl Started {
    /// What it said last: the reason, if it ended.
    pub(crate) fn last_line(&self) -> String {
        self.log
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or("it says nothing")
            .trim()
            .to_owned()
    }
}

impl Daemon<'_> {
    /// Writes the configuration.
    pub(crate) fn configure(&mut self, ports: &[u16]) -> Result<()> {
        let text = format!("interfaces = [{:?}]\nports = {ports:?}\n", self.interface);
        self.machine
            .ask(&json!({"do": "write", "path": "/etc/sip-xdp/config.toml", "text": text}))?;
        Ok(())
    }

    /// Starts it in this mode, and waits until it is ready or has ended.
    pub(crate) fn start(&mut self, mode: &str) -> Result<Started> {
        self.machine.ask(
            &json!({"do": "start", "name": NAME, "argv": ["sip-xdp", "run", "--mode", mode]}),
        )?;
        let answer = self
            .machine
            .ask(&json!({"do": "await", "name": NAME, "text": "ready: ", "timeout": START}))?;
        let ready = answer["found"] == true;
        if !ready {
            self.machine.ask(&json!({"do": "end", "name": NAME, "timeout": 1}))?;
        }
        Ok(Started {
            ready,
            seconds: answer["seconds"].as_f64().unwrap_or(0.0),
            log: answer["log"].as_str().unwrap_or_default().to_owned(),
        })
    }

    /// What it has said so far.
    pub(crate) fn log(&mut self) -> Result<String> {
        // The text is one that never comes, and nothing is waited for.
        let answer = self
            .machine
            .ask(&json!({"do": "await", "name": NAME, "text": "\u{0}", "timeout": 0}))?;
        Ok(answer["log"].as_str().unwrap_or_default().to_owned())
    }

    /// Sends it a signal and waits for its end.
    pub(crate) fn stop(&mut self, signal: &str) -> Result<()> {
        self.machine.ask(&json!({"do": "signal", "name": NAME, "signal": signal}))?;
        let answer = self.machine.ask(&json!({"do": "end", "name": NAME, "timeout": STOP}))?;
        if answer["killed"] == true {
            bail!("the daemon did not stop within {STOP} s of SIG{signal}");
        }
        Ok(())
    }

    /// Runs one of the other commands.
    pub(crate) fn sip_xdp(&mut self, arguments: &[&str]) -> Result<Ran> {
        self.machine.run(&[&["sip-xdp"], arguments].concat())
    }

    /// Runs one that has to succeed.
    pub(crate) fn must(&mut self, arguments: &[&str]) -> Result<Ran> {
        let ran = self.sip_xdp(arguments)?;
        if ran.code != Some(0) {
            bail!("`sip-xdp {}` failed: {}", arguments.join(" "), ran.stderr.trim());
        }
        Ok(ran)
    }

    /// Runs one that has to succeed, for its JSON.
    pub(crate) fn json(&mut self, arguments: &[&str]) -> Result<Value> {
        self.must(&[arguments, &["--json"]].concat())?.json()
    }

    /// `status --json`, once it names our interface.
    pub(crate) fn status(&mut self) -> Result<Value> {
        let status = self.json(&["status"])?;
        let named = status["interfaces"][0]["interface"].as_str();
        if named != Some(self.interface) {
            bail!(
                "status speaks of {}, not of {}",
                named.unwrap_or("no interface"),
                self.interface
            );
        }
        Ok(status)
    }

    /// Asks `explain` about an address until what it says is right, or the time is up.
    pub(crate) fn explained(
        &mut self,
        address: &str,
        limit: Duration,
        right: impl Fn(&Value) -> bool,
    ) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            if right(&self.json(&["explain", address]).context("explain")?) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}
