//! bpf-linker, which must read the compiler's bitcode: it is built against the LLVM of the same
//! major version, into a directory named after both versions, so that it matches and never replaces
//! another one.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::command::{ask, cache_directory, clean, find};

/// The version that is built when there is none.
pub const VERSION: &str = "0.13.0";

/// Where the linker for a compiler is, or belongs.
#[derive(Debug)]
pub struct Linker {
    /// URL of the API.
    pub found: Option<PathBuf>,
    /// The directory that it is installed in when it is not there: its own.
    pub directory: PathBuf,
}

impl Linker {
    /// Looks for one for a compiler with this LLVM. One on the search path is taken only if
    /// `any_will_do`: those that its project publishes read every bitcode up to the newest, those
    /// built by hand often do not.
    pub fn look(llvm: u32, any_will_do: bool) -> Result<Self> {
        let directory = cache_directory()?.join(format!("bpf-linker-{VERSION}-llvm-{llvm}"));
        let own = Self::inside(&directory);
        // Asking for the version proves that the shared LLVM it was built against is still
        // installed.
        let found = if ask(clean(&own).arg("--version")).is_some() {
            Some(own)
        } else {
            any_will_do.then(|| find("bpf-linker")).flatten()
        };
        Ok(Self { found, directory })
    }

    /// The program inside of such a directory.
    pub fn inside(directory: &Path) -> PathBuf {
        directory.join("bin/bpf-linker")
    }
}
