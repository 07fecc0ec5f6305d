//! Everything that touches kernel objects: programs, links, maps and counters. Nothing here decides about
//! a source.
//!
//! - [`loader`] loads the embedded object, [`attach`] puts it on interfaces, [`pins`] keeps it there.
//! - [`tables`] are the maps that the programs read, in memory that [`mmap`] shares with the kernel.
//! - [`counters`] reads what the programs counted; [`netlink`] asks the kernel about interfaces.

pub mod attach;
pub mod counters;
pub mod loader;
pub mod mmap;
pub mod netlink;
pub mod pins;
pub mod tables;
