//! Verdicts, their reasons, and message kinds, with their names in counters and JSON.
//!
//! The order of the variants is the order of the counters in [`crate::abi::layout::Counters`]; the
//! names are those of `stats --json` and never change.

/// The verdict on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Passed to the host.
    Pass,
    /// Dropped in the driver.
    Drop,
}

/// The reason why a packet was passed or dropped.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Not IPv4 or IPv6, not UDP or TCP, or not to a SIP port.
    NotSip,
    /// From a trusted source.
    Trusted,
    /// From a known-good source.
    Good,
    /// From a peer: a host that answered a request of the server.
    Peer,
    /// A request (or a TCP segment) from an unknown source within its limits.
    Unknown,
    /// A response within its source's limit.
    Response,
    /// A keepalive (RFC 5626, 3.5.1 and 4.4.1), STUN or an empty datagram within its source's
    /// limit.
    Keepalive,
    /// Neither SIP nor a keepalive, within its source's limit.
    Unparsed,
    /// A later fragment: it has no ports, and is never reassembled without its first fragment.
    Fragment,
    /// From a blocked source.
    Blocked,
    /// Policy `closed`, and the source may not send.
    Closed,
    /// Over its source's limit.
    Limited,
    /// Over the budget that new sources share in a storm.
    Storm,
}

impl Reason {
    /// Number of reasons.
    pub const COUNT: usize = 13;

    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::NotSip,
        Self::Trusted,
        Self::Good,
        Self::Peer,
        Self::Unknown,
        Self::Response,
        Self::Keepalive,
        Self::Unparsed,
        Self::Fragment,
        Self::Blocked,
        Self::Closed,
        Self::Limited,
        Self::Storm,
    ];

    /// The verdict for this reason in enforcing mode.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Blocked | Self::Closed | Self::Limited | Self::Storm => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }

    /// The name in counters and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotSip => "not_sip",
            Self::Trusted => "trusted",
            Self::Good => "good",
            Self::Peer => "peer",
            Self::Unknown => "unknown",
            Self::Response => "response",
            Self::Keepalive => "keepalive",
            Self::Unparsed => "unparsed",
            Self::Fragment => "fragment",
            Self::Blocked => "blocked",
            Self::Closed => "closed",
            Self::Limited => "limited",
            Self::Storm => "storm",
        }
    }
}

/// The kind of a UDP payload to a SIP port, by its start line.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    /// REGISTER (RFC 3261, 10).
    Register,
    /// INVITE (RFC 3261, 13).
    Invite,
    /// OPTIONS (RFC 3261, 11).
    Options,
    /// SUBSCRIBE (RFC 6665).
    Subscribe,
    /// NOTIFY (RFC 6665).
    Notify,
    /// PUBLISH (RFC 3903).
    Publish,
    /// MESSAGE (RFC 3428).
    Message,
    /// ACK (RFC 3261, 13).
    Ack,
    /// BYE (RFC 3261, 15).
    Bye,
    /// CANCEL (RFC 3261, 9).
    Cancel,
    /// Any other request method.
    Other,
    /// A response.
    Response,
    /// A keepalive, STUN, or an empty datagram.
    Keepalive,
    /// Anything else.
    Unparsed,
}

impl Message {
    /// Number of kinds.
    pub const COUNT: usize = 14;

    /// Number of counters: a power of two, so that a mask bounds the index for the verifier.
    pub const SLOTS: usize = 16;

    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Register,
        Self::Invite,
        Self::Options,
        Self::Subscribe,
        Self::Notify,
        Self::Publish,
        Self::Message,
        Self::Ack,
        Self::Bye,
        Self::Cancel,
        Self::Other,
        Self::Response,
        Self::Keepalive,
        Self::Unparsed,
    ];

    /// Whether this is a request: not a keepalive, a response or unparsed.
    #[inline(always)]
    pub const fn is_request(self) -> bool {
        !matches!(self, Self::Response | Self::Keepalive | Self::Unparsed)
    }

    /// The reason under which a message of this kind passes from an unknown source.
    #[inline(always)]
    pub const fn passes_as(self) -> Reason {
        match self {
            Self::Response => Reason::Response,
            Self::Keepalive => Reason::Keepalive,
            Self::Unparsed => Reason::Unparsed,
            _ => Reason::Unknown,
        }
    }

    /// The name in counters and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Invite => "invite",
            Self::Options => "options",
            Self::Subscribe => "subscribe",
            Self::Notify => "notify",
            Self::Publish => "publish",
            Self::Message => "message",
            Self::Ack => "ack",
            Self::Bye => "bye",
            Self::Cancel => "cancel",
            Self::Other => "other",
            Self::Response => "response",
            Self::Keepalive => "keepalive",
            Self::Unparsed => "unparsed",
        }
    }

    /// The kind with this number, if there is one.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Register,
            1 => Self::Invite,
            2 => Self::Options,
            3 => Self::Subscribe,
            4 => Self::Notify,
            5 => Self::Publish,
            6 => Self::Message,
            7 => Self::Ack,
            8 => Self::Bye,
            9 => Self::Cancel,
            10 => Self::Other,
            11 => Self::Response,
            12 => Self::Keepalive,
            13 => Self::Unparsed,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_lists() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number, "{}", reason.name());
        }
        for (number, message) in Message::ALL.into_iter().enumerate() {
            assert_eq!(message as usize, number, "{}", message.name());
            assert_eq!(Message::from_number(number as u8), Some(message));
        }
        assert_eq!(Message::from_number(Message::COUNT as u8), None);
    }

    #[test]
    fn only_the_four_drop_reasons_drop() {
        let drops: Vec<_> = Reason::ALL
            .into_iter()
            .filter(|r| r.verdict() == Verdict::Drop)
            .map(Reason::name)
            .collect();
        assert_eq!(drops, ["blocked", "closed", "limited", "storm"]);
    }
}
