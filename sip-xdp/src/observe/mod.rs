//! What people and monitoring see of a filter, with or without its daemon.
//!
//! - [`snapshot`] reads everything that a screen shows at once; [`health`] says whether the filter
//!   does its work; [`explain`] says what the tables mean for one address.
//! - [`top`] shows it on a terminal, `web` to browsers, [`metrics`] to Prometheus.

pub mod explain;
pub mod health;
pub mod metrics;
pub mod snapshot;
pub mod top;
pub(crate) mod web;
