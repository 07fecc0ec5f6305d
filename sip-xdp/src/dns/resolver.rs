//! Resolution of a SIP host name to all addresses that a client may use (RFC 3263).
//!
//! These are the targets of the name's SRV records, with their addresses, and the name's own
//! addresses. A client chooses among them; recognising a partner needs all.

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

/// The services of SIP (RFC 3263, 4.1; RFC 5922 for TLS).
const SERVICES: [&str; 3] = ["_sip._udp", "_sip._tcp", "_sips._tcp"];

/// Maximum number of SRV targets.
const MAX_TARGETS: usize = 32;

/// Timeout of one query, retries included.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The record type of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Targets of a service.
    Srv,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
}

/// The response to one query; empty if there is no such record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    /// Targets of SRV records.
    pub targets: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// TTL, if anything was found.
    pub ttl: Option<Duration>,
}

/// A DNS resolver.
pub(super) trait Dns {
    /// Queries an absolute name. An error means no response at all.
    fn ask(&self, name: String, kind: Kind)
    -> impl Future<Output = Result<Records, String>> + Send;
}

/// A set of record kinds that lead to addresses, each answered independently: the name's own
/// addresses and those of the targets of each service, IPv4 and IPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Kinds(u8);

impl Kinds {
    /// None.
    pub(super) const NONE: Self = Self(0);

    /// All.
    pub(super) const ALL: Self = Self(u8::MAX);

    /// The name's own addresses of one family.
    fn own(kind: Kind) -> Self {
        Self(1 << usize::from(kind == Kind::Aaaa))
    }

    /// The addresses of the targets of a service, by index in [`SERVICES`].
    fn of_service(service: usize) -> Self {
        Self(0b11 << (2 * (service + 1)))
    }

    /// Those of one family.
    fn family(kind: Kind) -> Self {
        Self(0b0101_0101 << usize::from(kind == Kind::Aaaa))
    }

    /// All kinds that may lead to an address.
    pub(super) fn of_address(address: IpAddr) -> Self {
        Self::family(if address.is_ipv4() { Kind::A } else { Kind::Aaaa })
    }

    /// The union.
    pub(super) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The intersection.
    pub(super) fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

const _: () = assert!(2 * (SERVICES.len() + 1) <= u8::BITS as usize);

/// The origin of an address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    /// Record kinds that led to it.
    pub(super) kinds: Kinds,
    /// Their longest TTL.
    pub(super) ttl: Duration,
}

/// The result for a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Its addresses.
    pub addresses: BTreeMap<IpAddr, Origin>,
    /// Record kinds without a response.
    pub unanswered: Kinds,
    /// The shortest TTL.
    pub ttl: Option<Duration>,
    /// Why the result may be incomplete or empty.
    pub error: Option<String>,
    /// Rejected addresses, with reasons.
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

/// Resolves a name.
pub(super) async fn resolve(dns: &impl Dns, name: &HostName) -> Found {
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
    // A target of "." means that the service is not available (RFC 2782); the name itself was
    // queried already.
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

/// A name, a record type, and the record kinds that depend on the response.
type Question = (String, Kind, Kinds);

/// Runs queries concurrently. Records the shortest TTL, and failed queries.
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

/// Why an address is rejected, whatever name it belongs to: special-purpose addresses (RFC 6890 and
/// the IANA registries that follow it) from which no SIP partner can send. Private ones are valid
/// (split DNS).
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

/// The system's resolvers.
pub(super) struct System(TokioResolver);

impl System {
    /// Those that `/etc/resolv.conf` lists now, since it changes with the network.
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
            // TTLs of aliases count as well.
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

/// Whether the resolver denies the record or the name (NODATA or NXDOMAIN).
fn says_none(error: &NetError) -> bool {
    matches!(
        error,
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError)
    )
}
