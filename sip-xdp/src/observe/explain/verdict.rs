//! The decision order of [`sip_xdp_common::pipeline::ingress`] in words, for a SIP request that an
//! address sends over UDP now.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp_common::limits::ladder::PACES;

use super::{Kernel, Match, Suspect};
use crate::config::Policy;

/// The outcome for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "Verdict")]
pub enum Outcome {
    /// Passed.
    Pass,
    /// Dropped.
    Drop,
    /// Dropped by a limit, so that it would pass a little later.
    Limit,
}

/// A decision with its reason.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Decision {
    /// Outcome.
    pub verdict: Outcome,
    /// Reason.
    pub because: String,
}

/// The inputs of a decision.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The kernel's state.
    pub kernel: &'a Kernel,
    /// Default policy.
    pub policy: Policy,
}

/// Decides as the kernel does.
pub fn decide(facts: &Facts<'_>) -> Decision {
    let Kernel { matches, limits, .. } = facts.kernel;
    let kernel = facts.kernel;
    let to = |verdict, because: String| Decision { verdict, because };
    let whole = |list: &str| {
        matches.iter().filter(move |one| one.list == list && one.port.is_none()).collect()
    };
    let (trusted, blocked, admitted): (Vec<&Match>, Vec<&Match>, Vec<&Match>) =
        (whole("trust"), whole("block"), whole("admit"));
    if let Some(entry) = trusted.first() {
        return to(Outcome::Pass, format!("it is trusted: {}", evidence_text(entry)));
    }
    // Entries of operators and tools outrank those of the detector and feeds, as in the table
    // (`OWN` in sip_xdp_common::lookup::networks): they end known-good ports as well.
    let by_hand = |entry: &&&Match| !matches!(entry.owner, "auto" | "feed");
    if let Some(entry) = blocked.iter().find(by_hand).or(blocked.first()) {
        let spared =
            !by_hand(&entry) && kernel.good_until.is_some() && !kernel.good_ports.is_empty();
        let rest = if spared { "; phones that are registered there go on" } else { "" };
        let verb = if entry.owner == "auto" { "banned" } else { "blocked" };
        return to(Outcome::Drop, format!("it is {verb}: {}{rest}", evidence_text(entry)));
    }
    let ports: Vec<String> =
        matches.iter().filter_map(|one| one.port).map(|port| port.to_string()).collect();
    let but = if ports.is_empty() {
        String::new()
    } else {
        format!("; but its port {} is banned", ports.join(", "))
    };
    let is_known = kernel.good_until.is_some() || kernel.peer_until.is_some();
    if facts.policy == Policy::Closed && !is_known && admitted.is_empty() {
        let because =
            "the policy is closed, and it is neither trusted, admitted, known good, nor a peer";
        return to(Outcome::Drop, because.to_owned());
    }
    // The narrowest of those with the slowest pace.
    let slowest = |place: &&Suspect| PACES.iter().position(|pace| *pace == place.pace);
    let suspect = kernel.suspects.iter().rev().max_by_key(slowest);
    let who = match (kernel.good_until, kernel.peer_until, suspect) {
        (Some(until), ..) => format!("it is known good until {}", time(until)),
        (_, Some(until), _) => format!("it is a peer until {}", time(until)),
        (.., Some(place)) => {
            let what = match place.network.is_host() {
                true => "it is suspect".to_owned(),
                false => format!("its network {} is suspect", place.network),
            };
            let until = place.until.map_or_else(String::new, |at| format!(" until {}", time(at)));
            format!("{what}: of what may try passwords, {}{until}", place.pace)
        }
        _ if !admitted.is_empty() && facts.policy == Policy::Closed => {
            format!("it is admitted: {}", evidence_text(admitted[0]))
        }
        _ => "nothing is known of it".to_owned(),
    };
    if !is_known && kernel.storm && !kernel.tracked {
        return to(
            Outcome::Limit,
            format!("{who}, and in a storm strangers share one budget{but}"),
        );
    }
    let spent =
        limits.iter().find(|level| level.left == 0 && !matches!(level.limit, "other" | "suspect"));
    if let Some(level) = spent {
        return to(
            Outcome::Limit,
            format!("{who}, and it is over its limit ({}){but}", level.limit),
        );
    }
    if let Some(limited) = kernel.limited.as_ref().filter(|limited| limited.now && !is_known) {
        let because = format!(
            "{who}, and it keeps running into its limit, {} packets so far{but}",
            limited.packets
        );
        return to(Outcome::Limit, because);
    }
    to(Outcome::Pass, format!("{who}, and it is within its limits{but}"))
}

/// An entry in words.
fn evidence_text(entry: &Match) -> String {
    let tier = entry.tier.map(|tier| format!(", {}", tier.name())).unwrap_or_default();
    let reason =
        if entry.reason.is_empty() { String::new() } else { format!(", {}", entry.reason) };
    let until = match entry.expires {
        Some(until) => format!("until {}", time(until)),
        None if entry.owner == "feed" => "for as long as the feed lists it".to_owned(),
        None => "for good".to_owned(),
    };
    let owner = entry.claimant.as_deref().unwrap_or(entry.owner);
    format!("{} ({owner}{tier}{reason}) {until}", entry.network)
}

/// A time in readable form.
fn time(time: Timestamp) -> String {
    time.strftime("%F %T UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::tables::ledger::Tier;
    use crate::observe::explain::{Level, Limited};

    const THEN: Timestamp = Timestamp::UNIX_EPOCH;

    fn stranger() -> Kernel {
        Kernel {
            dry_run: false,
            matches: Vec::new(),
            limits: ["register", "requests", "other"]
                .map(|limit| Level { limit, left: 5, of: 50 })
                .into(),
            tracked: true,
            limited: None,
            good_until: None,
            peer_until: None,
            suspect_until: None,
            suspect_dropped: None,
            suspects: Vec::new(),
            good_ports: Vec::new(),
            storm: false,
        }
    }

    fn listed(list: &'static str, network: &str, owner: &'static str) -> Match {
        Match {
            list,
            network: network.parse().unwrap(),
            port: None,
            owner,
            claimant: None,
            reason: "why".to_owned(),
            tier: (owner == "auto").then_some(Tier::Proven),
            added: Some(THEN),
            expires: None,
            hits: 0,
            dry_run: false,
        }
    }

    fn decided(kernel: &Kernel, policy: Policy) -> (Outcome, String) {
        let Decision { verdict, because } = decide(&Facts { kernel, policy });
        (verdict, because)
    }

    #[test]
    fn the_order_is_the_kernels() {
        let mut kernel = stranger();
        assert_eq!(decided(&kernel, Policy::Open).0, Outcome::Pass);
        let (verdict, because) = decided(&kernel, Policy::Closed);
        assert!(verdict == Outcome::Drop && because.contains("closed"), "{because}");
        kernel.matches = vec![listed("admit", "192.0.2.0/24", "config")];
        assert_eq!(decided(&kernel, Policy::Closed).0, Outcome::Pass);
        kernel.matches.push(listed("block", "192.0.2.7", "auto"));
        kernel.matches.push(listed("block", "192.0.2.0/24", "manual"));
        let (verdict, because) = decided(&kernel, Policy::Open);
        assert!(
            verdict == Outcome::Drop && because.contains("192.0.2.0/24 (manual, why)"),
            "{because}"
        );
        kernel.matches.insert(0, listed("trust", "192.0.0.0/16", "config"));
        assert_eq!(decided(&kernel, Policy::Closed).0, Outcome::Pass);
    }

    #[test]
    fn a_ban_exempts_registered_ports_and_banned_ports_are_named() {
        let mut kernel = Kernel { good_until: Some(THEN), good_ports: vec![5062], ..stranger() };
        kernel.matches = vec![listed("block", "192.0.2.7", "auto")];
        let (verdict, because) = decided(&kernel, Policy::Open);
        assert!(verdict == Outcome::Drop && because.ends_with("go on"), "{because}");
        kernel.matches = vec![Match { port: Some(5063), ..listed("block", "192.0.2.7", "auto") }];
        let (verdict, because) = decided(&kernel, Policy::Closed);
        assert!(verdict == Outcome::Pass && because.ends_with("port 5063 is banned"), "{because}");
    }

    /// As in the kernel: a registered phone keeps its port only under entries of the detector or a
    /// feed, whatever other owners exist.
    #[test]
    fn only_a_ban_and_a_feed_spare_a_registered_port() {
        for owner in (0..u8::MAX).map_while(sip_xdp_common::abi::layout::Owner::from_number) {
            let mut kernel =
                Kernel { good_until: Some(THEN), good_ports: vec![5062], ..stranger() };
            kernel.matches = vec![listed("block", "192.0.2.7", owner.name())];
            let (verdict, because) = decided(&kernel, Policy::Open);
            let spares = matches!(owner.name(), "auto" | "feed");
            assert!(
                verdict == Outcome::Drop && because.ends_with("go on") == spares,
                "{owner:?}: {because}"
            );
            // Beside a ban as well.
            kernel.matches.insert(0, listed("block", "192.0.2.0/24", "auto"));
            let (_, because) = decided(&kernel, Policy::Open);
            assert_eq!(because.ends_with("go on"), spares, "{owner:?}: {because}");
        }
    }

    #[test]
    fn the_slowest_place_on_the_ladder_is_named() {
        let suspect = |network: &str, step: usize| Suspect {
            network: network.parse().unwrap(),
            pace: PACES[step],
            strangers_only: false,
            until: Some(THEN),
            dropped: 0,
        };
        let told =
            |suspects: Vec<Suspect>| decided(&Kernel { suspects, ..stranger() }, Policy::Open).1;
        let host = || suspect("2001:db8::1", 0);
        assert!(told(vec![host()]).starts_with("it is suspect: of what may try passwords, one a "));
        let because = told(vec![host(), suspect("2001:db8::/64", 0)]);
        assert!(because.starts_with("it is suspect"), "{because}");
        let because = told(vec![host(), suspect("2001:db8::/64", 1)]);
        let expected = "its network 2001:db8::/64 is suspect: of what may try passwords, one a min";
        assert!(because.starts_with(expected), "{because}");
    }

    #[test]
    fn a_spent_bucket_and_a_storm_are_limits() {
        let mut kernel = stranger();
        kernel.limits[1].left = 0;
        let (verdict, because) = decided(&kernel, Policy::Open);
        assert!(verdict == Outcome::Limit && because.contains("(requests)"), "{because}");
        let limited = Some(Limited { since: THEN, packets: 7, now: true });
        assert_eq!(decided(&Kernel { limited, ..stranger() }, Policy::Open).0, Outcome::Limit);
        let storm = Kernel { storm: true, tracked: false, ..stranger() };
        assert_eq!(decided(&storm, Policy::Open).0, Outcome::Limit);
        assert_eq!(
            decided(&Kernel { peer_until: Some(THEN), ..storm }, Policy::Open).0,
            Outcome::Pass
        );
    }
}
