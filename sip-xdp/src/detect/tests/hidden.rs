//! Tries that are hidden: credentials that servers read in another way than most, under cover of an
//! account, or behind responses that look like those of others.

use super::*;

/// Sends guesses for the user 100, one every 0.7 s, until there is a ban; none for `None`. `write`
/// makes the headers of a try of its number, with the nonce to echo.
fn guesses_until_banned(
    fixture: &mut Fixture,
    attacker: &Who,
    most: u64,
    write: impl Fn(u64, u64) -> String,
) -> Option<u64> {
    // One bare request, for a nonce that is good for all.
    fixture.ask(attacker, "REGISTER", "100", "", "401 Unauthorized");
    let nonce = fixture.number;
    (1..=most).find(|number| {
        let headers = write(*number, nonce);
        let request = format!("REGISTER sip:pbx SIP/2.0\r\n{headers}\r\n");
        fixture.event(EventKind::Request, attacker, &request);
        let common = "Via: SIP/2.0/UDP h;branch=z9hG4bKone\r\nFrom: <sip:100@pbx>;tag=1\r\nTo: \
                      <sip:100@pbx>\r\nCall-ID: one\r\nCSeq: 2 REGISTER\r\n";
        let challenge = challenge("401", nonce);
        // Kamailio copies a line that a carriage return alone ends as it is.
        let common = match headers.contains(";x=1\r") {
            true => common.replace("pbx>\r\nCall-ID", "pbx>;x=1\rCall-ID"),
            false => common.to_owned(),
        };
        let response = format!("SIP/2.0 401 Unauthorized\r\n{common}{challenge}\r\n");
        fixture.event(EventKind::Answer, attacker, &response);
        fixture.wait(700 * SECOND / 1_000);
        !fixture.bans.is_empty()
    })
}

const TRANSACTION: &str = "Via: SIP/2.0/UDP h;branch=z9hG4bKone\r\nFrom: <sip:100@pbx>;tag=1\r\n\
                           Call-ID: one\r\nCSeq: 2 REGISTER\r\n";

#[test]
fn spelling_credentials_oddly_in_one_transaction_gains_nothing() {
    let digest = |number: u64, nonce: u64| {
        format!("username=\"100\",realm=\"r\",nonce=\"n{nonce}\",response=\"{number}\"")
    };
    let to = "To: <sip:100@pbx>\r\n";
    type Write<'a> = &'a dyn Fn(u64, u64) -> String;
    let decoys = "Authorization: Digest username=\"a\",realm=\"b\"\r\n".repeat(16);
    let spellings: [(&str, Write<'_>); 5] = [
        ("behind a carriage return", &|number, nonce| {
            let credentials = digest(number, nonce);
            format!("{TRANSACTION}To: <sip:100@pbx>;x=1\rAuthorization: Digest {credentials}\r\n")
        }),
        ("the same in Via", &|number, nonce| {
            let credentials = format!("x=1\rAuthorization: Digest {}", digest(number, nonce));
            TRANSACTION.replacen("\r\n", &format!(";{credentials}\r\n"), 1) + to
        }),
        ("behind sixteen decoys", &|number, nonce| {
            let credentials = digest(number, nonce);
            format!("{TRANSACTION}{to}{decoys}Authorization: Digest {credentials}\r\n")
        }),
        ("behind an escape", &|number, nonce| {
            format!(
                "{TRANSACTION}{to}Authorization: Digest username=\"100\",nonce=\"n{nonce}\",\
                 opaque=\"\\\",response=\"{number}\"\r\n"
            )
        }),
        ("with a comma behind the scheme", &|number, nonce| {
            format!("{TRANSACTION}{to}Authorization: Digest,{}\r\n", digest(number, nonce))
        }),
    ];
    for (what, write) in spellings {
        for transport in [Transport::Udp, Transport::Tcp] {
            let mut fixture = Fixture::by(transport);
            let attacker = who("192.0.2.66", 5060, "100");
            let tries = guesses_until_banned(&mut fixture, &attacker, 60, write);
            assert!(tries.is_some_and(|tries| tries <= 12), "{what}, {transport}: {tries:?}");
            // Names without a nonce of their own are forgeable, and as many.
            let is_proven = transport.is_stream() || !what.contains("decoys");
            let ban = fixture.only_ban();
            assert_eq!(ban.tier == Tier::Proven, is_proven, "{what}, {transport}: {ban:?}");
        }
    }
}

/// An account's name in the credentials, and somebody else's address-of-record; or credentials in
/// which a server may find another name.
#[test]
fn ones_own_account_covers_no_tries_for_others() {
    let plain = |own: &str, number: u64, nonce: u64| {
        format!("username=\"{own}\",realm=\"r\",nonce=\"n{nonce}\",response=\"{number}\"")
    };
    for (what, is_escaped) in [("another address-of-record", false), ("an escape", true)] {
        let mut fixture = Fixture::new();
        let attacker = who("192.0.2.66", 5060, "own");
        fixture.register(&attacker);
        let tries = guesses_until_banned(&mut fixture, &attacker, 100, |number, nonce| {
            let credentials = if is_escaped {
                format!(
                    "username=\"own\",opaque=\"\\\",username=\"100\",nonce=\"n{nonce}\",\
                     response=\"{number}\""
                )
            } else {
                plain("own", number, nonce)
            };
            format!("{TRANSACTION}To: <sip:100@pbx>\r\nAuthorization: Digest {credentials}\r\n")
        });
        assert!(tries.is_some_and(|tries| tries <= 12), "{what}: {tries:?}");
        let ban = fixture.only_ban();
        assert_eq!((ban.tier, ban.port), (Tier::Proven, Some(5060)), "{what}: {ban:?}");
    }
    // A phone with several lines, and one user name for all of them.
    let mut fixture = Fixture::new();
    let phone = who("203.0.113.10", 5060, "account");
    for line in ["100", "101"] {
        fixture.ask(&phone, "REGISTER", line, "", "401 Unauthorized");
        let credentials = fixture.credentials(&phone, fixture.number, "right");
        let credentials = format!("{credentials}Expires: 600\r\n");
        fixture.ask(&phone, "REGISTER", line, &credentials, "200 OK");
    }
    for number in 0..200 {
        let line = ["100", "101"][number % 2];
        fixture.ask(&phone, "REGISTER", line, "", "401 Unauthorized");
        let credentials = fixture.credentials(&phone, fixture.number, "changed");
        fixture.ask(&phone, "REGISTER", line, &credentials, "401 Unauthorized");
        fixture.wait(30 * SECOND);
    }
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
}

/// An office with one account for all of its lines, as many as are not remembered one by one.
#[test]
fn many_lines_of_one_account_are_no_cover() {
    let mut fixture = Fixture::new();
    let phone = who("203.0.113.10", 5060, "account");
    for round in 0..3 {
        for line in 0..30 {
            let line = format!("4930{line}");
            fixture.ask(&phone, "REGISTER", &line, "", "401 Unauthorized");
            if round > 0 {
                // An old nonce, which the server does not call stale.
                let credentials = fixture.credentials(&phone, fixture.number - 1, "right");
                fixture.ask(&phone, "REGISTER", &line, &credentials, "401 Unauthorized");
            }
            let credentials = fixture.credentials(&phone, fixture.number, "right");
            let credentials = format!("{credentials}Expires: 600\r\n");
            fixture.ask(&phone, "REGISTER", &line, &credentials, "200 OK");
            fixture.wait(SECOND);
        }
        fixture.wait(300 * SECOND);
        assert!(fixture.bans.is_empty(), "round {round}: {:?}", fixture.bans);
    }
    assert!(!fixture.actions.iter().any(|action| matches!(action, Action::Meter(_))));
}

/// A trunk that sends each call with the last nonce, and repeats it with a new one.
#[test]
fn a_busy_trunk_that_uses_old_nonces_is_no_guesser() {
    let mut fixture = Fixture::new();
    let trunk = who("203.0.113.10", 5060, "trunk8");
    fixture.register(&trunk);
    for number in 0..600 {
        let callee = format!("4912{number}");
        let credentials = fixture.credentials(&trunk, fixture.number, "right");
        fixture.ask(&trunk, "INVITE", &callee, &credentials, "407 Proxy Authentication Required");
        let credentials = fixture.credentials(&trunk, fixture.number, "right");
        fixture.ask(&trunk, "INVITE", &callee, &credentials, "180 Ringing");
        fixture.wait(SECOND);
    }
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
}

/// A response that arrived with the same Call-ID makes that of the server look forwarded. By a
/// connection nobody else knows it.
#[test]
fn a_stray_response_hides_no_try_by_a_connection() {
    let mut fixture = Fixture::new();
    let (attacker, other) = (who("192.0.2.66", 40_000, "100"), who("192.0.2.67", 5060, "x"));
    let stray = format!("SIP/2.0 401 Unauthorized\r\n{TRANSACTION}\r\n");
    fixture.event(EventKind::Response, &other, &stray);
    fixture.transport = Transport::Tcp;
    let tries = guesses_until_banned(&mut fixture, &attacker, 60, |number, nonce| {
        format!(
            "{TRANSACTION}To: <sip:100@pbx>\r\nAuthorization: Digest \
             username=\"100\",nonce=\"n{nonce}\",response=\"{number}\"\r\n"
        )
    });
    assert!(tries.is_some_and(|tries| tries <= 12), "{tries:?}");
    assert_eq!(fixture.only_ban().tier, Tier::Proven);
}

/// Servers that give everybody the nonce of the second: an attacker makes its own challenge look
/// forwarded, and forges tries with that nonce in the name of another one.
#[test]
fn a_nonce_whose_other_recipient_is_uncertain_proves_nothing() {
    let mut fixture = Fixture::new();
    let (attacker, victim) = (who("192.0.2.66", 5060, "100"), who("203.0.113.10", 5060, "100"));
    let stray = "SIP/2.0 401 Unauthorized\r\nVia: SIP/2.0/UDP x;branch=z\r\nCall-ID: c1\r\nCSeq: 1 \
                 REGISTER\r\n\r\n";
    fixture.event(EventKind::Response, &attacker, stray);
    // Both are given the nonce 1.
    fixture.ask(&attacker, "REGISTER", "100", "", "401 Unauthorized");
    fixture.number = 0;
    fixture.domain = "pbx.example";
    fixture.ask(&victim, "REGISTER", "100", "", "401 Unauthorized");
    for _ in 0..40 {
        let credentials = fixture.credentials(&victim, 1, "forged");
        fixture.number += 1;
        fixture.ask(&victim, "REGISTER", "100", &credentials, "401 Unauthorized");
        fixture.wait(SECOND / 2);
    }
    assert!(fixture.bans.iter().all(|ban| ban.tier == Tier::Unproven), "{:?}", fixture.bans);
}
