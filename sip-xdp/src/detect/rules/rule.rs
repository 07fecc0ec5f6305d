//! What a detection rule is: the traits that its file implements, and what the registry makes of
//! all of them.

use std::fmt::Debug;

use anyhow::{Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sip_xdp_common::ip_key::IpKey;

use super::super::claim::Rejection;
use super::super::observation::Observation;
use super::super::responses::Answer;
use super::super::source_state::{Challenged, SourceState};
use super::super::transactions::Request;
use super::super::{Action, Detector};
use super::Detect;
use crate::config::{Span, check_rate};
use crate::sip::message::Head;

/// A detection rule: one file of this folder, and a line in the registry.
pub(in crate::detect) trait Rule {
    /// Its table below `[detect]`, and the kind of its evidence in `explain`.
    const NAME: &'static str;
    /// What it is, for the file that packages install.
    const COMMENT: &'static str;
    /// The bans that it leads to.
    const KINDS: &'static [BanKind];
    /// The highest `count` that its table may have.
    const MAX_COUNT: u32 = 1_000_000;

    /// Its table.
    type Settings: Settings;
    /// What it counts for each source; `()` for nothing.
    type Counts: Counts;
    /// What it remembers of all sources together; `()` for nothing.
    type Memory: Memory;

    /// What it does when something happens.
    fn hear(_detector: &mut Detector, _heard: &Heard<'_>, _actions: &mut Vec<Action>) {}

    /// What it does at every tick.
    fn tick(_detector: &mut Detector, _now: u64, _actions: &mut Vec<Action>) {}

    /// The evidence that it has counted against a source, for `explain`.
    fn tell(_detector: &Detector, _state: &SourceState, _now: u64) -> Option<Told> {
        None
    }
}

/// Something that happened, by the other side of which address, and when.
#[derive(Debug, Clone, Copy)]
pub(in crate::detect) struct Heard<'a> {
    pub(in crate::detect) source: IpKey,
    pub(in crate::detect) now: u64,
    pub(in crate::detect) what: Signal<'a>,
}

/// What rules listen to. All of it has been admitted as evidence before.
#[derive(Debug, Clone, Copy)]
pub(in crate::detect) enum Signal<'a> {
    /// The head of a request that passed, or of one over a limit.
    Head(&'a Head<'a>),
    /// A request that passed, for the first time.
    Request(&'a Request),
    /// A message over a limit, with its head.
    OverLimit(&'a Observation<'a>, Option<&'a Head<'a>>),
    /// The final response to a request.
    Answered(&'a Request, &'a Answer<'a>),
    /// A 403, 404, 484 or 604, with the refused user or number.
    Refused(&'a Request, &'a str, u16),
    /// A challenge without the credentials that should have followed.
    Unanswered(&'a Challenged),
    /// A request within a dialog that we confirmed, with the digest of its Call-ID: its sender has
    /// our tag, so that the address is its own. Requests of a stream need no tag.
    Proven(u64),
    /// The same, but only with our tag.
    Tagged(u64),
    /// A rejection that counts.
    Rejected(&'a Rejection),
    /// A rejection that no acceptance can take back any more.
    Settled(&'a Rejection),
    /// Accepted credentials, with their users.
    Accepted(&'a Request, &'a [String]),
    /// The time is over within which something should have followed.
    Due,
}

/// Evidence in words.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::detect) struct Told {
    /// How much of it there is.
    pub(in crate::detect) count: f64,
    /// What it is.
    pub(in crate::detect) text: String,
}

/// The table of a rule. Keys that the file does not have keep their defaults.
pub(crate) trait Settings:
    Debug + Clone + PartialEq + Default + Serialize + DeserializeOwned
{
    /// Whether the rule may ban.
    fn enabled(&self) -> bool;

    /// Its threshold and the time that it applies to; none for a rule that counts nothing.
    fn rate(&self) -> Option<(u32, Span)>;

    /// Checks what its types do not, for the table of this name.
    fn check(&self, _name: &str) -> Result<()> {
        Ok(())
    }
}

/// Defines the table of a rule that has a threshold and nothing else: so many within a time, or a
/// leaky bucket of so many from which one leaks out in a time. With the defaults, in seconds.
macro_rules! threshold {
    ($(#[$words:meta])* count = $count:literal, seconds = $seconds:literal) => {
        $(#[$words])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[derive(schemars::JsonSchema)]
        #[schemars(inline)]
        #[serde(default)]
        pub struct Settings {
            /// Whether it can ban.
            pub enabled: bool,
            /// How many.
            pub count: u32,
            /// Within which time, or the time in which one leaks out.
            pub per: crate::config::Span,
        }

        impl Default for Settings {
            fn default() -> Self {
                let per = crate::config::Span::seconds($seconds);
                Self { enabled: true, count: $count, per }
            }
        }

        impl super::rule::Settings for Settings {
            fn enabled(&self) -> bool {
                self.enabled
            }

            fn rate(&self) -> Option<(u32, crate::config::Span)> {
                Some((self.count, self.per))
            }
        }
    };
}

/// What a rule counts for one source.
pub(in crate::detect) trait Counts: Debug + Default {
    /// Takes back evidence of users that were accepted, and of a call.
    fn take_back(&mut self, _users: &[String], _call: u64) {}

    /// Removes what has led to a ban, of a port or of the whole source.
    fn begin_anew(&mut self, _port: Option<u16>) {}

    /// Whether a source is worth keeping over a restart for it.
    fn is_worth_keeping(&self) -> bool {
        false
    }

    /// Writes what must outlive a restart.
    fn keep(&self, _kept: &mut Map<String, Value>) -> Result<()> {
        Ok(())
    }

    /// Reads it. `moved` shifts times to the clock of this run.
    fn recall(
        &mut self,
        _kept: &mut Map<String, Value>,
        _moved: &dyn Fn(u64) -> u64,
    ) -> Result<()> {
        Ok(())
    }
}

/// What a rule remembers of all sources together.
pub(in crate::detect) trait Memory: Debug + Default {
    /// Drops what is too old.
    fn tidy(&mut self, _rules: &Detect, _now: u64) {}

    /// What must outlive a restart.
    fn keep(&self) -> Result<Option<Value>> {
        Ok(None)
    }

    /// Reads it. `moved` shifts times to the clock of this run.
    fn recall(&mut self, _kept: Value, _moved: &dyn Fn(u64) -> u64) -> Result<()> {
        Ok(())
    }
}

impl Counts for () {}
impl Memory for () {}

/// A kind of ban.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), expect(dead_code, reason = "the manual's chapter is made by a test"))]
pub(crate) struct BanKind {
    /// Its name in the log, in events and as a label of metrics.
    pub(crate) name: &'static str,
    /// The evidence, for the manual.
    pub(crate) evidence: &'static str,
    /// What limits it, for the manual.
    pub(crate) limits: &'static str,
}

/// Checks the table of a rule.
pub(super) fn check<R: Rule>(settings: &R::Settings) -> Result<()> {
    let name = format!("detect.{}", R::NAME);
    if let Some((count, per)) = settings.rate() {
        check_rate(&name, count, per)?;
        if count > R::MAX_COUNT {
            bail!("{name}.count = {count} is out of range; use 1 to {}", R::MAX_COUNT);
        }
    }
    settings.check(&name)
}

/// A value of an earlier run, if it was kept.
pub(super) fn recalled<T: DeserializeOwned>(
    kept: &mut Map<String, Value>,
    key: &str,
) -> Result<Option<T>> {
    Ok(kept.remove(key).map(serde_json::from_value).transpose()?)
}

/// Makes of all rules the table `[detect]`, the state of a source and of the detector, the kinds of
/// bans, and the way to all of them. A line is the rule's module, its type, and a description.
macro_rules! registry {
    ($($name:ident: $rule:ident, $description:literal;)+) => {
        /// `[detect]`: a table for each detection rule.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(default)]
        pub struct Detect {
            $(#[doc = $description] pub $name: $name::Settings,)+
        }

        impl Detect {
            /// The rules by name, and whether each may ban.
            pub fn names(&self) -> Vec<(&'static str, bool)> {
                vec![$((<$name::$rule as Rule>::NAME, self.$name.enabled())),+]
            }

            /// The thresholds of rules that have one: how many, and the time that it applies to.
            fn rates(&self) -> Vec<(&'static str, Option<(u32, Span)>)> {
                vec![$((<$name::$rule as Rule>::NAME, self.$name.rate())),+]
            }

            /// Checks values beyond their types.
            pub(crate) fn check(&self) -> Result<()> {
                $(rule::check::<$name::$rule>(&self.$name)?;)+
                Ok(())
            }

            /// The tables as the file has them that packages install: commented, with defaults.
            pub fn commented() -> String {
                let tables = [
                    $(commented::<$name::$rule>()),+
                ];
                tables.join("\n\n")
            }
        }

        /// What all rules count for one source.
        #[derive(Debug, Default)]
        pub(in crate::detect) struct SourceCounts {
            $(pub(in crate::detect) $name: <$name::$rule as Rule>::Counts,)+
        }

        impl SourceCounts {
            /// Takes back evidence of users that were accepted, and of a call.
            pub(in crate::detect) fn take_back(&mut self, users: &[String], call: u64) {
                $(self.$name.take_back(users, call);)+
            }

            /// Removes what has led to a ban, of a port or of the whole source.
            pub(in crate::detect) fn begin_anew(&mut self, port: Option<u16>) {
                $(self.$name.begin_anew(port);)+
            }

            /// Whether the source is worth keeping over a restart for any of it.
            pub(in crate::detect) fn is_worth_keeping(&self) -> bool {
                [$(self.$name.is_worth_keeping()),+].contains(&true)
            }

            /// What must outlive a restart.
            pub(in crate::detect) fn keep(&self) -> Result<Map<String, Value>> {
                let mut kept = Map::new();
                $(Counts::keep(&self.$name, &mut kept)?;)+
                Ok(kept)
            }

            /// Reads what an earlier run kept.
            pub(in crate::detect) fn recall(
                &mut self,
                mut kept: Map<String, Value>,
                moved: &dyn Fn(u64) -> u64,
            ) -> Result<()> {
                $(Counts::recall(&mut self.$name, &mut kept, moved)?;)+
                Ok(())
            }
        }

        /// What all rules remember of all sources together.
        #[derive(Debug, Default)]
        pub(in crate::detect) struct Memories {
            $(pub(in crate::detect) $name: <$name::$rule as Rule>::Memory,)+
        }

        impl Memories {
            /// Drops what is too old.
            pub(in crate::detect) fn tidy(&mut self, rules: &Detect, now: u64) {
                $(self.$name.tidy(rules, now);)+
            }

            /// What must outlive a restart, by rule.
            pub(in crate::detect) fn keep(&self) -> Result<Map<String, Value>> {
                let mut kept = Map::new();
                $(if let Some(value) = Memory::keep(&self.$name)? {
                    kept.insert(<$name::$rule as Rule>::NAME.to_owned(), value);
                })+
                Ok(kept)
            }

            /// Reads what an earlier run kept.
            pub(in crate::detect) fn recall(
                &mut self,
                mut kept: Map<String, Value>,
                moved: &dyn Fn(u64) -> u64,
            ) -> Result<()> {
                $(if let Some(value) = kept.remove(<$name::$rule as Rule>::NAME) {
                    Memory::recall(&mut self.$name, value, moved)?;
                })+
                Ok(())
            }
        }

        /// What each rule does when something happens.
        const HEAR: &[fn(&mut Detector, &Heard<'_>, &mut Vec<Action>)] =
            &[$(<$name::$rule as Rule>::hear),+];

        /// What each rule does at every tick.
        const TICK: &[fn(&mut Detector, u64, &mut Vec<Action>)] =
            &[$(<$name::$rule as Rule>::tick),+];

        /// What each rule has counted against a source.
        const TELL: &[fn(&Detector, &SourceState, u64) -> Option<Told>] =
            &[$(<$name::$rule as Rule>::tell),+];

        /// The kinds of bans of each rule.
        const KINDS: &[(&str, &[BanKind])] =
            &[$((<$name::$rule as Rule>::NAME, <$name::$rule as Rule>::KINDS)),+];
    };
}
