//! Feeds against servers with all kinds of behaviour seen in the field. Needs neither root nor a
//! kernel.

#![expect(clippy::unwrap_used, reason = "tests panic rather than return errors")]

mod apis;
mod bodies;
mod harness;
mod kept;
mod odd;
