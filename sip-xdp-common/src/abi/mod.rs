//! The interface between the kernel programs and user space: names, and the layout of every map
//! value.

pub mod layout;
pub mod names;
