//! The interface of a fuzzed program: the first byte of an input; the rest is the packet.

use sip_xdp_common::packet::headers::{Inspects, Link};
use sip_xdp_common::pipeline::ingress::ProgramSettings;

/// An interface, by the bits of one byte.
#[derive(Debug, Clone, Copy)]
pub struct Interface(pub u8);

impl Interface {
    /// Ethernet, with everything that can be inspected.
    pub const ETHERNET: u8 = 0b110;
    /// The same without an Ethernet header.
    pub const RAW_IP: u8 = 0b111;
}

impl ProgramSettings for Interface {
    fn link(&self) -> Link {
        if self.0 & 1 == 0 { Link::Ethernet } else { Link::Ip }
    }

    fn inspects(&self) -> Inspects {
        Inspects { ipv6: self.0 & 2 != 0, tags: self.0 & 4 != 0 }
    }

    fn is_sip_port(&self, port: u16) -> bool {
        matches!(port, 5060 | 5061)
    }
}
