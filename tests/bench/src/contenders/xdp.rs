//! Other XDP programs, and none at all.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use sip_xdp_tests::Wire;
use sip_xdp_tests::process::{Process, succeed};
use sip_xdp_tests::programs::{Attached, DROP, FLOOR, floor};
use sip_xdp_tests::topology::WAN;

use super::Contender;

/// The program that only returns DROP.
pub(super) fn drop_everything<'w>(
    wire: &'w Wire,
    _sources: &[Ipv4Addr],
) -> Result<Box<dyn Contender + 'w>> {
    Ok(Box::new(DropEverything { wire, _attached: Attached::new(&wire.receiver, WAN, DROP)? }))
}

/// The program that loads one line of 4 MiB per packet, counts it and returns DROP: the pure memory
/// cost of a list of a million hosts.
pub(super) fn one_line<'w>(
    wire: &'w Wire,
    _sources: &[Ipv4Addr],
) -> Result<Box<dyn Contender + 'w>> {
    touching(wire, 2)
}

/// The same, and one line of a table as large as the states of all /20s.
pub(super) fn two_lines<'w>(
    wire: &'w Wire,
    _sources: &[Ipv4Addr],
) -> Result<Box<dyn Contender + 'w>> {
    touching(wire, 1 | 2)
}

/// The program that touches these tables (`tests/ebpf/src/floor.rs`).
fn touching(wire: &Wire, tables: u32) -> Result<Box<dyn Contender + '_>> {
    /// `include/uapi/linux/bpf.h`
    const XDP_DROP: u32 = 1;
    let object = floor(tables, XDP_DROP)?;
    Ok(Box::new(DropEverything {
        wire,
        _attached: Attached::attach(&wire.receiver, WAN, FLOOR, object)?,
    }))
}

struct DropEverything<'w> {
    wire: &'w Wire,
    _attached: Attached,
}

impl Contender for DropEverything<'_> {
    /// It has no counter; every received packet ends here.
    fn stopped(&self) -> Result<u64> {
        Ok(self.wire.received()?.saturating_sub(self.wire.reached_the_stack()?))
    }

    fn counter(&self) -> &'static str {
        "taken in by the interface less seen by the stack"
    }

    fn own_counter(&self) -> Option<&'static str> {
        None
    }
}

/// No filter: packets reach a socket with a full queue, like an overloaded server's.
pub(super) fn none<'w>(wire: &'w Wire, _sources: &[Ipv4Addr]) -> Result<Box<dyn Contender + 'w>> {
    let socket = wire
        .receiver
        .enter(|| UdpSocket::bind("0.0.0.0:5060").context("cannot bind to port 5060"))?;
    Ok(Box::new(NoFilter { wire, _socket: socket }))
}

struct NoFilter<'w> {
    wire: &'w Wire,
    _socket: UdpSocket,
}

impl Contender for NoFilter<'_> {
    /// Packets end at the socket, not in a filter.
    fn stopped(&self) -> Result<u64> {
        self.wire.delivered()
    }

    fn counter(&self) -> &'static str {
        "delivered to UDP (nstat's IpInDelivers)"
    }
}

/// xdp-filter from xdp-tools, denying IPv4 sources, in native mode.
///
/// It keeps its state in /sys/fs/bpf and a lock in /run, both machine-wide. Here it has a private
/// mount namespace with fresh ones: it is independent of the machine's own instance and of locks of
/// killed calls, and its pins end with the namespace.
pub(super) fn xdp_filter<'w>(
    wire: &'w Wire,
    sources: &[Ipv4Addr],
) -> Result<Box<dyn Contender + 'w>> {
    let filter = XdpFilter { room: Room::new(wire)? };
    let list: String = sources.iter().map(|source| format!("{source}\n")).collect();
    let file = wire.directory().join("sources");
    fs::write(&file, list).with_context(|| format!("cannot write {}", file.display()))?;
    succeed(
        filter
            .room
            .command("xdp-filter")
            .args(["load", WAN, "-m", "native", "-f", "ipv4", "-p", "allow"]),
    )?;
    let add = r#"while read -r source; do xdp-filter ip -m src "$source" || exit 1; done < "$1""#;
    succeed(filter.room.command("sh").args(["-c", add, "sh"]).arg(&file))?;
    Ok(Box::new(filter))
}

struct XdpFilter {
    room: Room,
}

impl Contender for XdpFilter {
    fn stopped(&self) -> Result<u64> {
        let status = succeed(self.room.command("xdp-filter").arg("status"))?;
        drops(&status).with_context(|| format!("`xdp-filter status` shows no drops:\n{status}"))
    }

    fn counter(&self) -> &'static str {
        "XDP_DROP in `xdp-filter status`"
    }
}

fn drops(status: &str) -> Option<u64> {
    status.lines().find_map(|line| {
        line.trim().strip_prefix("XDP_DROP")?.split_whitespace().next()?.parse().ok()
    })
}

/// The receiving end of a wire with a BPF file system and a /run of its own.
struct Room {
    holder: Process,
}

impl Room {
    fn new(wire: &Wire) -> Result<Self> {
        let mounts = "mount -t bpf bpf /sys/fs/bpf && mount -t tmpfs tmpfs /run && echo ready && \
                      exec sleep infinity";
        let mut command = wire.receiver.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", mounts]);
        let mut holder = Process::spawn("the holder of a mount namespace", &mut command)?;
        holder.wait_line(Duration::from_secs(10), |line| line.text == "ready")?;
        Ok(Self { holder })
    }

    fn command(&self, program: &str) -> Command {
        let namespaces = PathBuf::from(format!("/proc/{}/ns", self.holder.pid()));
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount={}", namespaces.join("mnt").display()));
        command.arg(format!("--net={}", namespaces.join("net").display())).arg("--").arg(program);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_xdp_filter_counts() {
        let status = "Aggregate per-action statistics:\n  XDP_ABORTED      0 pkts      0 KiB\n  \
                      XDP_DROP      4711 pkts      12 KiB\n";
        assert_eq!(drops(status), Some(4711));
        assert_eq!(drops("nothing"), None);
    }
}
