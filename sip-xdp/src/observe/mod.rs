//! Views of a filter for people and monitoring, with or without its daemon.
//!
//! - [`snapshot`] reads everything that a screen shows; [`health`] judges whether the filter works;
//!   [`explain`] interprets the tables for one address.
//! - [`top`] shows it on a terminal, `web` to browsers, [`metrics`] to Prometheus.

pub mod explain;
pub mod health;
pub mod metrics;
pub mod report;
pub mod snapshot;
pub mod top;
pub(crate) mod web;
