//! Section d: detection latency: the duration of an attack until it is stopped, and the number of
//! requests that get through. The same attacks against sip-xdp and against fail2ban, which reads
//! the log of the same registrar.

mod attack;
mod enforce;

use anyhow::{Context, Result};
use sip_xdp_tests::fail2ban::{ACTION, BACKEND, FIND_TIME, MAX_RETRY};

use self::attack::{Attack, Defence, FLOOD, LASTS, LIMIT, LIMIT_PER, Outcome};
use crate::report::{Budget, Plan, Row, Section};

const ATTACKS: [Attack; 2] = [Attack::Crack, Attack::Flood];
const DEFENCES: [Defence; 2] = [Defence::SipXdp, Defence::Fail2ban];

/// Number of blocks per round of the enforcement measurement, enough for a 99th percentile.
const BLOCKS: usize = 200;
/// Target of ban decision to kernel enforcement, in milliseconds.
const ENFORCED: f64 = 10.0;

/// The section.
pub(crate) fn run(plan: &Plan) -> Result<Section> {
    let rounds = if plan.quick { 1 } else { 3 };
    let mut series: Vec<_> = ATTACKS
        .into_iter()
        .flat_map(|attack| DEFENCES.map(|defence| Series { attack, defence, outcomes: Vec::new() }))
        .collect();
    let mut blocks = Vec::new();
    for round in 1..=rounds {
        for Series { attack, defence, outcomes } in &mut series {
            let outcome = attack::run(*attack, *defence);
            let what = || format!("round {round}: {} against {}", attack.name(), defence.name());
            outcomes.push(outcome.with_context(what)?);
        }
        blocks.push(
            enforce::run(BLOCKS)
                .with_context(|| format!("round {round}: from a block to its enforcement"))?,
        );
    }
    let mut rows = Vec::new();
    for pair in series.chunks(DEFENCES.len()) {
        rows.extend(pair.iter().map(Series::reached));
        rows.extend(pair.iter().map(Series::first_drop));
        rows.extend(pair.iter().map(Series::ban));
    }
    rows.extend(series.iter().filter(|series| series.is_judged()).map(Series::excess));
    rows.extend(enforced(blocks));
    Ok(Section { letter: 'd', title: "Detection latency", rows, remarks: remarks() })
}

/// The same attack against the same defence, round after round.
struct Series {
    attack: Attack,
    defence: Defence,
    outcomes: Vec<Outcome>,
}

impl Series {
    fn reached(&self) -> Row {
        let baseline =
            (self.defence == Defence::Fail2ban).then(|| self.row_name(Defence::SipXdp, REACHED));
        let sum = |count: fn(&Outcome) -> usize| self.outcomes.iter().map(count).sum::<usize>();
        let (sent, answered) = (sum(|outcome| outcome.sent), sum(|outcome| outcome.answered));
        let counted: Option<u64> = self.outcomes.iter().map(|outcome| outcome.counted).sum();
        let own =
            counted.map_or_else(String::new, |counted| format!(", own counter: {counted} dropped"));
        let note = format!("all rounds: {sent} sent, {} unanswered{own}", sent - answered);
        Row { baseline, note, ..self.row(REACHED, "requests", |outcome| outcome.reached as f64) }
    }

    fn first_drop(&self) -> Row {
        let note = match self.defence {
            Defence::SipXdp => format!(
                "from request {} within {} s; a bucket refills while it is emptied",
                LIMIT + 1,
                LIMIT_PER.as_secs()
            ),
            Defence::Fail2ban => format!("from the log line of failure {MAX_RETRY}"),
        };
        Row { note, ..self.row("first drop", "ms", |outcome| outcome.first_drop) }
    }

    fn ban(&self) -> Row {
        let baseline =
            (self.defence == Defence::Fail2ban).then(|| self.row_name(Defence::SipXdp, BAN));
        let note = match self.defence {
            Defence::SipXdp => "from the same; what is over the limit is dropped meanwhile",
            Defence::Fail2ban => "from the same, by its log; its action takes effect after that",
        };
        Row { baseline, note: note.to_owned(), ..self.row(BAN, "ms", |outcome| outcome.ban) }
    }

    /// Only a steady flood tells to the packet what the limit has room for.
    fn is_judged(&self) -> bool {
        self.defence == Defence::SipXdp && self.attack == Attack::Flood
    }

    fn excess(&self) -> Row {
        Row {
            budget: Some(Budget::AtMost(0.0)),
            note: "before its first drop, beyond what the bucket holds".to_owned(),
            ..self.row("passed over the limit", "requests", |outcome| outcome.excess as f64)
        }
    }

    fn row(&self, what: &str, unit: &'static str, sample: impl Fn(&Outcome) -> f64) -> Row {
        Row {
            name: self.row_name(self.defence, what),
            populated: self.defence.settings(),
            unit,
            samples: self.outcomes.iter().map(sample).collect(),
            baseline: None,
            budget: None,
            note: String::new(),
        }
    }

    fn row_name(&self, defence: Defence, what: &str) -> String {
        format!("{}: {}, {what}", defence.name(), self.attack.name())
    }
}

const REACHED: &str = "reached Kamailio";
const BAN: &str = "ban";

impl Attack {
    fn name(self) -> &'static str {
        match self {
            Self::Crack => "svcrack",
            Self::Flood => "flood",
        }
    }
}

impl Defence {
    fn name(self) -> &'static str {
        match self {
            Self::SipXdp => "sip-xdp",
            Self::Fail2ban => "fail2ban",
        }
    }

    fn settings(self) -> String {
        match self {
            Self::SipXdp => format!("defaults: {LIMIT} requests in {} s", LIMIT_PER.as_secs()),
            Self::Fail2ban => {
                format!(
                    "maxretry {MAX_RETRY}, findtime {FIND_TIME}, backend {BACKEND}, action {ACTION}"
                )
            }
        }
    }
}

/// Ban decision to kernel enforcement: median and p99.
fn enforced(rounds: Vec<Vec<f64>>) -> [Row; 2] {
    let slowest = rounds.iter().flatten().copied().fold(0.0, f64::max);
    let note = format!(
        "{} blocks a round over the control socket, to the first dropped packet of {} a second; \
         slowest {slowest:.2} ms",
        BLOCKS,
        enforce::RATE,
    );
    let mut rounds = rounds;
    rounds.iter_mut().for_each(|round| round.sort_by(f64::total_cmp));
    let row = |percent: usize, budget| Row {
        name: format!("sip-xdp: decided to enforced, p{percent}"),
        populated: "an empty list".to_owned(),
        unit: "ms",
        samples: rounds.iter().filter_map(|round| percentile(round, percent)).collect(),
        baseline: None,
        budget,
        note: note.clone(),
    };
    [row(50, None), row(99, Some(Budget::AtMost(ENFORCED)))]
}

/// The nearest-rank percentile.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    sorted.get((sorted.len() * percent).div_ceil(100).checked_sub(1)?).copied()
}

fn remarks() -> Vec<String> {
    vec![
        format!(
            "Each attack lasts {} s in a network of its own, with a fresh registrar and a fresh \
             defence. svcrack runs as \
             fast as it does by default; the flood has {FLOOD} REGISTERs a second from one source, \
             each with wrong \
             credentials of its own, so that fail2ban has a log line for every single one.",
            LASTS.as_secs_f32()
        ),
        "What was dropped is told by a capture on the attacker's side: a request that got no \
         answer. The registrar's own \
         log says how many requests reached it."
            .to_owned(),
        format!(
            "The thresholds are what each does without being told otherwise: fail2ban bans with \
             failed login {MAX_RETRY}, \
             which only the registrar's log tells it; sip-xdp looks at requests, of which an \
             office has many, and drops \
             from request {} on while it decides on a ban.",
            LIMIT + 1
        ),
        "fail2ban's chain exists before the attack, and it is woken by new lines of the log \
         instead of polling: its \
         fastest settings."
            .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<_> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&samples, 50), Some(100.0));
        assert_eq!(percentile(&samples, 99), Some(198.0));
        assert_eq!(percentile(&[7.0], 99), Some(7.0));
        assert_eq!(percentile(&[], 50), None);
    }
}
