//! Which addresses a SIP client would send to that was given a host name: RFC 3263, as far as addresses go.
//!
//! That is the targets of the name's SRV records, with their addresses, and the name's own addresses. A client would
//! choose among them; whoever wants to recognise the other end needs them all.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use futures::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use tokio::time::timeout;

use super::MAX_ADDRESSES;
use crate::config::HostName;

/// The services that SIP is found under (RFC 3263, 4.1; RFC 5922 for TLS).
const SERVICES: [&str; 3] = ["_sip._udp", "_sip._tcp", "_sips._tcp"];

/// How many targets of SRV records are looked at.
const MAX_TARGETS: usize = 32;

/// How long one question may take, with all its repetitions.
const PATIENCE: Duration = Duration::from_secs(15);

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
    fn ask(&self, name: String, kind: Kind) -> impl Future<Output = Result<Records, String>> + Send;
}

/// What was found out about a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// How long they hold: the shortest of all times to live.
    pub ttl: Option<Duration>,
    /// Why these may not be all, or why there are none.
    pub error: Option<String>,
    /// What was left out, and why.
    pub left_out: BTreeSet<String>,
}

/// Finds the addresses of a name.
pub(super) async fn look_up(dns: &impl Dns, name: &HostName) -> Found {
    let services = SERVICES.iter().map(|service| (format!("{service}.{name}."), Kind::Srv));
    let own = [Kind::A, Kind::Aaaa].map(|kind| (format!("{name}."), kind));
    let mut found = Found::default();
    let mut targets = BTreeSet::new();
    let mut addresses = Vec::new();
    for records in ask_all(dns, services.chain(own), &mut found).await {
        targets.extend(records.targets.iter().map(|target| format!("{}.", target.trim_end_matches('.'))));
        addresses.extend(records.addresses);
    }
    // A lone dot says that the service is not there (RFC 2782); the name itself has been asked for.
    targets.retain(|target| target != "." && *target != format!("{name}."));
    if targets.len() > MAX_TARGETS {
        found.left_out.insert(format!("has {} SRV targets, of which {MAX_TARGETS} are followed", targets.len()));
    }
    let targets = targets.into_iter().take(MAX_TARGETS);
    let questions = targets.flat_map(|target| [(target.clone(), Kind::A), (target, Kind::Aaaa)]);
    for records in ask_all(dns, questions, &mut found).await {
        addresses.extend(records.addresses);
    }
    for address in addresses.into_iter().map(|address| address.to_canonical()) {
        match objection(address) {
            Some(what) => drop(found.left_out.insert(format!("{address} is {what}"))),
            None => drop(found.addresses.insert(address)),
        }
    }
    if found.addresses.len() > MAX_ADDRESSES {
        found.left_out.insert(format!("more than {MAX_ADDRESSES} addresses"));
        found.addresses = found.addresses.into_iter().take(MAX_ADDRESSES).collect();
    }
    if found.addresses.is_empty() && found.error.is_none() {
        found.error = Some("DNS knows no address of it that can be used".to_owned());
    }
    found
}

/// Asks many questions at once. Notes the shortest time to live, and that some were not answered.
async fn ask_all(dns: &impl Dns, questions: impl Iterator<Item = (String, Kind)>, found: &mut Found) -> Vec<Records> {
    let ask = |(name, kind): (String, Kind)| async move {
        match timeout(PATIENCE, dns.ask(name.clone(), kind)).await {
            Ok(answer) => answer.map_err(|error| format!("{name}: {error}")),
            Err(_) => Err(format!("{name}: no answer within {} s", PATIENCE.as_secs())),
        }
    };
    let mut all = Vec::new();
    for answer in join_all(questions.map(ask)).await {
        match answer {
            Ok(records) => {
                found.ttl = [found.ttl, records.ttl].into_iter().flatten().min();
                all.push(records);
            }
            Err(error) => drop(found.error.get_or_insert(error)),
        }
    }
    all
}

/// Why an address is not accepted, whoever says that it belongs to a name.
fn objection(address: IpAddr) -> Option<&'static str> {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    [
        (address.is_loopback(), "a loopback address"),
        (address.is_unspecified(), "no address at all"),
        (address.is_multicast(), "a multicast address"),
        (is_link_local, "a link-local address"),
        (is_broadcast, "the broadcast address"),
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
