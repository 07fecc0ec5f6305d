//! The ledger: owner, times and reason of every entry.
//!
//! Every visible row is enforced. While the tables follow a change, a new or leaving row is marked
//! as pending, which readers skip: they never see an entry that packets do not. A crash in between
//! leaves a pending row, which the next writer removes ([`Ledger::drop_pending`]).

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, Map, MapData, MapError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sip_xdp_common::abi::layout::{
    LedgerKey, LedgerRow, List, Owner, REASON, ROW_DRY_RUN, ROW_PENDING, TIER_NONE, TIER_PROVEN,
    TIER_UNPROVEN,
};

use crate::net::network::Network;
use crate::sys::clock;
use crate::sys::schema::{one_of, schema_of};

schema_of!(
    /// The name of a list, in schemas.
    ListName,
    one_of(
        "A list.",
        List::ALL.map(List::name)
    )
);

schema_of!(
    /// The name of an owner, in schemas.
    OwnerName,
    one_of(
        "The owner of an entry: an operator, the detector, the configuration, a trusted host name, \
         a tool such as fail2ban, or a feed.",
        (0..=Owner::LAST as u8).filter_map(Owner::from_number).map(Owner::name)
    )
);

/// Evidence tier of a ban; [`None`] for entries without evidence.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The source address could be forged.
    Unproven,
    /// The source address is proven: by a completed request with credentials, or by an echoed nonce
    /// that was sent to no other address.
    Proven,
}

impl Tier {
    /// The name in logs and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::Proven => "proven",
        }
    }
}

/// One owner's entry for one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The network.
    pub network: Network,
    /// The port, for a single flow.
    pub port: Option<u16>,
    /// The owner.
    pub owner: Owner,
    /// Creation time in milliseconds since 1970.
    pub added_ms: u64,
    /// Expiry, on the filter's clock.
    pub expires: u64,
    /// Evidence tier.
    pub tier: Option<Tier>,
    /// Made in a dry run: never enforced.
    pub dry_run: bool,
    /// Reason, at most [`REASON`] bytes.
    pub reason: String,
}

impl Entry {
    /// An operator's entry, created now.
    pub fn manual(network: Network, expires: u64, reason: &str) -> Self {
        let reason = shorten(reason).to_owned();
        let added_ms = clock::wall_ms();
        Self {
            network,
            port: None,
            owner: Owner::Manual,
            added_ms,
            expires,
            tier: None,
            dry_run: false,
            reason,
        }
    }

    /// Its subject: a network, or a flow.
    pub fn place(&self) -> String {
        match self.port {
            Some(port) => format!("{} port={port}", self.network),
            None => self.network.to_string(),
        }
    }

    /// Its claimant, where the owner has several: `tool:NAME`, `dns:NAME`, `feed:NAME`, separated
    /// by commas.
    pub fn claimant(&self) -> Option<String> {
        let room = match self.owner {
            Owner::Tool => "tool",
            Owner::Host => "dns",
            Owner::Feed => "feed",
            Owner::Manual | Owner::Auto | Owner::Config => return None,
        };
        let names = self.reason.split(',').map(str::trim).filter(|name| !name.is_empty());
        let named: Vec<_> = names.map(|name| format!("{room}:{name}")).collect();
        (!named.is_empty()).then(|| named.join(","))
    }

    /// Whether it has expired at `now`.
    pub fn is_over(&self, now: u64) -> bool {
        self.expires <= now
    }

    /// The row's key in the kernel.
    pub fn key(&self, list: List) -> LedgerKey {
        let (network, prefix) = (self.network.first(), self.network.bits());
        let port = self.port.unwrap_or(0);
        LedgerKey {
            network,
            prefix,
            list: list as u8,
            owner: self.owner as u8,
            pad: 0,
            port,
            rest: 0,
        }
    }

    /// The row's value in the kernel.
    pub fn row(&self) -> LedgerRow {
        let text = shorten(&self.reason).as_bytes();
        let mut reason = [0; REASON];
        reason[..text.len()].copy_from_slice(text);
        LedgerRow {
            expires: self.expires,
            added_ms: self.added_ms,
            tier: match self.tier {
                None => TIER_NONE,
                Some(Tier::Unproven) => TIER_UNPROVEN,
                Some(Tier::Proven) => TIER_PROVEN,
            },
            flags: if self.dry_run { ROW_DRY_RUN } else { 0 },
            reason_length: text.len() as u16,
            pad: 0,
            reason,
        }
    }

    /// Parses a row. `None` if it is pending, or not of this version.
    pub fn read(key: &LedgerKey, row: &LedgerRow) -> Option<(List, Self)> {
        if row.flags & ROW_PENDING != 0 {
            return None;
        }
        let list = List::from_number(key.list)?;
        let reason = row.reason.get(..usize::from(row.reason_length))?;
        let entry = Self {
            network: Network::around(key.network, key.prefix),
            port: (key.port != 0).then_some(key.port),
            owner: Owner::from_number(key.owner)?,
            added_ms: row.added_ms,
            expires: row.expires,
            tier: match row.tier {
                TIER_UNPROVEN => Some(Tier::Unproven),
                TIER_PROVEN => Some(Tier::Proven),
                _ => None,
            },
            dry_run: row.flags & ROW_DRY_RUN != 0,
            reason: String::from_utf8_lossy(reason).into_owned(),
        };
        Some((list, entry))
    }
}

/// Truncates a reason to the size of a row, at a character boundary.
fn shorten(reason: &str) -> &str {
    let mut end = reason.len().min(REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

/// The ledger, as a map.
pub struct Ledger {
    rows: HashMap<MapData, LedgerKey, LedgerRow>,
    capacity: u32,
}

impl Ledger {
    /// Takes over the map.
    pub fn new(map: Map) -> Result<Self> {
        let Map::HashMap(data) = &map else {
            bail!("the ledger is not a hash map");
        };
        let capacity = data.info()?.max_entries();
        Ok(Self { rows: map.try_into()?, capacity })
    }

    /// Capacity in rows, which is also that of each list.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// All entries, ordered by list and network.
    ///
    /// A daemon may change the ledger meanwhile. The kernel's iteration over a hash restarts when
    /// its current key is deleted, so that rows may repeat, and the iteration is bounded.
    pub fn entries(&self) -> Result<Vec<(List, Entry)>> {
        let mut entries = BTreeMap::new();
        for row in self.rows.iter().take(2 * self.capacity as usize) {
            let (key, row) = row.context("the ledger cannot be read")?;
            if let Some((list, entry)) = Entry::read(&key, &row) {
                entries.insert((list, entry.network, entry.port, entry.owner), (list, entry));
            }
        }
        Ok(entries.into_values().collect())
    }

    /// An owner's entry for exactly this network, or for this port of it.
    pub fn get(
        &self,
        list: List,
        network: &Network,
        port: Option<u16>,
        owner: Owner,
    ) -> Option<Entry> {
        let key = Entry { owner, port, ..Entry::manual(*network, 0, "") }.key(list);
        let row = self.rows.get(&key, 0).ok()?;
        Entry::read(&key, &row).map(|(_, entry)| entry)
    }

    /// Writes a visible row: the tables must already enforce it.
    pub fn put(&mut self, list: List, entry: &Entry) -> Result<(), MapError> {
        self.rows.insert(entry.key(list), entry.row(), 0)
    }

    /// Writes a pending row: the tables follow next.
    pub fn put_pending(&mut self, list: List, entry: &Entry) -> Result<(), MapError> {
        let row = entry.row();
        self.rows.insert(entry.key(list), LedgerRow { flags: row.flags | ROW_PENDING, ..row }, 0)
    }

    /// Removes the pending rows of a crashed writer. Returns their number.
    pub fn drop_pending(&mut self) -> Result<usize> {
        let mut pending = Vec::new();
        for row in self.rows.iter().take(2 * self.capacity as usize) {
            let (key, row) = row.context("the ledger cannot be read")?;
            if row.flags & ROW_PENDING != 0 {
                pending.push(key);
            }
        }
        for key in &pending {
            forgive_missing(self.rows.remove(key)).context("the ledger cannot be written")?;
        }
        Ok(pending.len())
    }

    /// Removes a row, if it exists.
    pub fn remove(&mut self, list: List, entry: &Entry) -> Result<(), MapError> {
        forgive_missing(self.rows.remove(&entry.key(list)))
    }
}

/// Ignores a missing key.
pub(super) fn forgive_missing(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claimants_have_names() {
        for (owner, reason, claimant) in [
            (Owner::Tool, "fail2ban:sip", Some("tool:fail2ban:sip")),
            (
                Owner::Tool,
                "fail2ban:sip, fail2ban:web",
                Some("tool:fail2ban:sip,tool:fail2ban:web"),
            ),
            (Owner::Host, "sip.carrier.example", Some("dns:sip.carrier.example")),
            (Owner::Feed, "a,b", Some("feed:a,feed:b")),
            (Owner::Feed, "", None),
            (Owner::Manual, "feed:a", None),
            (Owner::Auto, "tool:x", None),
            (Owner::Config, "", None),
        ] {
            let entry = Entry { owner, ..Entry::manual("192.0.2.7".parse().unwrap(), 1, reason) };
            assert_eq!(entry.claimant().as_deref(), claimant, "{owner:?} {reason}");
        }
    }

    #[test]
    fn a_row_comes_back_as_it_went() {
        let mut entry = Entry::manual("192.0.2.0/24".parse().unwrap(), 77, "überfällig: Ärger");
        entry.dry_run = true;
        entry.tier = Some(Tier::Proven);
        entry.port = Some(5062);
        for list in List::ALL {
            assert_eq!(Entry::read(&entry.key(list), &entry.row()), Some((list, entry.clone())));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let entry = Entry::manual("192.0.2.1".parse().unwrap(), 1, &"ü".repeat(200));
        assert_eq!(entry.reason.len(), REASON);
        let entry =
            Entry::manual("192.0.2.1".parse().unwrap(), 1, &format!("a{}", "ü".repeat(200)));
        assert_eq!(entry.reason.len(), REASON - 1);
        assert!(Entry::read(&entry.key(List::Block), &entry.row()).is_some());
    }
}
