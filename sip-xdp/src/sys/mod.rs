//! What the operating system gives: clocks, files, directories and privileges.

pub mod clock;
pub(crate) mod files;
pub mod paths;
pub(crate) mod privileges;
