//! What the fuzz targets do: each module takes any bytes and panics if something that must hold
//! does not.
//!
//! `cargo xtask fuzz` drives them with libFuzzer, which finds its way by what the bytes reach; the
//! tests here only try some hundred inputs, so that the targets themselves stay correct.

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

/// What takes any bytes.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Target); 5] = [
    ("message", message::run),
    ("stream", stream::run),
    ("egress", egress::run),
    ("ingress", ingress::run),
    ("detector", detector::run),
];
