//! From findings to bans: which networks are banned, for how long, and what is said of it.

pub mod duration;
pub(crate) mod engine;
pub mod event;
pub(crate) mod notes;
pub mod offences;
