//! The kinds of bans: the names that the log, events and metrics use, and what each means in the
//! manual, whose chapter is made from this table.

/// A kind of ban.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), expect(dead_code, reason = "the manual's chapter is made by a test"))]
pub(crate) struct BanKind {
    /// Its name in the log, in events and as a label of metrics.
    pub(crate) name: &'static str,
    /// The table under `[detect]` that configures it.
    pub(crate) rule: Option<&'static str>,
    /// The evidence, for the manual.
    pub(crate) evidence: &'static str,
    /// What limits it, for the manual.
    pub(crate) limits: &'static str,
}

/// All kinds, by name.
pub(crate) const KINDS: [BanKind; 11] = [
    BanKind {
        name: "decoy",
        rule: Some("decoy"),
        evidence: "2 rejected passwords for a user that was never accepted and that `count` \
                   sources tried within `per`; 1 for a user configured in `users`",
        limits: "proven evidence only; not within the first 24 h without state",
    },
    BanKind {
        name: "enumeration",
        rule: Some("enumeration"),
        evidence: "`count` different users refused without credentials within `per` (403, 404, or \
                   401 that no Authorization of the same Call-ID follows), more than twice as many \
                   as were accepted or served",
        limits: "nothing counts while packets of the source are dropped as `limited`",
    },
    BanKind {
        name: "invites",
        rule: Some("invites"),
        evidence: "a leaky bucket of `count` refused calls, of which one leaks out per `per`, and \
                   more refused than served calls (404, 484 and 604 weigh half); or one number \
                   under 4 prefixes within an hour, whatever the answer",
        limits: "never a peer or a known-good source",
    },
    BanKind {
        name: "misconfigured",
        rule: Some("rejected"),
        evidence: "as `rejected` or `slow`, but for one user with 20 s or more between tries: a \
                   phone with an old password",
        limits: "bans the port, or the address where nobody else lives; at most 1 h",
    },
    BanKind {
        name: "register",
        rule: Some("register"),
        evidence: "REGISTER requests over the limit `count` in `per`, half of them from one port, \
                   with one Call-ID or for one user",
        limits: "unknown sources only; not while the registrar's responses are unseen",
    },
    BanKind {
        name: "rejected",
        rule: Some("rejected"),
        evidence: "`count` rejected passwords within `per`: 401 or 407 to credentials, or 403 for \
                   a user that was not accepted from there within a day",
        limits: "what may be a phone with an old nonce counts after 5 s, and not at all if its \
                 next try is accepted",
    },
    BanKind {
        name: "requests",
        rule: Some("requests"),
        evidence: "requests of any method over the limit `count` in `per`, half of them from one \
                   port, with one Call-ID or for one user",
        limits: "unknown sources only, never a served source; not while the registrar's responses \
                 are unseen",
    },
    BanKind {
        name: "signature",
        rule: Some("signature"),
        evidence: "a User-Agent, From-tag or user that only attack tools have",
        limits: "limited to 1 request/s at once; banned at the final answer, with proof, with a \
                 second kind of evidence, or after 3 Call-IDs; a right password clears it",
    },
    BanKind {
        name: "site",
        rule: None,
        evidence: "2 banned hosts of an IPv6 /64 within an hour, 3 from two /64s of a /56, 4 from \
                   two /56s of a /48; with `bans.ipv4_networks`, 5 of an IPv4 /24",
        limits: "proven evidence only; never a network where somebody known good lives",
    },
    BanKind {
        name: "slow",
        rule: Some("slow"),
        evidence: "a leaky bucket of `count` rejected passwords, of which one leaks out per `per`",
        limits: "as `rejected`",
    },
    BanKind {
        name: "sprayed",
        rule: Some("sprayed"),
        evidence: "the third rejected password in a day from a stranger, for a user for which \
                   strangers had `count` rejected within `per`",
        limits: "never the places where that user was accepted",
    },
];

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
    fn kinds_are_sorted_and_in_the_schema() {
        assert!(KINDS.is_sorted_by_key(|kind| kind.name));
        let common: serde_json::Value =
            serde_json::from_str(include_str!("../../../schemas/common.json")).unwrap();
        let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(common["$defs"]["evidence"]["enum"], serde_json::json!(names));
    }

    #[test]
    fn the_chapter_of_ban_kinds_is_current() {
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        let mut text = format!(
            "{}\n\n| kind | evidence | restrictions | table and defaults |\n|---|---|---|---|\n",
            wrap(HEAD)
        );
        for kind in KINDS {
            let default = kind.rule.map_or_else(String::new, |rule| {
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
