//! The stream of events: what the daemon decides, told to whoever watches. Watching never delays
//! the daemon: who reads too slowly loses events, and is told how many.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::api::control::{self, Request};
use crate::dataplane::counters;
use crate::net::network::Network;

pub use crate::api::recent_events::Latest;
use crate::api::recent_events::Recent;

/// How many events a watcher may be behind before it loses some.
const BACKLOG: usize = 1_024;

/// One event, ready to be sent.
#[derive(Debug, Clone)]
pub struct StreamEvent {
    /// Whom it is about; nobody in particular if it is about the weather, or the registrar.
    pub about: Option<Network>,
    /// Its name.
    pub event: &'static str,
    /// Its kind, of which each event has but a few.
    pub kind: Option<String>,
    /// The JSON object.
    pub line: Arc<str>,
}

/// Where events go to all watchers, and where the latest are kept for those who come later.
#[derive(Debug, Clone)]
pub struct Hub {
    sender: broadcast::Sender<StreamEvent>,
    packets: broadcast::Sender<StreamEvent>,
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
    /// Whether anybody watches.
    #[cfg(test)]
    pub(crate) fn is_watched(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// What happened lately.
    pub fn recent(&self) -> Latest {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).latest()
    }

    /// Tells an event to all who watch.
    pub fn publish(&self, stream_event: StreamEvent) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).note(&stream_event);
        // Nobody may be there to hear it.
        let _ = self.sender.send(stream_event);
    }

    /// Whether anybody wants samples of what is dropped.
    pub fn wants_packets(&self) -> bool {
        self.packets.receiver_count() > 0
    }

    /// Tells a packet to all who want it. There is a channel of its own for these, so that they
    /// never push out a ban.
    pub fn publish_packet(&self, stream_event: StreamEvent) {
        let _ = self.packets.send(stream_event);
    }

    /// Begins to watch what is dropped.
    pub fn subscribe_packets(&self) -> broadcast::Receiver<StreamEvent> {
        self.packets.subscribe()
    }

    /// Begins to watch.
    pub fn subscribe(&self) -> broadcast::Receiver<StreamEvent> {
        self.sender.subscribe()
    }
}

/// Sends events to one watcher until it goes away or the daemon ends: those that concern `address`,
/// or all.
pub async fn serve(
    mut events: broadcast::Receiver<StreamEvent>,
    mut packets: Option<broadcast::Receiver<StreamEvent>>,
    address: Option<IpAddr>,
    mut reader: impl tokio::io::AsyncRead + Unpin,
    mut writer: OwnedWriteHalf,
) -> Result<()> {
    let address = address.map(Network::host);
    let mut byte = [0];
    loop {
        let stream_event = tokio::select! {
            stream_event = events.recv() => stream_event,
            stream_event = next_of(&mut packets) => stream_event,
            // A watcher has nothing more to say: it is gone, or as good as.
            _ = reader.read(&mut byte) => return Ok(()),
        };
        let line = match stream_event {
            Ok(stream_event) if concerns(&stream_event, address.as_ref()) => {
                format!("{}\n", stream_event.line)
            }
            Ok(_) => continue,
            Err(RecvError::Lagged(count)) => format!("{}\n", lost(count)),
            Err(RecvError::Closed) => return Ok(()),
        };
        writer.write_all(line.as_bytes()).await?;
    }
}

/// The next event of a channel; never, if there is none.
async fn next_of(
    channel: &mut Option<broadcast::Receiver<StreamEvent>>,
) -> Result<StreamEvent, RecvError> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether an event concerns an address.
fn concerns(stream_event: &StreamEvent, address: Option<&Network>) -> bool {
    address.is_none_or(|address| stream_event.about.is_some_and(|about| about.contains(address)))
}

/// The event that says that others were lost.
fn lost(count: u64) -> serde_json::Value {
    json!({ "time": counters::now(), "event": "lost", "count": count })
}

/// The stream of a daemon's events, as its watcher sees it.
#[derive(Debug)]
pub struct Stream {
    lines: Lines<BufReader<OwnedReadHalf>>,
    /// Dropping it says that nobody watches any more.
    _writer: OwnedWriteHalf,
}

impl Stream {
    /// Asks the daemon of `socket` for its events.
    /// With `packets` samples of what is dropped come as well.
    pub async fn open(socket: &Path, address: Option<IpAddr>, packets: bool) -> Result<Self> {
        let stream: UnixStream = control::connect(socket).await?;
        let (reader, mut writer) = stream.into_split();
        writer.write_all(&control::line(&Request::Watch { address, packets })?).await?;
        let mut lines = BufReader::new(reader).lines();
        let first = lines.next_line().await.context("the daemon went away")?;
        control::answer(&first.unwrap_or_default())?;
        Ok(Self { lines, _writer: writer })
    }

    /// The next event.
    pub async fn next(&mut self) -> Result<String> {
        match self.lines.next_line().await.context("the daemon went away")? {
            Some(line) => Ok(line),
            None => bail!(
                "the daemon has stopped; the filter goes on, and `sip-xdp run` starts another one"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream_event(about: &str, number: usize) -> StreamEvent {
        let line = format!("{{\"number\":{number}}}").into();
        StreamEvent { about: Some(about.parse().unwrap()), event: "ban", kind: None, line }
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

    async fn next(stream: &mut BufReader<UnixStream>) -> String {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        line.trim_end().to_owned()
    }

    #[tokio::test]
    async fn a_watcher_sees_what_concerns_it() {
        let hub = Hub::default();
        let (mut all, mut one) =
            (watch(&hub, None).await, watch(&hub, Some("192.0.2.7".parse().unwrap())).await);
        for (number, about) in
            ["192.0.2.8", "192.0.2.7", "192.0.2.0/24", "2001:db8::/64"].into_iter().enumerate()
        {
            hub.publish(stream_event(about, number));
        }
        hub.publish(StreamEvent { about: None, event: "storm", kind: None, line: "{}".into() });
        for line in ["{\"number\":0}", "{\"number\":1}", "{\"number\":2}", "{\"number\":3}", "{}"] {
            assert_eq!(next(&mut all).await, line);
        }
        assert_eq!(next(&mut one).await, "{\"number\":1}");
        assert_eq!(next(&mut one).await, "{\"number\":2}");
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told_what_it_lost() {
        let hub = Hub::default();
        let mut slow = watch(&hub, None).await;
        (0..3 * BACKLOG).for_each(|number| hub.publish(stream_event("192.0.2.7", number)));
        let lost: serde_json::Value = serde_json::from_str(&next(&mut slow).await).unwrap();
        assert_eq!((&lost["event"], &lost["count"]), (&"lost".into(), &(2 * BACKLOG).into()));
        assert_eq!(next(&mut slow).await, format!("{{\"number\":{}}}", 2 * BACKLOG));
    }

    #[tokio::test]
    async fn who_goes_is_forgotten() {
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
