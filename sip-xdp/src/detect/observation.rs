//! What the detector takes: a message, and what is known of how it came. The kernel's samples of
//! UDP become one, and so do messages of TCP, TLS and WebSocket, which are put together elsewhere.

use sip_xdp_common::abi::layout::{BY_ADDRESS, EventKind, FRAGMENTED, KernelEvent};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::gcra::LimitKind;
use sip_xdp_common::packet::checksum::Datagram;

use crate::sip::message::StartLine;
use crate::sip::stream::{self, Direction, Segment};
use crate::sip::transport::Transport;

/// A message that was seen. Times in nanoseconds of the filter's clock.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// When.
    pub time: u64,
    /// Remote address: the source of incoming packets, the destination of outgoing ones.
    pub source: IpKey,
    /// The other side's port, in host order.
    pub port: u16,
    /// Our port, in host order.
    pub local_port: u16,
    /// How it was carried.
    pub transport: Transport,
    /// What it is: a request or a response, arriving or leaving, or over a limit.
    pub kind: EventKind,
    /// The source is the sender's own address: it has completed a handshake. Only of streams.
    pub is_proven: bool,
    /// Nothing was lost before it that could have made something else look like it.
    pub is_certain: bool,
    /// What was not seen of the other side's messages it has hidden itself.
    pub may_hide: bool,
    /// As [`KernelEvent::flags`].
    pub flags: u8,
    /// How it starts; at most 64 KiB.
    pub bytes: &'a [u8],
    /// There is more of it than `bytes`.
    pub is_cut: bool,
    /// As [`KernelEvent::bucket`].
    pub bucket: u8,
    /// As [`KernelEvent::seen`].
    pub seen: u64,
    /// As [`KernelEvent::registers`].
    pub registers: u64,
    /// Of what arrives by UDP: whom it was sent to, and its checksum, where that was seen.
    pub checksum: Option<(IpKey, u16)>,
}

impl<'a> Observation<'a> {
    /// A message of a stream. `arrives`: from the other side to us. None if it is neither a request
    /// nor a response.
    pub fn of_stream(
        time: u64,
        (source, port): (IpKey, u16),
        local_port: u16,
        transport: Transport,
        arrives: bool,
        bytes: &'a [u8],
    ) -> Option<Self> {
        let head = crate::sip::message::Head::read(bytes)?;
        let kind = match (head.start, arrives) {
            (StartLine::Request { .. }, true) => EventKind::Request,
            (StartLine::Request { .. }, false) => EventKind::PendingRequest,
            (StartLine::Response(_), true) => EventKind::Response,
            // As the kernel samples them: 100 says nothing.
            (StartLine::Response(100), false) => return None,
            (StartLine::Response(_), false) => EventKind::Answer,
        };
        Some(Self {
            time,
            source,
            port,
            local_port,
            transport,
            kind,
            is_proven: true,
            is_certain: true,
            may_hide: false,
            flags: BY_ADDRESS,
            bytes,
            is_cut: false,
            bucket: 0,
            seen: 0,
            registers: 0,
            checksum: None,
        })
    }

    /// A message of plain TCP that ended with a segment. None if it is neither a request nor a
    /// response.
    pub fn of_tcp(segment: &Segment<'_>, message: &stream::Message<'a>) -> Option<Self> {
        let observation = Self::of_stream(
            segment.time,
            (segment.peer, segment.peer_port),
            segment.local_port,
            Transport::Tcp,
            message.direction == Direction::In,
            message.bytes,
        )?;
        Some(Self {
            is_proven: message.is_proven,
            is_certain: message.is_certain,
            may_hide: message.may_hide,
            is_cut: !message.is_whole,
            ..observation
        })
    }

    /// Whether the host takes a datagram that arrived, as far as that is seen: it throws away what
    /// has a wrong checksum, so that no answer of ours is to it.
    pub(super) fn is_delivered(&self) -> bool {
        let Some((destination, checksum)) = self.checksum else {
            return true;
        };
        let datagram = Datagram {
            source: self.source,
            destination,
            source_port: self.port,
            destination_port: self.local_port,
            checksum,
            payload: self.bytes,
        };
        datagram.is_delivered()
    }
}

impl<'a> TryFrom<&'a KernelEvent> for Observation<'a> {
    type Error = ();

    /// From what the kernel tells, if it is of a kind that is known.
    fn try_from(event: &'a KernelEvent) -> Result<Self, ()> {
        let has_header = event.udp != [0; 8];
        Ok(Self {
            time: event.time,
            source: event.source,
            port: event.port,
            local_port: event.local_port,
            transport: match LimitKind::from_number(event.bucket) {
                Some(kind) if kind.is_of_segments() => Transport::Tcp,
                _ => Transport::Udp,
            },
            kind: EventKind::from_number(event.kind).ok_or(())?,
            is_proven: false,
            is_certain: true,
            may_hide: false,
            flags: event.flags,
            bytes: event.head.get(..usize::from(event.head_length)).unwrap_or_default(),
            is_cut: event.flags & FRAGMENTED != 0 || event.length > event.head_length,
            bucket: event.bucket,
            seen: event.seen,
            registers: event.registers,
            checksum: event
                .destination()
                .filter(|_| has_header)
                .map(|destination| (destination, event.checksum())),
        })
    }
}
