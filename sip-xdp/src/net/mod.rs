//! Addresses and prefixes: networks, and ordered sets of them.

pub mod network;
pub mod prefix_set;
