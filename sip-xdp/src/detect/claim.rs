//! What a piece of evidence is worth. EVIDENCE, in ARCHITECTURE.md, has the table.

use serde::{Deserialize, Serialize};

use crate::dataplane::tables::ledger::Tier;
use crate::sip::transport::Transport;

/// What is proven of the sender of a packet. Evidence is weighed level by level: what could be
/// forged never adds to what could not.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub(super) enum Level {
    /// Anybody could have sent it.
    #[default]
    Seen,
    /// The address is the sender's own: it echoed a nonce or a To-tag that only it was sent.
    Routable,
}

impl Level {
    /// Under which name a ban on such evidence is kept and shown.
    pub(super) const fn tier(self) -> Tier {
        match self {
            Self::Seen => Tier::Unproven,
            Self::Routable => Tier::Proven,
        }
    }
}

/// How the length of bans develops when a source offends again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// Each is as long as the first.
    None,
    /// They double up to an hour, and count towards nothing else: a misconfigured phone.
    Mild,
    /// They double up to the longest ban of the configuration.
    Full,
}

/// A try whose credentials were rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rejection {
    /// The digest username.
    pub(super) user: String,
    /// The source port.
    pub(super) port: u16,
    /// How the try came.
    #[serde(default)]
    pub(super) transport: Transport,
    pub(super) level: Level,
    /// The IPv6 /64 that it comes from is the sender's own, if the address is not.
    #[serde(default)]
    pub(super) network: bool,
    /// Digest of the Call-ID.
    #[serde(skip)]
    pub(super) call: u64,
}
