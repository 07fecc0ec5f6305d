//! Conversations with a registrar, written down packet by packet.

use std::net::SocketAddr;

use super::SECOND;
use crate::draw::Draw;
use crate::pcap::{Timed, datagram};

/// From a packet to the next one of a transaction, in nanoseconds.
const STEP: u64 = 4_000_000;

/// Somebody who talks to the registrar.
#[derive(Debug, Clone)]
pub struct Party {
    /// From here.
    pub at: SocketAddr,
    /// With this name.
    pub user: String,
    /// And this User-Agent.
    pub agent: &'static str,
    /// The nonce that it was given last.
    pub nonce: Option<String>,
}

impl Party {
    /// One with a phone.
    pub fn new(at: impl Into<SocketAddr>, user: &str) -> Self {
        Self { at: at.into(), user: user.to_owned(), agent: "Deskphone 4.2.1", nonce: None }
    }

    /// With another User-Agent.
    pub fn with(self, agent: &'static str) -> Self {
        Self { agent, ..self }
    }
}

/// A request of a dialog or outside of one.
#[derive(Debug, Clone)]
pub struct Request {
    method: &'static str,
    target: String,
    call_id: String,
    sequence: u32,
    /// The To-tag, in a dialog.
    tag: Option<String>,
    headers: String,
}

/// What the registrar says to a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is right.
    Right,
    /// It is wrong, and here is another nonce.
    Wrong,
    /// It is wrong, with 403.
    Forbidden,
}

/// How a call ends that the registrar takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is answered, and lasts so many seconds.
    Talk(u64),
    /// It rings, and is answered by nobody or refused, with this status line.
    Fails(&'static str),
    /// It is refused at once, with this status line.
    Refused(&'static str),
}

/// How a carrier's call goes that the registrar takes without credentials.
#[derive(Debug, Clone, Copy)]
pub struct Delivery {
    /// The only provisional response.
    pub provisional: &'static str,
    /// From there to the final response, in nanoseconds.
    pub rings: u64,
    /// How it ends.
    pub answer: Answer,
}

/// The recorder.
#[derive(Debug)]
pub struct Tape {
    packets: Vec<Timed>,
    servers: [SocketAddr; 2],
    /// Numbers what has to be different each time.
    count: u64,
    random: Draw,
}

impl Tape {
    /// Of a registrar with an address of each family.
    pub fn new(v4: SocketAddr, v6: SocketAddr) -> Self {
        Self { packets: Vec::new(), servers: [v4, v6], count: 0, random: Draw::new(99) }
    }

    /// All packets in the order of time.
    pub fn finish(mut self) -> Vec<Timed> {
        self.packets.sort_by_key(|(at, _)| *at);
        self.packets
    }

    fn server(&self, at: &SocketAddr) -> SocketAddr {
        self.servers[usize::from(at.is_ipv6())]
    }

    /// Something that is in nobody's power to guess.
    fn token(&mut self) -> String {
        self.count += 1;
        format!("{:016x}{:04x}", self.random.number(), self.count & 0xffff)
    }

    /// A request outside of a dialog.
    pub fn request(&mut self, method: &'static str, target: &str) -> Request {
        let call_id = self.token();
        Request {
            method,
            target: target.to_owned(),
            call_id,
            sequence: 1,
            tag: None,
            headers: String::new(),
        }
    }

    /// A keepalive of two line ends.
    pub fn keepalive(&mut self, at: u64, party: &Party) {
        self.packets.push((at, datagram(party.at, self.server(&party.at), b"\r\n\r\n")));
    }

    /// The headers that request and response share.
    fn common(party: &Party, request: &Request, tag: Option<&str>) -> String {
        let Party { at, user, .. } = party;
        let Request { method, target, call_id, sequence, .. } = request;
        let tag =
            tag.or(request.tag.as_deref()).map(|tag| format!(";tag={tag}")).unwrap_or_default();
        // An acknowledgement of a refusal belongs to the transaction that was refused.
        let branch = if *method == "ACK" && request.tag.is_none() { "INVITE" } else { method };
        format!(
            "Via: SIP/2.0/UDP {at};branch=z9hG4bK{call_id}{sequence}{branch};rport\r\n\
             From: <sip:{user}@pbx.example>;tag=f{call_id}\r\n\
             To: <sip:{target}@pbx.example>{tag}\r\n\
             Call-ID: {call_id}\r\n\
             CSeq: {sequence} {method}\r\n"
        )
    }

    /// A request arrives.
    pub fn asks(&mut self, at: u64, party: &Party, request: &Request) {
        let common = Self::common(party, request, None);
        let Party { at: from, user, agent, .. } = party;
        let Request { method, target, headers, .. } = request;
        let uri = if *method == "REGISTER" {
            "sip:pbx.example".to_owned()
        } else {
            format!("sip:{target}@pbx.example")
        };
        let text = format!(
            "{method} {uri} SIP/2.0\r\n{common}Max-Forwards: 70\r\nContact: <sip:{user}@{from}>\r\n\
             User-Agent: {agent}\r\n{headers}Content-Length: 0\r\n\r\n"
        );
        self.packets.push((at, datagram(*from, self.server(from), text.as_bytes())));
    }

    /// A response leaves.
    pub fn answers(
        &mut self,
        at: u64,
        party: &Party,
        request: &Request,
        line: &str,
        tag: Option<&str>,
        headers: &str,
    ) {
        let common = Self::common(party, request, tag);
        let text =
            format!("SIP/2.0 {line}\r\n{common}Server: pbx\r\n{headers}Content-Length: 0\r\n\r\n");
        self.packets.push((at, datagram(self.server(&party.at), party.at, text.as_bytes())));
    }

    /// The registrar asks something of a party that registered, which answers.
    pub fn qualify(&mut self, at: u64, party: &Party, method: &str) {
        let (call_id, server) = (self.token(), self.server(&party.at));
        let common = format!(
            "Via: SIP/2.0/UDP {server};branch=z9hG4bK{call_id}\r\nFrom: \
             <sip:pbx@pbx.example>;tag=s{call_id}\r\n\
             To: <sip:{}@{}>\r\nCall-ID: {call_id}\r\nCSeq: 7 {method}\r\n",
            party.user, party.at
        );
        let ask = format!(
            "{method} sip:{}@{} SIP/2.0\r\n{common}Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
            party.user, party.at
        );
        let say = format!(
            "SIP/2.0 200 OK\r\n{}Content-Length: 0\r\n\r\n",
            common.replace("\r\nCall-ID", ";tag=p1\r\nCall-ID")
        );
        self.packets.push((at, datagram(server, party.at, ask.as_bytes())));
        self.packets.push((at + STEP, datagram(party.at, server, say.as_bytes())));
    }

    /// The header of a challenge.
    fn challenge(nonce: &str, stale: bool) -> String {
        let stale = if stale { ", stale=true" } else { "" };
        format!(
            "WWW-Authenticate: Digest realm=\"pbx.example\", nonce=\"{nonce}\"{stale}, \
             algorithm=MD5\r\n"
        )
    }

    /// Credentials for a request; the response is as good as any.
    fn credentials(&mut self, user: &str, nonce: &str) -> String {
        format!(
            "Authorization: Digest username=\"{user}\", realm=\"pbx.example\", nonce=\"{nonce}\", \
             uri=\"sip:pbx.example\", response=\"{:016x}{:016x}\", algorithm=MD5\r\n",
            self.random.number(),
            self.random.number()
        )
    }

    /// A request with credentials, after a challenge unless the party has a nonce that it uses
    /// again. Returns the request that the verdict is about, and when; it was not answered yet.
    fn authorizes(&mut self, at: u64, party: &mut Party, mut request: Request) -> (u64, Request) {
        let nonce = self.token();
        self.asks(at, party, &request);
        let tag = self.token();
        self.answers(
            at + STEP,
            party,
            &request,
            "401 Unauthorized",
            Some(&tag),
            &Self::challenge(&nonce, false),
        );
        if request.method == "INVITE" {
            let ack = Request { method: "ACK", ..request.clone() };
            self.asks(at + 2 * STEP, party, &ack);
        }
        request.sequence += 1;
        request.headers.push_str(&self.credentials(&party.user.clone(), &nonce));
        party.nonce = Some(nonce);
        self.asks(at + 3 * STEP, party, &request);
        (at + 4 * STEP, request)
    }

    /// A registration.
    pub fn register(&mut self, at: u64, party: &mut Party, verdict: Verdict) {
        let mut request = self.request("REGISTER", &party.user.clone());
        request.headers = "Expires: 3600\r\n".to_owned();
        let (at, request) = self.authorizes(at, party, request);
        self.judge(at, party, &request, verdict);
    }

    /// A registration that begins with the nonce of the one before, which is too old by now: the
    /// registrar may say so, or not.
    pub fn register_again(&mut self, at: u64, party: &mut Party, says_stale: bool) {
        let Some(old) = party.nonce.clone() else {
            return self.register(at, party, Verdict::Right);
        };
        let mut request = self.request("REGISTER", &party.user.clone());
        request.headers = "Expires: 3600\r\n".to_owned();
        let mut first = request.clone();
        first.headers.push_str(&self.credentials(&party.user.clone(), &old));
        self.asks(at, party, &first);
        let (nonce, tag) = (self.token(), self.token());
        let challenge = Self::challenge(&nonce, says_stale);
        self.answers(at + STEP, party, &first, "401 Unauthorized", Some(&tag), &challenge);
        request.sequence += 1;
        request.headers.push_str(&self.credentials(&party.user.clone(), &nonce));
        party.nonce = Some(nonce);
        self.asks(at + 2 * STEP, party, &request);
        self.judge(at + 3 * STEP, party, &request, Verdict::Right);
    }

    fn judge(&mut self, at: u64, party: &Party, request: &Request, verdict: Verdict) {
        let (tag, nonce) = (self.token(), self.token());
        match verdict {
            Verdict::Right => {
                self.answers(at, party, request, "200 OK", Some(&tag), "Expires: 3600\r\n")
            }
            Verdict::Wrong => {
                self.answers(
                    at,
                    party,
                    request,
                    "401 Unauthorized",
                    Some(&tag),
                    &Self::challenge(&nonce, false),
                );
            }
            Verdict::Forbidden => self.answers(at, party, request, "403 Forbidden", Some(&tag), ""),
        }
    }

    /// A SUBSCRIBE with credentials, which ends with this status line; if that is a success, the
    /// registrar notifies.
    pub fn subscribe(&mut self, at: u64, party: &mut Party, target: &str, line: &str) {
        let mut request = self.request("SUBSCRIBE", target);
        request.headers = "Event: dialog\r\nExpires: 1800\r\n".to_owned();
        let (at, request) = self.authorizes(at, party, request);
        let tag = self.token();
        self.answers(at, party, &request, line, Some(&tag), "");
        if line.starts_with('2') {
            self.qualify(at + STEP, party, "NOTIFY");
        }
    }

    /// A request without credentials that gets this answer; one line without a dialog.
    pub fn plain(
        &mut self,
        at: u64,
        party: &Party,
        method: &'static str,
        target: &str,
        line: &str,
    ) {
        let request = self.request(method, target);
        let tag = self.token();
        self.asks(at, party, &request);
        self.answers(at + STEP, party, &request, line, Some(&tag), "");
        if method == "INVITE" {
            let ack = Request { method: "ACK", ..request };
            self.asks(at + 2 * STEP, party, &ack);
        }
    }

    /// A call of somebody who is asked for credentials, or is not.
    pub fn call(
        &mut self,
        at: u64,
        party: &mut Party,
        target: &str,
        authorized: bool,
        answer: Answer,
    ) {
        let request = self.request("INVITE", target);
        let (at, request) = if authorized {
            self.authorizes(at, party, request)
        } else {
            self.asks(at, party, &request);
            (at + STEP, request)
        };
        let rings = SECOND * (2 + self.random.below(20));
        self.answers(at, party, &request, "100 Trying", None, "");
        self.ends(at, party, &request, Delivery { provisional: "180 Ringing", rings, answer });
    }

    /// A call without credentials that the registrar takes.
    pub fn deliver(&mut self, at: u64, party: &Party, target: &str, delivery: Delivery) {
        let request = self.request("INVITE", target);
        self.asks(at, party, &request);
        self.ends(at, party, &request, delivery);
    }

    fn ends(&mut self, at: u64, party: &Party, request: &Request, delivery: Delivery) {
        let Delivery { provisional, rings: ring, answer } = delivery;
        let tag = self.token();
        let given = (!provisional.starts_with("100")).then_some(tag.as_str());
        match answer {
            Answer::Talk(seconds) => {
                self.answers(at + STEP, party, request, provisional, given, "");
                self.answers(at + ring, party, request, "200 OK", Some(&tag), "");
                let in_dialog = |method, sequence| Request {
                    method,
                    sequence,
                    tag: Some(tag.clone()),
                    headers: String::new(),
                    ..request.clone()
                };
                let ack = in_dialog("ACK", request.sequence);
                self.asks(at + ring + STEP, party, &ack);
                let bye = in_dialog("BYE", request.sequence + 1);
                let end = at + ring + seconds * SECOND;
                self.asks(end, party, &bye);
                self.answers(end + STEP, party, &bye, "200 OK", None, "");
            }
            Answer::Fails(line) => {
                self.answers(at + STEP, party, request, provisional, given, "");
                self.fails(at + ring, party, request, line, &tag);
            }
            Answer::Refused(line) => self.fails(at + STEP, party, request, line, &tag),
        }
    }

    fn fails(&mut self, at: u64, party: &Party, request: &Request, line: &str, tag: &str) {
        self.answers(at, party, request, line, Some(tag), "");
        // RFC 3261, 17.1.1.3: within the transaction, with the To of the answer.
        let mut ack = Request { method: "ACK", headers: String::new(), ..request.clone() };
        ack.target = request.target.clone();
        let common = Self::common(party, &ack, Some(tag));
        let text = format!(
            "ACK sip:{}@pbx.example SIP/2.0\r\n{common}Max-Forwards: 70\r\nContent-Length: \
             0\r\n\r\n",
            ack.target
        );
        self.packets.push((at + STEP, datagram(party.at, self.server(&party.at), text.as_bytes())));
    }
}
