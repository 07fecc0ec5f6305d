//! Results of a section: ratios within one run, and whether budgets are met.

/// The results of one candidate, by round.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Name of the candidate.
    pub(crate) name: String,
    /// Contents of the tables: "1,000,000 feed entries, 100 trusted, 1,000 bans".
    pub(crate) populated: String,
    /// "ns", "Mpps", "registrations/s", "ms", "s", "MiB".
    pub(crate) unit: &'static str,
    /// One per round; samples of one round belong together across rows. Empty if it failed, with a
    /// note.
    pub(crate) samples: Vec<f64>,
    /// The row in the same section that the ratio refers to: by round, then the median.
    pub(crate) baseline: Option<String>,
    /// The target, if there is one.
    pub(crate) budget: Option<Budget>,
    /// Proof that it did its work: "own counter: 12,345,678 of 12,345,678 dropped".
    pub(crate) note: String,
}

/// A target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Budget {
    /// Of the baseline.
    RatioAtLeast(f64),
    /// Of the baseline.
    RatioAtMost(f64),
    /// In the row's unit.
    AtMost(f64),
    /// In the row's unit.
    AtLeast(f64),
    /// The median of sample minus baseline sample, in the row's unit.
    OverBaselineAtMost(f64),
}

/// One section of the report.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    /// What it is chosen by.
    pub(crate) letter: char,
    /// What it measures.
    pub(crate) title: &'static str,
    /// Its candidates.
    pub(crate) rows: Vec<Row>,
    /// How it was measured, and what to keep in mind.
    pub(crate) remarks: Vec<String>,
}

/// Options every section gets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// One minute for all sections instead of five.
    pub(crate) quick: bool,
}

/// A row's samples in short.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    /// The smallest.
    pub(crate) min: f64,
    /// The middle one.
    pub(crate) median: f64,
    /// The largest.
    pub(crate) max: f64,
}

/// A budget with its result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Judgement {
    /// A target.
    pub(crate) budget: Budget,
    /// The result in the budget's terms. `None` without samples.
    pub(crate) reached: Option<f64>,
}

impl Row {
    /// Its samples in short; `None` without any.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let mut samples = self.samples.clone();
        samples.sort_by(f64::total_cmp);
        let (&min, &max) = (samples.first()?, samples.last()?);
        Some(Summary { min, median: median(samples)?, max })
    }

    /// The median over the rounds of its sample combined with another row's; `None` without samples
    /// of both.
    pub(crate) fn against(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Option<f64> {
        median(
            self.samples
                .iter()
                .zip(&other.samples)
                .map(|(&own, &other)| combine(own, other))
                .collect(),
        )
    }
}

impl Budget {
    /// The limit.
    pub(crate) fn limit(self) -> f64 {
        match self {
            Self::RatioAtLeast(limit)
            | Self::RatioAtMost(limit)
            | Self::AtMost(limit)
            | Self::AtLeast(limit)
            | Self::OverBaselineAtMost(limit) => limit,
        }
    }

    /// Whether more is better.
    pub(crate) fn is_floor(self) -> bool {
        matches!(self, Self::RatioAtLeast(_) | Self::AtLeast(_))
    }
}

impl Judgement {
    /// Whether it is met. What could not be measured is not.
    pub(crate) fn is_met(&self) -> bool {
        let limit = self.budget.limit();
        self.reached.is_some_and(|reached| {
            if self.budget.is_floor() { reached >= limit } else { reached <= limit }
        })
    }
}

impl Section {
    /// The median over the rounds of sample divided by baseline sample.
    pub(crate) fn ratio(&self, row: &Row) -> Option<f64> {
        self.against_baseline(row, |sample, baseline| sample / baseline)
    }

    /// Whether the row reached its budget, if it has one.
    pub(crate) fn judge(&self, row: &Row) -> Option<Judgement> {
        let budget = row.budget?;
        let reached = match budget {
            Budget::RatioAtLeast(_) | Budget::RatioAtMost(_) => self.ratio(row),
            Budget::AtMost(_) | Budget::AtLeast(_) => row.summary().map(|summary| summary.median),
            Budget::OverBaselineAtMost(_) => {
                self.against_baseline(row, |sample, baseline| sample - baseline)
            }
        };
        Some(Judgement { budget, reached })
    }

    fn against_baseline(&self, row: &Row, combine: impl Fn(f64, f64) -> f64) -> Option<f64> {
        let name = row.baseline.as_ref()?;
        let baseline = self.rows.iter().find(|candidate| candidate.name == *name)?;
        row.against(baseline, combine)
    }
}

/// The middle of the samples, or the mean of the two in the middle.
pub(crate) fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    let upper = *samples.get(middle)?;
    if samples.len() % 2 == 1 {
        return Some(upper);
    }
    samples.get(middle.checked_sub(1)?).map(|lower| f64::midpoint(*lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, samples: &[f64], budget: Option<Budget>) -> Row {
        Row {
            name: name.to_owned(),
            populated: String::new(),
            unit: "Mpps",
            samples: samples.to_vec(),
            baseline: Some("base".to_owned()),
            budget,
            note: String::new(),
        }
    }

    fn section(rows: Vec<Row>) -> Section {
        Section { letter: 'x', title: "test", rows, remarks: Vec::new() }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let section = section(vec![
            row("base", &[1.0, 10.0, 2.0], None),
            row("ours", &[0.9, 8.0, 2.0], None),
        ]);
        assert_eq!(section.ratio(&section.rows[1]), Some(0.9));
        let summary = section.rows[1].summary().unwrap();
        assert_eq!(summary, Summary { min: 0.9, median: 2.0, max: 8.0 });
    }

    #[test]
    fn every_kind_of_budget() {
        let cases = [
            (Budget::RatioAtLeast(0.9), true),
            (Budget::RatioAtLeast(0.91), false),
            (Budget::RatioAtMost(0.9), true),
            (Budget::AtMost(9.0), true),
            (Budget::AtMost(8.9), false),
            (Budget::AtLeast(9.0), true),
            (Budget::AtLeast(9.1), false),
            (Budget::OverBaselineAtMost(-1.0), true),
            (Budget::OverBaselineAtMost(-1.1), false),
        ];
        for (budget, met) in cases {
            let section =
                section(vec![row("base", &[10.0], None), row("ours", &[9.0], Some(budget))]);
            assert_eq!(section.judge(&section.rows[1]).unwrap().is_met(), met, "{budget:?}");
        }
    }

    #[test]
    fn an_unmeasured_budget_is_not_met() {
        let section =
            section(vec![row("base", &[], None), row("ours", &[], Some(Budget::AtMost(1.0)))]);
        assert!(!section.judge(&section.rows[1]).unwrap().is_met());
        assert_eq!(section.rows[1].summary(), None);
        let ours = row("ours", &[1.0], Some(Budget::RatioAtLeast(0.1)));
        assert!(!section.judge(&ours).unwrap().is_met());
    }

    #[test]
    fn the_median_of_an_even_number_is_between_two() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
