//! sip-xdp stops SIP scanners and password guessers in the network driver.
//!
//! Data flows one way: the NIC hands a packet to the kernel program, whose verdict counts it and,
//! for a source over its limits, sends an event; the detector reads events and decides on bans;
//! bans go through the lists back into the kernel's tables.
//!
//! To have the filter inside a program of one's own, see [`embed`], which is meant to stay as it
//! is; everything else is public for the command line and the tests, and changes as they do.
//!
//! Rooms, from the ground up; imports point down.
//!
//! - [`net`], [`sys`], [`text`]: addresses and prefixes; clocks, files and privileges; text of
//!   others, made fit to show.
//! - [`sip`]: the tolerant parser of SIP heads.
//! - [`dataplane`]: programs, links, maps and counters in the kernel.
//! - [`config`]: the file, its values and defaults.
//! - [`lists`]: the only writer of block and trust lists. [`feeds`] and [`dns`] are lists that
//!   others keep.
//! - [`detect`]: from events to findings. [`bans`]: from findings to bans.
//! - [`store`]: what survives a reboot.
//! - [`api`]: commands, answers, events. [`observe`]: what people see. [`integrations`]: who else
//!   is told.
//! - [`daemon`] wires these together; [`tools`] work without it.

pub mod api;
pub mod bans;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod detect;
pub mod dns;
pub mod embed;
pub mod feeds;
pub mod integrations;
pub mod lists;
pub mod net;
pub mod observe;
#[cfg(test)]
#[path = "cli/reference/page.rs"]
mod page;
pub mod sip;
pub mod store;
pub mod sys;
pub mod text;
pub mod tools;
