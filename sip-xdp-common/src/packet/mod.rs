//! Packets: bounds-checked access to their memory, and the header parser.

pub mod checksum;
pub mod headers;
pub mod reader;
