//! Conversations from the field: no legitimate source loses a packet, and attackers are banned. The
//! directories are `tests/cases`, and those of `SIP_XDP_CASES`. Needs root.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use sip_xdp::config::Config;
use sip_xdp::net::network::Network;
use sip_xdp::tools::replay::{Ban, Close, Input, Options, Replayed, replay};

/// Number of packets shown of a failing conversation.
const SHOWN: usize = 24;

/// A participant of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Who {
    address: IpAddr,
    port: Option<u16>,
}

/// A line of `expected.tsv`.
#[derive(Debug)]
struct Case {
    file: PathBuf,
    registrar: Vec<Network>,
    keep: Vec<Who>,
    ban: Vec<Who>,
    why: String,
}

fn who(text: &str) -> Result<Who> {
    if let Ok(address) = text.parse() {
        return Ok(Who { address, port: None });
    }
    let (address, port) = text.rsplit_once(':').with_context(|| format!("{text} is nobody"))?;
    let address = address.trim_start_matches('[').trim_end_matches(']').parse()?;
    Ok(Who { address, port: Some(port.parse()?) })
}

fn everybody(text: &str) -> Result<Vec<Who>> {
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !matches!(*part, "" | "-")) {
        let Some((IpAddr::V4(first), IpAddr::V4(last))) = part
            .split_once('-')
            .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)))
        else {
            all.push(who(part)?);
            continue;
        };
        let range = u32::from(first)..=u32::from(last);
        all.extend(range.map(|address| Who { address: IpAddr::V4(address.into()), port: None }));
    }
    Ok(all)
}

fn cases(directory: &Path) -> Result<Vec<Case>> {
    let table = directory.join("expected.tsv");
    let text =
        fs::read_to_string(&table).with_context(|| format!("reading {}", table.display()))?;
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let case = |line: &str| -> Result<Case> {
        let columns: Vec<&str> = line.split('\t').collect();
        let [file, registrar, keep, ban, why] = columns.as_slice() else {
            bail!("{}: not five columns: {line}", table.display());
        };
        let registrar = registrar
            .split(',')
            .map(|one| one.trim().parse().context("registrar"))
            .collect::<Result<_>>()?;
        Ok(Case {
            file: directory.join(file),
            registrar,
            keep: everybody(keep)?,
            ban: everybody(ban)?,
            why: (*why).to_owned(),
        })
    };
    lines.map(case).collect()
}

/// Whether a ban affects a participant.
fn hits(ban: &Ban, who: &Who) -> bool {
    let is_there = ban.address.contains(&Network::host(who.address));
    is_there && (ban.port.is_none() || who.port.is_none() || ban.port == who.port)
}

/// The faults in the outcome of a case.
fn faults(case: &Case, replayed: &Replayed) -> Vec<(Who, String)> {
    let mut faults = Vec::new();
    for one in &case.keep {
        let lost = replayed.lost(one.address, one.port);
        if lost > 0 {
            faults.push((*one, format!("lost {lost} packets, and should lose none")));
        }
        // A registered phone passes although its address is banned, so that only its own ban
        // matters.
        let ban = replayed
            .banned
            .iter()
            .find(|ban| hits(ban, one) && (one.port.is_none() || ban.port.is_some()));
        if let Some(ban) = ban {
            faults.push((*one, format!("banned at {}: {} ({})", ban.time, ban.kind, ban.reason)));
        }
    }
    for one in &case.ban {
        if !replayed.banned.iter().any(|ban| hits(ban, one)) {
            faults.push((*one, "never banned".to_owned()));
        }
    }
    faults
}

/// The decisive packets of a participant: those before the ban, or the first ones.
fn decisive(case: &Case, who: &Who, replayed: &Replayed) -> Result<String> {
    let until = replayed.banned.iter().find(|ban| hits(ban, who)).map(|ban| ban.time);
    let input = Input::open(&case.file)?;
    let mut capture = input.packets()?;
    let mut lines = Vec::new();
    while let Some(packet) = capture.next() {
        let at = jiff::Timestamp::from_nanosecond(i128::from(packet.at))?;
        if until.is_some_and(|until| at > until) {
            break;
        }
        let Some(message) = sip_message(packet.data) else {
            continue;
        };
        let address = match who.address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        // Both endpoints are in the headers before the message.
        let headers = &packet.data[..packet.data.len() - message.len()];
        if headers.windows(address.len()).any(|bytes| bytes == address) {
            lines.push(format!("{at}  {}", summary(message)));
        }
        if until.is_none() && lines.len() >= SHOWN {
            break;
        }
    }
    let first = lines.len().saturating_sub(SHOWN);
    Ok(lines[first..].join("\n    "))
}

/// Offset of a message in a frame.
fn sip_message(frame: &[u8]) -> Option<&[u8]> {
    let starts = [
        "SIP/2.0 ",
        "REGISTER ",
        "INVITE ",
        "OPTIONS ",
        "ACK ",
        "BYE ",
        "SUBSCRIBE ",
        "MESSAGE ",
        "PUBLISH ",
    ];
    let at = (0..frame.len())
        .find(|at| starts.iter().any(|start| frame[*at..].starts_with(start.as_bytes())))?;
    Some(&frame[at..])
}

/// The identifying lines of a message.
fn summary(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    let mut lines = text.lines();
    let mut summary = lines.next().unwrap_or_default().to_owned();
    let telling = [
        "call-id",
        "cseq",
        "authorization",
        "proxy-authorization",
        "www-authenticate",
        "proxy-authenticate",
    ];
    for line in lines.take_while(|line| !line.is_empty()) {
        let name = line.split(':').next().unwrap_or_default().trim().to_ascii_lowercase();
        if telling.contains(&name.as_str()) {
            let short: String = line.chars().take(120).collect();
            let _ = write!(summary, " | {short}");
        }
    }
    summary
}

/// The evidence found in a conversation.
fn evidence(replayed: &Replayed) -> String {
    let mut text = String::new();
    for ban in &replayed.banned {
        let port = ban.port.map_or_else(String::new, |port| format!(":{port}"));
        let tier = ban.tier.map_or("", |tier| tier.name());
        let _ = writeln!(
            text,
            "    ban {}{port} {} {tier} {} s: {}",
            ban.address, ban.kind, ban.length, ban.reason
        );
    }
    for close in &replayed.closest {
        let Close { address, kind, count, limit, reason } = close;
        let _ = writeln!(text, "    evidence {address} {kind} {count} of {limit}: {reason}");
    }
    for good in replayed.good.iter().take(SHOWN) {
        let _ = writeln!(text, "    good {} with {} users", good.address, good.users);
    }
    replayed.notes.iter().for_each(|note| _ = writeln!(text, "    note: {note}"));
    text
}

/// Replays all cases of a directory. Returns what is wrong with them.
fn run(directory: &Path, config: &Config) -> Result<Vec<String>> {
    let cases = cases(directory)?;
    ensure!(!cases.is_empty(), "{} has no cases", directory.display());
    let listed: BTreeSet<&Path> = cases.iter().map(|case| case.file.as_path()).collect();
    for entry in fs::read_dir(directory)? {
        let file = entry?.path();
        let is_capture = file.to_string_lossy().contains(".pcap");
        ensure!(
            !is_capture || listed.contains(file.as_path()),
            "{} is not expected to be anything",
            file.display()
        );
    }
    let mut wrong = Vec::new();
    for case in &cases {
        let options = Options { registrar: case.registrar.clone() };
        let replayed = replay(&Input::open(&case.file)?, config, &options, &mut |_| {})
            .with_context(|| format!("replaying {}", case.file.display()))?;
        let faults = faults(case, &replayed);
        let Some((first, _)) = faults.first() else {
            continue;
        };
        let mut text = format!("{}: {}\n", case.file.display(), case.why);
        for (who, fault) in &faults {
            let port = who.port.map_or_else(String::new, |port| format!(":{port}"));
            let _ = writeln!(text, "  {}{port}: {fault}", who.address);
        }
        let _ = writeln!(text, "  evidence:\n{}", evidence(&replayed));
        let _ = writeln!(text, "  decisive packets:\n    {}", decisive(case, first, &replayed)?);
        wrong.push(text);
    }
    println!("{}: {} of {} are wrong", directory.display(), wrong.len(), cases.len());
    Ok(wrong)
}

/// Replays all cases with a configuration.
fn come_out_right(config: &Config) -> Result<()> {
    sip_xdp_tests::require_root()?;
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")];
    directories.extend(env::var_os("SIP_XDP_CASES").iter().flat_map(env::split_paths));
    let mut wrong = Vec::new();
    for directory in &directories {
        wrong.extend(run(directory, config)?);
    }
    assert!(wrong.is_empty(), "{} conversations are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn conversations_come_out_right_by_default() -> Result<()> {
    come_out_right(&Config::default())
}

#[test]
fn conversations_come_out_right_without_signatures() -> Result<()> {
    let mut config = Config::default();
    config.detect.signature.enabled = false;
    come_out_right(&config)
}
