//! Contenders: everything that can drop packets by source: sip-xdp, other filters, and lower and
//! upper bounds. Each has its own wire, so that all can be up at the same time and be measured in
//! turn.

mod netfilter;
mod ours;
mod xdp;

use std::net::Ipv4Addr;

use anyhow::Result;
use sip_xdp_tests::Wire;

/// An installed filter; dropping it removes it.
pub(crate) trait Contender {
    /// Number of packets stopped so far, by its own counter where it has one.
    fn stopped(&self) -> Result<u64>;

    /// Contents of its tables besides the attacking sources.
    fn populated(&self) -> String {
        String::new()
    }

    /// What [`Contender::stopped`] reads.
    fn counter(&self) -> &'static str;

    /// The same, if it counts nothing else that its host receives.
    fn own_counter(&self) -> Option<&'static str> {
        Some(self.counter())
    }
}

/// Installs a filter at the receiving end of a wire, against these sources.
pub(crate) type Set = for<'w> fn(&'w Wire, &[Ipv4Addr]) -> Result<Box<dyn Contender + 'w>>;

/// The name of the row that all others are compared with.
pub(crate) const BASELINE: &str = "drop everything (XDP)";
/// sip-xdp with the attacking sources only.
pub(crate) const OURS_ALONE: &str = "sip-xdp, list alone";
/// sip-xdp with half of a realistic population.
pub(crate) const OURS_HALF: &str = "sip-xdp, 500,000 entries";
/// sip-xdp with a realistic population.
pub(crate) const OURS_FULL: &str = "sip-xdp, full";

/// The lower bound of a list of a million hosts: one load from its memory, at 32 bits per host.
const FLOOR: &str = "floor: one line of 4 MiB, counted";
/// The lower bound of a two-step lookup such as ours: one load from each of its tables.
const FLOOR_OURS: &str = "floor: the same and one line of 256 KiB";

/// Rows that do not filter, and only show the cost of memory.
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

/// The payload of attack packets.
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
