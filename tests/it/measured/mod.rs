//! What measures time or load: `cargo xtask test` runs these one after the other, with nothing
//! beside them.

mod load;
mod million;
mod tcp;
