//! Upper bounds on command arguments. Each bound is in the error message, and in the manual's table
//! of bounds.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::api::control::Request;
use crate::config::Span;
use crate::net::network::Network;

/// Maximum length of an entry's texts, in bytes.
pub(crate) const MAX_TEXT: usize = 512;

/// Maximum ttl: ten years. Longer entries must be permanent.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Shortest IPv4 prefix accepted without `--force` by root: the widest network ever allocated to
/// one holder.
const MIN_PREFIX: u8 = 8;

/// Shortest IPv6 prefix accepted without `--force` by root: the widest allocation of a regional
/// registry to one holder.
const MIN_PREFIX6: u8 = 19;

/// Refuses a request that is out of bounds.
pub(super) fn check(request: &Request, is_root: bool) -> Result<()> {
    match request {
        Request::Add { list, network, ttl, reason, force, by, .. } => {
            check_text("the reason", reason)?;
            check_text("the name of the tool", by.as_deref().unwrap_or_default())?;
            check_ttl(*ttl)?;
            match objection(network, *force && is_root) {
                Some(why) => bail!("{network} was not entered in the {} list: {why}", list.name()),
                None => Ok(()),
            }
        }
        Request::TrustHost { ttl, reason, .. } => {
            check_text("the reason", reason)?;
            check_ttl(*ttl)
        }
        // Networks are checked one by one.
        Request::Import { ttl, reason, .. } => {
            check_text("the reason", reason)?;
            check_ttl(*ttl)
        }
        _ => Ok(()),
    }
}

/// Why a network is too wide for a list, if it is.
pub(super) fn objection(network: &Network, is_forced: bool) -> Option<String> {
    let (family, least) =
        if network.is_v4() { ("IPv4", MIN_PREFIX) } else { ("IPv6", MIN_PREFIX6) };
    (network.prefix() < least && !is_forced).then(|| {
        format!(
            "it is wider than /{least}, the widest {family} network of one holder; list the \
             networks that you mean, or \
             have root add it with --force"
        )
    })
}

/// Refuses overlong texts.
pub(super) fn check_text(what: &str, text: &str) -> Result<()> {
    if text.len() > MAX_TEXT {
        bail!("{what} has {} bytes; at most {MAX_TEXT} are kept, so shorten it", text.len());
    }
    Ok(())
}

fn check_ttl(seconds: Option<u64>) -> Result<()> {
    match seconds {
        Some(0) => bail!("a ttl of 0 is over at once; give at least 1s, or none for good"),
        Some(seconds) if Duration::from_secs(seconds) > MAX_TTL => {
            bail!("a ttl of {seconds} s is longer than {}; leave it out for good", Span(MAX_TTL))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::control::ListName;

    fn add(
        network: &str,
        ttl: Option<u64>,
        reason: &str,
        force: bool,
        by: Option<&str>,
    ) -> Request {
        let by = by.map(str::to_owned);
        let (network, reason) = (network.parse().unwrap(), reason.to_owned());
        Request::Add { list: ListName::Trust, network, ttl, reason, force, operator: None, by }
    }

    #[test]
    fn only_root_lists_what_is_wider_than_one_holder_has_and_only_by_force() {
        for (network, is_wide) in [
            ("0.0.0.0/0", true),
            ("0.0.0.0/1", true),
            ("128.0.0.0/1", true),
            ("8.0.0.0/7", true),
            ("10.0.0.0/8", false),
            ("192.0.2.7", false),
            ("::/0", true),
            ("2000::/3", true),
            ("2001:c000::/18", true),
            ("2001:c000::/19", false),
            ("2001:db8::/32", false),
            ("2001:db8::1", false),
        ] {
            for force in [false, true] {
                for is_root in [false, true] {
                    let checked = check(&add(network, None, "", force, None), is_root);
                    assert_eq!(
                        checked.is_err(),
                        is_wide && !(force && is_root),
                        "{network} {force} {is_root}"
                    );
                }
            }
        }
    }

    #[test]
    fn texts_and_times_are_bounded() {
        let net = "192.0.2.7";
        let long = |bytes: usize| "x".repeat(bytes);
        for (bytes, is_good) in
            [(0, true), (MAX_TEXT, true), (MAX_TEXT + 1, false), (60_000, false)]
        {
            assert_eq!(
                check(&add(net, None, &long(bytes), true, None), true).is_ok(),
                is_good,
                "{bytes}"
            );
            assert_eq!(
                check(&add(net, None, "", true, Some(&long(bytes))), true).is_ok(),
                is_good,
                "{bytes}"
            );
        }
        // Bytes, not characters.
        assert!(
            check(&add(net, None, &"\u{e9}".repeat(MAX_TEXT / 2 + 1), true, None), true).is_err()
        );
        let error = check(&add(net, None, &long(600), false, None), true).unwrap_err().to_string();
        assert!(error.contains("600 bytes") && error.contains("512"), "{error}");
        let most = MAX_TTL.as_secs();
        for (ttl, is_good) in [
            (None, true),
            (Some(0), false),
            (Some(1), true),
            (Some(most), true),
            (Some(most + 1), false),
            (Some(u64::MAX), false),
        ] {
            assert_eq!(check(&add(net, ttl, "", true, None), true).is_ok(), is_good, "{ttl:?}");
            let name = "carrier.example".parse().unwrap();
            let host = Request::TrustHost { name, ttl, reason: String::new() };
            assert_eq!(check(&host, true).is_ok(), is_good, "{ttl:?}");
            let (list, networks) = (ListName::Block, Vec::new());
            let import = Request::Import {
                list,
                networks,
                ttl,
                reason: String::new(),
                force: true,
                operator: None,
            };
            assert_eq!(check(&import, true).is_ok(), is_good, "{ttl:?}");
        }
    }

    /// The page of bounds states the actual values.
    #[test]
    fn the_page_of_bounds_has_the_values() {
        let page = include_str!("../../../docs/bounds.md");
        let thousands = |number: usize| {
            let digits = number.to_string();
            let mut text = String::new();
            for (n, digit) in digits.chars().enumerate() {
                if n > 0 && (digits.len() - n).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        };
        for (name, value) in [
            ("networks", sip_xdp_common::abi::layout::DEFAULT_NETWORKS as usize),
            ("meters of unknown sources", sip_xdp_common::abi::layout::DEFAULT_SOURCES as usize),
            ("ports (`ports`)", sip_xdp_common::abi::layout::FLOWS),
            ("known-good ports", crate::lists::GOOD_FLOWS),
            ("hosts that we asked", sip_xdp_common::abi::layout::PENDING_REQUESTS),
            ("bytes of a message", sip_xdp_common::abi::layout::HEAD),
            ("interfaces", sip_xdp_common::abi::layout::MAX_INTERFACES),
            ("a text that goes", MAX_TEXT),
            ("a list keeps the first", sip_xdp_common::abi::layout::REASON),
            ("names", crate::config::MAX_NAMES),
            ("addresses of a name", crate::dns::MAX_ADDRESSES),
            ("--ttl", MAX_TTL.as_secs() as usize / 86_400),
            ("TCP connections that are followed", crate::sip::stream::MAX_CONNECTIONS),
            ("bytes kept of TCP connections", crate::sip::stream::MAX_BYTES),
            ("headers of a message over TCP", crate::sip::stream::MAX_HEAD),
            ("`[[hep]]` tables", crate::config::MAX_HEP),
            ("HEP messages that wait", crate::integrations::hep::WAITING),
            ("bytes of a HEP message", crate::integrations::hep::MESSAGE),
            ("HEP connections of a table", crate::integrations::hep::CONNECTIONS),
        ] {
            let value = thousands(value);
            let is_stated = page.lines().any(|line| line.contains(name) && line.contains(&value));
            assert!(is_stated || name == "networks" && page.contains(&value), "{name}: {value}");
        }
        for table in
            ["networks", "feeds", "entries", "known", "suspects", "unproven", "ports", "good_ports"]
        {
            assert!(page.contains(&format!("(`{table}`)")), "{table}");
        }
    }
}
