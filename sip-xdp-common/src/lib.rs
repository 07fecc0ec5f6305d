//! What the kernel programs and user space share: the layout of every map value, the names of maps, programs and
//! globals, the packet and SIP start-line parsers, the meters, and the order in which a packet is judged.
//!
//! Everything here is `no_std` and does no input or output: the same functions that the kernel
//! verifier checks are unit-tested, property-tested and fuzzed on the host. Packets are read only through
//! [`reader::Reader`], tables only through [`ingress::Tables`].

#![cfg_attr(not(test), no_std)]

pub mod egress;
pub mod fed;
pub mod flow;
pub mod front;
pub mod hash;
pub mod ingress;
pub mod layout;
pub mod lists;
pub mod meter;
pub mod names;
pub mod networks;
pub mod packet;
pub mod reader;
pub mod record;
pub mod sip;
pub mod source;
pub mod sources;
pub mod storm;
pub mod verdict;
