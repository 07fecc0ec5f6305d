//! A real fail2ban that bans through sip-xdp, with the package's action file. Needs root and Linux
//! 6.6 or later.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use sip_xdp_tests::fail2ban::MAX_RETRY;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, WAN};
use sip_xdp_tests::{Fail2ban, Filter, Lab, registrar, stream, wait_until};

/// fail2ban polls its logs once a second, and starts a shell for each action.
const SOON: Duration = Duration::from_secs(30);

/// An empty log.
fn log(lab: &Lab, name: &str) -> Result<PathBuf> {
    let path = lab.directory().join(name);
    OpenOptions::new().create(true).append(true).open(&path)?;
    Ok(path)
}

/// As many failures of an address as a jail needs.
fn fail(log: &Path, address: &str) -> Result<()> {
    let mut log = OpenOptions::new().append(true).open(log)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for _ in 0..MAX_RETRY {
        writeln!(log, "{now} {}{address}", registrar::FAILURE)?;
    }
    Ok(())
}

/// The owners that block an address, with reasons.
fn owners(filter: &Filter<'_>, address: &str) -> Result<Vec<(String, String)>> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(filter
        .entries(address)?
        .iter()
        .map(|entry| (text(&entry["owner"]), text(&entry["reason"])))
        .collect())
}

fn wait_for(
    filter: &Filter<'_>,
    fail2ban: &Fail2ban,
    address: &str,
    reason: Option<&str>,
) -> Result<()> {
    let wanted: Vec<_> =
        reason.map(|reason| ("tool".to_owned(), reason.to_owned())).into_iter().collect();
    let waited = wait_until(&format!("{address} is blocked by {reason:?}"), SOON, || {
        Ok(owners(filter, address)? == wanted)
    });
    waited.map(drop).map_err(|error| error.context(fail2ban.log()))
}

#[test]
fn jails_ban_and_unban_and_remember() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let (sip, web) = (log(&lab, "sip.log")?, log(&lab, "web.log")?);
    let directory = lab.directory().join("fail2ban");
    let jails = [("sip", sip.as_path()), ("web", web.as_path())];
    let start = || Fail2ban::start_through(&lab.pbx, &directory, &jails, &filter.command_line());
    let fail2ban = start()?;
    let source = ATTACKER.to_string();

    // Failures in a log, a ban in the kernel.
    fail(&sip, &source)?;
    wait_for(&filter, &fail2ban, &source, Some("fail2ban:sip"))?;
    assert!(filter.entries(&source)?[0]["expires"].is_string(), "it ends by itself, too");
    let before = filter.packets(WAN, "drop.blocked")?;
    let packets = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 50)?;
    wait_until("its packets are dropped", SOON, || {
        Ok(filter.packets(WAN, "drop.blocked")? > before + 10)
    })?;
    packets.stop()?;

    // A second jail bans and unbans it: the first one's block stays.
    fail(&web, &source)?;
    wait_for(&filter, &fail2ban, &source, Some("fail2ban:sip, fail2ban:web"))?;
    fail2ban.client(&["set", "web", "unbanip", &source])?;
    wait_for(&filter, &fail2ban, &source, Some("fail2ban:sip"))?;
    fail2ban.client(&["set", "sip", "unbanip", &source])?;
    wait_for(&filter, &fail2ban, &source, None)?;

    // A jail cannot remove an operator's block.
    filter.succeed(&["block", "add", "192.0.2.9", "--reason", "toll fraud"])?;
    fail2ban.client(&["set", "sip", "banip", "192.0.2.9"])?;
    wait_until("both block it", SOON, || Ok(owners(&filter, "192.0.2.9")?.len() == 2))?;
    fail2ban.client(&["set", "sip", "unbanip", "192.0.2.9"])?;
    wait_until("only the operator does", SOON, || Ok(owners(&filter, "192.0.2.9")?.len() == 1))?;
    assert_eq!(owners(&filter, "192.0.2.9")?, [("manual".to_owned(), "toll fraud".to_owned())]);

    // IPv6, and a permanent ban.
    fail2ban.client(&["set", "web", "bantime", "-1"])?;
    fail2ban.client(&["set", "web", "banip", "2001:db8:66::66"])?;
    wait_for(&filter, &fail2ban, "2001:db8:66::66", Some("fail2ban:web"))?;
    assert!(filter.entries("2001:db8:66::66")?[0]["expires"].is_null());
    fail2ban.client(&["set", "web", "bantime", "600"])?;

    // A restart unbans all and bans them again, without errors.
    fail2ban.client(&["set", "sip", "banip", &source])?;
    wait_for(&filter, &fail2ban, &source, Some("fail2ban:sip"))?;
    assert_eq!(fail2ban.count_logged("ERROR"), 0, "{}", fail2ban.log());
    fail2ban.stop()?;
    assert!(owners(&filter, &source)?.is_empty(), "a fail2ban that ends unbans everybody");
    let fail2ban = start()?;
    wait_for(&filter, &fail2ban, &source, Some("fail2ban:sip"))?;
    // After a crash it bans already blocked addresses again.
    drop(fail2ban);
    filter.succeed(&["block", "add", &source, "--by", "fail2ban:sip", "--ttl", "5m"])?;
    let fail2ban = start()?;
    wait_until("it bans it again", SOON, || {
        Ok(fail2ban.count_logged(&format!("Ban {source}")) > 0)
    })?;
    wait_for(&filter, &fail2ban, &source, Some("fail2ban:sip"))?;
    assert!(fail2ban.holds("sip", ATTACKER)?);
    assert_eq!(fail2ban.count_logged("ERROR"), 0, "{}", fail2ban.log());

    // An operator's unban removes all owners.
    filter.succeed(&["unban", &source])?;
    assert!(owners(&filter, &source)?.is_empty());
    println!("{}", fail2ban.client(&["status", "sip"])?);
    fail2ban.stop()
}

/// fail2ban must not take an address for banned that is not: it waits for a starting daemon, and
/// reports failures.
#[test]
fn a_daemon_that_starts_again_is_waited_for() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let sip = log(&lab, "sip.log")?;
    let directory = lab.directory().join("fail2ban");
    let fail2ban =
        Fail2ban::start_through(&lab.pbx, &directory, &[("sip", &sip)], &filter.command_line())?;
    filter.stop()?;
    fail(&sip, "192.0.2.9")?;
    wait_until("its check has failed", SOON, || {
        Ok(fail2ban.count_logged("Invariant check failed") > 0)
    })?;
    filter.launch()?;
    wait_for(&filter, &fail2ban, "192.0.2.9", Some("fail2ban:sip"))?;
    // Protected addresses are not banned, and its log says so.
    filter.succeed(&["trust", "add", "192.0.2.10"])?;
    fail(&sip, "192.0.2.10")?;
    let why = "192.0.2.10 was not blocked: it is trusted";
    wait_until("it is told why", SOON, || Ok(fail2ban.count_logged(why) > 0))?;
    fail2ban.stop()
}
