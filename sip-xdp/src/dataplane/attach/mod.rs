//! Attachment of the programs to an interface: [`xdp`] for ingress, [`tcx`] for egress, with a
//! clsact filter on kernels without tcx. [`extack`] and [`driver_refusal`] explain refusals,
//! [`offloads`] restores what attaching switches off, [`trial`] ends an unconfirmed trial.

pub(crate) mod clsact;
pub(crate) mod driver_refusal;
pub(crate) mod extack;
pub mod offloads;
pub mod tcx;
pub(crate) mod trial;
pub mod xdp;
