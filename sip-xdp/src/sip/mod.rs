//! SIP parsing for the detector: message heads, as tolerantly as servers parse them (RFC 3261).

pub mod message;
