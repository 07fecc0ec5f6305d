//! The product's `top` with panics on demand: SIGUSR1 in the drawing code, SIGUSR2 in a task,
//! SIGALRM in another thread. For the test of the terminal's restoration.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use sip_xdp::observe::top::{Options, run};
use sip_xdp::sys::paths::Paths;
use tokio::signal::unix::{SignalKind, signal};

/// Directories of the shown instance; the names are those of `sip-xdp`.
#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long)]
    config: std::path::PathBuf,
    #[arg(long)]
    run_dir: std::path::PathBuf,
    #[arg(long)]
    state_dir: std::path::PathBuf,
    #[arg(long)]
    pin_dir: std::path::PathBuf,
    /// Ignored, for the same command line as `sip-xdp`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

fn main() -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(show(Arguments::parse()))
}

async fn show(arguments: Arguments) -> Result<()> {
    let Arguments { config, run_dir, state_dir, pin_dir, rest: _ } = arguments;
    let paths = Paths { config, run_dir, state_dir, pin_dir };
    let (mut here, mut task, mut thread) = (
        signal(SignalKind::user_defined1())?,
        signal(SignalKind::user_defined2())?,
        signal(SignalKind::alarm())?,
    );
    tokio::spawn(async move {
        task.recv().await;
        panic!("in a task");
    });
    tokio::spawn(async move {
        thread.recv().await;
        std::thread::spawn(|| panic!("in a thread"));
    });
    let options = Options { interval: Duration::from_millis(500), plain: false, operator: None };
    tokio::select! {
        shown = run(paths, options) => shown,
        _ = here.recv() => panic!("where it is drawn"),
    }
}
