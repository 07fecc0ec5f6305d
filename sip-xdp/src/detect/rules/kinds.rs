//! The kinds of bans: the names that the log, events and metrics use, and what each means in the
//! manual, whose chapter is made from this table.

use super::rule::BanKind;
use crate::sys::schema::{one_of, schema_of};

/// Bans of a network, for bans of hosts in it: no rule makes them, but [`crate::bans`].
const SITE: BanKind = BanKind {
    name: "site",
    evidence: "2 banned hosts of an IPv6 /64 within an hour, 3 from two /64s of a /56, 4 from two \
               /56s of a /48; with `bans.ipv4_networks`, 5 of an IPv4 /24",
    limits: "proven evidence only; never a network where somebody known good lives",
};

/// All kinds by name, and the rule of each.
pub(crate) fn kinds() -> Vec<(BanKind, Option<&'static str>)> {
    let of_rules = super::KINDS.iter();
    let of_rules = of_rules.flat_map(|(rule, kinds)| kinds.iter().map(|kind| (*kind, Some(*rule))));
    let mut all: Vec<_> = of_rules.chain([(SITE, None)]).collect();
    all.sort_unstable_by_key(|(kind, _)| kind.name);
    all
}

schema_of!(
    /// The name of a kind, in schemas.
    KindName,
    one_of(
        "The kind of evidence that leads to a ban.",
        kinds().iter().map(|(kind, _)| kind.name)
    )
);

schema_of!(
    /// The name of a kind of evidence, in schemas.
    EvidenceName,
    one_of(
        "A kind of evidence: one that leads to bans, or packets over a limit.",
        kinds().iter().map(|(kind, _)| kind.name).chain(["limited"])
    )
);

schema_of!(
    /// The name of a rule, in schemas.
    RuleName,
    one_of(
        "A detection rule, which is a table below `[detect]`.",
        super::KINDS.iter().map(|(rule, _)| *rule)
    )
);

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::config::Config;
    use crate::page::{cell, compare, wrap};

    const HEAD: &str = "A ban's kind is in the log (`kind=`), in events and in the label `kind` of \
        `sip_xdp_bans_total`. `count`, `per` and `users` are keys of the kind's table in the \
        configuration; the last column has their defaults. [How it decides](../how-it-decides.md) \
        explains proven and unproven evidence, and which sources are never banned.";

    #[test]
    fn each_kind_is_of_one_rule() {
        let names: Vec<_> = kinds().iter().map(|(kind, _)| kind.name).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    }

    #[test]
    fn the_chapter_of_ban_kinds_is_current() {
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        let mut text = format!(
            "{}\n\n| kind | evidence | restrictions | table and defaults |\n|---|---|---|---|\n",
            wrap(HEAD)
        );
        for (kind, rule) in kinds() {
            let default = rule.map_or_else(String::new, |rule| {
                let table = &defaults["detect"][rule];
                let keys = ["count", "per"]
                    .iter()
                    .filter_map(|key| Some(format!("`{key} = {}`", table.get(key)?)));
                format!("`[detect.{rule}]` {}", keys.collect::<Vec<_>>().join(", "))
            });
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} |",
                kind.name,
                cell(kind.evidence),
                cell(kind.limits),
                default.trim()
            );
        }
        compare("ban-kinds", "Kinds of bans", &text);
    }
}
