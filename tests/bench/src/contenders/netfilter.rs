//! nftables and iptables, from the earliest hook to the rules of fail2ban.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::Wire;
use sip_xdp_tests::process::succeed;

use super::Contender;

/// A set in the netdev ingress hook.
pub(super) fn netdev_ingress<'w>(
    wire: &'w Wire,
    sources: &[Ipv4Addr],
) -> Result<Box<dyn Contender + 'w>> {
    nftables(wire, sources, "netdev", "type filter hook ingress device wan priority -500")
}

/// A set in prerouting, before connection tracking.
pub(super) fn inet_prerouting<'w>(
    wire: &'w Wire,
    sources: &[Ipv4Addr],
) -> Result<Box<dyn Contender + 'w>> {
    nftables(wire, sources, "inet", "type filter hook prerouting priority raw")
}

fn nftables<'w>(
    wire: &'w Wire,
    sources: &[Ipv4Addr],
    family: &'static str,
    hook: &str,
) -> Result<Box<dyn Contender + 'w>> {
    let elements: Vec<_> = sources.iter().map(ToString::to_string).collect();
    let rules = format!(
        "table {family} bench {{\n\
         set sources {{ type ipv4_addr; elements = {{ {} }} }}\n\
         chain first {{ {hook}; ip saddr @sources counter drop\n}}\n}}\n",
        elements.join(", ")
    );
    load(wire, "nft", &["-f"], &rules)?;
    Ok(Box::new(Nftables { wire, family }))
}

struct Nftables<'w> {
    wire: &'w Wire,
    family: &'static str,
}

impl Contender for Nftables<'_> {
    fn stopped(&self) -> Result<u64> {
        let mut nft = self.wire.receiver.command("nft");
        let rules = succeed(nft.args(["--json", "list", "chain", self.family, "bench", "first"]))?;
        let rules: Value = serde_json::from_str(&rules).context("`nft` printed no JSON")?;
        counted(&rules).context("`nft` shows no counter")
    }

    fn counter(&self) -> &'static str {
        "the rule's counter in `nft list`"
    }
}

/// An ipset with one rule in the raw table, before connection tracking.
pub(super) fn ipset<'w>(wire: &'w Wire, sources: &[Ipv4Addr]) -> Result<Box<dyn Contender + 'w>> {
    let mut set = String::from("create sources hash:ip maxelem 65536\n");
    for source in sources {
        // Writing to a string is infallible.
        let _ = writeln!(set, "add sources {source}");
    }
    load(wire, "ipset", &["restore", "-file"], &set)?;
    let rules =
        "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -m set --match-set sources src -j DROP\nCOMMIT\n";
    load(wire, "iptables-legacy-restore", &["--wait=10"], rules)?;
    Ok(Box::new(Iptables { wire, table: "raw", chain: "PREROUTING", populated: "" }))
}

/// The rules of fail2ban's default action after this number of bans: a chain called from INPUT,
/// with one REJECT per source.
pub(super) fn fail2ban<'w>(
    wire: &'w Wire,
    sources: &[Ipv4Addr],
) -> Result<Box<dyn Contender + 'w>> {
    let mut rules = String::from(
        "*filter\n:INPUT ACCEPT\n:f2b-sip -\n-A INPUT -p udp -m multiport --dports 5060,5061 -j \
         f2b-sip\n",
    );
    for source in sources {
        let _ = writeln!(
            rules,
            "-A f2b-sip -s {source}/32 -j REJECT --reject-with icmp-port-unreachable"
        );
    }
    rules.push_str("-A f2b-sip -j RETURN\nCOMMIT\n");
    load(wire, "iptables-legacy-restore", &["--wait=10"], &rules)?;
    Ok(Box::new(Iptables {
        wire,
        table: "filter",
        chain: "f2b-sip",
        populated: "one rule for each source",
    }))
}

struct Iptables<'w> {
    wire: &'w Wire,
    table: &'static str,
    chain: &'static str,
    populated: &'static str,
}

impl Contender for Iptables<'_> {
    fn stopped(&self) -> Result<u64> {
        let mut iptables = self.wire.receiver.command("iptables-legacy");
        let rules = succeed(iptables.args([
            "--wait=10",
            "-t",
            self.table,
            "-L",
            self.chain,
            "-n",
            "-v",
            "-x",
        ]))?;
        Ok(matched(&rules))
    }

    fn populated(&self) -> String {
        self.populated.to_owned()
    }

    fn counter(&self) -> &'static str {
        "the rules' counters in `iptables -L -v -x`"
    }
}

/// Hands rules to a program that reads them from a file.
fn load(wire: &Wire, program: &str, arguments: &[&str], rules: &str) -> Result<()> {
    let file = wire.directory().join("rules");
    fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
    succeed(wire.receiver.command(program).args(arguments).arg(&file)).map(drop)
}

/// The packets of the first counter of a chain.
fn counted(rules: &Value) -> Option<u64> {
    let rules = rules["nftables"].as_array()?.iter();
    let mut expressions = rules.filter_map(|entry| entry["rule"]["expr"].as_array()).flatten();
    expressions.find_map(|expression| expression.pointer("/counter/packets")?.as_u64())
}

/// The packets of all rules that drop or reject.
fn matched(rules: &str) -> u64 {
    let fields = rules.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields
        .filter(|fields| fields.get(2).is_some_and(|target| matches!(*target, "DROP" | "REJECT")))
        .filter_map(|fields| fields.first()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_nft_counts() {
        let counter = json!({ "counter": { "packets": 4711, "bytes": 9 } });
        let rule = json!({ "rule": { "expr": [{ "match": {} }, counter, { "drop": null }] } });
        let rules = json!({ "nftables": [{ "metainfo": {} }, { "chain": {} }, rule] });
        assert_eq!(counted(&rules), Some(4711));
        assert_eq!(counted(&json!({ "nftables": [] })), None);
    }

    #[test]
    fn adds_what_iptables_counts() {
        let rules = "Chain f2b-sip (1 references)\n    pkts      bytes target     prot opt \
                     in     out     source\n\
                     \x20   40 1000 REJECT  all -- * * 64.0.0.1 0.0.0.0/0\n\
                     \x20   2 1000 DROP  all -- * * 64.0.0.2 0.0.0.0/0\n\
                     \x20   7 1000 RETURN  all -- * * 0.0.0.0/0 0.0.0.0/0\n";
        assert_eq!(matched(rules), 42);
    }
}
