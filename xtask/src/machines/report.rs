//! The results: a table of kernels and interfaces, faults in words, and everything as JSON.

use serde_json::{Value, json};

use super::checks::Outcome;
use super::kernels::Kernel;
use super::qemu::Architecture;

/// All rows of one kernel.
pub(crate) struct Tried {
    pub(crate) kernel: &'static Kernel,
    pub(crate) architecture: Architecture,
    pub(crate) release: String,
    /// Seconds until the agent answered.
    pub(crate) boot: f64,
    /// By the interface's name; an error is a row that could not be tried.
    pub(crate) rows: Vec<(&'static str, Result<Outcome, String>)>,
    /// Warnings that the kernel printed meanwhile.
    pub(crate) warnings: Vec<String>,
}

impl Tried {
    /// The same kernel without rows, and with the warnings so far.
    pub(crate) fn bare(&self) -> Self {
        let (release, warnings) = (self.release.clone(), self.warnings.clone());
        Self { release, warnings, rows: Vec::new(), ..*self }
    }

    /// What the column is called.
    fn title(&self) -> String {
        let upstream = self.release.split(['-', '+']).next().unwrap_or(&self.release);
        match self.architecture {
            Architecture::Amd64 => upstream.to_owned(),
            Architecture::Arm64 => format!("{upstream} arm64"),
        }
    }

    /// Whether all of it is right.
    pub(crate) fn is_right(&self) -> bool {
        self.rows.iter().all(|(_, result)| result.as_ref().is_ok_and(Outcome::is_right))
    }

    /// The most that the verifier looked at for one program, if this kernel says so.
    pub(crate) fn most_instructions(&self) -> Option<u64> {
        self.rows.iter().filter_map(|(_, result)| result.as_ref().ok()?.instructions).max()
    }

    /// Seconds until the daemon was ready, the longest of them.
    pub(crate) fn slowest_start(&self) -> f64 {
        self.rows.iter().filter_map(|(_, result)| result.as_ref().ok()?.ready).fold(0.0, f64::max)
    }

    /// Seconds that loading the programs took, the longest of them.
    pub(crate) fn slowest_load(&self) -> f64 {
        self.rows.iter().filter_map(|(_, result)| result.as_ref().ok()?.load).fold(0.0, f64::max)
    }

    /// One line with the figures that have limits.
    pub(crate) fn summary(&self) -> String {
        let outcomes = || self.rows.iter().filter_map(|(_, result)| result.as_ref().ok());
        let passed = outcomes().filter(|outcome| outcome.is_right()).count();
        let (most, ready) = (self.most_instructions(), self.slowest_start());
        let mut ways: Vec<_> = outcomes().map(way).collect();
        ways.sort();
        ways.dedup();
        let verdict = if self.is_right() { "pass" } else { "FAIL" };
        let instructions =
            most.map_or("not said by this kernel".to_owned(), |most| most.to_string());
        format!(
            "{verdict} {} ({}), {}: {passed} of {} interfaces; {}; verifier instructions \
             {instructions}; loaded in {:.1} s, ready in {ready:.1} s; booted in {:.0} s",
            self.release,
            self.kernel.platform,
            self.architecture.name(),
            self.rows.len(),
            ways.join(", "),
            self.slowest_load(),
            self.boot
        )
    }

    /// What is wrong, one line each.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (interface, result) in &self.rows {
            match result {
                Err(error) => faults.push(format!("{} | {interface} | {error}", self.title())),
                Ok(outcome) => {
                    for check in &outcome.checks {
                        if let Err(error) = &check.result {
                            faults.push(format!(
                                "{} | {interface} | {}: {error}",
                                self.title(),
                                check.name
                            ));
                        }
                    }
                }
            }
        }
        faults
    }
}

/// How an interface is filtered, in a word or two.
fn way(outcome: &Outcome) -> String {
    match (&outcome.mode, &outcome.egress) {
        (Some(mode), Some(egress)) => format!("{mode}, {egress}"),
        (Some(mode), None) => mode.clone(),
        _ => "not filtered".to_owned(),
    }
}

/// A row's result in a word.
pub(crate) fn in_a_word(result: &Result<Outcome, String>) -> String {
    match result {
        Err(error) => format!("not tried: {error}"),
        Ok(_) => cell(result),
    }
}

fn cell(result: &Result<Outcome, String>) -> String {
    match result {
        Err(_) => "not tried".to_owned(),
        Ok(outcome) if outcome.is_right() => way(outcome),
        Ok(outcome) => {
            let failed = outcome.checks.iter().filter(|check| check.result.is_err()).count();
            format!("{} ({failed} failed)", way(outcome))
        }
    }
}

/// How many interfaces are right and wrong, on all kernels together.
pub(crate) fn counts(tried: &[Tried]) -> [usize; 2] {
    let rows: Vec<_> = tried.iter().flat_map(|tried| &tried.rows).collect();
    let right =
        rows.iter().filter(|(_, result)| result.as_ref().is_ok_and(Outcome::is_right)).count();
    [right, rows.len() - right]
}

/// The interfaces that any kernel was tried with, in order.
fn interfaces(tried: &[Tried]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for (name, _) in tried.iter().flat_map(|tried| &tried.rows) {
        if !names.contains(name) {
            names.push(*name);
        }
    }
    names
}

/// The table, as Markdown that is also fit for a terminal.
pub(crate) fn table(tried: &[Tried]) -> String {
    let mut rows = vec![
        ["interface".to_owned()]
            .into_iter()
            .chain(tried.iter().map(Tried::title))
            .collect::<Vec<_>>(),
    ];
    for name in interfaces(tried) {
        let mut row = vec![name.to_owned()];
        for one in tried {
            let found = one.rows.iter().find(|(interface, _)| *interface == name);
            row.push(found.map_or(String::new(), |(_, result)| cell(result)));
        }
        rows.push(row);
    }
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (word, &width) in row.iter().zip(&widths) {
            text.push_str(&format!("| {word:width$} "));
        }
        text.push_str("|\n");
        if number == 0 {
            for &width in &widths {
                text.push_str(&format!("|{}", "-".repeat(width + 2)));
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Why interfaces are filtered in generic mode, each reason once, with the interfaces that it was
/// given for.
pub(crate) fn reasons(tried: &[Tried]) -> Vec<(&'static str, String)> {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    for name in interfaces(tried) {
        // The newest kernel's words.
        let outcomes = tried.iter().rev().flat_map(|tried| &tried.rows);
        let outcomes = outcomes
            .filter(|(interface, _)| *interface == name)
            .filter_map(|(_, result)| result.as_ref().ok());
        if let Some(reason) = outcomes.filter_map(|outcome| outcome.reason.clone()).next() {
            found.push((name, reason));
        }
    }
    found
}

/// With what, how and when rows were tried.
#[derive(Debug, Clone)]
pub(crate) struct Circumstances {
    /// The day, and the seconds since 1970.
    pub(crate) date: String,
    pub(crate) time: u64,
    pub(crate) accelerator: String,
    /// The binary's hash.
    pub(crate) binary: String,
    /// The commit that it was built of, if that is known.
    pub(crate) commit: Option<String>,
    pub(crate) modes: Vec<String>,
}

/// Everything, for programs to read.
pub(crate) fn json(tried: &[Tried], circumstances: &Circumstances) -> Value {
    let Circumstances { accelerator, .. } = circumstances;
    let kernels: Vec<_> = tried
        .iter()
        .map(|tried| {
            json!({
                "kernel": tried.kernel.name,
                "platform": tried.kernel.platform,
                "release": tried.release,
                "architecture": tried.architecture.name(),
                "accelerator": accelerator,
                "boot_seconds": tried.boot,
                "right": tried.is_right(),
                "kernel_warnings": tried.warnings,
                "interfaces": tried
                    .rows
                    .iter()
                    .map(|(name, result)| row(name, result, circumstances))
                    .collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({"schema": 2, "kernels": kernels})
}

fn row(name: &str, result: &Result<Outcome, String>, circumstances: &Circumstances) -> Value {
    let Circumstances { date, time, binary, commit, modes, .. } = circumstances;
    match result {
        Err(error) => {
            json!({
                "interface": name,
                "right": false,
                "error": error,
                "date": date,
                "time": time,
                "binary": binary,
                "commit": commit,
            })
        }
        Ok(outcome) => {
            let checks: Vec<_> = outcome
                .checks
                .iter()
                .map(|check| {
                    let (right, detail) = match &check.result {
                        Ok(detail) => (true, detail),
                        Err(detail) => (false, detail),
                    };
                    json!({"check": check.name, "right": right, "detail": detail})
                })
                .collect();
            json!({
                "interface": name,
                "right": outcome.is_right(),
                "date": date,
                "time": time,
                "binary": binary,
                "commit": commit,
                "modes": modes,
                "mode": outcome.mode,
                "egress": outcome.egress,
                "reason": outcome.reason,
                "verifier_instructions": outcome.instructions,
                "load_seconds": outcome.load,
                "ready_seconds": outcome.ready,
                "checks": checks,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks::Check;
    use super::*;

    fn tried(failed: bool) -> anyhow::Result<Tried> {
        let result =
            if failed { Err("nothing arrives".to_owned()) } else { Ok("20 of 20".to_owned()) };
        let outcome = Outcome {
            checks: vec![Check { name: "blocked source dropped", result }],
            mode: Some("native".to_owned()),
            egress: Some("tcx".to_owned()),
            instructions: Some(1234),
            load: Some(1.5),
            ready: Some(2.5),
            reason: None,
        };
        Ok(Tried {
            kernel: Kernel::named("6.12")?,
            architecture: Architecture::Amd64,
            release: "6.12.1+deb13-amd64".to_owned(),
            boot: 7.0,
            rows: vec![("virtio_net", Ok(outcome))],
            warnings: Vec::new(),
        })
    }

    #[test]
    fn a_table_has_a_column_for_each_kernel() -> anyhow::Result<()> {
        let text = table(&[tried(false)?]);
        assert_eq!(
            text,
            "| interface  | 6.12.1      |\n|------------|-------------|\n| virtio_net | native, \
             tcx |\n"
        );
        Ok(())
    }

    #[test]
    fn faults_name_kernel_interface_and_check() -> anyhow::Result<()> {
        assert_eq!(
            tried(true)?.faults(),
            ["6.12.1 | virtio_net | blocked source dropped: nothing arrives"]
        );
        assert!(
            tried(true)?
                .summary()
                .starts_with("FAIL 6.12.1+deb13-amd64 (Debian 13), amd64: 0 of 1 interfaces")
        );
        assert!(
            tried(false)?.summary().contains(
                "native, tcx; verifier instructions 1234; loaded in 1.5 s, ready in 2.5 s"
            )
        );
        Ok(())
    }
}
