//! sip-xdp stops SIP scanners and password guessers in the network driver.
//!
//! Data flows one way: the NIC hands a packet to the kernel program, which counts its verdict and,
//! for a source over its limits, sends an event; the detector turns events into findings, and the
//! ban engine turns findings into bans; bans go through the lists back into the kernel's tables.
//!
//! The stable interface for use as a library is [`embed`]; everything else is public for the
//! command line and the tests, and changes with them.
//!
//! Modules, from the ground up; imports point down.
//!
//! - [`net`], [`sys`], [`text`]: addresses and prefixes; clocks, files and privileges; sanitised
//!   text.
//! - [`sip`]: the tolerant parser of SIP message heads.
//! - [`dataplane`]: programs, links, maps and counters in the kernel.
//! - [`config`]: the file, its values and defaults.
//! - [`lists`]: the only writer of block and trust lists. [`feeds`] and [`dns`] supply lists kept
//!   by others.
//! - [`detect`]: from events to findings. [`bans`]: from findings to bans.
//! - [`store`]: state that survives a reboot.
//! - [`api`]: commands, responses, events. [`observe`]: status, metrics and screens.
//!   [`integrations`]: notifications and CrowdSec.
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
