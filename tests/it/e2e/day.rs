//! A day of 500 phones, three carriers and twelve attackers comes out right: nobody good loses a
//! packet, each attacker is banned, and the report says what an operator wants to know. Needs root.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use anyhow::Result;
use sip_xdp::config::Config;
use sip_xdp::net::network::Network;
use sip_xdp::observe::report::{Ban, Facts, judge};
use sip_xdp::store::{Accepted, Change, End, Sprayed, Store};
use sip_xdp::tools::replay::{self, Input, Options, Replayed, replay};
use sip_xdp_tests::browser::{self, DESKTOP};
use sip_xdp_tests::day::{Day, SERVER, SERVER6};
use sip_xdp_tests::http::{self, METRICS};
use sip_xdp_tests::pcap::{Cover, pcap};
use sip_xdp_tests::{Browser, Filter, FilterOptions, Lab, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Windows that show all of the page.
const TALL: (u32, u32) = (1280, 3200);
const TALL_PHONE: (u32, u32) = (500, 6500);

/// How many of the botnet's addresses a day's bans must name at least.
const BOTS_BANNED: usize = 1;

/// Packets that a phone may lose in a day to the limit that ports of its office share when a phone
/// of the office tries a wrong password from one port after another. Each costs a retransmission.
const RETRANSMISSIONS: u64 = 2;

/// The same of all 500 phones.
const ALL_RETRANSMISSIONS: u64 = 25;

/// An IPv6 attacker has its network.
const SITE: u8 = 64;

fn registrar() -> Vec<Network> {
    vec![Network::host(SERVER.into()), Network::host(SERVER6.into())]
}

fn hits(ban: &replay::Ban, address: IpAddr) -> bool {
    ban.address.contains(&Network::host(address)) || ban.address.address() == address
}

/// Whether a ban is of an attacker: of its address, or of a host in its IPv6 network.
fn is_of(ban: &replay::Ban, attacker: IpAddr) -> bool {
    let site = Network::around(ban.address.first(), SITE);
    hits(ban, attacker) || attacker.is_ipv6() && site.address() == attacker
}

fn nobody_good_lost_anything(day: &Day, replayed: &Replayed) {
    for place in &day.good {
        let lost = replayed.lost(place.ip(), Some(place.port()));
        let bans: Vec<_> = replayed.banned.iter().filter(|ban| hits(ban, place.ip())).collect();
        assert!(lost <= RETRANSMISSIONS, "{place} lost {lost} packets: {bans:#?}");
        let of_it = bans.iter().find(|ban| ban.port == Some(place.port()));
        assert!(of_it.is_none(), "{place} is banned: {of_it:#?}");
    }
}

#[test]
fn a_day_comes_out_right_and_the_report_says_so() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let day = Day::new();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("day.pcap");
    fs::write(&file, pcap(Cover::Ethernet, &day.packets))?;
    let options = Options { registrar: registrar() };
    let replayed = replay(&Input::open(&file)?, &Config::default(), &options, &mut |_| {})?;

    nobody_good_lost_anything(&day, &replayed);
    for (name, address) in &day.attackers {
        let bans: Vec<_> = replayed.banned.iter().filter(|ban| is_of(ban, *address)).collect();
        println!(
            "{name}: {} bans, {:?}",
            bans.len(),
            bans.first().map(|ban| (&ban.kind, ban.time))
        );
        assert!(!bans.is_empty(), "{name} at {address} was never banned");
    }
    let bots = day.bots.iter().filter(|bot| replayed.banned.iter().any(|ban| hits(ban, **bot)));
    let bots = bots.count();
    println!("{bots} of {} bots were banned", day.bots.len());
    assert!(bots >= BOTS_BANNED);
    // Nobody else was: what is left are the phones that nobody reset.
    let mut known: Vec<IpAddr> = day.attackers.values().copied().collect();
    known.extend(&day.bots);
    for ban in replayed.banned.iter().filter(|ban| !known.iter().any(|one| is_of(ban, *one))) {
        let is_stale =
            day.stale.iter().any(|phone| hits(ban, phone.ip()) && ban.port == Some(phone.port()));
        assert!(is_stale && ban.kind == "misconfigured", "{ban:#?}");
    }

    let report = judge(replayed.facts.clone());
    println!("good sources lost {:?} packets to limits, none to a ban", report.good.lost);
    assert!(report.good.lost <= Some(ALL_RETRANSMISSIONS), "{:?}", report.good);
    assert!(report.doubtful.len() <= 4, "{:#?}", report.doubtful);
    let sprayed: BTreeSet<_> = report.sprayed.iter().map(|one| one.user.clone()).collect();
    assert!(day.sprayed.iter().all(|user| sprayed.contains(user)), "{:#?}", report.sprayed);
    for one in report.sprayed.iter().filter(|one| day.sprayed.contains(&one.user)) {
        assert!(one.tries > 100 && one.addresses > 50, "{one:#?}");
    }
    let served: BTreeSet<_> = report.good.served.iter().copied().collect();
    assert!(day.served.iter().all(|carrier| served.contains(carrier)), "{served:?}");
    assert!(report.suggestions.iter().any(|one| one.about == day.served[0].to_string()));
    Ok(())
}

/// Writes what happened in the day into a store, as if the day had just ended.
fn remember(facts: &Facts, path: &Path) -> Result<()> {
    let store = Store::open(path).store;
    let later = (jiff::Timestamp::now().as_millisecond() as u64).saturating_sub(facts.to_ms);
    for Ban { row, .. } in &facts.bans {
        let mut ban = row.ban.clone();
        (ban.from_ms, ban.until_ms) =
            (ban.from_ms + later, ban.until_ms.map(|until| until + later));
        let end = row.end.clone().map(|end| End { at_ms: end.at_ms + later, ..end });
        store.record(Change::Past(ban, end));
    }
    for row in &facts.accepted {
        let times = [row.first_ms, row.last_ms, row.until_ms];
        let [first_ms, last_ms, until_ms] = times.map(|ms| ms + later);
        store.record(Change::Accepted(Accepted { first_ms, last_ms, until_ms, ..row.clone() }));
    }
    for row in &facts.sprayed {
        let (from_ms, last_ms) = (row.from_ms + later, row.last_ms + later);
        store.record(Change::Sprayed(Sprayed { from_ms, last_ms, ..row.clone() }));
    }
    for row in &facts.served {
        store.record(Change::Served(row.address, row.first_ms + later));
        store.flush()?;
        store.record(Change::Served(row.address, row.last_ms + later));
    }
    store.flush()
}

/// The same figures from the capture by the command, and from a store by the command and the page.
/// With SIP_XDP_DAY=FILE the capture is kept there, with SIP_XDP_SCREENSHOTS=DIR the pictures.
#[test]
fn command_and_page_tell_the_day() -> Result<()> {
    let lab = Lab::new()?;
    let day = Day::new();
    let file =
        env::var_os("SIP_XDP_DAY").map_or_else(|| lab.directory().join("day.pcap"), PathBuf::from);
    fs::write(&file, pcap(Cover::Ethernet, &day.packets))?;
    let options = Options { registrar: registrar() };
    let replayed = replay(&Input::open(&file)?, &Config::default(), &options, &mut |_| {})?;
    let expected = judge(replayed.facts.clone());

    let mut filter = Filter::prepare(&lab.pbx, lab.directory(), FilterOptions::default())?;
    remember(&replayed.facts, &filter.state_directory().join("state.db"))?;
    filter.launch()?;
    let text = filter.succeed(&["replay", &file.display().to_string(), "--report"])?;
    println!("{text}");
    for part in ["BANS", "STRANGERS TRY THESE USERS", "RESET THESE", "SUGGESTIONS"] {
        assert!(text.contains(part) && text.contains(&day.sprayed[0]), "no {part}:\n{text}");
    }
    println!("{}", filter.succeed(&["report", "--since", "2d"])?);
    let told = filter.json(&["report", "--since", "2d"])?;
    let (bans, hits) = (expected.bans.bans, expected.bans.hits);
    assert_eq!(told["bans"]["bans"], bans, "{told:#}");
    assert_eq!(told["sprayed"].as_array().map(Vec::len), Some(expected.sprayed.len()));
    // What is in force has no figures in a filter that never saw it.
    assert!(told["bans"]["hits"].as_u64() <= Some(hits) && hits > 0, "{told:#}");

    wait_until("the page answers", SOON, || Ok(http::get(&lab.pbx, METRICS, "/").is_ok()))?;
    let browser = Browser::new(&lab);
    let page = browser.page(DESKTOP)?;
    for (table, part) in [
        ("sprayed", day.sprayed[0].clone()),
        ("suggestions", day.served[0].to_string()),
        ("kinds", "sprayed".to_owned()),
        ("phones", "203.0.113.".to_owned()),
        ("silent", "register".to_owned()),
    ] {
        let shown = browser::text(&page, table);
        assert!(shown.contains(&part), "{table}: {shown}");
    }
    assert!(!page.contains("NaN") && !page.contains("undefined"), "{page}");
    for (name, window, dark) in [("report", TALL, false), ("report-phone-dark", TALL_PHONE, true)] {
        assert!(browser.picture(name, window, dark)? > 20_000, "{name} is empty");
    }
    Ok(())
}

mod measured {
    use std::time::Instant;

    use super::*;

    /// A replay of the day takes no longer.
    const LONGEST: Duration = Duration::from_secs(120);

    #[test]
    fn the_day_is_replayed_in_two_minutes() -> Result<()> {
        sip_xdp_tests::require_root()?;
        let day = Day::new();
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("day.pcap");
        fs::write(&file, pcap(Cover::Ethernet, &day.packets))?;
        let (input, options) = (Input::open(&file)?, Options { registrar: registrar() });
        let start = Instant::now();
        replay(&input, &Config::default(), &options, &mut |_| {})?;
        let took = start.elapsed();
        println!("{} packets in {took:.1?}", day.packets.len());
        assert!(took < LONGEST, "{took:?}");
        Ok(())
    }
}
