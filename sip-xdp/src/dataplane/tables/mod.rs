//! The maps as user space writes and reads them. Their layouts are in `sip_xdp_common`.
//!
//! - [`ledger`]: all entries with owner, expiry and reason. [`networks`], [`summary`],
//!   [`host_rows`] and [`header`] are derived from it and from the feeds, and are what the kernel
//!   looks up.
//! - [`flows`]: single ports of an address; [`meters`]: the limits of unknown sources.
//! - [`drop_samples`]: the budget for copies of dropped packets.

pub mod drop_samples;
pub mod feed_lists;
pub mod flows;
pub mod header;
pub mod host_rows;
pub mod ladders;
pub mod ledger;
pub mod meters;
pub mod networks;
pub mod summary;
