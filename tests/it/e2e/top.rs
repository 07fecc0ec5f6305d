//! `top` in a real terminal: drawing, keys, and restoration of the terminal. Needs root and Linux
//! 6.6 or later.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN};
use sip_xdp_tests::{Filter, Lab, Terminal, stream};

const SOON: Duration = Duration::from_secs(20);

/// Starts `top` in the terminal, and returns its process id.
fn start(terminal: &Terminal, filter: &Filter<'_>) -> Result<Pid> {
    start_command(terminal, &filter.command(&["top", "--interval", "500ms"]))
}

/// With a command like `top`.
fn start_command(terminal: &Terminal, command: &Command) -> Result<Pid> {
    let pid = terminal.run(command)?;
    terminal.wait("top is drawn", |screen| {
        screen.contains("WORST SOURCES") && screen.contains("sip-xdp top")
    })?;
    Ok(pid)
}

/// The terminal is restored: prompt, earlier screen, and echo.
fn is_restored(terminal: &Terminal, status: &str) -> Result<()> {
    let screen = terminal
        .wait("the prompt is back", |screen| screen.contains(&format!("left with {status}")))?;
    assert!(!screen.contains("WORST SOURCES") && screen.contains("prompt> sh "), "{screen}");
    let cursor = terminal.tmux(&[
        "display-message",
        "-p",
        "#{cursor_flag} #{alternate_on} #{pane_in_mode}",
    ])?;
    assert_eq!(cursor.trim(), "1 0 0", "the cursor is shown, on the first screen");
    terminal.type_text("echo seen $((40 + 2))")?;
    terminal.press("Enter")?;
    terminal.wait("what is typed is seen", |screen| {
        screen.contains("echo seen $((40") && screen.contains("seen 42")
    })?;
    terminal.type_text("clear")?;
    terminal.press("Enter")?;
    terminal.wait("it is clear", |screen| !screen.contains("left with")).map(drop)
}

#[test]
fn keys_do_what_they_say() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let terminal = Terminal::start(&lab, 80, 24)?;
    start(&terminal, &filter)?;
    terminal.wait("nobody yet", |screen| {
        screen.contains("nobody is kept out") && screen.contains("enforcing on wan")
    })?;

    let attacker = ATTACKER.to_string();
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    filter.wait_for_ban(&attacker, SOON)?;
    let screen = terminal.wait("the attacker is shown, and its ban, and its rate", |screen| {
        let row = screen.lines().find(|line| line.starts_with(&attacker));
        row.is_some_and(|row| row.contains("auto") && !row.contains("  - "))
            && screen.matches(&attacker).count() >= 2
    })?;
    println!("{screen}");
    assert!(screen.lines().all(|line| line.chars().count() <= 80));

    terminal.press("Enter")?;
    let details = terminal.wait("all about it", |screen| screen.contains("packets dropped,"))?;
    assert!(details.contains("until ") && details.contains("sip-xdp explain"), "{details}");
    terminal.press("Escape")?;
    terminal.resize(200, 60)?;
    let screen = terminal.wait("it fills the larger screen", |screen| {
        screen.lines().count() >= 59
            && screen.contains("fragment")
            && screen.lines().any(|line| line.chars().count() > 150)
    })?;
    println!("{screen}");
    terminal.resize(80, 24)?;
    terminal.wait("and the smaller one again", |screen| {
        !screen.contains("fragment") && screen.contains("LATEST BANS")
    })?;
    stream.stop()?;

    // Nothing happens without a confirmation.
    terminal.press("u")?;
    terminal.wait("it asks", |screen| screen.contains(&format!("Unblock {attacker}")))?;
    terminal.press("n")?;
    terminal.wait("nothing was changed", |screen| screen.contains("nothing was changed"))?;
    assert!(filter.is_banned(&attacker)?);
    terminal.press("u")?;
    terminal.wait("it asks again", |screen| screen.contains(&format!("Unblock {attacker}")))?;
    terminal.press("y")?;
    terminal.wait("it is done", |screen| screen.contains("is not blocked any more"))?;
    assert!(!filter.is_banned(&attacker)?);

    for (key, network, list) in [("b", "192.0.2.77", "block"), ("t", "192.0.2.128/28", "trust")] {
        terminal.press(key)?;
        terminal.wait("it wants an address", |screen| screen.contains(&format!("{list}: ")))?;
        terminal.press("C-u")?;
        terminal.type_text(network)?;
        terminal.press("Enter")?;
        terminal.wait("it asks", |screen| {
            screen.contains(network) && screen.contains("any other key no")
        })?;
        terminal.press("y")?;
        terminal.wait("it is done", |screen| screen.contains(&format!("{network} is ")))?;
        let entries = filter.json(&[list, "list"])?;
        let entry = entries
            .as_array()
            .and_then(|all| all.iter().find(|entry| entry["network"] == network).cloned());
        let entry = entry.context("no entry")?;
        assert_eq!(entry["expires"].is_null(), list == "trust", "{entry}");
    }
    terminal.press("b")?;
    terminal.wait("it wants an address", |screen| screen.contains("block: "))?;
    terminal.press("C-u")?;
    terminal.type_text("198.51.100.1")?;
    terminal.press("Enter")?;
    terminal.wait("it asks", |screen| screen.contains("any other key no"))?;
    terminal.press("y")?;
    terminal
        .wait("the daemon refuses, and says why", |screen| screen.contains("was not blocked"))?;

    // Without a daemon the kernel's data are still shown.
    filter.kill9()?;
    let screen = terminal.wait("it says so", |screen| {
        screen.contains("NO DAEMON") && screen.contains("no daemon:")
    })?;
    assert!(screen.contains("192.0.2.77"), "{screen}");
    terminal.press("q")?;
    is_restored(&terminal, "0")
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let terminal = Terminal::start(&lab, 100, 30)?;
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let pid = start(&terminal, &filter)?;
        kill(pid, signal)?;
        is_restored(&terminal, "0")?;
    }
    start(&terminal, &filter)?;
    terminal.press("C-c")?;
    is_restored(&terminal, "0")
}

/// After any panic the terminal is restored, and the message is readable.
#[test]
fn a_panic_leaves_the_terminal_as_it_was() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let terminal = Terminal::start(&lab, 100, 30)?;
    let program = env!("CARGO_BIN_EXE_panic-in-top");
    for (signal, place) in [
        (Signal::SIGUSR1, "where it is drawn"),
        (Signal::SIGUSR2, "in a task"),
        (Signal::SIGALRM, "in a thread"),
    ] {
        let mut command = filter.command_of(program, &[]);
        let pid = start_command(&terminal, command.env("RUST_BACKTRACE", "0"))?;
        kill(pid, signal)?;
        terminal.wait("it says what went wrong", |screen| {
            screen.contains(place) && screen.contains("panicked at")
        })?;
        is_restored(&terminal, "101")?;
    }
    Ok(())
}

#[test]
fn without_a_terminal_it_says_what_to_do() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let output = filter.cli(&["top"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.trim_end().lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("needs a terminal") && said.contains("stats --interval"), "{said}");
    assert!(output.stdout.is_empty());
    let overview = filter.json(&["top"])?;
    assert_eq!((&overview["schema"], &overview["loaded"]), (&1.into(), &true.into()));
    assert!(overview["worst"].is_array() && overview["stats"]["interfaces"].is_array());
    Ok(())
}
