//! Fetching of a list over HTTPS, HTTP or from a file: politely, within bounds, and without
//! disclosing keys.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use ureq::Agent;
use ureq::http::{HeaderMap, Response, Uri, header};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Body, Error};

use super::redirects::{Elsewhere, Guarded};
use crate::config::FeedConfig;

/// Timeout of a request with its response.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Timeout of a connection attempt.
const CONNECT: Duration = Duration::from_secs(10);

/// Maximum number of redirects.
const REDIRECTS: u32 = 5;

/// Maximum of a server's `Retry-After`.
const LONGEST_RETRY: Duration = Duration::from_secs(24 * 3_600);

/// Maximum length of a key, in bytes.
const LONGEST_KEY: u64 = 4_096;

/// A failed fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error, without secrets.
    pub reason: String,
    /// The server's `Retry-After`.
    pub retry_after: Option<Duration>,
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self { reason, retry_after: None }
    }
}

/// HTTP cache validators of a list or file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    /// `ETag`.
    pub etag: Option<String>,
    /// `Last-Modified`.
    pub modified: Option<String>,
}

/// The result of a fetch.
pub(super) enum Fetched {
    /// Unchanged since the given validators.
    Same,
    /// A list, with its validators.
    List(Box<dyn Read + Send>, Validators),
}

/// Status, headers and body of a response.
pub(super) type Answer = (u16, HeaderMap, Box<dyn Read + Send>);

/// The HTTP client of one feed.
pub(super) struct Fetcher {
    agent: Agent,
    most: u64,
    /// Whether the server has only the older of two interfaces.
    speaks_older: Cell<bool>,
}

impl Fetcher {
    pub(super) fn new(config: &FeedConfig) -> Self {
        // A key is for one server only, and a secret request must not be redirected.
        let redirects = if config.key_file.is_some() { 0 } else { REDIRECTS };
        let settings = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .timeout_connect(Some(CONNECT))
            .http_status_as_error(false)
            .max_redirects(redirects)
            .max_redirects_will_error(redirects != 0)
            .https_only(config.url.starts_with("https:"))
            .user_agent(concat!("sip-xdp/", env!("CARGO_PKG_VERSION"), " (+feed sync)"))
            .max_idle_connections(0)
            .build();
        if let (None, Some(proxy)) = (config.file(), settings.proxy()) {
            // The URI may contain a password, and is never logged as a whole.
            let uri: &Uri = proxy.uri();
            let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
            let host = uri.host().unwrap_or_default();
            log::info!(
                "feed {} goes through the proxy {host}{port} of the environment",
                config.name
            );
        }
        let resolver = Guarded::new(&config.url);
        let agent = Agent::with_parts(settings, DefaultConnector::default(), resolver);
        Self { agent, most: config.guards.max_bytes, speaks_older: Cell::new(false) }
    }

    /// Whether the server has only the older of two interfaces.
    pub(super) fn speaks_older(&self) -> bool {
        self.speaks_older.get()
    }

    /// Records that the server has only the older of two interfaces.
    pub(super) fn speak_older(&self) {
        self.speaks_older.set(true);
    }

    /// Fetches a list, unless it matches the validators.
    pub(super) fn list(&self, config: &FeedConfig, known: &Validators) -> Result<Fetched, Failure> {
        if let Some(path) = config.file() {
            return file(&path, known, self.most).map_err(Failure::from);
        }
        let conditions =
            [("If-None-Match", &known.etag), ("If-Modified-Since", &known.modified)].into_iter();
        let conditions: Vec<_> =
            conditions.filter_map(|(name, value)| Some((name, value.as_deref()?))).collect();
        let answer = self.get(&config.url, &conditions)?;
        match answer.status().as_u16() {
            200 => {}
            304 if !conditions.is_empty() => return Ok(Fetched::Same),
            status => return Err(refused(status, answer.headers())),
        }
        check_type(answer.headers())?;
        let text =
            |name: header::HeaderName| Some(answer.headers().get(name)?.to_str().ok()?.to_owned());
        let validators =
            Validators { etag: text(header::ETAG), modified: text(header::LAST_MODIFIED) };
        Ok(Fetched::List(self.body(answer), validators))
    }

    /// Fetches a page: status, headers and body.
    pub(super) fn page(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, Failure> {
        let answer = self.get(url, headers)?;
        self.answered(answer)
    }

    /// Posts a JSON object.
    pub(super) fn post(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Answer, Failure> {
        let mut request = self.agent.post(url).header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.answered(request.send(body).map_err(|error| Failure::from(error_text(&error)))?)
    }

    fn answered(&self, answer: Response<Body>) -> Result<Answer, Failure> {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        if (300..400).contains(&status) {
            return Err(format!(
                "HTTP {status}: the server sends us elsewhere, where its key must not go; correct \
                 the url"
            )
            .into());
        }
        Ok((status, headers, self.body(answer)))
    }

    fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.call().map_err(|error| Failure::from(error_text(&error)))
    }

    fn body(&self, answer: Response<Body>) -> Box<dyn Read + Send> {
        Box::new(Capped::new(answer.into_body().into_reader(), self.most))
    }
}

/// The failure for a status other than success.
pub(super) fn refused(status: u16, headers: &HeaderMap) -> Failure {
    let hint = match status {
        401 | 403 => ": access is refused",
        404 | 410 => ": there is no such list",
        429 => ": too many requests",
        500.. => ": the server has a problem",
        _ => "",
    };
    let retry_after = if matches!(status, 429 | 503) { retry_after(headers) } else { None };
    Failure { reason: format!("HTTP {status}{hint}"), retry_after }
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let then = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            then.duration_since(jiff::Timestamp::now()).as_secs().try_into().unwrap_or(0)
        }
    };
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY))
}

/// Refuses bodies that cannot be a list, by their headers.
fn check_type(headers: &HeaderMap) -> Result<(), Failure> {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else {
        return Ok(());
    };
    let bare = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_odd = ["image/", "audio/", "video/", "font/", "multipart/"]
        .iter()
        .any(|family| bare.starts_with(family))
        || ["text/html", "application/xhtml+xml", "application/pdf", "application/zip"]
            .contains(&bare.as_str());
    if is_odd { Err(format!("the server sends {bare}, not a list").into()) } else { Ok(()) }
}

/// An error message without secrets: those of the library may contain the URL.
pub(crate) fn error_text(error: &Error) -> String {
    match error {
        Error::Timeout(_) => format!("no whole answer within {} s", TIMEOUT.as_secs()),
        Error::HostNotFound => "the host was not found".to_owned(),
        Error::ConnectionFailed => "no connection".to_owned(),
        Error::TooManyRedirects => format!("more than {REDIRECTS} redirects"),
        Error::RedirectFailed => "a redirect that leads nowhere".to_owned(),
        Error::RequireHttpsOnly(_) => "the server sends us from https to http".to_owned(),
        Error::BadUri(_) => "the server, or the url, names no valid address".to_owned(),
        Error::Io(error) => read_error(error),
        Error::Decompress(_, _) => {
            "the answer is not what its compression says, or cut off".to_owned()
        }
        Error::Protocol(_) | Error::Http(_) => "the answer is not HTTP, or cut off".to_owned(),
        Error::Rustls(error) => format!("TLS: {error}"),
        _ => "the request failed".to_owned(),
    }
}

/// The error message of a failed body read.
fn read_error(error: &io::Error) -> String {
    if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return error_text(inner);
    }
    if let Some(elsewhere) = error.get_ref().and_then(|inner| inner.downcast_ref::<Elsewhere>()) {
        return elsewhere.to_string();
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the answer is cut off".to_owned(),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            "the answer is not what its compression says, or cut off".to_owned()
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            format!("no whole answer within {} s", TIMEOUT.as_secs())
        }
        io::ErrorKind::ConnectionRefused => "the connection was refused".to_owned(),
        io::ErrorKind::ConnectionReset => "the server closed the connection".to_owned(),
        io::ErrorKind::FileTooLarge => error.to_string(),
        kind => kind.to_string(),
    }
}

/// A reader with a size limit, beyond which it fails. Its error messages are ours.
pub(super) struct Capped<R> {
    inner: R,
    left: u64,
    most: u64,
}

impl<R> Capped<R> {
    pub(super) fn new(inner: R, most: u64) -> Self {
        Self { inner, left: most, most }
    }
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.inner.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => return Err(io::Error::new(error.kind(), read_error(&error))),
            Ok(read) => read,
        };
        match self.left.checked_sub(read as u64) {
            Some(left) => {
                self.left = left;
                Ok(read)
            }
            None => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it has more than {} bytes", self.most),
            )),
        }
    }
}

fn file(path: &Path, known: &Validators, most: u64) -> Result<Fetched, String> {
    let cannot = |error: io::Error| format!("{} cannot be read: {error}", path.display());
    // Checked before opening: opening a pipe may block.
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    let file = File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let etag = modified.map(|modified| format!("{}-{}", modified.as_nanos(), metadata.len()));
    if etag.is_some() && etag == known.etag {
        return Ok(Fetched::Same);
    }
    Ok(Fetched::List(Box::new(Capped::new(file, most)), Validators { etag, modified: None }))
}

/// Reads the feed's key file.
pub(super) fn key(config: &FeedConfig) -> Result<String, String> {
    let path = config.key_file.as_ref().ok_or("there is no key_file")?;
    let mut text = String::new();
    let file =
        File::open(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    // The library's own error might quote the file's contents.
    file.take(LONGEST_KEY)
        .read_to_string(&mut text)
        .map_err(|_| format!("{} is no text", path.display()))?;
    let key = text.trim();
    // It becomes part of a URL or header.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if key.is_empty() || !key.bytes().all(is_plain) {
        return Err(format!("{} contains no key; write it alone on one line", path.display()));
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_when_to_come_back() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            refused(429, &headers).retry_after
        };
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("99999999"), Some(LONGEST_RETRY));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        let then = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(600);
        let date = then.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        assert!(after(&date).is_some_and(|after| (598..=600).contains(&after.as_secs())), "{date}");
    }

    #[test]
    fn keys_are_never_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let config =
            FeedConfig { key_file: Some(path.clone()), ..FeedConfig::new("a", "https://host/") };
        assert!(key(&config).unwrap_err().contains("cannot be read"));
        for (text, is_key) in
            [("sEcret-1\n", true), ("", false), ("sEcret two", false), ("sEcret\r\nX: y", false)]
        {
            fs::write(&path, text).unwrap();
            match key(&config) {
                Ok(key) => assert!(is_key && key == text.trim()),
                Err(error) => assert!(!is_key && !error.contains("sEcret"), "{error}"),
            }
        }
    }
}
