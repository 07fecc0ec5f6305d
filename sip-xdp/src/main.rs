//! The binary `sip-xdp`. Each command is a file in `cli`.

mod cli;

use std::process::ExitCode;

use sip_xdp::text;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sip-xdp: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli::run(arguments)) {
        Ok(code) => code,
        // One line: the error, its cause, the remedy.
        Err(error) => {
            eprintln!("sip-xdp: {}", text::line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}
