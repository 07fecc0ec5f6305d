//! Addresses and prefixes: networks as people write them, and ordered sets of them.

pub mod network;
pub mod prefix_set;
