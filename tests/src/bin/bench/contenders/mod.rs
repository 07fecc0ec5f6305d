//! What can drop a packet by its source: sip-xdp, its peers, and the two ends of the scale. Each stands at the receiving
//! end of a wire of its own, so that all can be up at the same time and be measured in turn.

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
}

/// How to put one in place, at the receiving end of a wire, against these sources.
pub(crate) type Set = for<'w> fn(&'w Wire, &[Ipv4Addr]) -> Result<Box<dyn Contender + 'w>>;

/// The name of the row that all others are compared with.
pub(crate) const BASELINE: &str = "drop everything (XDP)";
/// sip-xdp with nothing but the sources that attack.
pub(crate) const OURS_ALONE: &str = "sip-xdp, list alone";
/// sip-xdp as it stands in the field.
pub(crate) const OURS_FULL: &str = "sip-xdp, full";

/// All of them.
pub(crate) const ALL: [(&str, Set); 9] = [
    (BASELINE, xdp::drop_everything),
    (OURS_ALONE, ours::list_alone),
    (OURS_FULL, ours::full),
    ("xdp-filter", xdp::xdp_filter),
    ("nftables, netdev ingress set", netfilter::netdev_ingress),
    ("nftables, inet prerouting set", netfilter::inet_prerouting),
    ("ipset, iptables raw", netfilter::ipset),
    ("fail2ban-style iptables chain", netfilter::fail2ban),
    ("no filter, a UDP socket nobody reads", xdp::none),
];
