//! The event stream. Watching never delays the daemon: a slow watcher loses events, and is sent
//! their number.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::api::control::{self, Request};
use crate::bans::event::Event;
use crate::dataplane::counters;
use crate::dataplane::tables::ledger::Tier;
use crate::net::network::Network;

pub use crate::api::recent_events::Latest;
use crate::api::recent_events::Recent;

/// Events that a watcher may lag behind before it loses some.
const BACKLOG: usize = 1_024;

/// A drop sample: a packet that was dropped, or would be if the filter enforced.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PacketSample {
    /// Time of reading.
    pub time: Timestamp,
    /// `packet`.
    pub event: Cow<'static, str>,
    /// The drop reason.
    pub kind: Option<Cow<'static, str>>,
    /// Its source address.
    pub address: Option<Network>,
    /// Source port, in host order.
    pub port: Option<u16>,
    /// Start line of its SIP message.
    pub reason: Option<String>,
    /// Always null: packets have no evidence tier.
    pub tier: Option<Tier>,
    /// Whether it passed in a dry run.
    pub dry_run: bool,
    /// The receiving interface.
    pub interface: Option<String>,
    /// Its link type.
    pub link: LinkKind,
    /// Length of the whole packet in bytes.
    pub length: u16,
    /// Its first bytes in hexadecimal.
    pub data: String,
}

impl PacketSample {
    /// Its first bytes; `None` if what is to be hexadecimal is not.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let digits = self.data.as_bytes().chunks(2);
        digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect()
    }

    /// As an event without the bytes.
    pub fn as_event(&self) -> Event {
        Event {
            time: self.time,
            kind: self.kind.as_ref().map(ToString::to_string),
            address: self.address,
            port: self.port,
            reason: self.reason.clone(),
            dry_run: self.dry_run,
            interface: self.interface.clone(),
            ..Event::new("packet")
        }
    }
}

/// The link type of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// Frames with an Ethernet header.
    Ethernet,
    /// With the IP header first.
    Ip,
}

/// Events lost because a watcher read too slowly.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Lost {
    /// Time of detection.
    pub time: Timestamp,
    /// `lost`.
    pub event: Cow<'static, str>,
    /// Number of lost events.
    pub count: u64,
}

/// A line of the stream.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// A dropped packet.
    Packet(Arc<PacketSample>),
    /// A gap.
    Lost(Lost),
    /// A decision.
    Event(Arc<Event>),
}

/// Channel of events to all watchers, with the recent ones for later readers.
#[derive(Debug, Clone)]
pub struct Hub {
    sender: broadcast::Sender<Arc<Event>>,
    packets: broadcast::Sender<Arc<PacketSample>>,
    recent: Arc<Mutex<Recent>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(BACKLOG),
            packets: broadcast::Sender::new(BACKLOG),
            recent: Arc::default(),
        }
    }
}

impl Hub {
    /// Whether there is a watcher.
    #[cfg(test)]
    pub(crate) fn is_watched(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Recent events.
    pub fn recent(&self) -> Latest {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).latest()
    }

    /// Publishes an event to all watchers.
    pub fn publish(&self, event: Event) {
        let event = Arc::new(event);
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).note(&event);
        // An error means that there is no watcher.
        let _ = self.sender.send(event);
    }

    /// Whether a watcher wants drop samples.
    pub fn wants_packets(&self) -> bool {
        self.packets.receiver_count() > 0
    }

    /// Publishes a drop sample. These have their own channel, so that they never displace a ban.
    pub fn publish_packet(&self, sample: PacketSample) {
        let _ = self.packets.send(Arc::new(sample));
    }

    /// Subscribes to drop samples.
    pub fn subscribe_packets(&self) -> broadcast::Receiver<Arc<PacketSample>> {
        self.packets.subscribe()
    }

    /// Subscribes to events.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }
}

/// Streams events to one watcher until it disconnects or the daemon ends: those about `address`, or
/// all.
pub async fn serve(
    mut events: broadcast::Receiver<Arc<Event>>,
    mut packets: Option<broadcast::Receiver<Arc<PacketSample>>>,
    address: Option<IpAddr>,
    mut reader: impl tokio::io::AsyncRead + Unpin,
    mut writer: OwnedWriteHalf,
) -> Result<()> {
    let address = address.map(Network::host);
    let mut byte = [0];
    loop {
        let line = tokio::select! {
            event = events.recv() => event.map(Line::Event),
            packet = next_of(&mut packets) => packet.map(Line::Packet),
            // Watchers send nothing: input or an end means that it has disconnected.
            _ = reader.read(&mut byte) => return Ok(()),
        };
        let line = match line {
            Ok(line) if line.concerns(address.as_ref()) => line,
            Ok(_) => continue,
            Err(RecvError::Lagged(count)) => {
                Line::Lost(Lost { time: counters::now(), event: "lost".into(), count })
            }
            Err(RecvError::Closed) => return Ok(()),
        };
        writer.write_all(&control::line(&line)?).await?;
    }
}

/// The next message of a channel; pending forever without one.
async fn next_of<T: Clone>(channel: &mut Option<broadcast::Receiver<T>>) -> Result<T, RecvError> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

impl Line {
    /// Whether the line is about an address; always true without an address.
    fn concerns(&self, address: Option<&Network>) -> bool {
        let about = match self {
            Self::Packet(packet) => packet.address,
            Self::Event(event) => event.address,
            Self::Lost(_) => return true,
        };
        address.is_none_or(|address| about.is_some_and(|about| about.contains(address)))
    }
}

/// A client's view of the event stream.
#[derive(Debug)]
pub struct Stream {
    lines: Lines<BufReader<OwnedReadHalf>>,
    /// Dropping it closes the connection.
    _writer: OwnedWriteHalf,
}

impl Stream {
    /// Requests the events of the daemon of `socket`; with `packets` also drop samples.
    pub async fn open(socket: &Path, address: Option<IpAddr>, packets: bool) -> Result<Self> {
        let stream: UnixStream = control::connect(socket).await?;
        let (reader, mut writer) = stream.into_split();
        writer.write_all(&control::line(&Request::Watch { address, packets })?).await?;
        let mut lines = BufReader::new(reader).lines();
        let first = lines.next_line().await.context("the daemon went away")?;
        control::answer::<Option<()>>(&first.unwrap_or_default())?;
        Ok(Self { lines, _writer: writer })
    }

    /// The next line, as JSON text and parsed.
    pub async fn next(&mut self) -> Result<(String, Line)> {
        match self.lines.next_line().await.context("the daemon went away")? {
            Some(line) => {
                let read =
                    serde_json::from_str(&line).context("the daemon says what is no event")?;
                Ok((line, read))
            }
            None => bail!(
                "the daemon has stopped; the filter goes on, and `sip-xdp run` starts another one"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(about: &str, number: usize) -> Event {
        Event::new("ban").about(about.parse().unwrap()).kind(number.to_string())
    }

    async fn watch(hub: &Hub, address: Option<IpAddr>) -> BufReader<UnixStream> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = theirs.into_split();
        tokio::spawn(serve(
            hub.subscribe(),
            Some(hub.subscribe_packets()),
            address,
            reader,
            writer,
        ));
        BufReader::new(ours)
    }

    async fn next(stream: &mut BufReader<UnixStream>) -> Line {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The number of the next ban.
    async fn next_ban(stream: &mut BufReader<UnixStream>) -> String {
        match next(stream).await {
            Line::Event(event) => event.kind.clone().unwrap_or_else(|| event.event.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_watcher_sees_what_concerns_it() {
        let hub = Hub::default();
        let (mut all, mut one) =
            (watch(&hub, None).await, watch(&hub, Some("192.0.2.7".parse().unwrap())).await);
        for (number, about) in
            ["192.0.2.8", "192.0.2.7", "192.0.2.0/24", "2001:db8::/64"].into_iter().enumerate()
        {
            hub.publish(ban(about, number));
        }
        hub.publish(Event::new("storm"));
        for expected in ["0", "1", "2", "3", "storm"] {
            assert_eq!(next_ban(&mut all).await, expected);
        }
        assert_eq!((next_ban(&mut one).await, next_ban(&mut one).await), ("1".into(), "2".into()));
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told_what_it_lost() {
        let hub = Hub::default();
        let mut slow = watch(&hub, None).await;
        (0..3 * BACKLOG).for_each(|number| hub.publish(ban("192.0.2.7", number)));
        let Line::Lost(lost) = next(&mut slow).await else { panic!("nothing was lost") };
        assert_eq!((&*lost.event, lost.count), ("lost", 2 * BACKLOG as u64));
        assert_eq!(next_ban(&mut slow).await, (2 * BACKLOG).to_string());
    }

    #[tokio::test]
    async fn a_disconnected_watcher_is_dropped() {
        let hub = Hub::default();
        let watcher = watch(&hub, None).await;
        assert!(hub.is_watched());
        drop(watcher);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!hub.is_watched());
    }
}
