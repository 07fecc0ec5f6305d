//! `domain`: requests to a host that nobody here uses. A scanner does not know the domains of the
//! server that it has found: it asks for its address, or for whatever another victim uses.
//!
//! Own domains are learnt from the Request-URIs of accepted users, and configured. An address is
//! own where the packet went to it; where that was not seen, it says nothing. While no own domain
//! is known, the rule never fires. Off by default: a server that takes calls for any domain, such
//! as a proxy in front of others, has no own ones.

use std::collections::VecDeque;
use std::net::IpAddr;

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::claim::Level;
use super::super::source_state::SourceState;
use super::super::transactions::{Method, Request};
use super::super::windows::{Window, words};
use super::super::{Action, Detector, Metering, Step};
use super::rule::{BanKind, Counts, Heard, Memory, Rule, Signal, Told};
use crate::config::Span;
use crate::net::network::source_of;
use crate::sip::message::uri_host;

/// Maximum number of learnt domains; the one unused for longest makes room.
const MAX_DOMAINS: usize = 256;

/// How long the ladder meters a source that may be forged.
const LADDER_NS: u64 = 24 * 3_600_000_000_000;

/// `[detect.domain]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
#[serde(default)]
pub struct Settings {
    /// Whether it can ban.
    pub enabled: bool,
    /// Own domains and addresses, besides those that are learnt.
    pub domains: Vec<String>,
    /// How many requests.
    pub count: u32,
    /// Within which time.
    pub per: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: false, domains: Vec::new(), count: 10, per: Span::seconds(600) }
    }
}

impl super::rule::Settings for Settings {
    fn enabled(&self) -> bool {
        self.enabled
    }

    fn rate(&self) -> Option<(u32, Span)> {
        Some((self.count, self.per))
    }

    fn check(&self, name: &str) -> Result<()> {
        let is_wrong = |domain: &&String| {
            let written = domain.trim_end_matches('.').to_ascii_lowercase();
            uri_host(uri(domain).as_bytes()).is_none_or(|host| host != written)
        };
        if let Some(domain) = self.domains.iter().find(is_wrong) {
            bail!(
                "{name}.domains contains {domain:?}, which is no host; write a name or an address"
            );
        }
        Ok(())
    }
}

pub(in super::super) struct Domain;

impl Rule for Domain {
    const NAME: &'static str = "domain";
    const COMMENT: &'static str = "Requests of strangers (REGISTER, INVITE) to a host that no \
        accepted user has ever used, and that is none of these domains. For servers with domains \
        of their own.";
    const KINDS: &'static [BanKind] = &[BanKind {
        name: "domain",
        evidence: "`count` REGISTER or INVITE requests within `per` to hosts that no accepted user \
                   has ever used, and that are not in `domains`",
        limits: "unknown sources only; without proof they are slowed down, not banned; not while \
                 no own domain is known, nor for the address that the request was sent to",
    }];
    const MAX_COUNT: u32 = 1_000;

    type Settings = Settings;
    type Counts = Strange;
    type Memory = Own;

    fn hear(detector: &mut Detector, heard: &Heard<'_>, actions: &mut Vec<Action>) {
        match heard.what {
            Signal::Request(request)
                if matches!(request.method, Method::Register | Method::Invite)
                    && !request.in_dialog =>
            {
                detector.domain_was_tried(request, heard.now, actions);
            }
            Signal::Accepted(Request { host: Some(host), .. }, _) => {
                detector.memory.domain.learn(host);
            }
            _ => {}
        }
    }

    fn tell(_: &Detector, state: &SourceState, _: u64) -> Option<Told> {
        let Strange { tries, host } = &state.counts.domain;
        let text =
            format!("{} requests to hosts that nobody here uses, {host:?} last", tries.len());
        Some(Told { count: tries.len() as f64, text })
    }
}

/// The requests of one source to hosts that nobody uses.
#[derive(Debug, Default)]
pub(in super::super) struct Strange {
    tries: Window<Level>,
    /// The last of these hosts.
    host: String,
}

impl Counts for Strange {
    fn take_back(&mut self, _users: &[String], _call: u64) {
        *self = Self::default();
    }

    fn begin_anew(&mut self, port: Option<u16>) {
        if port.is_none() {
            *self = Self::default();
        }
    }
}

/// Learnt domains, the one used last at the end.
#[derive(Debug, Default)]
pub(in super::super) struct Own(VecDeque<String>);

impl Own {
    fn learn(&mut self, host: &str) {
        if let Some(at) = self.0.iter().position(|known| known == host) {
            self.0.remove(at);
        } else if self.0.len() >= MAX_DOMAINS {
            self.0.pop_front();
        }
        self.0.push_back(host.to_owned());
    }
}

impl Memory for Own {
    fn keep(&self) -> Result<Option<Value>> {
        Ok(Some(serde_json::to_value(&self.0)?))
    }

    fn recall(&mut self, kept: Value, _moved: &dyn Fn(u64) -> u64) -> Result<()> {
        let kept: Vec<String> = serde_json::from_value(kept)?;
        kept.iter().for_each(|host| self.learn(host));
        Ok(())
    }
}

/// A domain or address of the configuration as a URI.
fn uri(domain: &str) -> String {
    if domain.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("sip:[{domain}]")
    } else {
        format!("sip:{domain}")
    }
}

impl Detector {
    /// Processes a REGISTER or INVITE outside of dialogs.
    fn domain_was_tried(&mut self, request: &Request, now: u64, actions: &mut Vec<Action>) {
        let (source, rule) = (request.source, &self.rules.domain);
        let (Some(host), true) = (&request.host, rule.enabled) else {
            return;
        };
        let is_configured =
            rule.domains.iter().any(|own| uri_host(uri(own).as_bytes()).as_ref() == Some(host));
        let learnt = &self.memory.domain.0;
        let is_own = match host.parse::<IpAddr>() {
            // Not seen of TCP, nor of fragments.
            Ok(address) => request.destination.is_none_or(|to| to == source_of(address)),
            Err(_) => false,
        };
        let knows_none = learnt.is_empty() && rule.domains.is_empty();
        if knows_none || is_own || is_configured || learnt.contains(host) {
            return;
        }
        if self.has_standing(&source, now) {
            return;
        }
        let (level, per) = (self.level_of(request, now), rule.per);
        let enough = self.threshold(&source, rule.count, now);
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        let strange = &mut state.counts.domain;
        strange.tries.note(now, level, per.nanos());
        strange.host.clone_from(host);
        let count = |least: Level| strange.tries.iter().filter(|(_, one)| *one >= least).count();
        let found = [Level::Routable, Level::Seen].into_iter().find(|one| count(*one) >= enough);
        let Some(level) = found else {
            return;
        };
        let reason = format!(
            "{} requests in {} to hosts that nobody here uses, {host:?} last",
            count(level),
            words(strange.tries.since(now))
        );
        if level == Level::Routable {
            let finding = self.about(source, Domain::NAME, level, reason);
            self.emit_ban(level, finding, now, actions);
        } else {
            strange.tries.retain(|level| *level == Level::Routable);
            let metering = Metering::of_host(source, Step::Down, now + LADDER_NS, reason);
            actions.push(Action::Meter(metering));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Finding;
    use super::super::super::tests::{Fixture, Who, who};
    use super::*;
    use crate::config::Config;
    use crate::dataplane::tables::ledger::Tier;

    const SECOND: u64 = 1_000_000_000;

    /// A registrar without the rules that would ban the same guesser first.
    fn fixture(domains: &[&str]) -> Fixture {
        let mut config = Config::default();
        config.detect.rejected.enabled = false;
        config.detect.slow.enabled = false;
        config.detect.enumeration.enabled = false;
        config.detect.domain.enabled = true;
        config.detect.domain.domains = domains.iter().map(|one| (*one).to_owned()).collect();
        Fixture::with(config)
    }

    fn stranger() -> Who {
        who("192.0.2.66", 5060, "200")
    }

    /// Tries passwords at a host, and echoes nonces.
    fn guess(fixture: &mut Fixture, domain: &'static str, tries: usize) {
        fixture.domain = domain;
        for _ in 0..tries {
            fixture.guess(&stranger(), "x");
            fixture.wait(10 * SECOND);
        }
    }

    fn bans(fixture: &Fixture) -> Vec<&Finding> {
        fixture.bans.iter().filter(|ban| ban.kind == Domain::NAME).collect()
    }

    fn is_metered(fixture: &Fixture) -> bool {
        let mut reasons = fixture.actions.iter().filter_map(|action| match action {
            Action::Meter(metering) => Some(&metering.reason),
            _ => None,
        });
        reasons.any(|reason| reason.contains("hosts that"))
    }

    #[test]
    fn a_stranger_that_asks_for_another_host_is_banned_by_proof() {
        let mut fixture = fixture(&[]);
        fixture.register(&who("192.0.2.7", 5062, "100"));
        guess(&mut fixture, "pbx", 20);
        assert!(bans(&fixture).is_empty() && !is_metered(&fixture), "the host of a user");
        guess(&mut fixture, "other.example", 9);
        assert!(bans(&fixture).is_empty());
        guess(&mut fixture, "OTHER.example:5060", 1);
        let [ban] = bans(&fixture)[..] else { panic!("{:?}", fixture.bans) };
        assert_eq!((ban.tier, ban.source), (Tier::Proven, stranger().source));
        assert!(
            ban.reason.starts_with("10 requests in ")
                && ban.reason.ends_with("to hosts that nobody here uses, \"other.example\" last"),
            "{}",
            ban.reason
        );
    }

    #[test]
    fn what_anybody_may_have_sent_is_slowed_down() {
        let mut fixture = fixture(&["pbx"]);
        fixture.domain = "other.example";
        for n in 0..40 {
            let method = if n % 2 == 0 { "REGISTER" } else { "INVITE" };
            fixture.ask(&stranger(), method, "200", "", "401 Unauthorized");
            fixture.wait(SECOND);
            assert_eq!(is_metered(&fixture), n >= 9, "{n}");
        }
        assert!(bans(&fixture).is_empty(), "{:?}", fixture.bans);
    }

    #[test]
    fn without_an_own_domain_nothing_is_strange() {
        let mut fixture = fixture(&[]);
        guess(&mut fixture, "other.example", 30);
        assert!(bans(&fixture).is_empty() && !is_metered(&fixture));
        let mut off = Fixture::new();
        off.register(&who("192.0.2.7", 5062, "100"));
        guess(&mut off, "other.example", 30);
        assert!(bans(&off).is_empty() && !is_metered(&off), "off by default");
    }

    #[test]
    fn the_address_that_a_packet_went_to_is_own() {
        for (headers, domain, is_strange) in [
            (true, "198.51.100.1", false),
            (true, "203.0.113.9", true),
            (true, "[2001:db8::1]", true),
            (false, "203.0.113.9", false),
        ] {
            let mut fixture = fixture(&["pbx"]);
            // No checksum, which IPv4 allows.
            fixture.checksum = headers.then_some(0);
            guess(&mut fixture, domain, 12);
            assert_eq!(bans(&fixture).len(), usize::from(is_strange), "{headers} {domain}");
        }
    }

    #[test]
    fn learnt_domains_outlive_a_restart_and_are_bounded() {
        let mut before = fixture(&[]);
        before.register(&who("192.0.2.7", 5062, "100"));
        let kept = before.detector.evidence(before.now, 1_000).unwrap();
        let mut after = fixture(&[]);
        after.detector.recall(&kept, after.now, 2_000).unwrap();
        guess(&mut after, "other.example", 12);
        assert_eq!(bans(&after).len(), 1);
        let mut own = Own::default();
        for n in 0..10_000 {
            own.learn(&format!("{n}.example"));
            own.learn("kept.example");
        }
        assert!(own.0.len() <= MAX_DOMAINS && own.0.contains(&"kept.example".to_owned()));
    }

    #[test]
    fn domains_are_written_as_in_a_uri() {
        let parse = |domains: &str| {
            Config::parse(&format!("[detect.domain]\ndomains = [{domains}]\n")).err()
        };
        assert!(parse("\"sip.example\", \"192.0.2.1\", \"2001:db8::1\"").is_none());
        for wrong in ["\"\"", "\"a b\"", "\"sip:x@\""] {
            let error = parse(wrong).unwrap().to_string();
            assert!(error.contains("detect.domain.domains contains"), "{error}");
        }
    }
}
