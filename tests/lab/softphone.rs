//! A softphone: one user at one address, who registers, subscribes, calls and hangs up, with digest
//! authentication and a session description, and answers whatever comes. For servers that look at
//! all of that.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::digest::Challenge;
use crate::message::Message;
use crate::namespace::Namespace;
use crate::party::{Party, unique_call_id};

/// How long an answer may take; calls ring meanwhile.
const SOON: Duration = Duration::from_secs(15);

/// The softphone.
#[derive(Debug)]
pub struct Softphone {
    party: Party,
    at: SocketAddr,
    to: SocketAddr,
    user: String,
    password: String,
}

/// A call that was answered.
#[derive(Debug)]
pub struct Call {
    call_id: String,
    sequence: u32,
    target: String,
    /// To, as the server has it, with its tag.
    to: String,
}

impl Softphone {
    /// One at an address of a namespace, for a server.
    pub fn open(
        namespace: &Namespace,
        at: SocketAddr,
        to: SocketAddr,
        user: &str,
        password: &str,
    ) -> Result<Self> {
        let party = Party::open(namespace, at)?;
        Ok(Self { party, at, to, user: user.to_owned(), password: password.to_owned() })
    }

    /// Registers; returns the final status.
    pub fn register(&self) -> Result<u16> {
        let user = self.user.clone();
        self.ask("REGISTER", &user, "Expires: 600\r\n", "").map(|(status, _)| status)
    }

    /// Subscribes to an event of somebody; returns the final status.
    pub fn subscribe(&self, target: &str, event: &str, accept: &str) -> Result<u16> {
        let headers = format!("Event: {event}\r\nAccept: {accept}\r\nExpires: 600\r\n");
        self.ask("SUBSCRIBE", target, &headers, "").map(|(status, _)| status)
    }

    /// Calls somebody; returns the final status, and the call if it was answered.
    pub fn call(&self, target: &str) -> Result<(u16, Option<Call>)> {
        let description = description(self.at);
        let (status, call) =
            self.ask("INVITE", target, "Content-Type: application/sdp\r\n", &description)?;
        Ok((status, (status == 200).then_some(call)))
    }

    /// Hangs up; returns the final status.
    pub fn hang_up(&self, call: Call) -> Result<u16> {
        let Call { call_id, sequence, target, to } = call;
        let sequence = sequence + 1;
        let bye = self.write("BYE", &target, &call_id, sequence, &to, "", "");
        self.party.send(self.to, bye.as_bytes())?;
        self.status_of(&call_id, sequence).map(|(status, _)| status)
    }

    /// How many requests of a method came.
    pub fn count(&self, method: &str) -> usize {
        self.party.count(&format!("{method} "))
    }

    /// Sends a request and, if it is challenged, once more with credentials.
    fn ask(&self, method: &str, target: &str, headers: &str, body: &str) -> Result<(u16, Call)> {
        let (call_id, to) = (unique_call_id(), format!("<sip:{target}@pbx.example>"));
        let mut credentials = String::new();
        for sequence in 1.. {
            let headers = format!("{headers}{credentials}");
            let request = self.write(method, target, &call_id, sequence, &to, &headers, body);
            self.party.send(self.to, request.as_bytes())?;
            let (status, answer) = self.status_of(&call_id, sequence)?;
            let message = Message::parse(answer.as_bytes()).context("it was read before")?;
            let tagged = message.header("To").unwrap_or_default().to_owned();
            if method == "INVITE" {
                let ack = self.write("ACK", target, &call_id, sequence, &tagged, "", "");
                // RFC 3261, 17.1.1.3: with the branch of the call that was refused, else with one
                // of its own.
                let ack =
                    if status == 200 { ack } else { ack.replace("-ACK;rport", "-INVITE;rport") };
                self.party.send(self.to, ack.as_bytes())?;
            }
            match Challenge::of(&message).filter(|_| credentials.is_empty()) {
                Some(challenge) => {
                    let uri = format!("sip:{target}@{}", self.to);
                    credentials = challenge.credentials(&self.user, &self.password, method, &uri);
                }
                None => {
                    return Ok((
                        status,
                        Call { call_id, sequence, target: target.to_owned(), to: tagged },
                    ));
                }
            }
        }
        unreachable!("credentials are sent once")
    }

    /// The final answer to a request.
    fn status_of(&self, call_id: &str, sequence: u32) -> Result<(u16, String)> {
        let status = |text: &str| {
            let message = Message::parse(text.as_bytes())?;
            let is_it =
                message.header("Call-ID") == Some(call_id) && message.sequence() == Some(sequence);
            message.status().filter(|status| is_it && *status >= 200)
        };
        let what = format!("a final answer for {}", self.user);
        let received =
            self.party.wait_for(&what, SOON, |received| status(&received.text).is_some())?;
        Ok((status(&received.text).unwrap_or_default(), received.text))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a request, each of which differs")]
    fn write(
        &self,
        method: &str,
        target: &str,
        call_id: &str,
        sequence: u32,
        to: &str,
        headers: &str,
        body: &str,
    ) -> String {
        let Self { at, to: server, user, .. } = self;
        format!(
            "{method} sip:{target}@{server} SIP/2.0\r\n\
             Via: SIP/2.0/UDP {at};branch=z9hG4bK{call_id}-{sequence}-{method};rport\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:{user}@pbx.example>;tag=f{call_id}\r\n\
             To: {to}\r\n\
             Call-ID: {call_id}\r\n\
             CSeq: {sequence} {method}\r\n\
             Contact: <sip:{user}@{at}>\r\n\
             User-Agent: Softphone/7.1\r\n\
             {headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

/// A session of one G.711 stream at an address (RFC 4566).
pub fn description(at: SocketAddr) -> String {
    let (ip, family) = (at.ip(), if at.is_ipv4() { "IP4" } else { "IP6" });
    format!(
        "v=0\r\no=- 1 1 IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\nm=audio 40000 \
         RTP/AVP 0\r\n\
         a=rtpmap:0 PCMU/8000\r\n"
    )
}
