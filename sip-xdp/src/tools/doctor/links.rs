//! Checks of an interface's topology, of paths around it, and of the effects of attaching.

use super::{Check, HostFacts};
use crate::api::answers::{BlindInterface, DaemonStatus};
use crate::dataplane::attach::xdp::Mode;
use crate::dataplane::ethtool::{Features, GRO_HW};
use crate::dataplane::netlink::Interface;

/// Drivers that reset the link when the first program is attached natively, and when the last one
/// is detached: `igb_xdp_setup`, `igc_xdp_set_prog`, `ixgbe_xdp_setup`, `i40e_xdp_setup`,
/// `vmxnet3_xdp_set`, `gve_set_xdp`.
const RESETTING: &[&str] = &["igb", "igc", "ixgbe", "i40e", "vmxnet3", "gve"];

/// Kinds of tunnels that accept packets from anybody who reaches this host, or from the other end.
const TUNNELS: &[&str] =
    &["gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ipip", "sit", "ip6tnl", "vxlan", "geneve"];

/// Offloads that merge several UDP packets before generic mode.
const UDP_MERGING: &[&str] = &["rx-udp-gro-forwarding", "rx-gro-list"];

/// Bonds and bridges: paths beside the interface, or around it.
pub(super) fn topology(interface: &Interface, present: &[Interface], wanted: &[String]) -> Check {
    const CHECK: &str = "topology";
    let name = &interface.name;
    let names =
        |all: &[&Interface]| all.iter().map(|one| one.name.clone()).collect::<Vec<_>>().join(", ");
    let members = |of: u32| -> Vec<&Interface> {
        present.iter().filter(|one| one.controller == Some(of)).collect()
    };
    let controller =
        interface.controller.and_then(|index| present.iter().find(|one| one.index == index));
    if let Some(controller) = controller {
        let (kind, above) = (controller.kind.as_deref().unwrap_or_default(), &controller.name);
        let others: Vec<_> = members(controller.index)
            .into_iter()
            .filter(|one| !wanted.contains(&one.name))
            .collect();
        let is_wanted = wanted.contains(above);
        return match kind {
            "bond" | "team" if is_wanted => Check::warn(
                CHECK,
                format!("{name} is a member of {above}, which is to be filtered as well"),
                format!("take {name} out of `interfaces`: drivers refuse programs on both"),
            ),
            "bond" | "team" if !others.is_empty() => Check::warn(
                CHECK,
                format!(
                    "{name} is a member of {above}: what arrives by {} passes it by",
                    names(&others)
                ),
                format!("filter on {above} instead of its members"),
            ),
            "bridge" => Check::ok(
                CHECK,
                format!("a port of {above}: guests behind the bridge are covered, too"),
            ),
            "bond" | "team" => Check::ok(
                CHECK,
                format!("a member of {above}, as are all others that are filtered"),
            ),
            _ => Check::ok(CHECK, format!("beneath {above}")),
        };
    }
    let ports = members(interface.index);
    if interface.kind.as_deref() == Some("bridge") {
        let wires: Vec<_> = ports.iter().filter(|port| port.kind.is_none()).copied().collect();
        let guests: Vec<_> = ports.iter().filter(|port| port.kind.is_some()).copied().collect();
        if wires.iter().any(|wire| wanted.contains(&wire.name)) {
            return Check::ok(
                CHECK,
                format!("a bridge whose port {} is filtered as well", names(&wires)),
            );
        }
        if !guests.is_empty() {
            let port = if wires.is_empty() { "its ports".to_owned() } else { names(&wires) };
            return Check::warn(
                CHECK,
                format!(
                    "a bridge: only what is for this host is filtered; what goes on to {} passes \
                     by unfiltered",
                    names(&guests)
                ),
                format!(
                    "to protect guests (Proxmox, libvirt), filter on the port by which the world \
                     comes: {port}"
                ),
            );
        }
        return Check::ok(CHECK, "a bridge, with no guests behind it");
    }
    if interface.kind.as_deref() == Some("bond") {
        return Check::ok(CHECK, format!("a bond of {}", names(&ports)));
    }
    Check::ok(CHECK, "stands by itself")
}

/// Tunnels that end here: their contents are decapsulated behind the filter of the lower interface.
pub(super) fn tunnels(facts: &HostFacts, wanted: &[String]) -> Check {
    judge_tunnels(&facts.present, wanted)
}

fn judge_tunnels(present: &[Interface], wanted: &[String]) -> Check {
    const CHECK: &str = "tunnels";
    let is_tunnel =
        |one: &&Interface| one.kind.as_deref().is_some_and(|kind| TUNNELS.contains(&kind));
    let open = |one: &&Interface| one.up && !wanted.contains(&one.name);
    let open: Vec<_> = present.iter().filter(is_tunnel).filter(open).collect();
    if open.is_empty() {
        return Check::ok(CHECK, "none ends here that is not filtered");
    }
    let shown = open
        .iter()
        .map(|one| format!("{} ({})", one.name, one.kind.as_deref().unwrap_or_default()));
    let first = &open[0];
    let remedy = match first.link {
        Some(_) => {
            format!("if SIP comes by it, filter there, too: add \"{}\" to `interfaces`", first.name)
        }
        None => {
            "its frames cannot be read; let nobody but the other end send to it, with a firewall"
                .to_owned()
        }
    };
    let detail = format!(
        "what these carry is not looked into beneath, and not filtered: {}",
        shown.collect::<Vec<_>>().join(", ")
    );
    Check::warn(CHECK, detail, remedy)
}

/// Effects of attaching on the link, and on the kernel's log.
pub(super) fn attaching(
    driver: &str,
    mode: Option<Mode>,
    takes_programs: Option<bool>,
    features: &Features,
) -> Check {
    const CHECK: &str = "attaching";
    let is_fixed = features.on.contains(GRO_HW) && !features.changeable.contains(GRO_HW);
    let is_generic =
        mode == Some(Mode::Generic) || (mode.is_none() && takes_programs == Some(false));
    if driver == "virtio_net" && is_fixed && mode != Some(Mode::Native) {
        // Native mode is certain only after it was tried on this host.
        let sure = if is_generic {
            "generic mode makes"
        } else {
            "should only generic mode be possible, it makes"
        };
        return Check::warn(
            CHECK,
            format!(
                "the host merges packets for this device (GRO_HW) and lets nobody switch it off: \
                 {sure} the kernel log a WARNING with a stack trace, \"failed to disable GRO_HW\", \
                 which is harmless"
            ),
            "on the host, have the device offer control (qemu: ctrl_guest_offloads=on), or take \
             its guest offloads away",
        );
    }
    if RESETTING.contains(&driver) && mode != Some(Mode::Generic) {
        return Check::ok(
            CHECK,
            format!(
                "{driver} takes the link down and up, for some seconds with most switches, when \
                 the filter is first \
                 attached and when it is unloaded; restarts and reloads do not"
            ),
        );
    }
    if driver == "bond" && mode != Some(Mode::Generic) {
        // `bond_xdp_set` in `drivers/net/bonding/bond_main.c`; seen on 6.1 and 6.12.
        return Check::ok(
            CHECK,
            "leaves the link up; the kernel's bonding driver never frees a program that another \
             replaces, so each restart leaves one in memory until the next boot",
        );
    }
    Check::ok(CHECK, "leaves the link up")
}

/// Offloads that hide packets from generic mode.
pub(super) fn merging(name: &str, mode: Option<Mode>, features: &Features) -> Option<Check> {
    let on: Vec<_> =
        UDP_MERGING.iter().filter(|offload| features.on.contains(**offload)).copied().collect();
    if mode != Some(Mode::Generic) || on.is_empty() {
        return None;
    }
    let detail = format!(
        "{} on: in generic mode several UDP packets of one source are seen, and counted, as one",
        on.join(" and ")
    );
    let off: Vec<_> = on.iter().map(|offload| format!("{offload} off")).collect();
    Some(Check::warn("offloads", detail, format!("ethtool -K {name} {}", off.join(" "))))
}

/// Whether the daemon has observed that a native program saw no packets.
pub(super) fn is_blind(name: &str, daemon: Option<&DaemonStatus>) -> bool {
    blindness(name, daemon).is_some()
}

fn blindness<'a>(name: &str, daemon: Option<&'a DaemonStatus>) -> Option<&'a BlindInterface> {
    daemon.iter().flat_map(|daemon| &daemon.blind).find(|one| one.interface == name)
}

/// Whether the program sees incoming packets, as the daemon has observed.
pub(super) fn sight(name: &str, daemon: Option<&DaemonStatus>) -> Check {
    const CHECK: &str = "sight";
    let Some(found) = blindness(name, daemon) else {
        return match daemon {
            Some(_) => {
                Check::ok(CHECK, "the daemon has noticed no packets that the program did not see")
            }
            None => Check::ok(
                CHECK,
                "the daemon watches whether the program sees what arrives; none answers",
            ),
        };
    };
    let detail =
        format!("the driver took the program and showed it none of {} packets", found.packets);
    if found.action.is_none() {
        let remedy = "set mode = \"auto\" or \"generic\" and run `sip-xdp reload`; for virtio_net, \
                      set mrg_rxbuf=on on the host";
        return Check::fail(CHECK, format!("{detail}: nothing is filtered"), remedy);
    }
    Check::warn(
        CHECK,
        format!("{detail}; generic mode has taken over"),
        "it protects as well, but costs more; for virtio_net, mrg_rxbuf=on on the host makes \
         native mode work",
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sip_xdp_common::packet::headers::Link;

    use super::*;
    use crate::api::answers::BlindInterface;
    use crate::tools::doctor::Status;

    fn interface(name: &str, index: u32, kind: &str, controller: u32) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            link: (kind != "gre").then_some(Link::Ethernet),
            link_type: 1,
            kind: (!kind.is_empty()).then(|| kind.to_owned()),
            up: true,
            mtu: 1_500,
            rx_queues: 1,
            xdp: None,
            controller: (controller != 0).then_some(controller),
            beneath: None,
            carrier_changes: 0,
            rx_packets: 0,
        }
    }

    fn judged(present: &[Interface], name: &str, wanted: &[&str]) -> Check {
        let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let one = present.iter().find(|one| one.name == name).unwrap();
        topology(one, present, &wanted)
    }

    #[test]
    fn members_of_bonds() {
        let present = [
            interface("bond0", 5, "bond", 0),
            interface("eth0", 2, "", 5),
            interface("eth1", 3, "", 5),
        ];
        let one = judged(&present, "eth0", &["eth0"]);
        assert!(one.status == Status::Warn && one.detail.contains("eth1"), "{one:?}");
        assert_eq!(one.remedy.as_deref(), Some("filter on bond0 instead of its members"));
        assert_eq!(judged(&present, "eth0", &["eth0", "eth1"]).status, Status::Ok);
        assert_eq!(judged(&present, "eth0", &["eth0", "bond0"]).status, Status::Warn);
        assert_eq!(judged(&present, "bond0", &["bond0"]).status, Status::Ok);
    }

    #[test]
    fn bridges_and_their_guests() {
        let present = [
            interface("vmbr0", 5, "bridge", 0),
            interface("eno1", 2, "", 5),
            interface("tap100i0", 7, "tun", 5),
            interface("veth101i0", 8, "veth", 5),
        ];
        let bridge = judged(&present, "vmbr0", &["vmbr0"]);
        assert!(
            bridge.status == Status::Warn && bridge.detail.contains("tap100i0, veth101i0"),
            "{bridge:?}"
        );
        assert!(bridge.remedy.as_deref().unwrap().ends_with(": eno1"), "{bridge:?}");
        assert_eq!(judged(&present, "vmbr0", &["vmbr0", "eno1"]).status, Status::Ok);
        assert_eq!(judged(&present, "eno1", &["eno1"]).status, Status::Ok);
        assert_eq!(judged(&present[..2], "vmbr0", &["vmbr0"]).status, Status::Ok);
    }

    #[test]
    fn tunnels_that_end_here() {
        let down = Interface { up: false, ..interface("gre0", 4, "gre", 0) };
        let present = [interface("eth0", 2, "", 0), down, interface("wg0", 6, "wireguard", 0)];
        assert_eq!(judge_tunnels(&present, &[]).status, Status::Ok);
        for (kind, part) in [("vxlan", "add \"t1\""), ("gre", "firewall")] {
            let present = [interface("eth0", 2, "", 0), interface("t1", 7, kind, 0)];
            let check = judge_tunnels(&present, &["eth0".to_owned()]);
            assert!(
                check.status == Status::Warn && check.remedy.as_deref().unwrap().contains(part),
                "{check:?}"
            );
            assert_eq!(judge_tunnels(&present, &["t1".to_owned()]).status, Status::Ok);
        }
    }

    fn features(on: &[&str], changeable: &[&str]) -> Features {
        let set = |names: &[&str]| -> BTreeSet<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        Features { on: set(on), changeable: set(changeable) }
    }

    #[test]
    fn effects_of_attaching() {
        let (fixed, free) = (features(&[GRO_HW], &[]), features(&[GRO_HW], &[GRO_HW]));
        let generic = Some(Mode::Generic);
        assert_eq!(attaching("virtio_net", generic, Some(true), &fixed).status, Status::Warn);
        assert_eq!(attaching("virtio_net", None, None, &fixed).status, Status::Warn);
        assert_eq!(attaching("virtio_net", Some(Mode::Native), None, &fixed).status, Status::Ok);
        assert_eq!(attaching("virtio_net", generic, Some(true), &free).status, Status::Ok);
        let igb = attaching("igb", None, Some(true), &free);
        assert!(igb.status == Status::Ok && igb.detail.contains("down and up"), "{igb:?}");
        assert!(!attaching("igb", generic, Some(true), &free).detail.contains("down and up"));
        assert!(!attaching("e1000e", None, Some(false), &free).detail.contains("down and up"));
        assert!(
            attaching("bond", Some(Mode::Native), Some(true), &free).detail.contains("never frees")
        );
        assert_eq!(attaching("bond", generic, Some(true), &free).detail, "leaves the link up");
    }

    #[test]
    fn merged_udp_packets() {
        let on = features(&["rx-udp-gro-forwarding", "rx-gro"], &[]);
        let check = merging("eth0", Some(Mode::Generic), &on).unwrap();
        assert_eq!(check.remedy.as_deref(), Some("ethtool -K eth0 rx-udp-gro-forwarding off"));
        assert_eq!(merging("eth0", Some(Mode::Native), &on), None);
        assert_eq!(merging("eth0", Some(Mode::Generic), &features(&["rx-gro"], &[])), None);
    }

    #[test]
    fn blind_programs_are_reported() {
        let daemon = |action: Option<&str>| DaemonStatus {
            blind: vec![BlindInterface {
                interface: "eth0".to_owned(),
                since: jiff::Timestamp::UNIX_EPOCH,
                packets: 40,
                action: action.map(str::to_owned),
            }],
            ..DaemonStatus::default()
        };
        assert_eq!(sight("eth0", Some(&daemon(None))).status, Status::Fail);
        assert_eq!(sight("eth0", Some(&daemon(Some("generic")))).status, Status::Warn);
        assert_eq!(sight("eth1", Some(&daemon(None))).status, Status::Ok);
        assert_eq!(sight("eth0", None).status, Status::Ok);
    }
}
