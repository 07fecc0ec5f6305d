//! Reachability of the feeds' servers. No list is fetched, because some servers keep state per
//! request.

use std::fs::File;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::thread;
use std::time::Duration;

use ureq::http::Uri;

use super::Check;
use crate::config::FeedConfig;

/// Timeout of a connection attempt.
const TIMEOUT: Duration = Duration::from_secs(5);

const CHECK: &str = "feed";

/// One check per feed, concurrently.
pub(super) fn reachable(feeds: &[FeedConfig]) -> Vec<Check> {
    let all: Vec<_> =
        feeds.iter().cloned().map(|feed| thread::spawn(move || look(&feed))).collect();
    all.into_iter().filter_map(|one| one.join().ok()).collect()
}

fn look(feed: &FeedConfig) -> Check {
    let name = &feed.name;
    if let Some(file) = &feed.key_file
        && let Err(error) = File::open(file)
    {
        let detail = format!("{name}: its key, {}, cannot be read: {error}", file.display());
        return Check::fail(
            CHECK,
            detail,
            "put the key there, alone on one line, readable for root",
        );
    }
    if let Some(path) = feed.file() {
        return match File::open(&path) {
            Ok(_) => Check::ok(CHECK, format!("{name}: {} can be read", path.display())),
            Err(error) => Check::fail(
                CHECK,
                format!("{name}: {} cannot be read: {error}", path.display()),
                "correct the url, or have whoever writes the file write it",
            ),
        };
    }
    match connect(&feed.url) {
        Ok(server) => Check::ok(CHECK, format!("{name}: {server} can be reached")),
        Err(error) => Check::fail(
            CHECK,
            format!("{name}: {error}; the last good list stays in force until its ttl is over"),
            "check the url, DNS, and whether a firewall lets this host reach it",
        ),
    }
}

/// Connects to a server, and returns its host. Never the whole URL, which may contain a key.
fn connect(url: &str) -> Result<String, String> {
    let uri: Uri = url.parse().map_err(|_| "the url is none".to_owned())?;
    let host = uri.host().ok_or("the url names no host")?;
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    let server = format!("{host}:{port}");
    let bare = host.trim_matches(['[', ']']);
    let addresses =
        (bare, port).to_socket_addrs().map_err(|_| format!("the host {host} was not found"))?;
    let mut last = format!("the host {host} has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(_) => return Ok(server),
            Err(error) => last = format!("{server} ({}) cannot be reached: {error}", address.ip()),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::tools::doctor::Status;

    #[test]
    fn servers_and_files() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let feed = |url: &str| FeedConfig::new("test", url);
        let secret = format!("http://127.0.0.1:{port}/list?key=sEcret");
        let check = look(&feed(&secret));
        assert!(check.status == Status::Ok && !check.detail.contains("sEcret"), "{check:?}");
        drop(listener);
        let check = look(&feed(&secret));
        assert!(check.status == Status::Fail && !check.detail.contains("sEcret"), "{check:?}");
        assert_eq!(look(&feed("file:///nonexistent")).status, Status::Fail);
        let mut keyed = feed("https://127.0.0.1/");
        keyed.key_file = Some("/nonexistent".into());
        assert!(look(&keyed).detail.contains("its key"));
    }
}
