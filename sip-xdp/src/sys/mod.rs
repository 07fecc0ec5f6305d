//! Operating system services: clocks, files, directories and privileges.

pub mod clock;
pub(crate) mod files;
pub mod paths;
pub(crate) mod privileges;
pub(crate) mod schema;
