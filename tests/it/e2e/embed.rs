//! The example of the library, run as it is. Needs root and Linux 6.6 or later.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use sip_xdp_tests::process::Process;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, WAN};
use sip_xdp_tests::{Attacker, Capture, Lab, Registrar, stream, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// The example, where cargo has built it for this test.
fn example() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let profile = own
        .parent()
        .and_then(Path::parent)
        .context("tests are built into a directory of their profile")?;
    let path = profile.join("examples/embed");
    anyhow::ensure!(
        path.is_file(),
        "no {}: `cargo build --package sip-xdp --example embed` makes it",
        path.display()
    );
    Ok(path)
}

#[test]
fn a_program_that_embeds_the_filter_blocks_bans_and_cleans_up() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let blocked = lab.further_attacker(0)?;
    let mut command = lab.pbx.command(example()?);
    let mut program = Process::spawn("embed", command.args([WAN, &format!("{blocked}/32")]))?;
    program.wait_line(SOON, |line| line.text == format!("filtering {WAN} (native)"))?;

    let passed =
        Capture::start(&lab.pbx, WAN, &format!("udp and src host {blocked}"), lab.directory())?;
    let sent = stream::registers(&lab.attacker, blocked, PBX_WAN, 200)?;
    let mut tool = Attacker::new(&lab.attacker, lab.directory()).crack("101")?;
    let attacks = format!("{ATTACKER} attacks, blocked for ten minutes: ");
    let found = program.wait_line(SOON, |line| line.text.starts_with(&attacks))?;
    tool.stop(Signal::SIGTERM)?;
    wait_until("enough was sent", SOON, || Ok(sent.sent() > 100))?;
    let (sent, passed) = (sent.stop()?, passed.stop()?.len());
    println!("{}; of {sent} packets of a blocked source {passed} passed", found.text);
    assert_eq!(passed, 0);

    assert!(program.stop(Signal::SIGINT)?.success());
    let lines = program.lines();
    let dropped = lines
        .iter()
        .find_map(|line| line.text.strip_suffix(&format!(" packets of {blocked} were dropped")));
    assert_eq!(dropped, Some(sent.to_string().as_str()), "{}", program.tail());
    assert!(
        lines.iter().any(|line| line.text == format!("{WAN} is not filtered any more")),
        "{}",
        program.tail()
    );
    let link = lab.pbx.ip(["link", "show", "dev", WAN])?;
    assert!(!link.contains("xdp"), "{link}");
    Ok(())
}
