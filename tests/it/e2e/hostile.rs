//! Attacker-chosen text, wherever it is shown: it creates no element of a page, and no terminal
//! obeys it. Needs root, Linux 6.6 or later, chromium and tmux.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use sip_xdp_tests::browser::{DESKTOP, text};
use sip_xdp_tests::http::{self, METRICS};
use sip_xdp_tests::sip::Request;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN};
use sip_xdp_tests::{
    Browser, Filter, FilterOptions, Lab, Registrar, Stream, Terminal, stream, wait_until,
};

const SOON: Duration = Duration::from_secs(30);

/// Users that an attacker makes up; evidence names three in turn. The last one rings the bell,
/// clears the screen and sets the window title, with control characters of seven bits, of eight,
/// and of eight in UTF-8, and reverses the line.
const USERS: [&[u8]; 3] = [
    b"<script>document.title='owned'</script>",
    b"\"><img src=x onerror=document.title='owned'>",
    b"\x1b]0;owned\x07\x1b[2J\x9b31m\xc2\x9b31m\xe2\x80\xaeevil\r\nban",
];

/// A request whose target, sender and User-Agent contain terminal controls.
const RAW: &[u8] = b"OPTIONS sip:\x1b]0;owned\x07\x1b[2J\xc2\x9b31m@lab.example SIP/2.0\r\n\
    Via: SIP/2.0/UDP 198.51.100.100:5060;branch=z9hG4bKraw;rport\r\nMax-Forwards: 70\r\n\
    From: <sip:\x1b]0;owned\x07\x1b[2J\xc2\x9b31m@lab.example>;tag=raw\r\nTo: \
                    <sip:x@lab.example>\r\nCall-ID: raw\r\nCSeq: 1 OPTIONS\r\n\
    User-Agent: \x1b]0;owned\x07\r\nContent-Length: 0\r\n\r\n";

/// A user escaped for a URI.
fn escaped(user: &[u8]) -> String {
    user.iter().map(|byte| format!("%{byte:02X}")).collect()
}

/// REGISTERs of different unknown users, from port 5060 of an address.
fn tries_users(lab: &Lab, from: impl Into<IpAddr>) -> Result<Stream> {
    let (from, to) = (SocketAddr::new(from.into(), 5060), SocketAddr::from((PBX_WAN, 5060)));
    Stream::start(stream::socket(&lab.attacker, from, to)?, 4, move |number| {
        let user = format!("{}{number}", escaped(USERS[number as usize % USERS.len()]));
        let call_id = format!("hostile-{number}");
        Request { method: "REGISTER", user: &user, call_id: &call_id, sequence: 1, from, to }
            .bytes()
    })
}

/// Fails if a text has terminal controls.
fn is_plain(what: &str, text: &str) {
    let is_odd = |c: &char| *c != '\n' && (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}'));
    assert_eq!(text.chars().find(is_odd), None, "{what} would move more than a pen: {text:?}");
}

/// A lab in which an attacker was banned for invented users.
fn attack(lab: &Lab, configuration: String) -> Result<(Registrar, Filter<'_>)> {
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { configuration, ..FilterOptions::default() },
    )?;
    let tries = tries_users(lab, ATTACKER)?;
    let ban = filter.wait_for_ban(&ATTACKER.to_string(), SOON);
    tries.stop()?;
    println!("{}", ban?.reason);
    Ok((registrar, filter))
}

#[test]
fn a_page_shows_it() -> Result<()> {
    let lab = Lab::new()?;
    let (_registrar, filter) = attack(&lab, String::new())?;
    for (number, user) in (0..).zip(USERS) {
        filter.succeed(&[
            "block",
            "add",
            &format!("192.0.2.{number}"),
            "--reason",
            &String::from_utf8_lossy(user),
        ])?;
    }
    wait_until("the page is there", SOON, || Ok(http::get(&lab.pbx, METRICS, "/").is_ok()))?;
    let page = Browser::new(&lab).page(DESKTOP)?;
    for id in ["worst", "bans"] {
        let shown = text(&page, id);
        for letters in [
            "&lt;script&gt;document.title='owned'&lt;/script&gt;",
            "&lt;img src=x onerror=",
            "evil",
        ] {
            assert!(shown.contains(letters), "{letters} is not in {id}: {shown}");
        }
        is_plain(id, &shown.replace('\u{a0}', " "));
    }
    assert!(page.contains("<title>sip-xdp</title>"), "something ran: {page}");
    assert_eq!((page.matches("<script").count(), page.matches("<img").count()), (1, 0), "{page}");
    assert_eq!(
        page.matches("onerror=").count(),
        page.matches("&lt;img src=x onerror=").count(),
        "as text only"
    );
    Ok(())
}

#[test]
fn a_terminal_shows_it() -> Result<()> {
    let lab = Lab::new()?;
    let (told, program) = (lab.directory().join("told"), lab.directory().join("page"));
    fs::write(
        &program,
        format!("#!/bin/sh\nenv | grep -a ^SIP_XDP_ >> {0}; cat >> {0}\n", told.display()),
    )?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let configuration = format!("[notify]\ncommand = [\"{}\"]\n", program.display());
    let filter = Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { configuration, ..FilterOptions::default() },
    )?;
    let terminal = Terminal::start(&lab, 200, 50)?;
    let recorded = lab.directory().join("recorded");
    terminal.record(&recorded)?;
    terminal.run(&filter.command(&["top", "--interval", "500ms"]))?;
    let mut watchers = [&["watch", "--packets"][..], &["watch", "--json", "--packets"]]
        .map(|arguments| filter.start_command(arguments))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;

    // The last user of an unblocked source is remembered, up to the semicolon.
    let curious = lab.further_attacker(0)?;
    let socket = stream::socket(&lab.attacker, (curious, 5060).into(), (PBX_WAN, 5060).into())?;
    let mut explained = String::new();
    wait_until("a hostile request is remembered", SOON, || {
        socket.send(RAW).or_else(|_| socket.send(RAW))?;
        explained = filter.succeed(&["explain", &curious.to_string()])?;
        Ok(explained.contains("user \"?]0\""))
    })
    .with_context(|| explained.clone())?;
    is_plain("explain", &explained);

    let attacker = ATTACKER.to_string();
    let tries = tries_users(&lab, ATTACKER)?;
    filter.wait_for_ban(&attacker, SOON)?;
    // Drop samples have the start lines as received.
    let raw = stream::socket(&lab.attacker, (ATTACKER, 5061).into(), (PBX_WAN, 5060).into())?;
    let has_sample = |text: &str| {
        text.lines().any(|line| line.contains("OPTIONS sip:") && line.contains("owned"))
    };
    let said = |watcher: &sip_xdp_tests::process::Process| -> String {
        watcher.lines().into_iter().map(|line| line.text + "\n").collect()
    };
    wait_until("samples of it are seen", SOON, || {
        raw.send(RAW).or_else(|_| raw.send(RAW))?;
        Ok(watchers
            .iter()
            .all(|watcher| has_sample(&said(watcher)) && said(watcher).contains("enumeration")))
    })
    .with_context(|| watchers.iter().map(said).collect::<String>())?;
    tries.stop()?;
    for watcher in &watchers {
        is_plain("watch", &said(watcher));
    }
    // Reasons of other programs may contain such text as well.
    let reason = String::from_utf8_lossy(USERS[2]).into_owned();
    filter.succeed(&["block", "add", "192.0.2.66", "--reason", &reason])?;
    for arguments in [
        &["block", "list"][..],
        &["block", "list", "--json"],
        &["explain", &attacker],
        &["explain", &attacker, "--json"],
        &["explain", "192.0.2.66"],
        &["status"],
        &["status", "--json"],
        &["top", "--json"],
    ] {
        let shown = filter.succeed(arguments)?;
        is_plain(&arguments.join(" "), &shown);
        assert!(
            arguments[0] == "status" || shown.contains("evil"),
            "{arguments:?} was to show it: {shown}"
        );
    }
    let list = filter.succeed(&["block", "list"])?;
    assert_eq!(list.lines().count(), 3, "a reason has made a line of its own: {list}");
    let list = filter.json(&["block", "list"])?;
    assert_eq!(
        list.as_array().and_then(|all| {
            all.iter().find(|one| one["network"] == "192.0.2.66")?["reason"].as_str()
        }),
        Some(reason.as_str()),
        "who reads JSON gets all of it"
    );

    // Manual entries and those of programs have one log line each.
    let log: Vec<_> = filter.log().into_iter().map(|line| line.text).collect();
    log.iter().for_each(|line| is_plain("the log", line));
    assert!(log.iter().any(|line| line.contains("ban ") && line.contains("evil")), "{log:#?}");
    assert!(
        log.iter().any(|line| line.contains("block 192.0.2.66") && line.contains("evil")),
        "{log:#?}"
    );

    wait_until("somebody is told", SOON, || {
        Ok(fs::read(&told).is_ok_and(|told| told.ends_with(b"}\n")))
    })?;
    let told = fs::read_to_string(&told)?;
    is_plain("what a program is told", &told);
    assert!(told.contains("SIP_XDP_REASON=") && told.contains("evil"), "{told}");

    // The raw output of `top`: its own control sequences, and none of the attacker's.
    let screen = terminal.wait("both are shown", |screen| {
        screen.contains("192.0.2.66") && screen.contains("evil")
    })?;
    assert!(screen.contains(&attacker), "{screen}");
    terminal.press("Enter")?;
    terminal.wait("all about one", |screen| screen.contains("sip-xdp explain"))?;
    terminal.press("x")?;
    terminal.wait("no more of it", |screen| !screen.contains("sip-xdp explain"))?;
    terminal.press("q")?;
    terminal.wait("it has left", |screen| screen.contains("left with 0"))?;
    let sent = String::from_utf8_lossy(&fs::read(&recorded)?).into_owned();
    assert!(sent.contains("evil"), "the record is not of top: {sent:?}");
    for (what, theirs) in
        [("a title", "\u{1b}]"), ("a bell", "\u{7}"), ("a line turned around", "\u{202e}")]
    {
        assert!(!sent.contains(theirs), "{what} got to the terminal: {sent:?}");
    }
    assert_eq!(sent.chars().find(|c| ('\u{80}'..'\u{a0}').contains(c)), None, "{sent:?}");
    for watcher in &mut watchers {
        watcher.stop(Signal::SIGINT)?;
    }
    drop(registrar);
    Ok(())
}
