//! Everything that touches kernel objects: programs, links, maps and counters. Nothing here decides
//! about a source.
//!
//! - [`loader`] loads the embedded object, [`attach`] puts it on interfaces, [`pins`] keeps it
//!   there.
//! - [`probe`] finds out what this kernel can do; [`refusal`] says why it did not take a program;
//!   [`rcu`] waits for running programs.
//! - [`tables`] are the maps that the programs read, in memory that [`mmap`] shares with the
//!   kernel.
//! - [`ethtool`] asks and switches drivers, [`virtio`] knows what keeps one of them from running
//!   programs, [`sight`] judges whether a program sees its packets.
//! - [`counters`] reads what the programs counted; [`netlink`] asks the kernel about interfaces.
=======
//! - [`ethtool`] asks and switches drivers, [`virtio`] knows what keeps one of them from running
//!   programs, [`sight`] judges whether a program sees its packets.
//! - [`counters`] reads what the programs counted; [`netlink`] asks the kernel about interfaces.
>>>>>>> theirs

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
pub(crate) mod virtio;
