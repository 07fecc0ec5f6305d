//! Tests of the detector with whole conversations, as the kernel would sample them.
//!
//! Above 400 lines: independent cases over one fixture.

use bytemuck::Zeroable;
use sip_xdp_common::abi::layout::HEAD;
use sip_xdp_common::limits::gcra::LimitKind;
use sip_xdp_common::verdict::Message;

use super::*;
use crate::net::network::source_of;

mod hidden;
mod streams;

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_000_000 * SECOND;

/// A registrar with its clients.
pub(super) struct Fixture {
    pub(super) detector: Detector,
    pub(super) now: u64,
    number: u64,
    pub(super) bans: Vec<Finding>,
    pub(super) actions: Vec<Action>,
    /// The host that clients ask for.
    pub(super) domain: &'static str,
    /// Flags of every event.
    flags: u8,
    /// The UDP checksum of incoming packets, if headers are sampled.
    pub(super) checksum: Option<u16>,
    /// How messages come; by UDP they come from the kernel.
    transport: Transport,
    /// Nothing was lost before them.
    is_certain: bool,
}

/// A client at an address.
#[derive(Clone)]
pub(super) struct Who {
    pub(super) source: IpKey,
    port: u16,
    user: String,
    agent: &'static str,
}

pub(super) fn who(address: &str, port: u16, user: &str) -> Who {
    Who {
        source: source_of(address.parse().unwrap()),
        port,
        user: user.to_owned(),
        agent: "Phone 1.0",
    }
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(super) fn with(config: Config) -> Self {
        let detector = Detector::new(&config);
        Self {
            detector,
            now: START,
            number: 0,
            bans: Vec::new(),
            actions: Vec::new(),
            domain: "pbx",
            flags: 0,
            checksum: None,
            transport: Transport::Udp,
            is_certain: true,
        }
    }

    pub(super) fn wait(&mut self, nanos: u64) {
        self.now += nanos;
        let actions = self.detector.tick(self.now);
        self.take(actions);
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ban(finding) => self.bans.push(finding),
                action => self.actions.push(action),
            }
        }
    }

    fn event(&mut self, kind: EventKind, who: &Who, text: &str) {
        if self.transport.is_stream() {
            self.say(kind == EventKind::Request, who, text);
            return;
        }
        let mut event = KernelEvent {
            time: self.now,
            kind: kind as u8,
            source: who.source,
            port: who.port,
            bucket: LimitKind::Requests as u8,
            message: Message::Register as u8,
            head_length: text.len() as u16,
            length: text.len() as u16,
            flags: self.flags,
            ..KernelEvent::zeroed()
        };
        assert!(text.len() <= HEAD);
        if let Some(checksum) = self.checksum {
            event.ip[0] = 0x45;
            event.ip[16..20].copy_from_slice(&[198, 51, 100, 1]);
            event.udp[..2].copy_from_slice(&who.port.to_be_bytes());
            event.udp[6..].copy_from_slice(&checksum.to_be_bytes());
        }
        event.head[..text.len()].copy_from_slice(text.as_bytes());
        let actions = self.detector.observe(&event);
        self.take(actions);
    }

    /// A request and its response, in the same transaction.
    pub(super) fn ask(
        &mut self,
        who: &Who,
        method: &str,
        target: &str,
        credentials: &str,
        status: &str,
    ) {
        self.number += 1;
        let (number, user, domain) = (self.number, &who.user, self.domain);
        // A response to a challenge stays in its call.
        let echoed = credentials.split("nonce=\"n").nth(1).and_then(|rest| rest.split('"').next());
        let call = echoed.and_then(|nonce| nonce.parse().ok()).unwrap_or(number);
        let (aor, uri) = if method == "REGISTER" {
            (target, String::new())
        } else {
            (user.as_str(), format!("{target}@"))
        };
        let common = format!(
            "Via: SIP/2.0/UDP h;branch=z9hG4bK{number}\r\n\
             From: <sip:{aor}@{domain}>;tag=f{call}\r\n\
             To: <sip:{target}@{domain}>\r\nCall-ID: c{call}\r\nCSeq: {number} {method}\r\n"
        );
        let agent = who.agent;
        let request = format!(
            "{method} sip:{uri}{domain} SIP/2.0\r\n{common}User-Agent: {agent}\r\n{credentials}\r\n"
        );
        self.event(EventKind::Request, who, &request);
        self.event(
            EventKind::Answer,
            who,
            &format!("SIP/2.0 {status}\r\n{common}{}\r\n", challenge(status, number)),
        );
    }

    /// Registers as phones do, with a nonce that no other client is given.
    pub(super) fn register(&mut self, who: &Who) {
        self.ask(who, "REGISTER", &who.user, "", "401 Unauthorized");
        let credentials = self.credentials(who, self.number, "right");
        self.ask(who, "REGISTER", &who.user, &format!("{credentials}Expires: 600\r\n"), "200 OK");
    }

    /// Tries a wrong password.
    pub(super) fn guess(&mut self, who: &Who, password: &str) {
        self.ask(who, "REGISTER", &who.user, "", "401 Unauthorized");
        let credentials = self.credentials(who, self.number, password);
        self.ask(who, "REGISTER", &who.user, &credentials, "401 Unauthorized");
    }

    pub(super) fn credentials(&self, who: &Who, nonce: u64, password: &str) -> String {
        let user = &who.user;
        format!(
            "Authorization: Digest \
             username=\"{user}\",realm=\"r\",nonce=\"n{nonce}\",\
             uri=\"sip:pbx\",response=\"{password}\"\r\n"
        )
    }

    fn good(&self, who: &Who) -> bool {
        self.detector.good(&who.source, who.port, self.now).until > self.now
    }

    fn only_ban(&self) -> &Finding {
        let [ban] = self.bans.as_slice() else {
            panic!("{} bans: {:#?}", self.bans.len(), self.bans)
        };
        ban
    }
}

fn challenge(status: &str, number: u64) -> String {
    if status.starts_with("401") || status.starts_with("407") {
        format!("WWW-Authenticate: Digest realm=\"r\", nonce=\"n{number}\"\r\n")
    } else {
        String::new()
    }
}

#[test]
fn a_phone_that_registers_is_known_good_until_it_ends() {
    let mut fixture = Fixture::new();
    let phone = who("192.0.2.7", 5062, "100");
    fixture.ask(&phone, "REGISTER", "100", "", "200 OK");
    fixture.ask(&phone, "OPTIONS", "100", "", "200 OK");
    assert!(!fixture.good(&phone), "without credentials it proves nothing");
    let credentials = fixture.credentials(&phone, 77, "x");
    fixture.ask(&phone, "OPTIONS", "100", &credentials, "200 OK");
    fixture.ask(&phone, "SUBSCRIBE", "100", &credentials, "200 OK");
    assert!(!fixture.good(&phone), "a nonce that nobody gave");
    fixture.register(&phone);
    assert!(fixture.good(&phone));
    assert_eq!(
        fixture.detector.good(&phone.source, 5063, fixture.now).flow_until,
        0,
        "another port"
    );
    fixture.wait(599 * SECOND);
    assert!(fixture.good(&phone));
    fixture.wait(2 * SECOND);
    assert!(!fixture.good(&phone) && fixture.detector.was_good_lately(&phone.source, fixture.now));
    fixture.register(&phone);
    fixture.ask(&phone, "REGISTER", "100", "", "401 Unauthorized");
    let credentials = fixture.credentials(&phone, fixture.number, "right");
    fixture.ask(&phone, "REGISTER", "100", &format!("{credentials}Expires: 0\r\n"), "200 OK");
    assert!(!fixture.good(&phone), "it has taken its registration back");
    assert!(fixture.bans.is_empty());
}

#[test]
fn guesses_are_proven_by_the_nonce_they_echo() {
    // As svcrack does: one bare request, then guesses in one transaction that all echo the nonce of
    // the last challenge.
    let mut fixture = Fixture::new();
    let attacker = who("192.0.2.66", 5060, "100");
    let common = "Via: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:100@pbx>;tag=1\r\nTo: \
                  <sip:100@pbx>\r\nCall-ID: 1\r\nCSeq: 2 REGISTER\r\n";
    let mut sent = 0;
    for n in 0..40_u64 {
        let credentials = if n == 0 {
            String::new()
        } else {
            fixture.credentials(&attacker, n - 1, &format!("{n}"))
        };
        let request = format!("REGISTER sip:pbx SIP/2.0\r\n{common}{credentials}\r\n");
        fixture.event(EventKind::Request, &attacker, &request);
        // A retransmission is no further try.
        fixture.event(EventKind::Request, &attacker, &request);
        let response = format!("SIP/2.0 401 Unauthorized\r\n{common}{}\r\n", challenge("401", n));
        fixture.event(EventKind::Answer, &attacker, &response);
        fixture.event(EventKind::Answer, &attacker, &response);
        sent += 1;
        fixture.wait(SECOND / 180);
        if !fixture.bans.is_empty() {
            break;
        }
    }
    let ban = fixture.only_ban();
    assert_eq!(
        (ban.kind, ban.tier, ban.port, ban.growth),
        ("rejected", Tier::Proven, None, Growth::Full)
    );
    assert!(
        ban.reason.starts_with(
            "10 rejected passwords for the user \"100\" in 1 s, nonce echoed, none accepted"
        ),
        "{}",
        ban.reason
    );
    assert!(sent <= 12, "{sent} requests");
}

#[test]
fn leaving_the_user_out_of_the_headers_does_not_help() {
    let mut fixture = Fixture::new();
    let attacker = who("192.0.2.66", 5060, "100");
    for n in 0..11_u64 {
        let common = format!(
            "Via: SIP/2.0/UDP h;branch=z9hG4bK{n}\r\nFrom: <sip:pbx>;tag=1\r\nTo: \
             <sip:pbx>\r\nCall-ID: 1\r\nCSeq: {n} REGISTER\r\n"
        );
        let credentials = fixture.credentials(&attacker, n.saturating_sub(1), "x");
        fixture.event(
            EventKind::Request,
            &attacker,
            &format!("REGISTER sip:pbx SIP/2.0\r\n{common}{credentials}\r\n"),
        );
        let nonce = challenge("401", n);
        fixture.event(
            EventKind::Answer,
            &attacker,
            &format!("SIP/2.0 401 Unauthorized\r\n{common}{nonce}\r\n"),
        );
        fixture.wait(SECOND);
        if !fixture.bans.is_empty() {
            break;
        }
    }
    assert_eq!(fixture.only_ban().kind, "rejected");
    assert!(
        fixture.only_ban().reason.contains("the user \"100\""),
        "{}",
        fixture.only_ban().reason
    );
}

#[test]
fn patience_does_not_help() {
    for (pause, at_most) in [(7, 20), (30, 22), (50, 80)] {
        let mut fixture = Fixture::new();
        let attacker = who("192.0.2.66", 5060, "100");
        let tries = (1..400).find(|n| {
            fixture.guess(&attacker, &format!("{n}"));
            fixture.wait(pause * SECOND);
            !fixture.bans.is_empty()
        });
        assert!(tries.is_some_and(|tries| tries <= at_most), "every {pause} s: {tries:?}");
        let ban = fixture.only_ban();
        assert_eq!(ban.tier, Tier::Proven);
        assert_eq!(
            ban.kind,
            if pause >= 20 { "misconfigured" } else { "rejected" },
            "every {pause} s"
        );
    }
}

#[test]
fn a_stale_nonce_is_no_guess() {
    let mut fixture = Fixture::new();
    for n in 0..100 {
        let phone = who("192.0.2.7", 5000 + n, &format!("{n}"));
        let old = fixture.credentials(&phone, 999_999, "right");
        fixture.ask(&phone, "REGISTER", &phone.user.clone(), &old, "401 Unauthorized");
        let new = fixture.credentials(&phone, fixture.number, "right");
        fixture.wait(SECOND / 10);
        fixture.ask(&phone, "REGISTER", &phone.user.clone(), &new, "200 OK");
    }
    fixture.wait(60 * SECOND);
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
}

#[test]
fn enumeration_by_refusal_and_by_silence_after_a_challenge() {
    for (method, status) in [
        ("REGISTER", "404 Not Found"),
        ("INVITE", "404 Not Found"),
        ("OPTIONS", "404 Not Found"),
        ("REGISTER", "401 Unauthorized"),
        ("REGISTER", "403 No"),
    ] {
        let mut fixture = Fixture::new();
        let attacker = who("192.0.2.66", 5060, "x");
        let tries = (0..40).position(|n| {
            fixture.ask(&attacker, method, &format!("{}", 1_000 + n), "", status);
            fixture.wait(SECOND);
            !fixture.bans.is_empty()
        });
        assert!(tries.is_some_and(|tries| tries <= 16), "{method} {status}: {tries:?}");
        let ban = fixture.only_ban();
        assert!(["enumeration", "invites"].contains(&ban.kind), "{}", ban.kind);
        assert_eq!(ban.tier, Tier::Unproven, "anybody can have sent that");
    }
}

#[test]
fn what_the_kernel_holds_up_is_not_missing() {
    let mut fixture = Fixture::new();
    for n in 0..300 {
        let phone = who("192.0.2.7", 5000 + n, &format!("{n}"));
        fixture.ask(&phone, "REGISTER", &phone.user.clone(), "", "401 Unauthorized");
        fixture.event(EventKind::Limited, &phone, "REGISTER sip:pbx SIP/2.0\r\nCall-ID: x\r\n\r\n");
        fixture.wait(SECOND / 20);
    }
    fixture.wait(60 * SECOND);
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
}

#[test]
fn one_bad_phone_does_not_silence_its_office() {
    for phones in [4, 300] {
        let mut fixture = Fixture::new();
        let office: Vec<Who> =
            (0..phones).map(|n| who("192.0.2.7", 10_000 + n, &format!("{n}"))).collect();
        let bad = who("192.0.2.7", 9_999, "old");
        for round in 0..120 {
            if round % 15 == 0 {
                office.iter().for_each(|phone| fixture.register(phone));
            }
            fixture.guess(&bad, "stale");
            fixture.wait(30 * SECOND);
        }
        assert!(!fixture.bans.is_empty(), "{phones} phones");
        for ban in &fixture.bans {
            assert_eq!(
                (ban.kind, ban.port, ban.growth),
                ("misconfigured", Some(9_999), Growth::Mild { times: 1 }),
                "{ban:?}"
            );
        }
    }
}

#[test]
fn a_bad_phone_whose_port_changes_does_not_silence_its_office_either() {
    let mut fixture = Fixture::new();
    let phone = who("192.0.2.7", 10_000, "100");
    for n in 0..120 {
        if n % 15 == 0 {
            fixture.register(&phone);
        }
        fixture.guess(&who("192.0.2.7", 20_000 + n, "old"), "stale");
        fixture.wait(30 * SECOND);
    }
    assert!(
        fixture.bans.iter().all(|ban| ban.port.is_some() && ban.kind == "misconfigured"),
        "{:?}",
        fixture.bans
    );
}

#[test]
fn wrong_numbers_of_a_known_good_source_are_told_and_no_evidence() {
    let mut fixture = Fixture::new();
    let phone = who("192.0.2.7", 10_000, "100");
    fixture.register(&phone);
    for prefix in ["00", "+", "011", "900", "9011"] {
        let target = format!("{prefix}441234567890");
        fixture.ask(&phone, "INVITE", &target, "", "407 Proxy Authentication Required");
        let credentials = fixture.credentials(&phone, fixture.number, "right");
        fixture.ask(&phone, "INVITE", &target, &credentials, "404 Not Found");
        fixture.wait(6 * SECOND);
    }
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
    let is_reported = |action: &Action| match action {
        Action::Rejected(_, 10_000, text) => text.contains("prefixes"),
        _ => false,
    };
    assert!(fixture.actions.iter().any(is_reported));
}

#[test]
fn guessing_from_an_office_bans_the_office_only_if_it_is_many() {
    let mut fixture = Fixture::new();
    fixture.register(&who("192.0.2.7", 10_000, "100"));
    for n in 0..60 {
        fixture.guess(&who("192.0.2.7", 20_000 + n, &format!("{}", 2_000 + n)), "x");
        fixture.wait(SECOND);
    }
    assert!(
        fixture.bans.iter().any(|ban| ban.port.is_none() && ban.kind == "rejected"),
        "{:?}",
        fixture.bans
    );
}

#[test]
fn a_registrar_that_rejects_everybody_bans_nobody() {
    let mut fixture = Fixture::new();
    let office: Vec<Who> =
        (0..300).map(|n| who("192.0.2.7", 10_000 + n, &format!("{n}"))).collect();
    office.iter().for_each(|phone| fixture.register(phone));
    fixture.wait(60 * SECOND);
    for round in 0..20 {
        for phone in &office {
            fixture.guess(phone, &format!("right {round}"));
            fixture.wait(SECOND / 10);
        }
    }
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
    assert!(
        fixture.actions.iter().any(|action| matches!(action, Action::Note("registrar_failing", _)))
    );
    assert!(fixture.detector.registrar_is_failing(fixture.now));
}

#[test]
fn tools_are_limited_and_then_banned() {
    let mut fixture = Fixture::new();
    let tool = Who { agent: "friendly-scanner", ..who("192.0.2.66", 5060, "100") };
    fixture.ask(&tool, "OPTIONS", "100", "", "200 OK");
    assert!(
        matches!(fixture.actions.as_slice(), [Action::Meter(one)] if one.source == tool.source)
    );
    fixture.ask(&tool, "OPTIONS", "100", "", "200 OK");
    assert!(fixture.bans.is_empty());
    fixture.ask(&tool, "OPTIONS", "100", "", "200 OK");
    assert_eq!((fixture.only_ban().kind, fixture.only_ban().tier), ("signature", Tier::Unproven));

    let mut fixture = Fixture::new();
    fixture.ask(&tool, "OPTIONS", "7", "", "404 Not Found");
    assert!(fixture.bans.is_empty(), "a packet is not its own second evidence");
    fixture.ask(&tool, "OPTIONS", "8", "", "404 Not Found");
    assert_eq!(fixture.only_ban().kind, "signature", "a second kind of evidence");

    let mut fixture = Fixture::new();
    fixture.guess(&tool, "x");
    let ban = fixture.only_ban();
    assert_eq!((ban.kind, ban.tier), ("signature", Tier::Proven), "it echoes the nonce");
}

#[test]
fn an_office_is_no_tool_because_a_packet_said_so() {
    let mut fixture = Fixture::new();
    let phone = who("192.0.2.7", 5062, "100");
    // Forged, before the phones are known.
    let forged = Who { agent: "friendly-scanner", ..who("192.0.2.7", 1_024, "x") };
    fixture.ask(&forged, "OPTIONS", "100", "", "200 OK");
    fixture.register(&phone);
    fixture.guess(&who("192.0.2.7", 5063, "101"), "mistyped");
    fixture.wait(6 * SECOND);
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
}

#[test]
fn an_office_is_no_scanner_because_a_phone_has_an_old_user() {
    let mut fixture = Fixture::new();
    fixture.register(&who("192.0.2.7", 5062, "100"));
    for n in 0..6 {
        fixture.guess(&who(&format!("203.0.113.{n}"), 5060, "1000"), "x");
    }
    fixture.bans.clear();
    fixture.guess(&who("192.0.2.7", 5063, "1000"), "was right once");
    fixture.wait(6 * SECOND);
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
}

#[test]
fn looking_for_a_way_out() {
    let mut fixture = Fixture::new();
    let caller = who("192.0.2.66", 5060, "100");
    let mut tried = 0;
    for prefix in ["00", "+", "011", "900", "9011", "8011"] {
        fixture.ask(
            &caller,
            "INVITE",
            &format!("{prefix}441234567890"),
            "",
            "407 Proxy Authentication Required",
        );
        fixture.wait(6 * SECOND);
        tried += 1;
        if !fixture.bans.is_empty() {
            break;
        }
    }
    assert_eq!((fixture.only_ban().kind, tried), ("invites", 4));
    assert!(
        fixture.only_ban().reason.contains("under 4 prefixes"),
        "{}",
        fixture.only_ban().reason
    );
}

#[test]
fn a_peer_is_never_banned_and_only_an_answer_makes_one() {
    let mut fixture = Fixture::new();
    let carrier = who("203.0.113.5", 5060, "carrier");
    let ours = |tag: &str| {
        format!(
            "OPTIONS sip:carrier SIP/2.0\r\nVia: SIP/2.0/UDP us;branch=z9hG4bKours{tag}\r\nTo: \
             <sip:a@b>{tag}\r\n\r\n"
        )
    };
    let theirs = |branch: &str| {
        format!("SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP us;branch=z9hG4bK{branch}\r\n\r\n")
    };
    fixture.event(EventKind::Response, &carrier, &theirs("ours"));
    fixture.event(EventKind::PendingRequest, &carrier, &ours(";tag=in-their-dialog"));
    fixture.event(EventKind::Response, &carrier, &theirs("ours;tag=in-their-dialog"));
    fixture.event(EventKind::PendingRequest, &carrier, &ours(""));
    fixture.event(EventKind::Response, &carrier, &theirs("other"));
    assert!(fixture.actions.is_empty(), "{:?}", fixture.actions);
    fixture.event(EventKind::Response, &carrier, &theirs("ours"));
    assert_eq!(fixture.actions, [Action::Peer(carrier.source, fixture.now + peers::PEER_NS)]);
    for n in 0..200 {
        fixture.ask(&carrier, "INVITE", &format!("004930{}", 1_000_000 + n), "", "404 Not Found");
        fixture.ask(
            &carrier,
            "INVITE",
            &format!("{}0049301234567", n % 10),
            "",
            "407 Proxy Authentication Required",
        );
        fixture.wait(SECOND);
    }
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
}

#[test]
fn a_forger_gets_nobody_banned_who_is_known() {
    let mut fixture = Fixture::new();
    let phone = who("192.0.2.7", 5062, "100");
    fixture.register(&phone);
    for n in 0..2_000_u64 {
        let forged = who("192.0.2.7", 1_024 + n as u16, &format!("{}", n % 50));
        let credentials = fixture.credentials(&forged, 5_000_000 + n, "x");
        fixture.ask(&forged, "REGISTER", &forged.user.clone(), &credentials, "401 Unauthorized");
        fixture.ask(&forged, "REGISTER", &format!("{}", 7_000 + n), "", "404 Not Found");
        fixture.ask(
            &Who { agent: "sipvicious", ..forged },
            "INVITE",
            "00441234567890",
            "",
            "404 Not Found",
        );
        fixture.wait(SECOND / 500);
    }
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
    // An uninvolved stranger is banned for a short time at most.
    for n in 0..100_u64 {
        let forged = who("198.51.100.9", 5060, "200");
        let credentials = fixture.credentials(&forged, 6_000_000 + n, &format!("{n}"));
        fixture.ask(&forged, "REGISTER", "200", &credentials, "401 Unauthorized");
    }
    assert!(
        !fixture.bans.is_empty()
            && fixture
                .bans
                .iter()
                .all(|ban| ban.tier == Tier::Unproven && ban.growth == Growth::None)
    );
}

#[test]
fn decoys_and_sprayed_users() {
    let mut config = Config::default();
    config.detect.decoy.users = vec!["honey".to_owned()];
    let mut fixture = Fixture::with(config);
    fixture.guess(&who("192.0.2.66", 5060, "honey"), "x");
    assert!(fixture.bans.is_empty(), "an acceptance may follow");
    fixture.wait(6 * SECOND);
    assert_eq!((fixture.only_ban().kind, fixture.only_ban().tier), ("decoy", Tier::Proven));

    for (day, bans) in [(0, 0), (25, 2)] {
        let mut fixture = Fixture::new();
        fixture.ask(&who("192.0.2.9", 5060, "1"), "OPTIONS", "1", "", "200 OK");
        fixture.wait(day * 3_600 * SECOND);
        for n in 0..6 {
            for password in ["x", "y"] {
                fixture.guess(&who(&format!("203.0.113.{n}"), 5060, "nobody"), password);
            }
            fixture.wait(6 * SECOND);
        }
        let kinds: Vec<_> = fixture.bans.iter().map(|ban| (ban.kind, ban.growth)).collect();
        assert_eq!(
            kinds,
            vec![("decoy", Growth::None); bans],
            "the fifth and the sixth, after the first day"
        );
    }

    let mut fixture = Fixture::new();
    fixture.register(&who("192.0.2.7", 5062, "100"));
    for n in 0..12 {
        let stranger = who(&format!("203.0.113.{n}"), 5060, "100");
        for password in ["a", "b", "c"] {
            fixture.guess(&stranger, password);
            fixture.wait(6 * SECOND);
        }
    }
    assert!(fixture.actions.iter().any(|action| matches!(action, Action::Note("sprayed", _))));
    assert!(
        fixture.bans.len() >= 2
            && fixture
                .bans
                .iter()
                .all(|ban| ban.kind == "sprayed" && ban.reason.starts_with("3 rejected")),
        "{:?}",
        fixture.bans
    );
    assert!(fixture.bans.iter().all(|ban| ban.source != who("192.0.2.7", 0, "").source));
}

#[test]
fn ipv6_is_judged_by_host_and_then_by_its_network() {
    let mut fixture = Fixture::new();
    for n in 0..10 {
        fixture.guess(&who("2001:db8:66::1", 5060, "100"), &format!("{n}"));
        fixture.wait(SECOND);
    }
    assert_eq!((fixture.only_ban().bits, fixture.only_ban().kind), (128, "rejected"));
    // Hopping between hosts, between /64s, and between /56s.
    for (bits, tries, address) in [
        (64, 20, (|n| format!("2001:db8:66::{n:x}")) as fn(u32) -> String),
        (56, 30, |n| format!("2001:db8:66:{n:x}::1")),
        (48, 40, |n| format!("2001:db8:66:{n:x}00::1")),
    ] {
        let mut fixture = Fixture::new();
        let needed = (1..100).find(|n| {
            fixture.guess(&who(&address(*n), 5060, "100"), &format!("{n}"));
            fixture.wait(SECOND);
            !fixture.bans.is_empty()
        });
        assert_eq!((needed, fixture.only_ban().bits), (Some(tries), bits));
        assert_eq!(fixture.only_ban().tier, Tier::Proven);
    }
}

#[test]
fn unseen_responses_keep_volume_from_banning() {
    let mut fixture = Fixture::new();
    for n in 0..200 {
        fixture.number += 1;
        let (phone, number) = (who(&format!("192.0.2.{n}"), 5062, "100"), fixture.number);
        fixture.event(
            EventKind::Request,
            &phone,
            &format!("REGISTER sip:pbx SIP/2.0\r\nCall-ID: {number}\r\nCSeq: 1 REGISTER\r\n\r\n"),
        );
    }
    assert!(!fixture.detector.sees_responses());
    let attacker = who("203.0.113.66", 5060, "1");
    for n in 0..100 {
        fixture.event(
            EventKind::Limited,
            &attacker,
            &format!("REGISTER sip:pbx SIP/2.0\r\nCall-ID: {n}\r\n\r\n"),
        );
        fixture.wait(SECOND / 20);
    }
    assert!(fixture.bans.is_empty());
}

#[test]
fn ten_thousand_patient_sources_are_each_judged_and_memory_is_bounded() {
    let mut config = Config::default();
    config.detect.rejected.count = 3;
    config.detect.decoy.enabled = false;
    let mut fixture = Fixture::with(config);
    let bots: Vec<Who> = (0..10_000_u32)
        .map(|n| Who {
            source: source_of(std::net::Ipv4Addr::from(0x0b00_0000 + 7 * n).into()),
            ..who("192.0.2.1", 5060, "100")
        })
        .collect();
    for round in 0..4 {
        for bot in &bots {
            fixture.guess(bot, &format!("{round}"));
            fixture.now += SECOND / 1_000;
        }
        fixture.wait(10 * SECOND);
    }
    let banned: std::collections::HashSet<_> = fixture.bans.iter().map(|ban| ban.source).collect();
    assert_eq!(banned.len(), bots.len());
    assert!(fixture.detector.watched() <= MAX_SOURCES);
}

/// Forged sources are answered, but never use what they are given, unlike real phones and
/// attackers.
#[test]
fn in_a_storm_only_those_are_remembered_who_receive_our_responses() {
    let mut fixture = Fixture::new();
    fixture.flags = IN_STORM;
    for n in 0..10_000_u32 {
        let forged = Who { source: IpKey::v4(0x0b00_0000 + n), ..who("192.0.2.1", 5060, "100") };
        fixture.ask(&forged, "REGISTER", "100", "", "401 Unauthorized");
        fixture.now += SECOND / 500;
    }
    assert_eq!(fixture.detector.watched(), 0);
    let (phone, attacker) = (who("192.0.2.7", 5062, "200"), who("192.0.2.66", 5060, "100"));
    fixture.register(&phone);
    assert!(fixture.good(&phone));
    for n in 0..10 {
        fixture.guess(&attacker, &n.to_string());
        fixture.wait(SECOND);
    }
    let ban = fixture.only_ban();
    assert_eq!((ban.source, ban.kind, ban.tier), (attacker.source, "rejected", Tier::Proven));
    assert_eq!(fixture.detector.watched(), 2);
}

#[test]
fn what_is_known_is_explained() {
    let mut fixture = Fixture::new();
    let (attacker, phone) = (who("192.0.2.66", 5060, "100"), who("192.0.2.7", 5062, "200"));
    fixture.register(&phone);
    for n in 0..4 {
        fixture.guess(&attacker, &format!("{n}"));
        fixture.wait(10 * SECOND);
    }
    let view = fixture.detector.explain(&attacker.source, fixture.now);
    let [rejected, slow] = view.evidence.as_slice() else { panic!("{:?}", view.evidence) };
    assert_eq!(
        (rejected.kind.as_str(), rejected.count, rejected.limit, rejected.per),
        ("rejected", 4.0, Some(10), Some(600))
    );
    assert!(rejected.text.contains("for \"100\", 4 with a nonce of its own"), "{}", rejected.text);
    assert!(slow.kind == "slow" && slow.count > 3.0 && slow.limit == Some(20), "{slow:?}");
    let last = view.last.unwrap();
    assert_eq!(
        (last.age, last.start_line.as_str(), last.user.as_deref()),
        (10, "REGISTER sip:pbx SIP/2.0", Some("100"))
    );
    assert!(view.proven && view.asked == 8 && view.answered == 8 && view.accepted.is_empty());

    let view = fixture.detector.explain(&phone.source, fixture.now);
    let [accepted] = view.accepted.as_slice() else { panic!("{:?}", view.accepted) };
    assert_eq!((accepted.user.as_str(), accepted.port, accepted.left), ("200", 5062, 560));
    assert_eq!(
        fixture.detector.explain(&who("192.0.2.9", 1, "").source, fixture.now),
        View::default()
    );
    // After ten minutes the window is empty; the bucket leaks slowly.
    let view = fixture.detector.explain(&attacker.source, fixture.now + 700 * SECOND);
    assert!(view.evidence.iter().all(|one| one.kind == "slow"), "{:?}", view.evidence);
}

/// A call that its caller acknowledges, with the tag that it was sent.
fn acknowledged_call(fixture: &mut Fixture, who: &Who, number: &str, status: &str) {
    fixture.number += 1;
    let n = fixture.number;
    let common = format!(
        "Via: SIP/2.0/UDP h;branch=z9hG4bK{n}\r\nFrom: <sip:{}@pbx>;tag=f{n}\r\nCall-ID: c{n}\r\n",
        who.user
    );
    let tag = format!(
        "{:032x}",
        0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835_u128.wrapping_mul(u128::from(n) | 1 << 70)
    );
    let invite = format!(
        "INVITE sip:{number}@pbx SIP/2.0\r\n{common}To: <sip:{number}@pbx>\r\nCSeq: 1 \
         INVITE\r\n\r\n"
    );
    fixture.event(EventKind::Request, who, &invite);
    let to = format!("To: <sip:{number}@pbx>;tag={tag}\r\n");
    fixture.event(
        EventKind::Answer,
        who,
        &format!("SIP/2.0 {status}\r\n{common}{to}CSeq: 1 INVITE\r\n\r\n"),
    );
    let ack = format!("ACK sip:{number}@pbx SIP/2.0\r\n{common}{to}CSeq: 1 ACK\r\n\r\n");
    fixture.event(EventKind::Request, who, &ack);
}

#[test]
fn one_number_under_four_prefixes_is_evidence_whatever_the_server_answers() {
    for status in [
        "200 OK",
        "603 Decline",
        "503 No",
        "486 Busy",
        "482 Loop",
        "480 Gone",
        "488 Media",
        "404 No",
    ] {
        let mut fixture = Fixture::new();
        let caller = who("192.0.2.66", 52_000, "100");
        for prefix in ["", "0", "00", "011", "9011"] {
            acknowledged_call(&mut fixture, &caller, &format!("{prefix}972595183136"), status);
            fixture.wait(6 * SECOND);
            if !fixture.bans.is_empty() {
                assert_eq!(prefix, "011", "{status}");
                break;
            }
        }
        assert_eq!(
            (fixture.only_ban().kind, fixture.only_ban().tier),
            ("invites", Tier::Proven),
            "{status}"
        );
    }
}

#[test]
fn a_carrier_is_served_and_wrong_numbers_do_not_ban_it() {
    let mut fixture = Fixture::new();
    let carrier = who("203.0.113.20", 5060, "+4930");
    for n in 0..120 {
        let status = if n < 7 || n % 5 == 0 { "404 Not Found" } else { "200 OK" };
        acknowledged_call(&mut fixture, &carrier, &format!("+49301234{n:03}"), status);
        fixture.wait(20 * SECOND);
    }
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
    assert!(
        fixture
            .actions
            .iter()
            .any(|action| matches!(action, Action::Served(source, _) if *source == carrier.source))
    );
    assert_eq!(fixture.detector.served(fixture.now), 1);
}

#[test]
fn an_answer_that_went_elsewhere_proves_nothing() {
    let mut fixture = Fixture::new();
    let (sender, other) = (who("192.0.2.66", 5060, "100"), who("192.0.2.67", 5060, "100"));
    for n in 0..12_u64 {
        for (m, credentials) in
            [String::new(), fixture.credentials(&sender, n, "x")].into_iter().enumerate()
        {
            let common = format!(
                "Via: SIP/2.0/UDP h;branch=z9hG4bK{n}{m};maddr=192.0.2.67\r\nFrom: \
                 <sip:100@pbx>;tag=1\r\n\
                 To: <sip:100@pbx>\r\nCall-ID: {n}\r\nCSeq: {m} REGISTER\r\n"
            );
            fixture.event(
                EventKind::Request,
                &sender,
                &format!("REGISTER sip:pbx SIP/2.0\r\n{common}{credentials}\r\n"),
            );
            let challenge = challenge("401", if m == 0 { n } else { 1_000 + n });
            fixture.event(
                EventKind::Answer,
                &other,
                &format!("SIP/2.0 401 No\r\n{common}{challenge}\r\n"),
            );
        }
        fixture.wait(2 * SECOND);
    }
    assert!(
        fixture.bans.iter().all(|ban| ban.tier == Tier::Unproven && ban.source == sender.source)
    );
    assert!(!fixture.bans.is_empty(), "it is the sender whose passwords were wrong");
}

#[test]
fn hiding_the_request_gains_nothing() {
    let mut fixture = Fixture::new();
    let hidden = who("192.0.2.66", 5060, "100");
    for n in 0..15 {
        // One that answers its challenge, and one that echoes an old nonce in a call of its own.
        let calls = if n % 2 == 0 { [n, n] } else { [n, 1_000 + n] };
        for (m, call) in calls.into_iter().enumerate() {
            let answer = format!(
                "SIP/2.0 401 No\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK{n}{m}\r\nTo: \
                 <sip:100@pbx>;tag=1\r\n\
                 Call-ID: {call}\r\nCSeq: {m} REGISTER\r\n{}\r\n",
                challenge("401", n)
            );
            fixture.event(EventKind::Answer, &hidden, &answer);
        }
        fixture.wait(2 * SECOND);
    }
    assert_eq!((fixture.bans[0].kind, fixture.bans[0].tier), ("rejected", Tier::Unproven));
    // A phone with long requests and right passwords.
    let mut fixture = Fixture::new();
    for n in 0..100 {
        for status in ["401 No", "200 OK"] {
            let answer = format!(
                "SIP/2.0 {status}\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK{n}\r\nTo: \
                 <sip:100@pbx>;tag=1\r\n\
                 Call-ID: its-own\r\nCSeq: {n} REGISTER\r\n{}\r\n",
                challenge(status, n)
            );
            fixture.event(EventKind::Answer, &hidden, &answer);
        }
        fixture.wait(60 * SECOND);
    }
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
}

#[test]
fn own_account_at_a_port_does_not_cover_guesses_for_others_from_it() {
    let mut fixture = Fixture::new();
    let own = who("192.0.2.66", 5062, "mallory");
    fixture.register(&own);
    let tries = (0..40).find(|n| {
        fixture.guess(&who("192.0.2.66", 5062, ["a", "b", "c", "d"][n % 4]), &n.to_string());
        fixture.wait(SECOND / 20);
        !fixture.bans.is_empty()
    });
    assert!(tries.is_some_and(|tries| tries < 30), "{tries:?}");
    assert_eq!((fixture.only_ban().port, fixture.only_ban().tier), (Some(5062), Tier::Proven));
    assert!(!fixture.good(&own), "the offending port goes first");
    fixture.detector.banned(own.source, Some(5062), fixture.now + 600 * SECOND, fixture.now);
    fixture.register(&own);
    assert!(!fixture.good(&own), "and earns nothing while the ban lasts");
}

#[test]
fn a_nonce_that_is_echoed_elsewhere_makes_nobody_good() {
    let mut fixture = Fixture::new();
    let caller = who("192.0.2.66", 5062, "100");
    fixture.ask(&caller, "REGISTER", "100", "", "401 Unauthorized");
    let credentials = fixture.credentials(&caller, fixture.number, "made up");
    for method in ["INVITE", "MESSAGE", "SUBSCRIBE"] {
        fixture.ask(&caller, method, "200", &credentials, "200 OK");
        assert!(!fixture.good(&caller), "{method}");
    }
}

#[test]
fn a_cancelled_call_was_accepted_only_if_it_rang() {
    // A server takes a call, says 100 and is cancelled before it looks at the password.
    for (provisional, good) in [
        ("100 Trying", false),
        ("181 Call Is Being Forwarded", true),
        ("183 Session Progress", true),
        ("199 Early Dialog Terminated", false),
    ] {
        let mut fixture = Fixture::new();
        let caller = who("192.0.2.66", 5062, "100");
        fixture.ask(&caller, "INVITE", "200", "", "407 Proxy Authentication Required");
        let call = fixture.number;
        let credentials = fixture.credentials(&caller, call, "any");
        let common = format!(
            "Via: SIP/2.0/UDP h;branch=z9hG4bKcancelled\r\nFrom: <sip:100@pbx>;tag=f{call}\r\n\
             To: <sip:200@pbx>\r\nCall-ID: c{call}\r\nCSeq: 2 INVITE\r\n"
        );
        let agent = "User-Agent: Phone 1.0";
        let request = format!("INVITE sip:200@pbx SIP/2.0\r\n{common}{agent}\r\n{credentials}\r\n");
        fixture.event(EventKind::Request, &caller, &request);
        for status in [provisional, "487 Request Terminated"] {
            let answer = format!("SIP/2.0 {status}\r\n{common}\r\n");
            fixture.event(EventKind::Answer, &caller, &answer);
        }
        assert_eq!(fixture.good(&caller), good, "{provisional}");
    }
}

#[test]
fn responses_that_arrived_before_prove_nothing() {
    let mut fixture = Fixture::new();
    let (victim, attacker) = (who("192.0.2.7", 5062, "100"), who("192.0.2.66", 5060, "x"));
    fixture.ask(&victim, "REGISTER", "100", "", "401 Unauthorized");
    let call = fixture.number;
    let common = format!(
        "Via: SIP/2.0/UDP h;branch=z9hG4bKforged\r\nFrom: <sip:100@pbx>;tag=f{call}\r\nTo: \
         <sip:100@pbx>\r\n\
         Call-ID: c{call}\r\nCSeq: 2 REGISTER\r\n"
    );
    let credentials = fixture.credentials(&victim, call, "wrong");
    fixture.event(
        EventKind::Request,
        &victim,
        &format!("REGISTER sip:pbx SIP/2.0\r\n{common}{credentials}\r\n"),
    );
    fixture.event(
        EventKind::Response,
        &attacker,
        &format!("SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP pbx;branch=z9hG4bKours\r\n{common}\r\n"),
    );
    fixture.event(EventKind::Answer, &victim, &format!("SIP/2.0 200 OK\r\n{common}\r\n"));
    assert!(!fixture.good(&victim));
}

#[test]
fn one_account_that_fails_at_three_addresses_excuses_no_stranger() {
    let mut fixture = Fixture::new();
    let own: Vec<Who> = (1..=3).map(|n| who(&format!("192.0.2.{n}"), 5062, "mallory")).collect();
    let others: Vec<Who> =
        (0..20).map(|n| who(&format!("203.0.113.{n}"), 5062, &format!("{n}"))).collect();
    own.iter().chain(&others).for_each(|phone| fixture.register(phone));
    own.iter().cycle().take(6).for_each(|phone| fixture.guess(phone, "wrong"));
    let stranger = who("198.51.100.66", 5060, "5");
    let tries = (1..40).find(|n| {
        fixture.guess(&stranger, &n.to_string());
        fixture.wait(SECOND);
        !fixture.bans.is_empty()
    });
    assert_eq!((tries, fixture.only_ban().source), (Some(10), stranger.source));
}

#[test]
fn a_users_typos_on_the_road_while_it_is_sprayed_ban_nobody() {
    let mut fixture = Fixture::new();
    fixture.register(&who("192.0.2.7", 5062, "100"));
    for n in 0..40 {
        fixture.guess(&who(&format!("203.0.113.{n}"), 5060, "100"), "x");
        fixture.wait(60 * SECOND);
    }
    let hotel = who("198.51.100.7", 5062, "100");
    fixture.guess(&hotel, "typo");
    fixture.wait(10 * SECOND);
    fixture.guess(&hotel, "typo again");
    fixture.wait(10 * SECOND);
    fixture.register(&hotel);
    fixture.wait(10 * SECOND);
    assert!(fixture.bans.is_empty() && fixture.good(&hotel), "{:?}", fixture.bans);
    assert!(fixture.actions.iter().any(|action| matches!(action, Action::Note("sprayed", _))));
}

#[test]
fn forged_tries_do_not_spray_a_user_for_those_who_are_there() {
    let mut fixture = Fixture::new();
    fixture.register(&who("192.0.2.7", 5062, "100"));
    for n in 0..200_u64 {
        let forged = who(&format!("203.0.113.{n}"), 5060, "100");
        let credentials = fixture.credentials(&forged, 7_000_000 + n, "x");
        fixture.ask(&forged, "REGISTER", "100", &credentials, "401 Unauthorized");
        fixture.wait(6 * SECOND);
    }
    fixture.bans.clear();
    let owner = who("198.51.100.7", 5062, "100");
    for _ in 0..4 {
        fixture.guess(&owner, "typo");
        fixture.wait(10 * SECOND);
    }
    assert!(fixture.bans.is_empty(), "{:?}", fixture.bans);
}

#[test]
fn forgotten_phones_take_no_office_down_whatever_they_do() {
    // One port each or changing ones, slow or in bursts, answered with 401 or 403.
    for (hops, burst, status) in
        [(false, 1, "401 No"), (true, 1, "401 No"), (false, 3, "401 No"), (false, 1, "403 No")]
    {
        let mut fixture = Fixture::new();
        let good = [who("192.0.2.7", 10_000, "100"), who("192.0.2.7", 10_001, "101")];
        for round in 0..60_u16 {
            if round % 5 == 0 {
                good.iter().for_each(|phone| fixture.register(phone));
            }
            for n in 0..12_u16 {
                let port = if hops { 20_000 + 20 * round + n } else { 20_000 + n };
                let phone = who("192.0.2.7", port, &format!("{}", 700 + n));
                for _ in 0..burst {
                    fixture.ask(&phone, "REGISTER", &phone.user, "", "401 Unauthorized");
                    let credentials = fixture.credentials(&phone, fixture.number, "old");
                    fixture.ask(&phone, "REGISTER", &phone.user, &credentials, status);
                    fixture.wait(SECOND);
                }
                fixture.wait(4 * SECOND);
            }
        }
        let what = format!("hops {hops}, burst {burst}, {status}: {:?}", fixture.bans);
        assert!(
            fixture.bans.iter().all(|ban| ban.port.is_some_and(|port| port >= 20_000)),
            "{what}"
        );
        assert!(!fixture.bans.is_empty() && good.iter().all(|phone| fixture.good(phone)), "{what}");
    }
}

/// Nobody was accepted there yet: each phone has its port, all have one, or another one each time,
/// as over TCP.
#[test]
fn forgotten_phones_of_a_cold_office_are_judged_one_by_one() {
    let mut variants = Vec::new();
    for phones in [2, 5, 16] {
        for pace in [20, 60, 300] {
            variants
                .extend(["own", "one", "new"].map(|ports| (Transport::Udp, phones, pace, ports)));
            variants.extend([Transport::Tcp, Transport::Tls].map(|by| (by, phones, pace, "new")));
        }
    }
    for (transport, phones, pace, ports) in variants {
        let mut fixture = Fixture { transport, ..Fixture::new() };
        // As many tries over TLS as are free.
        let rounds = if transport == Transport::Tls { 90 / phones } else { 40 };
        for round in 0..rounds {
            forgotten_phones(&mut fixture, phones, ports, round);
            fixture.wait(pace * SECOND);
        }
        let what = format!("{transport:?}, {phones}, {pace} s, {ports}: {:?}", fixture.bans);
        let is_fine = |ban: &Finding| ban.port.is_some() && ban.kind == "misconfigured";
        assert!(fixture.bans.iter().all(is_fine), "{what}");
        let good = who("192.0.2.7", 10_000, "new");
        fixture.register(&good);
        assert!(fixture.good(&good), "{what}");
    }
}

/// A try of each forgotten phone of a cold office.
fn forgotten_phones(fixture: &mut Fixture, phones: u16, ports: &str, round: u16) {
    for n in 0..phones {
        let port = match ports {
            "own" => 20_000 + n,
            "one" => 5060,
            _ => 20_000 + round * phones + n,
        };
        fixture.guess(&who("192.0.2.7", port, &format!("old-{n}")), "old");
    }
}

#[test]
fn forgotten_phones_of_a_cold_office_outlive_a_restart() {
    let mut fixture = Fixture::new();
    for round in 0..15 {
        forgotten_phones(&mut fixture, 5, "own", round);
        fixture.wait(60 * SECOND);
    }
    let kept = fixture.detector.evidence(fixture.now, 0).unwrap();
    let mut again = Fixture { now: fixture.now, number: 1_000, ..Fixture::new() };
    again.detector.recall(&kept, again.now, 0).unwrap();
    for round in 0..15 {
        forgotten_phones(&mut again, 5, "own", round);
        again.wait(60 * SECOND);
    }
    assert!(!again.bans.is_empty());
    assert!(again.bans.iter().all(|ban| ban.port.is_some()), "{:?}", again.bans);
}

/// What looks like forgotten phones of a cold office, and is something else.
#[test]
fn guessers_that_look_like_a_cold_office_are_banned_by_their_address() {
    // One of the users is tried faster than by a phone.
    let mut fixture = Fixture::new();
    for n in 0..60 {
        let user = if n % 10 == 0 { format!("old-{}", n % 4) } else { "101".to_owned() };
        fixture.guess(&who("192.0.2.66", 5060, &user), &n.to_string());
        fixture.wait(2 * SECOND);
    }
    let by_address = |fixture: &Fixture, kind: &str| {
        fixture.bans.iter().any(|ban| ban.port.is_none() && ban.kind == kind)
    };
    assert!(by_address(&fixture, "rejected"), "{:?}", fixture.bans);
    // More users than an office has.
    let mut fixture = Fixture::new();
    for round in 0..3 {
        forgotten_phones(&mut fixture, 17, "own", round);
        fixture.wait(60 * SECOND);
    }
    assert!(by_address(&fixture, "rejected"), "{:?}", fixture.bans);
    // Over TLS, where a ban of a port bounds nothing: by more than a hundred tries.
    let mut fixture = Fixture { transport: Transport::Tls, ..Fixture::new() };
    let rounds = (0..100).find(|round| {
        forgotten_phones(&mut fixture, 16, "new", *round);
        fixture.wait(20 * SECOND);
        by_address(&fixture, "misconfigured")
    });
    assert_eq!(rounds, Some(6));
    let growth = fixture.bans.iter().find(|ban| ban.port.is_none()).map(|ban| ban.growth);
    assert_eq!(growth, Some(Growth::Mild { times: 4 }));
    // One of many that try a user who is accepted elsewhere, beside another user.
    let mut fixture = Fixture::new();
    fixture.register(&who("192.0.2.7", 5062, "100"));
    for n in 0..40 {
        fixture.guess(&who(&format!("203.0.113.{}", n % 10), 5060, "100"), "x");
        fixture.guess(&who(&format!("203.0.113.{}", n % 10), 5061, "200"), "x");
        fixture.wait(60 * SECOND);
    }
    assert!(by_address(&fixture, "sprayed"), "{:?}", fixture.bans);
}

/// A phone whose user has moved makes its user sprayed, which bans no office.
#[test]
fn a_forgotten_phone_whose_user_has_moved_does_not_spray() {
    let mut fixture = Fixture::new();
    let moved = who("203.0.113.7", 5062, "old-0");
    for round in 0..40 {
        if round % 15 == 0 {
            fixture.register(&moved);
        }
        forgotten_phones(&mut fixture, 2, "own", round);
        fixture.wait(60 * SECOND);
    }
    assert!(fixture.actions.iter().any(|action| matches!(action, Action::Note("sprayed", _))));
    assert!(fixture.bans.iter().all(|ban| ban.port.is_some()), "{:?}", fixture.bans);
    assert!(!fixture.bans.is_empty());
}

/// Tries that anybody may have sent lead to the ladder there, as in any office.
#[test]
fn forged_tries_ban_no_cold_office() {
    let mut fixture = Fixture::new();
    for round in 0..30 {
        forgotten_phones(&mut fixture, 3, "own", round);
        for n in 0..3_u64 {
            let forged = who("192.0.2.7", 30_000, "101");
            let credentials = fixture.credentials(&forged, 7_000_000 + n, "x");
            fixture.ask(&forged, "REGISTER", "101", &credentials, "401 Unauthorized");
        }
        fixture.wait(60 * SECOND);
    }
    assert!(fixture.bans.iter().all(|ban| ban.port.is_some()), "{:?}", fixture.bans);
    assert!(fixture.actions.iter().any(|action| matches!(action, Action::Meter(_))));
}

#[test]
fn hopping_from_port_to_port_behind_an_account_does_not_hide_a_guesser() {
    for users in [1, 2, 5] {
        let mut fixture = Fixture::new();
        let own = who("192.0.2.66", 5062, "mallory");
        fixture.register(&own);
        let tries = (0..100_u16).find(|n| {
            fixture
                .guess(&who("192.0.2.66", 20_000 + n, &format!("{}", n % users)), &n.to_string());
            fixture.wait(SECOND);
            fixture.bans.iter().any(|ban| ban.port.is_none())
        });
        assert!(tries.is_some_and(|tries| tries <= 30), "{users}: {tries:?}");
    }
}

#[test]
fn a_request_that_the_host_throws_away_is_none() {
    for (checksum, good) in [(0_u16, true), (0x1234, false)] {
        let mut fixture = Fixture::new();
        let phone = who("192.0.2.7", 5062, "100");
        fixture.checksum = Some(checksum);
        fixture.register(&phone);
        assert_eq!(fixture.good(&phone), good, "{checksum:#x}");
    }
}

#[test]
fn a_network_whose_hosts_share_their_nonces_is_banned_as_one() {
    let mut fixture = Fixture::new();
    let needed = (1..100_u32).find(|n| {
        let host = |n: u32| who(&format!("2001:db8:77::{n:x}"), 5060, "101");
        fixture.ask(&host(*n), "REGISTER", "101", "", "401 Unauthorized");
        let other = host(n + 1);
        let credentials = fixture.credentials(&other, fixture.number, "x");
        fixture.ask(&other, "REGISTER", "101", &credentials, "401 Unauthorized");
        fixture.wait(6 * SECOND);
        !fixture.bans.is_empty()
    });
    assert!(needed.is_some_and(|needed| needed <= 21), "{needed:?}");
    assert_eq!((fixture.only_ban().bits, fixture.only_ban().tier), (64, Tier::Proven));
}
