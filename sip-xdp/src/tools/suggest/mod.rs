//! Whom to trust: what the configuration of a PBX says of its carriers, and known sources that are
//! at their limit.
//!
//! Nothing is trusted here: an operator reads what is proposed, with its reason, and decides. What
//! would trust too many at once is not proposed, but named.

mod asterisk;
mod freepbx;
mod freeswitch;
mod kamailio;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
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
use crate::sys::clock;

/// Where PBXes keep their configuration, on Debian and elsewhere.
pub const PBX_DIRS: [&str; 6] = [
    "/etc/asterisk",
    "/etc/kamailio",
    "/etc/opensips",
    "/etc/freeswitch",
    "/usr/local/freeswitch/conf",
    "/usr/local/etc/kamailio",
];

/// Nothing broader is proposed: the shortest prefixes of IPv4 and IPv6.
const BROADEST: [u8; 2] = [16, 32];

/// A limit is used up when less than this part of it is left.
const NEARLY: u32 = 5;

/// How deep directories are looked into, how many files are read, and how long each may be, in
/// bytes.
const DEEPEST: usize = 6;
const MOST_FILES: usize = 5_000;
const LONGEST: u64 = 4 << 20;

/// Who is proposed.
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// The address, network or host.
    pub who: String,
    /// Why.
    pub reasons: Vec<String>,
    /// What to run.
    pub command: String,
}

/// What is not proposed, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// As it is written there.
    pub who: String,
    /// Where it is written, and what is wrong with it.
    pub reason: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suggestions {
    /// The version of this object.
    pub schema: u32,
    /// Whom to trust.
    pub proposals: Vec<Proposal>,
    /// Whom not.
    pub refused: Vec<Refused>,
    /// How many are trusted already.
    pub trusted: usize,
    /// How many files of a PBX's configuration were read.
    pub files: usize,
}

/// Something in a configuration that names who is to be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mention {
    /// An address, a network, a host, or a SIP URI.
    text: String,
    /// What it is there: "pjsip identify carrier".
    what: String,
    line: usize,
}

/// Who is trusted already.
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

/// Reads the configuration in these directories; each may be missing, unless all of them are.
pub fn suggest(
    directories: &[PathBuf],
    pins: &Pins,
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
        // What may not be read, or is no text, is another product's.
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
    // FreePBX keeps its own firewall's zones in a database, and says them itself.
    let is_default = directories.iter().map(PathBuf::as_path).eq(PBX_DIRS.iter().map(Path::new));
    if let Some(mentions) = is_default.then(freepbx::trusted).flatten() {
        for mention in mentions {
            collected.add(&mention.text, format!("{} (`{}`)", mention.what, freepbx::COMMAND));
        }
    }
    // Without a filter nobody has run into its limits.
    for (network, reason) in limited(pins, settings).unwrap_or_default() {
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

/// Finds the files below a directory. Links are followed, as far as the depth allows.
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

/// What reads a file of this name.
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
    // What is quoted must not end the quotation.
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

/// Reads an address, a network with a prefix or a mask, a host, or a SIP URI, and refuses what must
/// not be trusted.
fn read(text: &str) -> Result<Who> {
    let bare = host_of(text);
    if let Ok(net) = bare.parse::<ipnet::IpNet>() {
        // A PBX takes host bits for granted.
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

/// The host in `sip:user@host:port;parameters`, with or without all that is around it.
fn host_of(text: &str) -> &str {
    let text = text.trim().trim_matches(['"', '\'', '<', '>']);
    let text =
        ["sips:", "sip:"].iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
    let text = text.split([';', '?']).next().unwrap_or_default();
    let text = text.rsplit('@').next().unwrap_or_default();
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    // More colons than one are an IPv6 address.
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => host,
        _ => text,
    }
    .trim()
}

/// Known-good sources and peers that have all but used up their limit. The kernel keeps no record
/// of known sources that went over it before.
fn limited(pins: &Pins, settings: &SourceRules) -> Result<Vec<(Network, String)>> {
    let guide = header::read(pins.open(names::TABLE_HEADER)?)?;
    let table = Table::open(|name| pins.open(name), &guide)?;
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
        let found = suggest(
            &[directory.path().to_owned()],
            &pins,
            &SourceRules::from(&Config::default()),
            &trusted,
        )
        .unwrap();
        let who: Vec<_> = found.proposals.iter().map(|proposal| proposal.who.as_str()).collect();
        assert_eq!(who, ["192.0.2.7", "203.0.113.0/24", "sip.south.example"]);
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
