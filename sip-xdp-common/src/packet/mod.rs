//! Packets: the one way to read their memory, and the parser of their headers.

pub mod checksum;
pub mod headers;
pub mod reader;
