//! Politeness, saved lists, and the passing of time.

use std::fs;
use std::time::Duration;

use sip_xdp::config::{FeedConfig, FeedFormat, Span};
use sip_xdp_tests::{ListServer, Reply};

use crate::feeds::harness::{Followed, addresses, config};

fn settled(config: FeedConfig) -> Followed {
    let mut followed = Followed::new(config);
    followed.until("the first list", |followed| followed.state.is_settled);
    followed
}

#[test]
fn a_list_that_has_not_changed_is_not_sent_again() {
    let server = ListServer::start(Reply::list("")).unwrap();
    server.answer_with(|head| match head.to_ascii_lowercase().contains("if-none-match: \"v1\"") {
        true => Reply::new("304 Not Modified", &[], ""),
        false => Reply::new(
            "200 OK",
            &["ETag: \"v1\"", "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT"],
            addresses(20),
        ),
    });
    let mut followed = settled(config(&server, "list.txt", FeedFormat::List));
    assert_eq!(followed.sync(false).error, None);
    assert_eq!(followed.changes, 1, "nothing came into force the second time");
    let requests = server.requests();
    let lower = requests[0].to_ascii_lowercase();
    assert!(
        lower.contains(&format!("user-agent: sip-xdp/{} (+feed sync)", env!("CARGO_PKG_VERSION"))),
        "{lower}"
    );
    assert!(lower.contains("accept-encoding: gzip") && !lower.contains("if-none-match"));
    assert!(
        requests[1]
            .to_ascii_lowercase()
            .contains("if-modified-since: wed, 21 oct 2015 07:28:00 gmt")
    );
    // An unsolicited 304 is an error.
    let lying = ListServer::start(Reply::new("304 Not Modified", &[], "")).unwrap();
    let mut followed = Followed::new(config(&lying, "list.txt", FeedFormat::List));
    assert!(followed.sync(false).error.unwrap().contains("304"));
}

#[test]
fn files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("own.list");
    fs::write(&path, "192.0.2.1\n192.0.2.2\n").unwrap();
    let config = FeedConfig::new("test", &format!("file://{}", path.display()));
    let mut followed = settled(config);
    assert_eq!(followed.listed(), ["192.0.2.1", "192.0.2.2"]);
    followed.sync(false);
    assert_eq!(followed.changes, 1, "it has not changed");
    fs::write(&path, "192.0.2.1\n192.0.2.2\n192.0.2.3\n").unwrap();
    followed.sync(false);
    assert_eq!(followed.listed().len(), 3);
    fs::remove_file(&path).unwrap();
    assert!(followed.sync(false).error.unwrap().contains("cannot be read"));
    fs::create_dir(&path).unwrap();
    assert!(followed.sync(false).error.unwrap().contains("is not a file"));
    assert_eq!(followed.listed().len(), 3);
}

#[test]
fn the_last_list_is_there_without_network() {
    let server = ListServer::start(Reply::new("200 OK", &["ETag: \"v1\""], addresses(20))).unwrap();
    let followed = settled(config(&server, "list.txt", FeedFormat::List));
    drop(server);
    let mut followed = followed.restart();
    assert_eq!(followed.listed().len(), 20, "before anybody was asked");
    followed.until("the first word", |followed| followed.state.is_settled);
    assert_eq!(followed.state.ipv4, 20);
    assert!(followed.row()["age"].as_u64().unwrap() < 60);
}

#[test]
fn a_list_that_was_just_fetched_is_not_fetched_again() {
    let server = ListServer::start(Reply::list(addresses(20))).unwrap();
    let followed = settled(config(&server, "list.txt", FeedFormat::List));
    let mut followed = followed.restart();
    followed.until("the first word", |followed| followed.state.is_settled);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.requests().len(), 1);
    let next = followed.row()["next"].as_u64().unwrap();
    assert!(next > 80_000, "{next}");
}

#[test]
fn a_damaged_file_is_fetched_anew() {
    let server = ListServer::start(Reply::list(addresses(20))).unwrap();
    let followed = settled(config(&server, "list.txt", FeedFormat::List));
    let path = followed.directory.path().join("test.list");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("198.51.100.7\n", "98.51.100.7\n")).unwrap();
    let mut followed = followed.restart();
    assert!(followed.listed().is_empty());
    followed.until("a new list", |followed| followed.state.is_settled);
    assert_eq!((followed.listed().len(), server.requests().len()), (20, 2));
}

#[test]
fn a_list_that_finds_no_room_is_not_kept() {
    let server = ListServer::start(Reply::new("200 OK", &["ETag: \"v1\""], addresses(20))).unwrap();
    let mut followed = Followed::new(config(&server, "list.txt", FeedFormat::List));
    followed.refuses = Some("the block list is full".to_owned());
    followed.until("an error", |followed| followed.state.error.is_some());
    assert!(!followed.directory.path().join("test.list").exists());
    followed.refuses = None;
    assert_eq!(followed.sync(false).error, None);
    assert_eq!(followed.listed().len(), 20, "asked for as a whole");
}

#[test]
fn an_unconfirmed_list_expires() {
    let server = ListServer::start(Reply::list(addresses(20))).unwrap();
    let mut config = config(&server, "list.txt", FeedFormat::List);
    (config.every, config.ttl) = (Span::seconds(1), Span::seconds(2));
    let mut followed = settled(config);
    server.reply(Reply::new("500 Oh", &[], ""));
    followed.until("the end", |followed| followed.listed().is_empty());
    followed.until("the row", |followed| followed.state.ipv4 == 0);
    server.reply(Reply::list(addresses(20)));
    followed.until("a new list", |followed| followed.listed().len() == 20);
}

#[test]
fn an_unwritable_disk_is_reported() {
    let server = ListServer::start(Reply::list(addresses(20))).unwrap();
    let directory = tempfile::tempdir().unwrap();
    // A directory where the feed's file should be.
    fs::create_dir(directory.path().join("test.list.new")).unwrap();
    fs::create_dir(directory.path().join("test.list")).unwrap();
    let mut followed =
        Followed::begin(config(&server, "list.txt", FeedFormat::List), directory, &[]);
    followed.until("the first list", |followed| followed.state.is_settled);
    assert_eq!(
        (followed.listed().len(), followed.state.disk_error.is_some()),
        (20, true),
        "it is in force all the same"
    );
}
