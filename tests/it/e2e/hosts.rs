//! Trusted host names: their addresses are followed, and stay when DNS fails.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, PHONE, WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, NameServer, stream, wait_until};

/// Timeout of an unobstructed DNS response.
const SOON: Duration = Duration::from_secs(5);

const CARRIER: &str = "sip.carrier.example";

/// The addresses that are trusted because of hosts, each with its host.
fn trusted(filter: &Filter<'_>) -> Result<Vec<(String, String)>> {
    let list = filter.json(&["trust", "list"])?;
    let rows = list.as_array().context("`trust list` is no array")?.iter();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    Ok(rows
        .filter(|row| row["owner"] == "host")
        .map(|row| (text(row, "network"), text(row, "reason")))
        .collect())
}

fn addresses(filter: &Filter<'_>) -> Result<Vec<String>> {
    Ok(trusted(filter)?.into_iter().map(|(network, _)| network).collect())
}

fn wait_for(filter: &Filter<'_>, expected: &[&str], timeout: Duration) -> Result<Duration> {
    wait_until(&format!("{expected:?} are trusted"), timeout, || Ok(addresses(filter)? == expected))
}

/// The row of a host in `status`.
fn host(filter: &Filter<'_>, name: &str) -> Result<Value> {
    let status = filter.json(&["status"])?;
    let hosts = status["daemon"]["hosts"].as_array().context("`status` has no hosts")?;
    hosts
        .iter()
        .find(|host| host["name"] == name)
        .cloned()
        .with_context(|| format!("no {name} in {hosts:?}"))
}

fn record(name: &str, addresses: &str) -> String {
    format!("host-record={name},{addresses}")
}

fn start<'a>(lab: &'a Lab, server: &NameServer<'_>, configuration: &str) -> Result<Filter<'a>> {
    let resolv_conf = Some(server.resolv_conf().to_owned());
    let options = FilterOptions {
        configuration: configuration.to_owned(),
        resolv_conf,
        ..FilterOptions::default()
    };
    Filter::start_with(&lab.pbx, lab.directory(), options)
}

/// Triggers a DNS query.
fn ask_again(filter: &Filter<'_>) -> Result<()> {
    filter.succeed(&["reload"]).map(drop)
}

#[test]
fn a_host_is_followed_and_kept() -> Result<()> {
    let lab = Lab::new()?;
    let mut server = NameServer::prepare(&lab.phone, PHONE, lab.directory())?;
    server.serve(&[record(CARRIER, &format!("{ATTACKER},2001:db8:77::1"))])?;
    let mut filter =
        start(&lab, &server, "[limits.unknown]\nrequests = { count = 5, per = \"1m\" }\n")?;
    filter.succeed(&["trust", "add", CARRIER, "--reason", "our carrier"])?;
    let source = ATTACKER.to_string();
    let took = wait_for(&filter, &[&source, "2001:db8:77::1"], SOON)?;
    println!("trusted {took:.1?} after `trust add`");
    let asked = Instant::now();

    // Trust works: nothing of a flood is dropped.
    let flood = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 100)?;
    std::thread::sleep(Duration::from_secs(1));
    let sent = flood.stop()?;
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!((filter.packets(WAN, "pass.trusted")?, filter.dropped(WAN)?), (sent, 0));
    assert!(
        !filter.cli(&["block", "add", &source])?.status.success(),
        "what is trusted is not blocked"
    );
    let refused = filter.cli(&["trust", "del", &source])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains(&format!("trust del {CARRIER}")), "{said}");
    let list = filter.succeed(&["trust", "list"])?;
    println!("{list}");
    assert!(list.contains("our carrier") && list.contains("2001:db8:77::1"));

    // The TTL is one second, so the name is queried again as soon as allowed.
    server.serve(&[record(CARRIER, "192.0.2.7")])?;
    wait_for(&filter, &["192.0.2.7"], Duration::from_secs(40))?;
    println!("an address that changed is followed {:.1?} after the last answer", asked.elapsed());
    assert!(asked.elapsed() > Duration::from_secs(25));

    // NXDOMAIN, then no name server: only the error changes.
    server.serve(&[])?;
    ask_again(&filter)?;
    wait_until("the failure is shown", SOON, || Ok(host(&filter, CARRIER)?["error"].is_string()))?;
    println!("{}", host(&filter, CARRIER)?);
    assert_eq!(addresses(&filter)?, ["192.0.2.7"]);
    server.stop()?;
    ask_again(&filter)?;
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(addresses(&filter)?, ["192.0.2.7"]);

    // A restart or reboot without DNS changes nothing, and does not wait for DNS.
    filter.restart()?;
    assert_eq!(addresses(&filter)?, ["192.0.2.7"]);
    filter.unload()?;
    filter.launch()?;
    assert_eq!(trusted(&filter)?, [("192.0.2.7".to_owned(), CARRIER.to_owned())]);
    let row = host(&filter, CARRIER)?;
    assert_eq!(
        (&row["owner"], &row["purpose"], &row["reason"]),
        (&"manual".into(), &"trust".into(), &"our carrier".into())
    );
    assert!(row["age"].as_u64().is_some_and(|age| age < 120), "{row}");

    // The next successful query restores it.
    server.serve(&[record(CARRIER, "192.0.2.8")])?;
    ask_again(&filter)?;
    wait_for(&filter, &["192.0.2.8"], SOON)?;
    assert!(host(&filter, CARRIER)?["error"].is_null());
    let removed = filter.json(&["trust", "del", CARRIER])?;
    assert_eq!(removed["removed"][0]["network"], "192.0.2.8");
    assert!(addresses(&filter)?.is_empty());
    assert!(!filter.cli(&["trust", "del", CARRIER])?.status.success());
    Ok(())
}

#[test]
fn a_domain_is_followed_through_its_services() -> Result<()> {
    let lab = Lab::new()?;
    let mut server = NameServer::prepare(&lab.phone, PHONE, lab.directory())?;
    let mut records = vec![
        "srv-host=_sip._udp.carrier.example,a.carrier.example,5060".to_owned(),
        "srv-host=_sip._tcp.carrier.example,b.carrier.example,5060".to_owned(),
        "srv-host=_sips._tcp.carrier.example,c.carrier.example,5061".to_owned(),
        "cname=c.carrier.example,d.carrier.example".to_owned(),
        record("a.carrier.example", "192.0.2.1"),
        record("b.carrier.example", "192.0.2.2,2001:db8:77::2"),
        record("d.carrier.example", "192.0.2.4"),
        record("carrier.example", "192.0.2.5"),
        record("evil.carrier.example", "127.0.0.1"),
        record("too.carrier.example", "192.0.2.5"),
    ];
    server.serve(&records)?;
    let configuration = "[trust]\nhosts = \
                         [\"carrier.example\", \"evil.carrier.example\", \"too.carrier.example\"]\n\
                         [admit]\nhosts = [\"a.carrier.example\"]\n";
    let mut filter = start(&lab, &server, configuration)?;
    let all = ["192.0.2.1", "192.0.2.2", "192.0.2.4", "192.0.2.5", "2001:db8:77::2"];
    wait_for(&filter, &all, SOON)?;
    wait_until("all are answered", SOON, || {
        let all = ["a.carrier.example", "evil.carrier.example", "too.carrier.example"];
        all.iter().try_fold(true, |so_far, name| {
            let row = host(&filter, name)?;
            Ok(so_far && (row["age"].is_u64() || row["error"].is_string()))
        })
    })?;
    let admitted = host(&filter, "a.carrier.example")?;
    assert_eq!(
        (&admitted["purpose"], &admitted["addresses"][0]),
        (&"admit".into(), &"192.0.2.1".into())
    );
    let status = filter.json(&["status"])?;
    println!("{}", status["warnings"]);
    assert!(status["warnings"].to_string().contains("evil.carrier.example has no address yet"));
    assert!(filter.log().iter().any(|line| line.text.contains("127.0.0.1 is a loopback address")));
    let refused = filter.cli(&["trust", "del", "carrier.example"])?;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("trust.hosts"), "the file is named");

    // A shared address stays until both names have lost it.
    records.retain(|record| !record.contains("192.0.2.5") || record.contains("too."));
    server.serve(&records)?;
    ask_again(&filter)?;
    wait_until("only one name has it", SOON, || {
        Ok(trusted(&filter)?.contains(&("192.0.2.5".to_owned(), "too.carrier.example".to_owned())))
    })?;
    assert_eq!(addresses(&filter)?, all);
    filter.configure("[trust]\nhosts = [\"carrier.example\"]\n")?;
    ask_again(&filter)?;
    let left = ["192.0.2.1", "192.0.2.2", "192.0.2.4", "2001:db8:77::2"];
    wait_for(&filter, &left, SOON)?;

    // The saved file is destroyed and DNS is down: the kernel's entries stay.
    server.stop()?;
    filter.kill9()?;
    let instance = filter.pins().file_name().context("the pins have no name")?;
    std::fs::write(lab.directory().join(instance).join("state/hosts.json"), "{")?;
    filter.launch()?;
    assert_eq!(addresses(&filter)?, left);
    assert!(filter.json(&["status"])?["warnings"].to_string().contains("hosts.json is corrupt"));
    Ok(())
}

/// Timed tests: nothing runs beside them.
mod measured {
    use super::*;

    #[test]
    fn a_name_server_that_is_not_there_delays_nothing() -> Result<()> {
        let lab = Lab::new()?;
        // An unused address: queries are lost, not refused.
        let server = NameServer::prepare(&lab.phone, [203, 0, 113, 99], lab.directory())?;
        let names: Vec<String> =
            (0..50).map(|number| format!("\"n{number}.carrier.example\"")).collect();
        let begun = Instant::now();
        let filter = start(&lab, &server, &format!("[trust]\nhosts = [{}]\n", names.join(", ")))?;
        println!("ready {:.1?} after the start, with 50 names and no name server", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(10));
        for arguments in [
            &["trust", "add", CARRIER][..],
            &["block", "add", "192.0.2.9"],
            &["reload"],
            &["status"],
        ] {
            let begun = Instant::now();
            filter.succeed(arguments)?;
            // A query waits for 15 s. A reload loads the programs, which takes a second or two in a
            // build without optimisation.
            assert!(
                begun.elapsed() < Duration::from_secs(4),
                "{arguments:?} took {:?}",
                begun.elapsed()
            );
        }
        Ok(())
    }
}
