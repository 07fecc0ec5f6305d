//! What can drop a packet by its source: sip-xdp, its peers, and the two ends of the scale. Each
//! stands at the receiving end of a wire of its own, so that all can be up at the same time and be
//! measured in turn.

mod netfilter;
mod ours;
mod xdp;

use std::net::Ipv4Addr;

use anyhow::Result;
use sip_xdp_tests::Wire;

/// A filter in place; dropping it takes it off.
pub(crate) trait Contender {
    /// Packets that it has stopped so far, by a counter of its own where it has one.
    fn stopped(&self) -> Result<u64>;

    /// What is in its tables beside the sources that attack.
    fn populated(&self) -> String {
        String::new()
    }

    /// What [`Contender::stopped`] reads.
    fn counter(&self) -> &'static str;

    /// The same if nothing but what it stops is counted there, whatever else its host receives.
    fn own_counter(&self) -> Option<&'static str> {
        Some(self.counter())
    }
}

/// How to put one in place, at the receiving end of a wire, against these sources.
pub(crate) type Set = for<'w> fn(&'w Wire, &[Ipv4Addr]) -> Result<Box<dyn Contender + 'w>>;

/// The name of the row that all others are compared with.
pub(crate) const BASELINE: &str = "drop everything (XDP)";
/// sip-xdp with nothing but the sources that attack.
pub(crate) const OURS_ALONE: &str = "sip-xdp, list alone";
/// sip-xdp with half of what it has in the field.
pub(crate) const OURS_HALF: &str = "sip-xdp, 500,000 entries";
/// sip-xdp as it stands in the field.
pub(crate) const OURS_FULL: &str = "sip-xdp, full";

/// What no list of a million hosts can do without: one look at its memory, at 32 bits a host.
const FLOOR: &str = "floor: one line of 4 MiB, counted";
/// What a look-up in two steps, as ours is, cannot do without: a look at the memory of each of its
/// tables.
const FLOOR_OURS: &str = "floor: the same and one line of 256 KiB";

/// All that filters nothing and only says what memory costs.
pub(crate) const FLOORS: [&str; 2] = [FLOOR, FLOOR_OURS];

/// No filter at all.
pub(crate) const NO_FILTER: &str = "no filter, a UDP socket nobody reads";

/// All of them.
pub(crate) const ALL: [(&str, Set); 12] = [
    (BASELINE, xdp::drop_everything),
    (FLOOR, xdp::one_line),
    (FLOOR_OURS, xdp::two_lines),
    (OURS_ALONE, ours::list_alone),
    (OURS_HALF, ours::half),
    (OURS_FULL, ours::full),
    ("xdp-filter", xdp::xdp_filter),
    ("nftables, netdev ingress set", netfilter::netdev_ingress),
    ("nftables, inet prerouting set", netfilter::inet_prerouting),
    ("ipset, iptables raw", netfilter::ipset),
    ("fail2ban-style iptables chain", netfilter::fail2ban),
    (NO_FILTER, xdp::none),
];

/// What each packet of an attack holds.
pub(crate) const REQUEST: &str = "REGISTER sip:198.51.100.1 SIP/2.0\r\n\
Via: SIP/2.0/UDP 192.0.2.66:5060;branch=z9hG4bK776asdhds;rport\r\n\
Max-Forwards: 70\r\n\
From: <sip:101@198.51.100.1>;tag=1928301774\r\n\
To: <sip:101@198.51.100.1>\r\n\
Call-ID: a84b4c76e66710\r\n\
CSeq: 1 REGISTER\r\n\
Contact: <sip:101@192.0.2.66:5060>\r\n\
User-Agent: friendly-scanner\r\n\
Content-Length: 0\r\n\r\n";
