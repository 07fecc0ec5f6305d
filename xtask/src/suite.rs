//! The workspace's tests: their requirements, and how each is started.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command::{self, ask, describe};
use crate::machines;
use crate::runner::Test;
use crate::workspace::Workspace;

/// What is tested for this machine. The packages of kernel programs have no tests of their own.
const PACKAGES: [&str; 8] = [
    "sip-xdp",
    "sip-xdp-bench",
    "sip-xdp-common",
    "sip-xdp-fuzz",
    "sip-xdp-guest",
    "sip-xdp-kernel",
    "sip-xdp-tests",
    "xtask",
];
/// Programs that tests start.
const PROGRAMS: [&str; 3] = ["sip-xdp", "sip-xdp-guest", "panic-in-top"];
/// Examples that tests start.
const EXAMPLES: [&str; 1] = ["embed"];
/// The binary of integration tests.
const INTEGRATION: &str = "it";
/// Its modules that need neither root nor a kernel.
const WITHOUT_ROOT: [&str; 3] = ["feeds::", "manual::", "object::"];
/// The modules of tests that measure time or load, wherever they are.
const MEASURED: &str = "measured::";

/// Which tests are wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection<'a> {
    /// Parts of names; none is all.
    pub(crate) names: &'a [String],
    /// Whether those that need root are among them.
    pub(crate) root: bool,
}

/// An executable that cargo built.
struct Executable {
    name: String,
    path: PathBuf,
    /// Where its package is.
    package: PathBuf,
}

/// Builds all tests and the programs that they start, and says how each is run.
pub(crate) fn build(workspace: &Workspace, selection: Selection<'_>) -> Result<Vec<Test>> {
    let executables = compile(workspace)?;
    let mut tests = Vec::new();
    for executable in &executables {
        if executable.name == INTEGRATION {
            tests.extend(integration(workspace, executable, selection)?);
        } else {
            let arguments = selection.names.to_vec();
            tests.push(Test { is_program: true, ..test(workspace, executable, arguments) });
        }
    }
    if selection.names.is_empty() {
        tests.push(examples(workspace));
    }
    if selection.root {
        tests.extend(machines(workspace, selection)?);
    }
    Ok(tests)
}

/// One invocation of cargo for everything, so that nothing is compiled twice with other features.
fn compile(workspace: &Workspace) -> Result<Vec<Executable>> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--tests", "--message-format=json-render-diagnostics"]);
    for program in PROGRAMS {
        cargo.args(["--bin", program]);
    }
    for example in EXAMPLES {
        cargo.args(["--example", example]);
    }
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    let what = describe(&cargo);
    let output =
        cargo.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run `{what}`"))?;
    command::check(&what, output.status)?;
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut executables: Vec<_> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| {
            Some(Executable {
                name: message["target"]["name"].as_str()?.to_owned(),
                path: message["executable"].as_str()?.into(),
                package: Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf(),
            })
        })
        .collect();
    if executables.is_empty() {
        bail!("`{what}` names no test binary");
    }
    executables.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(executables)
}

/// Each of the integration tests that are wanted.
fn integration(
    workspace: &Workspace,
    binary: &Executable,
    selection: Selection<'_>,
) -> Result<Vec<Test>> {
    let list =
        ask(Command::new(&binary.path).args(["--list", "--format", "terse"]).args(selection.names))
            .with_context(|| format!("{} does not list its tests", binary.path.display()))?;
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let started = |name: &str| {
        let is_root = !WITHOUT_ROOT.iter().any(|module| name.starts_with(module));
        let arguments = ["--exact", name, "--nocapture"].map(str::to_owned).to_vec();
        Test {
            name: name.to_owned(),
            is_root,
            is_alone: name.contains(MEASURED),
            ..test(workspace, binary, arguments)
        }
    };
    Ok(names.map(started).filter(|test| selection.root || !test.is_root).collect())
}

fn test(workspace: &Workspace, executable: &Executable, arguments: Vec<String>) -> Test {
    let package = executable.package.file_name().unwrap_or_default().to_string_lossy();
    Test {
        name: format!("{package}: {}", executable.name),
        program: executable.path.clone(),
        arguments,
        directory: executable.package.clone(),
        // As cargo does for tests that it runs.
        environment: vec![
            ("CARGO_MANIFEST_DIR", executable.package.clone()),
            ("SIP_XDP_BIN", workspace.binary(false)),
        ],
        is_program: false,
        is_root: false,
        is_alone: false,
    }
}

/// Real kernels in virtual machines, one test each.
fn machines(workspace: &Workspace, selection: Selection<'_>) -> Result<Vec<Test>> {
    let program = std::env::current_exe().context("xtask has no path")?;
    let binary = workspace.binary(false);
    let guest = binary.with_file_name("sip-xdp-guest");
    let one = |kernel: &&str| Test {
        name: format!("machines::linux_{}", kernel.replace('.', "_")),
        program: program.clone(),
        arguments: machines::test_arguments(kernel, &binary, &guest),
        directory: workspace.root.clone(),
        environment: Vec::new(),
        is_program: false,
        is_root: true,
        // An emulated machine wants both processors, and says how long the filter takes to start.
        is_alone: true,
    };
    let wanted = |test: &Test| {
        let is_named = |name: &String| test.name.contains(name.as_str());
        selection.names.is_empty() || selection.names.iter().any(is_named)
    };
    Ok(machines::TESTED.iter().map(one).filter(wanted).collect())
}

/// The examples in the documentation, which only cargo knows how to run.
fn examples(workspace: &Workspace) -> Test {
    let mut arguments = vec!["test".to_owned(), "--doc".to_owned(), "--quiet".to_owned()];
    // All of them, so that the features are those with which everything has been compiled.
    for package in PACKAGES {
        arguments.extend(["--package".to_owned(), package.to_owned()]);
    }
    Test {
        name: "examples in the documentation".to_owned(),
        program: command::cargo(),
        arguments,
        directory: workspace.root.clone(),
        environment: Vec::new(),
        is_program: true,
        is_root: false,
        is_alone: false,
    }
}
