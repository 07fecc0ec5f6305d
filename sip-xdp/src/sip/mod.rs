//! SIP as the detector reads it, as tolerantly as servers do (RFC 3261): heads of messages,
//! messages in TCP streams, and the names of transports.

pub mod message;
pub mod stream;
pub mod transport;
