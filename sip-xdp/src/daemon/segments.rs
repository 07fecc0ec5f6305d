//! SIP over TCP: segments that the kernel samples become messages, and these go to the detector.

use sip_xdp_common::abi::layout::{FROM_GOOD, KernelEvent};

use super::Daemon;
use crate::api::answers::TcpStatus;
use crate::bans::engine::STALE;
use crate::detect::Observation;
use crate::sip::sampled;
use crate::sip::stream::Counts;
use crate::sys::clock;

impl Daemon {
    /// What `status` says of SIP over TCP.
    pub(super) fn tcp_status(&self) -> TcpStatus {
        let Counts { connections, messages, tls, websocket, garbage, lost, evicted } =
            self.streams.counts();
        let followed = self.streams.connections();
        TcpStatus { followed, connections, messages, tls, websocket, garbage, lost, evicted }
    }

    /// Takes a sampled segment.
    pub(super) fn follow(&mut self, event: &KernelEvent) {
        if clock::now().saturating_sub(event.time) > STALE {
            return;
        }
        let Some(segment) = sampled::segment(event) else {
            return;
        };
        self.is_urgent |= event.flags & FROM_GOOD == 0;
        let mut streams = std::mem::take(&mut *self.streams);
        streams.take(&segment, &mut |message| {
            if let Some(observation) = Observation::of_tcp(&segment, message) {
                self.ban_engine().observe_message(&observation);
            }
        });
        *self.streams = streams;
    }
}
