//! The report of a replay, for people and as JSON.
//!
//! More than 400 lines: the fields of the JSON report, each documented, with their construction.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use anyhow::Result;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp_common::abi::layout::List;
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::pipeline::egress::Answer;
use sip_xdp_common::verdict::Message;

use super::capture::{Capture, Input};
use super::timeline::Fate;
use super::{Replay, address, share};
use crate::bans::event::Event;
use crate::dataplane::counters::{
    self, ByVerdict, DropCounters, MessageCounters, Named, PassCounters, ResponseStats, SCHEMA,
};
use crate::dataplane::tables::ledger::Tier;
use crate::detect::{EvidenceName, KindName};
use crate::net::network::Network;
use crate::observe::report;
use crate::store;
use crate::sys::clock;

/// Maximum number of sources reported as close to a ban.
const CLOSEST: usize = 20;

/// All of it.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Replayed {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Time of the replay.
    pub time: Timestamp,
    /// The capture.
    pub capture: CaptureFacts,
    /// The local side.
    pub registrar: Ours,
    /// Incoming packets, by verdict and reason.
    pub packets: Verdicts,
    /// UDP payloads to SIP ports, by message kind.
    #[schemars(with = "MessageCounters")]
    pub methods: Named,
    /// The server's responses.
    pub responses: ResponseStats,
    /// Bans, in order of time.
    pub banned: Vec<Ban>,
    /// Sources that were over a limit, or limited as suspects, without a ban.
    pub limited: Vec<Limited>,
    /// Known-good hosts.
    pub good: Vec<Good>,
    /// Peers.
    pub peers: Vec<IpAddr>,
    /// The sources closest to a ban without one.
    pub closest: Vec<Close>,
    /// All other sources, in total.
    pub others: Others,
    /// The events, as `watch` would show them.
    pub(crate) events: Vec<Event>,
    /// Further notes.
    pub notes: Vec<String>,
    /// What `sip-xdp report` would have been made of at the end.
    #[serde(skip)]
    pub facts: report::Facts,
    /// Outcomes by source, for a comparison.
    #[serde(skip)]
    pub(super) fates: BTreeMap<IpAddr, Fate>,
    /// Packets lost to limits and bans by source and port.
    #[serde(skip)]
    pub(super) lost: BTreeMap<(IpAddr, u16), u64>,
}

impl Replayed {
    /// Packets that an address, or one port of it, lost to limits and bans.
    pub fn lost(&self, address: IpAddr, port: Option<u16>) -> u64 {
        match port {
            Some(port) => self.lost.get(&(address, port)).copied().unwrap_or(0),
            None => self.fates.get(&address).map_or(0, |fate| fate.dropped),
        }
    }
}

/// The capture.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct CaptureFacts {
    /// The file.
    pub file: String,
    /// `pcap` or `pcapng`.
    #[schemars(extend("enum" = ["pcap", "pcapng"]))]
    pub format: &'static str,
    /// `gzip`, `zstd`, `xz`, `bzip2`, several of them from the outermost on; `None` if
    /// uncompressed.
    pub compression: Option<String>,
    /// Number of concatenated capture files.
    pub files: u64,
    /// Packets by link type.
    pub links: BTreeMap<String, u64>,
    /// Packets from tunnels, such as those of mirrors, by name of the tunnel.
    pub tunnels: BTreeMap<&'static str, u64>,
    /// Unsupported packets, by kind.
    pub not_read: BTreeMap<String, u64>,
    /// Number of duplicates that were left out.
    pub duplicates: u64,
    /// Packets.
    pub packets: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Time of the first packet.
    pub from: Option<Timestamp>,
    /// Time of the last packet.
    pub to: Option<Timestamp>,
    /// Seconds in between.
    pub duration: u64,
    /// Packets to SIP ports, which went through the ingress program.
    pub arrived: u64,
    /// Packets from SIP ports. Those that may be sampled went through the egress program.
    pub left: u64,
    /// Truncated packets.
    pub cut: u64,
    /// Packets that are earlier than their predecessor; they are processed at its time.
    pub out_of_order: u64,
    /// Packets without a run of a program, by reason.
    pub skipped: Skipped,
    /// What was read of SIP over TCP.
    pub tcp: TcpFacts,
    /// Why it was not read to its end, if so.
    pub trouble: Option<String>,
}

/// SIP over TCP in a capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize)]
pub struct TcpFacts {
    /// Connections to and from SIP ports.
    pub connections: u64,
    /// Messages in both directions.
    pub messages: u64,
    /// Pieces that the capture lacks.
    pub lost: u64,
    /// Bytes between messages that are no SIP.
    pub garbage: u64,
}

/// Packets without a run of a program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Skipped {
    /// Of a link type that is not read.
    pub link_type: u64,
    /// Truncated within the link header.
    pub malformed: u64,
    /// Not IP.
    pub not_ip: u64,
    /// Neither to nor from the local side.
    pub elsewhere: u64,
    /// From the local side, but not from a SIP port.
    pub leaving: u64,
    /// From the registrar's SIP ports by TCP, but no whole segment.
    pub tcp_answers: u64,
    /// Of an undescribed interface, or in an unsupported record.
    pub unread: u64,
}

/// The local side of a capture.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Ours {
    /// The local addresses.
    pub networks: Vec<Network>,
    /// Whether they were guessed.
    pub guessed: bool,
    /// How they were determined.
    pub because: &'static str,
}

/// Packets by verdict.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Verdicts {
    /// Passed.
    #[schemars(with = "PassCounters")]
    pub pass: Named,
    /// Dropped.
    #[schemars(with = "DropCounters")]
    pub drop: Named,
}

/// A ban.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Ban {
    /// Time in the capture.
    pub time: Timestamp,
    /// Its subject.
    pub address: Network,
    /// The port, if it covers only that.
    pub port: Option<u16>,
    /// The kind of evidence.
    #[schemars(with = "KindName")]
    pub kind: String,
    /// Evidence tier.
    pub tier: Option<Tier>,
    /// The evidence.
    pub reason: String,
    /// Duration in seconds.
    pub length: u64,
    /// Packets before it.
    pub before: Fate,
    /// Packets after it, until the next ban of the same source.
    pub after: Fate,
}

/// What `limited` says of a source: a limit, or that it is a suspect.
const LIMITS: [&str; 6] = ["register", "requests", "other", "storm", "fragments", "suspect"];

/// A source that was over a limit.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Limited {
    /// When for the first time.
    pub time: Timestamp,
    /// Who.
    pub address: IpAddr,
    /// The limit, or `suspect`.
    #[schemars(extend("enum" = LIMITS))]
    pub kind: String,
    /// The reason of a suspect.
    pub reason: Option<String>,
    /// Packets over a limit.
    pub limited: u64,
    /// All of its packets.
    #[serde(flatten)]
    pub fate: Fate,
    /// Whether it was ever known good or a peer.
    pub known: bool,
}

/// A known-good host.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Good {
    /// Its address.
    pub address: IpAddr,
    /// Number of users.
    pub users: usize,
    /// Its packets.
    #[serde(flatten)]
    pub fate: Fate,
}

/// A source that came close to a ban.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Close {
    /// Who.
    pub address: IpAddr,
    /// The kind of evidence.
    #[schemars(with = "EvidenceName")]
    pub kind: String,
    /// Amount of evidence.
    pub count: f64,
    /// Threshold.
    pub limit: u64,
    /// In words.
    pub reason: String,
}

/// The remaining sources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Others {
    /// How many.
    pub sources: u64,
    /// Their packets.
    #[serde(flatten)]
    pub fate: Fate,
}

/// The report of a completed replay.
pub(super) fn of(input: &Input, capture: &Capture, replay: Replay<'_>) -> Result<Replayed> {
    let span = replay.span();
    let answers = replay.kernel.answers()?;
    let mut notes = notes(&replay)?;
    let of_report = facts_of(input, &replay, &notes);
    let tcp = replay.streams.counts();
    let Replay { mut facts, timeline, registrar, close, .. } = replay;
    for (what, count) in capture.unread() {
        *facts.not_read.entry((*what).to_owned()).or_default() += count;
    }
    let ByVerdict { pass, drop, .. } =
        counters::by_verdict(&facts.reasons, &[0; sip_xdp_common::verdict::Reason::COUNT]);
    if timeline.more_events > 0 {
        notes.push(format!("{} more events are not told one by one", timeline.more_events));
    }

    let fate = |source| timeline.tallies.get(source).map(|tally| tally.all).unwrap_or_default();
    let is_banned = |source| timeline.tallies.get(source).is_some_and(|tally| tally.was_banned());
    let is_known = |source| timeline.good.contains_key(source) || timeline.peers.contains(source);
    let mut limited = Vec::new();
    let noted = timeline.limited.iter().map(|(source, noted)| (source, noted, None));
    let suspects =
        timeline.suspected.iter().filter(|(source, _)| !timeline.limited.contains_key(source));
    for (source, noted, reason) in
        noted.chain(suspects.map(|(source, noted)| (source, noted, Some(noted.what.clone()))))
    {
        if is_banned(source) {
            continue;
        }
        limited.push(Limited {
            time: noted.at,
            address: address(source),
            kind: if reason.is_some() { "suspect".to_owned() } else { noted.what.clone() },
            reason,
            limited: timeline.tallies.get(source).map_or(0, |tally| tally.limited),
            fate: fate(source),
            known: is_known(source),
        });
    }
    limited.sort_by_key(|row| (row.time, row.address));

    let good = timeline.good.iter().map(|(source, users)| Good {
        address: address(source),
        users: users.len(),
        fate: fate(source),
    });
    let mut good: Vec<_> = good.collect();
    good.sort_by_key(|row| row.address);
    let mut peers: Vec<IpAddr> = timeline.peers.iter().map(address).collect();
    peers.sort();

    let mut ranked: Vec<_> = close.iter().filter(|(source, _)| !is_banned(source)).collect();
    ranked.sort_by(|one, other| share(other.1).total_cmp(&share(one.1)).then(one.0.cmp(other.0)));
    let closest = ranked.into_iter().take(CLOSEST).map(|(source, evidence)| Close {
        address: address(source),
        kind: evidence.kind.clone(),
        count: evidence.count,
        limit: evidence.limit.unwrap_or_default(),
        reason: evidence.text.clone(),
    });
    let closest = closest.collect();

    let mut others = Others { sources: 0, fate: timeline.others };
    for (source, tally) in &timeline.tallies {
        let is_told =
            timeline.limited.contains_key(source) || timeline.suspected.contains_key(source);
        if !is_told && !is_known(source) && !is_banned(source) {
            others.sources += 1;
            others.fate += tally.all;
        }
    }
    Ok(Replayed {
        schema: SCHEMA,
        time: counters::now(),
        capture: CaptureFacts {
            file: input.name().to_owned(),
            format: capture.format(),
            compression: capture.compression().map(str::to_owned),
            files: capture.files(),
            links: facts.links,
            tunnels: facts.tunnels,
            not_read: facts.not_read,
            duplicates: facts.duplicates,
            packets: facts.packets,
            bytes: facts.bytes,
            from: span.map(|span| span.0),
            to: span.map(|span| span.1),
            duration: span.map_or(0, |(from, to)| to.duration_since(from).as_secs().max(0) as u64),
            arrived: facts.arrived,
            left: facts.left,
            cut: facts.cut,
            out_of_order: facts.out_of_order,
            skipped: Skipped { unread: capture.unread().values().sum(), ..facts.skipped },
            tcp: TcpFacts {
                connections: tcp.connections,
                messages: tcp.messages,
                lost: tcp.lost,
                garbage: tcp.garbage,
            },
            trouble: capture.trouble().map(str::to_owned),
        },
        registrar: Ours {
            guessed: registrar.how != "given",
            because: registrar.how,
            networks: registrar.networks,
        },
        packets: Verdicts { pass, drop },
        methods: Message::ALL
            .iter()
            .map(|message| (message.name(), facts.messages[*message as usize]))
            .collect(),
        responses: ResponseStats {
            accepted: answers[Answer::Accepted as usize],
            challenged: answers[Answer::Challenged as usize],
            refused: answers[Answer::Refused as usize],
        },
        limited,
        good,
        peers,
        closest,
        others,
        facts: of_report,
        lost: timeline
            .lost
            .iter()
            .map(|((source, port), lost)| ((address(source), *port), *lost))
            .collect(),
        fates: timeline
            .tallies
            .iter()
            .map(|(source, tally)| (address(source), tally.all))
            .collect(),
        banned: timeline.bans.into_iter().map(Ban::from).collect(),
        events: timeline.events,
        notes,
    })
}

/// What a report is made of.
fn facts_of(input: &Input, replay: &Replay<'_>, notes: &[String]) -> report::Facts {
    let timeline = &replay.timeline;
    let good_ports: HashSet<(IpKey, u16)> =
        timeline.accepted.keys().map(|(source, port, _)| (*source, *port)).collect();
    let (from_ms, to_ms) = (replay.first / 1_000_000, replay.latest / 1_000_000);
    let bans = timeline.bans.iter().zip(0..).map(|(ban, id)| {
        let start = clock::to_ms(ban.at);
        let until = start.saturating_add(ban.length.saturating_mul(1_000));
        let hits = Some(ban.after.dropped);
        let end = store::End { at_ms: until, by: "expired".to_owned(), hits };
        let ban = store::Ban {
            network: ban.network,
            port: ban.port,
            kind: ban.kind.clone(),
            tier: ban.tier,
            reason: ban.reason.clone(),
            from_ms: start,
            until_ms: Some(until),
        };
        let end = (until <= to_ms).then_some(end);
        report::Ban { row: store::HistoryRow { id, ban, end }, hits }
    });
    let accepted = timeline.accepted.iter().map(|((source, port, user), (transport, times))| {
        store::Accepted {
            address: address(source),
            user: user.clone(),
            port: *port,
            transport: *transport,
            first_ms: times[0],
            last_ms: times[1],
            until_ms: times[2],
        }
    });
    let sprayed =
        timeline.sprayed.iter().map(|((user, _), (spray, [from_ms, last_ms]))| store::Sprayed {
            user: user.clone(),
            from_ms: *from_ms,
            last_ms: *last_ms,
            tier: spray.tier,
            tries: spray.tries,
            sources: spray.sources,
        });
    let served = timeline.served.iter().map(|(source, (first_ms, last_ms))| store::Served {
        address: address(source),
        first_ms: *first_ms,
        last_ms: *last_ms,
    });
    // A port that was banned itself has earned it; one that shares its address with an offender has
    // not.
    let offends = |source: &IpKey, port: u16| {
        let host = Network::around(*source, 128);
        timeline.bans.iter().any(|ban| ban.port == Some(port) && ban.network == host)
    };
    let was_banned = |source: &IpKey| {
        let host = Network::around(*source, 128);
        timeline.bans.iter().any(|ban| ban.network == host)
    };
    let is_good = |(source, port): &(IpKey, u16)| {
        timeline.served.contains_key(source) && !was_banned(source)
            || good_ports.contains(&(*source, *port)) && !offends(source, *port)
    };
    let lost = timeline.lost.iter().filter(|(place, _)| is_good(place)).map(|(_, lost)| *lost);
    report::Facts {
        capture: Some(input.name().to_owned()),
        from_ms,
        to_ms,
        bans: bans.collect(),
        accepted: accepted.collect(),
        sprayed: sprayed.collect(),
        served: served.collect(),
        trusted: replay.config.trust.networks.clone(),
        rules: replay.config.detect.clone(),
        lost: Some(lost.sum()),
        notes: notes.to_vec(),
    }
}

impl From<super::timeline::Banned> for Ban {
    fn from(ban: super::timeline::Banned) -> Self {
        Self {
            time: ban.at,
            address: ban.network,
            port: ban.port,
            kind: ban.kind,
            tier: ban.tier,
            reason: ban.reason,
            length: ban.length,
            before: ban.before,
            after: ban.after,
        }
    }
}

/// Notes that the figures do not show.
fn notes(replay: &Replay<'_>) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let config = replay.config;
    if config.dry_run {
        notes.push("the configuration says dry_run; this is what it would do without".to_owned());
    }
    if !config.feeds.is_empty() {
        notes.push(
            "feeds are left out: what they list would be dropped from its first packet on"
                .to_owned(),
        );
    }
    if !(config.trust.hosts.is_empty() && config.admit.hosts.is_empty()) {
        notes.push(
            "names under trust.hosts and admit.hosts are left out, since they may mean other \
             addresses now"
                .to_owned(),
        );
    }
    if !replay.detector.sees_responses() {
        notes.push(
            "the capture has hardly any answers to its requests: volume limits but bans nobody, \
             rejected passwords are not \
             seen, and nobody is known good"
                .to_owned(),
        );
    }
    if replay.facts.skipped.elsewhere > replay.facts.arrived + replay.facts.left {
        notes.push(
            "most packets are neither to nor from the registrar; if it is another one, say so with \
             --registrar"
                .to_owned(),
        );
    }
    if replay.facts.duplicates > 0 {
        let (copies, all) = (replay.facts.duplicates, replay.facts.arrived + replay.facts.left);
        notes.push(format!(
            "the capture holds {copies} packets a second time, beside the {all} that were looked \
             at; copies within 5 ms count as none"
        ));
    }
    let lost = replay.kernel.lost()?;
    if lost > 0 {
        notes.push(format!(
            "{lost} samples were beyond what one CPU hands to the detector, as they would be live"
        ));
    }
    if replay.lists.entries(List::Trust).next().is_some() {
        notes.push(
            "trusted networks of the configuration are trusted; entries made by command are not \
             known here"
                .to_owned(),
        );
    }
    Ok(notes)
}
