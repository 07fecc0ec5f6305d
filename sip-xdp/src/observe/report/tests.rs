//! Tests of the evaluation.

use super::*;
use crate::config::Config;
use crate::sip::transport::Transport;
use crate::store::{self, End};

const HOUR_MS: u64 = 3_600_000;

fn facts() -> Facts {
    Facts {
        capture: None,
        from_ms: 0,
        to_ms: 24 * HOUR_MS,
        bans: Vec::new(),
        accepted: Vec::new(),
        sprayed: Vec::new(),
        served: Vec::new(),
        trusted: Vec::new(),
        rules: Config::default().detect,
        lost: None,
        notes: Vec::new(),
    }
}

fn ban(network: &str, kind: &str, from_ms: u64, end: Option<(&str, u64)>) -> Ban {
    let ban = store::Ban {
        network: network.parse().unwrap(),
        port: None,
        kind: kind.to_owned(),
        tier: Some(Tier::Proven),
        reason: "passwords".to_owned(),
        from_ms,
        until_ms: Some(from_ms + HOUR_MS),
    };
    let hits = end.map(|(_, hits)| hits);
    let end = end.map(|(by, _)| End { at_ms: from_ms + HOUR_MS, by: by.to_owned(), hits });
    Ban { row: HistoryRow { id: 1, ban, end }, hits }
}

fn accepted(address: &str, user: &str, port: u16, first_ms: u64, last_ms: u64) -> Accepted {
    let (address, user) = (address.parse().unwrap(), user.to_owned());
    let (transport, until_ms) = (Transport::Udp, last_ms + HOUR_MS);
    Accepted { address, user, port, transport, first_ms, last_ms, until_ms }
}

#[test]
fn bans_are_counted_by_what_became_of_them() {
    let bans = vec![
        ban("192.0.2.1", "rejected", HOUR_MS, Some(("expired", 0))),
        ban("192.0.2.2", "rejected", HOUR_MS, Some(("expired", 7))),
        ban("192.0.2.3", "rejected", HOUR_MS, Some(("command", 1))),
        ban("192.0.2.4", "signature", HOUR_MS, None),
        ban("192.0.2.5", "rejected", 2 * HOUR_MS, Some(("expired", 2))),
    ];
    let report = judge(Facts {
        bans,
        accepted: vec![
            accepted("192.0.2.5", "105", 5060, HOUR_MS, 5 * HOUR_MS),
            accepted("192.0.2.2", "102", 5060, 10, 20),
        ],
        ..facts()
    });
    let expected =
        Tally { bans: 5, addresses: 5, lifted: 1, good_later: 1, quiet: 1, in_force: 1, hits: 10 };
    assert_eq!(report.bans, expected);
    assert_eq!(report.kinds[0].kind, "rejected");
    assert_eq!((report.kinds[0].tally.bans, report.kinds[1].tally.bans), (4, 1));
    let rule = |name: &str| report.rules.iter().find(|rule| rule.rule == name).unwrap();
    assert_eq!((rule("rejected").bans, rule("signature").bans, rule("decoy").last), (4, 1, None));
    let doubtful: Vec<_> =
        report.doubtful.iter().map(|one| (one.address.to_string(), one.lifted)).collect();
    assert_eq!(doubtful, [("192.0.2.5".to_owned(), false), ("192.0.2.3".to_owned(), true)]);
    assert!(report.doubtful[0].known_before && report.doubtful[0].users == ["105"]);
}

#[test]
fn a_ban_that_the_next_one_extends_counts_its_packets_once() {
    let mut first = ban("192.0.2.1", "rejected", HOUR_MS, Some(("expired", 9)));
    first.row.end.as_mut().unwrap().at_ms = 3 * HOUR_MS;
    let mut second = ban("192.0.2.1", "rejected", 2 * HOUR_MS, Some(("expired", 9)));
    second.row.end.as_mut().unwrap().at_ms = 3 * HOUR_MS;
    let report = judge(Facts { bans: vec![first, second], ..facts() });
    assert_eq!((report.bans.bans, report.bans.addresses, report.bans.hits), (2, 1, 9));
    assert_eq!((report.repeaters[0].bans, report.repeaters[0].hits), (2, 9));
}

#[test]
fn only_the_port_that_was_banned_is_asked_about() {
    let mut of_port = ban("192.0.2.1", "misconfigured", HOUR_MS, Some(("expired", 3)));
    of_port.row.ban.port = Some(5070);
    let stranger = ban("192.0.2.2", "misconfigured", HOUR_MS, Some(("expired", 3)));
    let neighbour = accepted("192.0.2.1", "101", 5060, 0, 9 * HOUR_MS);
    let report =
        judge(Facts { bans: vec![of_port, stranger], accepted: vec![neighbour], ..facts() });
    assert_eq!((report.bans.good_later, report.doubtful.len()), (0, 0));
    assert_eq!(
        (report.phones.len(), report.phones[0].port, report.repeaters.len()),
        (1, Some(5070), 1)
    );
}

#[test]
fn a_password_that_was_guessed_is_told_and_a_phone_that_was_mended_is_not() {
    let bans = vec![
        ban("192.0.2.1", "slow", HOUR_MS, Some(("expired", 3))),
        ban("192.0.2.2", "slow", HOUR_MS, Some(("expired", 3))),
    ];
    let accepted = vec![
        accepted("203.0.113.1", "101", 5060, 10, 20 * HOUR_MS),
        accepted("192.0.2.1", "101", 5060, 5 * HOUR_MS, 6 * HOUR_MS),
        // Accepted only there.
        accepted("192.0.2.1", "109", 5060, 5 * HOUR_MS, 6 * HOUR_MS),
        accepted("192.0.2.2", "102", 5060, 10, 6 * HOUR_MS),
    ];
    let time = |hour: u64, tries: u64| Sprayed {
        user: "101".to_owned(),
        from_ms: hour * HOUR_MS,
        last_ms: (hour + 1) * HOUR_MS,
        tier: Tier::Proven,
        tries,
        sources: 15,
    };
    let sprayed = vec![time(1, 30), time(9, 10)];
    let report = judge(Facts { bans, accepted, sprayed, ..facts() });
    let told: Vec<_> =
        report.suggestions.iter().map(|one| (one.change, one.about.as_str())).collect();
    assert_eq!(told, [(Change::Password, "101")]);
    assert_eq!(report.sprayed[0].new_places, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(
        (report.sprayed.len(), report.sprayed[0].tries, report.sprayed[0].addresses),
        (1, 40, 30)
    );
}

#[test]
fn partners_are_suggested_unless_they_are_trusted() {
    let served =
        |last: u8| Served { address: IpAddr::from([192, 0, 2, last]), first_ms: 5, last_ms: 9 };
    let trusted = vec!["192.0.2.0/29".parse().unwrap()];
    let report = judge(Facts { served: vec![served(1), served(9)], trusted, ..facts() });
    assert_eq!(report.good.served.len(), 2);
    assert_eq!(report.suggestions.len(), 1);
    let bans = vec![ban("192.0.2.9", "invites", HOUR_MS, Some(("expired", 3)))];
    let attacker = judge(Facts { served: vec![served(9)], bans, ..facts() });
    assert!(attacker.suggestions.is_empty() && attacker.good.served.is_empty(), "{attacker:#?}");
    let command = report.suggestions[0].command.as_deref().unwrap();
    assert!(command.starts_with("sip-xdp trust add 192.0.2.9 --reason '"), "{command}");
}

#[test]
fn a_rule_whose_bans_are_lifted_is_to_be_loosened() {
    let lifted =
        |last: u8| ban(&format!("192.0.2.{last}"), "enumeration", HOUR_MS, Some(("command", 1)));
    let right =
        |last: u8| ban(&format!("198.51.100.{last}"), "enumeration", HOUR_MS, Some(("expired", 1)));
    let mut bans: Vec<Ban> = (0..3).map(lifted).collect();
    bans.extend((0..12).map(right));
    let report = judge(Facts { bans: bans.clone(), ..facts() });
    let about = |report: &Report| {
        report.suggestions.iter().map(|one| one.about.clone()).collect::<Vec<_>>()
    };
    assert_eq!(about(&report), ["detect.enumeration"]);
    assert!(report.suggestions[0].command.as_ref().unwrap().contains("count = 20"));
    // Three of twenty are a few.
    bans.extend((12..20).map(right));
    assert!(about(&judge(Facts { bans, ..facts() })).is_empty());
}
