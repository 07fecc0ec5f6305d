//! An interpreter that runs the compiled ingress program over the tables of a loaded filter and
//! counts its instructions, which unlike nanoseconds can be compared between days and machines.
//!
//! It knows the instructions of the program's paths
//! (`Documentation/bpf/standardization/instruction-set.rst`) and fails on others. Memory-mapped
//! maps are the kernel's own; the others start empty: counters, hashes, the ring of events.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aya::maps::Map;
use aya_obj::Object;
use aya_obj::generated::bpf_insn;
use sip_xdp::dataplane::loader::{OBJECT, Settings, globals, shapes};
use sip_xdp::dataplane::mmap::{Mapped, View};
use sip_xdp::dataplane::tables::header;
use sip_xdp_common::abi::names;

use crate::kernel::harness::{Kernel, START, settings};

/// The constant timer tick.
const TICK: u64 = 7;

/// Counts of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Instructions; a 64-bit constant, which takes two slots, counts once.
    pub(crate) instructions: u64,
    /// Those that read memory, and those that write.
    pub(crate) loads: u64,
    pub(crate) stores: u64,
    /// Conditional jumps.
    pub(crate) branches: u64,
    /// Look-ups in maps, and calls of other helpers.
    pub(crate) lookups: u64,
    pub(crate) helpers: u64,
}

/// Virtual addresses: the region above, the offset in it below.
const REGION: u32 = 40;
const CONTEXT: u64 = 1;
const PACKET: u64 = 2;
const STACK: u64 = 3;
/// The first region of maps; their handles have a bit more, to distinguish them from memory.
const MAPS: u64 = 16;
const HANDLE: u64 = 1 << 60;

/// 512 bytes for each of the 8 frames that there may be (`MAX_BPF_STACK`, `MAX_CALL_FRAMES`).
const FRAME: u64 = 512;
const FRAMES: usize = 8;

/// More would be an endless loop.
const INSTRUCTION_LIMIT: u64 = 1_000_000;

enum Region {
    Own(Vec<u8>),
    Shared(View),
}

struct Table {
    value: u64,
    entries: u64,
    /// Other maps are empty.
    is_array: bool,
}

pub(crate) struct Machine {
    code: Vec<bpf_insn>,
    regions: BTreeMap<u64, Region>,
    tables: Vec<Table>,
    tally: Tally,
}

impl Machine {
    /// The program as loaded by `kernel` with the tests' default settings, over its tables.
    pub(crate) fn new(kernel: &Kernel) -> Self {
        let mut object = Object::parse(OBJECT).unwrap();
        // A live program with the kernel's clock.
        let hashing = header::read(kernel.map_again(names::TABLE_HEADER).unwrap()).unwrap().hashing;
        let globals = globals(&Settings { clock_from_map: false, ..settings() }, &hashing);
        object
            .patch_map_data(
                globals.iter().map(|(name, value)| (*name, (value.as_slice(), true))).collect(),
            )
            .unwrap();
        let maps: Vec<_> =
            object.maps.iter().map(|(name, map)| (name.clone(), map.clone())).collect();
        let (mut regions, mut tables) = (BTreeMap::new(), Vec::new());
        let shapes = shapes(&settings().capacity);
        for (n, (name, map)) in maps.iter().enumerate() {
            let shape = shapes.iter().find(|shape| shape.0 == name);
            let (value, entries) =
                shape.map_or((map.value_size(), map.max_entries()), |s| (s.3 as u32, s.4));
            let (value, entries) = (u64::from(value), u64::from(entries));
            let opened = kernel.map_again(name).ok();
            let shared = opened
                .filter(|map| matches!(map, Map::Array(_)))
                .and_then(|map| Mapped::new(map).ok()?.all().ok());
            // Arrays and arrays per CPU (`enum bpf_map_type`).
            let is_array = matches!(map.map_type(), 2 | 6);
            let region = match shared {
                Some(view) => Region::Shared(view),
                None if !map.data().is_empty() => Region::Own(map.data().to_vec()),
                None if is_array => {
                    Region::Own(vec![0; (value.next_multiple_of(8) * entries) as usize])
                }
                None => Region::Own(Vec::new()),
            };
            regions.insert(MAPS + n as u64, region);
            tables.push(Table { value: value.next_multiple_of(8), entries, is_array });
        }
        let numbered =
            maps.iter().enumerate().map(|(n, (name, map))| (name.as_str(), n as i32, map));
        let text = HashSet::from_iter(object.functions.keys().map(|(section, _)| *section));
        object.relocate_maps(numbered, &text).unwrap();
        object.relocate_calls(&text).unwrap();
        let code =
            object.functions[&object.programs[names::INGRESS].function_key()].instructions.clone();
        let clock = maps.iter().position(|(name, _)| name == names::CLOCK).unwrap();
        regions.insert(MAPS + clock as u64, Region::Own([START, 0].map(u64::to_le_bytes).concat()));
        regions.insert(CONTEXT, Region::Own(vec![0; 24]));
        regions.insert(STACK, Region::Own(vec![0; FRAME as usize * FRAMES]));
        Self { code, regions, tables, tally: Tally::default() }
    }

    /// Runs one frame; returns the action, and what it took.
    pub(crate) fn run(&mut self, frame: &[u8]) -> (u64, Tally) {
        self.regions.insert(PACKET, Region::Own(frame.to_vec()));
        self.tally = Tally::default();
        let action = self.call(0, [CONTEXT << REGION, 0, 0, 0, 0], 0);
        (action, self.tally)
    }

    /// Calls the function that starts at an instruction.
    fn call(&mut self, start: usize, arguments: [u64; 5], depth: usize) -> u64 {
        assert!(depth < FRAMES, "too many frames");
        let mut r = [0_u64; 11];
        r[1..6].copy_from_slice(&arguments);
        r[10] = (STACK << REGION) + FRAME * (depth as u64 + 1);
        let mut at = start;
        loop {
            self.tally.instructions += 1;
            assert!(self.tally.instructions < INSTRUCTION_LIMIT, "this does not end");
            let insn = self.code[at];
            at += 1;
            let (dst, src) = (insn.dst_reg() as usize, insn.src_reg() as usize);
            let immediate = i64::from(insn.imm) as u64;
            let address = |base: u64| base.wrapping_add(i64::from(insn.off) as u64);
            let (class, is_register) = (insn.code & 7, insn.code & 8 != 0);
            let size = [4, 2, 1, 8][usize::from(insn.code >> 3 & 3)];
            match class {
                // LD: only constants of 64 bits, which may be those of maps and functions.
                0 => {
                    let high = self.code[at].imm;
                    r[dst] = match src {
                        0 => u64::from(insn.imm as u32) | u64::from(high as u32) << 32,
                        1 => HANDLE + insn.imm as u64,
                        2 => ((MAPS + insn.imm as u64) << REGION) + high as u64,
                        4 => (at as i64 + i64::from(insn.imm)) as u64,
                        _ => panic!("a constant of kind {src}"),
                    };
                    at += 1;
                }
                // LDX. The context's pointers are narrow in the program, and wide in the kernel.
                1 => {
                    self.tally.loads += 1;
                    let from = address(r[src]);
                    let value = if from >> REGION == CONTEXT {
                        self.context(from)
                    } else {
                        self.read(from, size)
                    };
                    let signed = insn.code >> 5 == 4;
                    r[dst] = if signed { sign_extend(value, size) } else { value };
                }
                // ST, and STX, plain or atomic.
                2 => self.write(address(r[dst]), size, immediate),
                3 if insn.code >> 5 == 6 => {
                    self.atomic(address(r[dst]), size, insn.imm, &mut r, src)
                }
                3 => self.write(address(r[dst]), size, r[src]),
                4 | 7 => {
                    let operand = if is_register { r[src] } else { immediate };
                    r[dst] = calculate(&insn, r[dst], operand, class == 7);
                }
                5 | 6 => match insn.code >> 4 {
                    0 => {
                        at = (at as i64
                            + if class == 6 { i64::from(insn.imm) } else { i64::from(insn.off) })
                            as usize
                    }
                    8 if src == 1 => {
                        let callee = (at as i64 + i64::from(insn.imm)) as usize;
                        r[0] = self.call(callee, [r[1], r[2], r[3], r[4], r[5]], depth + 1);
                    }
                    8 => r[0] = self.help(insn.imm, [r[1], r[2], r[3], r[4], r[5]], depth),
                    9 => return r[0],
                    _ => {
                        self.tally.branches += 1;
                        let operand = if is_register { r[src] } else { immediate };
                        if jumps(insn.code >> 4, r[dst], operand, class == 6) {
                            at = (at as i64 + i64::from(insn.off)) as usize;
                        }
                    }
                },
                _ => unreachable!("classes have three bits"),
            }
        }
    }

    /// A helper, by its number (`include/uapi/linux/bpf.h`).
    fn help(&mut self, number: i32, [a, b, c, ..]: [u64; 5], depth: usize) -> u64 {
        if number == 1 {
            self.tally.lookups += 1;
            let map = (a & !HANDLE) as usize;
            let key = self.read(b, 4);
            let Table { value, entries, is_array } = self.tables[map];
            return if is_array && key < entries {
                ((MAPS + map as u64) << REGION) + key * value
            } else {
                0
            };
        }
        // bpf_jiffies64, of which the kernel makes a load.
        if number == 118 {
            return TICK;
        }
        self.tally.helpers += 1;
        match number {
            // Writing to hashes, which stay empty; reserving in the ring, which is full.
            2 | 3 | 131 => 0,
            // bpf_ktime_get_ns and _coarse_ns, bpf_get_smp_processor_id, bpf_xdp_get_buff_len
            5 | 160 => START,
            8 => 0,
            188 => self.packet_length(),
            // bpf_loop
            181 => {
                let mut turn = 0;
                while turn < a && self.call(b as usize, [turn, c, 0, 0, 0], depth + 1) == 0 {
                    turn += 1;
                }
                turn
            }
            _ => panic!("helper {number} is not known here"),
        }
    }

    fn packet_length(&self) -> u64 {
        match &self.regions[&PACKET] {
            Region::Own(bytes) => bytes.len() as u64,
            Region::Shared(_) => unreachable!("packets are no maps"),
        }
    }

    /// A field of `struct xdp_md`.
    fn context(&self, address: u64) -> u64 {
        match address & 0xff {
            0 => PACKET << REGION,
            4 => (PACKET << REGION) + self.packet_length(),
            field => panic!("the program reads the context at {field}"),
        }
    }

    fn place(&self, address: u64, size: u64) -> (&Region, usize) {
        let region = self
            .regions
            .get(&(address >> REGION))
            .unwrap_or_else(|| panic!("no memory at {address:#x}"));
        let offset = address & ((1 << REGION) - 1);
        let length = match region {
            Region::Own(bytes) => bytes.len() as u64,
            Region::Shared(view) => 8 * view.words().len() as u64,
        };
        assert!(offset + size <= length, "{size} bytes at {address:#x} are behind the end");
        (region, offset as usize)
    }

    fn read(&self, address: u64, size: u64) -> u64 {
        let (region, at) = self.place(address, size);
        match region {
            Region::Own(bytes) => {
                (0..size as usize).fold(0, |value, n| value | u64::from(bytes[at + n]) << (8 * n))
            }
            Region::Shared(view) => {
                let (word, shift) = part(view, at, size);
                word.load(Relaxed) >> shift & ones(size)
            }
        }
    }

    fn write(&mut self, address: u64, size: u64, value: u64) {
        self.tally.stores += 1;
        let (region, at) = self.place(address, size);
        if let Region::Shared(view) = region {
            let (word, shift) = part(view, at, size);
            let kept = word.load(Relaxed) & !(ones(size) << shift);
            word.store(kept | (value & ones(size)) << shift, Relaxed);
        } else if let Some(Region::Own(bytes)) = self.regions.get_mut(&(address >> REGION)) {
            bytes[at..at + size as usize].copy_from_slice(&value.to_le_bytes()[..size as usize]);
        }
    }

    /// An atomic operation, as one load and one store.
    fn atomic(&mut self, address: u64, size: u64, operation: i32, r: &mut [u64; 11], src: usize) {
        self.tally.loads += 1;
        let old = self.read(address, size);
        let new = match operation & !1 {
            0x00 => old.wrapping_add(r[src]),
            0x40 => old | r[src],
            0x50 => old & r[src],
            0xa0 => old ^ r[src],
            0xe0 => r[src],
            0xf0 if old == r[0] & ones(size) => r[src],
            0xf0 => old,
            _ => panic!("atomic operation {operation:#x}"),
        };
        self.write(address, size, new);
        if operation & !1 == 0xf0 {
            r[0] = old;
        } else if operation & 1 != 0 {
            r[src] = old;
        }
    }
}

/// The word that holds some bytes, and how far up they are.
fn part(view: &View, at: usize, size: u64) -> (&AtomicU64, usize) {
    assert!(at % 8 + size as usize <= 8, "{size} bytes at {at} are of two words");
    (&view.words()[at / 8], at % 8 * 8)
}

const fn ones(size: u64) -> u64 {
    u64::MAX >> (64 - 8 * size)
}

const fn sign_extend(value: u64, size: u64) -> u64 {
    let unused = 64 - 8 * size;
    ((value << unused) as i64 >> unused) as u64
}

fn calculate(insn: &bpf_insn, a: u64, b: u64, is_wide: bool) -> u64 {
    let (a32, b32) = (a as u32, b as u32);
    let narrow = |wide: u64, narrow: u32| if is_wide { wide } else { u64::from(narrow) };
    match insn.code >> 4 {
        0x0 => narrow(a.wrapping_add(b), a32.wrapping_add(b32)),
        0x1 => narrow(a.wrapping_sub(b), a32.wrapping_sub(b32)),
        0x2 => narrow(a.wrapping_mul(b), a32.wrapping_mul(b32)),
        0x3 if insn.off == 0 => {
            narrow(a.checked_div(b).unwrap_or(0), a32.checked_div(b32).unwrap_or(0))
        }
        0x4 => narrow(a | b, a32 | b32),
        0x5 => narrow(a & b, a32 & b32),
        0x6 => narrow(a << (b & 63), a32 << (b32 & 31)),
        0x7 => narrow(a >> (b & 63), a32 >> (b32 & 31)),
        0x8 => narrow(a.wrapping_neg(), a32.wrapping_neg()),
        0x9 if insn.off == 0 => {
            narrow(a.checked_rem(b).unwrap_or(a), a32.checked_rem(b32).unwrap_or(a32))
        }
        0xa => narrow(a ^ b, a32 ^ b32),
        0xb if insn.off == 0 => narrow(b, b32),
        0xb => {
            narrow(sign_extend(b, insn.off as u64 / 8), sign_extend(b, insn.off as u64 / 8) as u32)
        }
        0xc => narrow(((a as i64) >> (b & 63)) as u64, ((a32 as i32) >> (b32 & 31)) as u32),
        // Bytes the other way round: always, or (of the 32-bit class) if the machine is not
        // little-endian and asked to be.
        0xd if is_wide || insn.code & 8 != 0 => a.swap_bytes() >> (64 - insn.imm),
        0xd => a & ones(insn.imm as u64 / 8),
        operation => panic!("operation {operation:#x} with offset {}", insn.off),
    }
}

fn jumps(condition: u8, a: u64, b: u64, is_narrow: bool) -> bool {
    let (a, b) = if is_narrow { (a & ones(4), b & ones(4)) } else { (a, b) };
    let size = if is_narrow { 4 } else { 8 };
    let (signed_a, signed_b) = (sign_extend(a, size) as i64, sign_extend(b, size) as i64);
    match condition {
        0x1 => a == b,
        0x2 => a > b,
        0x3 => a >= b,
        0x4 => a & b != 0,
        0x5 => a != b,
        0x6 => signed_a > signed_b,
        0x7 => signed_a >= signed_b,
        0xa => a < b,
        0xb => a <= b,
        0xc => signed_a < signed_b,
        0xd => signed_a <= signed_b,
        _ => panic!("condition {condition:#x}"),
    }
}
