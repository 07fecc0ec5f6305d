//! Tools that work without a daemon: what is wrong with a host, whom to trust, and what a capture
//! would have led to.

pub mod doctor;
pub mod replay;
pub mod suggest;
