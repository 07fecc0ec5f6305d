//! Paths of an instance. Two instances with different directories can run side by side.

use std::path::PathBuf;

/// The files and directories of one instance.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The configuration file.
    pub config: PathBuf,
    /// Directory of the control socket.
    pub run_dir: PathBuf,
    /// Directory of state that survives a reboot.
    pub state_dir: PathBuf,
    /// Directory of pinned programs, links and maps, on a BPF file system.
    pub pin_dir: PathBuf,
}

impl Paths {
    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// The SQLite file of the store.
    pub fn store_file(&self) -> PathBuf {
        self.state_dir.join("state.db")
    }

    /// The file of followed host names.
    pub fn hosts_file(&self) -> PathBuf {
        self.state_dir.join("hosts.json")
    }

    /// The directory of saved feeds.
    pub fn feeds_dir(&self) -> PathBuf {
        self.state_dir.join("feeds")
    }
}
