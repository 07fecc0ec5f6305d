//! The compiled program under BPF_PROG_TEST_RUN: needs Linux 5.18 or newer (XDP test runs with
//! jumbo frames), and root. Nothing is attached or pinned; every test has its own maps and sets its
//! own clock.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests panic rather than return errors"
)]

mod cost;
mod differential;
mod egress;
mod feed_hosts;
mod frames;
pub(crate) mod harness;
mod kept;
mod ladder;
mod limits;
mod listed;
mod lists;
mod machine;
mod model;
mod quotas;
mod reputation;
mod samples;
mod segments;
mod storm;
mod table;
mod trace;
mod trial;
