//! The compiled object, looked at without loading it: needs no root and no BPF.

#![expect(clippy::expect_used, reason = "tests panic rather than return errors")]

use std::collections::{BTreeSet, HashMap};

use aya_obj::Object;
use aya_obj::generated::bpf_map_type;
use sip_xdp::dataplane::loader::{Capacity, OBJECT, shapes};
use sip_xdp_common::abi::names;
use sip_xdp_common::limits::gcra::{Limits, Pace};
use sip_xdp_common::limits::storm::StormLimits;
use sip_xdp_common::lookup::networks::Hashing;

fn object() -> Object {
    Object::parse(OBJECT).expect("the embedded object can be parsed")
}

#[test]
fn it_has_the_programs_and_no_others() {
    let object = object();
    let programs: Vec<&str> = object.programs.keys().map(String::as_str).collect();
    assert_eq!(BTreeSet::from_iter(programs), BTreeSet::from([names::INGRESS, names::EGRESS]));
    for (name, program) in &object.programs {
        assert_eq!(program.license.to_str(), Ok("Dual MIT/GPL"), "{name}");
    }
}

#[test]
fn it_has_btf_and_no_dwarf() {
    // The names of sections are in the object as they are.
    let has = |name: &[u8]| OBJECT.windows(name.len()).any(|window| window == name);
    assert!(has(b".BTF\0") && has(b".BTF.ext\0"), "the kernel could not name lines and types");
    assert!(!has(b".debug_"), "four fifths of the object are DWARF, which nobody reads");
}

#[test]
fn the_ingress_program_takes_jumbo_frames() {
    let section = &object().programs[names::INGRESS].section;
    assert!(matches!(section, aya_obj::ProgramSection::Xdp { frags: true, .. }), "{section:?}");
}

#[test]
fn it_has_the_maps_in_their_shapes() {
    let object = object();
    for (name, kind, key, value, entries) in shapes(&Capacity::default()) {
        let map = object.maps.get(name).unwrap_or_else(|| panic!("no map {name}"));
        let expected = bpf_map_type::try_from(kind as u32).ok();
        assert_eq!(bpf_map_type::try_from(map.map_type()).ok(), expected, "{name}");
        assert_eq!((map.key_size() as usize, map.value_size() as usize), (key, value), "{name}");
        assert_eq!(map.max_entries(), entries, "{name}");
    }
    let others: Vec<&String> =
        object.maps.keys().filter(|name| !names::PINNED_MAPS.contains(&name.as_str())).collect();
    // No map of the trace, either.
    assert!(others.iter().all(|name| name.starts_with('.')), "{others:?}");
}

#[test]
fn it_has_the_globals_in_their_sizes() {
    // Patching fails for a symbol that is missing or of another size.
    let sizes: [(&str, usize); names::GLOBALS.len()] = [
        (names::PORTS, 8192),
        (names::LIMITS, size_of::<Limits>()),
        (names::GOOD_LIMIT, size_of::<Pace>()),
        (names::STORM, size_of::<StormLimits>()),
        (names::HASHING, size_of::<Hashing>()),
        (names::IPV6_MASK, 16),
        (names::LINK, 1),
        (names::SLOT, 4),
        (names::SCOPE_ALL, 1),
        (names::CLOSED, 1),
        (names::DRY_RUN, 1),
        (names::CLOCK_FROM_MAP, 1),
        (names::IPV6, 1),
        (names::TAGS, 1),
    ];
    for (name, size) in sizes {
        assert!(names::GLOBALS.contains(&name));
        let right = vec![0; size];
        object()
            .patch_map_data(HashMap::from([(name, (right.as_slice(), true))]))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let wrong = vec![0; size + 1];
        assert!(
            object().patch_map_data(HashMap::from([(name, (wrong.as_slice(), true))])).is_err(),
            "{name}"
        );
    }
    assert!(object().patch_map_data(HashMap::from([("NO_SUCH", (&[0_u8][..], true))])).is_err());
}

/// The deepest stack slot that the program's instructions name. The kernel allows 512 bytes.
#[test]
fn the_stack_has_room() {
    /// Register 10, the frame pointer (`BPF_REG_10` in `include/uapi/linux/bpf.h`).
    const FRAME: u8 = 10;
    let object = object();
    let mut deepest = 0_i64;
    for function in object.functions.values() {
        let mut frame_copies = [false; 11];
        frame_copies[usize::from(FRAME)] = true;
        for instruction in &function.instructions {
            let (to, from) = (instruction.dst_reg(), instruction.src_reg());
            match instruction.code & 0x07 {
                // Loads through the source, stores through the destination register.
                1 if from == FRAME => deepest = deepest.min(instruction.off.into()),
                2 | 3 if to == FRAME => deepest = deepest.min(instruction.off.into()),
                // 64-bit moves and additions: an address on the stack is made of the frame pointer
                // and a constant.
                7 if instruction.code == 0xbf => frame_copies[usize::from(to)] = from == FRAME,
                7 if instruction.code == 0x07 && frame_copies[usize::from(to)] => {
                    deepest = deepest.min(instruction.imm.into());
                    frame_copies[usize::from(to)] = false;
                }
                _ => {}
            }
        }
    }
    println!("stack: {} bytes", -deepest);
    assert!((64..=448).contains(&-deepest), "{} bytes", -deepest);
}
