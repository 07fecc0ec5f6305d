//! The decision order for incoming packets, and the classification of outgoing ones.

pub mod egress;
pub mod ingress;
