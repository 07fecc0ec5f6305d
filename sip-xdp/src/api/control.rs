//! How commands reach the daemon: one JSON object per line over a socket that only root and the
//! group `sip-xdp` can open, answered by one JSON object per line.

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

/// The group whose members may give commands.
const GROUP: &str = "sip-xdp";

/// The longest request, in bytes.
const MAX_REQUEST: u64 = 64 * 1024;

/// How long a client may take to send its request, and the daemon to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The same for what loads programs for all interfaces: the verifier takes 0.3 s for each, and a
/// multiple of that on processors that are busy or emulated.
const LOADING_TIMEOUT: Duration = Duration::from_secs(60);

/// A command for the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// Who are you, and is all well?
    Status,
    /// List a network.
    Add {
        /// Which list.
        list: ListName,
        /// The network.
        network: Network,
        /// For how many seconds; without it for good.
        ttl: Option<u64>,
        /// Why.
        reason: String,
        /// Although it contains addresses that should stay reachable.
        force: bool,
        /// The address from which the operator is logged in.
        operator: Option<std::net::IpAddr>,
        /// The tool that blocks it, on its own account.
        #[serde(default)]
        by: Option<String>,
    },
    /// Take a network off.
    Delete {
        /// Which list.
        list: ListName,
        /// The network, or one inside it.
        network: Network,
        /// The tool that lets go of what it has blocked.
        #[serde(default)]
        by: Option<String>,
    },
    /// Trust a host name: follow it through DNS.
    TrustHost {
        /// The name.
        name: HostName,
        /// For how many seconds; without it for good.
        ttl: Option<u64>,
        /// Why.
        reason: String,
    },
    /// Trust a host name no longer.
    DistrustHost {
        /// The name.
        name: HostName,
    },
    /// List many networks: all that can be.
    Import {
        /// Which list.
        list: ListName,
        /// The networks.
        networks: Vec<Network>,
        /// For how many seconds; without it for good.
        ttl: Option<u64>,
        /// Why.
        reason: String,
        /// Although some contain addresses that should stay reachable.
        force: bool,
        /// The address from which the operator is logged in.
        operator: Option<std::net::IpAddr>,
    },
    /// Take up a part of what another instance has exported.
    Restore {
        /// That part.
        part: state_dump::Part,
    },
    /// What is known of a source that no table of the kernel's says?
    Explain {
        /// The source.
        address: std::net::IpAddr,
    },
    /// Tell events until the connection ends.
    Watch {
        /// Those that concern this address; without it all.
        address: Option<std::net::IpAddr>,
        /// Samples of what is dropped, too.
        #[serde(default)]
        packets: bool,
    },
    /// What happened lately?
    Recent,
    /// How are the feeds?
    FeedList,
    /// Ask feeds now. The answer says which round of each to wait for.
    FeedSync {
        /// One of them, or all.
        name: Option<String>,
        /// No size is too strange.
        accept: bool,
    },
    /// The filter may go on enforcing.
    Confirm,
    /// Read the configuration again.
    Reload,
    /// Detach, and end if nothing is left.
    Unload {
        /// From these interfaces, or from all.
        interfaces: Vec<String>,
    },
}

impl Request {
    /// How long its answer may take.
    fn patience(&self) -> Duration {
        match self {
            Self::Confirm | Self::Reload => LOADING_TIMEOUT,
            _ => TIMEOUT,
        }
    }

    /// Whether it changes what is to survive a power cut.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Add { .. } | Self::Delete { .. } | Self::Import { .. } | Self::Restore { .. } => {
                true
            }
            // Names have a file of their own, which is written before the answer.
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

/// A list, by name.
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

/// The daemon's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer<T> {
    Ok(T),
    Error(String),
}

/// A request with the way back.
#[derive(Debug)]
pub struct Call {
    /// The request.
    pub request: Request,
    /// Whether root asks, and not only a member of the group.
    pub is_root: bool,
    /// Where the answer goes.
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
    let text = tokio::time::timeout(request.patience(), exchange)
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

/// Reads the daemon's answer.
pub(crate) fn answer<T: DeserializeOwned>(text: &str) -> Result<T> {
    match serde_json::from_str(text)
        .context("the daemon's answer cannot be understood; is it of this version?")?
    {
        Answer::Ok(value) => Ok(value),
        Answer::Error(error) => bail!(error),
    }
}

/// Nobody listens on the socket.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoDaemon(String);

/// Opens the socket. Whoever calls this holds the instance's lock, so that an old socket belongs to
/// nobody.
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
    // Never open to others, not even between two calls.
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

/// Serves one connection: one request and one answer, or events until it ends.
pub async fn serve(stream: UnixStream, calls: mpsc::Sender<Call>, hub: Hub) {
    // As the kernel noted it when the connection was made.
    let is_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    let served = tokio::time::timeout(LOADING_TIMEOUT, async {
        let mut text = String::new();
        let sent = tokio::time::timeout(TIMEOUT, reader.read_line(&mut text)).await;
        sent.map_err(|_| anyhow!("timed out"))??;
        let (answer, watcher) = match serde_json::from_str(&text) {
            // Before it is answered, so that nothing is missed that happens after that.
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
