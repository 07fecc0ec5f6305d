//! Kernel objects: programs, links, maps and counters. Nothing here decides about a source.
//!
//! - [`loader`] loads the embedded object, [`attach`] attaches it to interfaces, [`pins`] keeps it
//!   there.
//! - [`probe`] detects kernel features; [`refusal`] explains why a program was refused; [`rcu`]
//!   waits for running programs.
//! - [`tables`] are the maps that the programs read, in memory that [`mmap`] shares with the
//!   kernel.
//! - [`ethtool`] queries and configures drivers, [`virtio`] detects devices that prevent native
//!   mode, [`sight`] detects programs that see no packets.
//! - [`counters`] reads the programs' counters; [`netlink`] queries interfaces.

pub mod attach;
mod bpf;
pub mod counters;
pub(crate) mod ethtool;
pub mod loader;
pub mod mmap;
pub mod netlink;
pub mod pins;
pub mod probe;
pub mod rcu;
pub mod refusal;
pub(crate) mod sight;
pub mod tables;
pub(crate) mod tcp_sockets;
pub(crate) mod virtio;
