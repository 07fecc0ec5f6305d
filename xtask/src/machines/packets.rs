//! Checks with packets: which senders get through.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::checks::Checks;
use super::outside::Who;

/// How long an interface that was taken down and up, or whose driver ignores the program, may go
/// unprotected.
const PROTECTED_WITHIN: Duration = Duration::from_secs(5);

/// How long anything may take that has no deadline of its own, on an emulated machine of a busy
/// host.
const PATIENCE: Duration = Duration::from_secs(60);

/// Packets of a flood.
const FLOOD: u32 = 600;

/// The most of them that may pass: the burst that strangers have, and what a few seconds add to it.
const FLOOD_PASSES: u64 = 200;

/// Bytes over TCP, each way.
const BYTES: usize = 200_000;

impl Checks<'_> {
    /// Twenty packets of a blocked source, and of a stranger. Where the driver ignores the program,
    /// it may take a few seconds until that was noticed.
    pub(super) fn blocked(&mut self) -> Result<String> {
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
                bail!(
                    "{leaked} packets of a blocked source arrived in {} s",
                    PROTECTED_WITHIN.as_secs()
                );
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
    pub(super) fn settle(&mut self, who: Who, wanted: u64) -> Result<()> {
        for _ in 0..40 {
            if self.arrived(who)? >= wanted {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    pub(super) fn registration(&mut self) -> Result<String> {
        self.outside.register()?;
        let address = self.outside.address(Who::Phone).to_string();
        let good = self.daemon().explained(&address, PATIENCE, |explained| {
            !explained["good_until"].is_null()
                || explained["good_ports"].as_array().is_some_and(|ports| !ports.is_empty())
        })?;
        if !good {
            bail!("registered, and not known good after {PATIENCE:?}");
        }
        Ok("known good".to_owned())
    }

    pub(super) fn tcp(&mut self) -> Result<String> {
        self.outside.echo_inwards(BYTES).context("to the machine")?;
        let (address, echo) = self.outside.echo_outwards()?;
        let answer = self
            .machine
            .ask(&json!({
                "do": "echo", "address": address.to_string(), "bytes": BYTES,
                "timeout": PATIENCE.as_secs(),
            }))
            .context("from the machine")?;
        if answer["same"] != true {
            bail!("other bytes came back to the machine than it sent");
        }
        // It ends when the machine closes the connection, which it did.
        let _ = echo.join();
        Ok(format!("{BYTES} bytes"))
    }

    pub(super) fn flood(&mut self) -> Result<String> {
        let address = self.outside.address(Who::Flooder).to_string();
        self.machine.ask(&json!({"do": "forget"}))?;
        // Longer than the second for which a flood is watched before anybody is banned for it.
        self.outside.send(Who::Flooder, "REGISTER", FLOOD, Duration::from_millis(5))?;
        let banned = self.daemon().explained(&address, PATIENCE, |explained| {
            explained["matches"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|entry| entry["list"] == "block")
        })?;
        let arrived = self.arrived(Who::Flooder)?;
        if arrived > FLOOD_PASSES {
            bail!("{arrived} of {FLOOD} arrived");
        }
        if !banned {
            bail!("{arrived} of {FLOOD} arrived, and no ban is listed after {PATIENCE:?}");
        }
        Ok(format!("{arrived} of {FLOOD} arrived, banned"))
    }

    /// A datagram in several buffers of the card.
    pub(super) fn large(&mut self) -> Result<String> {
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

    /// Takes the interface down and up, or changes its MTU; it must be protected again soon, and
    /// that must be said.
    pub(super) fn reset(&mut self, how: &str) -> Result<String> {
        let card = self.arranged.interface.clone();
        let said_before = self.daemon().log()?.lines().count();
        if how == "mtu" {
            self.machine.must(&format!("ip link set dev {card} mtu 1400"))?;
        } else {
            self.machine.must(&format!("ip link set dev {card} down"))?;
            self.machine.must(&format!("ip link set dev {card} up"))?;
        }
        // The MTU is changed back below.
        if self.is_native() {
            self.lost += if how == "mtu" { 2 } else { 1 };
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
            // The next checks begin with a filter that filters.
            self.outside.reach()?;
            self.blocked().context("after the MTU was changed back")?;
        }
        let log = self.daemon().log()?;
        let said: Vec<_> =
            log.lines().skip(said_before).filter(|line| line.contains(&card)).collect();
        let gap = last.map_or("no packet passed".to_owned(), |last| {
            format!("protected after {:.1} s", last.as_secs_f64())
        });
        if last.is_some() && said.is_empty() {
            bail!("{gap}, and nothing was said");
        }
        Ok(format!("{gap} ({sent} sent): {}", said.join(" | ")))
    }
}
