//! Driver refusals: their meaning and their remedy.
//!
//! More than 400 lines: 170 of them are tests with the drivers' own messages.

use std::fmt;

use crate::dataplane::ethtool::Channels;
use crate::dataplane::virtio::Obstacle;

/// Largest MTU in bytes for which a packet, with the driver's headroom and tailroom, fits into one
/// page (`ENA_XDP_MAX_MTU` in `drivers/net/ethernet/amazon/ena/ena_xdp.h`; others differ by a few
/// bytes).
pub(crate) const ONE_BUFFER: u32 = 3_498;

/// A refusal, with the properties of the interface that may explain it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The interface's name.
    pub(crate) interface: String,
    /// Kind of a virtual interface, else the name of the driver; empty if neither is known.
    pub(crate) driver: String,
    /// The errno of the link attempt.
    pub(crate) errno: Option<i32>,
    /// The extended acknowledgement of kernel or driver.
    pub(crate) text: Option<String>,
    /// MTU in bytes.
    pub(crate) mtu: u32,
    /// Its queues, if ethtool reports any.
    pub(crate) channels: Option<Channels>,
}

/// Keywords of a driver's message, in lower case; any of them identifies it.
type Words = &'static [&'static str];

/// The remedy for a refusal.
type Remedy = fn(&Refusal) -> String;

/// Known refusals: driver ("" for any), keywords of its message (none for any message), remedy. The
/// first match wins.
///
/// The messages are those of the drivers in Linux 5.10 to 7.x: `virtnet_xdp_set`, `ena_xdp_set`,
/// `gve_verify_xdp_configuration`, `netvsc_xdp_set`, `bond_xdp_set`, `igb_xdp_setup`,
/// `vmxnet3_xdp_set`, `veth_xdp_set`, and `dev_xdp_attach` for all.
const KNOWN: &[(&str, Words, Remedy)] = &[
    ("virtio_net", &["gro_hw", "lro", "csum"], |_| Obstacle::Refuses.remedy().to_owned()),
    ("virtio_net", &["single page", "any_header_sg"], |_| {
        "the host's virtio is older than version 1.0: give the device disable-legacy=on, or a \
         newer machine type"
            .to_owned()
    }),
    ("ena", &["mtu"], shorten),
    ("ena", &["queue", "channel", "xdp traffic"], halve),
    ("gve", &["mtu", "buffer"], shorten),
    ("gve", &["queue", "channel"], halve),
    ("gve", &["mode", "format"], |_| {
        "this machine type gives its network card a queue format without programs (GVE needs \
         GQI_QPL, or \
         DQO_RDA with Linux 6.14 or newer); use generic mode, or another machine type"
            .to_owned()
    }),
    ("hv_netvsc", &["lro"], |refusal| format!("`ethtool -K {} lro off`", refusal.interface)),
    ("bond", &["bonding mode"], |refusal| {
        format!(
            "bonds run programs in the modes active-backup, balance-rr, balance-xor and 802.3ad \
             only (the \
             latter two without xmit_hash_policy vlan+srcmac): `ip -d link show dev {}` says its \
             mode; or use \
             generic mode, which protects the bond as well",
            refusal.interface
        )
    }),
    ("bond", &[], |_| {
        "every member must be able to run it by itself: try `sip-xdp doctor --iface MEMBER` for \
         each, or use \
         generic mode, which protects the bond as well"
            .to_owned()
    }),
    ("veth", &["rx queues", "tx queues"], |refusal| {
        let Refusal { interface, .. } = refusal;
        format!(
            "{interface} needs as many receive queues as its other end has send queues: \
             `ethtool -L {interface} rx N`"
        )
    }),
    ("bridge", &[], |_| {
        "bridges run no programs natively; filter on the ports by which attackers come (`bridge \
         link` names \
         them), which also covers guests behind the bridge"
            .to_owned()
    }),
    ("", &["lro", "gro_hw", "hw-gro", "hw gro"], |refusal| {
        format!("`ethtool -K {} lro off rx-gro-hw off`", refusal.interface)
    }),
    ("", &["mtu", "jumbo", "frame size", "frags", "buffer size", "too large"], shorten),
    ("", &["channel", "queues", "rings"], halve),
    ("", &["tcp-data-split", "header split", "header-split"], |refusal| {
        format!("`ethtool -G {} tcp-data-split off`", refusal.interface)
    }),
    ("", &["already"], |refusal| {
        format!(
            "another program is there, on an interface above or below it: `ip -d link show dev {}` \
             and \
             `bpftool net` name it",
            refusal.interface
        )
    }),
];

/// Kinds of virtual interfaces without native XDP.
const STACKED: &[&str] = &[
    "vlan",
    "macvlan",
    "macvtap",
    "ipvlan",
    "vxlan",
    "geneve",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "erspan",
    "ipip",
    "sit",
    "ip6tnl",
    "vti",
    "vti6",
    "xfrm",
    "wireguard",
    "ppp",
    "team",
    "vrf",
    "dummy",
    "ifb",
    "openvswitch",
    "bareudp",
    "gtp",
    "l2tpeth",
    "ovpn",
    "hsr",
    "batadv",
    "macsec",
    "wwan",
];

impl Refusal {
    /// The cause and the command that removes it, if known.
    pub(crate) fn remedy(&self) -> Option<String> {
        let text = self.text.as_deref().unwrap_or_default().to_ascii_lowercase();
        let fits = |(driver, words, _): &&(&str, Words, Remedy)| {
            let is_driver = driver.is_empty() || *driver == self.driver;
            is_driver && (words.is_empty() || words.iter().any(|word| text.contains(word)))
        };
        if let Some((_, _, remedy)) = KNOWN.iter().find(fits) {
            return Some(remedy(self));
        }
        if STACKED.contains(&self.driver.as_str()) {
            return Some(format!(
                "{} interfaces run no programs natively; generic mode protects here, or filter on \
                 the \
                 Ethernet interface beneath, where VLAN tags and PPPoE sessions are read",
                self.driver
            ));
        }
        // Without a message the MTU is the usual cause: e1000e and ixgbe return EINVAL.
        let is_vague = matches!(self.errno, Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ERANGE))
            && text.is_empty();
        if is_vague && self.mtu > 1_500 {
            return Some(shorten(self));
        }
        // ixgbe and i40e need a queue per CPU.
        (self.errno == Some(libc::ENOMEM) || self.errno == Some(libc::ENOSPC)).then(|| halve(self))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unsupported = "not supported by the driver";
        match (&self.text, self.errno) {
            // The kernel's own message for a driver without XDP.
            (Some(text), _) if text.contains("Underlying driver does not support XDP") => {
                f.write_str(unsupported)?
            }
            (Some(text), _) => f.write_str(text)?,
            (None, Some(libc::EOPNOTSUPP)) => f.write_str(unsupported)?,
            (None, Some(errno)) => {
                write!(
                    f,
                    "the kernel said: {}; `dmesg` may say more",
                    std::io::Error::from_raw_os_error(errno)
                )?;
            }
            (None, None) => f.write_str("the kernel does not say why")?,
        }
        // Most messages begin with the driver's name.
        let is_named = self.text.as_ref().is_some_and(|text| text.contains(&self.driver));
        if self.driver.is_empty() || is_named { Ok(()) } else { write!(f, " [{}]", self.driver) }
    }
}

/// A smaller MTU: jumbo frames need multi-buffer XDP, which few drivers support.
fn shorten(refusal: &Refusal) -> String {
    let Refusal { interface, mtu, .. } = refusal;
    let most = if refusal.driver == "ena" { ONE_BUFFER } else { 1_500 };
    if *mtu <= 1_500 {
        return format!(
            "`ip -d link show dev {interface}` says the MTU; the other end's counts as well"
        );
    }
    format!("`ip link set dev {interface} mtu {most}` (it is {mtu}; SIP needs no more than 1500)")
}

/// Fewer queues: the driver needs an extra transmit queue for each queue or CPU with XDP.
fn halve(refusal: &Refusal) -> String {
    let interface = &refusal.interface;
    match refusal.channels {
        Some(Channels { used, most }) => format!(
            "`ethtool -L {interface} combined {}` (it uses {used} of {most} queues, and programs \
             need as many again)",
            (most / 2).max(1).min(used)
        ),
        None => {
            format!(
                "`ethtool -L {interface} combined N`, with N half of what `ethtool -l {interface}` \
                 says at most"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(driver: &str, errno: i32, text: &str, mtu: u32) -> Refusal {
        Refusal {
            interface: "eth0".to_owned(),
            driver: driver.to_owned(),
            errno: Some(errno),
            text: (!text.is_empty()).then(|| text.to_owned()),
            mtu,
            channels: None,
        }
    }

    /// The messages are the drivers' own.
    #[test]
    fn known_refusals_have_remedies() {
        use libc::{EEXIST, EINVAL, ENOMEM, EOPNOTSUPP, ERANGE};
        let host = "virtio_net: Can't set XDP while host is implementing";
        for (driver, errno, text, mtu, part) in [
            (
                "virtio_net",
                EOPNOTSUPP,
                &*format!("{host} GRO_HW/CSUM, disable GRO_HW/CSUM first"),
                1_500,
                "guest_csum=off",
            ),
            (
                "virtio_net",
                EOPNOTSUPP,
                &format!("{host} LRO/CSUM, disable LRO/CSUM first"),
                1_500,
                "ctrl_guest_offloads",
            ),
            (
                "virtio_net",
                EINVAL,
                "virtio_net: MTU too large to enable XDP without frags",
                9_000,
                "mtu 1500",
            ),
            (
                "virtio_net",
                EINVAL,
                "XDP expects header/data in single page, any_header_sg required",
                1_500,
                "legacy",
            ),
            (
                "ena",
                EINVAL,
                "ena: Failed to set xdp program, the current MTU is larger than the maximum \
                 allowed MTU. Check the dmesg",
                9_001,
                "mtu 3498",
            ),
            (
                "ena",
                EINVAL,
                "ena: Failed to set xdp program, there is no enough space for allocating XDP \
                 queues. Check the dmesg",
                1_500,
                "ethtool -L eth0 combined",
            ),
            ("gve", EINVAL, "gve: XDP is not supported in mode 3.", 1_460, "machine type"),
            ("gve", EINVAL, "gve: XDP is not supported for mtu 8896.", 8_896, "mtu 1500"),
            ("hv_netvsc", EOPNOTSUPP, "hv_netvsc: XDP: not support LRO", 1_500, "lro off"),
            ("hv_netvsc", EOPNOTSUPP, "hv_netvsc: XDP: mtu too large", 9_000, "mtu 1500"),
            (
                "bond",
                EOPNOTSUPP,
                "bond0: No native XDP support for the current bonding mode",
                1_500,
                "active-backup",
            ),
            ("bond", EOPNOTSUPP, "bond0: Slave device does not support XDP", 1_500, "every member"),
            (
                "igb",
                EINVAL,
                "igb: The RX buffer size is too small for the frame size",
                9_000,
                "mtu 1500",
            ),
            // Before Linux 6.13 igb gave no message.
            ("igb", EINVAL, "", 9_000, "mtu 1500"),
            ("vmxnet3", EOPNOTSUPP, "vmxnet3: MTU 9000 too large for XDP", 9_000, "mtu 1500"),
            ("mvneta", EOPNOTSUPP, "mvneta: Jumbo frames not supported on XDP", 9_000, "mtu 1500"),
            ("veth", ERANGE, "veth: Peer MTU is too large to set XDP", 1_500, "other end"),
            (
                "veth",
                libc::ENOSPC,
                "veth: XDP expects number of rx queues not less than peer tx queues",
                1_500,
                "rx N",
            ),
            (
                "bridge",
                EOPNOTSUPP,
                "Underlying driver does not support XDP in native mode",
                1_500,
                "ports",
            ),
            (
                "ipip",
                EOPNOTSUPP,
                "Underlying driver does not support XDP in native mode",
                1_500,
                "beneath",
            ),
            ("wireguard", EOPNOTSUPP, "", 1_420, "beneath"),
            ("ixgbe", ENOMEM, "", 1_500, "ethtool -L"),
            (
                "eth",
                EEXIST,
                "Cannot attach when an upper device already has a program",
                1_500,
                "bpftool net",
            ),
        ] {
            let refusal = refusal(driver, errno, text, mtu);
            let remedy = refusal.remedy().unwrap_or_default();
            assert!(remedy.contains(part), "{driver} {text:?}: {remedy}");
            assert!(!remedy.contains("update the driver") && !remedy.contains("  "), "{remedy}");
        }
    }

    #[test]
    fn an_unknown_refusal_has_no_remedy() {
        for driver in ["e1000", "rtl8139", ""] {
            let text = "Underlying driver does not support XDP in native mode";
            assert_eq!(refusal(driver, libc::EOPNOTSUPP, text, 1_500).remedy(), None, "{driver}");
        }
        assert_eq!(refusal("e1000e", libc::EIO, "", 9_000).remedy(), None);
    }

    #[test]
    fn queues_are_halved() {
        for (used, most, wanted) in [(4, 4, 2), (8, 8, 4), (1, 1, 1), (2, 8, 2), (32, 32, 16)] {
            let channels = Some(Channels { used, most });
            let text = "ena: Failed to set xdp program, there is no enough space for allocating \
                        XDP queues";
            let remedy =
                Refusal { channels, ..refusal("ena", libc::EINVAL, text, 1_500) }.remedy().unwrap();
            assert!(
                remedy.starts_with(&format!("`ethtool -L eth0 combined {wanted}` (")),
                "{remedy}"
            );
        }
    }

    #[test]
    fn reasons_are_read_by_people() {
        for (driver, errno, text, shown) in [
            ("e1000", libc::EOPNOTSUPP, "", "not supported by the driver [e1000]"),
            (
                "",
                libc::EOPNOTSUPP,
                "Underlying driver does not support XDP in native mode",
                "not supported by the driver",
            ),
            ("igb", libc::EINVAL, "igb: too small", "igb: too small"),
        ] {
            assert_eq!(refusal(driver, errno, text, 1_500).to_string(), shown);
        }
        let bare = refusal("igb", libc::EINVAL, "", 9_000).to_string();
        assert!(bare.contains("Invalid argument") && bare.contains("dmesg"), "{bare}");
    }
}
