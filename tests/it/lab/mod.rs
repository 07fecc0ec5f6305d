//! The laboratory itself, without the filter: its parts do what is said of them.

mod calls;
mod generator;
mod tools;
