//! The order in which a packet is judged, arriving and leaving.

pub mod egress;
pub mod ingress;
