//! Code that the kernel programs and user space share: map layouts, names of maps, programs and
//! globals, the packet and SIP start-line parsers, meters, and the decision order for packets.
//!
//! Everything here is `no_std` without input or output: the functions that the kernel verifier
//! checks are unit-tested, property-tested and fuzzed on the host. Packets are read only through
//! [`packet::reader::Reader`], tables only through [`pipeline::ingress::Tables`].

#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod ip_key;
pub mod limits;
pub mod lookup;
pub mod packet;
pub mod pipeline;
pub mod sip;
pub mod verdict;
