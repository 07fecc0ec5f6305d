//! Formats without a package manager: a tarball with the static binary, and a container image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{self, ask, cache_directory, install_once, run_quietly, say};
use crate::packages;
use crate::workspace::Workspace;

/// Holds manifests against the schemas of Kubernetes, which it brings; the version of a release.
const VALIDATOR: &str = "kubernetes-validate==1.37.0";

/// Where each file of the package's tree is in the tarball.
const TARBALL: [(&str, &str); 8] = [
    ("usr/bin/sip-xdp", "sip-xdp"),
    ("etc/sip-xdp/config.toml", "config.toml"),
    ("usr/lib/systemd/system/sip-xdp.service", "sip-xdp.service"),
    ("usr/lib/sysusers.d/sip-xdp.conf", "sip-xdp.sysusers"),
    ("usr/share/man/man1", "man"),
    ("usr/share/bash-completion/completions/sip-xdp", "completions/sip-xdp.bash"),
    ("usr/share/sip-xdp/schemas", "schemas"),
    ("usr/share/doc/sip-xdp", "doc"),
];

/// Packs the tree; the same tree makes the same file.
pub(super) fn tarball(tree: &Path, to: &Path) -> Result<PathBuf> {
    let name = format!("sip-xdp-{}-x86_64-linux", env!("CARGO_PKG_VERSION"));
    let directory = to.join(&name);
    let _ = fs::remove_dir_all(&directory);
    for (from, inside) in TARBALL {
        let place = directory.join(inside);
        fs::create_dir_all(place.parent().context("a file has a directory")?)?;
        run_quietly(Command::new("cp").arg("--recursive").arg(tree.join(from)).arg(&place))?;
    }
    let file = to.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--use-compress-program=gzip -9 --no-name", "--file"])
        .arg(&file)
        .arg("--directory")
        .arg(to);
    tar.args([
        "--sort=name",
        "--mtime=@0",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mode=u=rwX,go=rX",
    ]);
    run_quietly(tar.arg(&name))?;
    fs::remove_dir_all(&directory)?;
    Ok(file)
}

/// Lays out what the image is built from, and the manifest beside it.
pub(super) fn context(workspace: &Workspace, tree: &Path, to: &Path) -> Result<PathBuf> {
    let directory = to.join("container");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    let packaging = workspace.root.join("sip-xdp/packaging/container");
    for (from, name) in [
        (tree.join("usr/bin/sip-xdp"), "sip-xdp"),
        (tree.join("etc/sip-xdp/config.toml"), "config.toml"),
        (packaging.join("Containerfile"), "Containerfile"),
        (packaging.join("kubernetes.yaml"), "kubernetes.yaml"),
    ] {
        fs::copy(&from, directory.join(name))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(directory)
}

/// Holds the manifest against Kubernetes' schemas, and returns it as JSON.
pub(super) fn validate(manifest: &Path, to: &Path) -> Result<PathBuf> {
    packages::install(&["python3-venv".to_owned()])?;
    let directory = cache_directory()?.join(VALIDATOR.replace("==", "-"));
    if !directory.is_dir() {
        say(format!("installing {VALIDATOR}"));
        install_once(&directory, |root| {
            run_quietly(Command::new("python3").args(["-m", "venv"]).arg(root))?;
            run_quietly(Command::new(root.join("bin/pip")).args(["install", "--quiet", VALIDATOR]))
        })
        .context("the manifest's validator cannot be installed")?;
    }
    let python = || Command::new(directory.join("bin/python3"));
    let validate = "import sys; from kubernetes_validate.__main__ import main; sys.exit(main())";
    command::run(python().args(["-c", validate, "--strict"]).arg(manifest))
        .context("the manifest is not valid")?;
    let convert =
        "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let json =
        ask(python().args(["-c", convert]).arg(manifest)).context("the manifest cannot be read")?;
    let path = to.join("kubernetes.json");
    fs::write(&path, json)?;
    Ok(path)
}
