//! Bodies of real lists: parsed correctly, or refused with a line that names the format.

use std::fs;
use std::path::PathBuf;

use sip_xdp::config::{FeedConfig, FeedFormat};
use sip_xdp::feeds::engine::FeedState;

use super::harness::Followed;
use sip_xdp_tests::{ListServer, Reply};

fn body(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cases/feeds").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The result of a body as the first list of a feed with these settings.
fn first(name: &str, change: impl Fn(&mut FeedConfig)) -> (ListServer, Followed, FeedState) {
    let server = ListServer::start(Reply::list(body(name))).unwrap();
    let mut config =
        FeedConfig { every: "1d".parse().unwrap(), ..FeedConfig::new("test", &server.url(name)) };
    change(&mut config);
    let mut followed = Followed::new(config);
    let has_answer =
        |followed: &Followed| followed.state.is_settled || followed.state.error.is_some();
    let state = followed.until("an answer", has_answer).clone();
    (server, followed, state)
}

/// How many addresses of IPv4 are in force.
fn covered(followed: &Followed) -> u64 {
    sip_xdp::feeds::coverage::Size::of(&followed.in_force, 0).ipv4
}

#[test]
fn each_body_is_read_right() {
    // Format, IPv4 addresses, malformed, special.
    for (name, format, addresses, malformed, special) in [
        ("01-empty-for-good.txt", "list", 0, 0, 0),
        ("02-address-tab-count.txt", "counts", 60, 0, 0),
        // Completely padded addresses are decimal; any other leading zero is skipped.
        ("03-leading-zeros.txt", "list", 51, 4, 0),
        ("04-padded-ranges.dat", "list", 60 + 256 + 1, 0, 1),
        ("06-plain-ranges.txt", "list", 59 * 9 + 4, 0, 0),
        ("07-two-on-a-line.txt", "list", 43, 0, 0),
        ("08-fused.txt", "list", 40, 1, 0),
        ("09-network-and-country.txt", "list", 60 * 256, 1, 0),
        ("11-comment-behind.txt", "list", 60, 0, 0),
        ("13-overlapping.txt", "list", 60 + 65_536, 0, 0),
        ("15b-after-150-wide-networks.txt", "list", 150 << 20, 0, 0),
        ("18-list.txt.gz", "list", 60, 0, 0),
        ("19-cr-only.txt", "list", 60, 0, 0),
        ("19-one-line-blanks.txt", "list", 60, 0, 0),
        ("19-one-line-commas.txt", "list", 60, 0, 0),
        ("19-utf16.txt", "list", 60, 0, 0),
    ] {
        let (_server, followed, state) = first(name, |_| ());
        assert_eq!(state.error, None, "{name}");
        let skipped = |reason: &str| state.tally.count(reason);
        println!(
            "{name}: {:?} {}, skipped {:?}",
            state.format,
            covered(&followed),
            state.tally.skipped
        );
        assert_eq!(
            (state.format.as_deref(), covered(&followed)),
            (Some(format), addresses),
            "{name}"
        );
        assert_eq!((skipped("malformed"), skipped("special")), (malformed, special), "{name}");
        assert_eq!(
            (followed.row()["format"].as_str(), followed.row()["detected"].as_bool()),
            (Some(format), Some(true))
        );
    }
}

#[test]
fn odd_entries_never_become_other_addresses() {
    let (_server, followed, state) = first("16-odd-entries.txt", |_| ());
    assert_eq!(state.error, None);
    let good: Vec<_> =
        followed.listed().into_iter().filter(|entry| !entry.starts_with("45.8")).collect();
    println!("{good:?}, {:?}", state.tally.skipped);
    // Entries with only blanks, a comma or a comment around them are valid.
    assert_eq!(good, ["45.90.9.10", "2001:db8:ffff::1", "2001:db8:ffff::2"]);
    for odd in [
        "1.2.3.4",
        "45.81.0.0",
        "45.82.1.0",
        "45.83.2.0",
        "45.84.3.4",
        "45.85.4.5",
        "45.86.5.6",
        "45.91.10.11",
    ] {
        assert!(!followed.blocks(odd), "{odd}");
    }
    for meant in ["45.87.6.7", "45.88.7.8", "45.89.8.9"] {
        assert!(followed.blocks(meant), "{meant}");
    }
}

#[test]
fn reserved_networks_are_left_out() {
    let (_server, followed, state) = first("14-reserved-networks.netset", |_| ());
    assert_eq!(state.error, None);
    for private in [
        "10.1.2.3",
        "127.0.0.1",
        "192.168.1.1",
        "169.254.1.1",
        "100.64.0.1",
        "0.1.2.3",
        "224.0.0.1",
    ] {
        assert!(!followed.blocks(private), "{private}");
    }
    assert!(followed.blocks("45.80.0.1"));
}

#[test]
fn few_reports_are_left_out() {
    let all = covered(&first("02-address-tab-count.txt", |_| ()).1);
    for format in [FeedFormat::Auto, FeedFormat::Counts] {
        let (_server, followed, state) = first("02-address-tab-count.txt", |config| {
            (config.format, config.min_count) = (format, 3);
        });
        let left_out = state.tally.count("below_min_count");
        assert_eq!((state.error, covered(&followed) + left_out), (None, all));
        assert!(left_out > 0 && followed.blocks("45.80.0.1"));
    }
    let (_, _, state) = first("07-two-on-a-line.txt", |config| config.min_count = 3);
    assert!(state.error.unwrap().contains("has no counts"));
}

#[test]
fn a_rate_limit_with_status_200_is_named() {
    let (_server, mut followed, state) = first("21-rate-limited-but-200.txt", |_| ());
    let error = state.error.unwrap();
    assert!(error.contains("its rate limit") && !state.is_refused, "{error}");
    followed.until("the pause", |followed| followed.row()["next"].as_u64() > Some(3_000));
}

#[test]
fn hosts_that_become_wide_networks_are_refused() {
    let server = ListServer::start(Reply::list(body("15a-before-150-hosts.txt"))).unwrap();
    let config =
        FeedConfig { every: "1d".parse().unwrap(), ..FeedConfig::new("test", &server.url("list")) };
    let mut followed = Followed::new(config);
    followed.until("the first list", |followed| followed.state.is_settled);
    assert_eq!(covered(&followed), 150);
    server.reply(Reply::list(body("15b-after-150-wide-networks.txt")));
    for _ in 0..2 {
        let state = followed.sync(false);
        let error = state.error.unwrap();
        assert!(
            state.is_refused && error.contains("it covers 157 million addresses, before 150"),
            "{error}"
        );
        assert_eq!(covered(&followed), 150);
        // Also by a daemon that only has the saved list.
        followed = followed.restart();
    }
    assert_eq!(followed.sync(true).error, None);
    assert_eq!(covered(&followed), 150 << 20);
}

#[test]
fn an_empty_list_is_accepted_once_and_reported() {
    let (_server, mut followed, state) = first("01-empty-for-good.txt", |_| ());
    assert!(state.is_settled && state.is_empty && state.error.is_none(), "{state:?}");
    assert_eq!(followed.row()["empty"], true);
    assert_eq!(followed.sync(false).error, None);
    // An empty body is no declared empty list.
    let server = ListServer::start(Reply::list("")).unwrap();
    let mut nothing = Followed::new(FeedConfig::new("test", &server.url("list")));
    assert!(
        nothing
            .until("a refusal", |nothing| nothing.state.is_refused)
            .error
            .as_ref()
            .unwrap()
            .contains("empty")
    );
    // If the list had entries, an operator can accept it, once.
    let server = ListServer::start(Reply::list(body("15a-before-150-hosts.txt"))).unwrap();
    let mut followed = Followed::new(FeedConfig::new("test", &server.url("list")));
    followed.until("the first list", |followed| followed.state.is_settled);
    server.reply(Reply::list(body("01-empty-for-good.txt")));
    assert!(followed.sync(false).is_refused);
    assert_eq!(followed.sync(true).error, None);
    assert_eq!(followed.sync(false).error, None, "from then on it is empty for good");
    let mut followed = followed.restart();
    assert_eq!(followed.sync(false).error, None);
    server.reply(Reply::list(body("15a-before-150-hosts.txt")));
    assert_eq!(
        (followed.sync(false).error, covered(&followed)),
        (None, 150),
        "and may have entries again"
    );
}
