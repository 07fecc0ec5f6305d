//! SIP requests for tests that send packets themselves.

use std::net::SocketAddr;

/// The variable parts of a request.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// The registered or called user.
    pub user: &'a str,
    /// The Call-ID.
    pub call_id: &'a str,
    /// The number in CSeq.
    pub sequence: u32,
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
}

impl Request<'_> {
    /// The bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_with("")
    }

    /// With further headers, each with its line end.
    pub fn bytes_with(&self, headers: &str) -> Vec<u8> {
        let Self { method, user, call_id, sequence, from, to } = self;
        format!(
            "{method} sip:{user}@{to} SIP/2.0\r\n\
             Via: SIP/2.0/UDP {from};branch=z9hG4bK{call_id}-{sequence};rport\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:{user}@lab.example>;tag={call_id}\r\n\
             To: <sip:{user}@lab.example>\r\n\
             Call-ID: {call_id}\r\n\
             CSeq: {sequence} {method}\r\n\
             Contact: <sip:{user}@{from}>\r\n\
             User-Agent: lab phone\r\n\
             {headers}\
             Content-Length: 0\r\n\r\n"
        )
        .into_bytes()
    }
}
