//! Millions of packets per second from one CPU: a kernel program that rewrites the source of a
//! prepared frame, run by BPF_PROG_TEST_RUN with live frames, so that each packet leaves through an
//! interface.
//!
//! The program reads the clock itself, because setting a run up takes time. It would take tens of
//! milliseconds if the kernel had to update its XDP dispatcher each time; so the program is
//! attached to an unused interface for as long as the generator lives.
//!
//! Over a veth pair the CPU that makes a packet also receives it: a batch of 64 is made and handed
//! over, then the receiving side polls it, in the same system call. A measured rate includes
//! making, handing over and judging a packet; only rates of the same generator are comparable. The
//! receiving veth needs an XDP program or GRO (see [`crate::wire`]).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use nix::net::if_::if_nametoindex;

use crate::cpu::{Precedence, sending_cpu, stay_on};
use crate::namespace::Namespace;
use crate::programs;

/// Batch size; the receiving side polls as many at once.
const BATCH: u32 = 64;
/// Packets of the first run, which measures the speed.
const FIRST_RUN: u32 = 4_096;
/// Maximum number of sources in turn.
const MAX_SOURCES: usize = 65_536;

/// The sources of packets.
#[derive(Debug, Clone)]
pub enum Sources {
    /// These, in turn. Their number is a power of two, at most 65,536.
    InTurn(Vec<Ipv4Addr>),
    /// A new one for every packet, from 64.0.0.0 to 191.255.255.255.
    EveryPacketNew,
}

/// A repeated frame: Ethernet, IPv4, UDP without a checksum, payload.
#[derive(Debug, Clone)]
pub struct Frame {
    bytes: Vec<u8>,
}

/// The result of sending.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sent {
    /// Packets made. The receiving side may have had no room for some.
    pub packets: u64,
    /// Time taken, including the receiving side's work on the same CPU, without setup. Zero when
    /// there were too few packets.
    pub elapsed: Duration,
}

/// The result of sending at a constant rate.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Steady {
    /// Packets made.
    pub packets: u64,
    /// Those sent with priority over other work, and their time.
    pub timed: Sent,
    /// Whether the CPU could not keep up.
    pub overloaded: bool,
}

/// A generator in a namespace.
pub struct Generator<'a> {
    namespace: &'a Namespace,
    object: Ebpf,
    progress: PerCpuArray<MapData, Progress>,
    frame: Frame,
    /// The previous result, to estimate the next run.
    before: Sent,
}

/// The program's counts, in the layout of `tests/ebpf/src/generate.rs`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    sent: u64,
    first: u64,
    last: u64,
    timed: u64,
}

// SAFETY: four numbers without padding, for which all bytes are valid.
unsafe impl aya::Pod for Progress {}

impl Frame {
    /// A datagram to `to`, with the link-layer address of the interface there. The generator fills
    /// in the source.
    pub fn new(link: [u8; 6], to: SocketAddrV4, payload: &[u8]) -> Result<Self> {
        let udp_length =
            u16::try_from(8 + payload.len()).context("the payload is too long for a datagram")?;
        let ip_length =
            udp_length.checked_add(20).context("the payload is too long for a packet")?;
        let mut bytes = link.to_vec();
        bytes.extend([2, 0, 0, 0, 0, 2, 0x08, 0x00]);
        // IPv4: no options, don't fragment, time to live 64, UDP, checksum and source to be filled
        // in.
        bytes.extend([0x45, 0]);
        bytes.extend(ip_length.to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0]);
        bytes.extend(to.ip().octets());
        for field in [5060, to.port(), udp_length, 0] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend(payload);
        Ok(Self { bytes })
    }

    /// How long it is.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// The sum of the IP header's words in memory order, without the source.
    fn header_sum(&self) -> u32 {
        let words = self.bytes[14..34].chunks_exact(2);
        words.map(|word| u32::from(u16::from_ne_bytes([word[0], word[1]]))).sum()
    }
}

impl Sent {
    /// Millions of packets per second, counting only `packets` of them. 0 if there were too few.
    pub fn million_per_second(&self, packets: u64) -> f64 {
        if self.elapsed.is_zero() {
            return 0.0;
        }
        packets as f64 / self.elapsed.as_secs_f64() / 1e6
    }
}

impl<'a> Generator<'a> {
    /// Loads a generator for an interface of a namespace.
    pub fn load(
        namespace: &'a Namespace,
        interface: &str,
        frame: Frame,
        sources: &Sources,
    ) -> Result<Self> {
        let index: u32 = namespace.enter(|| {
            if_nametoindex(interface).with_context(|| format!("there is no interface {interface}"))
        })?;
        let addresses = match sources {
            Sources::InTurn(addresses)
                if addresses.len() > MAX_SOURCES || !addresses.len().is_power_of_two() =>
            {
                bail!("the number of sources is to be a power of two, at most {MAX_SOURCES}");
            }
            Sources::InTurn(addresses) => addresses.as_slice(),
            Sources::EveryPacketNew => &[],
        };
        let every_packet_new = u8::from(matches!(sources, Sources::EveryPacketNew));
        let mask = u32::try_from(addresses.len().saturating_sub(1))?;
        let sum = frame.header_sum();
        let mut loader = EbpfLoader::new();
        loader
            .override_global("INTERFACE", &index, true)
            .override_global("EVERY_PACKET_NEW", &every_packet_new, true)
            .override_global("TURN_MASK", &mask, true)
            .override_global("HEADER_SUM", &sum, true);
        let mut object = programs::load_with(loader, programs::GENERATE)?;
        let mut turn: Array<_, u32> =
            object.take_map("SOURCES").context("the generator has no sources")?.try_into()?;
        for (index, address) in addresses.iter().enumerate() {
            turn.set(u32::try_from(index)?, u32::from_ne_bytes(address.octets()), 0)
                .context("cannot set a source")?;
        }
        attach_to_spare(namespace, &mut object)?;
        let progress =
            object.take_map("PROGRESS").context("the generator has no counter")?.try_into()?;
        Ok(Self { namespace, object, progress, frame, before: Sent::default() })
    }

    /// Sends for about this long, from one CPU.
    pub fn send_for(&mut self, duration: Duration) -> Result<Sent> {
        let mut all = Sent::default();
        // Estimates may be off a little.
        while all.elapsed < duration.mul_f64(0.9) {
            let packets = next_run(&self.before, duration.saturating_sub(all.elapsed));
            let sent = self.run(packets)?;
            self.before = sent;
            all = Sent { packets: all.packets + sent.packets, elapsed: all.elapsed + sent.elapsed };
        }
        Ok(all)
    }

    /// Sends from one CPU until stopped.
    pub fn send_until(&mut self, stop: &AtomicBool) -> Result<Sent> {
        /// Maximum delay of a stop.
        const NOTICE: Duration = Duration::from_millis(50);
        let mut all = Sent::default();
        while !stop.load(Ordering::Relaxed) {
            let sent = self.send_for(NOTICE)?;
            all = Sent { packets: all.packets + sent.packets, elapsed: all.elapsed + sent.elapsed };
        }
        Ok(all)
    }

    /// Sends this number of packets, from one CPU.
    pub fn send(&mut self, packets: u32) -> Result<Sent> {
        self.run(packets)
    }

    /// Sends at a constant rate from one CPU until stopped. Each millisecond it sends what is due,
    /// with priority, and sleeps for the rest.
    ///
    /// When there is no rest, it continues as an ordinary thread, and does not catch up. The kernel
    /// treats packets of a network card alike.
    pub fn send_steadily(&mut self, cpu: usize, rate: u32, stop: &AtomicBool) -> Result<Steady> {
        const PERIOD: Duration = Duration::from_millis(1);
        /// Number of overlong periods in a row that count as overload.
        const OVERLOAD: u32 = 5;
        let due = rate / 1_000;
        let program = programs::program(&self.object, programs::GENERATE)?;
        let frame = &self.frame;
        self.namespace.enter(move || {
            stay_on(cpu)?;
            Precedence::OverEverything.take();
            let mut steady = Steady::default();
            let mut late = 0;
            let mut next = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                run_once(program, frame, due)?;
                let took = start.elapsed();
                steady.packets += u64::from(due);
                if !steady.overloaded {
                    steady.timed.packets += u64::from(due);
                    steady.timed.elapsed += took;
                    late = if took > PERIOD { late + 1 } else { 0 };
                    if late == OVERLOAD {
                        steady.overloaded = true;
                        Precedence::Ordinary.take();
                    }
                }
                next = (next + PERIOD).max(Instant::now());
                sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(steady)
        })
    }

    /// One system call.
    fn run(&mut self, repeat: u32) -> Result<Sent> {
        let program = programs::program(&self.object, programs::GENERATE)?;
        let (frame, progress) = (&self.frame, &mut self.progress);
        self.namespace.enter(move || {
            stay_on(sending_cpu()?)?;
            Precedence::OverOrdinaryWork.take();
            let before = restart(progress)?;
            run_once(program, frame, repeat)?;
            finish(progress, before)
        })
    }
}

/// One system call.
fn run_once(program: &Xdp, frame: &Frame, repeat: u32) -> Result<()> {
    let options = TestRunOptions {
        data_in: Some(&frame.bytes),
        repeat,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::default()
    };
    program.test_run(options).context("cannot send live frames (Linux 5.18 can)").map(drop)
}

/// Attaches the program to a private interface that is never up.
fn attach_to_spare(namespace: &Namespace, object: &mut Ebpf) -> Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let (spare, peer) = (format!("spare{number}"), format!("peer{number}"));
    namespace.ip(["link", "add", &spare, "type", "veth", "peer", "name", &peer])?;
    namespace.enter(|| {
        let program: &mut Xdp =
            object.program_mut(programs::GENERATE).context("it was just loaded")?.try_into()?;
        program
            .attach(&spare, XdpMode::Driver)
            .with_context(|| format!("cannot attach the generator to {spare}"))?;
        Ok(())
    })
}

/// Resets the times; returns the number of packets sent before.
fn restart(progress: &mut PerCpuArray<MapData, Progress>) -> Result<u64> {
    let values = progress.get(&0, 0).context("cannot read the generator's progress")?;
    let fresh: Vec<_> =
        values.iter().map(|value| Progress { sent: value.sent, ..Progress::default() }).collect();
    progress
        .set(0, PerCpuValues::try_from(fresh)?, 0)
        .context("cannot reset the generator's progress")?;
    Ok(values.iter().map(|value| value.sent).sum())
}

/// The packets sent since, of which the first and last few were not timed.
fn finish(progress: &PerCpuArray<MapData, Progress>, before: u64) -> Result<Sent> {
    let values = progress.get(&0, 0).context("cannot read the generator's progress")?;
    let packets = values.iter().map(|value| value.sent).sum::<u64>() - before;
    let timed: u64 = values.iter().map(|value| value.timed).sum();
    let span: u64 = values.iter().map(|value| value.last - value.first).sum();
    let elapsed = if timed == 0 { 0.0 } else { span as f64 * packets as f64 / timed as f64 };
    Ok(Sent { packets, elapsed: Duration::from_nanos(elapsed as u64) })
}

/// A distinct address for each number, in the range of [`Sources::EveryPacketNew`] without
/// loopback.
pub fn spread(number: u32) -> Ipv4Addr {
    const MASK: u32 = (1 << 31) - 1;
    let address = (64 << 24) + (number.wrapping_mul(0x9e37_79b1) & MASK);
    let address = Ipv4Addr::from(address);
    // 62.0.0.0 is outside the range, so that these addresses are distinct as well.
    if address.is_loopback() { Ipv4Addr::from(u32::from(address) - (65 << 24)) } else { address }
}

/// Estimated number of packets for this time.
fn next_run(before: &Sent, duration: Duration) -> u32 {
    if before.elapsed.is_zero() {
        return FIRST_RUN;
    }
    let wanted = before.packets as f64 * duration.as_secs_f64() / before.elapsed.as_secs_f64();
    (wanted as u32).max(FIRST_RUN / 4)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn addresses_differ_and_are_no_loopback() {
        let addresses: HashSet<_> = (0..200_000).map(spread).collect();
        assert_eq!(addresses.len(), 200_000);
        assert!(
            addresses
                .iter()
                .all(|address| !address.is_loopback() && (62..=191).contains(&address.octets()[0]))
        );
    }

    #[test]
    fn a_frame_has_honest_lengths() {
        let frame =
            Frame::new([1; 6], SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 5060), b"hello")
                .unwrap();
        assert_eq!(frame.length(), 47);
        assert_eq!(frame.bytes[16..18], 33_u16.to_be_bytes());
        assert_eq!(frame.bytes[38..40], 13_u16.to_be_bytes());
        // The words of this header, added by hand: 4500 0021 0000 4000 4011 0000 0000 0000 c633
        // 6401.
        let by_hand: u32 = [0x4500, 0x0021, 0x4000, 0x4011, 0xc633, 0x6401].into_iter().sum();
        let fold = |sum: u32| (sum & 0xffff) + (sum >> 16);
        assert_eq!(fold(fold(frame.header_sum())) as u16, (fold(fold(by_hand)) as u16).to_be());
    }

    #[test]
    fn a_run_is_as_long_as_it_should_be() {
        let before = Sent { packets: 4_096, elapsed: Duration::from_millis(1) };
        assert_eq!(next_run(&Sent::default(), Duration::from_secs(1)), FIRST_RUN);
        assert_eq!(next_run(&before, Duration::from_millis(500)), 2_048_000);
        assert_eq!(next_run(&before, Duration::ZERO), FIRST_RUN / 4);
    }
}
