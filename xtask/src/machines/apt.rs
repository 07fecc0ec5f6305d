//! Packages of other releases, distributions and architectures, without touching what this machine
//! has installed: apt with a configuration, lists and cache of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::command::{ask, run_quietly, say};

/// How old package lists may be before they are fetched again.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// Where Debian's own keys are.
const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Whose packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distribution {
    Debian,
    Ubuntu,
}

impl Distribution {
    fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Ubuntu => "ubuntu",
        }
    }

    /// The suites that the kernels are in, and `bookworm` for the programs beside them.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Self::Debian => &[
                "bullseye-security",
                "bookworm",
                "bookworm-security",
                "bookworm-backports",
                "trixie",
                "trixie-security",
                "trixie-backports",
            ],
            Self::Ubuntu => &["jammy", "jammy-updates", "noble", "noble-updates"],
        }
    }

    /// The part of debootstrap that knows the distribution's mirror, the word before it, and how
    /// many are skipped: Ubuntu's first one is for releases that are no longer kept.
    fn mirror_hint(self) -> (&'static str, &'static str, usize) {
        match self {
            Self::Debian => ("usr/sbin/debootstrap", "DEF_MIRROR=", 0),
            Self::Ubuntu => ("usr/share/debootstrap/scripts/gutsy", "default_mirror ", 1),
        }
    }
}

/// An apt of its own.
pub(crate) struct Apt {
    directory: PathBuf,
    architecture: String,
}

impl Apt {
    /// One for this distribution and architecture, with lists that are not older than a day.
    pub(crate) fn open(
        cache: &Path,
        distribution: Distribution,
        architecture: &str,
    ) -> Result<Self> {
        let directory = cache.join(format!("apt-{}-{architecture}", distribution.name()));
        let apt = Self { directory, architecture: architecture.to_owned() };
        let updated = apt.directory.join("updated");
        let age = fs::metadata(&updated)
            .and_then(|file| file.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(apt);
        }
        let (mirror, keys) = mirror(cache, distribution)?;
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.directory.join(part))?;
        }
        // Nothing counts as installed here: what is asked for comes with all that it needs.
        fs::write(apt.directory.join("status"), "")?;
        let mut sources = String::new();
        for suite in distribution.suites() {
            let security = distribution == Distribution::Debian && suite.ends_with("-security");
            let suffix = if security { "-security" } else { "" };
            let options = format!("arch={architecture} signed-by={}", keys.display());
            sources.push_str(&format!("deb [{options}] {mirror}{suffix} {suite} main\n"));
        }
        fs::write(apt.directory.join("sources.list"), sources)?;
        say(format!("fetching the package lists of {} for {architecture}", distribution.name()));
        run_quietly(apt.command("apt-get").arg("update"))
            .context("is there a way to the mirror?")?;
        fs::write(updated, format!("{:?}\n", SystemTime::now()))?;
        Ok(apt)
    }

    /// apt-get or apt-cache with this configuration.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let directory = self.directory.display();
        for option in [
            format!("Dir::Etc::sourcelist={directory}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Dir::Etc::preferencesparts=-".to_owned(),
            format!("Dir::State::lists={directory}/lists"),
            format!("Dir::State::status={directory}/status"),
            format!("Dir::Cache={directory}/cache"),
            format!("APT::Architecture={}", self.architecture),
            format!("APT::Architectures={}", self.architecture),
            // The host's preferred release may not be among the suites here.
            "APT::Default-Release=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // The cache belongs to the calling user.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// The newest package by version whose name begins and ends so, with nothing but a version in
    /// between: other flavours have a word there. `None` if there is none.
    pub(crate) fn newest(&self, beginning: &str, end: &str) -> Result<Option<String>> {
        let names = ask(self.command("apt-cache").arg("pkgnames").arg(beginning))
            .context("apt-cache pkgnames failed")?;
        let version = |name: &&str| {
            let middle = name.strip_prefix(beginning).and_then(|rest| rest.strip_suffix(end));
            middle.is_some_and(|middle| !middle.contains(|char: char| char.is_ascii_alphabetic()))
        };
        let mut names: Vec<_> = names.lines().filter(version).map(str::to_owned).collect();
        names.sort_by_cached_key(|name| numbers(&name[beginning.len()..]));
        Ok(names.pop())
    }

    /// Fetches these packages, without those that they depend on, and unpacks them.
    pub(crate) fn unpack(&self, packages: &[String], directory: &Path) -> Result<()> {
        let download = tempfile::tempdir().context("cannot make a temporary directory")?;
        run_quietly(
            self.command("apt-get").current_dir(download.path()).arg("download").args(packages),
        )?;
        unpack_all(download.path(), directory)
    }

    /// Fetches these packages with all that they depend on, and unpacks them.
    pub(crate) fn unpack_with_dependencies(
        &self,
        packages: &[&str],
        directory: &Path,
    ) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args([
            "install",
            "--yes",
            "--download-only",
            "--no-install-recommends",
            "-t",
            "bookworm",
        ]);
        run_quietly(command.args(packages))?;
        unpack_all(&self.directory.join("cache/archives"), directory)
    }
}

fn unpack_all(packages: &Path, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    for entry in fs::read_dir(packages)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run_quietly(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(directory))?;
        }
    }
    Ok(())
}

/// The numbers in a version, to compare by.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|char: char| !char.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// The distribution's mirror, as debootstrap knows it, and its keys. Both come from Debian
/// packages.
fn mirror(cache: &Path, distribution: Distribution) -> Result<(String, PathBuf)> {
    let directory = cache.join("debootstrap");
    let keys = directory.join("usr/share/keyrings/ubuntu-archive-keyring.gpg");
    let (part, word, skipped) = distribution.mirror_hint();
    let part = directory.join(part);
    if !part.exists() {
        let download = tempfile::tempdir().context("cannot make a temporary directory")?;
        run_quietly(
            Command::new("apt-get").current_dir(download.path()).args(["download", "debootstrap"]),
        )?;
        unpack_all(download.path(), &directory)?;
    }
    let text =
        fs::read_to_string(&part).with_context(|| format!("cannot read {}", part.display()))?;
    let mirror = known_mirror(&text, word, skipped)
        .with_context(|| format!("{} names no mirror", part.display()))?;
    let mirror = mirror.to_owned();
    if distribution == Distribution::Debian {
        if !Path::new(DEBIAN_KEYS).exists() {
            bail!("{DEBIAN_KEYS} is missing: install debian-archive-keyring");
        }
        return Ok((mirror, DEBIAN_KEYS.into()));
    }
    if !keys.exists() {
        Apt::open(cache, Distribution::Debian, "amd64")?
            .unpack(&["ubuntu-keyring".to_owned()], &directory)?;
    }
    Ok((mirror, keys))
}

/// The address that follows a word, after so many others that are skipped.
fn known_mirror<'a>(script: &'a str, word: &str, skipped: usize) -> Option<&'a str> {
    let (_, rest) =
        script.match_indices(word).map(|(at, _)| script.split_at(at + word.len())).nth(skipped)?;
    let mirror = rest
        .split(|char: char| char.is_whitespace() || char == '"')
        .find(|text| !text.is_empty())?;
    mirror.starts_with("http").then_some(mirror)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(numbers("6.1.0-56-amd64") > numbers("6.1.0-9-amd64"));
        assert!(numbers("6.12.117+deb13-amd64") > numbers("6.12.95+deb13-amd64"));
        assert!(numbers("7.3.4+deb13-amd64") > numbers("6.19.14+deb13-amd64"));
    }

    #[test]
    fn the_mirror_is_read_from_a_script() {
        let script = "default_mirror http://old.example/os\n  ;;\n *)\n default_mirror \
                      http://mirror.example/os\n";
        assert_eq!(known_mirror(script, "default_mirror ", 1), Some("http://mirror.example/os"));
        assert_eq!(
            known_mirror("DEF_MIRROR=\"http://a.example/b\"\n", "DEF_MIRROR=", 0),
            Some("http://a.example/b")
        );
        assert_eq!(known_mirror("mirror_style release\n", "default_mirror ", 0), None);
    }
}
