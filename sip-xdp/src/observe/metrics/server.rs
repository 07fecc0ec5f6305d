//! The server thread: few connections, each for a limited time, with small requests.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::history::STEP;
use super::{Inputs, State};
use crate::observe::web::WebContext;
use crate::sys::privileges;

/// Maximum number of connections; further ones are closed at once.
const CONNECTIONS: usize = 64;

/// Timeout for the head of a request, and between requests.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// Maximum lifetime of a connection.
const LIFETIME: Duration = Duration::from_secs(120);

/// Maximum length of a request's head, in bytes.
const HEAD_SIZE: usize = 16 * 1024;

/// Interval between attempts to listen.
const RETRY: Duration = Duration::from_secs(5);

/// Serves until the other end of `stopped` is dropped.
pub(super) fn run(
    address: SocketAddr,
    inputs: Inputs,
    state: &Mutex<State>,
    mut stopped: watch::Receiver<()>,
) {
    privileges::keep(privileges::READER);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            log::error!("no metrics: {error}");
            state.lock().unwrap_or_else(PoisonError::into_inner).error = Some(error.to_string());
            return;
        }
    };
    let context = Arc::new(WebContext::new(inputs));
    runtime.block_on(async {
        tokio::select! {
            () = serve(address, &context, state) => {}
            () = observe(&context) => {}
            // Only the drop of the other end matters.
            _ = stopped.changed() => {}
        }
    });
}

/// Records the counters of the last hour.
async fn observe(context: &WebContext) {
    let mut tick = interval(STEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        context.note();
    }
}

async fn serve(address: SocketAddr, context: &Arc<WebContext>, state: &Mutex<State>) {
    let listener = listen(address, state).await;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without a permit the connection is dropped here.
                if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                    let context = Arc::clone(context);
                    tokio::spawn(async move {
                        answer(stream, context).await;
                        drop(place);
                    });
                }
            }
            // Most likely out of descriptors: wait for connections to end.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Listens as soon as possible. The error is reported once.
async fn listen(address: SocketAddr, state: &Mutex<State>) -> TcpListener {
    loop {
        let error = match TcpListener::bind(address).await {
            Ok(listener) => {
                let local = listener.local_addr().unwrap_or(address);
                *state.lock().unwrap_or_else(PoisonError::into_inner) =
                    State { address: Some(local), error: None };
                log::info!("metrics and the web page are at http://{local}/");
                return listener;
            }
            Err(error) => describe(address, &error),
        };
        {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.error.is_none() {
                log::error!("no metrics and no web page: {error}");
            }
            state.error = Some(error);
        }
        sleep(RETRY).await;
    }
}

fn describe(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{address} is in use by another program; set metrics.listen to a free port, or to \"\" \
             for none, and run `sip-xdp \
             reload`"
        ),
        _ => format!(
            "{address} cannot be listened on ({error}); set metrics.listen and run `sip-xdp reload`"
        ),
    }
}

async fn answer(stream: TcpStream, context: Arc<WebContext>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let context = Arc::clone(&context);
        async move {
            // Bodies are not read: clients that send one are disconnected after the response.
            let answer: Response<Full<Bytes>> = context.answer(&request).await;
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(stream), service);
    // Errors of single connections are not ours to report.
    if let Ok(Err(error)) = timeout(LIFETIME, connection).await {
        log::debug!("metrics: {error}");
    }
}
