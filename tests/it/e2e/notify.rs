//! Notification by a program and a webhook. Needs root and Linux 6.6 or later.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, PHONE};
use sip_xdp_tests::{
    Attacker, Filter, FilterOptions, Lab, ListServer, Registrar, Reply, stream, wait_until,
};

const SOON: Duration = Duration::from_secs(30);

/// A program that appends its messages to a file, one object per line.
fn program(lab: &Lab, told: &Path) -> Result<PathBuf> {
    let path = lab.directory().join("page");
    let script = format!(
        "#!/bin/sh\n{{ cat; echo \"$1 $SIP_XDP_EVENT $SIP_XDP_ADDRESS\"; }} >> {}\n",
        told.display()
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// The objects in a file, and malformed lines.
fn messages(told: &Path) -> (Vec<Value>, Vec<String>) {
    let text = fs::read_to_string(told).unwrap_or_default();
    let (objects, others): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('{'));
    let objects = objects.into_iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    (objects, others.into_iter().map(str::to_owned).collect())
}

fn start<'a>(lab: &'a Lab, configuration: String) -> Result<Filter<'a>> {
    let options = FilterOptions { configuration, ..FilterOptions::default() };
    Filter::start_with(&lab.pbx, lab.directory(), options)
}

fn count_logged(filter: &Filter<'_>, text: &str) -> usize {
    filter.log().iter().filter(|line| line.text.contains(text)).count()
}

fn wait_for_log(filter: &Filter<'_>, text: &str) -> Result<()> {
    wait_until(&format!("the log says {text}"), SOON, || Ok(count_logged(filter, text) > 0))
        .map(drop)
}

fn server(lab: &Lab) -> Result<ListServer> {
    ListServer::start_in(
        &lab.phone,
        SocketAddr::from((PHONE, 8_000)),
        Reply::new("204 No Content", &[], ""),
    )
}

#[test]
fn bans_and_feed_failures_are_notified() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let hook = server(&lab)?;
    let lists = ListServer::start_in(
        &lab.phone,
        SocketAddr::from((PHONE, 8_001)),
        Reply::list("192.0.2.1\n"),
    )?;
    let told = lab.directory().join("told");
    let filter = start(
        &lab,
        format!(
            "[notify]\ncommand = [\"{}\", \"an argument\"]\nwebhook = \"{}\"\n\
             [[feeds]]\nname = \"public\"\nurl = \"{}\"\n",
            program(&lab, &told)?.display(),
            hook.url("hook/sEcret"),
            lists.url("list.txt"),
        ),
    )?;
    let find = |event: &str, kind: &str| {
        let (objects, _) = messages(&told);
        objects
            .into_iter()
            .find(|object| object["event"] == event && object["kind"].as_str() == Some(kind))
    };

    lists.reply(Reply::new("404 Not Found", &[], ""));
    wait_until("the feed has a list", SOON, || {
        Ok(count_logged(&filter, "feed public added=1") == 1)
    })?;
    assert_eq!(filter.cli(&["feed", "sync", "public"])?.status.code(), Some(1));
    wait_until("its failure is told", SOON, || Ok(find("feed", "failed").is_some()))?;
    let failed = find("feed", "failed").context("it was just told")?;
    assert_eq!(failed["reason"], "public: HTTP 404: there is no such list");
    lists.reply(Reply::list("192.0.2.1\n"));
    filter.succeed(&["feed", "sync", "public"])?;
    wait_until("and its end", SOON, || Ok(find("feed", "well").is_some()))?;
    assert!(find("feed", "synced").is_none(), "that there is another list wakes nobody");

    let mut tool = Attacker::new(&lab.attacker, lab.directory()).crack("101")?;
    let source = ATTACKER.to_string();
    wait_until("a ban is told", SOON, || {
        Ok(messages(&told).1.iter().any(|line| line.ends_with(&format!("ban {source}"))))
    })?;
    tool.stop(nix::sys::signal::Signal::SIGTERM)?;
    let (objects, variables) = messages(&told);
    let ban = objects.iter().find(|object| object["event"] == "ban").context("no ban")?;
    println!("{ban}");
    for field in [
        "time",
        "kind",
        "address",
        "reason",
        "tier",
        "dry_run",
        "owner",
        "expires",
        "host",
        "suppressed",
        "text",
    ] {
        assert!(!ban[field].is_null(), "no {field} in {ban}");
    }
    assert_eq!((&ban["address"], &ban["owner"]), (&source.clone().into(), &"auto".into()));
    assert!(variables.iter().all(|line| line.starts_with("an argument ")), "{variables:?}");

    // The server received the same.
    wait_until("the server is told as often", SOON, || Ok(hook.requests().len() >= objects.len()))?;
    let head = hook.requests()[0].to_ascii_lowercase();
    assert!(
        head.starts_with("post /hook/secret http/1.1\r\n")
            && head.contains("content-type: application/json"),
        "{head}"
    );
    assert!(
        hook.requests().iter().any(|request| request.ends_with(&ban.to_string())),
        "{:?}",
        hook.requests()
    );
    let status = filter.json(&["status"])?;
    assert_eq!(status["daemon"]["notify"]["failed"], 0, "{status}");
    assert!(!status.to_string().contains("sEcret"));

    // A reload without it ends it.
    filter.configure("")?;
    filter.succeed(&["reload"])?;
    assert!(filter.json(&["status"])?["daemon"]["notify"].is_null());
    Ok(())
}

/// Further messages are suppressed, and the next one has their number.
#[test]
fn messages_are_rate_limited() -> Result<()> {
    let lab = Lab::new()?;
    let told = lab.directory().join("told");
    let filter = start(
        &lab,
        format!(
            "[notify]\ncommand = [\"{}\"]\nevents = [\"unban\"]\nlimit = {{ count = 2, per \
             = \"4s\" }}\n",
            program(&lab, &told)?.display()
        ),
    )?;
    let networks: Vec<_> = (0..40).map(|number| format!("192.0.2.{number}")).collect();
    filter.put("block", &networks, None)?;
    for network in &networks {
        filter.call(
            &serde_json::json!({ "command": "delete", "list": "block", "network": network }),
        )?;
    }
    // Suppressed events are counted, and every unban is either sent or counted.
    let sum = || {
        let (objects, _) = messages(&told);
        let unbans = objects.iter().filter(|object| object["event"] == "unban").count() as u64;
        let suppressed: u64 =
            objects.iter().filter_map(|object| object["suppressed"].as_u64()).sum();
        (unbans, suppressed)
    };
    wait_until("all are accounted for", SOON, || Ok(sum().0 + sum().1 == 40))?;
    let (unbans, suppressed) = sum();
    println!("{unbans} told, {suppressed} as a number");
    assert!(unbans >= 2 && suppressed >= 20, "{unbans} {suppressed}");
    let (objects, _) = messages(&told);
    assert!(
        objects.iter().any(|object| object["event"] == "suppressed"),
        "nothing more happened, so it is said by itself"
    );
    Ok(())
}

/// Hanging, failing and missing recipients delay nothing and are reported once.
#[test]
fn failing_channels_delay_nothing_and_are_reported_once() -> Result<()> {
    let lab = Lab::new()?;
    let hook = server(&lab)?;
    let notify = |command: &str| {
        format!(
            "[notify]\ncommand = {command}\nwebhook = \"{}\"\nevents = \
             [\"unban\", \"ban\"]\ntimeout = \"1s\"\n\
             limit = {{ count = 1000, per = \"1s\" }}\n",
            hook.url("hook/sEcret")
        )
    };
    hook.reply(Reply::Dripping(b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), Duration::from_secs(1)));
    let filter = start(&lab, notify("[\"/bin/sh\", \"-c\", \"sleep 1000\"]"))?;
    let networks: Vec<_> =
        (0..400).map(|number| format!("10.0.{}.{}", number / 200, number % 200)).collect();
    let start = Instant::now();
    filter.put("block", &networks, None)?;
    for network in &networks {
        filter.call(
            &serde_json::json!({ "command": "delete", "list": "block", "network": network }),
        )?;
    }
    println!(
        "400 networks blocked and unblocked in {:?} beside outlets that hang",
        start.elapsed()
    );
    assert!(
        start.elapsed() < Duration::from_secs(200),
        "each of them takes the outlets two seconds"
    );
    let packets = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    wait_until("and somebody banned", SOON, || filter.is_banned(&ATTACKER.to_string()))?;
    packets.stop()?;
    wait_for_log(
        &filter,
        "notify command failed reason=\"/bin/sh took more than 1 s and was killed\"",
    )?;
    wait_for_log(&filter, "notify webhook failed reason=\"no answer within 1 s\"")?;
    let notify_status =
        || -> Result<Value> { Ok(filter.json(&["status"])?["daemon"]["notify"].clone()) };
    wait_until("it has failed again", SOON, || Ok(notify_status()?["failed"].as_u64() >= Some(6)))?;
    assert_eq!(count_logged(&filter, "notify command failed"), 1, "said once");
    let warnings = filter.json(&["status"])?["warnings"].to_string();
    assert!(
        warnings.contains("notification by webhook fails") && !warnings.contains("sEcret"),
        "{warnings}"
    );

    // A different failure is logged; so is the recovery.
    filter.configure(&notify("[\"/nonexistent/page\"]"))?;
    hook.reply(Reply::new("500 Oh", &[], ""));
    filter.succeed(&["reload"])?;
    filter.succeed(&["unban", &ATTACKER.to_string()])?;
    // Only the notifier started by the reload is checked: its predecessor may still be busy with a
    // last message.
    wait_until("both fail in another way", SOON, || {
        let errors = &notify_status()?["errors"];
        Ok(errors["webhook"] == "HTTP 500"
            && errors["command"].to_string().contains("/nonexistent/page"))
    })?;
    wait_for_log(&filter, "notify command failed reason=\"/nonexistent/page cannot be started")?;
    wait_for_log(&filter, "notify webhook failed reason=\"HTTP 500\"")?;
    hook.reply(Reply::new("200 OK", &[], "ok"));
    filter.succeed(&["block", "add", "10.1.1.1"])?;
    filter.succeed(&["unban", "10.1.1.1"])?;
    wait_for_log(&filter, "notify webhook is well again")?;
    assert!(filter.log().iter().all(|line| !line.text.contains("sEcret")));
    // An invalid configuration is refused, and the running one stays.
    filter.configure("[notify]\nwebhook = \"hooks.example\"\n")?;
    let output = filter.cli(&["config", "check"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1)
            && said.contains("notify.webhook is neither https://HOST/PATH"),
        "{said}"
    );
    assert_eq!(filter.cli(&["reload"])?.status.code(), Some(1));
    assert!(notify_status()?["sent"].as_u64() >= Some(1));
    Ok(())
}
