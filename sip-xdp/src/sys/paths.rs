//! Where things are. Two instances with different directories run side by side on one machine.

use std::path::PathBuf;

/// The files and directories of one instance.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The configuration file.
    pub config: PathBuf,
    /// Where the control socket is.
    pub run_dir: PathBuf,
    /// What outlives a reboot.
    pub state_dir: PathBuf,
    /// Where programs, links and maps are pinned; on a BPF file system.
    pub pin_dir: PathBuf,
}

impl Paths {
    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// The store: what survives a reboot.
    pub fn store_file(&self) -> PathBuf {
        self.state_dir.join("state.db")
    }

    /// The host names that are followed, on disk.
    pub fn hosts_file(&self) -> PathBuf {
        self.state_dir.join("hosts.json")
    }

    /// What feeds last listed, on disk.
    pub fn feeds_dir(&self) -> PathBuf {
        self.state_dir.join("feeds")
    }
}
