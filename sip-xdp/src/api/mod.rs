//! How commands and watchers reach the daemon: the control socket and the stream of events.

pub mod answers;
pub mod control;
pub mod event_stream;
pub mod recent_events;
