//! From findings to bans: what is calculated, by itself.

pub mod duration;
pub(crate) mod notes;
