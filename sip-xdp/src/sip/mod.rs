//! SIP as the detector reads it, as tolerantly as servers do (RFC 3261): heads of messages,
//! messages in TCP streams, copies of messages by HEP, and the names of transports.

pub mod hep;
pub mod message;
pub mod sampled;
pub mod stream;
pub mod transport;
