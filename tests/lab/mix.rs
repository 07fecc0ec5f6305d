//! Synthetic traffic of a registrar, as in a capture: phones that register, are called and send
//! keepalives, and attackers between them. Nothing is sent or waited for.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::pcap::{Timed, datagram};

/// The registrar.
pub const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 5060);
/// Guesses passwords as fast as svcrack.
pub const FAST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
/// Guesses a password every 50 s.
pub const SLOW: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 67);
/// Tries to call at the victim's cost.
pub const FRAUD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 68);
/// Occasionally scans for servers.
pub const SCANNER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 69);
/// A phone with an outdated password.
pub const STALE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 250);

/// 2026-01-05 00:00:00 UTC, in nanoseconds since 1970.
pub const START: u64 = 1_767_571_200_000_000_000;

const SECOND: u64 = 1_000_000_000;
/// Response time in nanoseconds.
const ANSWER: u64 = 3_000_000;

/// Composition of the traffic.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Duration.
    pub length: Duration,
    /// Number of phones, each with its own address.
    pub phones: u32,
    /// Registration interval of each.
    pub registers: Duration,
    /// Keepalive interval of each.
    pub keepalives: Duration,
    /// Call interval of each.
    pub calls: Duration,
    /// Media datagrams per call, in both directions.
    pub media: u32,
    /// Whether the three attackers, the scanner and the phone with an old password are included.
    pub attackers: bool,
}

impl Mix {
    /// Its packets in order of time.
    pub fn packets(&self) -> Vec<Timed> {
        let mut tape = Tape::default();
        let end = START + self.length.as_nanos() as u64;
        for number in 0..self.phones {
            let phone = Phone::new(number);
            // Spread over the interval.
            let offset = |every: Duration| {
                START + every.as_nanos() as u64 * u64::from(number) / u64::from(self.phones)
            };
            each(offset(self.registers), end, self.registers, |at, turn| {
                tape.register(at, &phone, turn, true)
            });
            each(offset(self.keepalives), end, self.keepalives, |at, _| {
                tape.arrives(at, phone.from, b"\r\n\r\n")
            });
            each(offset(self.calls) + 7 * SECOND, end, self.calls, |at, turn| {
                tape.call(at, &phone, turn, self.media)
            });
        }
        if self.attackers {
            tape.attack(end);
        }
        tape.packets.sort_by_key(|(at, _)| *at);
        tape.packets
    }
}

/// Calls `what` with a time and a number at each interval.
fn each(from: u64, to: u64, every: Duration, mut what: impl FnMut(u64, u64)) {
    let step = (every.as_nanos() as u64).max(1);
    (0..)
        .map(|turn| (from + turn * step, turn))
        .take_while(|(at, _)| *at < to)
        .for_each(|(at, turn)| what(at, turn));
}

/// A participant.
struct Phone {
    from: SocketAddrV4,
    user: String,
    agent: &'static str,
}

impl Phone {
    fn new(number: u32) -> Self {
        let from = SocketAddrV4::new(
            Ipv4Addr::from(0x0a00_0001 + number),
            20_000 + (number % 30_000) as u16,
        );
        Self { from, user: format!("{}", 1_000 + number), agent: "lab phone" }
    }

    fn at(address: Ipv4Addr, user: &str) -> Self {
        Self { from: SocketAddrV4::new(address, 5_060), user: user.to_owned(), agent: "lab phone" }
    }
}

#[derive(Default)]
struct Tape {
    packets: Vec<Timed>,
}

impl Tape {
    fn arrives(&mut self, at: u64, from: SocketAddrV4, payload: &[u8]) {
        self.packets.push((at, datagram(from, SERVER, payload)));
    }

    /// A request, and the registrar's responses a moment later.
    fn exchange(&mut self, at: u64, phone: &Phone, request: &Request<'_>, answers: &[&str]) {
        let Phone { from, user, agent } = phone;
        let Request { method, target, call_id, sequence, headers } = request;
        let common = format!(
            "Via: SIP/2.0/UDP {from};branch=z9hG4bK{call_id}-{sequence};rport\r\n\
             From: <sip:{user}@lab.example>;tag=t{call_id}\r\n\
             To: <sip:{target}@lab.example>\r\n\
             Call-ID: {call_id}@lab.example\r\n\
             CSeq: {sequence} {method}\r\n"
        );
        let text = format!(
            "{method} sip:{target}@lab.example SIP/2.0\r\n{common}Max-Forwards: 70\r\nContact: \
             <sip:{user}@{from}>\r\n\
             User-Agent: {agent}\r\n{headers}Content-Length: 0\r\n\r\n"
        );
        self.arrives(at, *from, text.as_bytes());
        for (number, answer) in (1..).zip(answers) {
            let (line, headers) = answer.split_once('\n').unwrap_or((answer, ""));
            let text = format!("SIP/2.0 {line}\r\n{common}{headers}Content-Length: 0\r\n\r\n");
            self.packets.push((at + number * ANSWER, datagram(SERVER, *from, text.as_bytes())));
        }
    }

    /// A request that is challenged, then sent with credentials.
    fn authorized(
        &mut self,
        at: u64,
        phone: &Phone,
        request: Request<'_>,
        guess: u64,
        answers: &[&str],
    ) {
        let nonce = format!("{:x}{:x}", at, u32::from(*phone.from.ip()));
        let challenge = format!(
            "401 Unauthorized\nWWW-Authenticate: Digest realm=\"lab.example\", \
             nonce=\"{nonce}\"\r\n"
        );
        self.exchange(at, phone, &request, &[&challenge]);
        let headers = format!(
            "Authorization: Digest username=\"{}\", realm=\"lab.example\", nonce=\"{nonce}\", \
             uri=\"sip:lab.example\", response=\"{guess:032x}\"\r\n{}",
            phone.user, request.headers
        );
        let again = Request { sequence: request.sequence + 1, headers: &headers, ..request };
        self.exchange(at + 2 * ANSWER, phone, &again, answers);
    }

    fn register(&mut self, at: u64, phone: &Phone, turn: u64, is_right: bool) {
        let call_id = format!("r{turn}-{}", phone.from.ip());
        let headers = "Expires: 3600\r\n";
        let request = Request {
            method: "REGISTER",
            target: &phone.user,
            call_id: &call_id,
            sequence: 1,
            headers,
        };
        let answer = if is_right {
            "200 OK\nExpires: 3600\r\n"
        } else {
            "401 Unauthorized\nWWW-Authenticate: Digest realm=\"lab.example\", nonce=\"again\"\r\n"
        };
        self.authorized(at, phone, request, turn, &[answer]);
    }

    fn call(&mut self, at: u64, phone: &Phone, turn: u64, media: u32) {
        let call_id = format!("c{turn}-{}", phone.from.ip());
        let request = |method, sequence| Request {
            method,
            target: "2000",
            call_id: &call_id,
            sequence,
            headers: "",
        };
        self.authorized(
            at,
            phone,
            request("INVITE", 1),
            turn,
            &["100 Trying", "180 Ringing", "200 OK"],
        );
        self.exchange(at + 6 * ANSWER, phone, &request("ACK", 2), &[]);
        let (here, there) =
            (SocketAddrV4::new(*phone.from.ip(), 30_000), SocketAddrV4::new(*SERVER.ip(), 40_000));
        for number in 0..u64::from(media) {
            let at = at + 7 * ANSWER + number * SECOND / 50;
            self.packets.push((at, datagram(here, there, &[0x80; 172])));
            self.packets.push((at + 1, datagram(there, here, &[0x80; 172])));
        }
        self.exchange(
            at + 8 * ANSWER + u64::from(media) * SECOND / 50,
            phone,
            &request("BYE", 3),
            &["200 OK"],
        );
    }

    fn attack(&mut self, end: u64) {
        let hour = 3_600 * SECOND;
        let fast = Phone::at(FAST, "1007");
        let every = Duration::from_millis(20);
        each(START + 9 * hour, (START + 9 * hour + 30 * SECOND).min(end), every, |at, turn| {
            self.register(at, &fast, turn, false);
        });
        each(START + 2 * hour, (START + 5 * hour).min(end), Duration::from_secs(50), |at, turn| {
            self.register(at, &Phone::at(SLOW, &format!("{}", 1_100 + turn % 3)), turn, false);
        });
        let fraud = Phone::at(FRAUD, "100");
        each(
            START + 14 * hour,
            (START + 15 * hour).min(end),
            Duration::from_secs(45),
            |at, turn| {
                let (target, call_id) = (
                    format!("{}442071838750", ["00", "011", "9011", "900", "+"][turn as usize % 5]),
                    format!("f{turn}"),
                );
                let request = Request {
                    method: "INVITE",
                    target: &target,
                    call_id: &call_id,
                    sequence: 1,
                    headers: "",
                };
                self.exchange(at, &fraud, &request, &["403 Forbidden"]);
            },
        );
        let scanner = Phone { agent: "friendly-scanner", ..Phone::at(SCANNER, "100") };
        each(START + hour, end, Duration::from_secs(8 * 3_600), |at, turn| {
            let call_id = format!("s{turn}");
            let request = Request {
                method: "OPTIONS",
                target: "100",
                call_id: &call_id,
                sequence: 1,
                headers: "",
            };
            self.exchange(at, &scanner, &request, &["200 OK"]);
        });
        let stale = Phone::at(STALE, "1900");
        each(START + 60 * SECOND, end, Duration::from_secs(300), |at, turn| {
            self.register(at, &stale, turn, false)
        });
    }
}

/// A request without its sender.
#[derive(Clone, Copy)]
struct Request<'a> {
    method: &'a str,
    target: &'a str,
    call_id: &'a str,
    sequence: u32,
    headers: &'a str,
}
