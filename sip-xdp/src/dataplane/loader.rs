//! The embedded kernel object: loading it with its globals, and opening its maps.
//!
//! More than 400 lines: settings, globals and maps have to agree, and are read side by side.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use aya::maps::{MapInfo, MapType};
use aya::programs::{ProgramInfo, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp_common::abi::layout::{
    CLOCK_WORDS, Counters, CpuState, DEFAULT_NETWORKS, DEFAULT_SOURCES, ENFORCE, ENFORCE_UNTIL,
    EVENTS_BYTES, FLOWS, InterfaceRecord, LADDERS, LedgerKey, LedgerRow, MAX_INTERFACES,
    OWN_NONCES, PENDING_REQUESTS, REFUSED_USERS, Responses, SPARE_ALL,
};
use sip_xdp_common::abi::names;
use sip_xdp_common::ip_key::{IpKey, mask};
use sip_xdp_common::limits::flow::{Flow, FlowKey, PendingRequest};
use sip_xdp_common::limits::gcra::{Limits, Pace};
use sip_xdp_common::limits::ladder::Ladder;
use sip_xdp_common::limits::meters::{MeterSet, Records, sets};
use sip_xdp_common::limits::storm::{MARKS, Mark, StormLimits, StormState};
use sip_xdp_common::lookup::host_rows;
use sip_xdp_common::lookup::networks::{GROUP, Hashing, Prints, SlotBucket, TableHeader, buckets};
use sip_xdp_common::lookup::summary;
use sip_xdp_common::packet::headers::{Inspects, Link};

use crate::dataplane::probe::{Platform, takes_frags};
use crate::dataplane::refusal::Refusal;
use crate::dataplane::tables::header;

/// The object as the build script compiled it, aligned.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sip-xdp-ebpf.o"));

/// Table capacities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Networks in the table of networks, and rows in the ledger.
    pub networks: u32,
    /// Unknown sources with a meter.
    pub sources: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { networks: DEFAULT_NETWORKS, sources: DEFAULT_SOURCES }
    }
}

/// Capacity of a [`trial`]: the verifier's work does not depend on it.
const TRIAL_CAPACITY: Capacity = Capacity { networks: 1_024, sources: 4_096 };

/// Settings of a program, which become its globals. The verifier prunes disabled code.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The SIP ports, as a bitmap.
    pub ports: Ports,
    /// The limits of unknown sources.
    pub limits: Limits,
    /// The limit of known-good addresses and peers.
    pub good: Pace,
    /// Storm thresholds.
    pub storm: StormLimits,
    /// Prefix length under which IPv6 sources are metered.
    pub ipv6_prefix: u8,
    /// Drop everything but ICMP from blocked sources (`block_scope = "all"`).
    pub scope_all: bool,
    /// Policy `closed`: only trusted, admitted, known-good and peer sources pass.
    pub closed: bool,
    /// Count without dropping.
    pub dry_run: bool,
    /// Drop until the deadline in the `CLOCK` map only (`run --confirm`); not in a dry run.
    pub trial: bool,
    /// Optional headers to inspect.
    pub inspects: Inspects,
    /// Link type of the interface.
    pub link: Link,
    /// The interface's slot in the counters.
    pub slot: u32,
    /// Read the time from the `CLOCK` map, for tests and replays.
    pub clock_from_map: bool,
    /// Table sizes.
    pub capacity: Capacity,
}

/// A set of ports, as the bitmap that the kernel reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(Box<[u64; 1024]>);

impl Ports {
    /// The ports in these inclusive ranges.
    pub fn new(ranges: impl IntoIterator<Item = (u16, u16)>) -> Self {
        let mut words = Box::new([0; 1024]);
        for (first, last) in ranges {
            for port in first..=last {
                words[usize::from(port >> 6)] |= 1 << (port & 63);
            }
        }
        Self(words)
    }

    /// Whether `port` is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port >> 6)] >> (port & 63) & 1 == 1
    }
}

/// The pinned maps and their required shape: type, key size, value size, number of entries.
pub fn shapes(
    capacity: &Capacity,
) -> [(&'static str, MapType, usize, usize, u32); names::PINNED_MAPS.len()] {
    let networks = capacity.networks;
    let interfaces = MAX_INTERFACES as u32;
    let (word, index) = (size_of::<u64>(), size_of::<u32>());
    [
        (names::TABLE_HEADER, MapType::Array, index, size_of::<TableHeader>(), 1),
        (
            names::SUMMARY_COARSE,
            MapType::Array,
            index,
            size_of::<summary::Element>(),
            summary::COARSE,
        ),
        (names::SUMMARY_FINE, MapType::Array, index, size_of::<summary::Element>(), summary::FINE),
        (
            names::FEED_HOSTS,
            MapType::Array,
            index,
            size_of::<host_rows::Row>(),
            host_rows::rows(networks),
        ),
        (
            names::FINGERPRINTS,
            MapType::Array,
            index,
            size_of::<Prints>(),
            buckets(networks) / GROUP as u32,
        ),
        (names::NETWORKS, MapType::Array, index, size_of::<SlotBucket>(), buckets(networks)),
        (names::LEDGER, MapType::Hash, size_of::<LedgerKey>(), size_of::<LedgerRow>(), networks),
        (names::SOURCES, MapType::Array, index, size_of::<MeterSet>(), sets(capacity.sources)),
        (names::RECORDS, MapType::Array, index, size_of::<Records>(), sets(capacity.sources)),
        (names::FLOWS, MapType::Hash, size_of::<FlowKey>(), size_of::<Flow>(), FLOWS as u32),
        (names::LADDERS, MapType::Hash, size_of::<FlowKey>(), size_of::<Ladder>(), LADDERS as u32),
        (names::OWN_NONCES, MapType::LruHash, word, word, OWN_NONCES as u32),
        (names::REFUSED_USERS, MapType::LruHash, word, word, REFUSED_USERS as u32),
        (
            names::PENDING_REQUESTS,
            MapType::LruHash,
            size_of::<IpKey>(),
            size_of::<PendingRequest>(),
            PENDING_REQUESTS as u32,
        ),
        (names::SKETCH, MapType::Array, index, MARKS * size_of::<Mark>(), 1),
        (names::STORM_STATE, MapType::Array, index, size_of::<StormState>(), 1),
        (names::COUNTERS, MapType::PerCpuArray, index, size_of::<Counters>(), interfaces),
        (names::RESPONSES, MapType::PerCpuArray, index, size_of::<Responses>(), 1),
        (names::CPU_STATE, MapType::PerCpuArray, index, size_of::<CpuState>(), 1),
        (names::EVENTS, MapType::RingBuf, 0, 0, EVENTS_BYTES as u32),
        (names::INTERFACES, MapType::Array, index, size_of::<InterfaceRecord>(), interfaces),
        (names::CLOCK, MapType::Array, index, word, CLOCK_WORDS),
        (names::DROP_SAMPLE_BUDGET, MapType::Array, index, word, 1),
    ]
}

/// Why the maps pinned in `directory` cannot be adopted, if so. Checked here because aya re-uses a
/// pinned map by name, whatever its shape.
pub fn misfit(directory: &Path, capacity: &Capacity) -> Option<String> {
    shapes(capacity).into_iter().find_map(|(name, kind, key, value, entries)| {
        let info = match MapInfo::from_pin(directory.join(name)) {
            Ok(info) => info,
            Err(error) => return Some(format!("{name} cannot be opened ({error})")),
        };
        let found = (
            info.map_type().ok(),
            info.key_size() as usize,
            info.value_size() as usize,
            info.max_entries(),
        );
        (found != (Some(kind), key, value, entries))
            .then(|| format!("{name} has another size or layout"))
    })
}

/// Loads the programs, with the maps of [`make_maps`].
///
/// # Errors
///
/// If the maps cannot be created, or with a [`Refusal`] if the kernel refuses a program.
pub fn load(settings: &Settings, maps: Option<&Path>) -> Result<Ebpf> {
    load_programs(make_maps(settings, maps)?)
}

/// The same of an object that was compiled in another way, with maps of its own. Tests need it.
#[doc(hidden)]
pub fn load_other(object: &[u8], settings: &Settings) -> Result<Ebpf> {
    load_programs(make_maps_of(object, settings, None)?)
}

fn load_programs(mut object: Ebpf) -> Result<Ebpf> {
    let missing = || Platform::ask().first_missing();
    ingress(&mut object)?.load().map_err(|error| Refusal::new(names::INGRESS, &error, missing))?;
    egress(&mut object)?.load().map_err(|error| Refusal::new(names::EGRESS, &error, missing))?;
    Ok(object)
}

/// Verifier figures of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Figures {
    /// Instructions processed, of at most a million; `None` where the kernel does not report it
    /// (before 5.16).
    pub instructions: Option<u32>,
    /// Load time in milliseconds.
    pub load_ms: u64,
}

/// The result of a trial load of both programs, with private tables that are freed afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Trial {
    /// The ingress program.
    pub ingress: Figures,
    /// The egress program.
    pub egress: Figures,
}

/// Loads both programs with these settings, without attaching them.
///
/// # Errors
///
/// As [`load`].
pub fn trial(settings: &Settings) -> Result<Trial> {
    let settings = Settings { capacity: TRIAL_CAPACITY, ..settings.clone() };
    let start = Instant::now();
    let mut object = make_maps(&settings, None)?;
    let made = start.elapsed();
    let missing = || Platform::ask().first_missing();
    ingress(&mut object)?.load().map_err(|error| Refusal::new(names::INGRESS, &error, missing))?;
    let first = start.elapsed();
    egress(&mut object)?.load().map_err(|error| Refusal::new(names::EGRESS, &error, missing))?;
    let second = start.elapsed();
    let figures = |info: &ProgramInfo, took: Duration| Figures {
        instructions: info.verified_instruction_count(),
        load_ms: took.as_millis() as u64,
    };
    Ok(Trial {
        ingress: figures(&ingress(&mut object)?.info()?, first - made),
        egress: figures(&egress(&mut object)?.info()?, second - first),
    })
}

/// The values of the program's globals, by name.
pub fn globals(
    settings: &Settings,
    hashing: &Hashing,
) -> [(&'static str, Vec<u8>); names::GLOBALS.len()] {
    let (high, low) = mask(settings.ipv6_prefix);
    let flag = |is: bool| vec![u8::from(is)];
    let dry_run = match (settings.dry_run, settings.trial) {
        (true, _) => SPARE_ALL,
        (false, true) => ENFORCE_UNTIL,
        (false, false) => ENFORCE,
    };
    [
        (names::PORTS, bytemuck::cast_slice(settings.ports.0.as_slice()).to_vec()),
        (names::LIMITS, bytemuck::bytes_of(&settings.limits).to_vec()),
        (names::GOOD_LIMIT, bytemuck::bytes_of(&settings.good).to_vec()),
        (names::STORM, bytemuck::bytes_of(&settings.storm).to_vec()),
        (names::HASHING, bytemuck::bytes_of(hashing).to_vec()),
        (names::IPV6_MASK, bytemuck::bytes_of(&[high, low]).to_vec()),
        (names::SLOT, bytemuck::bytes_of(&settings.slot).to_vec()),
        (names::LINK, vec![settings.link as u8]),
        (names::SCOPE_ALL, flag(settings.scope_all)),
        (names::DRY_RUN, vec![dry_run]),
        (names::CLOCK_FROM_MAP, flag(settings.clock_from_map)),
        (names::IPV6, flag(settings.inspects.ipv6)),
        (names::TAGS, flag(settings.inspects.tags)),
        (names::CLOSED, flag(settings.closed)),
    ]
}

/// Creates the maps, without loading a program. With `maps`, the shared maps are those pinned in
/// that directory, and are pinned there if missing; without, they are private to the returned
/// object.
pub fn make_maps(settings: &Settings, maps: Option<&Path>) -> Result<Ebpf> {
    make_maps_of(OBJECT, settings, maps)
}

#[doc(hidden)]
pub fn make_maps_of(object: &[u8], settings: &Settings, maps: Option<&Path>) -> Result<Ebpf> {
    let Capacity { networks, sources } = settings.capacity;
    let hashing = match maps {
        Some(directory) => header::pinned_hashing(&directory.join(names::TABLE_HEADER))?,
        None => None,
    };
    let hashing = hashing.unwrap_or_else(|| header::new_hashing(networks, sources));
    let globals = globals(settings, &hashing);
    let pins: Vec<(&str, PathBuf)> = maps
        .map(|dir| names::PINNED_MAPS.map(|name| (name, dir.join(name))).to_vec())
        .unwrap_or_default();

    let mut loader = EbpfLoader::new();
    for (name, value) in &globals {
        loader.override_global(name, value.as_slice(), true);
    }
    for (name, _, _, _, entries) in shapes(&settings.capacity) {
        loader.map_max_entries(name, entries);
    }
    for (name, path) in &pins {
        loader.map_pin_path(name, path);
    }
    let plain = if takes_frags() { None } else { Some(without_frags(object)) };
    let object =
        plain.as_ref().map_or(object, |words| &bytemuck::cast_slice(words)[..object.len()]);
    let mut object = loader.load(object).map_err(|error| explain(error.into()))?;
    let map =
        object.map_mut(names::TABLE_HEADER).context("the kernel object has no table header")?;
    header::write_new(&mut map.try_into()?, hashing)?;
    Ok(object)
}

/// The ingress program of a loaded object.
pub fn ingress(object: &mut Ebpf) -> Result<&mut Xdp> {
    let program =
        object.program_mut(names::INGRESS).context("the kernel object has no ingress program")?;
    Ok(program.try_into()?)
}

/// The egress program of a loaded object.
pub fn egress(object: &mut Ebpf) -> Result<&mut SchedClassifier> {
    let program =
        object.program_mut(names::EGRESS).context("the kernel object has no egress program")?;
    Ok(program.try_into()?)
}

/// The object with the ingress program in a section that does not request multi-buffer packets
/// (`BPF_F_XDP_HAS_FRAGS`), for kernels without that flag: aya derives the flag from the section
/// name. As words, so that it stays aligned.
fn without_frags(object: &[u8]) -> Vec<u64> {
    const FRAGS: &[u8] = b"xdp.frags\0";
    let mut words = vec![0_u64; object.len().div_ceil(size_of::<u64>())];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    bytes[..object.len()].copy_from_slice(object);
    let places: Vec<usize> =
        (0..object.len()).filter(|at| object[*at..].starts_with(FRAGS)).collect();
    for at in places {
        bytes[at + "xdp".len()] = 0;
    }
    words
}

/// Formats an error of aya on one line: its own messages leave the cause to the error chain.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        log::debug!("{text}");
        let line = text.lines().next().unwrap_or_default().to_owned();
        if !parts.iter().any(|part| part.contains(&line)) {
            parts.push(line);
        }
    }
    let mut text = parts.join(": ");
    if text.contains("Operation not permitted") {
        text.push_str(
            "; BPF is refused here (a container, lockdown, or missing capabilities): run it on the \
             host as root",
        );
    }
    anyhow!("the kernel did not take the maps: {text}")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;
    use crate::dataplane::probe::{Caller, HELPERS};

    #[test]
    fn ports_are_exact() {
        let ports = Ports::new([(5060, 5061), (65535, 65535), (0, 0), (5080, 5090)]);
        let listed: Vec<u16> = (0..=u16::MAX).filter(|port| ports.contains(*port)).collect();
        let mut expected = vec![0, 5060, 5061];
        expected.extend(5080..=5090);
        expected.push(65535);
        assert_eq!(listed, expected);
    }

    #[test]
    fn the_object_can_be_made_to_ask_for_no_frags() {
        let frags = |object: &[u8]| {
            let object = aya_obj::Object::parse(object).unwrap();
            let program = &object.programs[names::INGRESS];
            let aya_obj::ProgramSection::Xdp { frags, .. } = program.section else {
                panic!("{:?}", program.section);
            };
            (frags, object.functions.len(), object.programs.len())
        };
        let words = without_frags(OBJECT);
        let (asks, functions, programs) = frags(OBJECT);
        assert!(asks);
        assert_eq!(
            frags(&bytemuck::cast_slice(&words)[..OBJECT.len()]),
            (false, functions, programs)
        );
    }

    #[test]
    fn the_list_of_helpers_is_what_the_programs_call() {
        let mut object = aya_obj::Object::parse(OBJECT).unwrap();
        let text = HashSet::from_iter(object.functions.keys().map(|(section, _)| *section));
        object.relocate_calls(&text).unwrap();
        let calls = |program: &str| -> BTreeSet<u32> {
            let key = object.programs[program].function_key();
            let instructions = object.functions[&key].instructions.iter();
            // A call (`BPF_JMP | BPF_CALL`) of a helper has no source register.
            instructions
                .filter(|one| one.code == 0x85 && one.src_reg() == 0)
                .map(|one| one.imm as u32)
                .collect()
        };
        let listed = |ingress: bool| -> BTreeSet<u32> {
            let without = if ingress { Caller::Egress } else { Caller::Ingress };
            HELPERS
                .iter()
                .filter(|one| one.called_by != without)
                .map(|one| one.number as u32)
                .collect()
        };
        assert_eq!(calls(names::INGRESS), listed(true));
        assert_eq!(calls(names::EGRESS), listed(false));
    }

    /// Before Linux 6.4 the verifier takes all numbers to be precise where a program calls a
    /// function of its own, such as `memset`, and merges no states any more. Callbacks of helpers
    /// are no calls.
    #[test]
    fn the_programs_call_no_functions_of_their_own() {
        const PSEUDO_CALL: u8 = 1;
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        for name in [names::INGRESS, names::EGRESS] {
            let key = object.programs[name].function_key();
            let instructions = &object.functions[&key].instructions;
            let is_call = |at: &usize| {
                instructions[*at].code == 0x85 && instructions[*at].src_reg() == PSEUDO_CALL
            };
            let calls: Vec<usize> = (0..instructions.len()).filter(is_call).collect();
            assert_eq!(calls, [0; 0], "{name}: instructions that call a function, such as memset");
        }
    }

    #[test]
    fn every_pinned_map_has_a_shape() {
        let mut shaped = shapes(&Capacity::default()).map(|shape| shape.0);
        let mut pinned = names::PINNED_MAPS;
        shaped.sort_unstable();
        pinned.sort_unstable();
        assert_eq!(shaped, pinned);
    }
}
