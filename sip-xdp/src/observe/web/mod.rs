//! The web server: page, data and metrics. Read-only.

use std::net::IpAddr;
use std::sync::{Arc, Mutex as Plain, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::http::response::Builder;
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{Mutex, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::api::answers::{DaemonStatus, Reply};
use crate::api::control::{Call, Request as Command};
use crate::config::Config;
use crate::dataplane::counters;
use crate::dataplane::netlink::Netlink;
use crate::dataplane::pins::Pins;
use crate::observe::metrics::{History, Inputs, render};
use crate::observe::report::{self, Report};
use crate::observe::snapshot::{FromDaemon, Overview};
use crate::sys::paths::Paths;

const PAGE: &str = include_str!("index.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("app.js");

/// Only this server's own files, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Time for which a reading is shared by all clients, so that many cost no more than one.
const FRESH: Duration = Duration::from_millis(900);

/// The same for a report, which reads weeks of bans from the disk.
const FRESH_REPORT: Duration = Duration::from_secs(20);

/// The spans that are reported of, in days. The first is that of a query that says nothing else.
const REPORT_DAYS: [u64; 4] = [7, 1, 30, 90];

/// Timeout of the daemon's response.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A report, and when it was made.
type CachedReport = (Instant, Arc<Report>);

/// State of the web server.
pub(crate) struct WebContext {
    pins: Pins,
    inputs: Inputs,
    cached: Mutex<Option<(Instant, Arc<Overview>)>>,
    reports: Mutex<[Option<CachedReport>; REPORT_DAYS.len()]>,
    history: Plain<History>,
}

/// The resource of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Metrics,
    File(&'static str, &'static str),
    Overview,
    History,
    Report,
}

impl Resource {
    fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/" => Self::File("text/html; charset=utf-8", PAGE),
            "/style.css" => Self::File("text/css; charset=utf-8", STYLE),
            "/app.js" => Self::File("text/javascript; charset=utf-8", SCRIPT),
            "/metrics" => Self::Metrics,
            "/api/overview" => Self::Overview,
            "/api/history" => Self::History,
            "/api/report" => Self::Report,
            _ => return None,
        })
    }
}

impl WebContext {
    /// For one filter.
    pub(crate) fn new(inputs: Inputs) -> Self {
        let pins = Pins::new(&inputs.paths.pin_dir);
        let (cached, reports) = (Mutex::default(), Mutex::default());
        Self { pins, inputs, cached, reports, history: Plain::default() }
    }

    /// Adds a point to the history.
    pub(crate) fn note(&self) {
        match counters::packets(&self.pins) {
            Ok(interfaces) => {
                self.history.lock().unwrap_or_else(PoisonError::into_inner).note(&interfaces)
            }
            Err(error) => log::debug!("no counters for the history: {error:#}"),
        }
    }

    /// Answers one request.
    pub(crate) async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
            return with(answer, header::ALLOW, "GET, HEAD");
        }
        let Some(resource) = Resource::at(request.uri().path()) else {
            return text(StatusCode::NOT_FOUND, "there is / and /metrics");
        };
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        // Protection against DNS rebinding: a foreign page whose name resolves to this server could
        // read the data.
        if resource != Resource::Metrics && !host.is_some_and(is_no_name) {
            return text(
                StatusCode::MISDIRECTED_REQUEST,
                "use the address, or localhost, not a name",
            );
        }
        let answer = match resource {
            Resource::File(kind, content) => Ok(full(StatusCode::OK, kind, content)),
            Resource::Metrics => self.overview().await.map(|overview| {
                full(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", render(&overview))
            }),
            Resource::Overview => self.overview().await.and_then(|overview| json(&*overview)),
            Resource::Report => match report_span(request.uri().query()) {
                Some(which) => self.report(which).await.and_then(|report| json(&*report)),
                None => Ok(text(StatusCode::NOT_FOUND, "there is since=1d, 7d, 30d and 90d")),
            },
            Resource::History => {
                json(&self.history.lock().unwrap_or_else(PoisonError::into_inner).page())
            }
        };
        answer.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")))
    }

    async fn overview(&self) -> Result<Arc<Overview>> {
        // Held during the reading, so that concurrent requests share it.
        let mut cached = self.cached.lock().await;
        if let Some((at, overview)) = &*cached
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(overview));
        }
        let status = timeout(TIMEOUT, self.status()).await;
        let daemon = FromDaemon {
            // The daemon is this process; if it is too busy to respond, its data are missing once.
            status: status.ok().and_then(Result::ok),
            trouble: None,
            latest: self.inputs.hub.recent(),
        };
        let present = Netlink::connect()?.interfaces().await?;
        let overview = Arc::new(Overview::read(&self.pins, &present, daemon)?);
        *cached = Some((Instant::now(), Arc::clone(&overview)));
        Ok(overview)
    }

    async fn report(&self, which: usize) -> Result<Arc<Report>> {
        let mut reports = self.reports.lock().await;
        if let Some((at, report)) = &reports[which]
            && at.elapsed() < FRESH_REPORT
        {
            return Ok(Arc::clone(report));
        }
        let paths = self.inputs.paths.clone();
        let span = Duration::from_secs(REPORT_DAYS[which] * 24 * 3_600);
        // Reading the disk takes a while, and others need not wait for it.
        let report = Arc::new(spawn_blocking(move || read_report(&paths, span)).await??);
        reports[which] = Some((Instant::now(), Arc::clone(&report)));
        Ok(report)
    }

    async fn status(&self) -> Result<DaemonStatus> {
        let (answer, answered) = oneshot::channel();
        let call = Call { request: Command::Status, is_root: false, answer };
        self.inputs.calls.send(call).await.map_err(|_| anyhow!("the daemon is stopping"))?;
        match answered.await?? {
            Reply::Status(status) => Ok(*status),
            other => bail!("the daemon answers {other:?}"),
        }
    }
}

/// Makes a report. A configuration that the daemon would not take leaves the defaults: what was
/// banned does not depend on it.
fn read_report(paths: &Paths, span: Duration) -> Result<Report> {
    let config = Config::read(&paths.config, false).unwrap_or_default();
    let facts = report::gather(&Pins::new(&paths.pin_dir), &paths.store_file(), &config, span)?;
    Ok(report::judge(facts))
}

/// Which of [`REPORT_DAYS`] a query asks for.
fn report_span(query: Option<&str>) -> Option<usize> {
    let Some(query) = query else {
        return Some(0);
    };
    let days = query.strip_prefix("since=")?.strip_suffix('d')?.parse::<u64>().ok()?;
    REPORT_DAYS.iter().position(|known| *known == days)
}

/// Whether a Host header is an address or `localhost`, with or without port.
fn is_no_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

fn json<T: serde::Serialize>(value: &T) -> Result<Response<Full<Bytes>>> {
    Ok(full(StatusCode::OK, "application/json", serde_json::to_vec(value)?))
}

fn text(status: StatusCode, content: impl Into<String>) -> Response<Full<Bytes>> {
    full(status, "text/plain; charset=utf-8", content.into() + "\n")
}

fn full(
    status: StatusCode,
    kind: &'static str,
    content: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let builder: Builder =
        headers.into_iter().fold(Response::builder().status(status), |builder, (name, value)| {
            builder.header(name, HeaderValue::from_static(value))
        });
    // Infallible: names and values are constants.
    builder.body(Full::new(content.into())).unwrap_or_default()
}

fn with(
    mut answer: Response<Full<Bytes>>,
    name: header::HeaderName,
    value: &'static str,
) -> Response<Full<Bytes>> {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_refused() {
        for host in [
            "127.0.0.1:9598",
            "127.0.0.1",
            "[::1]:9598",
            "[::1]",
            "localhost:1",
            "LocalHost",
            "192.0.2.1:80",
        ] {
            assert!(is_no_name(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9598",
            "localhost.evil.example",
            "127.0.0.1.evil.example:1",
            "",
            "x",
        ] {
            assert!(!is_no_name(host), "{host}");
        }
    }

    #[test]
    fn a_report_is_of_a_span_that_is_kept() {
        assert_eq!(report_span(None), Some(0));
        assert_eq!(report_span(Some("since=30d")), Some(2));
        for query in ["since=8d", "since=", "since=7", "x=7d", "since=7d&x", ""] {
            assert_eq!(report_span(Some(query)), None, "{query}");
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_nothing_inline() {
        for (name, text) in [("index.html", PAGE), ("style.css", STYLE), ("app.js", SCRIPT)] {
            let foreign = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!foreign.contains("http://") && !foreign.contains("https://"), "{name}");
        }
        for inline in ["<style", " style=", " onclick=", " onload=", "<script>"] {
            assert!(!PAGE.contains(inline), "{inline} would not run under the policy");
        }
        // Attacker-chosen strings are only inserted as text.
        for dangerous in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "DOMParser",
            "srcdoc",
        ] {
            assert!(!SCRIPT.contains(dangerous), "{dangerous}");
        }
    }
}
