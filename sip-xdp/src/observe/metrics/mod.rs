//! Metrics for Prometheus and a web page, at one address. They are served by a thread of their own,
//! which reads the pinned maps itself and asks the daemon only for what is nowhere else: whatever
//! clients do, the daemon does not wait for them.

mod families;
mod history;
mod server;
mod text;

use std::net::SocketAddr;
use std::path::PathBuf;
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

/// What is needed to answer.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    /// Where everything is pinned.
    pub(crate) pin_dir: PathBuf,
    /// How the daemon is asked.
    pub(crate) calls: mpsc::Sender<Call>,
    /// What happened lately.
    pub(crate) hub: Hub,
}

/// How the server is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    /// Where it listens.
    address: Option<SocketAddr>,
    /// Why it does not.
    error: Option<String>,
}

/// The server of metrics, as the daemon sees it. Dropping it ends it.
#[derive(Debug, Default)]
pub struct Metrics {
    inputs: Option<Inputs>,
    listen: Option<Listen>,
    state: Arc<Mutex<State>>,
    /// Dropping it ends the thread.
    stop: Option<watch::Sender<()>>,
}

impl Metrics {
    /// Not listening yet.
    pub fn new(paths: &Paths, calls: &mpsc::Sender<Call>, hub: &Hub) -> Self {
        let inputs =
            Inputs { pin_dir: paths.pin_dir.clone(), calls: calls.clone(), hub: hub.clone() };
        Self { inputs: Some(inputs), ..Self::default() }
    }

    /// Listens where the configuration says. What fails is said in [`Self::warnings`], and tried
    /// again.
    pub fn configure(&mut self, config: &MetricsConfig) {
        if self.listen == Some(config.listen) {
            return;
        }
        let Some(inputs) = self.inputs.clone() else {
            return;
        };
        self.listen = Some(config.listen);
        // The last thread keeps the state that it has.
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

    /// What an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let error =
            state.error.as_ref().map(|error| format!("no metrics and no web page: {error}"));
        error.into_iter().chain(state.address.and_then(exposed)).collect()
    }

    /// What `status` shows.
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
