//! Checks of the interfaces that are, or would be, filtered, and of the path of responses.
//!
//! Above 400 lines with its tests: independent checks.

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use sip_xdp_common::abi::names;

use super::device::{self, XdpFeatures};
use super::{Check, HostFacts, links};
use crate::api::answers::DaemonStatus;
use crate::dataplane::attach::clsact;
use crate::dataplane::attach::driver_refusal::ONE_BUFFER;
use crate::dataplane::attach::xdp::Mode;
use crate::dataplane::ethtool::{self, Channels, LRO};
use crate::dataplane::netlink::Interface;
use crate::dataplane::virtio::Obstacle;

/// Drivers whose XDP needs as many extra transmit queues as receive queues (`ena_xdp_allowed`,
/// `gve_verify_xdp_configuration`).
const HALVING: &[&str] = &["ena", "gve"];

/// Drivers that handle LRO themselves when a program is attached.
const LRO_BY_ITSELF: &[&str] = &["vmxnet3"];

/// All checks of these interfaces, and of the routes.
pub(super) fn all(facts: &HostFacts, wanted: &[String]) -> Vec<Check> {
    let mut checks = Vec::new();
    if wanted.is_empty() {
        checks.push(Check::fail(
            "interface",
            "no interface has a default route, and none is configured",
            "name those to filter on: `interfaces` in the configuration, or --iface",
        ));
    }
    for name in wanted {
        // A renamed one is still known by its configured name.
        let index = facts
            .filtered
            .iter()
            .find(|filtered| filtered.interface == *name)
            .map(|filtered| filtered.index);
        let found = facts.present.iter().find(|interface| interface.name == *name);
        let found =
            found.or_else(|| facts.present.iter().find(|interface| Some(interface.index) == index));
        match found {
            Some(interface) => {
                checks.extend(one(facts, interface, wanted).into_iter().map(|check| check.on(name)))
            }
            None => {
                let there: Vec<_> =
                    facts.present.iter().map(|interface| interface.name.as_str()).collect();
                let detail =
                    format!("there is no interface {name}; there are: {}", there.join(", "));
                let remedy = "correct `interfaces` in the configuration; one that comes later is \
                              filtered when it is there";
                checks.push(Check::fail("interface", detail, remedy).on(name));
            }
        }
    }
    checks.push(responses(facts, wanted));
    checks.push(links::tunnels(facts, wanted));
    checks
}

fn one(facts: &HostFacts, interface: &Interface, wanted: &[String]) -> Vec<Check> {
    if interface.link.is_none() {
        let detail = format!(
            "{} has link type {}, which cannot be read",
            interface.name, interface.link_type
        );
        let remedy = "filter on the interface beneath it; Ethernet, loopback, PPP, tun and \
                      WireGuard can be read";
        return vec![Check::fail("interface", detail, remedy)];
    }
    let name = &interface.name;
    let kind = interface
        .kind
        .clone()
        .or_else(|| ethtool::driver(name).ok().filter(|driver| !driver.is_empty()));
    let kind = kind.unwrap_or_else(|| "no driver's name".to_owned());
    let filtered = facts.filtered.iter().find(|one| one.index == interface.index && one.attached);
    let mode = filtered.and_then(|filtered| filtered.mode);
    let features = device::xdp_features(interface.index);
    let offered = ethtool::features_of(name).unwrap_or_default();
    let has_lro = offered.on.contains(LRO)
        && interface.kind.is_none()
        && !LRO_BY_ITSELF.contains(&kind.as_str());
    let merging = links::merging(name, mode, &offered);
    let configured = filtered.map_or(name, |filtered| &filtered.interface);
    vec![
        is_up(interface),
        driver(&kind, mode, features, Hindrance::of(interface, configured, facts.daemon.as_ref())),
        mtu(interface.mtu, mode, features),
        queues(name, &kind, interface, ethtool::channels(name).ok()),
        merging.unwrap_or_else(|| offloads(name, has_lro, offered.on.contains("rx-gro"))),
        links::attaching(&kind, mode, features.map(|features| features.native), &offered),
        links::topology(interface, &facts.present, wanted),
        links::sight(configured, facts.daemon.as_ref()),
        programs(interface, filtered.is_some(), facts.is_root),
        traffic_control(interface),
    ]
}

fn is_up(interface: &Interface) -> Check {
    let name = &interface.name;
    if interface.up {
        return Check::ok("interface", format!("{name} is there and up"));
    }
    Check::warn("interface", format!("{name} is down"), format!("ip link set {name} up"))
}

/// The reason why a driver that supports XDP does not run the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hindrance {
    /// The device prevents it.
    Device(Obstacle),
    /// The program saw no packets, as the daemon has observed.
    Blind,
}

impl Hindrance {
    fn of(interface: &Interface, configured: &str, daemon: Option<&DaemonStatus>) -> Option<Self> {
        let obstacle = interface.kind.is_none().then(|| Obstacle::of(&interface.name)).flatten();
        obstacle
            .map(Self::Device)
            .or_else(|| links::is_blind(configured, daemon).then_some(Self::Blind))
    }

    fn words(self) -> &'static str {
        match self {
            Self::Device(obstacle) => obstacle.words(),
            Self::Blind => "the driver took the program and showed it no packets",
        }
    }

    fn remedy(self) -> String {
        const COSTS: &str =
            "it protects as well, but costs several times the CPU per dropped packet";
        match self {
            Self::Device(obstacle) => format!("{COSTS}; for native mode: {}", obstacle.remedy()),
            Self::Blind => COSTS.to_owned(),
        }
    }
}

fn driver(
    kind: &str,
    mode: Option<Mode>,
    features: Option<XdpFeatures>,
    hindrance: Option<Hindrance>,
) -> Check {
    const CHECK: &str = "driver";
    const REMEDY: &str = "it protects as well, but costs several times the CPU per dropped packet; \
                          on PPP, VLAN or tunnel interfaces, filter on the Ethernet interface \
                          beneath, where tags and PPPoE sessions are read";
    match (mode, hindrance, features) {
        (Some(Mode::Native), ..) => {
            Check::ok(CHECK, format!("{kind}: the filter runs in the driver"))
        }
        (Some(Mode::Generic), Some(why), _) => Check::warn(
            CHECK,
            format!("{kind}: the filter runs in generic mode: {}", why.words()),
            why.remedy(),
        ),
        (None, Some(why), _) => Check::warn(
            CHECK,
            format!("{kind}: {}; generic mode it will be", why.words()),
            why.remedy(),
        ),
        (Some(Mode::Generic), None, Some(XdpFeatures { native: true, .. })) => Check::warn(
            CHECK,
            format!("{kind}: the filter runs in generic mode, though the driver could run it"),
            "look into the log for what the driver refused, often a long MTU or LRO; then restart \
             with mode = \"auto\"",
        ),
        (Some(Mode::Generic), None, _) => {
            Check::warn(CHECK, format!("{kind}: the filter runs in generic mode"), REMEDY)
        }
        (None, None, Some(XdpFeatures { native: true, .. })) => {
            Check::ok(CHECK, format!("{kind}: the driver can run the filter"))
        }
        (None, None, Some(_)) => Check::warn(
            CHECK,
            format!("{kind}: the driver runs no programs; generic mode it will be"),
            REMEDY,
        ),
        (None, None, None) => Check::ok(
            CHECK,
            format!(
                "{kind}: this kernel does not say what its drivers can do; `sip-xdp run` tries, \
                 and says in which mode"
            ),
        ),
    }
}

fn mtu(mtu: u32, mode: Option<Mode>, features: Option<XdpFeatures>) -> Check {
    const CHECK: &str = "mtu";
    if mtu <= ONE_BUFFER {
        return Check::ok(CHECK, format!("{mtu} bytes"));
    }
    match (mode, features) {
        (Some(Mode::Native), _) => {
            Check::ok(CHECK, format!("{mtu} bytes, with which the driver runs the filter"))
        }
        (_, Some(XdpFeatures { native: true, long_packets: true })) => {
            Check::ok(CHECK, format!("{mtu} bytes, for which the driver can run the filter"))
        }
        (_, features) => {
            let sure = if features.is_some() { "the driver runs" } else { "many drivers run" };
            Check::warn(
                CHECK,
                format!(
                    "{mtu} bytes: {sure} programs only for packets of up to {ONE_BUFFER} bytes; \
                     generic mode otherwise"
                ),
                "set it to 1500, unless this link carries jumbo frames; SIP needs no more",
            )
        }
    }
}

fn queues(name: &str, driver: &str, interface: &Interface, channels: Option<Channels>) -> Check {
    const CHECK: &str = "queues";
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    // Virtual interfaces run programs on the sender's CPU.
    let Some(Channels { used, most }) =
        channels.filter(|channels| channels.used > 0 && interface.kind.is_none())
    else {
        return Check::ok(CHECK, format!("{} for packets that arrive", interface.rx_queues));
    };
    let is_halving = HALVING.contains(&driver);
    let could = if is_halving { (most / 2).clamp(1, cpus.max(1)) } else { most.min(cpus) };
    if is_halving && used > (most / 2).max(1) {
        let detail = format!(
            "{used} of {most} queues are used, and {driver} runs programs natively with half of \
             them"
        );
        return Check::warn(CHECK, detail, format!("ethtool -L {name} combined {could}"));
    }
    if used < could {
        let detail = format!(
            "{used} of {most} queues are used on {cpus} CPUs: under a flood the others idle"
        );
        return Check::warn(
            CHECK,
            detail,
            format!("ethtool -L {name} combined {could} (or rx {could})"),
        );
    }
    Check::ok(CHECK, format!("{used} of {most} on {cpus} CPUs"))
}

fn offloads(name: &str, lro: bool, gro: bool) -> Check {
    const CHECK: &str = "offloads";
    if lro {
        let detail =
            "LRO is on: drivers refuse to run programs with it, or show them merged packets";
        return Check::warn(CHECK, detail, format!("ethtool -K {name} lro off"));
    }
    let gro = if gro { "on, which comes after the filter and does not matter" } else { "off" };
    Check::ok(CHECK, format!("LRO is off; GRO is {gro}"))
}

/// Other XDP programs on the interface.
fn programs(interface: &Interface, is_ours: bool, is_root: bool) -> Check {
    const CHECK: &str = "xdp_programs";
    let Some(xdp) = interface.xdp else {
        return Check::ok(CHECK, "none is attached");
    };
    if is_ours {
        return Check::ok(CHECK, "ours, and the kernel takes one per interface");
    }
    let program = loaded_programs().flatten().find(|program| program.id() == xdp.id);
    let name = program.as_ref().and_then(ProgramInfo::name_as_str).unwrap_or_default();
    if name == names::INGRESS {
        let detail = format!(
            "another sip-xdp is attached (program {}), or this one's pins may not be read",
            xdp.id
        );
        return Check::warn(CHECK, detail, "name its --pin-dir, or run it as root");
    }
    if !is_root {
        let detail = format!("a program is attached (id {}), but only root may see whose", xdp.id);
        return Check::warn(CHECK, detail, "run it as root to see everything");
    }
    let name = if name.is_empty() { "without a name".to_owned() } else { format!("\"{name}\"") };
    Check::fail(
        CHECK,
        format!(
            "another product's program is attached: {name}, id {}; the kernel takes one per \
             interface",
            xdp.id
        ),
        format!(
            "stop its owner, or take it off: `ip link set dev {} xdp off`, or `bpftool link`",
            interface.name
        ),
    )
}

/// Other programs on the interface's egress path.
fn traffic_control(interface: &Interface) -> Check {
    const CHECK: &str = "tc_programs";
    let filters = clsact::egress_filters(interface.index).unwrap_or_default();
    let filters =
        filters.iter().filter(|filter| filter.program.as_deref() != Some(names::EGRESS)).count();
    let programs = SchedClassifier::query_tcx(&interface.name, TcAttachType::Egress);
    let programs = programs.map(|(_, programs)| programs).unwrap_or_default();
    let programs =
        programs.iter().filter(|program| program.name_as_str() != Some(names::EGRESS)).count();
    if filters + programs == 0 {
        return Check::ok(CHECK, "nobody else's programs or filters see what leaves");
    }
    Check::warn(
        CHECK,
        format!(
            "{} programs or filters of others see what leaves, and may decide before ours reads it",
            filters + programs
        ),
        "if `sip-xdp status` says that responses are not seen, have them come later, or let \
         packets on (TC_ACT_UNSPEC)",
    )
}

/// Whether the server's responses are seen on their way out.
fn responses(facts: &HostFacts, wanted: &[String]) -> Check {
    const CHECK: &str = "responses";
    const REMEDY: &str = "filter there, too: add it to `interfaces`. Without responses nobody is \
                          known good, and volume bans nobody";
    let defaults: Vec<&Interface> = facts
        .present
        .iter()
        .filter(|one| facts.around.default_interfaces.contains(&one.index))
        .collect();
    let is_watched = |one: &&&Interface| {
        wanted.contains(&one.name)
            || facts.filtered.iter().any(|filtered| filtered.index == one.index)
    };
    let (watched, unwatched): (Vec<&Interface>, Vec<&Interface>) = {
        let watched = defaults.iter().filter(is_watched).copied().collect();
        (watched, defaults.iter().filter(|one| !is_watched(one)).copied().collect())
    };
    let list =
        |all: &[&Interface]| all.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    if !unwatched.is_empty() {
        let detail =
            format!("what goes to the world leaves by {}, which is not filtered", list(&unwatched));
        return if watched.is_empty() {
            Check::fail(CHECK, detail, REMEDY)
        } else {
            Check::warn(CHECK, detail, REMEDY)
        };
    }
    if facts.daemon.as_ref().is_some_and(|daemon| !daemon.sees_responses) {
        let detail = "the daemon sees hardly any responses to what passes: they leave by another \
                      interface, or nothing answers";
        return Check::warn(CHECK, detail, REMEDY);
    }
    if defaults.is_empty() {
        return Check::ok(CHECK, "there is no default route; only neighbours are answered");
    }
    Check::ok(
        CHECK,
        format!("what goes to the world leaves by {}, where it is read", list(&watched)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::doctor::Status;

    const OLD: Option<XdpFeatures> = None;
    const NONE: Option<XdpFeatures> = Some(XdpFeatures { native: false, long_packets: false });
    const SHORT: Option<XdpFeatures> = Some(XdpFeatures { native: true, long_packets: false });
    const LONG: Option<XdpFeatures> = Some(XdpFeatures { native: true, long_packets: true });

    #[test]
    fn drivers() {
        for (mode, features, status) in [
            (Some(Mode::Native), OLD, Status::Ok),
            (Some(Mode::Generic), NONE, Status::Warn),
            (Some(Mode::Generic), SHORT, Status::Warn),
            (None, SHORT, Status::Ok),
            (None, NONE, Status::Warn),
            (None, OLD, Status::Ok),
        ] {
            assert_eq!(
                driver("e1000e", mode, features, None).status,
                status,
                "{mode:?} {features:?}"
            );
        }
    }

    #[test]
    fn drivers_that_could_and_do_not() {
        let (refuses, never_calls) =
            (Hindrance::Device(Obstacle::Refuses), Hindrance::Device(Obstacle::NeverCalls));
        for (why, mode, features, part) in [
            (refuses, None, SHORT, "generic mode it will be"),
            (refuses, None, OLD, "disable GRO_HW/CSUM first"),
            (never_calls, None, LONG, "never calls it"),
            (never_calls, Some(Mode::Generic), LONG, "without mergeable buffers"),
            (Hindrance::Blind, Some(Mode::Generic), LONG, "showed it no packets"),
        ] {
            let check = driver("virtio_net", mode, features, Some(why));
            assert!(check.status == Status::Warn && check.detail.contains(part), "{check:?}");
            assert!(!check.detail.contains("could run it"), "{check:?}");
        }
        // Forced native mode stays; another check reports that it sees nothing.
        assert_eq!(
            driver("virtio_net", Some(Mode::Native), LONG, Some(never_calls)).status,
            Status::Ok
        );
    }

    #[test]
    fn long_packets() {
        for (bytes, mode, features, status) in [
            (1_500, None, NONE, Status::Ok),
            (9_000, None, LONG, Status::Ok),
            (9_000, None, SHORT, Status::Warn),
            (9_000, None, OLD, Status::Warn),
            (9_000, Some(Mode::Native), OLD, Status::Ok),
            (9_000, Some(Mode::Generic), SHORT, Status::Warn),
        ] {
            assert_eq!(mtu(bytes, mode, features).status, status, "{bytes} {mode:?} {features:?}");
        }
    }

    #[test]
    fn drivers_that_need_queues_of_their_own() {
        let interface = Interface {
            index: 2,
            name: "eth0".to_owned(),
            link: None,
            link_type: 1,
            kind: None,
            up: true,
            mtu: 1_500,
            rx_queues: 8,
            xdp: None,
            controller: None,
            beneath: None,
            carrier_changes: 0,
            rx_packets: 0,
        };
        let judged =
            |driver, used, most| queues("eth0", driver, &interface, Some(Channels { used, most }));
        for (driver, used, most) in [("ena", 8, 8), ("gve", 16, 16), ("ena", 2, 2)] {
            let check = judged(driver, used, most);
            assert!(check.status == Status::Warn && check.detail.contains("half"), "{check:?}");
        }
        assert_eq!(judged("ena", 1, 2).status, Status::Ok);
        assert_eq!(judged("ena", 1, 1).status, Status::Ok);
        let many = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        assert_eq!(judged("igb", many, many).status, Status::Ok);
    }

    #[test]
    fn merged_packets() {
        assert_eq!(offloads("eth0", false, true).status, Status::Ok);
        let check = offloads("eth0", true, true);
        assert_eq!(
            (check.status, check.remedy.as_deref()),
            (Status::Warn, Some("ethtool -K eth0 lro off"))
        );
    }
}
