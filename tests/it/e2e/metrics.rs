//! Metrics: their values are right, and clients cannot affect the filter. Needs root and Linux 6.6
//! or later.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::forger::forge_sources;
use sip_xdp_tests::http::{self, METRICS, sample};
use sip_xdp_tests::sip::Request;
use sip_xdp_tests::topology::{ATTACKER, LAN, PBX_WAN, WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, Phone, Registrar, stream, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn metrics(lab: &Lab) -> Result<String> {
    http::get(&lab.pbx, METRICS, "/metrics")
}

/// Waits until metrics are offered there.
fn wait_for_metrics(lab: &Lab, address: &str) -> Result<()> {
    wait_until(&format!("metrics are at {address}"), SOON, || {
        Ok(http::get(&lab.pbx, address, "/metrics").is_ok())
    })
    .map(drop)
}

#[test]
fn they_say_what_happened() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let list = lab.directory().join("list.txt");
    std::fs::write(&list, "192.0.2.1\n192.0.2.2\n")?;
    let configuration = format!(
        "[[feeds]]\nname = \"good\"\nurl = \"file://{}\"\n[[feeds]]\nname = \"gone\"\nurl \
         = \"file:///nonexistent\"\n",
        list.display()
    );
    let filter = Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { configuration, ..FilterOptions::default() },
    )?;
    wait_for_metrics(&lab, METRICS)?;
    assert_eq!(Phone::new(&lab.phone, lab.directory()).register()?.status, 200);
    filter.succeed(&["trust", "add", "192.0.2.16/28"])?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    wait_until("some of its packets are dropped", SOON, || {
        Ok(filter.packets(WAN, "drop.blocked")? > 100)
    })?;
    stream.stop()?;
    wait_until("both feeds were asked", SOON, || {
        let feeds = filter.json(&["feed", "list"])?;
        let feeds = feeds.as_array().context("no array")?;
        Ok(feeds.iter().any(|feed| feed["ipv4"] == 2)
            && feeds.iter().any(|feed| feed["error"].is_string()))
    })?;

    // Nothing is sent any more: readings must agree, except for short-lived values.
    wait_until("metrics and stats agree", SOON, || {
        let (text, stats) = (metrics(&lab)?, filter.json(&["stats"])?);
        let counted = |interface: &str, verdict: &str, reason: &str| {
            let interfaces = stats["interfaces"].as_array().into_iter().flatten();
            let found = interfaces.into_iter().find(|one| one["interface"] == interface);
            found.and_then(|one| one["packets"][verdict][reason].as_f64())
        };
        let shown = |interface: &str, verdict: &str, reason: &str| {
            let labels =
                format!("interface=\"{interface}\",verdict=\"{verdict}\",reason=\"{reason}\"");
            sample(&text, &format!("sip_xdp_packets_total{{{labels}}}"))
        };
        let each = [
            (WAN, "drop", "blocked"),
            (WAN, "drop", "limited"),
            (WAN, "pass", "unknown"),
            (LAN, "pass", "good"),
        ];
        Ok(each.iter().all(|(interface, verdict, reason)| {
            let counted = counted(interface, verdict, reason);
            counted.is_some() && counted == shown(interface, verdict, reason)
        }))
    })?;
    let text = metrics(&lab)?;
    let value = |series: &str| sample(&text, series);
    for (series, expected) in [
        ("sip_xdp_enforcing", 1.0),
        ("sip_xdp_storm", 0.0),
        ("sip_xdp_interface_attached{interface=\"wan\",mode=\"native\"}", 1.0),
        ("sip_xdp_interface_dry_run{interface=\"wan\"}", 0.0),
        ("sip_xdp_bans{tier=\"unproven\"}", 1.0),
        ("sip_xdp_list_entries{list=\"block\",owner=\"auto\"}", 1.0),
        ("sip_xdp_list_entries{list=\"block\",owner=\"feed\"}", 2.0),
        ("sip_xdp_list_entries{list=\"trust\",owner=\"manual\"}", 1.0),
        ("sip_xdp_feed_entries{feed=\"good\",family=\"ipv4\"}", 2.0),
        ("sip_xdp_feed_error{feed=\"good\"}", 0.0),
        ("sip_xdp_feed_error{feed=\"gone\"}", 1.0),
        ("sip_xdp_registrar_failing", 0.0),
        ("sip_xdp_networks_capacity", 131_072.0),
        ("sip_xdp_events_total{event=\"ban\"}", 1.0),
        ("sip_xdp_sources_good", 1.0),
    ] {
        assert_eq!(value(series), Some(expected), "{series}\n{text}");
    }
    let bans: f64 = text
        .lines()
        .filter(|line| line.starts_with("sip_xdp_bans_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    assert_eq!(bans, 1.0, "by kind");
    assert!(value("sip_xdp_feed_age_seconds{feed=\"good\"}").is_some());
    assert!(value("sip_xdp_tables_bytes").is_some_and(|bytes| bytes > 1e6));
    assert!(
        !text.contains(&ATTACKER.to_string()) && !text.contains("203.0.113."),
        "no series for a source"
    );

    // The daemon's own view, and the same in `status`.
    assert_eq!(filter.json(&["status"])?["daemon"]["metrics"]["listen"], METRICS);
    let overview = http::json(&lab.pbx, METRICS, "/api/overview")?;
    let worst = overview["worst"].as_array().context("no array")?;
    assert!(
        worst.iter().any(|one| one["network"] == ATTACKER.to_string() && one["state"] == "blocked"),
        "{worst:?}"
    );
    assert_eq!(overview["latest"]["bans"][0]["address"], ATTACKER.to_string());
    let history = http::json(&lab.pbx, METRICS, "/api/history")?;
    let columns = history["columns"].as_array().map(Vec::len);
    assert!(
        columns.is_some() && history["points"][0][1].as_array().map(Vec::len) == columns,
        "{history}"
    );
    Ok(())
}

#[test]
fn a_port_in_use_does_not_stop_the_daemon() -> Result<()> {
    let lab = Lab::new()?;
    let other = lab.pbx.enter(|| TcpListener::bind(METRICS).context("cannot listen"))?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let mut warnings = Value::Null;
    wait_until("status says so", SOON, || {
        let status = filter.json(&["status"])?;
        assert_eq!(status["enforcing"], true);
        warnings = status["warnings"].clone();
        Ok(warnings.to_string().contains("is in use by another program"))
    })?;
    println!("{warnings}");
    drop(other);
    wait_for_metrics(&lab, METRICS)?;
    let said = filter.log().into_iter().filter(|line| line.text.contains("is in use")).count();
    assert_eq!(said, 1, "once in the log");
    let status = filter.json(&["status"])?;
    assert_eq!(status["warnings"].as_array().map(Vec::len), Some(0), "{status}");

    // Elsewhere, everywhere, nowhere.
    filter.configure("[metrics]\nlisten = \"[::1]:9600\"\n")?;
    filter.succeed(&["reload"])?;
    wait_for_metrics(&lab, "[::1]:9600")?;
    wait_until("not at the first address any more", SOON, || {
        Ok(http::get(&lab.pbx, METRICS, "/metrics").is_err())
    })?;
    filter.configure("[metrics]\nlisten = \"0.0.0.0:9600\"\n")?;
    filter.succeed(&["reload"])?;
    wait_for_metrics(&lab, "198.51.100.1:9600")?;
    let warnings = filter.json(&["status"])?["warnings"].to_string();
    assert!(warnings.contains("not only on loopback"), "{warnings}");
    filter.configure("[metrics]\nlisten = \"\"\n")?;
    filter.succeed(&["reload"])?;
    wait_until("nowhere", SOON, || {
        Ok(http::get(&lab.pbx, "198.51.100.1:9600", "/metrics").is_err())
    })?;
    assert_eq!(filter.json(&["status"])?["warnings"].as_array().map(Vec::len), Some(0));
    filter.configure("[metrics]\nlisten = \"everywhere\"\n")?;
    let refused = filter.cli(&["reload"])?;
    assert!(
        !refused.status.success()
            && String::from_utf8_lossy(&refused.stderr).contains("127.0.0.1:9598")
    );
    Ok(())
}

#[test]
fn odd_requests_are_refused() -> Result<()> {
    let lab = Lab::new()?;
    let _filter = Filter::start(&lab.pbx, lab.directory())?;
    wait_for_metrics(&lab, METRICS)?;
    let ask =
        |method: &str, path: &str, host: &str| http::request(&lab.pbx, METRICS, method, path, host);
    for (method, path, host, status) in [
        ("GET", "/metrics", METRICS, 200),
        ("GET", "/metrics", "pbx.example:9598", 200),
        ("HEAD", "/metrics", METRICS, 200),
        ("GET", "/", METRICS, 200),
        ("GET", "/", "localhost:9598", 200),
        ("GET", "/?x=y", METRICS, 200),
        ("GET", "/", "evil.example:9598", 421),
        ("GET", "/api/overview", "evil.example", 421),
        ("GET", "/api/overview", "127.0.0.1.evil.example:9598", 421),
        ("POST", "/metrics", METRICS, 405),
        ("DELETE", "/api/overview", METRICS, 405),
        ("GET", "/../etc/passwd", METRICS, 404),
        ("GET", "/api/", METRICS, 404),
        ("BREW", "/", METRICS, 405),
    ] {
        let answer = ask(method, path, host)?;
        assert_eq!(answer.status, status, "{method} {path} for {host}: {}", answer.body);
        let policy = answer.headers.get("content-security-policy").context("no policy")?;
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'")
                && !policy.contains("unsafe"),
            "{policy}"
        );
        assert_eq!(method == "HEAD", answer.body.is_empty(), "{method} {path}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
    }
    let kind = ask("GET", "/metrics", METRICS)?.headers.remove("content-type");
    assert_eq!(kind.as_deref(), Some("text/plain; version=0.0.4; charset=utf-8"));
    let without_host = http::send(&lab.pbx, METRICS, "GET / HTTP/1.0\r\n\r\n")?;
    assert_eq!(without_host.status, 421);
    for head in ["\r\n\r\nnonsense\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\u{0}\u{1}\u{2}\r\n\r\n"] {
        // An error, or nothing.
        assert!(
            http::send(&lab.pbx, METRICS, head).map_or(true, |answer| answer.status >= 400),
            "{head:?}"
        );
    }
    Ok(())
}

/// The number of series does not depend on senders, so that the metrics' store is not flooded.
#[test]
fn senders_cannot_create_series() -> Result<()> {
    let lab = Lab::new()?;
    lab.accept_forgeries()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let configuration = "[limits.storm]\nnew_sources = { count = 200, per = \"1s\" }\n".to_owned();
    let filter = Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { configuration, ..FilterOptions::default() },
    )?;
    wait_for_metrics(&lab, METRICS)?;
    let series = |text: &str| -> Vec<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
    };
    let before = series(&metrics(&lab)?);
    // A real attacker, so that there is a ban with evidence.
    let attacker = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    let ban = filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    let to = SocketAddrV4::new(PBX_WAN, 5060);
    let storm = forge_sources(&lab.attacker, to, 3_000, move |number, from| {
        // Every other request has a unique method.
        let (method, user) = (format!("MADEUP{number}"), format!("invented-{number}"));
        let method = if number % 2 == 0 { "REGISTER" } else { &method };
        let header = format!("Subject: invented-{number}\r\n");
        let request = Request {
            method,
            user: &user,
            call_id: &user,
            sequence: 1,
            from: from.into(),
            to: to.into(),
        };
        request.bytes_with(&header)
    })?;
    wait_until("thousands of sources have been dropped", SOON, || {
        Ok(filter.packets(WAN, "drop.storm")? > 5_000)
    })?;
    let text = metrics(&lab)?;
    attacker.stop()?;
    let sent = storm.stop()?;
    let after = series(&text);
    let new: Vec<_> = after.iter().filter(|one| !before.contains(one)).collect();
    println!(
        "{sent} sources, {} series before, {} after; {ban:?}; new: {new:?}",
        before.len(),
        after.len()
    );
    // Only the first packet of a reason and the first event of a name add a series.
    assert!(new.len() <= 24, "{} series are new: {new:#?}", new.len());
    for made_up in ["MADEUP", "madeup", "invented", &ATTACKER.to_string()] {
        assert!(!text.contains(made_up), "{made_up} is in the metrics:\n{text}");
    }
    assert_eq!(sample(&text, "sip_xdp_storm"), Some(1.0), "{text}");
    Ok(())
}

/// Incomplete and endless requests, and hundreds of connections, do not affect the filter.
#[test]
fn hostile_clients_do_not_affect_the_filter() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    wait_for_metrics(&lab, METRICS)?;
    let before = resident(&filter)?;
    let mut endless = http::connect(&lab.pbx, METRICS)?;
    let flood = [b'a'; 64 * 1024];
    let sent = (0..1_000).take_while(|_| endless.write_all(&flood).is_ok()).count();
    println!("of an endless head {} KiB were taken", sent * 64);
    assert!(sent < 1_000, "an endless head is cut off");
    let mut idle: Vec<TcpStream> =
        (0..300).map(|_| http::connect(&lab.pbx, METRICS)).collect::<Result<_>>()?;
    for stream in &mut idle {
        // Connections beyond the maximum are closed already.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ");
    }

    // The filter works meanwhile.
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    stream.stop()?;
    filter.succeed(&["block", "add", "192.0.2.7"])?;
    let after = resident(&filter)?;
    println!("the daemon takes {after} KiB, {before} before");
    assert!(after < before + 8 * 1024, "{before} KiB before, {after} after");
    wait_for_metrics(&lab, METRICS).context("the slow ones are not thrown out")?;
    let mut rest = Vec::new();
    assert!(idle[0].read_to_end(&mut rest).map_or(true, |_| !rest.starts_with(b"HTTP/1.1 200")));
    Ok(())
}

/// The daemon's memory in KiB.
fn resident(filter: &Filter<'_>) -> Result<u64> {
    let pid = filter.pid().context("no daemon")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
