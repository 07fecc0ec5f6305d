//! The decision order on the host and in the kernel is the same code for two machines: on real
//! messages and on mutated packets both must agree, packet by packet, limits included.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;

use sip_xdp::dataplane::loader::{Ports, Settings};
use sip_xdp_common::abi::layout::{List, NEVER};
use sip_xdp_common::ip_key::{IpKey, mask};
use sip_xdp_common::limits::gcra::{LimitKind, Limits, Meter, STREAM_UNIT, ticks};
use sip_xdp_common::lookup::search::Listing;
use sip_xdp_common::packet::headers::{Inspects, Link};
use sip_xdp_common::packet::reader::Bytes;
use sip_xdp_common::pipeline::ingress::{
    self, Charged, FlowState, Judgement, ProgramSettings, Segment, Sent, Tables,
};
use sip_xdp_common::verdict::{Message, Reason};

use crate::kernel::frames::{
    Ip, ethernet, extension, fragment, pppoe, request, sip, tcp, udp, vlan,
};
use crate::kernel::harness::{Kernel, SECOND, START, settings};

/// The host's tables: the same limits, one blocked and one trusted source.
struct HostTables {
    link: Link,
    limits: Limits,
    ports: Ports,
    scope_all: bool,
    now: Cell<u64>,
    meters: RefCell<HashMap<IpKey, Meter>>,
    /// Full times of the buckets of TCP, by [`LimitKind`].
    tcp: RefCell<HashMap<(IpKey, u8), u32>>,
}

const BLOCKED: &str = "203.0.113.66";
const TRUSTED: &str = "192.0.2.200";

impl HostTables {
    fn new(settings: &Settings) -> Self {
        Self {
            link: settings.link,
            limits: settings.limits,
            ports: settings.ports.clone(),
            scope_all: settings.scope_all,
            now: Cell::new(START),
            meters: RefCell::default(),
            tcp: RefCell::default(),
        }
    }
}

fn source(text: &str) -> IpKey {
    sip_xdp::net::network::source_of(text.parse().unwrap())
}

impl ProgramSettings for HostTables {
    fn link(&self) -> Link {
        self.link
    }

    fn inspects(&self) -> Inspects {
        Inspects::ALL
    }

    fn is_sip_port(&self, port: u16) -> bool {
        self.ports.contains(port)
    }
}

impl Tables for HostTables {
    type MeterSlot = ();

    fn scope_all(&self) -> bool {
        self.scope_all
    }

    fn is_closed(&self) -> bool {
        false
    }

    fn listing(&self, of: &IpKey, _: Listing) -> Listing {
        let trusted = u64::from(*of == source(TRUSTED)) * Listing::TRUSTED;
        Listing::new(trusted | (u64::from(*of == source(BLOCKED)) * Listing::BLOCKED))
    }

    fn flow(&self, _: &IpKey, _: u16) -> FlowState {
        FlowState::Stranger
    }

    fn has_pending_request(&self, _: &IpKey) -> bool {
        false
    }

    fn place(&self, _: &IpKey, _: &Listing) {}

    fn charge(&self, message: Message, sent: &Sent, (): ()) -> Charged {
        let key = if sent.source.is_v4() { sent.source } else { sent.source.masked(mask(64)) };
        let mut meters = self.meters.borrow_mut();
        let now = ticks(self.now.get());
        let meter = meters.entry(key).or_insert_with(|| Meter::new(1, now));
        match meter.charge(message, now, &self.limits) {
            None => Charged::Within,
            Some(_) => Charged::Limited,
        }
    }

    fn charge_segment(&self, segment: &Segment, sent: &Sent, (): ()) -> Charged {
        if !segment.is_request() && !sent.first_fragment && !segment.has_payload() {
            return Charged::Within;
        }
        let key = if sent.source.is_v4() { sent.source } else { sent.source.masked(mask(64)) };
        let now = ticks(self.now.get());
        let limits = &self.limits;
        let units = (segment.payload as u32).div_ceil(STREAM_UNIT);
        let (kind, limit, count) = if sent.first_fragment {
            (LimitKind::Fragments, limits.fragments, 1)
        } else if segment.is_request() {
            (LimitKind::Connections, limits.connections, 1)
        } else {
            (LimitKind::Stream, limits.stream, units)
        };
        let mut buckets = self.tcp.borrow_mut();
        let full_at = buckets.entry((key, kind as u8)).or_insert(now);
        match limit.take_many(count, *full_at, now) {
            Some(next) => {
                *full_at = next;
                let is_fast_open = segment.is_request() && segment.has_payload();
                if is_fast_open && !sent.first_fragment {
                    Charged::Limited
                } else {
                    Charged::Within
                }
            }
            None => Charged::Limited,
        }
    }
}

/// A small generator (splitmix64) for reproducible packets.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

struct Pair {
    kernel: Kernel,
    host: HostTables,
}

impl Pair {
    fn new(settings: &Settings) -> Self {
        let mut kernel = Kernel::new(settings);
        kernel.list(List::Block, BLOCKED, NEVER);
        kernel.list(List::Trust, TRUSTED, NEVER);
        Self { kernel, host: HostTables::new(settings) }
    }

    fn set_clock(&mut self, now: u64) {
        self.kernel.set_clock(now);
        self.host.now.set(now);
    }

    fn agree(&mut self, frame: &[u8], name: &str) -> Judgement {
        let host = ingress::judge(&Bytes(frame), &self.host);
        let kernel = self.kernel.run(frame);
        assert_eq!(
            (kernel.reason, kernel.message),
            (host.reason, host.message),
            "kernel and host differ on {name}: {frame:02x?}"
        );
        host
    }
}

/// The RFC 4475 torture messages: those of the corpus if available, else some of the RFC's own
/// start lines.
fn torture_messages() -> Vec<(String, Vec<u8>)> {
    let Some(corpus) = std::env::var_os("SIP_XDP_CORPUS") else {
        println!("SIP_XDP_CORPUS names no folder: using built-in start lines only");
        return Vec::new();
    };
    let folder = PathBuf::from(corpus).join("rfc4475");
    let mut messages: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("SIP_XDP_CORPUS: {}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "dat"))
        .map(|path| {
            (
                path.file_stem().unwrap().to_string_lossy().into_owned(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect();
    messages.sort();
    assert!(messages.len() >= 40, "{} has only {} messages", folder.display(), messages.len());
    messages
}

fn own_messages() -> Vec<(String, Vec<u8>)> {
    let lines: [&[u8]; 8] = [
        b"!interesting-Method0123456789_*+`.%indeed'~ sip:1_unusual.URI~(to-be!sure)@example.com \
         SIP/2.0\r\n\r\n",
        b"OPTIONS nobodyKnowsThisScheme:totallyopaquecontent SIP/2.0\r\n\r\n",
        b"INVITE <sip:user@example.com> SIP/2.0\r\n\r\n",
        b"INVITE sip:user@example.com; lr SIP/2.0\r\n\r\n",
        b"INVITE  sip:user@example.com  SIP/2.0\r\n\r\n",
        b"OPTIONS sip:user@example.com SIP/7.0\r\n\r\n",
        b"SIP/2.0 4294967301 better not break the receiver\r\n\r\n",
        b"SIP/2.0 100\r\n\r\n",
    ];
    lines.iter().enumerate().map(|(n, line)| (format!("own {n}"), line.to_vec())).collect()
}

#[test]
fn torture_messages_are_judged_alike() {
    let mut pair = Pair::new(&settings());
    let mut messages = torture_messages();
    messages.extend(own_messages());
    for (n, (name, message)) in messages.iter().enumerate() {
        pair.set_clock(START + n as u64 * SECOND);
        // Larger messages start as their first fragment would.
        let part = &message[..message.len().min(1_400)];
        let judgement = pair.agree(&sip("192.0.2.7", part), name);
        assert_ne!(judgement.reason, Reason::NotSip, "{name}");
        pair.agree(&sip("2001:db8::7", part), name);
        if name == "intmeth" {
            assert_eq!(judgement.message, Some(Message::Other), "{name}");
        }
    }
    println!("{} messages", messages.len());
}

/// Frames of every kind that the parser knows, to mutate.
fn seeds() -> Vec<Vec<u8>> {
    let v4 = Ip::udp("192.0.2.7");
    let v6 = Ip::udp("2001:db8:7::7");
    let register = udp(5060, &request("REGISTER"));
    let mut blanks = b"\r\n \t\0\0".repeat(60);
    blanks.extend(request("INVITE"));
    let mut stun = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    stun.resize(20, 7);
    vec![
        v4.frame(&register),
        sip(BLOCKED, &request("REGISTER")),
        sip(TRUSTED, &request("REGISTER")),
        v6.frame(&register),
        sip("192.0.2.7", &blanks),
        sip("192.0.2.9", &stun),
        sip("192.0.2.9", b"\r\n\r\n"),
        sip("192.0.2.9", b"SIP/2.0 200 OK\r\nVia: x\r\n\r\n"),
        Ip { options: vec![1; 24], ..v4.clone() }.frame(&register),
        Ip { fragment: 0x2000, ..v4.clone() }.frame(&register[..64]),
        Ip { fragment: 0x2005, ..v4.clone() }.frame(&register),
        Ip { protocol: 6, ..v4.clone() }.frame(&tcp(5060)),
        Ip { extensions: vec![(0, extension(0)), (60, extension(2))], ..v6.clone() }
            .frame(&register),
        Ip { extensions: vec![(60, extension(0)); 8], ..v6.clone() }.frame(&register),
        Ip { extensions: vec![(44, fragment(0, true)), (60, extension(0))], ..v6.clone() }
            .frame(&register),
        ethernet(0x88a8, vlan(3, 0x8100, vlan(7, 0x0800, v4.build(&register)))),
        ethernet(0x8100, vlan(7, 0x8864, pppoe(0, 0x57, v6.build(&register)))),
        ethernet(0x8864, pppoe(0, 0x21, v4.build(&udp(5061, &request("SUBSCRIBE"))))),
    ]
}

/// Changes a frame in one to four places: bytes, runs, cuts, growth. The interesting bytes are the
/// early ones.
fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let reach = if random.below(3) == 0 { frame.len() } else { frame.len().min(110) } as u64;
        let at = random.below(reach) as usize;
        match random.below(8) {
            0..=2 => frame[at] = random.below(256) as u8,
            3 => frame[at] ^= 1 << random.below(8),
            4 => frame.truncate((at + 1).max(14)),
            5 => {
                let other = random.below(reach) as usize;
                frame.swap(at, other);
            }
            6 => {
                let blank =
                    [b' ', b'\r', b'\n', 0, b'\t', b'S', 0x21, 0xff][random.below(8) as usize];
                let run = vec![blank; random.below(24) as usize];
                frame.splice(at..at, run);
            }
            _ => {
                let word = [0x0000_u16, 0xffff, 0x0008, 0x0800, 0x86dd, 5060, 0x2000, 0x0001]
                    [random.below(8) as usize];
                if at + 1 < frame.len() {
                    frame[at..at + 2].copy_from_slice(&word.to_be_bytes());
                }
            }
        }
    }
    frame.resize(frame.len().max(14), 0);
}

fn agree_on_mutations(settings: &Settings, seed: u64, count: u64, strip: usize) {
    let mut pair = Pair::new(settings);
    let seeds = seeds();
    let mut random = Random(seed);
    let mut reasons: HashMap<&str, u64> = HashMap::new();
    for n in 0..count {
        pair.set_clock(START + n * SECOND / 20);
        let mut frame = seeds[random.below(seeds.len() as u64) as usize].clone();
        mutate(&mut frame, &mut random);
        frame.drain(..strip.min(frame.len() - 14));
        frame.resize(frame.len().max(14), 0);
        let judgement = pair.agree(&frame, "a mutated packet");
        *reasons.entry(judgement.reason.name()).or_default() += 1;
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort();
    println!("{count} packets from seed {seed}: {reasons:?}");
    assert!(reasons.len() >= 5, "the mutations reach too little");
}

#[test]
fn mutated_packets_are_judged_alike() {
    agree_on_mutations(&settings(), 1, 100_000, 0);
}

#[test]
fn mutated_packets_are_judged_alike_with_block_scope_all() {
    agree_on_mutations(&Settings { scope_all: true, ..settings() }, 2, 20_000, 0);
}

#[test]
fn mutated_packets_are_judged_alike_without_an_ethernet_header() {
    agree_on_mutations(&Settings { link: Link::Ip, ..settings() }, 3, 20_000, 14);
}
