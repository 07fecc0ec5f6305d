//! The last good list of a feed on disk, so that it is in force before the first packet after a
//! start, even without network. The file's modification time is the time of its last confirmation.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use super::fetch::Validators;
use crate::config::{FeedConfig, FeedFormat};
use crate::dataplane::tables::feed_lists::NetworkSet;
use crate::net::network::Network;

/// First line of the file.
const MAGIC: &str = "sip-xdp feed 1";

/// The saved state of a feed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Saved {
    /// Its list.
    pub(super) listed: NetworkSet,
    /// Number of entries before splits.
    pub(super) entries: usize,
    /// Cache validators of the list.
    pub(super) validators: Validators,
    /// Position in the server's sequence of changes.
    pub(super) cursor: Option<String>,
    /// Ends of entries, in seconds since 1970, where the server has them. These are the server's
    /// entries; the list is what the guards left.
    pub(super) ends: BTreeMap<Network, u64>,
    /// The detected format, if none is configured.
    pub(super) format: Option<String>,
    /// Last confirmation by the server, in milliseconds since 1970.
    pub(super) confirmed_ms: u64,
}

/// Path of a feed's file.
pub(super) fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.list"))
}

/// FNV-1a checksum: detects damage, not forgery.
struct Check(u64);

impl Check {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Identity of a list's origin, without secrets.
fn source(config: &FeedConfig) -> String {
    let mut check = Check::new();
    // Before detection existed, the default was `list`.
    let format = if config.format == FeedFormat::Auto { FeedFormat::List } else { config.format };
    check.add(format!("{} {}", format.name(), config.url).as_bytes());
    if config.min_count > 1 {
        check.add(format!(" min_count {}", config.min_count).as_bytes());
    }
    if let Some(set) = &config.set {
        check.add(format!(" set {set}").as_bytes());
    }
    format!("{:016x}", check.0)
}

/// A written file that has not replaced the previous one yet.
pub(super) struct Prepared {
    temporary: PathBuf,
    path: PathBuf,
}

impl Prepared {
    /// Replaces the previous file.
    pub(super) fn commit(self) -> Result<()> {
        let directory = self.path.parent().context("the file has no directory")?;
        let renamed = fs::rename(&self.temporary, &self.path)
            .and_then(|()| File::open(directory)?.sync_all());
        renamed.with_context(|| format!("{} cannot be written", self.path.display()))
    }
}

/// Writes a list beside the previous one.
pub(super) fn prepare(directory: &Path, config: &FeedConfig, saved: &Saved) -> Result<Prepared> {
    let path = path(directory, &config.name);
    let temporary = path.with_extension("list.new");
    let write = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut writer = BufWriter::new(File::create(&temporary)?);
        write(&mut writer, config, saved)?;
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    write().with_context(|| format!("{} cannot be written", temporary.display()))?;
    Ok(Prepared { temporary, path })
}

fn write(writer: &mut impl Write, config: &FeedConfig, saved: &Saved) -> io::Result<()> {
    writeln!(writer, "{MAGIC}\nsource {}\nentries {}", source(config), saved.entries)?;
    let heads = [
        ("etag", &saved.validators.etag),
        ("modified", &saved.validators.modified),
        ("cursor", &saved.cursor),
        ("format", &saved.format),
    ];
    for (name, value) in heads {
        if let Some(value) = value {
            writeln!(writer, "{name} {value}")?;
        }
    }
    writeln!(writer)?;
    let mut check = Check::new();
    let mut line = String::new();
    let mut body = |text: std::fmt::Arguments<'_>| {
        use std::fmt::Write as _;
        line.clear();
        let _ = writeln!(line, "{text}");
        check.add(line.as_bytes());
        writer.write_all(line.as_bytes())
    };
    for network in saved.listed.networks() {
        body(format_args!("{network}"))?;
    }
    for (network, end) in &saved.ends {
        body(format_args!("{network} until {end}"))?;
    }
    writeln!(writer, "check {:016x}", check.0)
}

/// Sets the time of the last confirmation, in milliseconds since 1970.
pub(super) fn touch(directory: &Path, name: &str, at_ms: u64) -> io::Result<()> {
    let at = UNIX_EPOCH + Duration::from_millis(at_ms);
    File::options().append(true).open(path(directory, name))?.set_modified(at)
}

/// Loads the saved state of a feed; `None` if there is none, or if it is of another origin.
pub(super) fn load(directory: &Path, config: &FeedConfig) -> Result<Option<Saved>> {
    let path = path(directory, &config.name);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("{} cannot be read", path.display()));
        }
    };
    let confirmed = file.metadata().and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH);
    let age = confirmed.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let read = read(BufReader::with_capacity(1 << 16, file), &source(config));
    let saved = read.with_context(|| format!("{} is corrupt", path.display()))?;
    Ok(saved
        .map(|saved| Saved { confirmed_ms: u64::try_from(age.as_millis()).unwrap_or(0), ..saved }))
}

fn read(mut reader: impl BufRead, source: &str) -> Result<Option<Saved>> {
    let mut saved = Saved::default();
    let mut line = String::new();
    let mut next = |line: &mut String| -> Result<()> {
        line.clear();
        ensure!(reader.read_line(line)? > 0, "it is cut off");
        ensure!(line.ends_with('\n'), "its last line is cut off");
        Ok(())
    };
    next(&mut line)?;
    ensure!(line.trim_end() == MAGIC, "it is no list of a feed");
    loop {
        next(&mut line)?;
        match line.trim_end().split_once(' ') {
            None if line == "\n" => break,
            Some(("source", from)) if from == source => {}
            Some(("source", _)) => return Ok(None),
            Some(("entries", value)) => saved.entries = value.parse()?,
            Some(("etag", value)) => saved.validators.etag = Some(value.to_owned()),
            Some(("modified", value)) => saved.validators.modified = Some(value.to_owned()),
            Some(("cursor", value)) => saved.cursor = Some(value.to_owned()),
            Some(("format", value)) => saved.format = Some(value.to_owned()),
            _ => bail!("it has an odd head"),
        }
    }
    let mut networks = Vec::new();
    let mut check = Check::new();
    loop {
        next(&mut line)?;
        let text = line.trim_end();
        if let Some(sum) = text.strip_prefix("check ") {
            ensure!(sum == format!("{:016x}", check.0), "its sum is wrong");
            break;
        }
        check.add(line.as_bytes());
        match text.split_once(" until ") {
            Some((network, end)) => drop(saved.ends.insert(network.parse()?, end.parse()?)),
            None => networks.push(text.parse()?),
        }
    }
    saved.listed = NetworkSet::new(networks);
    Ok(Some(saved))
}

/// Removes the files of other feeds.
pub(super) fn forget_others(directory: &Path, feeds: &[FeedConfig]) {
    let Ok(files) = fs::read_dir(directory) else {
        return;
    };
    for file in files.filter_map(|file| Some(file.ok()?.path())) {
        let is_ours = file.extension().is_some_and(|extension| extension == "list");
        if is_ours && !feeds.iter().any(|feed| path(directory, &feed.name) == file) {
            let _ = fs::remove_file(file);
        }
    }
}

/// All saved lists with the times of their confirmation, for use without a daemon.
pub(super) fn all(directory: &Path) -> Vec<(String, NetworkSet, u64)> {
    let files =
        fs::read_dir(directory).into_iter().flatten().filter_map(|file| Some(file.ok()?.path()));
    let lists = files.filter(|path| path.extension().is_some_and(|extension| extension == "list"));
    let mut found: Vec<_> = lists
        .filter_map(|path| {
            let name = path.file_stem()?.to_str()?.to_owned();
            let file = File::open(&path).ok()?;
            let modified =
                file.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            let mut reader = BufReader::with_capacity(1 << 16, file);
            let (mut magic, mut source) = (String::new(), String::new());
            reader.read_line(&mut magic).ok()?;
            reader.read_line(&mut source).ok()?;
            let from = source.trim_end().strip_prefix("source ")?.to_owned();
            let whole = io::Cursor::new(magic + &source);
            let saved = read(io::Read::chain(whole, reader), &from).ok()??;
            Some((name, saved.listed, u64::try_from(modified.as_millis()).ok()?))
        })
        .collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Saved {
        let network = |text: &str| text.parse::<Network>().unwrap();
        Saved {
            entries: 3,
            listed: NetworkSet::new(vec![
                network("192.0.2.1"),
                network("2001:db8::/32"),
                network("198.51.100.0/24"),
            ]),
            validators: Validators {
                etag: Some("W/\"a b\"".to_owned()),
                modified: Some("Wed, 21 Oct".to_owned()),
            },
            cursor: Some("98765".to_owned()),
            ends: [(network("192.0.2.1"), 1_800_000_000)].into(),
            format: Some("counts".to_owned()),
            confirmed_ms: 0,
        }
    }

    #[test]
    fn comes_back_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let config = FeedConfig::new("a", "https://host/list?key=sEcret");
        assert_eq!(load(directory.path(), &config).unwrap(), None);
        prepare(directory.path(), &config, &saved()).unwrap().commit().unwrap();
        let back = load(directory.path(), &config).unwrap().unwrap();
        assert!(back.confirmed_ms > 1_600_000_000_000);
        assert_eq!(Saved { confirmed_ms: 0, ..back }, saved());
        let text = fs::read_to_string(path(directory.path(), "a")).unwrap();
        assert!(!text.contains("sEcret"));
        assert_eq!(all(directory.path())[0].1, saved().listed);
        // Another origin means another list.
        assert_eq!(
            load(directory.path(), &FeedConfig::new("a", "https://other/list")).unwrap(),
            None
        );
        forget_others(directory.path(), &[]);
        assert_eq!(load(directory.path(), &config).unwrap(), None);
    }

    #[test]
    fn whatever_is_damaged_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let config = FeedConfig::new("a", "https://host/list");
        prepare(directory.path(), &config, &saved()).unwrap().commit().unwrap();
        let path = path(directory.path(), "a");
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(load(directory.path(), &config).is_err(), "cut off after {length} bytes");
        }
        let body = whole.windows(2).position(|two| two == b"\n\n").unwrap() + 2;
        for at in body..whole.len() - 1 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert!(load(directory.path(), &config).is_err(), "byte {at}");
        }
    }
}
