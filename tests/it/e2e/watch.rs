//! `watch`: decisions as they happen. Needs root and Linux 6.6 or later.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use sip_xdp_tests::process::{Process, succeed};
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN};
use sip_xdp_tests::{Filter, Lab, Phone, Registrar, stream, wait_until};

const SOON: Duration = Duration::from_secs(10);

/// Starts watching, and waits until it is connected.
fn watch(filter: &Filter<'_>, arguments: &[&str]) -> Result<Process> {
    let mut watcher = filter.start_command(&[&["watch"], arguments].concat())?;
    // Earlier events are not seen; an entry that is repeatedly added shows when it is connected.
    wait_until("it watches", SOON, || {
        filter.succeed(&["trust", "add", "192.0.2.200"])?;
        Ok(!watcher.lines().is_empty() || watcher.try_wait()?.is_some())
    })?;
    Ok(watcher)
}

/// The events so far; each line must be one object with all fields.
fn events(watcher: &Process) -> Result<Vec<Value>> {
    let lines = watcher.lines().into_iter().filter(|line| !line.error);
    let mut events = Vec::new();
    for line in lines {
        let event: Value =
            serde_json::from_str(&line.text).with_context(|| format!("no JSON: {}", line.text))?;
        for field in ["time", "event", "kind", "address", "port", "reason", "tier", "dry_run"] {
            assert!(event.get(field).is_some(), "no {field} in {event}");
        }
        events.push(event);
    }
    Ok(events)
}

fn wait_for(watcher: &Process, event: &str, address: &str) -> Result<Value> {
    let mut found = None;
    wait_until(&format!("{event} of {address} is seen"), SOON, || {
        found = events(watcher)?
            .into_iter()
            .find(|one| one["event"] == event && one["address"] == address);
        Ok(found.is_some())
    })?;
    found.context("it was just found")
}

#[test]
fn a_ban_is_seen_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let mut all = watch(&filter, &["--json"])?;
    let mut people = watch(&filter, &[])?;
    let mut one = filter.start_command(&["watch", "--json", "--ip", "192.0.2.7"])?;
    let attacker = ATTACKER.to_string();

    assert_eq!(Phone::new(&lab.phone, lab.directory()).register()?.status, 200);
    wait_for(&all, "good", "203.0.113.10")?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    let limit = wait_for(&all, "limit", &attacker)?;
    assert!(limit["kind"] == "requests" || limit["kind"] == "register", "{limit}");
    let ban = wait_for(&all, "ban", &attacker)?;
    stream.stop()?;
    let logged = filter.ban_logged(&attacker).context("the ban is not in the log")?;
    let seen =
        all.lines().into_iter().find(|line| line.text.contains("\"ban\"")).context("no line")?.at;
    let late = seen.duration_since(logged).unwrap_or_default();
    println!("seen {late:?} after it was logged: {ban}");
    assert!(late < Duration::from_secs(1), "it was seen {late:?} after it was logged");
    assert!(
        ban["tier"] == "unproven" && ban["dry_run"] == false && ban["reason"].is_string(),
        "{ban}"
    );

    filter.succeed(&["unban", &attacker])?;
    let unban = wait_for(&all, "unban", &attacker)?;
    assert_eq!(unban["kind"], "command");
    filter.succeed(&["block", "add", "192.0.2.0/28", "--ttl", "1s"])?;
    let expired = wait_for(&all, "unban", "192.0.2.0/28")?;
    assert_eq!(expired["kind"], "expired");

    // Events about an address include those about networks around it.
    let of_one = events(&one)?;
    assert!(
        !of_one.is_empty() && of_one.iter().all(|event| event["address"] == "192.0.2.0/28"),
        "{of_one:?}"
    );
    let line = people
        .lines()
        .into_iter()
        .find(|line| line.text.contains("  ban "))
        .context("people see no ban")?;
    assert!(line.text.contains(&attacker), "{}", line.text);
    println!("{}", line.text);

    for watcher in [&mut all, &mut people, &mut one] {
        let status = watcher.stop(Signal::SIGINT)?;
        assert_eq!(status.code(), Some(0), "Ctrl-C is no failure");
    }
    Ok(())
}

#[test]
fn it_ends_with_the_daemon() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let mut watcher = watch(&filter, &["--json"])?;
    filter.stop()?;
    let status = watcher.wait(SOON)?;
    let errors: Vec<_> =
        watcher.lines().into_iter().filter(|line| line.error).map(|line| line.text).collect();
    println!("{errors:?}");
    assert!(status.code() == Some(1) && errors.len() == 1, "{status}: {errors:?}");
    let output = filter.cli(&["watch"])?;
    assert_eq!(output.status.code(), Some(1), "there is nothing to watch");
    Ok(())
}

/// Dropped packets, which no capture of this host sees.
#[test]
fn dropped_packets_are_seen_and_written() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let attacker = ATTACKER.to_string();
    filter.succeed(&["block", "add", &attacker])?;
    let file = lab.directory().join("dropped.pcap");
    let file = file.to_str().context("a path that is no text")?;
    let mut shown = watch(&filter, &["--json", "--packets"])?;
    let mut writing = filter.start_command(&["watch", "-w", file])?;
    let mut other =
        filter.start_command(&["watch", "--json", "--packets", "--ip", "192.0.2.99"])?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 1_000)?;
    let packet = wait_for(&shown, "packet", &attacker)?;
    let place = (&packet["kind"], &packet["interface"], &packet["link"]);
    assert_eq!(place, (&"blocked".into(), &"wan".into(), &"ethernet".into()));
    let start_line = packet["reason"].as_str().context("no start line")?;
    assert!(start_line.starts_with("REGISTER sip:"), "{start_line}");
    assert!(
        packet["port"].is_u64()
            && packet["dry_run"] == false
            && packet["length"].as_u64() > Some(200),
        "{packet}"
    );
    wait_until("some are written", SOON, || {
        Ok(std::fs::metadata(file).is_ok_and(|file| file.len() > 50_000))
    })?;
    stream.stop()?;
    let (dropped, seen) = (filter.packets("wan", "drop.blocked")?, events(&shown)?.len() as u64);
    println!("{seen} shown of {dropped} dropped: {packet}");

    let status = writing.stop(Signal::SIGINT)?;
    assert_eq!(status.code(), Some(0));
    let said = writing.lines().into_iter().find(|line| line.error).context("it says nothing")?.text;
    let count: usize =
        said.split(' ').next().and_then(|count| count.parse().ok()).context("no number")?;
    // Other programs can read it: every packet, with its source, complete.
    let read = succeed(Command::new("tcpdump").args(["-n", "-tt", "-A", "-r", file]))?;
    let from = format!("IP {attacker}.");
    let lines =
        read.lines().filter(|line| line.contains(&from) && line.contains(" > 198.51.100.1.5060"));
    assert_eq!(lines.count(), count, "{said}: {read}");
    assert!(!read.contains("truncated"));
    let tshark = ["-n", "-r", file, "-Y", "sip.Method == REGISTER", "-T", "fields", "-e", "ip.src"];
    let sources = succeed(Command::new("tshark").args(tshark))?;
    assert_eq!(sources.lines().filter(|source| *source == attacker).count(), count);

    assert!(other.lines().iter().all(|line| line.error), "another address is another's business");
    for watcher in [&mut shown, &mut other] {
        watcher.stop(Signal::SIGINT)?;
    }
    let bad = filter.cli(&["watch", "-w", "/nonexistent/x.pcap"])?;
    assert_eq!(bad.status.code(), Some(1), "{}", String::from_utf8_lossy(&bad.stderr));
    Ok(())
}

/// Timed tests: nothing runs beside them.
mod measured {
    use super::*;

    /// A slow watcher must not delay the daemon.
    #[test]
    fn a_watcher_that_does_not_read_delays_nothing() -> Result<()> {
        let lab = Lab::new()?;
        let filter = Filter::start(&lab.pbx, lab.directory())?;
        let mut watcher = watch(&filter, &["--json"])?;
        watcher.signal(Signal::SIGSTOP)?;
        let networks: Vec<String> =
            (0..4_000).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
        let start = Instant::now();
        filter.put("block", &networks, None)?;
        println!("4000 entries in {:?} beside a watcher that does not read", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(20));
        watcher.signal(Signal::SIGCONT)?;
        // Its pipe and socket hold some; the rest is reported as a number.
        wait_until("it is told what it lost", SOON, || {
            let lines = watcher.lines().into_iter();
            let mut shown = 0;
            for line in lines.filter(|line| !line.error) {
                let event: Value = serde_json::from_str(&line.text)?;
                shown += event["count"].as_u64().unwrap_or(u64::from(event["event"] == "block"));
            }
            Ok(shown >= 4_000)
        })?;
        watcher.stop(Signal::SIGINT).map(drop)
    }
}
