//! Dynamic interfaces: they come and go, change name and kind, and are filtered again as soon as
//! they exist. Needs root.
//!
//! More than 400 lines: one test per event of an interface, with shared helpers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::programs::{loaded_links, loaded_programs};
use nix::sys::signal::Signal;
use serde_json::Value;
use sip_xdp_common::abi::names;
use sip_xdp_tests::process::{Process, succeed};
use sip_xdp_tests::topology::{ATTACKER, LAN, OUTSIDE, PBX_WAN, WAN, address};
use sip_xdp_tests::{Capture, Filter, FilterOptions, Lab, Namespace, usage, wait_until};
use sip_xdp_tests::{sip, stream};

/// Time allowed for the daemon on a busy machine. The actual time is printed.
const SOON: Duration = Duration::from_secs(15);

/// Recreates an interface of the PBX, with the attacker at its other end.
fn make(lab: &Lab, name: &str, outside: &str) -> Result<()> {
    succeed(
        Command::new("ip")
            .args(["link", "add", name, "netns", lab.pbx.name(), "type", "veth"])
            .args(["peer", "name", outside, "netns", lab.attacker.name()]),
    )?;
    for (namespace, interface) in [(&lab.pbx, name), (&lab.attacker, outside)] {
        namespace.ip(["link", "set", interface, "addrgenmode", "none"])?;
        namespace.ip(["link", "set", interface, "up"])?;
    }
    address(&lab.pbx, name, &["198.51.100.1/24"])?;
    address(&lab.attacker, outside, &["198.51.100.66/24"])
}

fn delete(lab: &Lab, name: &str) -> Result<()> {
    lab.pbx.ip(["link", "del", name]).map(drop)
}

/// The row of `status` about an interface.
fn row(filter: &Filter<'_>, name: &str) -> Result<Value> {
    let status = filter.json(&["status"])?;
    let rows = status["interfaces"].as_array().context("`status` has no interfaces")?;
    rows.iter()
        .find(|row| row["interface"] == name)
        .cloned()
        .with_context(|| format!("no {name} in {status}"))
}

fn is_attached(filter: &Filter<'_>, name: &str) -> Result<bool> {
    Ok(row(filter, name)?["attached"] == true)
}

fn warnings(filter: &Filter<'_>) -> Result<String> {
    Ok(filter.json(&["status"])?["warnings"].to_string())
}

fn is_enforcing(filter: &Filter<'_>) -> Result<bool> {
    Ok(filter.cli(&["status", "--check"])?.status.success())
}

/// Whether there is an XDP program on an interface, as `ip` sees it.
fn has_program(namespace: &Namespace, name: &str) -> Result<bool> {
    Ok(namespace.ip(["link", "show", name])?.contains("xdp"))
}

/// What is pinned for interfaces.
fn pins(filter: &Filter<'_>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for directory in ["links", "egress", "clsact", "programs"] {
        for entry in fs::read_dir(filter.pins().join(directory))? {
            found.push(format!("{directory}/{}", entry?.file_name().to_string_lossy()));
        }
    }
    found.sort();
    Ok(found)
}

fn index(namespace: &Namespace, name: &str) -> Result<String> {
    let line = namespace.ip(["-o", "link", "show", name])?;
    Ok(line.split(':').next().context("`ip` shows no index")?.to_owned())
}

/// Counts the lines of the log that say this of an interface.
fn said(filter: &Filter<'_>, name: &str, kind: &str) -> usize {
    let start = format!("interface {name} kind={kind} ");
    filter.log().iter().filter(|line| line.text.contains(&start)).count()
}

/// A watcher that has already received an event.
fn watcher(filter: &Filter<'_>) -> Result<Process> {
    let mut watcher = filter.start_command(&["watch", "--json"])?;
    wait_until("the watcher is told", SOON, || {
        filter.succeed(&["block", "add", "192.0.2.99"])?;
        Ok(watcher
            .wait_line(Duration::from_millis(200), |line| {
                !line.error && line.text.contains("192.0.2.99")
            })
            .is_ok())
    })?;
    Ok(watcher)
}

/// Waits until the blocked source's packets are dropped by the interface, and asserts that none
/// passes from then on.
fn stays_blocked(lab: &Lab, filter: &Filter<'_>, name: &str) -> Result<()> {
    let before = filter.packets(name, "drop.blocked")?;
    let seen = Capture::start(&lab.pbx, name, "udp and dst port 5060", lab.directory())?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 100)?;
    wait_until("packets are dropped", SOON, || {
        Ok(filter.packets(name, "drop.blocked")? >= before + 10)
    })?;
    let sent = stream.stop()?;
    let passed = seen.stop()?.len();
    assert_eq!(passed, 0, "of {sent} packets");
    Ok(())
}

#[test]
fn an_interface_is_filtered_again_when_it_is_back() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    stays_blocked(&lab, &filter, WAN)?;
    let counted = filter.packets(WAN, "drop.blocked")?;
    let mut watcher = watcher(&filter)?;
    let old = index(&lab.pbx, WAN)?;

    delete(&lab, WAN)?;
    wait_until("it is said to be gone", SOON, || Ok(said(&filter, WAN, "gone") == 1))?;
    wait_until("status says so", SOON, || Ok(warnings(&filter)?.contains("wan is gone")))?;
    assert!(!is_enforcing(&filter)?, "an interface is missing");
    assert!(filter.json(&["status"])?["daemon"]["missing"] == serde_json::json!([WAN]));
    let stale: Vec<_> =
        pins(&filter)?.into_iter().filter(|pin| pin.ends_with(&format!("/{old}"))).collect();
    assert!(stale.is_empty(), "pins of an interface that is gone: {stale:?}");
    assert!(is_attached(&filter, LAN)?);

    make(&lab, WAN, OUTSIDE)?;
    let start = Instant::now();
    wait_until("it is filtered again", SOON, || has_program(&lab.pbx, WAN))?;
    println!("filtered {:?} after the interface was there again", start.elapsed());
    stays_blocked(&lab, &filter, WAN)?;
    wait_until("all is well", SOON, || is_enforcing(&filter))?;
    assert!(filter.packets(WAN, "drop.blocked")? > counted, "the counters began anew");
    assert_eq!((said(&filter, WAN, "gone"), said(&filter, WAN, "attached")), (1, 1));
    for kind in ["gone", "attached"] {
        let line = watcher.wait_line(SOON, |line| {
            let event: Value = serde_json::from_str(&line.text).unwrap_or_default();
            event["event"] == "interface" && event["kind"] == kind
        })?;
        let event: Value = serde_json::from_str(&line.text)?;
        assert_eq!(
            (&event["interface"], &event["address"]),
            (&WAN.into(), &Value::Null),
            "{event}"
        );
        println!("{event}");
    }
    assert_ne!(index(&lab.pbx, WAN)?, old);
    watcher.stop(Signal::SIGTERM).map(drop)
}

#[test]
fn a_link_that_goes_down_and_up_stays_filtered() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    let before = pins(&filter)?;
    for _ in 0..5 {
        lab.pbx.ip(["link", "set", WAN, "down"])?;
        assert!(has_program(&lab.pbx, WAN)?);
        lab.pbx.ip(["link", "set", WAN, "up"])?;
    }
    stays_blocked(&lab, &filter, WAN)?;
    assert!(is_enforcing(&filter)?);
    assert_eq!(
        (pins(&filter)?, said(&filter, WAN, "attached"), said(&filter, WAN, "gone")),
        (before, 0, 0)
    );
    Ok(())
}

#[test]
fn a_renamed_interface_stays_filtered_until_another_has_its_name() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    lab.pbx.ip(["link", "set", WAN, "down"])?;
    lab.pbx.ip(["link", "set", WAN, "name", "uplink"])?;
    lab.pbx.ip(["link", "set", "uplink", "up"])?;
    wait_until("it is said", SOON, || Ok(said(&filter, WAN, "renamed") == 1))?;
    assert!(warnings(&filter)?.contains("wan is called uplink now"), "{}", warnings(&filter)?);
    assert!(has_program(&lab.pbx, "uplink")? && is_enforcing(&filter)?);
    let before = filter.packets(WAN, "drop.blocked")?;
    let dropped = |filter: &Filter<'_>| -> Result<()> {
        let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 100)?;
        wait_until("it drops", SOON, || Ok(filter.packets(WAN, "drop.blocked")? > before))?;
        stream.stop().map(drop)
    };
    dropped(&filter)?;
    // The next daemon, and a reload, agree.
    filter.kill9()?;
    filter.launch()?;
    filter.succeed(&["reload"])?;
    assert!(has_program(&lab.pbx, "uplink")? && is_enforcing(&filter)?);
    assert_eq!(row(&filter, WAN)?["current_name"], "uplink");

    // The configured name decides.
    make(&lab, WAN, "eth1")?;
    wait_until("the new one is filtered", SOON, || has_program(&lab.pbx, WAN))?;
    wait_until("the old one is not", SOON, || Ok(!has_program(&lab.pbx, "uplink")?))?;
    wait_until("all is well", SOON, || is_enforcing(&filter))?;
    assert_eq!(said(&filter, WAN, "detached"), 1);
    // The old name may return.
    delete(&lab, WAN)?;
    wait_until("it is said to be gone", SOON, || Ok(said(&filter, WAN, "gone") == 1))?;
    lab.pbx.ip(["link", "set", "uplink", "down"])?;
    lab.pbx.ip(["link", "set", "uplink", "name", WAN])?;
    lab.pbx.ip(["link", "set", WAN, "up"])?;
    wait_until("it is filtered", SOON, || has_program(&lab.pbx, WAN))?;
    wait_until("all is well", SOON, || is_enforcing(&filter))?;
    println!("{}", warnings(&filter)?);
    Ok(())
}

/// A PPP line has no Ethernet header, and a larger MTU may exclude native mode.
#[test]
fn an_interface_that_comes_back_as_another_kind_gets_the_right_program() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    delete(&lab, WAN)?;
    lab.pbx.ip(["tuntap", "add", "dev", WAN, "mode", "tun"])?;
    lab.pbx.ip(["link", "set", WAN, "up"])?;
    address(&lab.pbx, WAN, &["198.51.100.1/24"])?;
    wait_until("a tun device is filtered", SOON, || is_attached(&filter, WAN))?;
    let tun = Tun::open(&lab.pbx, WAN)?;
    wait_until("its packets are read from the IP header on", SOON, || {
        let request = sip::Request {
            method: "REGISTER",
            user: "101",
            call_id: "tun",
            sequence: 1,
            from: SocketAddr::from((ATTACKER, 5060)),
            to: SocketAddr::from((PBX_WAN, 5060)),
        };
        tun.send(ATTACKER, PBX_WAN, &request.bytes())?;
        Ok(filter.packets(WAN, "drop.blocked")? > 0)
    })?;
    println!("as a tun device: {}", row(&filter, WAN)?);
    drop(tun);

    delete(&lab, WAN)?;
    make(&lab, WAN, OUTSIDE)?;
    wait_until("an Ethernet device is filtered", SOON, || is_attached(&filter, WAN))?;
    stays_blocked(&lab, &filter, WAN)?;
    // Jumbo frames.
    delete(&lab, WAN)?;
    make(&lab, WAN, OUTSIDE)?;
    for (namespace, name) in [(&lab.pbx, WAN), (&lab.attacker, OUTSIDE)] {
        namespace.ip(["link", "set", name, "mtu", "9000"])?;
    }
    wait_until("it is filtered with another MTU", SOON, || is_attached(&filter, WAN))?;
    stays_blocked(&lab, &filter, WAN)?;
    println!("with an MTU of 9000: {}", row(&filter, WAN)?);
    Ok(())
}

/// A tun device's queue, through which packets arrive.
struct Tun(fs::File);

impl Tun {
    fn open(namespace: &Namespace, name: &str) -> Result<Self> {
        use std::os::fd::AsRawFd as _;
        namespace.enter(|| {
            let file = fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .context("no tun devices")?;
            // `struct ifreq`: the name, then the flags IFF_TUN and IFF_NO_PI
            // (include/uapi/linux/if_tun.h).
            let mut request = [0_u8; 40];
            request[..name.len()].copy_from_slice(name.as_bytes());
            request[16..18].copy_from_slice(&0x1001_u16.to_ne_bytes());
            const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
            // SAFETY: the kernel reads and writes the 40 bytes of the request, and keeps no pointer
            // to it.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
            anyhow::ensure!(result == 0, "cannot open {name}: {}", std::io::Error::last_os_error());
            Ok(Self(file))
        })
    }

    fn send(&self, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Result<()> {
        use std::io::Write as _;
        let builder =
            etherparse::PacketBuilder::ipv4(from.octets(), to.octets(), 64).udp(5060, 5060);
        let mut packet = Vec::new();
        builder.write(&mut packet, payload)?;
        (&self.0).write_all(&packet).context("cannot send")
    }
}

/// The kernel may lack VLAN devices; a name with a dot is their other peculiarity.
#[test]
fn a_vlan_interface_comes_and_goes() -> Result<()> {
    const VLAN: &str = "wan.100";
    let lab = Lab::new()?;
    let options = FilterOptions {
        interfaces: vec![WAN.to_owned(), VLAN.to_owned()],
        ..FilterOptions::default()
    };
    // One interface exists, so that the filter starts, and waits for the other one.
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    assert!(warnings(&filter)?.contains("there is no interface wan.100"), "{}", warnings(&filter)?);
    assert!(!is_enforcing(&filter)?);
    let vlan = ["link", "add", "link", WAN, "name", VLAN, "type", "vlan", "id", "100"];
    let is_real = lab.pbx.ip(vlan).is_ok();
    for round in 0..3 {
        if is_real {
            if round > 0 {
                lab.pbx.ip(vlan)?;
            }
            lab.pbx.ip(["link", "set", VLAN, "up"])?;
        } else {
            make(&lab, VLAN, "eth1")?;
        }
        wait_until("it is filtered", SOON, || has_program(&lab.pbx, VLAN))?;
        wait_until("all is well", SOON, || is_enforcing(&filter))?;
        delete(&lab, VLAN)?;
        wait_until("it is said to be gone", SOON, || Ok(said(&filter, VLAN, "gone") == round + 1))?;
    }
    println!(
        "{}: {}",
        if is_real { "a VLAN interface" } else { "no VLAN devices here, a veth of that name" },
        warnings(&filter)?
    );
    // An interface can be given up.
    filter.succeed(&["unload", "--iface", VLAN])?;
    assert!(is_enforcing(&filter)?);
    Ok(())
}

#[test]
fn a_name_that_was_never_right_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let options = FilterOptions { interfaces: vec!["wna".to_owned()], ..FilterOptions::default() };
    let mut filter = Filter::prepare(&lab.pbx, lab.directory(), options)?;
    let (status, errors) = filter.launch_in_vain()?;
    println!("{errors:?}");
    assert_eq!(status.code(), Some(1));
    assert!(
        errors.iter().any(|line| line.contains("there is no interface wna; there are: lo, ")),
        "{errors:?}"
    );
    assert!(!filter.pins().exists(), "the attempt left pins");
    Ok(())
}

#[test]
fn whatever_goes_on_without_a_daemon_is_put_right_by_the_next_one() -> Result<()> {
    let lab = Lab::new()?;
    let options = FilterOptions { interfaces: vec![WAN.to_owned()], ..FilterOptions::default() };
    let mut filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    // Recreated while no daemon runs.
    filter.kill9()?;
    delete(&lab, WAN)?;
    assert!(warnings(&filter)?.contains("wan is gone"), "{}", warnings(&filter)?);
    make(&lab, WAN, OUTSIDE)?;
    filter.launch()?;
    stays_blocked(&lab, &filter, WAN)?;
    // The only interface is missing when the daemon starts: it existed before, so it is waited for.
    filter.kill9()?;
    delete(&lab, WAN)?;
    filter.launch()?;
    assert!(!is_enforcing(&filter)?);
    make(&lab, WAN, OUTSIDE)?;
    wait_until("it is filtered", SOON, || is_enforcing(&filter))?;
    stays_blocked(&lab, &filter, WAN)?;
    assert_eq!(pins(&filter)?.len(), 3, "{:?}", pins(&filter)?);
    // Killed in the middle of it.
    delete(&lab, WAN)?;
    make(&lab, WAN, OUTSIDE)?;
    filter.kill9()?;
    filter.launch()?;
    stays_blocked(&lab, &filter, WAN)?;
    assert_eq!(pins(&filter)?.len(), 3, "{:?}", pins(&filter)?);
    Ok(())
}

/// A program detached by somebody else is attached again; `unload` is the way to detach it.
#[test]
fn a_program_that_is_taken_off_is_put_on_again() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let old = index(&lab.pbx, WAN)?;
    // Only the pin holds the link.
    fs::remove_file(filter.pins().join("links").join(&old))?;
    assert!(warnings(&filter)?.contains("the program was taken off"), "{}", warnings(&filter)?);
    // The kernel sends no notification; it is noticed with the next change, or within half a
    // minute.
    lab.pbx.ip(["link", "set", WAN, "mtu", "1400"])?;
    wait_until("it is filtered again", SOON, || {
        Ok(said(&filter, WAN, "attached") == 1 && is_enforcing(&filter)?)
    })?;
    assert_eq!(said(&filter, WAN, "detached"), 1);
    filter.succeed(&["unload", "--iface", WAN])?;
    // What happens to LAN afterwards shows that the change was processed.
    lab.pbx.ip(["link", "set", WAN, "mtu", "1300"])?;
    delete(&lab, LAN)?;
    wait_until("the change is seen", SOON, || Ok(said(&filter, LAN, "gone") == 1))?;
    assert!(!has_program(&lab.pbx, WAN)?, "it was unloaded");
    Ok(())
}

/// An instance's kernel objects besides its maps: programs that use its tables, and their links.
fn in_kernel(filter: &Filter<'_>) -> Result<(usize, usize)> {
    let guide = aya::maps::MapInfo::from_pin(filter.pins().join(format!(
        "v{}/{}",
        sip_xdp_common::abi::layout::LAYOUT_VERSION,
        names::TABLE_HEADER
    )))?;
    let uses = |program: &aya::programs::ProgramInfo| {
        program.map_ids().ok().flatten().is_some_and(|ids| ids.contains(&guide.id()))
    };
    let programs: Vec<u32> =
        loaded_programs().flatten().filter(uses).map(|program| program.id()).collect();
    let links =
        loaded_links().flatten().filter(|link| programs.contains(&link.program_id())).count();
    Ok((programs.len(), links))
}

/// Descriptors of a process: programs, maps and links among them.
fn descriptors(filter: &Filter<'_>) -> Result<usize> {
    let pid = filter.pid().context("no daemon")?;
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[test]
fn a_hundred_times_anew_leaves_nothing_behind() -> Result<()> {
    const TIMES: usize = 100;
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    let pid = filter.pid().context("no daemon")?;
    let state =
        || -> Result<_> { Ok((in_kernel(&filter)?, descriptors(&filter)?, pins(&filter)?.len())) };
    let mut took = Vec::new();
    let mut before = None;
    for round in 0..TIMES {
        delete(&lab, WAN)?;
        make(&lab, WAN, OUTSIDE)?;
        let start = Instant::now();
        wait_until("it is filtered again", SOON, || has_program(&lab.pbx, WAN))?;
        took.push(start.elapsed());
        if round == 9 {
            wait_until("all is well", SOON, || is_enforcing(&filter))?;
            before = Some((state()?, usage::memory(pid)?));
        }
    }
    wait_until("all is well", SOON, || is_enforcing(&filter))?;
    let (before, memory_before) = before.context("not enough rounds")?;
    let (after, memory_after) = (state()?, usage::memory(pid)?);
    took.sort();
    println!(
        "{TIMES} times anew: filtered after {:?} (median), {:?} (worst); programs, links, \
         descriptors, pins \
         {before:?} -> {after:?}; {memory_before:.1} -> {memory_after:.1} MiB",
        took[TIMES / 2],
        took[TIMES - 1]
    );
    assert_eq!(after, before);
    assert!(memory_after < memory_before + 4.0, "{memory_before} MiB became {memory_after}");
    stays_blocked(&lab, &filter, WAN)
}
