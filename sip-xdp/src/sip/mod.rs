//! SIP as the detector reads it, as tolerantly as servers do (RFC 3261): heads of messages, and
//! messages in TCP streams.

pub mod message;
pub mod stream;
