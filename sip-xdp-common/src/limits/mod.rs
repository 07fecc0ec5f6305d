//! Rate limits: the token bucket, meters of unknown sources, storms, the reserve of known flows,
//! and the ladder of those that offended.

pub mod flow;
pub mod gcra;
pub mod ladder;
pub mod meters;
pub mod over_limit;
pub mod storm;
