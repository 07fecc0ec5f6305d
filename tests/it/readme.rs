//! What the README promises to work: its configurations are such that the program takes them as
//! they are, and its commands stand where `cargo xtask newcomer` executes them. Needs no root.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use sip_xdp_tests::filter::binary;
use sip_xdp_tests::readme::{self, Block};

/// The headings of the recipes.
const RECIPES: [&str; 3] =
    ["A PBX on a server of its own", "A gateway in front of a PBX", "The edge of a carrier"];

/// How blocks are fenced whose every line is executed: in the checkout, where each has a prompt,
/// and on the server.
const EXECUTED: [&str; 2] = ["console", "sh"];

/// How blocks are fenced that show something.
const SHOWN: [&str; 4] = ["ini", "json", "text", "toml"];

fn checkout() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the tests lie inside the workspace")
}

#[test]
fn each_recipe_is_one_file() -> Result<()> {
    let blocks = readme::read(checkout()?)?;
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
    for block in readme::read(checkout()?)?.iter().filter(|block| block.language == "toml") {
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
    let blocks = readme::read(checkout()?)?;
    for language in EXECUTED {
        assert!(
            blocks.iter().any(|block| block.language == language),
            "nothing is fenced as {language}"
        );
    }
    for block in &blocks {
        let Block { heading, language, text } = block;
        let is_executed = EXECUTED.contains(&language.as_str());
        assert!(
            is_executed || SHOWN.contains(&language.as_str()),
            "fenced as \"{language}\" under \"{heading}\":\n{text}"
        );
        let all_prompts = text.lines().all(|line| line.starts_with("$ "));
        // What a command prints may be shown behind it; a block of nothing else is there to be
        // executed.
        assert_eq!(
            language == "console",
            all_prompts,
            "fenced as \"{language}\" under \"{heading}\":\n{text}"
        );
        let is_command = |line: &str| {
            ["sudo ", "sip-xdp ", "cargo ", "apt"].iter().any(|word| line.starts_with(word))
        };
        let of_commands = text.lines().filter(|line| !line.is_empty()).all(is_command);
        assert!(
            is_executed || !of_commands,
            "nobody executes what stands under \"{heading}\":\n{text}"
        );
    }
    Ok(())
}

#[test]
fn every_block_is_fenced() -> Result<()> {
    let text = fs::read_to_string(checkout()?.join("README.md"))?;
    let outside = text.split("```").step_by(2).flat_map(str::lines);
    let indented: Vec<_> = outside.filter(|line| line.starts_with("    ")).collect();
    assert!(indented.is_empty(), "nobody knows what these are: {indented:#?}");
    Ok(())
}
