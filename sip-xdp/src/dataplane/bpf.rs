//! Commands of bpf(2) that aya does not offer: program and map creation for
//! [`probe`](super::probe), the map of maps of [`rcu`](super::rcu), and link detachment for
//! [`pins`](super::pins).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Commands (`enum bpf_cmd` in `include/uapi/linux/bpf.h`).
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const LINK_CREATE: libc::c_long = 28;
const LINK_DETACH: libc::c_long = 34;

/// Program types (`enum bpf_prog_type`).
pub(crate) const PROG_TYPE_SCHED_CLS: u32 = 3;
pub(crate) const PROG_TYPE_XDP: u32 = 6;

/// Map types (`enum bpf_map_type`).
pub(crate) const MAP_TYPE_ARRAY: u32 = 2;
pub(crate) const MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
pub(crate) const MAP_TYPE_RINGBUF: u32 = 27;

/// `BPF_F_MMAPABLE`: user space can map the array.
pub(crate) const MMAPABLE: u32 = 1 << 10;

/// `BPF_F_XDP_HAS_FRAGS`: the program supports multi-buffer packets.
pub(crate) const XDP_HAS_FRAGS: u32 = 1 << 5;

/// Attach types (`enum bpf_attach_type`).
pub(crate) const ATTACH_XDP: u32 = 37;
pub(crate) const ATTACH_TCX_EGRESS: u32 = 47;

/// `XDP_FLAGS_SKB_MODE` (`include/uapi/linux/if_link.h`): generic mode.
pub(crate) const SKB_MODE: u32 = 1 << 1;

/// The minimal program: `r0 = 2` (`XDP_PASS`), `exit`.
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The same for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapAttributes {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner: u32,
}

/// The same for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct ElementAttributes {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkAttributes {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// Loads the minimal program of a type.
pub(crate) fn load_pass(kind: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    descriptor(
        PROG_LOAD,
        &LoadAttributes {
            kind,
            instruction_count: PASS.len() as u32,
            instructions: PASS.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            flags,
            attach_type,
            ..LoadAttributes::default()
        },
    )
}

/// Creates a map; `inner` is the template of a map of maps.
pub(crate) fn create_map(
    kind: u32,
    [key_size, value_size]: [u32; 2],
    entries: u32,
    flags: u32,
    inner: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let inner = inner.map_or(0, |inner| inner.as_raw_fd() as u32);
    descriptor(MAP_CREATE, &MapAttributes { kind, key_size, value_size, entries, flags, inner })
}

/// Stores a map at index 0 of a map of maps.
pub(crate) fn put_map(outer: BorrowedFd<'_>, inner: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0_u32, inner.as_raw_fd() as u32);
    let attributes = ElementAttributes {
        map: outer.as_raw_fd() as u32,
        pad: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    call(MAP_UPDATE_ELEM, &attributes).map(drop)
}

/// Attaches a program to an interface by a link, which ends with its descriptor.
pub(crate) fn create_link(
    program: BorrowedFd<'_>,
    interface: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let program = program.as_raw_fd() as u32;
    descriptor(LINK_CREATE, &LinkAttributes { program, interface, attach_type, flags })
}

fn descriptor<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: a successful call of these kinds returns a new descriptor without another owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The start of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjectAttributes {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// Detaches the program behind a pinned link, synchronously. The pin stays, without an interface.
pub(crate) fn detach_link(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = ObjectAttributes { path: path.as_ptr() as u64, descriptor: 0, flags: 0 };
    let link = call(OBJ_GET, &attributes)?;
    // SAFETY: the kernel has just opened it for this process, and it has no other owner.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    call(LINK_DETACH, &(link.as_raw_fd() as u32)).map(drop)
}

fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads `size` bytes of the attributes, which are all initialised and
    // without padding, and what their pointers refer to, which outlives the call; it writes
    // nothing.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    RawFd::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)
}
