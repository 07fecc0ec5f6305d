//! What the kernel programs and user space agree on: names, and the layout of every map value.

pub mod layout;
pub mod names;
