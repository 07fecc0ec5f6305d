//! Proposals of trust: carriers in the configuration of a PBX, and known sources close to their
//! limit.
//!
//! Nothing is trusted here: an operator reads each proposal with its reasons, and decides. Networks
//! that are too wide are reported, not proposed.
//!
//! More than 400 lines: 90 of them are tests; the readers of each PBX are files of their own.

mod asterisk;
mod freepbx;
mod freeswitch;
mod kamailio;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp_common::abi::names;
use sip_xdp_common::lookup::networks::Kind;

use crate::config::HostName;
use crate::config::SourceRules;
use crate::dataplane::counters::SCHEMA;
use crate::dataplane::pins::Pins;
use crate::dataplane::tables::header;
use crate::dataplane::tables::networks::Table;
use crate::net::network::Network;
use crate::observe::explain::{self, Level};
use crate::store;
use crate::sys::clock;

/// Directories of PBX configurations, on Debian and elsewhere.
pub const PBX_DIRS: [&str; 6] = [
    "/etc/asterisk",
    "/etc/kamailio",
    "/etc/opensips",
    "/etc/freeswitch",
    "/usr/local/freeswitch/conf",
    "/usr/local/etc/kamailio",
];

/// Shortest prefixes that are proposed, IPv4 and IPv6.
const BROADEST: [u8; 2] = [16, 32];

/// A limit counts as used up when less than this fraction (1/5) of it is left.
const NEARLY: u32 = 5;

/// Partners are proposed whose calls were taken within this time, in milliseconds: a month.
const SERVED_MS: u64 = 30 * 24 * 3_600_000;

/// Limits of the search: directory depth, number of files, and bytes per file.
const DEEPEST: usize = 6;
const MOST_FILES: usize = 5_000;
const LONGEST: u64 = 4 << 20;

/// The subject of a proposal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// An address or a network.
    Network(Network),
    /// A host name or a SIP domain.
    Host(HostName),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Host(name) => name.fmt(f),
        }
    }
}

/// A proposal.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Proposal {
    /// The address, network or host.
    pub who: String,
    /// Reasons.
    pub reasons: Vec<String>,
    /// The command to run.
    pub command: String,
}

/// A mention that is not proposed.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
#[schemars(rename = "RefusedProposal")]
pub struct Refused {
    /// As written in the file.
    pub who: String,
    /// Position, and why it is refused.
    pub reason: String,
}

/// All results.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Suggestions {
    /// Version of this object.
    pub schema: u32,
    /// Proposals.
    pub proposals: Vec<Proposal>,
    /// Refused mentions.
    pub refused: Vec<Refused>,
    /// Number of mentions that are trusted already.
    pub trusted: usize,
    /// Number of PBX configuration files read.
    pub files: usize,
}

/// A mention of a partner in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mention {
    /// An address, a network, a host, or a SIP URI.
    text: String,
    /// Its role: "pjsip identify carrier".
    what: String,
    line: usize,
}

/// Existing trust.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trusted {
    /// Networks.
    pub networks: Vec<Network>,
    /// Hosts.
    pub hosts: BTreeSet<HostName>,
}

impl Trusted {
    fn covers(&self, who: &Who) -> bool {
        match who {
            Who::Network(network) => self.networks.iter().any(|trusted| trusted.contains(network)),
            Who::Host(name) => self.hosts.contains(name),
        }
    }
}

/// Reads the configurations in these directories; not all of them may be missing.
pub fn suggest(
    directories: &[PathBuf],
    pins: &Pins,
    store: &Path,
    settings: &SourceRules,
    trusted: &Trusted,
) -> Result<Suggestions> {
    let mut files = Vec::new();
    for directory in directories {
        collect(directory, DEEPEST, &mut files);
    }
    files.sort();
    files.dedup();
    let mut collected = Collected::default();
    let mut read = 0;
    for file in &files {
        // Unreadable and binary files belong to other products.
        let Some((reader, text)) = reader_of(file).zip(fs::read_to_string(file).ok()) else {
            continue;
        };
        read += 1;
        for mention in reader(&text) {
            collected.add(
                &mention.text,
                format!("{} in {}:{}", mention.what, file.display(), mention.line),
            );
        }
    }
    // FreePBX keeps its firewall zones in a database, and prints them.
    let is_default = directories.iter().map(PathBuf::as_path).eq(PBX_DIRS.iter().map(Path::new));
    if let Some(mentions) = is_default.then(freepbx::trusted).flatten() {
        for mention in mentions {
            collected.add(&mention.text, format!("{} (`{}`)", mention.what, freepbx::COMMAND));
        }
    }
    // Without a filter there are no limits.
    for (network, reason) in limited(pins, settings).unwrap_or_default() {
        collected.found.entry(Who::Network(network)).or_default().push(reason);
    }
    for (network, reason) in served(store).unwrap_or_default() {
        collected.found.entry(Who::Network(network)).or_default().push(reason);
    }
    let (known, new): (Vec<_>, Vec<_>) =
        collected.found.into_iter().partition(|(who, _)| trusted.covers(who));
    let proposals = new.into_iter().map(|(who, reasons)| proposal(&who, reasons)).collect();
    Ok(Suggestions {
        schema: SCHEMA,
        proposals,
        refused: collected.refused,
        trusted: known.len(),
        files: read,
    })
}

/// Collects the files below a directory. Links are followed, within the depth limit.
fn collect(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() && depth > 0 => collect(&path, depth - 1, files),
            Ok(metadata)
                if metadata.is_file() && metadata.len() <= LONGEST && files.len() < MOST_FILES =>
            {
                files.push(path)
            }
            _ => {}
        }
    }
}

type Reader = fn(&str) -> Vec<Mention>;

/// The reader of files with this name.
fn reader_of(file: &Path) -> Option<Reader> {
    let name = file.file_name()?.to_str()?;
    let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let is_in = |directory: &str| file.parent().is_some_and(|parent| parent.ends_with(directory));
    match extension {
        "conf" if name.starts_with("pjsip") || is_in("pjsip.d") => Some(asterisk::mentions),
        "list" | "txt" if name.starts_with("dispatcher") => Some(kamailio::dispatchers),
        "list" | "txt" if name.starts_with("address") || name.starts_with("permissions") => {
            Some(kamailio::addresses)
        }
        "xml" => Some(freeswitch::mentions),
        _ => None,
    }
}

fn proposal(who: &Who, reasons: Vec<String>) -> Proposal {
    // The quoted text must not end the quotation.
    let quoted: String =
        reasons[0].chars().filter(|c| !c.is_control() && !"'\\".contains(*c)).collect();
    let command = format!("sip-xdp trust add {who} --reason '{quoted}'");
    Proposal { who: who.to_string(), reasons, command }
}

#[derive(Default)]
struct Collected {
    found: BTreeMap<Who, Vec<String>>,
    refused: Vec<Refused>,
}

impl Collected {
    fn add(&mut self, text: &str, place: String) {
        match read(text) {
            Ok(who) => {
                let reasons = self.found.entry(who).or_default();
                if !reasons.contains(&place) {
                    reasons.push(place);
                }
            }
            Err(error) => self
                .refused
                .push(Refused { who: text.to_owned(), reason: format!("{place}: {error}") }),
        }
    }
}

/// Parses an address, a network with prefix or mask, a host, or a SIP URI, and refuses what must
/// not be trusted.
fn read(text: &str) -> Result<Who> {
    let bare = host_of(text);
    if let Ok(net) = bare.parse::<ipnet::IpNet>() {
        // PBXes allow host bits.
        return check(net.trunc().into());
    }
    if let Some((address, mask)) = bare.split_once('/')
        && let (Ok(address), Ok(mask)) = (address.parse::<std::net::Ipv4Addr>(), mask.parse())
    {
        let net = ipnet::Ipv4Net::with_netmask(address, mask)?;
        return check(ipnet::IpNet::V4(net.trunc()).into());
    }
    if let Ok(address) = bare.parse() {
        return check(Network::host(address));
    }
    if bare.contains(['$', '%', '{']) {
        bail!("it is a variable, of which only the PBX knows the value");
    }
    if !bare.contains('.') {
        bail!("it is no name that DNS knows everywhere");
    }
    bare.parse().map(Who::Host).map_err(|error: String| anyhow::anyhow!(error))
}

fn check(network: Network) -> Result<Who> {
    let broadest = BROADEST[usize::from(!network.is_v4())];
    if network.prefix() < broadest {
        bail!(
            "{network} is broader than /{broadest}: name the addresses from which the carrier \
             really sends"
        );
    }
    let address = network.address();
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        bail!("{network} is no address that packets come from over an interface");
    }
    Ok(Who::Network(network))
}

/// The host in `sip:user@host:port;parameters`, all other parts being optional.
fn host_of(text: &str) -> &str {
    let text = text.trim().trim_matches(['"', '\'', '<', '>']);
    let text =
        ["sips:", "sip:"].iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
    let text = text.split([';', '?']).next().unwrap_or_default();
    let text = text.rsplit('@').next().unwrap_or_default();
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    // More than one colon means an IPv6 address.
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => host,
        _ => text,
    }
    .trim()
}

/// Addresses whose calls the server took without credentials in the last month, but for those that
/// were banned meanwhile: it may take an attacker's, too.
fn served(store: &Path) -> Result<Vec<(Network, String)>> {
    if !store.exists() {
        return Ok(Vec::new());
    }
    let reader = store::Reader::open(store)?;
    let from_ms = clock::wall_ms().saturating_sub(SERVED_MS);
    let bans = reader.bans_since(from_ms)?;
    let banned: BTreeSet<Network> = bans.into_iter().map(|row| row.ban.network).collect();
    let rows = reader.served_since(from_ms)?.into_iter();
    let rows = rows.map(|row| (Network::host(row.address), clock::from_ms(row.first_ms)));
    let reason = |(network, since): (Network, Timestamp)| {
        let since = since.strftime("%F");
        let reason = format!("the server has taken its calls without credentials since {since}");
        (network, reason)
    };
    Ok(rows.filter(|(network, _)| !banned.contains(network)).map(reason).collect())
}

/// Known-good sources and peers that have all but used up their limit. The kernel keeps no record
/// of known sources that went over it before.
fn limited(pins: &Pins, settings: &SourceRules) -> Result<Vec<(Network, String)>> {
    let table_header = header::read(pins.open(names::TABLE_HEADER)?)?;
    let table = Table::open(|name| pins.open(name), &table_header)?;
    let now = clock::now();
    let known: Vec<_> = table
        .map_all()?
        .entries()
        .filter(|entry| entry.kind == Kind::Known && entry.slot_state.expires > now)
        .filter_map(|entry| Some((entry.network, entry.slot_state.reputation?)))
        .collect();
    let mut found = Vec::new();
    for (network, standing) in known {
        let what = match (standing.is_good(now), standing.is_peer(now)) {
            (true, _) => "known good",
            (false, true) => "a peer",
            (false, false) => continue,
        };
        let limits = explain::read(pins, network.address(), settings)?.limits;
        let level = limits
            .iter()
            .find(|level| level.limit == "good" && level.left < level.of.div_ceil(NEARLY));
        if let Some(Level { left, of, .. }) = level {
            found.push((
                network,
                format!("{what}, but at its limit: {left} of {of} packets are left"),
            ));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::store::{Change, Store};

    #[test]
    fn hosts_are_found_in_whatever_is_around_them() {
        for (text, host) in [
            ("sip:203.0.113.7:5060;transport=udp", "203.0.113.7"),
            ("sips:user@sip.carrier.example:5061", "sip.carrier.example"),
            ("<sip:[2001:db8::7]:5060>", "2001:db8::7"),
            ("2001:db8::/48", "2001:db8::/48"),
            ("sip.carrier.example:5080", "sip.carrier.example"),
            (" 203.0.113.0/24 ", "203.0.113.0/24"),
            ("\"192.0.2.1\"", "192.0.2.1"),
        ] {
            assert_eq!(host_of(text), host);
        }
    }

    #[test]
    fn too_much_is_not_proposed() {
        for text in [
            "0.0.0.0/0",
            "::/0",
            "10.0.0.0/8",
            "203.0.113.1/0.0.0.0",
            "2001::/16",
            "127.0.0.1",
            "0.0.0.0",
            "224.0.1.75",
            "dynamic",
            "localhost",
            "$${domain}",
            "",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        for (text, who) in [
            ("203.0.113.9/24", "203.0.113.0/24"),
            ("203.0.113.9/255.255.255.0", "203.0.113.0/24"),
            ("10.1.0.0/16", "10.1.0.0/16"),
            ("SIP.Carrier.example.", "sip.carrier.example"),
        ] {
            assert_eq!(read(text).unwrap().to_string(), who);
        }
    }

    #[test]
    fn a_whole_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "asterisk/pjsip.conf",
            "[north]\ntype=identify\nmatch=203.0.113.0/24, 192.0.2.7\n[all]\nmatch=0.0.0.0/0\n",
        );
        write("asterisk/pjsip_registrations.conf", "[south]\nserver_uri=sip:sip.south.example\n");
        write("kamailio/dispatcher.list", "1 sip:192.0.2.7:5060 0 0\n");
        write("asterisk/extensions.conf", "match=198.51.100.1\n");
        write(
            "freeswitch/sip_profiles/external/a.xml",
            "<gateway name='a'><param name='proxy' value='198.51.100.3'/></gateway>",
        );
        let trusted =
            Trusted { networks: vec!["198.51.100.0/24".parse().unwrap()], hosts: BTreeSet::new() };
        let pins = Pins::new(&directory.path().join("pins"));
        let store = directory.path().join("state.db");
        let opened = Store::open(&store).store;
        opened.record(Change::Served("192.0.2.99".parse().unwrap(), clock::wall_ms()));
        drop(opened);
        let found = suggest(
            &[directory.path().to_owned()],
            &pins,
            &store,
            &SourceRules::from(&Config::default()),
            &trusted,
        )
        .unwrap();
        let who: Vec<_> = found.proposals.iter().map(|proposal| proposal.who.as_str()).collect();
        assert_eq!(who, ["192.0.2.7", "192.0.2.99", "203.0.113.0/24", "sip.south.example"]);
        assert!(
            found.proposals[1].reasons[0].contains("without credentials since 20"),
            "{:?}",
            found.proposals[1]
        );
        assert_eq!((found.trusted, found.files, found.refused.len()), (1, 4, 1));
        assert!(found.refused[0].reason.contains("pjsip.conf:5"), "{:?}", found.refused);
        let both = &found.proposals[0];
        assert_eq!(both.reasons.len(), 2);
        assert!(
            both.command
                .starts_with("sip-xdp trust add 192.0.2.7 --reason 'pjsip identify north in "),
            "{both:?}"
        );
    }
}
