//! The machine of the measurements.

use std::fs;
use std::thread::available_parallelism;

use anyhow::{Context, Result};
use jiff::Timestamp;
use jiff::Unit;

/// The machine and the moment.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// The CPU's model.
    pub(crate) cpu: String,
    /// How many of them.
    pub(crate) cores: usize,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// When, in UTC.
    pub(crate) time: String,
    /// What was measured, if git knew.
    pub(crate) commit: Option<String>,
}

impl Machine {
    /// This one, now.
    pub(crate) fn find(commit: Option<String>) -> Result<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("cannot read the kernel's release")?;
        let now = Timestamp::now();
        Ok(Self {
            cpu: model(&cpus).unwrap_or("unknown").to_owned(),
            cores: available_parallelism().context("cannot count the CPUs")?.get(),
            kernel: kernel.trim().to_owned(),
            time: now.round(Unit::Second).unwrap_or(now).to_string(),
            commit,
        })
    }

    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        let commit =
            self.commit.as_deref().map_or_else(String::new, |commit| format!(", commit {commit}"));
        format!("{}, {} cores, Linux {}, {}{commit}", self.cpu, self.cores, self.kernel, self.time)
    }
}

/// The first CPU's name. Not every architecture has one.
fn model(cpus: &str) -> Option<&str> {
    cpus.lines().find_map(|line| {
        line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_model() {
        assert_eq!(
            model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"),
            Some("Some CPU @ 2 GHz")
        );
        assert_eq!(model("processor\t: 0\n"), None);
    }
}
