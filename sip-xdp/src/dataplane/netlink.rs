//! Interfaces, addresses and routes of this process's network namespace.
//!
//! By netlink, because `/sys` shows the namespace in which it was mounted.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{Handle, RouteMessageBuilder};
use sip_xdp_common::packet::headers::Link;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Interface index (ifindex).
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Link type; `None` if this filter does not support it.
    pub link: Option<Link>,
    /// Link type number (`ARPHRD_*` in `include/uapi/linux/if_arp.h`).
    pub link_type: u16,
    /// Kind of a virtual interface, as `ip -d link` shows it ("vlan", "veth"); `None` for hardware.
    pub kind: Option<String>,
    /// Whether it is up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Number of receive queues.
    pub rx_queues: u32,
    /// The attached XDP program.
    pub xdp: Option<AttachedXdp>,
    /// Index of its controller: a bond or bridge.
    pub controller: Option<u32>,
    /// Index of its lower interface, such as the parent of a VLAN.
    pub beneath: Option<u32>,
    /// Number of carrier changes.
    pub carrier_changes: u32,
    /// Number of received packets.
    pub rx_packets: u64,
}

/// An XDP program on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachedXdp {
    /// The program's id.
    pub id: u32,
    /// Whether it runs in native mode.
    pub native: bool,
}

/// Own addresses, gateways and default interfaces, which must never be banned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The host's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// The gateways of default routes.
    pub gateways: BTreeSet<IpAddr>,
    /// The interfaces of default routes, by index.
    pub default_interfaces: BTreeSet<u32>,
}

/// A netlink connection.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Connects. Requires a tokio runtime, on which the connection's task runs.
    pub fn connect() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("no netlink connection")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All interfaces.
    pub async fn interfaces(&self) -> Result<Vec<Interface>> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .context("the interfaces cannot be listed")?;
        Ok(links.iter().map(interface).collect())
    }

    /// One interface; `None` if it does not exist.
    pub async fn interface(&self, index: u32) -> Result<Option<Interface>> {
        match self.handle.link().get().match_index(index).execute().try_next().await {
            Ok(link) => Ok(link.as_ref().map(interface)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {
                Ok(None)
            }
            Err(error) => {
                Err(error).with_context(|| format!("interface {index} cannot be asked about"))
            }
        }
    }

    /// The host's addresses, each with its interface index.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>> {
        let all: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .context("the addresses cannot be listed")?;
        Ok(all
            .iter()
            .filter_map(|message| Some((message.header.index, own_address(message)?)))
            .collect())
    }

    /// The host's addresses, gateways and interfaces with a default route.
    pub async fn surroundings(&self) -> Result<Surroundings> {
        let mut found = Surroundings::default();
        found.own.extend(self.addresses().await?.into_iter().map(|(_, address)| address));
        for request in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let routes: Vec<_> = self
                .handle
                .route()
                .get(request)
                .execute()
                .try_collect()
                .await
                .context("the routes cannot be listed")?;
            routes
                .iter()
                .filter(|route| is_default(route))
                .for_each(|route| note_default(&mut found, route));
        }
        Ok(found)
    }
}

/// The local address: on point-to-point links `Address` is the remote end and `Local` is ours;
/// elsewhere `Local` may be missing, and `Address` is ours.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

fn note_default(found: &mut Surroundings, route: &RouteMessage) {
    let hops = route.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    for hop in hops.flatten() {
        found.default_interfaces.insert(hop.interface_index);
        note_gateways(found, &hop.attributes);
    }
    note_gateways(found, &route.attributes);
}

fn note_gateways(found: &mut Surroundings, attributes: &[RouteAttribute]) {
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(gateway))
            | RouteAttribute::Via(RouteVia::Inet(gateway)) => {
                found.gateways.insert((*gateway).into());
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway))
            | RouteAttribute::Via(RouteVia::Inet6(gateway)) => {
                found.gateways.insert((*gateway).into());
            }
            RouteAttribute::Oif(index) => {
                found.default_interfaces.insert(*index);
            }
            _ => {}
        }
    }
}

/// Notifications about interfaces that came, went, were renamed or changed their program. The state
/// itself must be queried, so that lost notifications do not matter.
#[derive(Debug)]
pub struct LinkChanges {
    socket: AsyncFd<Socket>,
}

impl LinkChanges {
    /// Subscribes. Must be called on a tokio runtime.
    pub fn listen() -> Result<Self> {
        let what = "the kernel's notifications about interfaces cannot be heard";
        let mut socket = Socket::new(NETLINK_ROUTE).context(what)?;
        socket.set_non_blocking(true).context(what)?;
        socket.bind(&SocketAddr::new(0, libc::RTMGRP_LINK as u32)).context(what)?;
        // SAFETY: the socket owns its descriptor for its whole lifetime, and always returns the
        // same one.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self { socket: socket.context(what)? })
    }

    /// Waits for a change. Pending notifications are merged into one.
    pub async fn changed(&mut self) -> Result<()> {
        let mut guard = self.socket.readable().await?;
        loop {
            // The contents are not read, so that truncation is fine.
            match guard.get_inner().recv(&mut Vec::with_capacity(64), libc::MSG_TRUNC) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Lost notifications are a change as well.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(error).context("the kernel's notifications about interfaces");
                }
            }
        }
        guard.clear_ready();
        Ok(())
    }
}

fn interface(message: &LinkMessage) -> Interface {
    let (mut name, mut kind, mut mtu, mut rx_queues, mut xdp) = (String::new(), None, 0, 1, None);
    let (mut controller, mut beneath, mut carrier_changes, mut rx_packets) = (None, None, 0, 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(ifname) => name.clone_from(ifname),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::NumRxQueues(count) => rx_queues = *count,
            LinkAttribute::LinkInfo(infos) => kind = kind_of(infos),
            LinkAttribute::Xdp(attributes) => xdp = attached(attributes),
            LinkAttribute::Controller(index) => controller = Some(*index),
            LinkAttribute::Link(index) => beneath = Some(*index),
            LinkAttribute::CarrierChanges(count) => carrier_changes = *count,
            LinkAttribute::Stats64(stats) => rx_packets = stats.rx_packets,
            _ => {}
        }
    }
    let link = match message.header.link_layer_type {
        LinkLayerType::Ether | LinkLayerType::Loopback => Some(Link::Ethernet),
        // tun and WireGuard have the type "none"; cellular modems have RawIp.
        LinkLayerType::None | LinkLayerType::Ppp | LinkLayerType::Rawip => Some(Link::Ip),
        _ => None,
    };
    let link_type = message.header.link_layer_type.into();
    let up = message.header.flags.contains(LinkFlags::Up);
    Interface {
        index: message.header.index,
        name,
        link,
        link_type,
        kind,
        up,
        mtu,
        rx_queues,
        xdp,
        controller,
        beneath,
        carrier_changes,
        rx_packets,
    }
}

fn kind_of(infos: &[LinkInfo]) -> Option<String> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

fn attached(attributes: &[LinkXdp]) -> Option<AttachedXdp> {
    let native = attributes.iter().any(|a| {
        matches!(
            a,
            LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Hardware | XdpAttached::Multiple)
        )
    });
    attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) if *id != 0 => {
            Some(AttachedXdp { id: *id, native })
        }
        _ => None,
    })
}
