//! Feeds against servers that do everything that has been seen in the field, and some more. Needs neither root nor a kernel.

mod apis;
mod harness;
mod kept;
mod odd;
