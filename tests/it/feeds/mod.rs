//! Feeds against servers that do everything that has been seen in the field, and some more. Needs
//! neither root nor a kernel.

#![expect(clippy::unwrap_used, reason = "tests panic rather than return errors")]

mod apis;
mod bodies;
mod harness;
mod kept;
mod odd;
