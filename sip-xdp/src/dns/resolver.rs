//! Which addresses a SIP client would send to that was given a host name: RFC 3263, as far as
//! addresses go.
//!
//! That is the targets of the name's SRV records, with their addresses, and the name's own
//! addresses. A client would choose among them; whoever wants to recognise the other end needs them
//! all.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use futures::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::MAX_ADDRESSES;
use crate::config::HostName;
use crate::net::network::Network;

/// The services that SIP is found under (RFC 3263, 4.1; RFC 5922 for TLS).
const SERVICES: [&str; 3] = ["_sip._udp", "_sip._tcp", "_sips._tcp"];

/// How many targets of SRV records are looked at.
const MAX_TARGETS: usize = 32;

/// How long one question may take, with all its repetitions.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Targets of a service.
    Srv,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
}

/// The answer to one question. Without anything in it: there is no such record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    /// Targets of SRV records.
    pub targets: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// How long this holds, if anything was found.
    pub ttl: Option<Duration>,
}

/// Somebody who knows DNS.
pub(super) trait Dns {
    /// Asks one question about a name, which is absolute. An error is no answer at all.
    fn ask(&self, name: String, kind: Kind)
    -> impl Future<Output = Result<Records, String>> + Send;
}

/// A set of kinds of records that lead to addresses of a name, each of which is answered or not by
/// itself: the name's own addresses and those of the targets of each service, IPv4 and IPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Kinds(u8);

impl Kinds {
    /// None.
    pub(super) const NONE: Self = Self(0);

    /// All.
    pub(super) const ALL: Self = Self(u8::MAX);

    /// The name's own addresses of one kind.
    fn own(kind: Kind) -> Self {
        Self(1 << usize::from(kind == Kind::Aaaa))
    }

    /// The addresses of the targets of a service, by its place in [`SERVICES`].
    fn of_service(service: usize) -> Self {
        Self(0b11 << (2 * (service + 1)))
    }

    /// Those of one family.
    fn family(kind: Kind) -> Self {
        Self(0b0101_0101 << usize::from(kind == Kind::Aaaa))
    }

    /// All that may lead to an address.
    pub(super) fn of_address(address: IpAddr) -> Self {
        Self::family(if address.is_ipv4() { Kind::A } else { Kind::Aaaa })
    }

    /// Those of either.
    pub(super) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of both.
    pub(super) fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

const _: () = assert!(2 * (SERVICES.len() + 1) <= u8::BITS as usize);

/// Where an address came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    /// Which kinds of records led to it.
    pub(super) kinds: Kinds,
    /// How long they hold: the longest of them.
    pub(super) ttl: Duration,
}

/// What was found out about a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Its addresses.
    pub addresses: BTreeMap<IpAddr, Origin>,
    /// Which kinds of records were not answered.
    pub unanswered: Kinds,
    /// How long they hold: the shortest of all times to live.
    pub ttl: Option<Duration>,
    /// Why these may not be all, or why there are none.
    pub error: Option<String>,
    /// What was left out, and why.
    pub left_out: BTreeSet<String>,
}

impl Found {
    fn add(&mut self, address: IpAddr, kinds: Kinds, ttl: Option<Duration>) {
        let address = address.to_canonical();
        if let Some(what) = objection(address) {
            self.left_out.insert(format!("{address} is {what}"));
            return;
        }
        let origin = self.addresses.entry(address).or_default();
        origin.kinds = origin.kinds.or(kinds);
        origin.ttl = origin.ttl.max(ttl.unwrap_or_default());
    }
}

/// Finds the addresses of a name.
pub(super) async fn look_up(dns: &impl Dns, name: &HostName) -> Found {
    let service = |(n, service)| (format!("{service}.{name}."), Kind::Srv, Kinds::of_service(n));
    let own = [Kind::A, Kind::Aaaa].map(|kind| (format!("{name}."), kind, Kinds::own(kind)));
    let mut found = Found::default();
    let mut targets: BTreeMap<String, Kinds> = BTreeMap::new();
    let services = SERVICES.iter().enumerate().map(service);
    for (records, kinds) in ask_all(dns, services.chain(own), &mut found).await {
        for target in &records.targets {
            let of = targets.entry(format!("{}.", target.trim_end_matches('.'))).or_default();
            *of = of.or(kinds);
        }
        records.addresses.iter().for_each(|address| found.add(*address, kinds, records.ttl));
    }
    // A lone dot says that the service is not there (RFC 2782); the name itself has been asked for.
    targets.retain(|target, _| target != "." && *target != format!("{name}."));
    if targets.len() > MAX_TARGETS {
        found.left_out.insert(format!(
            "has {} SRV targets, of which {MAX_TARGETS} are followed",
            targets.len()
        ));
    }
    let targets = targets.into_iter().take(MAX_TARGETS);
    let questions = targets.flat_map(|(target, kinds)| {
        [Kind::A, Kind::Aaaa].map(|kind| (target.clone(), kind, kinds.both(Kinds::family(kind))))
    });
    for (records, kinds) in ask_all(dns, questions, &mut found).await {
        records.addresses.iter().for_each(|address| found.add(*address, kinds, records.ttl));
    }
    if found.addresses.len() > MAX_ADDRESSES {
        found.left_out.insert(format!("more than {MAX_ADDRESSES} addresses"));
        found.addresses =
            std::mem::take(&mut found.addresses).into_iter().take(MAX_ADDRESSES).collect();
    }
    if found.addresses.is_empty() && found.error.is_none() {
        found.error = Some("DNS knows no address of it that can be used".to_owned());
    }
    found
}

/// A name, what is asked for, and the kinds of records that hang on the answer.
type Question = (String, Kind, Kinds);

/// Asks many questions at once. Notes the shortest time to live, and what was not answered.
async fn ask_all(
    dns: &impl Dns,
    questions: impl Iterator<Item = Question>,
    found: &mut Found,
) -> Vec<(Records, Kinds)> {
    let ask = |(name, kind, kinds): Question| async move {
        let answer = match timeout(TIMEOUT, dns.ask(name.clone(), kind)).await {
            Ok(answer) => answer.map_err(|error| format!("{name}: {error}")),
            Err(_) => Err(format!("{name}: no answer within {} s", TIMEOUT.as_secs())),
        };
        (answer, kinds)
    };
    let mut all = Vec::new();
    for (answer, kinds) in join_all(questions.map(ask)).await {
        match answer {
            Ok(records) => {
                found.ttl = [found.ttl, records.ttl].into_iter().flatten().min();
                all.push((records, kinds));
            }
            Err(error) => {
                found.unanswered = found.unanswered.or(kinds);
                found.error.get_or_insert(error);
            }
        }
    }
    all
}

/// Why an address is not accepted, whoever says that it belongs to a name: those of the
/// special-purpose registries (RFC 6890 and the IANA registries that follow it) that no SIP partner
/// can send from. Private ones it can (split DNS).
fn objection(address: IpAddr) -> Option<&'static str> {
    let is_in = |networks: &[&str]| {
        let host = Network::host(address);
        networks
            .iter()
            .any(|text| text.parse::<Network>().is_ok_and(|network| network.contains(&host)))
    };
    [
        (address.is_loopback(), "a loopback address"),
        (address.is_unspecified(), "no address at all"),
        (address.is_multicast(), "a multicast address"),
        (is_in(&["169.254.0.0/16", "fe80::/10"]), "a link-local address"),
        (is_in(&["255.255.255.255/32"]), "the broadcast address"),
        (is_in(&["0.0.0.0/8"]), "of \"this network\" (0.0.0.0/8)"),
        (is_in(&["240.0.0.0/4"]), "reserved (240.0.0.0/4)"),
        (is_in(&["192.0.0.0/24"]), "for protocols (192.0.0.0/24)"),
        (is_in(&["fec0::/10"]), "a site-local address"),
        (is_in(&["::/96", "64:ff9b::/96", "64:ff9b:1::/48"]), "an IPv4 address inside an IPv6 one"),
        (is_in(&["100::/64"]), "discard-only (100::/64)"),
    ]
    .into_iter()
    .find_map(|(is_so, what)| is_so.then_some(what))
}

/// The resolvers of the system.
pub(super) struct System(TokioResolver);

impl System {
    /// Those that `/etc/resolv.conf` lists now: it changes with the network.
    pub(super) fn new() -> Result<Self, String> {
        let unusable = |error: NetError| format!("/etc/resolv.conf cannot be used: {error}");
        let builder = TokioResolver::builder_tokio().map_err(unusable)?;
        builder.build().map(Self).map_err(unusable)
    }
}

impl Dns for System {
    async fn ask(&self, name: String, kind: Kind) -> Result<Records, String> {
        let record_type = match kind {
            Kind::Srv => RecordType::SRV,
            Kind::A => RecordType::A,
            Kind::Aaaa => RecordType::AAAA,
        };
        let answer = match self.0.lookup(name, record_type).await {
            Ok(answer) => answer,
            Err(error) if says_none(&error) => return Ok(Records::default()),
            Err(error) => return Err(error.to_string()),
        };
        let mut records = Records::default();
        for record in answer.answers() {
            // Aliases on the way count as well.
            let ttl = Duration::from_secs(record.ttl.into());
            records.ttl = Some(records.ttl.map_or(ttl, |shortest| shortest.min(ttl)));
            match &record.data {
                RData::A(address) => records.addresses.push(IpAddr::V4(address.0)),
                RData::AAAA(address) => records.addresses.push(IpAddr::V6(address.0)),
                RData::SRV(service) => records.targets.push(service.target.to_ascii()),
                _ => {}
            }
        }
        Ok(records)
    }
}

/// Whether a resolver has answered that there is no such record, or no such name.
fn says_none(error: &NetError) -> bool {
    matches!(
        error,
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError)
    )
}
