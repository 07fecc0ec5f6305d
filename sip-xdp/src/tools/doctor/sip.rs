//! The question that starts it all: who listens for SIP here, who can reach it, and does the filter stand in between?

use std::net::IpAddr;
use std::process::{Command, Stdio};

use super::sockets::{Listener, Transport, listeners};
use super::{Check, Scene};
use crate::config::{Config, Policy};

/// Servers that speak nothing but SIP on their ports.
const PROXIES: [&str; 7] = ["kamailio", "opensips", "openser", "drachtio", "flexisip", "repro", "sipp"];

/// Servers that have ports for media and management as well.
const EXCHANGES: [&str; 6] = ["asterisk", "freeswitch", "yate", "sems", "3CXPhoneSystem", "mobicents"];

/// Ports on which SIP is found beside the usual two: FreeSWITCH 5080, FreePBX 5160 and 5161, and their neighbours.
fn is_usual(port: u16) -> bool {
    (5060..=5099).contains(&port) || (5160..=5169).contains(&port)
}

/// From where an address of this host can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    /// From this host.
    Host,
    /// From networks that are not routed in the internet; or from there, if a router forwards.
    Private,
    /// From everywhere, unless somebody filters.
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

/// All checks of who listens.
pub(super) fn all(scene: &Scene, wanted: &[String]) -> Vec<Check> {
    let all = listeners();
    let relevant: Vec<&Listener> = all.iter().filter(|one| speaks_sip(one, &scene.config)).collect();
    let (listed, unlisted): (Vec<&Listener>, Vec<&Listener>) =
        relevant.iter().partition(|one| is_listed(one.port, &scene.config));
    let own: Vec<IpAddr> = scene.addresses.iter().map(|(_, address)| *address).collect();
    vec![
        who_listens(&listed, &own, scene.is_root),
        unlisted_ports(&unlisted, &own, &scene.config),
        exposure(scene, &listed, wanted),
        policy(scene, &listed, &own),
        source_nat(scene, &relevant),
        translated_ports(scene),
    ]
}

fn is_listed(port: u16, config: &Config) -> bool {
    config.ports.iter().any(|range| (range.first..=range.last).contains(&port))
}

fn speaks_sip(listener: &Listener, config: &Config) -> bool {
    let is_proxy = PROXIES.contains(&listener.name());
    // Media of a busy exchange may be on any port, of which only the usual ones can be told to be SIP.
    is_proxy || is_usual(listener.port) || is_listed(listener.port, config)
}

/// Whom an address serves. One that stands for all addresses serves whoever reaches the best reachable of them.
fn scope(address: IpAddr, own: &[IpAddr]) -> Scope {
    if !address.is_unspecified() {
        return scope_of(address);
    }
    // `::` takes IPv4 as well.
    let served = own.iter().filter(|one| one.is_ipv4() || address.is_ipv6());
    served.map(|one| scope_of(*one)).max().unwrap_or(Scope::Host)
}

fn scope_of(address: IpAddr) -> Scope {
    match address {
        _ if address.is_loopback() => Scope::Host,
        IpAddr::V4(v4) => {
            let is_shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            if v4.is_private() || v4.is_link_local() || is_shared { Scope::Private } else { Scope::World }
        }
        IpAddr::V6(v6) if v6.is_unique_local() || v6.is_unicast_link_local() => Scope::Private,
        IpAddr::V6(_) => Scope::World,
    }
}

fn who_listens(listed: &[&Listener], own: &[IpAddr], is_root: bool) -> Check {
    const CHECK: &str = "listeners";
    let unseen = if is_root { "" } else { "; whose they are, only root may see of other users' processes" };
    if listed.is_empty() {
        return Check::ok(
            CHECK,
            format!(
                "nobody listens on the SIP ports here: right for a gateway in front of a PBX, or the PBX is not running{unseen}"
            ),
        );
    }
    let lines: Vec<_> =
        listed.iter().map(|one| format!("{one}, reachable from {}", scope(one.address, own).words())).collect();
    Check::ok(CHECK, format!("{}{unseen}", lines.join("; ")))
}

fn unlisted_ports(unlisted: &[&Listener], own: &[IpAddr], config: &Config) -> Check {
    const CHECK: &str = "unlisted_ports";
    let open: Vec<&&Listener> = unlisted.iter().filter(|one| scope(one.address, own) > Scope::Host).collect();
    let Some(worst) = open.iter().map(|one| scope(one.address, own)).max() else {
        return Check::ok(CHECK, "no SIP server is found on other ports than those that are filtered");
    };
    let mut ports: Vec<String> = config.ports.iter().map(ToString::to_string).collect();
    for one in &open {
        if !ports.contains(&one.port.to_string()) {
            ports.push(one.port.to_string());
        }
    }
    // A range is written as text.
    let ports: Vec<_> =
        ports.into_iter().map(|port| if port.contains('-') { format!("{port:?}") } else { port }).collect();
    let found: Vec<_> = open.iter().map(ToString::to_string).collect();
    let who = EXCHANGES.iter().chain(&PROXIES).any(|name| open.iter().any(|one| one.name() == *name));
    let sure = if who { "which is not filtered" } else { "which is not filtered, and looks like SIP" };
    let detail = format!("{}, {sure}; reachable from {}", found.join("; "), worst.words());
    let remedy = format!("add it to the configuration and reload: ports = [{}]", ports.join(", "));
    if worst == Scope::World { Check::fail(CHECK, detail, remedy) } else { Check::warn(CHECK, detail, remedy) }
}

/// Whether the filter stands between the world and who listens.
fn exposure(scene: &Scene, listed: &[&Listener], wanted: &[String]) -> Check {
    const CHECK: &str = "exposure";
    let mut bare = Vec::new();
    let mut covered = Vec::new();
    for (index, address) in scene.addresses.iter().filter(|(_, address)| scope_of(*address) == Scope::World) {
        let reaches = |one: &&&Listener| {
            let takes_all = one.address.is_unspecified() && (one.address.is_ipv6() || address.is_ipv4());
            takes_all || one.address == *address
        };
        if !listed.iter().any(|one| reaches(&one)) {
            continue;
        }
        let Some(interface) = scene.present.iter().find(|one| one.index == *index) else { continue };
        // Who may not read the pins sees that there is a program, but not whose.
        let is_filtered = scene.is_filtered(*index) || (!scene.is_root && interface.xdp.is_some());
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
        format!("the world reaches the SIP ports at {}, where nothing is filtered", places.join(", ")),
        format!("sip-xdp run {}; or have the server listen on private addresses only", options.join(" ")),
    )
}

/// Whether the policy suits the host.
fn policy(scene: &Scene, listed: &[&Listener], own: &[IpAddr]) -> Check {
    const CHECK: &str = "policy";
    let is_open = listed.iter().any(|one| scope(one.address, own) == Scope::World);
    let mut by_tcp: Vec<_> = listed.iter().filter(|one| one.transport == Transport::Tcp).map(|one| one.port).collect();
    by_tcp.sort_unstable();
    by_tcp.dedup();
    let by_tcp: Vec<_> = by_tcp.iter().map(ToString::to_string).collect();
    let streams = match by_tcp.is_empty() {
        true => "nobody listens on TCP".to_owned(),
        false => format!(
            "phones that use TCP or TLS (port {}) are not learnt, and locked out unless they are admitted",
            by_tcp.join(", ")
        ),
    };
    let known = scene.known.as_ref();
    let named = scene.config.trust.networks.len()
        + scene.config.trust.hosts.len()
        + scene.config.admit.networks.len()
        + scene.config.admit.hosts.len()
        + known.map_or(0, |known| known.trusted);
    let learnt = known.map_or(0, |known| known.good + known.peers);
    match scene.config.policy {
        Policy::Closed if named + learnt == 0 => Check::fail(
            CHECK,
            "policy = \"closed\", but nobody is trusted, admitted or known good: nobody can talk",
            "name the networks of phones and carriers in [admit] and [trust], or go back to policy = \"open\"",
        ),
        Policy::Closed if !by_tcp.is_empty() => {
            Check::warn(CHECK, format!("policy = \"closed\": {streams}"), "add their networks to [admit]")
        }
        Policy::Closed => Check::ok(CHECK, format!("policy = \"closed\": {named} named and {learnt} learnt may talk")),
        Policy::Open if !is_open => Check::ok(
            CHECK,
            "policy = \"open\"; the world does not reach the SIP ports, so that `closed` would change little",
        ),
        Policy::Open => Check::ok(
            CHECK,
            format!(
                "policy = \"open\". `closed` suits a host whose phones and carriers all come from networks that can be named \
                 ({named} are) or have registered before ({learnt} have); {streams}"
            ),
        ),
    }
}

/// Whether somebody on the way makes all sources look like one.
fn source_nat(scene: &Scene, relevant: &[&Listener]) -> Check {
    const CHECK: &str = "source_nat";
    const REMEDY: &str = "filter on the outer interface of this host, which sees the real sources; give the PBX's container the \
                          host's network, or exempt SIP from the translation, so that the PBX and its log see them, too";
    let proxy =
        relevant.iter().find(|one| ["docker-proxy", "rootlessport", "slirp4netns", "pasta"].contains(&one.name()));
    if let Some(proxy) = proxy {
        let detail = format!("{proxy} forwards for a container, whose PBX takes everybody for this one address");
        return Check::warn(CHECK, detail, REMEDY);
    }
    let inner: Vec<&str> = scene
        .present
        .iter()
        .filter(|one| !scene.around.default_interfaces.contains(&one.index) && one.name != "lo")
        .map(|one| one.name.as_str())
        .collect();
    let mut seen = false;
    for (program, arguments) in [("nft", ["list", "ruleset"]), ("iptables-legacy-save", ["-t", "nat"])] {
        let Some(rules) = output(program, &arguments) else { continue };
        seen = true;
        if let Some(rule) = rules.lines().find(|rule| hides_sources(rule, &scene.config, &inner)) {
            let detail = format!("a rule hides who sends to the PBX: {}", rule.trim());
            return Check::warn(CHECK, detail, REMEDY);
        }
    }
    let unseen = if seen { "" } else { "; rules could not be listed (nft as root can)" };
    Check::ok(CHECK, format!("no proxy or rule is found that hides who sends{unseen}"))
}

/// Whether rules send other ports to a SIP port: the filter reads packets before they are translated.
fn translated_ports(scene: &Scene) -> Check {
    const CHECK: &str = "translated_ports";
    for (program, arguments) in [("nft", ["list", "ruleset"]), ("iptables-legacy-save", ["-t", "nat"])] {
        let Some(rules) = output(program, &arguments) else { continue };
        let found = rules.lines().find_map(|rule| Some((rule, translated_from(rule, &scene.config)?)));
        if let Some((rule, port)) = found {
            return Check::warn(
                CHECK,
                format!(
                    "port {port} is translated to a SIP port behind the filter, which does not read it: {}",
                    rule.trim()
                ),
                format!("add {port} to `ports` in the configuration, and reload"),
            );
        }
    }
    Check::ok(CHECK, "no rule is found that sends other ports to a SIP port")
}

/// The port, not among the configured ones, that a rule of nft or iptables sends to one of them.
fn translated_from(rule: &str, config: &Config) -> Option<u16> {
    let words: Vec<&str> =
        rule.split(|c: char| c.is_whitespace() || "\",{}".contains(c)).filter(|w| !w.is_empty()).collect();
    let is_translation = |word: &&str| ["dnat", "redirect", "DNAT", "REDIRECT"].contains(word);
    let at = words.iter().position(is_translation)?;
    // nft: `dnat ip to 10.0.0.1:5060`, `redirect to :5060`; iptables: `--to-destination`, `--to-ports`.
    let to = words[at..].iter().position(|word| word.starts_with("to") || word.starts_with("--to"))?;
    let target = words.get(at + to + 1)?;
    let port = target.rsplit(':').next()?.split('-').next()?.parse::<u16>().ok()?;
    let from = words.iter().position(|word| ["dport", "--dport", "--dports"].contains(word))?;
    let numbers = words[from + 1..].iter().map_while(|word| word.split(['-', ':']).next()?.parse::<u16>().ok());
    let unread = numbers.into_iter().find(|number| !is_listed(*number, config));
    unread.filter(|_| is_listed(port, config))
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a rule of nft or iptables gives packets to SIP ports, or into an inner network, another source.
fn hides_sources(rule: &str, config: &Config, inner: &[&str]) -> bool {
    let words: Vec<&str> =
        rule.split(|c: char| c.is_whitespace() || "\",{}".contains(c)).filter(|w| !w.is_empty()).collect();
    let translates = words.iter().any(|word| ["masquerade", "snat", "MASQUERADE", "SNAT"].contains(word));
    if !translates {
        return false;
    }
    // From a container to itself.
    let after = |names: &[&str]| words.iter().position(|word| names.contains(word)).map(|at| &words[at + 1..]);
    let value = |names: &[&str]| after(names).and_then(|rest| rest.first().copied());
    let (from, to) = (value(&["saddr", "-s"]), value(&["daddr", "-d"]));
    if from.is_some() && from == to {
        return false;
    }
    let number = |text: &str| text.parse::<u16>().ok();
    let ports = after(&["dport", "--dport", "--dports"]).unwrap_or_default().iter().map_while(|word| {
        let (first, last) = word.split_once(['-', ':']).unwrap_or((word, word));
        Some(number(first)?..=number(last)?)
    });
    let mut ports = ports.peekable();
    if ports.peek().is_some() {
        let is_sip = |range: std::ops::RangeInclusive<u16>| {
            config.ports.iter().any(|listed| *range.start() <= listed.last && *range.end() >= listed.first)
        };
        return ports.any(is_sip);
    }
    // Without a port: into a network behind this host. What leaves to the world is everybody's ordinary translation.
    value(&["oifname", "oif", "-o"]).is_some_and(|name| inner.contains(&name)) && from.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::doctor::Status;

    #[test]
    fn ports_that_are_translated() {
        let config = Config::default();
        for (rule, port) in [
            ("udp dport 5080 redirect to :5060", Some(5_080)),
            ("iifname \"eth0\" udp dport { 5060, 15060 } counter dnat ip to 10.0.0.2:5060", Some(15_060)),
            ("-A PREROUTING -p udp -m udp --dport 15060 -j DNAT --to-destination 10.0.0.2:5060", Some(15_060)),
            ("-A PREROUTING -p udp -m multiport --dports 5070:5079,9 -j REDIRECT --to-ports 5060", Some(5_070)),
            // The filter reads these.
            ("udp dport 5060 dnat to 10.0.0.2:15060", None),
            ("udp dport 5060 dnat to 10.0.0.2", None),
            ("-A PREROUTING -p udp --dport 5060 -j REDIRECT --to-ports 5061", None),
            // Nothing to do with SIP.
            ("tcp dport 80 redirect to :8080", None),
            ("udp dport 5080 accept", None),
            ("", None),
        ] {
            assert_eq!(translated_from(rule, &config), port, "{rule}");
        }
    }

    fn listener(name: &str, address: &str, port: u16) -> Listener {
        let address = address.parse().unwrap();
        Listener { process: Some((name.to_owned(), 7)), transport: Transport::Udp, address, port }
    }

    #[test]
    fn from_where_addresses_are_reached() {
        let own: Vec<IpAddr> = ["127.0.0.1", "192.168.1.2", "::1"].map(|text| text.parse().unwrap()).to_vec();
        let public: Vec<IpAddr> = ["127.0.0.1", "203.0.113.9"].map(|text| text.parse().unwrap()).to_vec();
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
            let all = if speaks_sip(&one, &config) && !is_listed(port, &config) { vec![&one] } else { vec![] };
            unlisted_ports(&all, &own, &config)
        };
        let found = check("freeswitch", "0.0.0.0", 5080);
        assert_eq!(found.status, Status::Fail, "{found:?}");
        assert!(found.remedy.unwrap().ends_with("ports = [5060, 5061, 5080]"));
        assert_eq!(check("asterisk", "10.0.0.1", 5160).status, Status::Warn);
        assert_eq!(check("kamailio", "0.0.0.0", 6060).status, Status::Fail);
        assert_eq!(check("nobody-knows", "0.0.0.0", 5080).status, Status::Fail);
        // Media, management, what only this host reaches, and what is listed.
        for (name, address, port) in [
            ("asterisk", "0.0.0.0", 10_002),
            ("asterisk", "0.0.0.0", 5_038),
            ("freeswitch", "127.0.0.1", 5_080),
            ("kamailio", "0.0.0.0", 5_060),
        ] {
            assert_eq!(check(name, address, port).status, Status::Ok, "{name} {port}");
        }
    }

    #[test]
    fn rules_that_hide_sources() {
        let config = Config::default();
        let inner = ["lan", "docker0"];
        for rule in [
            "udp dport 5060 masquerade",
            "ip daddr 10.0.0.2 udp dport { 5060, 5061 } counter packets 0 bytes 0 snat to 10.0.0.1",
            "udp dport 5000-5100 masquerade",
            "oifname \"lan\" masquerade",
            "oifname \"docker0\" counter packets 1 bytes 2 masquerade",
            "-A POSTROUTING -d 10.0.0.2/32 -p udp -m udp --dport 5060 -j MASQUERADE",
            "-A POSTROUTING -o lan -j SNAT --to-source 10.0.0.1",
        ] {
            assert!(hides_sources(rule, &config, &inner), "{rule}");
        }
        for rule in [
            "oifname \"wan\" masquerade",
            "oifname != \"docker0\" ip saddr 172.17.0.0/16 masquerade",
            "ip saddr 172.17.0.2 ip daddr 172.17.0.2 udp dport 5060 masquerade",
            "udp dport 5060 dnat to 10.0.0.2",
            "tcp dport 443 masquerade",
            "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
            "type nat hook postrouting priority srcnat; policy accept;",
            "",
        ] {
            assert!(!hides_sources(rule, &config, &inner), "{rule}");
        }
    }
}
