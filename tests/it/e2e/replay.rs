//! `replay` finds the same attackers as the live filter, in all kinds of captures, and reports what
//! it cannot read. Needs root.
//!
//! More than 400 lines: all cases share the capture and its helpers.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use sip_xdp_tests::mix::{FAST, FRAUD, Mix, SCANNER, SERVER, SLOW, STALE};
use sip_xdp_tests::pcap::{Cover, pcap, pcapng};
use sip_xdp_tests::process::{output, succeed};
use sip_xdp_tests::topology::{OUTSIDE, PBX_WAN};
use sip_xdp_tests::{
    Attacker, Capture, Disguise, Filter, FilterOptions, Lab, Registrar,
    wait_for_a_nonce_of_its_own, wait_until,
};

/// The program, as the other tests find it.
fn program(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(sip_xdp_tests::filter::binary()?);
    command.arg("replay").args(arguments);
    Ok(command)
}

/// Replays a file with the default configuration.
fn replay(file: &Path, arguments: &[&str]) -> Result<Value> {
    let mut command = program(arguments)?;
    let text = succeed(command.arg("--json").arg(file))?;
    serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
}

/// Writes a file of a test.
fn write(directory: &Path, name: &str, content: &[u8]) -> Result<PathBuf> {
    let file = directory.join(name);
    fs::write(&file, content)?;
    Ok(file)
}

/// The addresses in a list of a report.
fn addresses(report: &Value, list: &str) -> BTreeSet<String> {
    let rows = report[list].as_array().unwrap_or_else(|| panic!("no {list}: {report}"));
    let address = |row: &Value| {
        row["address"].as_str().unwrap_or_else(|| panic!("no address: {row}")).to_owned()
    };
    let host = |row: &Value| address(row).split('/').next().map(str::to_owned).unwrap_or_default();
    rows.iter().map(host).collect()
}

fn hosts(addresses: &[Ipv4Addr]) -> BTreeSet<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// One hour with all that matters, and few packets.
const HOUR: Mix = Mix {
    length: Duration::from_secs(4 * 3_600),
    phones: 10,
    registers: Duration::from_secs(1_800),
    keepalives: Duration::from_secs(600),
    calls: Duration::from_secs(3_600),
    media: 3,
    attackers: true,
};

#[test]
fn a_day_of_two_hundred_phones_names_exactly_the_attackers() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let directory = tempfile::tempdir()?;
    let day = Mix {
        length: Duration::from_secs(24 * 3_600),
        phones: 200,
        registers: Duration::from_secs(1_500),
        keepalives: Duration::from_secs(1_200),
        calls: Duration::from_secs(6 * 3_600),
        media: 0,
        attackers: true,
    };
    let packets = day.packets();
    let file = write(directory.path(), "day.pcap", &pcap(Cover::Ethernet, &packets))?;
    let report = replay(&file, &[])?;
    println!("{} packets: {:#}", packets.len(), report["banned"]);
    assert_eq!(report["capture"]["packets"], packets.len());
    assert_eq!(report["registrar"]["networks"], serde_json::json!([SERVER.ip().to_string()]));
    assert_eq!(report["registrar"]["guessed"], true);
    // A misconfigured phone fills the slow bucket as well.
    assert_eq!(
        addresses(&report, "banned"),
        hosts(&[FAST, SLOW, FRAUD, SCANNER, STALE]),
        "{:#}",
        report["events"]
    );
    assert_eq!(addresses(&report, "limited"), BTreeSet::new(), "{:#}", report["limited"]);
    assert_eq!(addresses(&report, "good").len(), 200);
    for good in report["good"].as_array().unwrap() {
        assert_eq!(good["dropped"], 0, "{good}");
    }
    // Each did what its reason says, and no more passed than that needs.
    for ban in report["banned"].as_array().unwrap() {
        let (before, passed) =
            (ban["before"]["passed"].as_u64().unwrap(), ban["after"]["passed"].as_u64().unwrap());
        assert!(before <= 400 && !ban["reason"].as_str().unwrap().is_empty(), "{ban}");
        assert_eq!(ban["address"] == SCANNER.to_string(), ban["kind"] == "signature", "{ban}");
        // Slow guesses for three users look like three phones, and end in a ban of their port.
        let is_slow = [STALE, SLOW].iter().any(|host| ban["address"] == host.to_string());
        assert_eq!(is_slow, ban["kind"] == "misconfigured", "{ban}");
        assert_eq!(ban["address"] == SLOW.to_string(), ban["port"] == 5060, "{ban}");
        assert!(ban["kind"] != "misconfigured" || ban["length"].as_u64() <= Some(3_600), "{ban}");
        println!("{}: {before} packets before, {passed} passed afterwards", ban["address"]);
    }
    Ok(())
}

#[test]
fn every_kind_of_file_gives_the_same_answer() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let directory = tempfile::tempdir()?;
    let packets = HOUR.packets();
    let gzip = |bytes: &[u8]| -> Result<Vec<u8>> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes)?;
        Ok(encoder.finish()?)
    };
    let plain = pcap(Cover::Ethernet, &packets);
    let mut files = vec![
        ("pcapng", pcapng(Cover::Ethernet, &packets)),
        ("pcap.gz", gzip(&plain)?),
        ("pcapng.gz", gzip(&pcapng(Cover::Sll, &packets))?),
        ("pcap.zst", zstd::encode_all(plain.as_slice(), 1)?),
    ];
    files.extend(Cover::ALL.map(|cover| ("pcap", pcap(cover, &packets))));
    let mut answers = BTreeSet::new();
    for (number, (name, content)) in files.into_iter().enumerate() {
        let report = replay(&write(directory.path(), &format!("{number}.{name}"), &content)?, &[])?;
        let parts = ["banned", "limited", "good", "packets", "methods", "responses", "others"];
        let answer: Vec<String> = parts.iter().map(|part| report[part].to_string()).collect();
        assert_eq!(addresses(&report, "banned"), hosts(&[SLOW, STALE]), "{name}: {report:#}");
        answers.insert(answer);
    }
    assert_eq!(answers.len(), 1, "{answers:#?}");
    // And from standard input, which cannot be read twice.
    let mut child =
        program(&["-", "--json"])?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(&plain)?;
    let piped: Value = serde_json::from_slice(&child.wait_with_output()?.stdout)?;
    assert_eq!(answers.first().unwrap()[0], piped["banned"].to_string());
    Ok(())
}

#[test]
fn unreadable_parts_are_reported_and_the_rest_used() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let directory = tempfile::tempdir()?;
    let packets = HOUR.packets();
    let whole = pcap(Cover::Ethernet, &packets);
    for (name, content, says) in [
        ("empty", Vec::new(), "it is empty"),
        ("text", b"this is not a capture at all".to_vec(), "neither pcap nor pcapng"),
        ("stub", whole[..10].to_vec(), "first 24 bytes"),
        ("broken.gz", vec![0x1f, 0x8b, 8, 0, 1, 2, 3], "cannot be read"),
    ] {
        let file = write(directory.path(), name, &content)?;
        let output = output(program(&[])?.arg(&file))?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(says) && error.lines().count() == 1,
            "{name}: {error}"
        );
    }
    // Truncated in the middle of a packet: earlier packets count.
    let file = write(directory.path(), "cut.pcap", &whole[..whole.len() - 100])?;
    let report = replay(&file, &[])?;
    let trouble = report["capture"]["trouble"].as_str().unwrap_or_default();
    assert!(trouble.contains("in the middle of the record that begins at byte"), "{report:#}");
    assert!(report["capture"]["packets"].as_u64() > Some(packets.len() as u64 - 3), "{report:#}");
    assert_eq!(addresses(&report, "banned"), hosts(&[SLOW, STALE]));
    // Out of order, and with unrelated addresses.
    let mut swapped = packets.clone();
    swapped.swap(10, 500);
    swapped.push((0, vec![0xff; 60]));
    let report =
        replay(&write(directory.path(), "swapped.pcap", &pcap(Cover::Ethernet, &swapped))?, &[])?;
    assert!(report["capture"]["out_of_order"].as_u64() >= Some(2), "{report:#}");
    assert_eq!(report["capture"]["skipped"]["not_ip"], 1);
    assert_eq!(addresses(&report, "banned"), hosts(&[SLOW, STALE]));
    Ok(())
}

/// One attack in common encapsulations: the same bans, or a line with the format and a remedy.
#[test]
fn every_wrapping_gives_the_bans_of_the_plain_capture() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/wrappings");
    let mut files: Vec<PathBuf> =
        fs::read_dir(&cases)?.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    let bans = |report: &Value| -> Vec<String> {
        let row = |ban: &Value| {
            ["address", "port", "kind", "tier", "reason", "length"].map(|key| ban[key].to_string())
        };
        report["banned"].as_array().into_iter().flatten().map(|ban| row(ban).join(" ")).collect()
    };
    let plain = replay(&files[0], &["--registrar", "198.51.100.1"])?;
    assert_eq!(addresses(&plain, "banned"), BTreeSet::from(["192.0.2.66".to_owned()]), "{plain:#}");
    for file in &files[1..] {
        let report = replay(file, &["--registrar", "198.51.100.1"])?;
        println!("{}: {:#}", file.display(), report["capture"]);
        let name = file.display();
        if name.to_string().contains("two-files") {
            // Twice the attack: the first ban is the same.
            assert_eq!(bans(&report).first(), bans(&plain).first(), "{name}");
            assert_eq!(report["capture"]["files"], 2, "{name}");
        } else {
            assert_eq!(bans(&report), bans(&plain), "{name}: {report:#}");
        }
        assert_eq!(report["capture"]["trouble"], Value::Null, "{name}");
        assert_eq!(report["capture"]["not_read"], serde_json::json!({}), "{name}");
    }
    Ok(())
}

#[test]
fn copies_of_packets_change_nothing() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let directory = tempfile::tempdir()?;
    let packets = HOUR.packets();
    // As in a capture of all interfaces: three times within a millisecond.
    let copies = |(at, frame): &(u64, Vec<u8>)| {
        [(*at, frame.clone()), (*at + 20_000, frame.clone()), (*at + 400_000, frame.clone())]
    };
    let mut thrice: Vec<_> = packets.iter().flat_map(copies).collect();
    thrice.sort_by_key(|(at, _)| *at);
    let once = replay(&write(directory.path(), "once.pcap", &pcap(Cover::Sll, &packets))?, &[])?;
    let thrice = replay(&write(directory.path(), "thrice.pcap", &pcap(Cover::Sll, &thrice))?, &[])?;
    for part in ["banned", "limited", "good", "packets", "methods", "responses"] {
        assert_eq!(once[part], thrice[part], "{part}");
    }
    assert_eq!(once["capture"]["duplicates"], 0);
    assert!(thrice["capture"]["duplicates"].as_u64() > Some(1_000), "{:#}", thrice["capture"]);
    assert!(thrice["notes"].to_string().contains("a second time"));
    Ok(())
}

#[test]
fn other_files_are_named_with_a_remedy() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let directory = tempfile::tempdir()?;
    for (name, content, says) in [
        ("a.zip", &b"PK\x03\x04\x14\0\0\0"[..], "it is a zip archive; unpack it first"),
        ("a.snoop", b"snoop\0\0\0\0\0\0\x02\0\0\0\x04", "editcap"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c\0\x04", "7z archive"),
    ] {
        let output = output(program(&[])?.arg(write(directory.path(), name, content)?))?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(says) && error.lines().count() == 1,
            "{name}: {error}"
        );
    }
    // An unsupported link type: all packets, by name.
    let mut radio = pcap(Cover::Ethernet, &HOUR.packets()[..50]);
    radio[20..24].copy_from_slice(&127_u32.to_le_bytes());
    let file = write(directory.path(), "radio.pcap", &radio)?;
    let text = succeed(program(&[])?.arg(&file))?;
    assert!(text.contains("not read  50 link type 127 (Wi-Fi with a radiotap header)"), "{text}");
    Ok(())
}

#[test]
fn two_configurations_are_compared_source_by_source() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let directory = tempfile::tempdir()?;
    let file = write(directory.path(), "hour.pcap", &pcap(Cover::Ethernet, &HOUR.packets()))?;
    let lenient = "[detect.rejected]\nenabled = false\n[detect.slow]\nenabled = false\n";
    let other = write(directory.path(), "lenient.toml", lenient.as_bytes())?;
    let report = replay(&file, &["--compare", other.to_str().context("a name")?])?;
    let differences = report["differences"].as_array().context("no differences")?;
    let of = |host: Ipv4Addr| differences.iter().find(|one| one["address"] == host.to_string());
    assert!(differences.len() == 2 && of(STALE).is_some(), "{differences:#?}");
    let slow = of(SLOW).context("the slow guesser is treated alike")?;
    assert_eq!(
        (&slow["address"], &slow["first"]["verdict"], &slow["second"]["verdict"]),
        (&SLOW.to_string().into(), &"banned".into(), &"passes".into())
    );
    assert_eq!(slow["second"]["dropped"], 0, "{slow}");
    let told = succeed(program(&["--compare"])?.arg(&other).arg(&file))?;
    assert!(
        told.contains(&SLOW.to_string()) && told.contains("banned") && told.contains("passes"),
        "{told}"
    );
    Ok(())
}

/// A live ban and its replay have the same evidence. The live one is decided by another process a
/// moment after the decisive packet, so that the evidence itself is compared, and the number of the
/// attacker's packets that passed: with 200 ms between passwords, at most one more may have passed
/// live.
fn is_replayed_to_the_same_ban(configuration: &str, disguises: &[Disguise]) -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let options =
        FilterOptions { configuration: configuration.to_owned(), ..FilterOptions::default() };
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    let config = write(lab.directory(), "replay.toml", configuration.as_bytes())?;
    for (number, disguise) in (1..).zip(disguises) {
        let from = lab.further_attacker(number)?;
        // On the attacker's side, where dropped packets are captured as well.
        let expression = format!("udp and host {from}");
        let capture = Capture::start_whole(&lab.attacker, OUTSIDE, &expression, lab.directory())?;
        let attacker =
            Attacker::new(&lab.attacker, lab.directory()).address(from).disguise(*disguise);
        wait_for_a_nonce_of_its_own();
        let mut tool = attacker.crack_with_pauses("101", "0.2")?;
        let ban = filter.wait_for_ban(&from.to_string(), Duration::from_secs(60))?;
        let dropped = || -> Result<u64> {
            Ok(filter
                .entries(&from.to_string())?
                .iter()
                .filter_map(|entry| entry["hits"].as_u64())
                .sum())
        };
        wait_until("the ban drops packets", Duration::from_secs(20), || Ok(dropped()? >= 3))?;
        tool.stop(Signal::SIGTERM)?;
        let kind = filter.ban_kind(&from.to_string()).context("the log names no kind")?;
        let file = capture.file().to_owned();
        capture.stop()?;
        let received = registrar.received_from(from) as u64;

        let config = config.to_str().context("a name")?;
        let report = replay(&file, &["--config", config, "--registrar", &PBX_WAN.to_string()])?;
        let banned = report["banned"].as_array().context("no bans")?;
        assert_eq!(addresses(&report, "banned"), hosts(&[from]), "{report:#}");
        let replayed = &banned[0];
        let before = replayed["before"]["passed"].as_u64().context("no number")?;
        let reason = replayed["reason"].as_str().context("no reason")?;
        println!(
            "{disguise:?}: live {kind} after {received} packets ({}), replayed after {before} \
             ({reason})",
            ban.reason
        );
        assert_eq!(
            (replayed["kind"].as_str(), replayed["tier"].as_str()),
            (Some(&*kind), Some(&*ban.tier))
        );
        assert_eq!(number_in(reason), number_in(&ban.reason), "{reason} {}", ban.reason);
        assert!(
            received.abs_diff(before) <= 1,
            "{received} packets passed live, {before} in the replay"
        );
        assert_eq!(replayed["after"]["passed"], 0, "after its ban nothing passes: {replayed}");
    }
    Ok(())
}

/// The leading number of a reason: the amount of evidence.
fn number_in(reason: &str) -> Option<u32> {
    reason.split(' ').next()?.parse().ok()
}

#[test]
fn a_live_attack_is_replayed_to_the_same_ban() -> Result<()> {
    is_replayed_to_the_same_ban("", &[Disguise::None, Disguise::Agent])
}

#[test]
fn a_live_ban_for_passwords_is_replayed_after_the_same_password() -> Result<()> {
    is_replayed_to_the_same_ban("[detect.signature]\nenabled = false\n", &[Disguise::Agent])
}

/// Captures of others, where there are any.
#[test]
fn captures_of_others_are_replayed() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let Some(corpus) = std::env::var_os("SIP_XDP_CORPUS") else {
        println!("SIP_XDP_CORPUS names no folder: nothing to replay");
        return Ok(());
    };
    let mut open = vec![PathBuf::from(corpus)];
    let mut replayed = 0;
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().contains(".pcap") {
                let report = replay(&path, &[])?;
                let packets = report["capture"]["packets"].as_u64();
                assert!(
                    packets > Some(0) && report["capture"]["trouble"].is_null(),
                    "{}: {report:#}",
                    path.display()
                );
                replayed += 1;
            }
        }
    }
    println!("{replayed} captures");
    Ok(())
}
