//! Digest authentication (RFC 2617, without qop, which the lab's registrar does not ask for).

use md5::{Digest as _, Md5};

use crate::message::Message;

/// A challenge of a 401 or 407.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    realm: String,
    nonce: String,
    /// Whether it was only the nonce that was wrong.
    pub is_stale: bool,
    /// Whether it is a proxy's challenge.
    is_proxy: bool,
}

impl Challenge {
    /// The challenge in a response.
    pub fn of(response: &Message<'_>) -> Option<Self> {
        let (name, is_proxy) = match response.status()? {
            401 => ("WWW-Authenticate", false),
            407 => ("Proxy-Authenticate", true),
            _ => return None,
        };
        let header = response.header(name)?;
        let quoted = |name: &str| {
            Some(header.split_once(&format!("{name}=\""))?.1.split('"').next()?.to_owned())
        };
        let is_stale = header.to_ascii_lowercase().contains("stale=true");
        Some(Self { realm: quoted("realm")?, nonce: quoted("nonce")?, is_stale, is_proxy })
    }

    /// The credentials header of a user for a request, with its line end.
    pub fn credentials(&self, user: &str, password: &str, method: &str, uri: &str) -> String {
        let Self { realm, nonce, .. } = self;
        let secret = digest(&format!("{user}:{realm}:{password}"));
        let response = digest(&format!("{secret}:{nonce}:{}", digest(&format!("{method}:{uri}"))));
        let name = if self.is_proxy { "Proxy-Authorization" } else { "Authorization" };
        format!(
            "{name}: Digest username=\"{user}\", realm=\"{realm}\", nonce=\"{nonce}\", \
             uri=\"{uri}\", \
             response=\"{response}\", algorithm=MD5\r\n"
        )
    }
}

fn digest(text: &str) -> String {
    Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_a_challenge() {
        let text = b"SIP/2.0 407 Proxy Authentication Required\r\n\
                     Proxy-Authenticate: Digest realm=\"testrealm@host.com\", nonce=\"dcd98b\", \
                    stale=true\r\n\r\n";
        let challenge = Challenge::of(&Message::parse(text).unwrap()).unwrap();
        assert!(challenge.is_stale);
        let header = challenge.credentials("Mufasa", "Circle Of Life", "GET", "/dir/index.html");
        assert!(header.starts_with(
            "Proxy-Authorization: Digest username=\"Mufasa\", realm=\"testrealm@host.com\""
        ));
        // The first two hashes of RFC 2617, section 3.5; the third has another nonce here.
        assert_eq!(
            digest("Mufasa:testrealm@host.com:Circle Of Life"),
            "939e7578ed9e3c518a452acee763bce9"
        );
        assert_eq!(digest("GET:/dir/index.html"), "39aff3a2bab6126f332b942af96d3366");
        assert!(Challenge::of(&Message::parse(b"SIP/2.0 200 OK\r\n\r\n").unwrap()).is_none());
    }
}
