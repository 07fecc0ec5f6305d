//! A real Asterisk behind the filter: phones, calls both ways, lamps and mailboxes, carriers, an
//! outage after which fifty phones come back at once, and the tools of attackers. Nobody good is
//! banned, and each tool is, but for svmap, which asks once and is slowed down. `cargo xtask
//! asterisk` makes the directory that it is told, and runs it as root.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use sip_xdp_tests::phones::PhonesOptions;
use sip_xdp_tests::registrar::phone_password;
use sip_xdp_tests::topology::{LAN, OUTSIDE, PBX_LAN, address};
use sip_xdp_tests::{Asterisk, Attacker, Filter, Lab, Phones, Softphone, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// Phones of the office behind one address.
const PHONES: u16 = 50;

/// Others outside of the office.
const ROAD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 30);
const TRUNK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
const CARRIER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 21);

fn main() -> Result<()> {
    let root =
        std::env::args_os().nth(1).map(PathBuf::from).context("usage: asterisk DIRECTORY")?;
    let lab = Lab::new()?;
    for other in [ROAD, TRUNK, CARRIER] {
        address(&lab.phone, OUTSIDE, &[&format!("{other}/24")])?;
    }
    let asterisk = Asterisk::start(&lab.pbx, &root, CARRIER)?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let options = PhonesOptions { count: PHONES, subscriptions: 2, ..PhonesOptions::default() };
    let phones = Phones::start(&lab.phone, &options)?;
    let took = phones.wait_registered(PHONES.into(), SOON)?;
    wait_until("the lamps are subscribed", SOON, || {
        Ok(phones.tally().subscribed >= 2 * usize::from(PHONES) - 2)
    })?;
    println!("{PHONES} phones registered in {took:.1?}: {:?}", phones.tally());

    let server = SocketAddr::from((PBX_LAN, 5060));
    let softphone = |at: Ipv4Addr, user: &str| {
        Softphone::open(
            &lab.phone,
            SocketAddr::from((at, 5060)),
            server,
            user,
            &phone_password(user),
        )
    };
    let (road, trunk, carrier) =
        (softphone(ROAD, "1055")?, softphone(TRUNK, "trunk1")?, softphone(CARRIER, "carrier")?);
    assert_eq!((road.register()?, trunk.register()?), (200, 200), "{}", asterisk.log());
    let mailbox =
        road.subscribe("1055", "message-summary", "application/simple-message-summary")?;
    assert_eq!(mailbox, 200, "{}", asterisk.log());
    wait_until("the mailbox is told of", SOON, || Ok(road.count("NOTIFY") > 0))?;

    // Calls in, of a trunk that authenticates each one and of a carrier that does not; calls out.
    let mut talks = 0;
    for number in 0..12 {
        for caller in [&road, &trunk, &carrier] {
            let (status, call) = caller.call(&format!("{}", 1_000 + number))?;
            assert_eq!(status, 200, "{}", asterisk.log());
            if let Some(call) = call {
                talks += 1;
                assert_eq!(caller.hang_up(call)?, 200);
            }
        }
        let (status, call) = road.call(&format!("90301{number:05}"))?;
        assert_eq!(status, 200, "{}", asterisk.log());
        call.map(|call| road.hang_up(call)).transpose()?;
    }
    // Numbers that nobody has.
    for number in 0..4 {
        assert_eq!(carrier.call(&format!("2{number:03}"))?.0, 404);
        assert_eq!(road.call(&format!("3{number:03}"))?.0, 404);
    }
    println!("{talks} calls in, {} calls out", carrier.count("INVITE"));
    assert_eq!(
        (carrier.count("INVITE"), phones.tally().called >= 36),
        (12, true),
        "{:?}",
        phones.tally()
    );
    filter.nobody_is_banned("while everybody works")?;
    // Who takes our calls is a peer, which is as good as being served.
    let known = filter.json(&["explain", &CARRIER.to_string()])?;
    let is_partner = known["served"].as_u64() > Some(0) || !known["peer_until"].is_null();
    assert!(is_partner && known["verdict"] == "pass", "{known:#}");

    // At the first start nobody was known yet, and fifty strangers at one address are a flood.
    let limited = filter.packets(LAN, "drop.limited")?;

    // An outage: Asterisk is gone, phones repeat themselves, and all of them come back at once.
    drop(asterisk);
    phones.register_again();
    let before = phones.tally().repeated;
    wait_until("phones repeat themselves", SOON, || {
        Ok(phones.tally().repeated >= before + 4 * u64::from(PHONES))
    })?;
    let asterisk = Asterisk::start(&lab.pbx, &root, CARRIER)?;
    phones.register_again();
    let took = phones.wait_registered(PHONES.into(), SOON)?;
    println!("after the outage they were back in {took:.1?}: {:?}", phones.tally());
    filter.nobody_is_banned("after the outage")?;
    assert_eq!(filter.packets(LAN, "drop.limited")?, limited, "{}", filter.decisions());

    attacks(&lab, &filter)?;
    assert_eq!((road.register()?, trunk.register()?), (200, 200), "{}", asterisk.log());
    let bans = filter.json(&["block", "list"])?;
    let good: Vec<_> = bans
        .as_array()
        .into_iter()
        .flatten()
        .filter(|ban| ban["network"].to_string().contains("203.0.113"))
        .collect();
    assert!(good.is_empty(), "{good:#?}");
    let report = filter.json(&["report"])?;
    println!("{}", filter.succeed(&["report"])?);
    assert_eq!(
        (&report["bans"]["lifted"], &report["bans"]["good_later"]),
        (&0.into(), &0.into()),
        "{report:#}"
    );
    Ok(())
}

/// The three tools, each from an address of its own.
fn attacks(lab: &Lab, filter: &Filter<'_>) -> Result<()> {
    let tool = |number: u8| -> Result<(Ipv4Addr, Attacker<'_>)> {
        let from = lab.further_attacker(number)?;
        let directory = lab.directory().join(format!("attacker{number}"));
        std::fs::create_dir_all(&directory)?;
        Ok((from, Attacker::new(&lab.attacker, &directory).address(from)))
    };
    let (mapper, map) = tool(1)?;
    let mapping = map.map("198.51.100.1")?;
    let (enumerator, enumerate) = tool(2)?;
    let enumerating = enumerate.enumerate("INVITE")?;
    let (cracker, crack) = tool(3)?;
    let cracking = crack.crack("1007")?;
    // It sends one OPTIONS, which Asterisk answers with a challenge: that proves nothing, and the
    // source is slowed down.
    wait_until("svmap is under suspicion", SOON, || {
        Ok(!filter.json(&["explain", &mapper.to_string()])?["suspect_until"].is_null())
    })?;
    for (name, from) in [("svwar", enumerator), ("svcrack", cracker)] {
        let ban = filter.wait_for_ban(&from.to_string(), SOON)?;
        println!("{name} at {from}: {ban:?}");
    }
    drop((mapping, enumerating, cracking));
    Ok(())
}
