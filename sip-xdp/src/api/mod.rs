//! The control socket and the event stream.

pub mod answers;
pub mod control;
pub mod event_stream;
pub mod recent_events;
