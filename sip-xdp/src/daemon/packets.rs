//! Drop samples for watchers.

use std::fmt::Write as _;

use sip_xdp_common::abi::layout::{HEAD, IN_DRY_RUN, KernelEvent};
use sip_xdp_common::packet::headers::{self, Inspects, Link, PortPair};
use sip_xdp_common::packet::reader::Bytes;
use sip_xdp_common::verdict::Reason;

use super::Daemon;
use super::interfaces::Served;
use crate::api::event_stream::{LinkKind, PacketSample};
use crate::dataplane::counters;
use crate::net::network::Network;

/// Maximum length of a shown start line, in bytes.
const START_LINE: usize = 120;

/// The parsed headers of a frame.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    source: Network,
    port: Option<u16>,
    start_line: Option<String>,
}

impl Daemon {
    /// Publishes a drop sample to watchers.
    pub(super) fn show_packet(&self, event: &KernelEvent) {
        let served = self.served.iter().find(|served| served.slot() == event.slot);
        let data = &event.head[..usize::from(event.head_length).min(HEAD)];
        let link = served.map_or(Link::Ethernet, Served::link);
        let frame = Frame::read(data, link);
        let reason =
            usize::try_from(event.seen).ok().and_then(|number| Reason::ALL.get(number).copied());
        let address = frame.as_ref().map(|frame| frame.source);
        let port = frame.as_ref().and_then(|frame| frame.port);
        self.hub.publish_packet(PacketSample {
            time: counters::now(),
            event: "packet".into(),
            kind: reason.map(|reason| reason.name().into()),
            address,
            port,
            reason: frame.and_then(|frame| frame.start_line),
            tier: None,
            dry_run: event.flags & IN_DRY_RUN != 0,
            interface: served.map(|served| served.name.clone()),
            link: if link == Link::Ip { LinkKind::Ip } else { LinkKind::Ethernet },
            length: event.length,
            data: hex(data),
        });
    }
}

impl Frame {
    fn read(data: &[u8], link: Link) -> Option<Self> {
        let packet = Bytes(data);
        let ip = headers::parse_headers(&packet, link, Inspects { ipv6: true, tags: true })?;
        let source = Network::around(ip.source(&packet)?, 128);
        let port = ip.ports(&packet).map(PortPair::source);
        let payload =
            ip.udp_payload(&packet).and_then(|(start, end)| data.get(start..end.min(data.len())));
        let start_line = payload.map(|payload| {
            let text = payload.trim_ascii_start();
            let line =
                text.split(|byte| matches!(byte, b'\r' | b'\n' | 0)).next().unwrap_or_default();
            String::from_utf8_lossy(&line[..line.len().min(START_LINE)]).into_owned()
        });
        Some(Self { source, port, start_line: start_line.filter(|line| !line.is_empty()) })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string is infallible.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_whose_it_is() {
        let mut frame = vec![0; 12];
        frame.extend([
            8, 0, 0x45, 0, 0, 45, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 7, 198, 51, 100, 1,
        ]);
        frame.extend([0x13, 0xc4, 0x13, 0xc4, 0, 25, 0, 0]);
        frame.extend(b"\r\nOPTIONS sip:x\r\n");
        let read = Frame::read(&frame, Link::Ethernet).unwrap();
        let start_line = Some("OPTIONS sip:x".to_owned());
        assert_eq!(
            read,
            Frame { source: "192.0.2.7".parse().unwrap(), port: Some(5060), start_line }
        );
        for length in 0..frame.len() {
            // Any truncation.
            let _ = Frame::read(&frame[..length], Link::Ethernet);
        }
        assert_eq!(hex(&[0, 171, 255]), "00abff");
    }
}
