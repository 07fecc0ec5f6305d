//! Lists that others keep: what they list, and how they are fetched, read, doubted and kept.
//!
//! For each feed there is a sorted array of networks, 17 bytes apiece, which is all that the daemon
//! keeps of a million of them. A thread for each feed ([`engine`]) fetches its list ([`fetch`]),
//! reads it ([`formats`]), takes out what no list may touch, and refuses what is too strange
//! ([`guards`]). It never writes the tables: the list goes to the daemon's loop, and when that has
//! put it into force, to disk ([`saved`]).

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
