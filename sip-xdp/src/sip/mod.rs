//! SIP as the detector reads it: heads of messages, as tolerantly as servers do (RFC 3261).

pub mod message;
