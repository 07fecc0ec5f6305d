//! Feeds: lists kept by others, which are fetched, parsed, guarded and saved.
//!
//! Each feed's list is a sorted array of networks of 17 bytes, which is all that the daemon keeps
//! of a million of them. A thread per feed ([`engine`]) fetches its list ([`fetch`]), parses it
//! ([`formats`]), removes protected networks, and refuses implausible changes ([`guards`]). It
//! never writes the tables: the list goes to the daemon's event loop, and after it is in force, to
//! disk ([`saved`]).

mod body;
pub mod coverage;
pub mod engine;
pub mod fetch;
pub mod formats;
pub mod guards;
mod redirects;
pub mod report;
mod saved;
mod sync;
mod thread;

pub use formats::FeedFormat;
