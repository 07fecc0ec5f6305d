//! Tools that work without a daemon: diagnosis, proposals of trust, and replay of captures.

pub mod doctor;
pub mod replay;
pub mod suggest;
