//! The tests of the compiled programs and of the whole product, in one binary: each of them links
//! everything there is.
//!
//! Most need root and Linux 6.6 or later: `cargo xtask test` runs them, `cargo xtask test NAME`
//! those whose path has NAME in it.

mod e2e;
mod feeds;
mod kernel;
mod lab;
mod manual;
mod measured;
mod object;
