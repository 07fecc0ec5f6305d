//! Checks of SIP listeners: their reachability, and whether the filter protects them.

use std::net::IpAddr;

use super::sockets::{Listener, Transport, listeners};
use super::{Check, HostFacts, hep, nat};
use crate::config::{Config, Policy};

/// Servers whose ports are all for SIP.
const PROXIES: [&str; 7] =
    ["kamailio", "opensips", "openser", "drachtio", "flexisip", "repro", "sipp"];

/// Servers that have media and management ports as well.
const EXCHANGES: [&str; 6] =
    ["asterisk", "freeswitch", "yate", "sems", "3CXPhoneSystem", "mobicents"];

/// Common SIP ports besides 5060 and 5061: FreeSWITCH 5080, FreePBX 5160 and 5161, and adjacent
/// ones.
fn is_usual(port: u16) -> bool {
    (5060..=5099).contains(&port) || (5160..=5169).contains(&port)
}

/// The reachability of an address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    /// This host only.
    Host,
    /// Private networks; or the internet, if a router forwards.
    Private,
    /// The internet, unless filtered elsewhere.
    World,
}

impl Scope {
    fn words(self) -> &'static str {
        match self {
            Self::Host => "this host only",
            Self::Private => "private networks, or wherever a router in front forwards from",
            Self::World => "the world",
        }
    }
}

/// All checks of listeners.
pub(super) fn all(facts: &HostFacts, wanted: &[String]) -> Vec<Check> {
    let all = listeners();
    let relevant: Vec<&Listener> =
        all.iter().filter(|one| speaks_sip(one, &facts.config)).collect();
    let (listed, unlisted): (Vec<&Listener>, Vec<&Listener>) =
        relevant.iter().partition(|one| is_listed(one.port, &facts.config));
    let own: Vec<IpAddr> = facts.addresses.iter().map(|(_, address)| *address).collect();
    vec![
        listener_check(&listed, &own, facts.is_root),
        unlisted_ports(&unlisted, &own, &facts.config),
        exposure(facts, &listed, wanted),
        nonces(facts),
        policy(facts, &listed, &own),
        hep::check(facts, &all),
        nat::source_nat(facts, &relevant),
        nat::translated_ports(facts),
    ]
}

pub(super) fn is_listed(port: u16, config: &Config) -> bool {
    config.ports.iter().any(|range| (range.first..=range.last).contains(&port))
}

fn speaks_sip(listener: &Listener, config: &Config) -> bool {
    let is_proxy = PROXIES.contains(&listener.name());
    // A busy PBX may have media on any port, so that only common ports count as SIP.
    is_proxy || is_usual(listener.port) || is_listed(listener.port, config)
}

/// The reachability of an address. A wildcard address has that of the most reachable one.
fn scope(address: IpAddr, own: &[IpAddr]) -> Scope {
    if !address.is_unspecified() {
        return scope_of(address);
    }
    // `::` accepts IPv4 as well.
    let served = own.iter().filter(|one| one.is_ipv4() || address.is_ipv6());
    served.map(|one| scope_of(*one)).max().unwrap_or(Scope::Host)
}

fn scope_of(address: IpAddr) -> Scope {
    match address {
        _ if address.is_loopback() => Scope::Host,
        IpAddr::V4(v4) => {
            let is_shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            if v4.is_private() || v4.is_link_local() || is_shared {
                Scope::Private
            } else {
                Scope::World
            }
        }
        IpAddr::V6(v6) if v6.is_unique_local() || v6.is_unicast_link_local() => Scope::Private,
        IpAddr::V6(_) => Scope::World,
    }
}

fn listener_check(listed: &[&Listener], own: &[IpAddr], is_root: bool) -> Check {
    const CHECK: &str = "listeners";
    let unseen =
        if is_root { "" } else { "; whose they are, only root may see of other users' processes" };
    if listed.is_empty() {
        return Check::ok(
            CHECK,
            format!(
                "nobody listens on the SIP ports here: right for a gateway in front of a PBX, or \
                 the PBX is not running{unseen}"
            ),
        );
    }
    let lines: Vec<_> = listed
        .iter()
        .map(|one| format!("{one}, reachable from {}", scope(one.address, own).words()))
        .collect();
    Check::ok(CHECK, format!("{}{unseen}", lines.join("; ")))
}

fn unlisted_ports(unlisted: &[&Listener], own: &[IpAddr], config: &Config) -> Check {
    const CHECK: &str = "unlisted_ports";
    let open: Vec<&&Listener> =
        unlisted.iter().filter(|one| scope(one.address, own) > Scope::Host).collect();
    let Some(worst) = open.iter().map(|one| scope(one.address, own)).max() else {
        return Check::ok(
            CHECK,
            "no SIP server is found on other ports than those that are filtered",
        );
    };
    let mut ports: Vec<String> = config.ports.iter().map(ToString::to_string).collect();
    for one in &open {
        if !ports.contains(&one.port.to_string()) {
            ports.push(one.port.to_string());
        }
    }
    // A range is a string.
    let ports: Vec<_> = ports
        .into_iter()
        .map(|port| if port.contains('-') { format!("{port:?}") } else { port })
        .collect();
    let found: Vec<_> = open.iter().map(ToString::to_string).collect();
    let who =
        EXCHANGES.iter().chain(&PROXIES).any(|name| open.iter().any(|one| one.name() == *name));
    let sure =
        if who { "which is not filtered" } else { "which is not filtered, and looks like SIP" };
    let detail = format!("{}, {sure}; reachable from {}", found.join("; "), worst.words());
    let remedy = format!("add it to the configuration and reload: ports = [{}]", ports.join(", "));
    if worst == Scope::World {
        Check::fail(CHECK, detail, remedy)
    } else {
        Check::warn(CHECK, detail, remedy)
    }
}

/// Whether nonces of the server prove the address of who echoes them.
fn nonces(facts: &HostFacts) -> Check {
    const CHECK: &str = "nonces";
    match facts.daemon.as_ref().map(|daemon| daemon.shared_nonces) {
        None => Check::ok(CHECK, "not known without a daemon"),
        Some(false) => Check::ok(CHECK, "hardly any was given to several sources"),
        Some(true) => Check::warn(
            CHECK,
            "the server gives the same nonce to several sources: who echoes one has proven \
             nothing, so that guessers over UDP are slowed down rather than banned",
            "Kamailio: modparam(\"auth\", \"auth_checks_register\", 8), and the same for \
             auth_checks_no_dlg and auth_checks_in_dlg, bind nonces to the source's address",
        ),
    }
}

/// Whether the filter protects the listeners from the internet.
fn exposure(facts: &HostFacts, listed: &[&Listener], wanted: &[String]) -> Check {
    const CHECK: &str = "exposure";
    let mut bare = Vec::new();
    let mut covered = Vec::new();
    for (index, address) in
        facts.addresses.iter().filter(|(_, address)| scope_of(*address) == Scope::World)
    {
        let reaches = |one: &&&Listener| {
            let takes_all =
                one.address.is_unspecified() && (one.address.is_ipv6() || address.is_ipv4());
            takes_all || one.address == *address
        };
        if !listed.iter().any(|one| reaches(&one)) {
            continue;
        }
        let Some(interface) = facts.present.iter().find(|one| one.index == *index) else {
            continue;
        };
        // Without access to the pins the program's owner is unknown.
        let is_filtered = facts.is_filtered(*index) || (!facts.is_root && interface.xdp.is_some());
        let place = format!("{address} ({})", interface.name);
        if is_filtered { covered.push(place) } else { bare.push((place, interface.name.clone())) }
    }
    if bare.is_empty() {
        let detail = match covered.is_empty() {
            true => "nobody listens for SIP at an address that the world can reach".to_owned(),
            false => format!("the filter is in front of {}", covered.join(", ")),
        };
        return Check::ok(CHECK, detail);
    }
    let places: Vec<_> = bare.iter().map(|(place, _)| place.clone()).collect();
    let mut names: Vec<_> = wanted.to_vec();
    names.extend(bare.into_iter().map(|(_, name)| name));
    names.sort();
    names.dedup();
    let options: Vec<_> = names.iter().map(|name| format!("--iface {name}")).collect();
    Check::fail(
        CHECK,
        format!(
            "the world reaches the SIP ports at {}, where nothing is filtered",
            places.join(", ")
        ),
        format!(
            "sip-xdp run {options}, with --dry-run at first to look on; or have the server listen \
             on private addresses only",
            options = options.join(" ")
        ),
    )
}

/// Whether the policy suits the host.
fn policy(facts: &HostFacts, listed: &[&Listener], own: &[IpAddr]) -> Check {
    const CHECK: &str = "policy";
    let is_open = listed.iter().any(|one| scope(one.address, own) == Scope::World);
    let mut by_tcp: Vec<_> =
        listed.iter().filter(|one| one.transport == Transport::Tcp).map(|one| one.port).collect();
    by_tcp.sort_unstable();
    by_tcp.dedup();
    let by_tcp: Vec<_> = by_tcp.iter().map(ToString::to_string).collect();
    let streams = match by_tcp.is_empty() {
        true => "nobody listens on TCP".to_owned(),
        false => format!(
            "phones that use TCP or TLS (port {}) and are not known yet are locked out unless they \
             are admitted",
            by_tcp.join(", ")
        ),
    };
    let known = facts.known.as_ref();
    let named = facts.config.trust.networks.len()
        + facts.config.trust.hosts.len()
        + facts.config.admit.networks.len()
        + facts.config.admit.hosts.len()
        + known.map_or(0, |known| known.trusted);
    let learnt = known.map_or(0, |known| known.good + known.peers);
    match facts.config.policy {
        Policy::Closed if named + learnt == 0 => Check::fail(
            CHECK,
            "policy = \"closed\", but nobody is trusted, admitted or known good: nobody can talk",
            "name the networks of phones and carriers in [admit] and [trust], or go back to policy \
             = \"open\"",
        ),
        Policy::Closed if !by_tcp.is_empty() => Check::warn(
            CHECK,
            format!("policy = \"closed\": {streams}"),
            "add their networks to [admit]",
        ),
        Policy::Closed => Check::ok(
            CHECK,
            format!("policy = \"closed\": {named} named and {learnt} learnt may talk"),
        ),
        Policy::Open if !is_open => Check::ok(
            CHECK,
            "policy = \"open\"; the world does not reach the SIP ports, so that `closed` would \
             change little",
        ),
        Policy::Open => Check::ok(
            CHECK,
            format!(
                "policy = \"open\". `closed` suits a host whose phones and carriers all come from \
                 networks that can be named \
                 ({named} are) or have registered before ({learnt} have); {streams}"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::doctor::Status;

    fn listener(name: &str, address: &str, port: u16) -> Listener {
        let address = address.parse().unwrap();
        Listener { process: Some((name.to_owned(), 7)), transport: Transport::Udp, address, port }
    }

    #[test]
    fn from_where_addresses_are_reached() {
        let own: Vec<IpAddr> =
            ["127.0.0.1", "192.168.1.2", "::1"].map(|text| text.parse().unwrap()).to_vec();
        let public: Vec<IpAddr> =
            ["127.0.0.1", "203.0.113.9"].map(|text| text.parse().unwrap()).to_vec();
        for (address, own, expected) in [
            ("127.0.0.1", &public, Scope::Host),
            ("0.0.0.0", &own, Scope::Private),
            ("0.0.0.0", &public, Scope::World),
            ("::", &public, Scope::World),
            ("10.1.2.3", &own, Scope::Private),
            ("100.64.0.1", &own, Scope::Private),
            ("203.0.113.9", &own, Scope::World),
            ("fd00::1", &own, Scope::Private),
            ("fe80::1", &own, Scope::Private),
            ("2001:db8::1", &own, Scope::World),
        ] {
            assert_eq!(scope(address.parse().unwrap(), own), expected, "{address}");
        }
    }

    #[test]
    fn ports_that_are_not_listed() {
        let config = Config::default();
        let own: Vec<IpAddr> = vec!["203.0.113.9".parse().unwrap()];
        let check = |name: &str, address: &str, port| {
            let one = listener(name, address, port);
            let all = if speaks_sip(&one, &config) && !is_listed(port, &config) {
                vec![&one]
            } else {
                vec![]
            };
            unlisted_ports(&all, &own, &config)
        };
        let found = check("freeswitch", "0.0.0.0", 5080);
        assert_eq!(found.status, Status::Fail, "{found:?}");
        assert!(found.remedy.unwrap().ends_with("ports = [5060, 5061, 5080]"));
        assert_eq!(check("asterisk", "10.0.0.1", 5160).status, Status::Warn);
        assert_eq!(check("kamailio", "0.0.0.0", 6060).status, Status::Fail);
        assert_eq!(check("nobody-knows", "0.0.0.0", 5080).status, Status::Fail);
        // Media, management, local-only and configured ports.
        for (name, address, port) in [
            ("asterisk", "0.0.0.0", 10_002),
            ("asterisk", "0.0.0.0", 5_038),
            ("freeswitch", "127.0.0.1", 5_080),
            ("kamailio", "0.0.0.0", 5_060),
        ] {
            assert_eq!(check(name, address, port).status, Status::Ok, "{name} {port}");
        }
    }
}
