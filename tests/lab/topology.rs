//! The standard network: a PBX with one interface to the world, where the attacker is, and one to
//! the phones.
//!
//! ```text
//! attacker 198.51.100.66 ---- wan 198.51.100.1 pbx 203.0.113.1 lan ---- phone 203.0.113.10
//!          2001:db8:66::66        2001:db8:66::1   2001:db8:10::1             2001:db8:10::10
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::namespace::{Namespace, sweep, unique_name};
use crate::process::succeed;
use crate::require_root;

/// The PBX from the attacker's side.
pub const PBX_WAN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The PBX from the phones' side.
pub const PBX_LAN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The PBX from the attacker's side, IPv6.
pub const PBX_WAN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 1);
/// The attacker's IPv6 address.
pub const ATTACKER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 0x66);
/// The attacker.
pub const ATTACKER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);
/// The first phone.
pub const PHONE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The PBX's outer interface.
pub const WAN: &str = "wan";
/// The PBX's interface to the phones.
pub const LAN: &str = "lan";
/// The interface of all others.
pub const OUTSIDE: &str = "eth0";

/// The namespaces of one test and a directory for its files.
#[derive(Debug)]
pub struct Lab {
    /// Runs registrar and filter.
    pub pbx: Namespace,
    /// The attacker's side.
    pub attacker: Namespace,
    /// The phones' side.
    pub phone: Namespace,
    directory: TempDir,
}

impl Lab {
    /// Sweeps remains of killed runs, then builds the network.
    pub fn new() -> Result<Self> {
        require_root()?;
        sweep()?;
        let lab = Self {
            pbx: Namespace::new("pbx")?,
            attacker: Namespace::new("attacker")?,
            phone: Namespace::new("phone")?,
            directory: tempfile::Builder::new()
                .prefix(&format!("{}-", unique_name()))
                .tempdir()
                .context("cannot make a temporary directory")?,
        };
        connect(&lab.pbx, WAN, &lab.attacker)?;
        connect(&lab.pbx, LAN, &lab.phone)?;
        address(&lab.pbx, WAN, &["198.51.100.1/24", "2001:db8:66::1/64"])?;
        address(&lab.attacker, OUTSIDE, &["198.51.100.66/24", "2001:db8:66::66/64"])?;
        address(&lab.pbx, LAN, &["203.0.113.1/24", "2001:db8:10::1/64"])?;
        address(&lab.phone, OUTSIDE, &["203.0.113.10/24", "2001:db8:10::10/64"])?;
        lab.attacker.ip(["route", "add", "default", "via", "198.51.100.1"])?;
        lab.phone.ip(["route", "add", "default", "via", "203.0.113.1"])?;
        Ok(lab)
    }

    /// Adds an address for the attacker: 198.51.100.100, and so on.
    pub fn further_attacker(&self, number: u8) -> Result<Ipv4Addr> {
        let attacker = Ipv4Addr::new(198, 51, 100, 100 + number);
        address(&self.attacker, OUTSIDE, &[&format!("{attacker}/24")])?;
        Ok(attacker)
    }

    /// Makes the PBX accept forged packets (no reverse path filter).
    pub fn accept_forgeries(&self) -> Result<()> {
        ["all", WAN, LAN]
            .iter()
            .try_for_each(|name| self.pbx.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0"))
    }

    /// Routes the IPv6 network of [`Lab::routed`] to the attacker, who may use any address of it.
    pub fn route_to_attacker(&self) -> Result<()> {
        self.pbx.ip(["-6", "route", "add", "2001:db8:77::/64", "via", "2001:db8:66::66"])?;
        // Needed for neighbour solicitations on behalf of addresses that the interface does not
        // have.
        address(&self.attacker, OUTSIDE, &["fe80::66/64"])?;
        self.attacker.ip(["-6", "route", "add", "local", "2001:db8:77::/64", "dev", "lo"])?;
        self.attacker.ip(["-6", "route", "add", "default", "via", "2001:db8:66::1"])?;
        self.attacker.sysctl("net/ipv6/ip_nonlocal_bind", "1")
    }

    /// An address of the network that is routed to the attacker.
    pub fn routed(&self, host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, host)
    }

    /// A directory for the test's files, removed with the lab.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// Adds addresses to an interface, usable at once.
pub fn address(namespace: &Namespace, interface: &str, addresses: &[&str]) -> Result<()> {
    for address in addresses {
        // Duplicate address detection would delay an IPv6 address for a second or two.
        let nodad = address.contains(':').then_some("nodad");
        namespace.ip(["address", "add", address, "dev", interface].into_iter().chain(nodad))?;
    }
    Ok(())
}

/// Connects the PBX with another namespace, whose interface is always [`OUTSIDE`].
pub(crate) fn connect(pbx: &Namespace, interface: &str, outside: &Namespace) -> Result<()> {
    succeed(
        Command::new("ip")
            .args(["link", "add", interface, "netns", pbx.name(), "type", "veth"])
            .args(["peer", "name", OUTSIDE, "netns", outside.name()]),
    )?;
    for (namespace, interface) in [(pbx, interface), (outside, OUTSIDE)] {
        // No router solicitations and no link-local detection: only the test's packets.
        namespace.ip(["link", "set", interface, "addrgenmode", "none"])?;
        namespace.ip(["link", "set", interface, "up"])?;
    }
    Ok(())
}
