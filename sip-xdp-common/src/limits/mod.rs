//! Rate limits: the token bucket, meters of unknown sources, storms, and the reserve of known
//! flows.

pub mod flow;
pub mod gcra;
pub mod meters;
pub mod over_limit;
pub mod storm;
