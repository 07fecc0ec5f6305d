//! What the README and the manual promise to work: their configurations are such that the program
//! takes them as they are, and their commands stand where `cargo xtask newcomer` executes them.
//! Needs no root.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use sip_xdp_tests::filter::binary;
use sip_xdp_tests::manual::{self, Block, EXECUTED, FOR_OTHER_SYSTEMS};

/// The headings of the recipes.
const RECIPES: [&str; 3] =
    ["A PBX on a server of its own", "A gateway in front of a PBX", "The edge of a carrier"];

/// How blocks are fenced whose every line is executed: in the checkout, where each has a prompt,
/// and on the server.
const COMMANDS: [&str; 2] = ["console", "sh"];

/// How blocks are fenced that show something.
const SHOWN: [&str; 5] = ["ini", "json", "text", "toml", "xml"];

fn checkout() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the tests lie inside the workspace")
}

#[test]
fn each_recipe_is_one_file() -> Result<()> {
    let blocks = manual::read(checkout()?, ["docs/recipes.md"])?;
    for recipe in RECIPES {
        let files =
            blocks.iter().filter(|block| block.heading == recipe && block.language == "toml");
        assert_eq!(files.count(), 1, "{recipe}");
    }
    Ok(())
}

#[test]
fn what_is_fenced_as_toml_is_a_valid_configuration() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let pages = manual::pages(checkout()?)?;
    let blocks = manual::read(checkout()?, pages.iter().map(String::as_str))?;
    for block in blocks.iter().filter(|block| block.language == "toml") {
        let path = directory.path().join("config.toml");
        fs::write(&path, &block.text)?;
        let mut command = Command::new(binary()?);
        let output = command.arg("--config").arg(&path).args(["config", "check"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "under \"{}\": {said}\n{}", block.heading, block.text);
        println!("{}: {}", block.heading, String::from_utf8_lossy(&output.stdout).trim());
    }
    Ok(())
}

#[test]
fn commands_stand_where_they_are_executed() -> Result<()> {
    let executed = manual::read(checkout()?, EXECUTED)?;
    for language in COMMANDS {
        assert!(
            executed.iter().any(|block| block.language == language),
            "nothing is fenced as {language}"
        );
    }
    for page in manual::pages(checkout()?)? {
        let is_executed = EXECUTED.contains(&page.as_str());
        for block in manual::read(checkout()?, [page.as_str()])? {
            let Block { heading, language, text } = &block;
            let place = format!("fenced as \"{language}\" under \"{heading}\" of {page}:\n{text}");
            let is_command_block = COMMANDS.contains(&language.as_str());
            assert!(is_command_block || SHOWN.contains(&language.as_str()), "{place}");
            if page == FOR_OTHER_SYSTEMS {
                continue;
            }
            assert!(is_executed || !is_command_block, "nobody executes what is {place}");
            // What a command prints may be shown behind it; a block of nothing else is there to be
            // executed.
            let all_prompts = text.lines().all(|line| line.starts_with("$ "));
            assert_eq!(language == "console", all_prompts, "{place}");
            let is_command = |line: &str| {
                ["sudo ", "sip-xdp ", "cargo ", "apt"].iter().any(|word| line.starts_with(word))
            };
            let of_commands = text.lines().filter(|line| !line.is_empty()).all(is_command);
            assert!(is_command_block || !of_commands, "nobody executes what is {place}");
        }
    }
    Ok(())
}

#[test]
fn every_block_is_fenced() -> Result<()> {
    for page in manual::pages(checkout()?)? {
        let text = fs::read_to_string(checkout()?.join(&page))?;
        let outside = text.split("```").step_by(2).flat_map(str::lines);
        let indented: Vec<_> = outside.filter(|line| line.starts_with("    ")).collect();
        assert!(indented.is_empty(), "{page} has code that is not fenced: {indented:#?}");
    }
    Ok(())
}
