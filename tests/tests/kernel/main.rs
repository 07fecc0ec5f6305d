//! The compiled program under BPF_PROG_TEST_RUN: Linux 5.18 or newer (XDP test runs with jumbo frames), and root. Nothing
//! is attached and nothing is pinned; every test has maps of its own and sets its own clock.

mod cost;
mod differential;
mod egress;
mod frames;
mod harness;
mod lists;
mod limits;
mod table;
