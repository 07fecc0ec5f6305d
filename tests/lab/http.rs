//! HTTP requests to metrics and web page, inside a namespace, byte by byte, so that malformed ones
//! can be sent.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::namespace::Namespace;

/// Default address of the metrics.
pub const METRICS: &str = "127.0.0.1:9598";

/// Timeout of a response.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A response.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: String,
}

/// Connects inside a namespace.
pub fn connect(namespace: &Namespace, address: &str) -> Result<TcpStream> {
    let address: SocketAddr = address.parse().context("no address")?;
    namespace.enter(|| {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)
            .with_context(|| format!("cannot reach {address}"))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(stream)
    })
}

/// Sends the head of a request as it is, and reads to the end of the connection.
pub fn send(namespace: &Namespace, address: &str, head: &str) -> Result<Answer> {
    let mut stream = connect(namespace, address)?;
    stream.write_all(head.as_bytes()).context("cannot send")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).context("no answer")?;
    let text = String::from_utf8(bytes).context("the answer is no text")?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        bail!("the answer has no head: {text:?}")
    };
    let mut lines = head.lines();
    let status =
        lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).context("no status")?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers =
        headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Ok(Answer { status, headers, body: body.to_owned() })
}

/// Sends a request with this method, path and host.
pub fn request(
    namespace: &Namespace,
    address: &str,
    method: &str,
    path: &str,
    host: &str,
) -> Result<Answer> {
    send(
        namespace,
        address,
        &format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
    )
}

/// Gets a path that must exist.
pub fn get(namespace: &Namespace, address: &str, path: &str) -> Result<String> {
    let answer = request(namespace, address, "GET", path, address)?;
    if answer.status != 200 {
        bail!("{path} is answered with {}: {}", answer.status, answer.body);
    }
    Ok(answer.body)
}

/// Gets a JSON document.
pub fn json(namespace: &Namespace, address: &str, path: &str) -> Result<Value> {
    serde_json::from_str(&get(namespace, address, path)?)
        .with_context(|| format!("{path} is no JSON"))
}

/// The value of one series, as written.
pub fn sample(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}
