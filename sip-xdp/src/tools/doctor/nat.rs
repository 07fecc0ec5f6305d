//! NAT rules that hide the sources of packets, or SIP behind other ports.

use std::process::{Command, Stdio};

use super::sip::is_listed;
use super::sockets::Listener;
use super::{Check, HostFacts};
use crate::config::Config;

/// Whether source NAT makes all sources look like one.
pub(super) fn source_nat(facts: &HostFacts, relevant: &[&Listener]) -> Check {
    const CHECK: &str = "source_nat";
    const REMEDY: &str = "filter on the outer interface of this host, which sees the real sources; \
                          give the PBX's container the \
                          host's network, or exempt SIP from the translation, so that the PBX and \
                          its log see them, too";
    let proxy = relevant
        .iter()
        .find(|one| ["docker-proxy", "rootlessport", "slirp4netns", "pasta"].contains(&one.name()));
    if let Some(proxy) = proxy {
        let detail = format!(
            "{proxy} forwards for a container, whose PBX takes everybody for this one address"
        );
        return Check::warn(CHECK, detail, REMEDY);
    }
    let inner: Vec<&str> = facts
        .present
        .iter()
        .filter(|one| !facts.around.default_interfaces.contains(&one.index) && one.name != "lo")
        .map(|one| one.name.as_str())
        .collect();
    let mut seen = false;
    for (program, arguments) in
        [("nft", ["list", "ruleset"]), ("iptables-legacy-save", ["-t", "nat"])]
    {
        let Some(rules) = output(program, &arguments) else { continue };
        seen = true;
        if let Some(rule) = rules.lines().find(|rule| hides_sources(rule, &facts.config, &inner)) {
            let detail = format!("a rule hides who sends to the PBX: {}", rule.trim());
            return Check::warn(CHECK, detail, REMEDY);
        }
    }
    let unseen = if seen { "" } else { "; rules could not be listed (nft as root can)" };
    Check::ok(CHECK, format!("no proxy or rule is found that hides who sends{unseen}"))
}

/// Whether rules redirect other ports to a SIP port: the filter sees packets before translation.
pub(super) fn translated_ports(facts: &HostFacts) -> Check {
    const CHECK: &str = "translated_ports";
    for (program, arguments) in
        [("nft", ["list", "ruleset"]), ("iptables-legacy-save", ["-t", "nat"])]
    {
        let Some(rules) = output(program, &arguments) else { continue };
        let found =
            rules.lines().find_map(|rule| Some((rule, translated_from(rule, &facts.config)?)));
        if let Some((rule, port)) = found {
            return Check::warn(
                CHECK,
                format!(
                    "port {port} is translated to a SIP port behind the filter, which does not \
                     read it: {}",
                    rule.trim()
                ),
                format!("add {port} to `ports` in the configuration, and reload"),
            );
        }
    }
    Check::ok(CHECK, "no rule is found that sends other ports to a SIP port")
}

/// The unconfigured port that a rule of nft or iptables redirects to a SIP port.
fn translated_from(rule: &str, config: &Config) -> Option<u16> {
    let words: Vec<&str> = rule
        .split(|c: char| c.is_whitespace() || "\",{}".contains(c))
        .filter(|w| !w.is_empty())
        .collect();
    let is_translation = |word: &&str| ["dnat", "redirect", "DNAT", "REDIRECT"].contains(word);
    let at = words.iter().position(is_translation)?;
    // nft: `dnat ip to 10.0.0.1:5060`, `redirect to :5060`; iptables: `--to-destination`,
    // `--to-ports`.
    let to =
        words[at..].iter().position(|word| word.starts_with("to") || word.starts_with("--to"))?;
    let target = words.get(at + to + 1)?;
    let port = target.rsplit(':').next()?.split('-').next()?.parse::<u16>().ok()?;
    let from = words.iter().position(|word| ["dport", "--dport", "--dports"].contains(word))?;
    let numbers = words[from + 1..]
        .iter()
        .map_while(|word| word.split(['-', ':']).next()?.parse::<u16>().ok());
    let unread = numbers.into_iter().find(|number| !is_listed(*number, config));
    unread.filter(|_| is_listed(port, config))
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a rule of nft or iptables translates the source of packets to SIP ports, or into an
/// inner network.
fn hides_sources(rule: &str, config: &Config, inner: &[&str]) -> bool {
    let words: Vec<&str> = rule
        .split(|c: char| c.is_whitespace() || "\",{}".contains(c))
        .filter(|w| !w.is_empty())
        .collect();
    let translates =
        words.iter().any(|word| ["masquerade", "snat", "MASQUERADE", "SNAT"].contains(word));
    if !translates {
        return false;
    }
    // From a container to itself.
    let after = |names: &[&str]| {
        words.iter().position(|word| names.contains(word)).map(|at| &words[at + 1..])
    };
    let value = |names: &[&str]| after(names).and_then(|rest| rest.first().copied());
    let (from, to) = (value(&["saddr", "-s"]), value(&["daddr", "-d"]));
    if from.is_some() && from == to {
        return false;
    }
    let number = |text: &str| text.parse::<u16>().ok();
    let ports =
        after(&["dport", "--dport", "--dports"]).unwrap_or_default().iter().map_while(|word| {
            let (first, last) = word.split_once(['-', ':']).unwrap_or((word, word));
            Some(number(first)?..=number(last)?)
        });
    let mut ports = ports.peekable();
    if ports.peek().is_some() {
        let is_sip = |range: std::ops::RangeInclusive<u16>| {
            config
                .ports
                .iter()
                .any(|listed| *range.start() <= listed.last && *range.end() >= listed.first)
        };
        return ports.any(is_sip);
    }
    // Without a port: into a network behind this host. Translation towards the outside is normal.
    value(&["oifname", "oif", "-o"]).is_some_and(|name| inner.contains(&name)) && from.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn ports_that_are_translated() {
        let config = Config::default();
        for (rule, port) in [
            ("udp dport 5080 redirect to :5060", Some(5_080)),
            (
                "iifname \"eth0\" udp dport { 5060, 15060 } counter dnat ip to 10.0.0.2:5060",
                Some(15_060),
            ),
            (
                "-A PREROUTING -p udp -m udp --dport 15060 -j DNAT --to-destination 10.0.0.2:5060",
                Some(15_060),
            ),
            (
                "-A PREROUTING -p udp -m multiport --dports 5070:5079,9 -j REDIRECT --to-ports \
                 5060",
                Some(5_070),
            ),
            // The filter sees these.
            ("udp dport 5060 dnat to 10.0.0.2:15060", None),
            ("udp dport 5060 dnat to 10.0.0.2", None),
            ("-A PREROUTING -p udp --dport 5060 -j REDIRECT --to-ports 5061", None),
            // Unrelated to SIP.
            ("tcp dport 80 redirect to :8080", None),
            ("udp dport 5080 accept", None),
            ("", None),
        ] {
            assert_eq!(translated_from(rule, &config), port, "{rule}");
        }
    }
}
