//! A seccomp profile, as of container runtimes and service managers.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::libc;

/// `SECCOMP_SET_MODE_FILTER` and filter actions (`include/uapi/linux/seccomp.h`).
const SET_MODE_FILTER: libc::c_long = 1;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;

/// Instructions of classic BPF (`include/uapi/linux/bpf_common.h`): load a word, jump if equal,
/// return.
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Makes these system calls fail with these errors, in the command and its children.
pub fn refuse(command: &mut Command, calls: &[(libc::c_long, i32)]) {
    if calls.is_empty() {
        return;
    }
    // The system call number is the first word of `struct seccomp_data`.
    let mut filter = vec![instruction(LOAD, 0, 0)];
    for (call, error) in calls {
        filter.push(instruction(JUMP_IF_EQUAL, 1, *call as u32));
        filter.push(instruction(RETURN, 0, ERRNO | *error as u32));
    }
    filter.push(instruction(RETURN, 0, ALLOW));
    // SAFETY: between fork and exec only system calls are made, on memory that was allocated
    // before.
    unsafe { command.pre_exec(move || install(&mut filter)) };
}

/// A jump continues with the next instruction on a match, else skips it.
fn instruction(code: u16, jump: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: jump, k }
}

fn install(filter: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until the call returns.
    let set = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, &raw const program) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
