//! `cargo xtask docs`: generates the manual's reference chapters from the code, builds the manual
//! with mdBook, and checks that links lead somewhere.

mod markdown;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{ask, cache_directory, cargo, clean, install_once, run, run_quietly, say};
use crate::setup;
use crate::workspace::Workspace;

/// The last version that compiles with Rust 1.95 when this was written; it wants 1.88.
const MDBOOK: &str = "0.5.4";

/// Tests of this name make a chapter; see `sip-xdp/src/cli/reference/page.rs`.
const GENERATORS: &str = "the_chapter_of_";

/// The command.
pub(crate) fn run_all() -> Result<()> {
    let workspace = Workspace::find()?;
    setup::kernel_toolchain()?;
    say("generating docs/reference from the code");
    run_quietly(workspace.cargo().env("SIP_XDP_BLESS", "1").args([
        "test",
        "--package",
        "sip-xdp",
        "--lib",
        "--bins",
        GENERATORS,
    ]))?;
    let mdbook = mdbook()?;
    run(Command::new(&mdbook).arg("build").arg(workspace.root.join("docs")))?;
    let broken = markdown::broken_links(&workspace.root)?;
    if !broken.is_empty() {
        bail!("links that lead nowhere:\n{}", broken.join("\n"));
    }
    say(format!("the manual: {}", workspace.target.join("book/index.html").display()));
    Ok(())
}

/// Finds mdBook where an earlier run has put it, or builds it.
fn mdbook() -> Result<PathBuf> {
    let directory = cache_directory()?.join(format!("mdbook-{MDBOOK}"));
    let program = directory.join("bin/mdbook");
    if ask(Command::new(&program).arg("--version")).is_none() {
        say(format!("building mdBook {MDBOOK}, two to three minutes"));
        let _ = std::fs::remove_dir_all(&directory);
        install_once(&directory, |root| {
            run_quietly(
                clean(cargo())
                    .current_dir("/")
                    .args(["install", "mdbook", "--locked", "--version", MDBOOK])
                    .args(["--no-default-features", "--features", "search", "--root"])
                    .arg(root),
            )
        })
        .context("mdBook cannot be built")?;
    }
    Ok(program)
}
