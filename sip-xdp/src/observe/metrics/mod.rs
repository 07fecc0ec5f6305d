//! Metrics for Prometheus and a web page, at one address. A separate thread serves them; it reads
//! the pinned maps itself and asks the daemon only for the rest, so that clients never block the
//! daemon.

mod families;
mod history;
mod server;
mod text;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::{mpsc, watch};

use crate::api::answers::MetricsStatus;
use crate::api::control::Call;
use crate::api::event_stream::Hub;
use crate::config::{Listen, MetricsConfig};
use crate::sys::paths::Paths;

pub(crate) use families::render;
pub(crate) use history::History;
pub use history::HistoryPage;

/// The inputs of the server.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    /// Where everything is.
    pub(crate) paths: Paths,
    /// Channel of requests to the daemon.
    pub(crate) calls: mpsc::Sender<Call>,
    /// Recent events.
    pub(crate) hub: Hub,
}

/// State of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    /// Listening address.
    address: Option<SocketAddr>,
    /// Why it does not listen.
    error: Option<String>,
}

/// The server as the daemon sees it. Dropping it ends it.
#[derive(Debug, Default)]
pub struct Metrics {
    inputs: Option<Inputs>,
    listen: Option<Listen>,
    state: Arc<Mutex<State>>,
    /// Dropping it ends the thread.
    stop: Option<watch::Sender<()>>,
}

impl Metrics {
    /// A server that does not listen yet.
    pub fn new(paths: &Paths, calls: &mpsc::Sender<Call>, hub: &Hub) -> Self {
        let inputs = Inputs { paths: paths.clone(), calls: calls.clone(), hub: hub.clone() };
        Self { inputs: Some(inputs), ..Self::default() }
    }

    /// Listens as configured. Failures are in [`Self::warnings`], and retried.
    pub fn configure(&mut self, config: &MetricsConfig) {
        if self.listen == Some(config.listen) {
            return;
        }
        let Some(inputs) = self.inputs.clone() else {
            return;
        };
        self.listen = Some(config.listen);
        // The previous thread keeps its own state.
        self.state = Arc::default();
        self.stop = None;
        let Some(address) = config.listen.0 else {
            return;
        };
        if let Some(warning) = exposed(address) {
            log::warn!("{warning}");
        }
        let (stop, stopped) = watch::channel(());
        let state = Arc::clone(&self.state);
        let run = move || server::run(address, inputs, &state, stopped);
        match thread::Builder::new().name("metrics".to_owned()).spawn(run) {
            Ok(_) => self.stop = Some(stop),
            Err(error) => {
                log::error!("no metrics: {error}");
                self.state.lock().unwrap_or_else(PoisonError::into_inner).error =
                    Some(error.to_string());
            }
        }
    }

    /// Warnings for the operator.
    pub fn warnings(&self) -> Vec<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let error =
            state.error.as_ref().map(|error| format!("no metrics and no web page: {error}"));
        error.into_iter().chain(state.address.and_then(exposed)).collect()
    }

    /// Its state in `status`.
    pub fn status(&self) -> MetricsStatus {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        MetricsStatus {
            listen: state.address.map(|address| address.to_string()),
            error: state.error.clone(),
        }
    }
}

/// Why an address should not be listened on.
fn exposed(address: SocketAddr) -> Option<String> {
    (!address.ip().is_loopback()).then(|| {
        format!(
            "metrics and the web page are offered on {address}, not only on loopback: whoever \
             reaches it reads who is banned \
             and why; let a firewall decide who does"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_nobody_elses_business() {
        for address in ["127.0.0.1:1", "[::1]:1", "127.1.2.3:9"] {
            assert_eq!(exposed(address.parse().unwrap()), None);
        }
        for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:9598"] {
            assert!(exposed(address.parse().unwrap()).unwrap().contains(address));
        }
    }
}
