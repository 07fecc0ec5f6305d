//! The messages and senders that a script chooses from.

use std::net::{Ipv4Addr, Ipv6Addr};

use sip_xdp::net::network::source_of;
use sip_xdp_common::ip_key::IpKey;

use crate::script::Step;

/// Numbers of two statuses.
pub(crate) const ACCEPTED: usize = 0;
/// See [`ACCEPTED`].
pub(crate) const CHALLENGED: usize = 1;

const STATUSES: [&str; 16] = [
    "200 OK",
    "401 Unauthorized",
    "407 Proxy Authentication Required",
    "403 Forbidden",
    "404 Not Found",
    "484 Address Incomplete",
    "604 Does Not Exist Anywhere",
    "202 Accepted",
    "100 Trying",
    "180 Ringing",
    "299 Fine",
    "302 Moved",
    "486 Busy Here",
    "503 Service Unavailable",
    "999 Nothing",
    "20",
];

const METHODS: [&str; 8] =
    ["REGISTER", "INVITE", "OPTIONS", "SUBSCRIBE", "ACK", "BYE", "mEsSaGe", "NEW-METHOD"];

const USERS: [&str; 8] = [
    "100",
    "101",
    "alice",
    "honey",
    "00441234567890",
    "+441234567890",
    "%31%30%30",
    "x\\\"%0a%1b[2J",
];

const AGENTS: [&str; 4] = ["Phone 1.0", "friendly-scanner", "SIPVicious", "Another \"Phone\""];

/// The source of a step's event: four IPv4 addresses, and for IPv6 two in one network, one in an
/// adjacent network, one far away.
pub(crate) fn source(step: &Step, time: u32) -> IpKey {
    let number =
        if step.sources_differ { u32::from(step.source) + time } else { step.source.into() } & 7;
    let v6 =
        |network: u16, host: u16| Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, host).into();
    source_of(match number {
        0..4 => Ipv4Addr::from(0xc000_0207 + number).into(),
        4 => v6(0x10, 1),
        5 => v6(0x10, 2),
        6 => v6(0x11, 1),
        _ => v6(0x7700, 1),
    })
}

/// The port of a step's event.
pub(crate) fn port(step: &Step, time: u32) -> u16 {
    5_060 + u16::from(step.port) + if step.ports_differ { time as u16 } else { 0 }
}

/// A request and its response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    /// The step that it belongs to.
    pub(crate) step: &'a Step,
    /// The number of the repetition.
    pub(crate) time: u32,
    /// The nonce that it carries.
    pub(crate) nonce: u32,
    /// Index of the credentials.
    pub(crate) credentials: usize,
    /// Index of the response.
    pub(crate) status: usize,
}

impl Message<'_> {
    fn method(&self) -> &'static str {
        METHODS[usize::from(self.step.method & 7)]
    }

    fn common(&self, number: u32) -> String {
        let step = self.step;
        let name = |user: u8| {
            let name = USERS[usize::from(user & 7)];
            if step.users_differ { format!("{}{name}", self.time) } else { name.to_owned() }
        };
        let (target, tag) = (name(step.target), if step.in_dialog { ";tag=t" } else { "" });
        let user = if step.method == 0 { target.clone() } else { name(step.user) };
        format!(
            "Via: SIP/2.0/UDP h;branch=z9hG4bK{number}\r\nFrom: <sip:{user}@pbx>;tag=f{number}\r\n\
             To: <sip:{target}@pbx>{tag}\r\nCall-ID: c{number}\r\nCSeq: {number} {}\r\n",
            self.method()
        )
    }

    /// The request of the transaction with this number.
    pub(crate) fn request(&self, number: u32) -> Vec<u8> {
        let step = self.step;
        let target = USERS[usize::from(step.target & 7)];
        // None; with this step's nonce, with a shared one, and with one that was never issued.
        let nonce =
            ["", &format!("n{}", self.nonce), "shared", "unknown"][self.credentials & 3].to_owned();
        let credentials = if nonce.is_empty() {
            String::new()
        } else {
            let response = number.wrapping_mul(31) + self.time;
            format!(
                "Authorization: Digest \
                 username=\"{target}\",nonce=\"{nonce}\",response=\"{response}\"\r\n"
            )
        };
        let expires =
            ["", "Expires: 0\r\n", "Expires: 600\r\n", "Contact: <sip:a@b>;expires=99999999\r\n"];
        let (method, common, agent) =
            (self.method(), self.common(number), AGENTS[usize::from(step.agent & 3)]);
        let expires = expires[usize::from(step.expires & 3)];
        format!(
            "{method} sip:{target}@pbx SIP/2.0\r\n{common}User-Agent: \
             {agent}\r\n{credentials}{expires}\r\n"
        )
        .into_bytes()
    }

    /// The response to the request of the transaction with this number.
    pub(crate) fn response(&self, number: u32) -> Vec<u8> {
        let (status, common) = (STATUSES[self.status & 15], self.common(number));
        let stale = if self.step.expires == 3 { ", stale=true" } else { "" };
        let challenge = match (status.starts_with("40"), self.step.in_dialog) {
            (false, _) => String::new(),
            (true, true) => "WWW-Authenticate: Digest realm=\"r\", nonce=\"shared\"\r\n".to_owned(),
            (true, false) => format!(
                "WWW-Authenticate: Digest realm=\"r\", nonce=\"n{}\"{stale}\r\n",
                self.nonce
            ),
        };
        format!("SIP/2.0 {status}\r\n{common}{challenge}\r\n").into_bytes()
    }
}
