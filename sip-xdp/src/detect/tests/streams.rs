//! The same evidence by TCP, TLS and WebSocket: a handshake proves an address, and a port says
//! nothing.

use sip_xdp_common::limits::ladder::{Digest, REFUSES_USERS};

use super::*;

impl Fixture {
    pub(super) fn by(transport: Transport) -> Self {
        Self { transport, ..Self::new() }
    }

    /// A message of a stream.
    pub(super) fn say(&mut self, arrives: bool, who: &Who, text: &str) {
        let peer = (who.source, who.port);
        let (now, transport) = (self.now, self.transport);
        let observation =
            Observation::of_stream(now, peer, 5_061, transport, arrives, text.as_bytes());
        let observation = observation.map(|one| Observation { is_certain: self.is_certain, ..one });
        let actions = observation.map(|one| self.detector.observe_message(&one));
        self.take(actions.unwrap_or_default());
    }
}

#[test]
fn guesses_are_proven_by_their_handshake() {
    for transport in [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss] {
        let mut fixture = Fixture::by(transport);
        // A connection each, and nonces that everybody is given: they prove nothing here.
        let tries = (0..40_u16).find(|number| {
            let attacker = who("192.0.2.66", 40_000 + number, "100");
            fixture.ask(&attacker, "REGISTER", "100", "", "401 Unauthorized");
            let credentials = fixture.credentials(&attacker, 7, &format!("{number}"));
            fixture.ask(&attacker, "REGISTER", "100", &credentials, "401 Unauthorized");
            fixture.wait(SECOND / 2);
            !fixture.bans.is_empty()
        });
        assert!(tries.is_some_and(|tries| tries <= 12), "{tries:?}");
        let ban = fixture.only_ban();
        assert_eq!(
            (ban.kind, ban.tier, ban.port, ban.transport),
            ("rejected", Tier::Proven, None, transport)
        );
        assert!(ban.reason.contains(&format!("by {transport}")), "{}", ban.reason);
        let view = fixture.detector.explain(&ban.source, fixture.now);
        assert_eq!(view.last.map(|last| last.transport), Some(transport));
        assert!(view.proven);
    }
}

#[test]
fn a_phone_is_known_good_with_its_newest_connections() {
    let mut fixture = Fixture::by(Transport::Tls);
    for port in 50_000..50_009 {
        fixture.register(&who("203.0.113.10", port, "100"));
        fixture.wait(SECOND);
    }
    let phone = who("203.0.113.10", 50_008, "100");
    assert!(fixture.good(&phone));
    let view = fixture.detector.explain(&phone.source, fixture.now);
    assert_eq!(view.accepted.len(), 4, "{:?}", view.accepted);
    assert!(view.accepted.iter().all(|one| one.transport == Transport::Tls));
    // Its user is rejected where it was accepted before, whatever the port.
    for port in 50_100..50_140 {
        fixture.guess(&who("203.0.113.10", port, "100"), "old");
        fixture.wait(SECOND / 2);
    }
    assert!(fixture.bans.is_empty(), "{:#?}", fixture.bans);
}

#[test]
fn a_bad_phone_with_ever_new_connections_never_takes_its_office_down() {
    for pause in [SECOND, 5 * SECOND, 30 * SECOND] {
        let mut fixture = Fixture::by(Transport::Tcp);
        for port in 50_000..50_003 {
            fixture.register(&who("203.0.113.10", port, &format!("{port}")));
        }
        for port in 51_000..51_400 {
            fixture.guess(&who("203.0.113.10", port, "200"), "forgotten");
            fixture.wait(pause);
        }
        let all: Vec<_> = fixture.bans.iter().filter(|ban| ban.port.is_none()).collect();
        assert!(all.is_empty() && !fixture.bans.is_empty(), "every {pause} ns: {all:#?}");
    }
}

/// Digests of the users that were refused, and until when; those last written last.
fn refusals(fixture: &Fixture) -> Vec<(u64, u64)> {
    let mut refused = Vec::new();
    for action in &fixture.actions {
        if let Action::RefuseUser(_, user, until) = action {
            refused.retain(|(other, _)| other != user);
            refused.push((*user, *until));
        }
    }
    refused
}

/// The kernel refuses the users of bad phones, and nobody else; until they have the right password.
#[test]
fn the_user_of_a_bad_phone_is_refused_over_tcp() {
    let digest = |user: &str| Digest::of(user.as_bytes()).0;
    for (users, is_cold, most) in
        [(1, false, 20), (2, false, 24), (2, true, 24), (16, false, 64), (16, true, 64)]
    {
        let mut fixture = Fixture::by(Transport::Tcp);
        if !is_cold {
            fixture.register(&who("203.0.113.10", 50_000, "good"));
        }
        let mut tries = 0;
        'trying: for round in 0..50 {
            for n in 0..users {
                let port = 51_000 + round * users + n;
                fixture.guess(&who("203.0.113.10", port, &format!("old-{n}")), "old");
                tries += 1;
                if refusals(&fixture).len() == usize::from(users) {
                    break 'trying;
                }
            }
            fixture.wait(60 * SECOND);
        }
        let refused = refusals(&fixture);
        let what = format!("{users} users, cold {is_cold}, {tries} tries: {refused:?}");
        assert!(refused.len() == usize::from(users) && tries <= most, "{what}");
        assert!(refused.iter().any(|(user, _)| *user == digest("old-0")), "{what}");
        assert!(refused.iter().all(|(_, until)| *until != 0), "{what}");
        assert!(fixture.bans.iter().all(|ban| ban.port.is_some()), "{:?}", fixture.bans);
        // With the right password it is refused no longer.
        fixture.register(&who("203.0.113.10", 50_900, &format!("old-{}", users - 1)));
        let last = digest(&format!("old-{}", users - 1));
        assert_eq!(refusals(&fixture).last(), Some(&(last, 0)), "{what}");
    }
}

#[test]
fn who_hides_a_refused_user_goes_down_the_ladder() {
    let mut fixture = Fixture::by(Transport::Tcp);
    fixture.register(&who("203.0.113.10", 50_000, "good"));
    let steps = |fixture: &Fixture| -> Vec<Step> {
        let metered = fixture.actions.iter().filter_map(|action| match action {
            Action::Meter(Metering { step, modes: REFUSES_USERS, .. }) => Some(*step),
            _ => None,
        });
        metered.collect()
    };
    for port in 51_000..51_010 {
        fixture.guess(&who("203.0.113.10", port, "old"), "old");
        fixture.wait(SECOND / 2);
    }
    assert_eq!(steps(&fixture), [Step::First]);
    fixture.guess(&who("203.0.113.10", 51_011, "old"), "in flight");
    assert_eq!(steps(&fixture), [Step::First]);
    fixture.wait(2 * SECOND);
    // Once, the kernel may have lost it.
    fixture.guess(&who("203.0.113.10", 51_012, "old"), "in pieces");
    assert_eq!(steps(&fixture), [Step::First, Step::First]);
    fixture.wait(2 * SECOND);
    fixture.guess(&who("203.0.113.10", 51_013, "old"), "in pieces");
    assert_eq!(steps(&fixture), [Step::First, Step::First, Step::Down]);
}

/// The kernel's table loses it over a reboot, or to newer ones.
#[test]
fn a_refusal_that_the_kernel_has_lost_is_written_again() {
    let mut fixture = Fixture::by(Transport::Tcp);
    fixture.register(&who("203.0.113.10", 50_000, "good"));
    let mut written = Vec::new();
    for port in 51_000..51_014 {
        fixture.guess(&who("203.0.113.10", port, "old"), "old");
        fixture.wait(2 * SECOND);
        let all = fixture.actions.drain(..).filter_map(|action| match action {
            Action::RefuseUser(_, user, until) => Some((user, until)),
            _ => None,
        });
        written.extend(all);
    }
    let [first, again @ ..] = written.as_slice() else { panic!("nobody is refused") };
    assert_eq!(again, [*first; 4], "at each rejection, and until the same time");
}

/// The server has looked at one of two credentials: an acceptance says nothing of the other name.
#[test]
fn an_account_vouches_for_no_second_name() {
    for transport in [Transport::Udp, Transport::Tcp] {
        for names in [["101", "own"], ["own", "101"]] {
            let mut fixture = Fixture::by(transport);
            let own = who("192.0.2.66", 5060, "own");
            fixture.register(&own);
            let both = |fixture: &mut Fixture, status: &str| {
                fixture.ask(&own, "REGISTER", "own", "", "401 Unauthorized");
                let nonce = fixture.number;
                let header = |name: &str| {
                    fixture.credentials(&who("192.0.2.66", 5060, name), nonce, "right")
                };
                let credentials = names.map(header).concat();
                fixture.ask(&own, "REGISTER", "own", &credentials, status);
            };
            both(&mut fixture, "200 OK");
            assert!(!fixture.detector.known.accepted(&own.source, "101", fixture.now));
            // Nor does an account that is rejected with it hide that it was tried.
            for _ in 0..12 {
                both(&mut fixture, "401 Unauthorized");
                fixture.wait(SECOND);
            }
            let refused = refusals(&fixture);
            let user = Digest::of(b"101").0;
            assert!(
                refused.iter().any(|(other, _)| *other == user) || !fixture.bans.is_empty(),
                "{transport}, {names:?}: {:?}",
                fixture.actions
            );
        }
    }
}

/// The name that is tried echoes a nonce of somebody else's, or none that was seen.
#[test]
fn a_second_name_with_another_nonce_is_tried_as_well() {
    for (transport, is_proven) in [(Transport::Udp, false), (Transport::Tcp, true)] {
        let mut fixture = Fixture::by(transport);
        let own = who("192.0.2.66", 5060, "own");
        fixture.register(&own);
        for _ in 0..12 {
            fixture.ask(&own, "REGISTER", "own", "", "401 Unauthorized");
            let first = fixture.credentials(&own, fixture.number, "x");
            let second = fixture.credentials(&who("192.0.2.66", 5060, "101"), 1 << 40, "guess");
            fixture.ask(&own, "REGISTER", "own", &(first + &second), "401 Unauthorized");
            fixture.wait(SECOND);
        }
        let is_metered = fixture.actions.iter().any(|action| matches!(action, Action::Meter(_)));
        let is_refused = !refusals(&fixture).is_empty();
        assert!(is_metered && (is_refused || !is_proven), "{transport}: {:?}", fixture.actions);
    }
}

/// A neighbour behind the same address tries more names than an office has phones: that takes no
/// standing from a phone with a good and a bad line.
#[test]
fn a_neighbour_expels_no_phone_with_a_bad_line() {
    let mut fixture = Fixture::by(Transport::Tcp);
    let phone = |line: &str| who("203.0.113.10", 5060, line);
    for n in 0..200_u16 {
        fixture.register(&phone("good"));
        if n % 10 == 0 {
            fixture.guess(&phone("bad"), "old");
        }
        fixture.guess(&who("203.0.113.10", 20_000 + n, &format!("user-{}", n % 30)), "x");
        fixture.wait(70 * SECOND);
        assert!(fixture.good(&phone("good")), "{n}");
    }
}

/// A customer's PBX has one port for all of its users, and so has a phone with two lines: not the
/// port, but the one user is refused.
#[test]
fn one_bad_user_of_a_pbx_is_refused_and_its_port_stays() {
    for transport in [Transport::Udp, Transport::Tcp] {
        for (lines, pause) in [(4, 2 * SECOND), (4, 60 * SECOND), (1, 60 * SECOND)] {
            let mut fixture = Fixture::by(transport);
            for round in 0..40 {
                let line = format!("line-{}", round % lines);
                fixture.register(&who("203.0.113.10", 5060, &line));
                fixture.guess(&who("203.0.113.10", 5060, "bad"), "old");
                fixture.wait(pause);
            }
            let refused = refusals(&fixture);
            let bad = Digest::of(b"bad").0;
            assert!(matches!(refused.as_slice(), [(user, _)] if *user == bad), "{refused:?}");
            let view = fixture.detector.explain(&who("203.0.113.10", 5060, "").source, fixture.now);
            assert!(matches!(view.refused.as_slice(), [one] if one.user == "bad"), "{view:?}");
            assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
            assert!(fixture.good(&who("203.0.113.10", 5060, "line-0")));
        }
    }
}

/// Whoever registers an account at each new place and tries another user's password there: once
/// there were more of these than an office has phones, the account earns nothing there for a day.
#[test]
fn an_account_that_covers_tries_of_many_users_loses_its_places() {
    for transport in [Transport::Udp, Transport::Tcp] {
        for accounts in 1..=2 {
            let mut fixture = Fixture::by(transport);
            let mut lost = None;
            for n in 0..200_u16 {
                let here = |user: &str| who("192.0.2.66", 20_000 + n, user);
                (0..accounts).for_each(|one| fixture.register(&here(&format!("own-{one}"))));
                let is_good = fixture.good(&here("own-0"));
                lost = lost.or((!is_good).then_some(n));
                fixture.guess(&here(&format!("user-{n}")), "x");
                fixture.wait(70 * SECOND);
            }
            let what = format!("{transport}, {accounts} accounts");
            assert!(lost.is_some_and(|n| n <= 40), "{what}: {lost:?}");
            assert!(!fixture.good(&who("192.0.2.66", 20_199, "own-0")), "{what}");
            // What it has elsewhere stays, and after a day it earns standing here again.
            fixture.register(&who("192.0.2.67", 5060, "own-0"));
            assert!(fixture.good(&who("192.0.2.67", 5060, "own-0")), "{what}");
            fixture.wait(8 * 24 * 3_600 * SECOND);
            fixture.register(&who("192.0.2.66", 5060, "own-0"));
            assert!(fixture.good(&who("192.0.2.66", 5060, "own-0")), "{what}");
        }
    }
}

#[test]
fn who_guesses_faster_than_phones_do_is_banned_for_all_that() {
    let mut fixture = Fixture::by(Transport::Tcp);
    let own = who("203.0.113.10", 50_000, "mallory");
    fixture.register(&own);
    let tries = (51_000..53_000_u16).position(|port| {
        fixture.guess(&who("203.0.113.10", port, "200"), &format!("{port}"));
        fixture.wait(SECOND / 50);
        fixture.bans.iter().any(|ban| ban.port.is_none())
    });
    assert!(tries.is_some_and(|tries| tries <= 45), "{tries:?}");
}

#[test]
fn a_flood_of_requests_is_banned_as_by_udp() {
    let mut fixture = Fixture::by(Transport::Tcp);
    let attacker = who("192.0.2.66", 40_000, "100");
    let sent = (0..4_000).position(|number| {
        fixture.ask(&attacker, "OPTIONS", &format!("{number}"), "", "200 OK");
        fixture.wait(SECOND / 200);
        !fixture.bans.is_empty()
    });
    let ban = fixture.only_ban();
    assert_eq!((ban.kind, ban.tier), ("requests", Tier::Proven));
    assert!(sent.is_some_and(|sent| sent < 400), "{sent:?}");
    // Three hundred phones behind one address, each with little.
    let mut fixture = Fixture::by(Transport::Tcp);
    for port in 10_000..10_300 {
        fixture.register(&who("203.0.113.10", port, &format!("{port}")));
        fixture.wait(SECOND / 100);
    }
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
}

#[test]
fn what_followed_a_loss_accepts_nobody() {
    let mut fixture = Fixture::by(Transport::Tcp);
    let attacker = who("192.0.2.66", 40_000, "100");
    fixture.is_certain = false;
    fixture.register(&attacker);
    assert!(!fixture.good(&attacker), "it may have been the text of a body");
    fixture.is_certain = true;
    fixture.register(&attacker);
    assert!(fixture.good(&attacker));
}

#[test]
fn calls_and_users_that_are_tried_are_proven() {
    for (method, status, kind) in [
        ("REGISTER", "404 Not Found", "enumeration"),
        ("REGISTER", "401 Unauthorized", "enumeration"),
        ("INVITE", "403 Forbidden", "invites"),
        ("INVITE", "401 Unauthorized", "invites"),
    ] {
        let mut fixture = Fixture::by(Transport::Tcp);
        let attacker = who("192.0.2.66", 40_000, "x");
        for number in 0..30 {
            fixture.ask(&attacker, method, &format!("{}", 1_000_000_000 + number), "", status);
            fixture.wait(6 * SECOND);
            if !fixture.bans.is_empty() {
                break;
            }
        }
        let ban = fixture.only_ban();
        assert_eq!((ban.kind, ban.tier), (kind, Tier::Proven), "{method} {status}");
    }
}
