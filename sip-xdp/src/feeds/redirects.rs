//! Allowed redirects of a feed's server: to any public address, and to loopback, private and other
//! special-purpose addresses only if the feed's own URL is at one. Otherwise the keeper of a list
//! could make this host send requests to its own services or neighbours (SSRF). Addresses are
//! checked at the time of connection, so that DNS cannot change in between.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::guards::is_special;

/// A forbidden redirect to this address.
#[derive(Debug)]
pub(super) struct Elsewhere(IpAddr);

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the server sends us to {}, a loopback, private or otherwise special address; if that \
             is meant, name it in the url",
            self.0
        )
    }
}

impl std::error::Error for Elsewhere {}

/// A resolver that refuses forbidden redirects.
pub(super) struct Guarded {
    inner: DefaultResolver,
    /// The host of the feed's URL.
    host: String,
    /// Whether that has a special-purpose address itself.
    is_special: AtomicBool,
}

impl Guarded {
    pub(super) fn new(url: &str) -> Self {
        let host = url.parse::<Uri>().ok().and_then(|uri| Some(uri.host()?.to_ascii_lowercase()));
        let host = host.unwrap_or_default();
        let is_special = AtomicBool::new(literal(&host).is_some_and(is_special));
        Self { inner: DefaultResolver::default(), host, is_special }
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("host", &self.host).finish_non_exhaustive()
    }
}

/// The address, if the host is a literal one.
fn literal(host: &str) -> Option<IpAddr> {
    match host.trim_matches(['[', ']']) {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        bare => bare.parse().ok(),
    }
}

impl Resolver for Guarded {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let special = found.iter().map(|address| address.ip()).find(|address| is_special(*address));
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        // The proxy is configured by the operator as well.
        let is_proxy = config.proxy().is_some_and(|proxy| proxy.uri().host() == uri.host());
        if host == self.host {
            self.is_special.store(special.is_some(), Ordering::Relaxed);
        } else if let Some(address) =
            special.filter(|_| !is_proxy && !self.is_special.load(Ordering::Relaxed))
        {
            return Err(Error::Io(io::Error::other(Elsewhere(address))));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Answers one request with a redirect, and returns its address.
    fn redirecting(to: &str) -> (std::net::SocketAddr, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = format!(
            "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let serving = std::thread::spawn(move || {
            let (mut stream, _): (TcpStream, _) = listener.accept().unwrap();
            let mut head = [0; 1_024];
            let _ = stream.read(&mut head);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        (address, serving)
    }

    /// The outcome of a redirect to `to`, for a feed with a public or a private URL. The test's own
    /// server represents both.
    fn outcome(to: &str, is_public: bool) -> String {
        let (address, serving) = redirecting(to);
        let mut guarded = Guarded::new(&format!("http://{address}/list"));
        if is_public {
            // As if another host's name had resolved to this server.
            guarded.host = "127.0.0.1".to_owned();
        }
        let agent = ureq::Agent::with_parts(
            ureq::Agent::config_builder().proxy(None).build(),
            ureq::unversioned::transport::DefaultConnector::default(),
            Public { guarded, is_public, first: AtomicBool::new(true) },
        );
        let error = agent.get(format!("http://{address}/list")).call().unwrap_err();
        serving.join().unwrap();
        super::super::fetch::error_text(&error)
    }

    /// Makes the first lookup classify the feed's own host as public.
    #[derive(Debug)]
    struct Public {
        guarded: Guarded,
        is_public: bool,
        first: AtomicBool,
    }

    impl Resolver for Public {
        fn resolve(
            &self,
            uri: &Uri,
            config: &Config,
            timeout: NextTimeout,
        ) -> Result<ResolvedSocketAddrs, Error> {
            let found = self.guarded.resolve(uri, config, timeout);
            if self.first.swap(false, Ordering::Relaxed) && self.is_public {
                self.guarded.is_special.store(false, Ordering::Relaxed);
            }
            found
        }
    }

    #[test]
    fn a_public_server_may_not_send_us_inside() {
        for to in [
            "http://127.0.0.2:9/x",
            "http://[::1]:9/x",
            "http://localhost:9/x",
            "http://10.1.2.3:9/x",
            "http://169.254.169.254/latest/meta-data",
            "http://[fe80::1]:9/",
            "http://[::ffff:127.0.0.1]:9/",
            "http://0.0.0.0:9/",
        ] {
            let error = outcome(to, true);
            assert!(error.contains("the server sends us to"), "{to}: {error}");
        }
        // A private feed may: the connection is tried.
        let error = outcome("http://127.0.0.2:9/x", false);
        assert!(error.contains("refused"), "{error}");
    }
}
