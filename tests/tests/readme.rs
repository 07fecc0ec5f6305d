//! What the README promises to work: its recipes are configurations that the program takes as they are. Needs no root.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use sip_xdp_tests::filter::binary;
use sip_xdp_tests::readme;

/// The headings of the recipes.
const RECIPES: [&str; 3] = ["A PBX on a server of its own", "A gateway in front of a PBX", "The edge of a carrier"];

#[test]
fn the_recipes_are_valid_configurations() -> Result<()> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the tests lie inside the workspace")?;
    let blocks = readme::read(checkout)?;
    let directory = tempfile::tempdir()?;
    for recipe in RECIPES {
        let mut complete = blocks.iter().filter(|block| block.heading == recipe && block.language == "toml");
        let (block, further) = (complete.next().with_context(|| format!("no recipe \"{recipe}\""))?, complete.next());
        assert_eq!(further, None, "the recipe \"{recipe}\" is one file");
        let path = directory.path().join("config.toml");
        fs::write(&path, &block.text)?;
        let mut command = Command::new(binary()?);
        let output = command.arg("--config").arg(&path).args(["config", "check"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{recipe}: {said}");
        println!("{recipe}: {}", String::from_utf8_lossy(&output.stdout).trim());
    }
    Ok(())
}
