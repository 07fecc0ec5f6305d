//! The laboratory's kernel programs, embedded: baselines of filters, and the generator.

use anyhow::{Context, Result};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};

use crate::namespace::Namespace;

/// The object as the build script compiled it, aligned.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sip-xdp-tests-ebpf.o"));

/// The program that drops everything.
pub const DROP: &str = "drop_everything";
/// The program that passes everything.
pub const PASS: &str = "pass_everything";
/// The program that rotates sources for another one.
pub const TURN: &str = "take_turns";
/// The program that loads as much memory as a lookup must; see [`floor`].
pub const FLOOR: &str = "touch_tables";
/// IPv4 networks in an LPM trie of the kernel, the map [`TRIE4_MAP`].
pub const TRIE4: &str = "ask_trie4";
/// The trie of [`TRIE4`].
pub const TRIE4_MAP: &str = "TRIE4";
/// IPv6 networks in an LPM trie of the kernel, the map [`TRIE6_MAP`].
pub const TRIE6: &str = "ask_trie6";
/// The trie of [`TRIE6`].
pub const TRIE6_MAP: &str = "TRIE6";
/// The program that sends; see [`crate::generator`].
pub(crate) const GENERATE: &str = "generate_packet";

/// An object with one of its programs loaded. To run that under BPF_PROG_TEST_RUN, see [`program`].
pub fn load(name: &str) -> Result<Ebpf> {
    load_with(EbpfLoader::new(), name)
}

/// With a configured loader.
pub fn load_with(mut loader: EbpfLoader<'_>, name: &str) -> Result<Ebpf> {
    let mut object =
        loader.load(OBJECT).context("the laboratory's kernel object cannot be loaded")?;
    let program: &mut Xdp = object
        .program_mut(name)
        .with_context(|| format!("the laboratory's kernel object has no program {name}"))?
        .try_into()
        .with_context(|| format!("{name} is no XDP program"))?;
    program.load().with_context(|| format!("the kernel refuses {name}"))?;
    Ok(object)
}

/// [`FLOOR`] with the tables to load and the action to return (`tests/ebpf/src/floor.rs`).
pub fn floor(touched: u32, action: u32) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.override_global("TOUCHED", &touched, true).override_global("ACTION", &action, true);
    load_with(loader, FLOOR)
}

/// A program of a loaded object.
pub fn program<'o>(object: &'o Ebpf, name: &str) -> Result<&'o Xdp> {
    object
        .program(name)
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()
        .with_context(|| format!("{name} is no XDP program"))
}

/// A program attached to an interface in native mode; dropping it detaches.
#[derive(Debug)]
pub struct Attached {
    _object: Ebpf,
}

impl Attached {
    /// Attaches [`DROP`] or [`PASS`].
    pub fn new(namespace: &Namespace, interface: &str, name: &str) -> Result<Self> {
        Self::attach(namespace, interface, name, load(name)?)
    }

    /// Attaches a program of an object.
    pub fn attach(
        namespace: &Namespace,
        interface: &str,
        name: &str,
        mut object: Ebpf,
    ) -> Result<Self> {
        namespace.enter(|| {
            let program: &mut Xdp =
                object.program_mut(name).context("it was just loaded")?.try_into()?;
            program
                .attach(interface, XdpMode::Driver)
                .with_context(|| format!("cannot attach {name} to {interface}"))?;
            Ok(())
        })?;
        Ok(Self { _object: object })
    }
}
