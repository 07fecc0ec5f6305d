//! The files of a clean Debian, unpacked for one test, and the start of a program with them as its
//! root.
//!
//! Its processes, mounts and BPF file system are in namespaces that end with it; global parts of
//! /proc and /sys are read-only there. The network is up to the caller.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::namespace::unique_name;
use crate::process::succeed;

/// Makes its first argument the root, with what systemd expects, and executes the other arguments.
/// Kernel settings are read-only, except for those of its own network namespace.
const START: &str = r#"
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
shift
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sys sys
mount -t bpf bpf sys/fs/bpf
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/net dev/pts dev/shm old
for node in full null random tty urandom zero net/tun; do
    if [ -e "/dev/$node" ]; then cp -a "/dev/$node" "dev/$node"; fi
done
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
ln -s pts/ptmx dev/ptmx
mount -t devpts -o newinstance,mode=620,ptmxmode=666,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
hostname -F etc/hostname
pivot_root . old
umount -l old
rmdir old
exec env -i container=laboratory PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
"#;

/// An unpacked root.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// Unpacks an archive into a new directory inside this one.
    pub fn unpack(archive: &Path, directory: &Path) -> Result<Self> {
        let path = directory.join(unique_name());
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        succeed(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&path))?;
        fs::write(path.join("etc/hostname"), "laboratory\n")?;
        fs::write(path.join("etc/hosts"), "127.0.0.1 localhost laboratory\n::1 localhost\n")?;
        Ok(Self { path })
    }

    /// The outer path of a file, by its absolute path inside.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.path.join(inside.trim_start_matches('/'))
    }

    /// Copies a file to a path inside.
    pub fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.path(to);
        fs::copy(from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
            .map(drop)
    }

    /// The arguments of unshare(1) that start a program in it as the init process: all others end
    /// with it, and it with unshare.
    pub fn start(&self, program: &[&str]) -> Vec<OsString> {
        const NAMESPACES: [&str; 8] =
            ["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child", "--"];
        let mut arguments: Vec<OsString> = NAMESPACES.into_iter().map(OsString::from).collect();
        arguments.extend(["sh", "-c", START, "sh"].map(OsString::from));
        arguments.push(self.path.clone().into());
        arguments.extend(program.iter().map(OsString::from));
        arguments
    }
}
