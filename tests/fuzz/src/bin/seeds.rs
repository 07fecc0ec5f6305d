//! Writes the seed inputs of a target: `seeds TARGET DIRECTORY`. `SIP_XDP_CORPUS` may name a
//! directory with more.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs, io};

use sip_xdp_fuzz::{TARGETS, seeds};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [target, directory] = arguments.as_slice() else {
        eprintln!("usage: seeds TARGET DIRECTORY");
        return ExitCode::from(2);
    };
    if !TARGETS.iter().any(|(name, _)| name == target) {
        eprintln!("seeds: there is no target {target}");
        return ExitCode::from(2);
    }
    match write(target, directory.into()) {
        Ok(count) => {
            println!("{count}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("seeds: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the inputs, named by their hash. Returns their number.
fn write(target: &str, directory: PathBuf) -> io::Result<usize> {
    let corpus = env::var_os("SIP_XDP_CORPUS").map(PathBuf::from);
    let seeds = seeds::of(target, corpus.as_deref())?;
    fs::create_dir_all(&directory)?;
    for seed in &seeds {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        fs::write(directory.join(format!("seed-{:016x}", hasher.finish())), seed)?;
    }
    Ok(seeds.len())
}
