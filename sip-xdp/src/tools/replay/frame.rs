//! Endpoints of a captured packet, and whether the programs would inspect it.

use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::lookup::search::Listing;
use sip_xdp_common::packet::headers::{self, Inspects, Link};
use sip_xdp_common::packet::reader::Bytes;
use sip_xdp_common::pipeline::egress::{self, Leaves};
use sip_xdp_common::pipeline::ingress::{
    self, Charged, FlowState, ProgramSettings, Segment, Sent, Tables,
};
use sip_xdp_common::verdict::{Message, Reason};

use crate::dataplane::loader::Ports;

/// The endpoints of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) source: IpKey,
    pub(super) destination: IpKey,
    /// Both ports, where the packet has them.
    pub(super) ports: Option<(u16, u16)>,
    pub(super) protocol: u8,
}

impl Ends {
    /// Of what goes the other way.
    pub(super) fn turned(&self) -> Self {
        let ports = self.ports.map(|(from, to)| (to, from));
        Self { source: self.destination, destination: self.source, ports, ..*self }
    }
}

/// The endpoints of a frame; `None` if it is no IP packet.
pub(super) fn ends(frame: &[u8]) -> Option<Ends> {
    let packet = Bytes(frame);
    let ip = headers::parse_headers(&packet, Link::Ethernet, Inspects::ALL)?;
    let ports = if matches!(ip.protocol, headers::UDP | headers::TCP)
        && !matches!(ip.fragmentation, headers::Fragmentation::Later)
    {
        ip.ports(&packet).map(|ports| (ports.source(), ports.destination()))
    } else {
        None
    };
    Some(Ends {
        source: ip.source(&packet)?,
        destination: ip.destination(&packet)?,
        ports,
        protocol: ip.protocol,
    })
}

/// What the kernel's parser takes the payload of a frame for, of UDP or TCP.
pub(super) fn message(frame: &[u8]) -> Option<Message> {
    let packet = Bytes(frame);
    let ip = headers::parse_headers(&packet, Link::Ethernet, Inspects::ALL)?;
    if ip.protocol == headers::TCP {
        let payload = super::tcp::payload(frame).filter(|payload| !payload.is_empty())?;
        return Some(sip_xdp_common::sip::start_line(&Bytes(payload), 0, payload.len()));
    }
    let (payload, end) =
        (ip.protocol == headers::UDP).then(|| ip.udp_payload(&packet)).flatten()?;
    Some(sip_xdp_common::sip::start_line(&packet, payload, end))
}

/// A filter for packets that the programs ignore, made of the kernel's own functions. For incoming
/// packets it judges with every source trusted: only packets to a SIP port reach that verdict.
pub(super) struct Prefilter {
    pub(super) ports: Ports,
    pub(super) inspects: Inspects,
}

impl Prefilter {
    /// The reason under which a packet passes uninspected, if it does.
    pub(super) fn passes_by(&self, frame: &[u8]) -> Option<Reason> {
        let reason = ingress::judge(&Bytes(frame), self).reason;
        (reason != Reason::Trusted).then_some(reason)
    }

    /// Whether an outgoing packet of UDP may be sampled: a request, or a final or 18x response.
    pub(super) fn may_matter(&self, frame: &[u8]) -> bool {
        matches!(egress::read(&Bytes(frame), self), Some(Leaves::Message(leaving))
            if leaving.message != Message::Response || egress::is_sampled(leaving.status))
    }
}

impl ProgramSettings for Prefilter {
    fn link(&self) -> Link {
        Link::Ethernet
    }

    fn inspects(&self) -> Inspects {
        self.inspects
    }

    fn is_sip_port(&self, port: u16) -> bool {
        self.ports.contains(port)
    }
}

impl Tables for Prefilter {
    type MeterSlot = ();

    fn scope_all(&self) -> bool {
        false
    }

    fn is_closed(&self) -> bool {
        false
    }

    fn listing(&self, _: &IpKey, _: Listing) -> Listing {
        Listing::new(Listing::TRUSTED)
    }

    fn flow(&self, _: &IpKey, _: u16) -> FlowState {
        FlowState::Stranger
    }

    fn has_pending_request(&self, _: &IpKey) -> bool {
        false
    }

    fn place(&self, _: &IpKey, _: &Listing) {}

    fn charge(&self, _: Message, _: &Sent, (): ()) -> Charged {
        Charged::Within
    }

    fn charge_segment(&self, _: &Segment, _: &Sent, (): ()) -> Charged {
        Charged::Within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outgoing_packets_matter_if_they_may_be_sampled() {
        let prefilter = Prefilter { ports: Ports::new([(5060, 5060)]), inspects: Inspects::ALL };
        let frame = |port: u16, payload: &str| {
            let mut frame = vec![0; 12];
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((28 + payload.len() as u16).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, headers::UDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 7]);
            frame.extend(port.to_be_bytes());
            frame.extend([0x9c, 0x40]);
            frame.extend((8 + payload.len() as u16).to_be_bytes());
            frame.extend([0, 0]);
            frame.extend(payload.as_bytes());
            frame
        };
        for (port, line, expected) in [
            (5060, "SIP/2.0 200 OK\r\n", true),
            (5060, "SIP/2.0 401 Unauthorized\r\n", true),
            (5060, "OPTIONS sip:a SIP/2.0\r\n", true),
            (5060, "SIP/2.0 100 Trying\r\n", true),
            (5060, "SIP/2.0 199 Early Dialog Terminated\r\n", false),
            (5060, "SIP/2.0 183 Session Progress\r\n", true),
            (5060, "\r\n\r\n", false),
            (5070, "SIP/2.0 200 OK\r\n", false),
        ] {
            assert_eq!(prefilter.may_matter(&frame(port, line)), expected, "{port} {line}");
        }
    }
}
