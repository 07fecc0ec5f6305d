//! sip-xdp stops SIP scanners and password guessers in the network driver.
//!
//! Data flows one way: the NIC hands a packet to the kernel program, whose verdict counts it and, for a source over
//! its limits, sends an event; the detector reads events and decides on bans; bans go through the lists back into the
//! kernel's tables.
//!
//! To have the filter inside a program of one's own, see [`embed`], which is meant to stay as it is; everything else is public for
//! the command line and the tests, and changes as they do.
//!
//! - [`object`] loads the embedded kernel object, [`attach`] and [`egress`] put it on interfaces, [`pins`] keeps it there.
//! - [`lists`] is the only writer of the lists: [`ledger`] remembers who listed what and why;
//!   [`table`], [`front`] and [`guide`] are what the kernel asks, in memory that [`mapped`] shares with it.
//! - [`store`] is what survives a reboot: the lists, and what happened.
//! - [`sources`] are the meters of unknown sources.
//! - [`feeds`] fetches lists that others keep, and doubts them.
//! - [`hosts`] follows host names that are trusted or admitted through DNS.
//! - [`detect`] turns events into bans, [`exempt`] knows who must never be banned.
//! - [`daemon`] ties these together, [`control`] is how commands reach it.
//! - [`report`] reads everything from the pinned maps, with or without a daemon; [`explain`] says what they mean for one
//!   address.
//! - [`replay`] runs a capture through all of this offline, in the time of the capture.
//! - [`doctor`] says what is wrong with a host, and what to do about it; [`suggest`] whom to trust.
//! - [`health`] says whether a filter does its work; [`overview`] is all that a screen shows at once; [`top`] shows it on a terminal, [`metrics`] to Prometheus and to
//!   browsers.
//! - [`plain`] makes text that attackers may have chosen fit for a terminal and a log.
//! - [`tap`] asks the kernel for copies of what it drops; [`watch`] is the stream of events, [`outlets`] tells them to
//!   others, [`transfer`] what one instance hands to another.

pub mod attach;
pub mod clock;
mod clsact;
pub mod config;
pub mod control;
pub mod daemon;
pub mod detect;
pub mod doctor;
pub mod egress;
pub mod embed;
pub mod exempt;
pub mod explain;
pub mod fed;
pub mod feeds;
mod files;
pub mod flows;
pub mod front;
pub mod guide;
pub mod health;
pub mod hosts;
pub mod ledger;
pub mod lists;
pub mod mapped;
pub mod message;
pub mod metrics;
pub mod netlink;
pub mod network;
pub mod object;
pub mod outlets;
pub mod overview;
pub mod paths;
pub mod pins;
pub mod plain;
pub mod prefixes;
mod privileges;
pub mod replay;
pub mod report;
pub mod sources;
pub mod store;
pub mod suggest;
pub mod table;
pub mod tap;
pub mod top;
pub mod transfer;
pub mod watch;
mod web;
