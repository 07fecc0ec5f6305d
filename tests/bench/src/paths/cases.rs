//! The measured paths, with their lists and packets.
//!
//! More than 400 lines: a table of cases, with the packets and lists of each.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::LpmTrie;
use aya::maps::lpm_trie::Key;
use aya::programs::{ProgramFd, Xdp};
use sip_xdp::dataplane::loader::{Capacity, Ports, Settings};
use sip_xdp::dataplane::tables::ledger::Entry;
use sip_xdp::net::network::Network;
use sip_xdp::sys::clock;
use sip_xdp_common::abi::layout::{List, NEVER};
use sip_xdp_common::limits::gcra::{Limit, Limits, Pace};
use sip_xdp_common::limits::storm::StormLimits;
use sip_xdp_common::packet::headers::{Inspects, Link};
use sip_xdp_tests::private::Private;
use sip_xdp_tests::programs;

use crate::paths::turns::Turns;
use crate::report::Budget;
use crate::table::thousands;

/// `XDP_DROP` and `XDP_PASS` (`include/uapi/linux/bpf.h`).
const DROP: u32 = 1;
const PASS: u32 = 2;

const MILLION: u32 = 1_000_000;
/// Sources that are taken in turn when they are to be cold: more than any cache holds entries for.
const COLD: u32 = 1 << 19;
/// Sources that are hot.
const HOT: u32 = 1_024;

const EMPTY_PASS: &str = "empty program, PASS";
const EMPTY_DROP: &str = "empty program, DROP";
const EMPTY_HOT: &str = "empty program, 1,024 sources in turn";
const EMPTY_COLD: &str = "empty program, 524,288 sources in turn";
const EMPTY_COLD6: &str = "empty program, 524,288 IPv6 sources in turn";
const HEADERS: &str = "headers only: TCP, one source in turn";
const FLOOR_FRONT: &str = "floor: one line of 256 KiB and one of 4 MiB";
const FLOOR_METERS: &str = "floor: the same and one line of 2 MiB, 60,000 sources";
const TRIE4: &str = "listed, random of 1 M, LPM trie alone";
const TRIE6: &str = "IPv6 listed, random of 1 M, LPM trie alone";

/// One path.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) populated: String,
    pub(super) frame: Vec<u8>,
    /// What its program must return.
    pub(super) action: u32,
    /// The row that is subtracted.
    pub(super) empty: Option<&'static str>,
    pub(super) baseline: Option<&'static str>,
    pub(super) budget: Option<Budget>,
    /// Measured without anything before it.
    pub(super) is_rested: bool,
    run: Run,
}

/// How it is run. What a program needs lives as long as it does.
enum Run {
    Ours(Rc<Private>),
    Laboratory(&'static str, Rc<Ebpf>),
    InTurn(Box<Turns>, #[expect(dead_code, reason = "keeps the measured program loaded")] Kept),
}

#[expect(dead_code, reason = "keeps the measured program loaded")]
enum Kept {
    Ours(Rc<Private>),
    Laboratory(Rc<Ebpf>),
}

impl Case {
    pub(super) fn program(&self) -> Result<&Xdp> {
        match &self.run {
            Run::Ours(filter) => filter.ingress(),
            Run::Laboratory(name, object) => programs::program(object, name),
            Run::InTurn(turns, _) => turns.program(),
        }
    }

    fn new(name: &'static str, action: u32, frame: Vec<u8>, run: Run) -> Self {
        let (empty, baseline, budget) = (None, None, None);
        Self {
            name,
            populated: String::new(),
            frame,
            action,
            empty,
            baseline,
            budget,
            is_rested: false,
            run,
        }
    }

    fn ours(name: &'static str, action: u32, frame: Vec<u8>, filter: &Filter) -> Self {
        let empty = if action == DROP { EMPTY_DROP } else { EMPTY_PASS };
        let run = Run::Ours(Rc::clone(&filter.0));
        Self {
            populated: filter.1.clone(),
            empty: Some(empty),
            ..Self::new(name, action, frame, run)
        }
    }

    fn in_turn(
        name: &'static str,
        (action, empty): (u32, &'static str),
        frame: Vec<u8>,
        filter: &Filter,
        sources: &[Network],
    ) -> Result<Self> {
        let turns = Turns::new(sources, filter.0.ingress()?.fd()?)?;
        let run = Run::InTurn(Box::new(turns), Kept::Ours(Rc::clone(&filter.0)));
        Ok(Self {
            populated: filter.1.clone(),
            empty: Some(empty),
            ..Self::new(name, action, frame, run)
        })
    }

    fn empty(name: &'static str, frame: Vec<u8>, program: &'static str) -> Result<Self> {
        let action = if program == programs::DROP { DROP } else { PASS };
        Ok(Self::new(
            name,
            action,
            frame,
            Run::Laboratory(program, Rc::new(programs::load(program)?)),
        ))
    }

    fn laboratory(
        name: &'static str,
        (action, empty): (u32, Option<&'static str>),
        frame: Vec<u8>,
        (program, object): (&'static str, Rc<Ebpf>),
        sources: &[Network],
    ) -> Result<Self> {
        let fd: &ProgramFd = programs::program(&object, program)?.fd()?;
        let run = Run::InTurn(Box::new(Turns::new(sources, fd)?), Kept::Laboratory(object));
        Ok(Self { empty, ..Self::new(name, action, frame, run) })
    }

    fn at_first(mut self) -> Self {
        self.is_rested = true;
        self
    }

    fn within(mut self, nanoseconds: f64) -> Self {
        self.budget = Some(Budget::AtMost(nanoseconds));
        self
    }

    fn against(mut self, baseline: &'static str, ratio: f64) -> Self {
        (self.baseline, self.budget) = (Some(baseline), Some(Budget::RatioAtMost(ratio)));
        self
    }
}

/// A filter and what is in its tables.
struct Filter(Rc<Private>, String);

/// What a filter's tables hold.
#[derive(Clone, Copy)]
enum Lists {
    Nothing,
    Feed(u32),
    Feed6(u32),
    Full,
}

impl Filter {
    fn new(lists: Lists, settings: &Settings) -> Result<Self> {
        let mut filter = Private::load(settings)?;
        let populated = match lists {
            Lists::Nothing => "nothing".to_owned(),
            Lists::Feed(count) => {
                filter.lists.replace_feed("bench", (0..count).map(host).collect())?;
                format!("{} hosts of a feed", thousands(count))
            }
            Lists::Feed6(count) => {
                filter.lists.replace_feed("bench", (0..count).map(network6).collect())?;
                format!("{} of a feed: /32, /48, /64, /128", thousands(count))
            }
            Lists::Full => {
                filter.lists.replace_feed("bench", (0..MILLION).map(host).collect())?;
                let hour = clock::after(Some(Duration::from_secs(3600)));
                for n in 0..1_000 {
                    filter
                        .lists
                        .put(List::Block, Entry::manual(host(MILLION + n), hour, "bench"))?;
                }
                for n in 0..100 {
                    let network = Network::around(host(2 * MILLION + n).first(), 96 + 24);
                    filter.lists.put(List::Trust, Entry::manual(network, NEVER, "bench"))?;
                }
                "full".to_owned()
            }
        };
        Ok(Self(Rc::new(filter), populated))
    }
}

/// All paths, in the order of the report.
pub(super) fn cases() -> Result<Vec<Case>> {
    let usual = settings();
    let storm = Settings {
        storm: StormLimits::new(100, 1_000_000_000, Limit::new(1, 1_000_000_000)),
        ..settings()
    };
    let strict = Settings {
        limits: Limits { register: Pace::new(1, 3_600_000_000_000), ..settings().limits },
        ..settings()
    };
    let bare = Settings { inspects: Inspects { ipv6: false, tags: false }, ..settings() };
    let nothing = Filter::new(Lists::Nothing, &usual)?;
    let thousand = Filter::new(Lists::Feed(1_000), &usual)?;
    let some = Filter::new(Lists::Feed(32_000), &usual)?;
    let million = Filter::new(Lists::Feed(MILLION), &usual)?;
    let thousand6 = Filter::new(Lists::Feed6(1_000), &usual)?;
    let million6 = Filter::new(Lists::Feed6(MILLION), &usual)?;
    let full = Filter::new(Lists::Full, &usual)?;
    let full_storm = Filter::new(Lists::Full, &storm)?;

    // Unlisted: numbers that no list uses. Listed: in random order.
    let unlisted: Vec<_> = (0..COLD).map(|n| host(4 * MILLION + n)).collect();
    let unlisted6: Vec<_> = (0..COLD).map(|n| host6(4 * MILLION + n)).collect();
    let listed: Vec<_> = (0..COLD).map(|n| host(scatter(n))).collect();
    let listed6: Vec<_> = (0..COLD).map(|n| inside6(scatter(n))).collect();
    let hot = &listed[..HOT as usize];
    let phones: Vec<_> = (0..1 << 16).map(|n| unlisted[n % 60_000]).collect();

    let floor =
        |touched, action| anyhow::Ok((programs::FLOOR, Rc::new(programs::floor(touched, action)?)));
    let trie4 = Rc::new(trie4(MILLION)?);
    let trie6 = Rc::new(trie6(MILLION)?);
    let register = || sip4(host(5 * MILLION), REGISTER);
    // A TCP acknowledgement to a SIP port: nothing is asked of it but the lists.
    let lists4 = || frame4(host(5 * MILLION), TCP, 5060, b"");
    let lists6 = || frame6(host6(5 * MILLION), TCP, 5060, b"");
    let blanks = [b"\r\n".repeat(200).as_slice(), REGISTER].concat();
    let trusted = Network::around(host(2 * MILLION + 7).first(), 128);

    Ok(vec![
        Case::empty(EMPTY_PASS, register(), programs::PASS)?,
        Case::empty(EMPTY_DROP, register(), programs::DROP)?,
        Case::laboratory(EMPTY_HOT, (PASS, None), register(), empty_pass()?, hot)?,
        Case::laboratory(EMPTY_COLD, (PASS, None), register(), empty_pass()?, &unlisted)?,
        Case::laboratory(EMPTY_COLD6, (PASS, None), lists6(), empty_pass()?, &unlisted6)?,
        Case::ours(
            "not SIP: UDP to another port",
            PASS,
            frame4(host(5 * MILLION), UDP, 53, b"x"),
            &full,
        )
        .within(10.0),
        Case::ours(
            "not SIP: TCP to another port",
            PASS,
            frame4(host(5 * MILLION), TCP, 443, b""),
            &full,
        )
        .within(10.0),
        Case::ours(
            "not SIP, without IPv6 and tags",
            PASS,
            frame4(host(5 * MILLION), UDP, 53, b"x"),
            &Filter::new(Lists::Full, &bare)?,
        )
        .within(10.0),
        Case::ours("not SIP: ARP", PASS, arp(), &full),
        Case::ours("trusted", PASS, sip4(trusted, REGISTER), &full),
        Case::in_turn(
            HEADERS,
            (PASS, EMPTY_COLD),
            lists4(),
            &nothing,
            &vec![unlisted[0]; COLD as usize],
        )?,
        Case::in_turn(
            "unlisted, random, no entries",
            (PASS, HEADERS),
            lists4(),
            &nothing,
            &unlisted,
        )?,
        Case::in_turn("unlisted, random, 1 k", (PASS, HEADERS), lists4(), &thousand, &unlisted)?
            .within(15.0),
        Case::in_turn("unlisted, random, 32 k", (PASS, HEADERS), lists4(), &some, &unlisted)?,
        Case::in_turn("unlisted, random, 1 M", (PASS, HEADERS), lists4(), &million, &unlisted)?
            .within(40.0),
        Case::laboratory(
            FLOOR_FRONT,
            (PASS, Some(EMPTY_COLD)),
            register(),
            floor(1 | 2, PASS)?,
            &unlisted,
        )?,
        Case::in_turn("unlisted, random, full", (PASS, HEADERS), lists4(), &full, &unlisted)?,
        Case::in_turn("listed, 1,024 hot of 1 M", (DROP, EMPTY_HOT), register(), &full, hot)?,
        Case::in_turn("listed, random of 1 M", (DROP, HEADERS), register(), &million, &listed)?
            .against(TRIE4, 0.2),
        Case::laboratory(
            TRIE4,
            (DROP, Some(EMPTY_COLD)),
            register(),
            (programs::TRIE4, trie4),
            &listed,
        )?,
        Case::in_turn(
            "IPv6 unlisted, random, 1 k",
            (PASS, EMPTY_COLD6),
            lists6(),
            &thousand6,
            &unlisted6,
        )?
        .within(150.0),
        Case::in_turn(
            "IPv6 unlisted, random, 1 M",
            (PASS, EMPTY_COLD6),
            lists6(),
            &million6,
            &unlisted6,
        )?
        .within(150.0),
        Case::in_turn(
            "IPv6 listed, random of 1 M",
            (DROP, EMPTY_COLD6),
            lists6(),
            &million6,
            &listed6,
        )?
        .against(TRIE6, 0.33),
        Case::laboratory(
            TRIE6,
            (DROP, Some(EMPTY_COLD6)),
            lists6(),
            (programs::TRIE6, trie6),
            &listed6,
        )?,
        Case::ours("REGISTER within limits, one source", PASS, register(), &full).within(100.0),
        Case::in_turn(
            "REGISTER at first, 60,000 sources",
            (PASS, EMPTY_COLD),
            register(),
            &full,
            &phones,
        )?
        .at_first(),
        Case::in_turn(
            "REGISTER within limits, 60,000 sources",
            (PASS, EMPTY_COLD),
            register(),
            &full,
            &phones,
        )?
        .within(150.0),
        Case::laboratory(
            FLOOR_METERS,
            (PASS, Some(EMPTY_COLD)),
            register(),
            floor(1 | 2 | 4, PASS)?,
            &phones,
        )?,
        Case::ours("REGISTER over a limit", DROP, register(), &Filter::new(Lists::Full, &strict)?),
        Case::ours("keepalive within limits", PASS, sip4(host(5 * MILLION), b"\r\n\r\n"), &full),
        Case::ours("TCP: SYN within limits, one source", PASS, syn4(host(5 * MILLION)), &full)
            .within(60.0),
        Case::ours("TCP: acknowledgement without payload", PASS, lists4(), &full),
        Case::ours(
            "TCP: REGISTER within limits, one source",
            PASS,
            frame4(host(5 * MILLION), TCP, 5060, REGISTER),
            &full,
        ),
        Case::ours(
            "REGISTER behind 400 bytes of CRLF",
            PASS,
            sip4(host(5 * MILLION), &blanks),
            &full,
        )
        .within(250.0),
        Case::in_turn(
            "storm: every packet a new source",
            (PASS, EMPTY_COLD),
            register(),
            &full_storm,
            &unlisted,
        )?,
    ])
}

fn empty_pass() -> Result<(&'static str, Rc<Ebpf>)> {
    Ok((programs::PASS, Rc::new(programs::load(programs::PASS)?)))
}

/// As by default, but for limits that no run reaches and storms that none is.
fn settings() -> Settings {
    let (endless, unlimited) = (Limit { interval: 0, burst: 0 }, Pace::NONE);
    Settings {
        ports: Ports::new([(5060, 5061)]),
        limits: Limits {
            register: unlimited,
            requests: unlimited,
            other: unlimited,
            fragments: unlimited,
            connections: unlimited,
            stream: unlimited,
        },
        good: unlimited,
        storm: StormLimits { new_sources: u64::MAX, budget: endless },
        ipv6_prefix: 64,
        scope_all: false,
        closed: false,
        dry_run: false,
        trial: false,
        inspects: Inspects::ALL,
        link: Link::Ethernet,
        slot: 0,
        clock_from_map: false,
        capacity: Capacity { networks: 1 << 20, sources: 65_536 },
    }
}

/// A number below 2^20 for each number, in random order; only those below a million are on a list.
fn scatter(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1) % MILLION
}

/// An IPv4 host for each number, each another one, all over the address space.
fn host(number: u32) -> Network {
    Network::host(address4(number).into())
}

fn address4(number: u32) -> Ipv4Addr {
    let mixed = number.wrapping_mul(0x9e37_79b1);
    let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x85eb_ca6b);
    Ipv4Addr::from(mixed ^ mixed >> 13)
}

/// An IPv6 address for each number, all over 2000::/3.
fn address6(number: u32) -> Ipv6Addr {
    let high = u64::from(number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 3 | 1 << 61;
    let low = high.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    Ipv6Addr::from(u128::from(high) << 64 | u128::from(low))
}

fn host6(number: u32) -> Network {
    Network::host(address6(number).into())
}

/// An IPv6 network for each number, of one length in four.
fn network6(number: u32) -> Network {
    Network::around(host6(number).first(), [32, 48, 64, 128][number as usize % 4])
}

/// A host in that network.
fn inside6(number: u32) -> Network {
    let bits = network6(number).bits();
    let keep = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    let other = u128::from(address6(number.wrapping_mul(0x85eb_ca6b)));
    let address = u128::from(address6(number)) & keep | other & !keep;
    Network::host(Ipv6Addr::from(address).into())
}

fn trie4(count: u32) -> Result<Ebpf> {
    let mut object = programs::load(programs::TRIE4)?;
    let map = object.map_mut(programs::TRIE4_MAP).context("there is no trie")?;
    let mut trie: LpmTrie<_, [u8; 4], u32> = map.try_into()?;
    for n in 0..count {
        trie.insert(&Key::new(32, address4(n).octets()), 1, 0)?;
    }
    Ok(object)
}

fn trie6(count: u32) -> Result<Ebpf> {
    let mut object = programs::load(programs::TRIE6)?;
    let map = object.map_mut(programs::TRIE6_MAP).context("there is no trie")?;
    let mut trie: LpmTrie<_, [u8; 16], u32> = map.try_into()?;
    for network in (0..count).map(network6) {
        trie.insert(&Key::new(network.bits().into(), network.first().octets()), 1, 0)?;
    }
    Ok(object)
}

const UDP: u8 = 17;
const TCP: u8 = 6;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A REGISTER as phones send it.
const REGISTER: &[u8] = b"REGISTER sip:pbx.example SIP/2.0\r\n\
Via: SIP/2.0/UDP 192.0.2.66:5060;branch=z9hG4bK776asdhds;rport\r\n\
Max-Forwards: 70\r\n\
From: <sip:101@pbx.example>;tag=1928301774\r\n\
To: <sip:101@pbx.example>\r\n\
Call-ID: a84b4c76e66710\r\n\
CSeq: 1 REGISTER\r\n\
Contact: <sip:101@192.0.2.66:5060>\r\n\
Content-Length: 0\r\n\r\n";

fn sip4(source: Network, payload: &[u8]) -> Vec<u8> {
    frame4(source, UDP, 5060, payload)
}

/// The transport header: ports, and for UDP a length; for TCP an acknowledgement (RFC 9293, section
/// 3.1), with or without payload.
fn transport(protocol: u8, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 40_000_u16.to_be_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    if protocol == UDP {
        bytes.extend((8 + payload.len() as u16).to_be_bytes());
        bytes.extend([0, 0]);
    } else {
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, ACK, 0x20, 0, 0, 0, 0, 0]);
    }
    bytes.extend(payload);
    bytes
}

fn frame4(source: Network, protocol: u8, port: u16, payload: &[u8]) -> Vec<u8> {
    let transport = transport(protocol, port, payload);
    let mut bytes = [2; 12].to_vec();
    bytes.extend([0x08, 0x00, 0x45, 0]);
    bytes.extend((20 + transport.len() as u16).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    bytes.extend(&source.first().octets()[12..]);
    bytes.extend([198, 51, 100, 1]);
    bytes.extend(transport);
    bytes
}

/// A SYN to the SIP port.
fn syn4(source: Network) -> Vec<u8> {
    let mut frame = frame4(source, TCP, 5060, b"");
    frame[14 + 20 + 13] = SYN;
    frame
}

fn frame6(source: Network, protocol: u8, port: u16, payload: &[u8]) -> Vec<u8> {
    let transport = transport(protocol, port, payload);
    let mut bytes = [2; 12].to_vec();
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    bytes.extend((transport.len() as u16).to_be_bytes());
    bytes.extend([protocol, 64]);
    bytes.extend(source.first().octets());
    bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend(transport);
    bytes
}

fn arp() -> Vec<u8> {
    let mut bytes = [0xff; 12].to_vec();
    bytes.extend([0x08, 0x06]);
    bytes.extend([0; 46]);
    bytes
}
