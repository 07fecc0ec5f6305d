//! The control socket: one JSON object per line as request, one per line as response. Only root and
//! members of the group `sip-xdp` can open it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, chown};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::api::answers::Reply;
use crate::api::event_stream::{self, Hub};
use crate::config::HostName;
use crate::net::network::Network;
use crate::store::state_dump;

/// Group whose members may send commands.
const GROUP: &str = "sip-xdp";

/// Maximum length of a request, in bytes.
const MAX_REQUEST: u64 = 64 * 1024;

/// Timeout of a request, and of its response.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout of requests that load programs for all interfaces: the verifier takes 0.3 s for each,
/// and a multiple of that on busy or emulated processors.
const LOADING_TIMEOUT: Duration = Duration::from_secs(60);

/// A command for the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// Show the daemon's state.
    Status,
    /// Add an entry.
    Add {
        /// Name of the list.
        list: ListName,
        /// The network.
        network: Network,
        /// Lifetime in seconds; permanent if absent.
        ttl: Option<u64>,
        /// Reason.
        reason: String,
        /// Even if it contains addresses that must stay reachable.
        force: bool,
        /// The operator's own address, by the login session.
        operator: Option<std::net::IpAddr>,
        /// The tool that owns the entry.
        #[serde(default)]
        by: Option<String>,
    },
    /// Delete entries.
    Delete {
        /// Name of the list.
        list: ListName,
        /// The network, or one inside it.
        network: Network,
        /// The tool whose entry it is.
        #[serde(default)]
        by: Option<String>,
    },
    /// Trust a host name, followed through DNS.
    TrustHost {
        /// The name.
        name: HostName,
        /// Lifetime in seconds; permanent if absent.
        ttl: Option<u64>,
        /// Reason.
        reason: String,
    },
    /// End the trust in a host name.
    DistrustHost {
        /// The name.
        name: HostName,
    },
    /// Add many networks, as far as possible.
    Import {
        /// Name of the list.
        list: ListName,
        /// The networks.
        networks: Vec<Network>,
        /// Lifetime in seconds; permanent if absent.
        ttl: Option<u64>,
        /// Reason.
        reason: String,
        /// Even if some contain addresses that must stay reachable.
        force: bool,
        /// The operator's own address, by the login session.
        operator: Option<std::net::IpAddr>,
    },
    /// Import a part of another instance's export.
    Restore {
        /// The part.
        part: state_dump::Part,
    },
    /// Show the daemon's state of a source: what is not in the kernel's tables.
    Explain {
        /// The source.
        address: std::net::IpAddr,
    },
    /// Stream events until the connection ends.
    Watch {
        /// Only events about this address.
        address: Option<std::net::IpAddr>,
        /// Include drop samples.
        #[serde(default)]
        packets: bool,
    },
    /// Show recent events.
    Recent,
    /// Show the state of the feeds.
    FeedList,
    /// Fetch feeds now. The response has the round of each feed to wait for.
    FeedSync {
        /// One feed; all if absent.
        name: Option<String>,
        /// Skip the size guards.
        accept: bool,
    },
    /// End a trial: keep enforcing.
    Confirm,
    /// Reload the configuration.
    Reload,
    /// Detach, and exit if no interface is left.
    Unload {
        /// These interfaces; all if empty.
        interfaces: Vec<String>,
    },
}

impl Request {
    /// Timeout of the response.
    fn timeout(&self) -> Duration {
        match self {
            Self::Confirm | Self::Reload => LOADING_TIMEOUT,
            _ => TIMEOUT,
        }
    }

    /// Whether its effect must survive a power cut.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Add { .. } | Self::Delete { .. } | Self::Import { .. } | Self::Restore { .. } => {
                true
            }
            // Host names have a file of their own, which is written before the response.
            Self::TrustHost { .. } | Self::DistrustHost { .. } => false,
            Self::Status
            | Self::Explain { .. }
            | Self::Watch { .. }
            | Self::Recent
            | Self::FeedList
            | Self::FeedSync { .. } => false,
            Self::Confirm | Self::Reload | Self::Unload { .. } => false,
        }
    }
}

/// A list by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListName {
    /// The block list.
    Block,
    /// The trust list.
    Trust,
}

impl ListName {
    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Trust => "trust",
        }
    }
}

/// The daemon's response.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer<T> {
    Ok(T),
    Error(String),
}

/// A request with its response channel.
#[derive(Debug)]
pub struct Call {
    /// The request.
    pub request: Request,
    /// Whether the client is root, not only a member of the group.
    pub is_root: bool,
    /// Channel of the response.
    pub answer: oneshot::Sender<Result<Reply>>,
}

/// Sends a request to the daemon of `socket` and returns its answer, which is of the type that
/// [`Reply`] has for this request.
pub async fn call<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<T> {
    let stream = connect(socket).await?;
    let exchange = async {
        let (reader, mut writer) = stream.into_split();
        writer.write_all(&line(request)?).await?;
        let mut text = String::new();
        BufReader::new(reader).read_line(&mut text).await?;
        anyhow::Ok(text)
    };
    let text = tokio::time::timeout(request.timeout(), exchange)
        .await
        .map_err(|_| anyhow!("the daemon does not answer; see its log"))?
        .context("the daemon went away")?;
    answer(&text)
}

/// Connects to the daemon of `socket`.
pub(crate) async fn connect(socket: &Path) -> Result<UnixStream> {
    UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            anyhow!(
                "{} may not be opened; run it as root or as a member of the group {GROUP}",
                socket.display()
            )
        }
        _ => anyhow!(NoDaemon(format!(
            "no daemon answers at {} ({error}); start it with `sip-xdp run`",
            socket.display()
        ))),
    })
}

/// Parses the daemon's response.
pub(crate) fn answer<T: DeserializeOwned>(text: &str) -> Result<T> {
    match serde_json::from_str(text)
        .context("the daemon's answer cannot be understood; is it of this version?")?
    {
        Answer::Ok(value) => Ok(value),
        Answer::Error(error) => bail!(error),
    }
}

/// No daemon listens on the socket.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoDaemon(String);

/// Opens the socket. The caller holds the instance's lock, so that an existing socket is stale.
pub fn listen(socket: &Path) -> Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("{} cannot be made", directory.display()))?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("{} cannot be replaced", socket.display()));
        }
        _ => {}
    }
    // Never accessible to others, not even between two calls.
    let before = umask(Mode::from_bits_truncate(0o117));
    let listener = UnixListener::bind(socket);
    umask(before);
    let listener = listener.with_context(|| format!("{} cannot be opened", socket.display()))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o660))?;
    if let Ok(Some(group)) = Group::from_name(GROUP)
        && let Err(error) = chown(socket, None, Some(Gid::from_raw(group.gid.as_raw())))
    {
        log::warn!(
            "{} cannot be given to the group {GROUP} ({error}); only root can use it",
            socket.display()
        );
    }
    Ok(listener)
}

/// Serves one connection: one request and one response, or a stream of events.
pub async fn serve(stream: UnixStream, calls: mpsc::Sender<Call>, hub: Hub) {
    // Credentials as of the connection.
    let is_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    let served = tokio::time::timeout(LOADING_TIMEOUT, async {
        let mut text = String::new();
        let sent = tokio::time::timeout(TIMEOUT, reader.read_line(&mut text)).await;
        sent.map_err(|_| anyhow!("timed out"))??;
        let (answer, watcher) = match serde_json::from_str(&text) {
            // Subscribed before the response, so that later events are not missed.
            Ok(Request::Watch { address, packets }) => (
                Ok(None),
                Some((hub.subscribe(), packets.then(|| hub.subscribe_packets()), address)),
            ),
            Ok(Request::Recent) => (Ok(Some(Reply::Recent(Box::new(hub.recent())))), None),
            Ok(request) => (ask(request, is_root, &calls).await.map(Some), None),
            Err(_) if text.len() as u64 >= MAX_REQUEST => (
                Err(anyhow!("the request is longer than {MAX_REQUEST} bytes; send it in parts")),
                None,
            ),
            Err(error) => (Err(anyhow!("the request cannot be understood: {error}")), None),
        };
        let answer = match answer {
            Ok(reply) => Answer::Ok(reply),
            Err(error) => Answer::Error(format!("{error:#}")),
        };
        writer.write_all(&line(&answer)?).await?;
        anyhow::Ok(watcher)
    });
    let watched = match served.await {
        Ok(Ok(Some((events, packets, address)))) => {
            event_stream::serve(events, packets, address, reader, writer).await
        }
        Ok(Ok(None)) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(anyhow!("timed out")),
    };
    if let Err(error) = watched {
        log::debug!("control connection: {error:#}");
    }
}

async fn ask(request: Request, is_root: bool, calls: &mpsc::Sender<Call>) -> Result<Reply> {
    let (answer, answered) = oneshot::channel();
    calls
        .send(Call { request, is_root, answer })
        .await
        .map_err(|_| anyhow!("the daemon is stopping"))?;
    answered.await.map_err(|_| anyhow!("the daemon is stopping"))?
}

/// A value as one line.
pub(crate) fn line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    Ok(text)
}
