//! A PBX behind a router that translates addresses, as in an office with one public address:
//!
//! ```text
//! provider 198.51.100.20 ---- public 198.51.100.2 router 192.168.7.1 ---- wan 192.168.7.2 pbx
//! stranger 198.51.100.66
//! ```
//!
//! The router forwards its port 5060 to the PBX, so that strangers reach it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::namespace::{Namespace, sweep, unique_name};
use crate::process::succeed;
use crate::require_root;
use crate::topology::{OUTSIDE, WAN, address, connect};

/// The provider.
pub const PROVIDER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
/// The PBX from its router's side.
pub const PBX_INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 2);
/// The PBX's public address.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The router's outer interface.
const UPLINK: &str = "public";

/// The namespaces of one test and a directory for its files.
#[derive(Debug)]
pub struct Nat {
    /// Runs the filter.
    pub pbx: Namespace,
    /// Translates addresses.
    pub router: Namespace,
    /// The provider, and a stranger at [`crate::topology::ATTACKER`].
    pub world: Namespace,
    directory: TempDir,
}

impl Nat {
    /// Sweeps remains of killed runs, then builds the network.
    pub fn new() -> Result<Self> {
        require_root()?;
        sweep()?;
        let nat = Self {
            pbx: Namespace::new("pbx")?,
            router: Namespace::new("router")?,
            world: Namespace::new("world")?,
            directory: tempfile::Builder::new()
                .prefix(&format!("{}-", unique_name()))
                .tempdir()
                .context("cannot make a temporary directory")?,
        };
        connect(&nat.pbx, WAN, &nat.router)?;
        connect(&nat.router, UPLINK, &nat.world)?;
        address(&nat.pbx, WAN, &["192.168.7.2/24"])?;
        address(&nat.router, OUTSIDE, &["192.168.7.1/24"])?;
        address(&nat.router, UPLINK, &["198.51.100.2/24"])?;
        address(&nat.world, OUTSIDE, &["198.51.100.20/24", "198.51.100.66/24"])?;
        nat.pbx.ip(["route", "add", "default", "via", "192.168.7.1"])?;
        nat.router.sysctl("net/ipv4/ip_forward", "1")?;
        for rule in [
            "add table ip nat",
            "add chain ip nat prerouting { type nat hook prerouting priority -100 ; }",
            "add chain ip nat postrouting { type nat hook postrouting priority 100 ; }",
            "add rule ip nat prerouting iifname public udp dport 5060 dnat to 192.168.7.2",
            "add rule ip nat prerouting iifname public tcp dport 5060 dnat to 192.168.7.2",
            "add rule ip nat postrouting oifname public masquerade",
        ] {
            succeed(nft(&nat.router).arg(rule))?;
        }
        Ok(nat)
    }

    /// A directory for the test's files, removed with the network.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

fn nft(namespace: &Namespace) -> Command {
    namespace.command("nft")
}
