//! Evidence levels. Their table is in EVIDENCE, in ARCHITECTURE.md.

use serde::{Deserialize, Serialize};

use crate::dataplane::tables::ledger::Tier;
use crate::sip::transport::Transport;

/// What is proven about the sender of a packet. Each level is weighed separately: forgeable
/// evidence never adds to proven evidence.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub(super) enum Level {
    /// Level 0: anybody could have sent it.
    #[default]
    Seen,
    /// Level 1: the address is the sender's own, which echoed a nonce or a To-tag that was sent
    /// only there.
    Routable,
}

impl Level {
    /// The tier of a ban on such evidence.
    pub(super) const fn tier(self) -> Tier {
        match self {
            Self::Seen => Tier::Unproven,
            Self::Routable => Tier::Proven,
        }
    }
}

/// Growth of bans when a source offends again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// Constant.
    None,
    /// Doubling up to an hour, and not counted as an offence: a misconfigured phone.
    Mild {
        /// All of it so many times as long: several such phones share what one may try.
        times: u32,
    },
    /// Doubling up to the configured maximum.
    Full,
}

/// A try with rejected credentials.
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
    /// Whether its IPv6 /64 is proven, though its address is not.
    #[serde(default)]
    pub(super) network: bool,
    /// Digest of the Call-ID.
    #[serde(skip)]
    pub(super) call: u64,
}
