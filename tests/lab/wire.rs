//! A cable between two new namespaces, to measure the drop rate of a filter at its end.
//!
//! The receiving interface has GRO on: veth then polls like a network card's driver, with or
//! without an XDP program, and accepts the generator's frames.

use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::generator::{Frame, Generator, Sources};
use crate::namespace::{Namespace, unique_name};
use crate::process::succeed;
use crate::topology::{ATTACKER, LAN, OUTSIDE, PBX_WAN, WAN, address, connect};

/// Destination port of the frames.
const PORT: u16 = 5060;

/// Two namespaces: the receiving one has the interface [`WAN`] with the address [`PBX_WAN`] and its
/// default route to the other one, whose interface is [`OUTSIDE`].
#[derive(Debug)]
pub struct Wire {
    /// The sources of packets.
    pub sender: Namespace,
    /// Where filters are.
    pub receiver: Namespace,
    directory: TempDir,
}

impl Wire {
    /// Creates both.
    pub fn new() -> Result<Self> {
        let wire = Self {
            sender: Namespace::new("sender")?,
            receiver: Namespace::new("receiver")?,
            directory: tempfile::Builder::new()
                .prefix(&format!("{}-", unique_name()))
                .tempdir()
                .context("cannot make a temporary directory")?,
        };
        connect(&wire.receiver, WAN, &wire.sender)?;
        address(&wire.receiver, WAN, &["198.51.100.1/24"])?;
        address(&wire.sender, OUTSIDE, &["198.51.100.66/24"])?;
        accept_from_anywhere(&wire.receiver, WAN, link_address(&wire.sender, OUTSIDE)?)?;
        Ok(wire)
    }

    /// A directory for files, removed with the wire.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A generator at the sending end, of datagrams with this payload to the SIP port of the
    /// receiving end.
    pub fn generator(&self, sources: &Sources, payload: &[u8]) -> Result<Generator<'_>> {
        let frame = Frame::new(
            link_address(&self.receiver, WAN)?,
            SocketAddrV4::new(PBX_WAN, PORT),
            payload,
        )?;
        Generator::load(&self.sender, OUTSIDE, frame, sources)
    }

    /// Connects phones with the receiving end through a separate interface, [`LAN`].
    pub fn phones(&self) -> Result<Namespace> {
        let phones = Namespace::new("phones")?;
        connect(&self.receiver, LAN, &phones)?;
        address(&self.receiver, LAN, &["203.0.113.1/24"])?;
        address(&phones, OUTSIDE, &["203.0.113.10/24"])?;
        Ok(phones)
    }

    /// Packets received by the receiving interface so far, before any filter.
    pub fn received(&self) -> Result<u64> {
        received(&self.receiver, WAN)
    }

    /// IPv4 packets delivered to a transport protocol of the receiving end so far, past every
    /// filter.
    pub fn delivered(&self) -> Result<u64> {
        ip_statistic(&self.receiver, "InDelivers")
    }

    /// IPv4 packets that reached the network stack of the receiving end so far, past every filter
    /// below it.
    pub fn reached_the_stack(&self) -> Result<u64> {
        ip_statistic(&self.receiver, "InReceives")
    }
}

/// Lets a namespace accept packets from any address through one interface, and answer them to
/// [`ATTACKER`] at the other end: no reverse path filter, a default route, a permanent neighbour,
/// and GRO.
pub fn accept_from_anywhere(
    namespace: &Namespace,
    interface: &str,
    other_end: [u8; 6],
) -> Result<()> {
    let neighbour = ATTACKER.to_string();
    let link = other_end.map(|octet| format!("{octet:02x}")).join(":");
    namespace.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    namespace.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
    namespace.ip([
        "neighbour",
        "replace",
        &neighbour,
        "lladdr",
        &link,
        "dev",
        interface,
        "nud",
        "permanent",
    ])?;
    namespace.ip(["route", "add", "default", "via", &neighbour])?;
    succeed(namespace.command("ethtool").args(["-K", interface, "gro", "on"])).map(drop)
}

/// Packets received by an interface so far, before any filter.
pub fn received(namespace: &Namespace, interface: &str) -> Result<u64> {
    // Read directly, without starting a program, since a flood may leave little CPU time.
    let text = namespace.enter(|| {
        fs::read_to_string("/proc/thread-self/net/dev")
            .context("cannot read the interfaces' statistics")
    })?;
    taken_in(&text, interface).with_context(|| format!("there is no interface {interface}"))
}

/// The link-layer address of an interface.
pub fn link_address(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let links = namespace.ip(["-json", "link", "show", interface])?;
    let links: Value = serde_json::from_str(&links).context("`ip` printed no JSON")?;
    let text =
        links.pointer("/0/address").and_then(Value::as_str).context("`ip` shows no address")?;
    let octets: Vec<u8> =
        text.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    octets.try_into().ok().with_context(|| format!("{text} is no link-layer address"))
}

/// A counter of a namespace's IPv4 stack, by its name in /proc/net/snmp.
pub fn ip_statistic(namespace: &Namespace, name: &str) -> Result<u64> {
    let text = namespace.enter(|| {
        fs::read_to_string("/proc/thread-self/net/snmp")
            .context("cannot read the stack's statistics")
    })?;
    statistic(&text, "Ip:", name).with_context(|| format!("the stack has no counter {name}"))
}

/// Per interface a line with its name, then bytes and packets received, then more.
fn taken_in(text: &str, interface: &str) -> Option<u64> {
    let mut lines = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    lines.next()?.split_whitespace().nth(1)?.parse().ok()
}

/// Per protocol a line of names and a line of values.
fn statistic(text: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = (lines.next()?, lines.next()?);
    let column = names.split_whitespace().position(|candidate| candidate == name)?;
    values.split_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_an_interface_took_in() {
        let text = "Inter-|   Receive\n face |bytes    packets\n    lo: 1 2 0 0\n  wan2: 3 4 0 \
                    0\n   wan:12345 678 0 0 0\n";
        assert_eq!(taken_in(text, "wan"), Some(678));
        assert_eq!(taken_in(text, "lan"), None);
    }

    #[test]
    fn finds_a_counter_by_its_name() {
        let text = "Ip: Forwarding InReceives\nIp: 1 4711\nUdp: InDatagrams\nUdp: 5\n";
        assert_eq!(statistic(text, "Ip:", "InReceives"), Some(4711));
        assert_eq!(statistic(text, "Udp:", "InDatagrams"), Some(5));
        assert_eq!(statistic(text, "Udp:", "InReceives"), None);
    }
}
