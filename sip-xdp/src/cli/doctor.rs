//! `doctor`: diagnosis of this host, with remedies.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use sip_xdp::daemon::Overrides;
use sip_xdp::sys::paths::Paths;
use sip_xdp::tools::doctor::{self, Check, Diagnosis, Status};

use super::Output;

/// Diagnose this host, with remedies
///
/// Checks kernel, rights, file systems, interfaces, routes, clock and feeds, and which SIP
/// listeners can be reached from where. Changes nothing, and works with or without a daemon; as
/// root it sees more. Exits with 0 if nothing failed.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Check this interface; may be repeated [default: those that are, or would be, filtered]
    #[arg(long = "iface", value_name = "IF")]
    interfaces: Vec<String>,
}

impl Doctor {
    pub(crate) async fn execute(
        self,
        paths: &Paths,
        config_required: bool,
        output: Output,
    ) -> Result<ExitCode> {
        let config = Overrides { config_required, ..Overrides::default() }.read(paths);
        let diagnosis = doctor::examine(paths, config, &self.interfaces).await;
        output.print(&diagnosis, |diagnosis| text(diagnosis, output))?;
        Ok(if diagnosis.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn text(diagnosis: &Diagnosis, output: Output) -> String {
    let mut text: String = diagnosis.checks.iter().map(|check| line(check, output)).collect();
    let count = |status| diagnosis.checks.iter().filter(|check| check.status == status).count();
    let (warned, failed) = (count(Status::Warn), count(Status::Fail));
    text.push_str(&format!(
        "\n{} checks: {warned} warnings, {failed} failed\n",
        diagnosis.checks.len()
    ));
    text
}

fn line(check: &Check, output: Output) -> String {
    let status = match check.status {
        Status::Ok => output.good("ok  "),
        Status::Warn => output.bad("warn"),
        Status::Fail => output.bad("FAIL"),
    };
    let mut name = check.check.replace('_', " ");
    if let Some(interface) = &check.interface {
        name.push_str(&format!(" {interface}"));
    }
    let remedy =
        check.remedy.as_ref().map(|remedy| format!("{:26}-> {remedy}\n", "")).unwrap_or_default();
    format!("{status}  {name:18}  {}\n{remedy}", check.detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_a_line_and_its_remedy_another() {
        let check = Check {
            check: "xdp_programs",
            interface: Some("eth0".to_owned()),
            status: Status::Fail,
            detail: "another one".to_owned(),
            remedy: Some("stop it".to_owned()),
        };
        let expected =
            "FAIL  xdp programs eth0   another one\n                          -> stop it\n";
        assert_eq!(line(&check, Output::new(false)), expected);
    }
}
