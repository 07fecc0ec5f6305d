//! A foreign XDP program: the minimal one, attached as a link that ends with its descriptor.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::libc;
use nix::net::if_::if_nametoindex;

use crate::namespace::Namespace;

const BPF_PROG_LOAD: c_long = 5;
const BPF_LINK_CREATE: c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;

/// `r0 = XDP_PASS; exit`.
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// The start of the kernel's `union bpf_attr` for BPF_PROG_LOAD (include/uapi/linux/bpf.h).
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

/// The same for BPF_LINK_CREATE.
#[repr(C)]
struct LinkAttributes {
    program: RawFd,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// An attached program; dropping it detaches.
#[derive(Debug)]
pub struct ForeignProgram {
    _link: OwnedFd,
}

impl ForeignProgram {
    /// Attaches a program that passes everything.
    pub fn attach(namespace: &Namespace, interface: &str) -> Result<Self> {
        let load = LoadAttributes {
            kind: BPF_PROG_TYPE_XDP,
            instruction_count: 2,
            instructions: PASS.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
        };
        let program = bpf(BPF_PROG_LOAD, &load).context("cannot load a program")?;
        let link = namespace.enter(|| {
            let interface =
                if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
            let link = LinkAttributes {
                program: program.as_raw_fd(),
                interface,
                attach_type: BPF_XDP,
                flags: 0,
            };
            bpf(BPF_LINK_CREATE, &link).context("cannot attach a program")
        })?;
        Ok(Self { _link: link })
    }
}

/// bpf(2) for commands that return a descriptor.
fn bpf<T>(command: c_long, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: the kernel reads `size` bytes of the attributes, which are all initialized, and what
    // their pointers lead to, which is constant; it writes nothing.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a successful call of this kind returns a new descriptor without another owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
