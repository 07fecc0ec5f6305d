//! The command line: its commands, and what they share.

mod block;
mod config;
mod confirm;
mod doctor;
mod explain;
mod feed;
mod generate;
mod import;
mod output;
#[cfg(test)]
mod reference;
mod reload;
mod replay;
mod report;
mod run;
mod state;
mod stats;
mod status;
mod suggest;
mod top;
mod trust;
mod unload;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource,
};
use sip_xdp::config::Span;
use sip_xdp::sys::paths::Paths;

use output::Output;

/// The parsed command line.
#[derive(Debug)]
pub(crate) struct Arguments {
    cli: Cli,
    config_required: bool,
}

impl Arguments {
    /// Parses the command line; exits with status 2 on errors.
    pub(crate) fn parse() -> Self {
        let matches = Cli::command().get_matches();
        let config_required = is_given(&matches, "config");
        match Cli::from_arg_matches(&matches) {
            Ok(cli) => Self { cli, config_required },
            Err(error) => error.exit(),
        }
    }
}

/// Parses durations of at least this.
fn at_least(least: &'static str) -> impl Fn(&str) -> Result<Span, String> + Clone + Send + Sync {
    move |text| {
        let (span, shortest): (Span, Span) = (text.parse()?, least.parse()?);
        if span < shortest {
            return Err(format!("{span} is too short; use {least} or more"));
        }
        Ok(span)
    }
}

/// Whether an option was given on the command line or in the environment, before or behind the
/// subcommand.
fn is_given(matches: &ArgMatches, name: &str) -> bool {
    let here = matches!(
        matches.try_contains_id(name).ok().and_then(|_| matches.value_source(name)),
        Some(ValueSource::CommandLine | ValueSource::EnvVariable)
    );
    here || matches.subcommand().is_some_and(|(_, inner)| is_given(inner, name))
}

/// Stops SIP scanners and password guessers in the network driver.
///
/// sip-xdp drops blocked sources before the kernel allocates anything for their packets, limits
/// what unknown sources may send to the SIP ports, and bans attackers. The filter outlives the
/// daemon: stopping the daemon changes nothing, `sip-xdp unload` detaches the filter.
#[derive(Debug, Parser)]
#[command(name = "sip-xdp", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Configuration file; without one, defaults apply
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "SIP_XDP_CONFIG",
        default_value = "/etc/sip-xdp/config.toml",
        hide_env = true
    )]
    config: PathBuf,
    /// Directory of the control socket
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "SIP_XDP_RUN_DIR",
        default_value = "/run/sip-xdp",
        hide_env = true
    )]
    run_dir: PathBuf,
    /// Directory of state that survives a reboot
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "SIP_XDP_STATE_DIR",
        default_value = "/var/lib/sip-xdp",
        hide_env = true
    )]
    state_dir: PathBuf,
    /// Directory of pinned programs, links and maps, on a BPF file system
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "SIP_XDP_PIN_DIR",
        default_value = "/sys/fs/bpf/sip-xdp",
        hide_env = true
    )]
    pin_dir: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Status(status::Status),
    Stats(stats::Stats),
    Top(top::Top),
    Explain(explain::Explain),
    Watch(watch::Watch),
    Replay(replay::Replay),
    Report(report::Report),
    Doctor(doctor::Doctor),
    /// The block list
    #[command(subcommand)]
    Block(block::Block),
    /// Unblock an address: the same as `block del`
    Unban(block::Delete),
    /// The trust list: never dropped, never banned
    #[command(subcommand, alias = "allow")]
    Trust(trust::Trust),
    /// Export or import what the filter has learnt, for another host
    #[command(subcommand)]
    State(state::State),
    /// Lists kept by others
    #[command(subcommand)]
    Feed(feed::Feed),
    Unload(unload::Unload),
    /// The configuration file
    #[command(subcommand)]
    Config(config::Config),
    /// Reload the daemon's configuration
    Reload,
    /// Keep a filter that was started with `run --confirm` enforcing, or attach it again after its
    /// deadline
    Confirm,
    Completions(generate::Completions),
    Man(generate::Man),
}

/// Runs a command. Returns the exit status: 0 for success, 1 for failure.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { cli: Cli { global, command }, config_required } = arguments;
    let output = Output::new(global.json);
    let paths = Paths {
        config: global.config,
        run_dir: global.run_dir,
        state_dir: global.state_dir,
        pin_dir: global.pin_dir,
    };
    match command {
        Command::Run(run) => run.execute(paths, config_required, output).await?,
        Command::Status(status) => return status.execute(&paths, output).await,
        Command::Stats(stats) => stats.execute(&paths, output)?,
        Command::Top(top) => top.execute(paths, output).await?,
        Command::Explain(explain) => explain.execute(&paths, config_required, output).await?,
        Command::Watch(watch) => watch.execute(&paths, output).await?,
        Command::Report(report) => report.execute(&paths, config_required, output)?,
        Command::Replay(replay) => replay.execute(&paths, config_required, output)?,
        Command::Doctor(doctor) => return doctor.execute(&paths, config_required, output).await,
        Command::State(state) => state.execute(&paths, output).await?,
        Command::Block(block) => block.execute(&paths, output).await?,
        Command::Unban(delete) => delete.execute(&paths, output).await?,
        Command::Trust(trust) => trust.execute(&paths, output).await?,
        Command::Feed(feed) => feed.execute(&paths, output).await?,
        Command::Unload(unload) => unload.execute(&paths, output).await?,
        Command::Config(config) => config.execute(&paths, config_required, output)?,
        Command::Reload => reload::execute(&paths, output).await?,
        Command::Confirm => confirm::execute(&paths, output).await?,
        Command::Completions(completions) => completions.execute()?,
        Command::Man(man) => man.execute(output)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        for line in [
            "sip-xdp --config /x status --json",
            "sip-xdp status --config /x --json",
            "sip-xdp --json status --config /x",
        ] {
            let matches = Cli::command().try_get_matches_from(line.split(' ')).unwrap();
            assert!(is_given(&matches, "config"), "{line}");
            let cli = Cli::from_arg_matches(&matches).unwrap();
            assert_eq!((cli.global.config, cli.global.json), ("/x".into(), true), "{line}");
        }
        let matches = Cli::command().try_get_matches_from(["sip-xdp", "status"]).unwrap();
        assert!(!is_given(&matches, "config") || std::env::var_os("SIP_XDP_CONFIG").is_some());
    }
}
