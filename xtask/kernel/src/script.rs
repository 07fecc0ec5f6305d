//! What a build script does to embed kernel programs.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

use crate::toolchain::{TARGET, Toolchain};

/// The variable that asks for kernel programs that log each packet's way through the decision
/// order, if it is not empty.
const TRACE: &str = "SIP_XDP_TRACE";

/// The package that can do that.
const TRACED_PACKAGE: &str = "sip-xdp-ebpf";

/// Compiles a package of kernel programs and leaves the object as `PACKAGE.o` where the crate that
/// is being built can embed it. The object that `variable` names, if it is set, is taken instead.
///
/// `sources` are what the package is compiled from, below the workspace's directory.
///
/// # Errors
/// When there is no toolchain, naming the command that installs one, or when the programs do not
/// compile.
pub fn embed(package: &str, variable: &str, workspace: &Path, sources: &[&str]) -> Result<()> {
    println!("cargo::rerun-if-env-changed={variable}");
    println!("cargo::rerun-if-env-changed={TRACE}");
    let is_traced = env::var_os(TRACE).is_some_and(|value| !value.is_empty());
    let out = PathBuf::from(env::var_os("OUT_DIR").context("this is no build script")?);
    let object = match env::var_os(variable) {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", Path::new(&object).display());
            PathBuf::from(object)
        }
        // Named to cargo it would be newer than this run, and everything be built twice.
        None => compile(package, is_traced, &workspace.canonicalize()?, sources, &out)?,
    };
    let object = fs::read(&object)
        .with_context(|| format!("the kernel object {} cannot be read", object.display()))?;
    let path = out.join(format!("{package}.o"));
    fs::write(&path, without_dwarf(&object)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The same object without its DWARF sections, four fifths of it. The kernel reads BTF, which
/// stays.
///
/// # Errors
/// When this is no ELF file.
pub fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the kernel object is no ELF file")?;
    for section in &mut builder.sections {
        section.delete =
            [&b".debug_"[..], b".rel.debug_"].iter().any(|prefix| section.name.starts_with(prefix));
    }
    // LLVM has one table for the names of symbols and sections, this writer one for each.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = SHT_STRTAB;
        names.data = SectionData::SectionString;
    }
    let mut smaller = Vec::new();
    builder.write(&mut smaller).context("the kernel object cannot be written without DWARF")?;
    Ok(smaller)
}

fn compile(
    package: &str,
    is_traced: bool,
    workspace: &Path,
    sources: &[&str],
    out: &Path,
) -> Result<PathBuf> {
    for source in sources.iter().chain(&["Cargo.toml", "Cargo.lock", ".cargo/config.toml"]) {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }
    let toolchain = Toolchain::find()?;
    // A target directory of its own: the cargo that runs us has locked the other one. All profiles
    // share it, because the object is the same for all.
    let directory = target_directory(out).join(if is_traced { "bpf-trace" } else { "bpf" });
    let mut build = toolchain.build(workspace, &[package], &directory);
    if is_traced && package == TRACED_PACKAGE {
        build.args(["--features", "trace"]);
    }
    // Its standard output would be taken for build script instructions.
    let output = build.output().context("the cargo of the kernel programs cannot be run")?;
    if !output.status.success() {
        bail!("the kernel programs do not compile:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(directory.join(TARGET).join("bpf").join(package))
}

/// The directory around OUT_DIR that cargo marks as one that it may empty.
fn target_directory(out: &Path) -> &Path {
    out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file()).unwrap_or(out)
}
