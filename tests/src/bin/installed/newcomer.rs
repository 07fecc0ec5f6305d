//! A newcomer: executes what the README's quick start and installation say, from top to bottom, without a single edit.
//!
//! Blocks that are fenced as `sh` are executed in a clean Debian, as a user who may use sudo; those that are fenced as `console`
//! were executed before, in the checkout: they make the package. Anything else is an illustration.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sip_xdp_tests::readme::{self, Block};
use sip_xdp_tests::topology::ATTACKER;
use sip_xdp_tests::{Lab, Machine};

use crate::{Arguments, held};

/// The parts that a newcomer follows, in the order in which they are in the README.
const PARTS: [&str; 2] = ["Installing", "Quick start"];

/// Commands that make the package; the program that runs these tests has executed them.
const IN_THE_CHECKOUT: &str = "cargo xtask package";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let blocks = readme::read(&arguments.checkout)?;
    let blocks: Vec<_> = blocks.iter().filter(|block| PARTS.contains(&block.heading.as_str())).collect();
    for part in PARTS {
        let is_executed = |block: &&&Block| block.heading == part && block.language == "sh";
        ensure!(blocks.iter().any(|block| is_executed(&block)), "the README has nothing to execute under \"{part}\"");
    }
    let lab = Lab::new()?;
    // As a host on the Internet has one; the filter goes where it leads.
    lab.pbx.ip(["route", "add", "default", "via", &ATTACKER.to_string()])?;
    let machine = Machine::boot(&arguments.root, &lab.pbx, lab.directory())?;
    machine.run(
        "useradd --create-home --shell /bin/bash newcomer && \
         echo 'newcomer ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/newcomer",
    )?;
    let name = arguments.package.file_name().and_then(|name| name.to_str()).context("the package has no name")?;
    machine.copy(&arguments.package, &format!("/home/newcomer/{name}"))?;

    for block in blocks {
        match block.language.as_str() {
            "sh" => execute(&machine, block)?,
            "console" => {
                let commands: Vec<_> = block.text.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
                let is_known =
                    |command: &&str| command.split(" #").next().is_some_and(|text| text.trim() == IN_THE_CHECKOUT);
                ensure!(commands.iter().all(is_known), "nobody has executed: {commands:?}");
            }
            _ => {}
        }
    }
    Ok(())
}

fn execute(machine: &Machine<'_>, block: &Block) -> Result<()> {
    let start = Instant::now();
    let script = machine_script(&block.text);
    machine.run(&script).with_context(|| format!("under \"{}\"", block.heading))?;
    let commands = block.text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    for command in commands {
        held(format!("$ {command}"));
    }
    held(format!("the block took {:.1?}", start.elapsed()));
    Ok(())
}

/// A block as that user would paste it into a shell, which stops at the first command that fails.
fn machine_script(text: &str) -> String {
    let quoted = format!("set -e -o pipefail\ncd\n{text}").replace('\'', r"'\''");
    format!("runuser --login newcomer -c '{quoted}'")
}
