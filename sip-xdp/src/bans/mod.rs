//! From findings to bans: subjects, durations, events.

pub mod duration;
pub(crate) mod engine;
pub mod event;
pub(crate) mod notes;
pub mod offences;
