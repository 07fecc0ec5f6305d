//! Puts the programs on an interface: [`xdp`] for what arrives, [`tcx`] for what leaves, with a
//! clsact filter where the kernel has no tcx. [`extack`] and [`driver_refusal`] say why a driver
//! takes no program, [`offloads`] keeps what attaching switches off, [`trial`] ends a filter that
//! nobody confirms.

pub(crate) mod clsact;
pub(crate) mod driver_refusal;
pub(crate) mod extack;
pub mod offloads;
pub mod tcx;
pub(crate) mod trial;
pub mod xdp;
