//! How a source is looked up in the lists.

pub mod hash;
pub mod host_rows;
pub mod networks;
pub mod search;
pub mod summary;
