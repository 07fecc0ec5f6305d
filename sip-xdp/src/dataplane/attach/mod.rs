//! Puts the programs on an interface: [`xdp`] for what arrives, [`tcx`] for what leaves, with a clsact filter
//! where the kernel has no tcx.

pub(crate) mod clsact;
pub mod tcx;
pub mod xdp;
