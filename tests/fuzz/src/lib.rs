//! The fuzz targets: each module takes any bytes and panics if an invariant is violated.
//!
//! `cargo xtask fuzz` runs them under libFuzzer, guided by coverage; the tests here only try some
//! hundred inputs, so that the targets themselves stay correct.

pub mod detector;
pub mod egress;
mod frames;
pub mod ingress;
pub mod message;
mod script;
pub mod seeds;
pub mod site;
pub mod stream;
#[cfg(test)]
mod tests;
mod texts;

/// A fuzz target.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Target); 5] = [
    ("message", message::run),
    ("stream", stream::run),
    ("egress", egress::run),
    ("ingress", ingress::run),
    ("detector", detector::run),
];
