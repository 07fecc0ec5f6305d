//! APIBAN and CrowdSec: pages, changes, ends, and secrecy of keys.

use std::fs;

use sip_xdp::config::{FeedConfig, FeedFormat};
use sip_xdp_tests::{ListServer, Reply};

use crate::feeds::harness::{Followed, config};

const KEY: &str = "sEcret-Key-1";

/// A feed with a key, in a directory that keeps the key's file.
fn with_key(
    server: &ListServer,
    path: &str,
    format: FeedFormat,
) -> (FeedConfig, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let key_file = directory.path().join("key");
    fs::write(&key_file, format!("{KEY}\n")).unwrap();
    (FeedConfig { key_file: Some(key_file), ..config(server, path, format) }, directory)
}

fn json(status: &str, body: &str) -> Reply {
    Reply::new(status, &["Content-Type: application/json"], body)
}

fn no_new_bans() -> Reply {
    json("400 Bad Request", "{\"ipaddress\":[\"no new bans\"],\"ID\":\"none\"}")
}

/// The response of a server without the interface.
fn no_such_page() -> Reply {
    Reply::new("404 Not Found", &["Content-Type: text/html"], "<html>not found</html>")
}

#[test]
fn apiban_page_by_page() {
    let server = ListServer::start(no_new_bans()).unwrap();
    server.answer_with(|head| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        match path.strip_prefix(&format!("/api/{KEY}/banned/")) {
            None if path == "/api/get" => no_such_page(),
            Some("100") => {
                json("200 OK", "{\"ipaddress\":[\"198.51.100.1\",\"198.51.100.2\"],\"ID\":\"250\"}")
            }
            Some("250") => json("200 OK", "{\"ipaddress\":[\"198.51.100.3\"],\"ID\":\"300\"}"),
            Some("300") => no_new_bans(),
            _ => json("403 Forbidden", "{\"ipaddress\":[\"0.0.0.0\"],\"ID\":\"unauthorized\"}"),
        }
    });
    let (config, _key) = with_key(&server, "api", FeedFormat::Apiban);
    let mut followed = Followed::new(config);
    followed.until("the list", |followed| followed.state.is_settled);
    assert_eq!(followed.listed(), ["198.51.100.1", "198.51.100.2", "198.51.100.3"]);
    // Continues from its position, also after a restart.
    let asked = server.requests().len();
    followed.sync(false);
    assert!(
        server.requests()[asked..].iter().all(|head| head.contains("/banned/300 ")),
        "it knows which interface"
    );
    let mut followed = followed.restart();
    assert_eq!(followed.listed().len(), 3);
    server.answer_with(|head| match head {
        head if head.starts_with("POST ") => no_such_page(),
        head if head.contains("/banned/300 ") => {
            json("200 OK", "{\"ipaddress\":[\"198.51.100.4\"],\"ID\":\"301\"}")
        }
        _ => no_new_bans(),
    });
    assert_eq!(followed.sync(false).error, None);
    assert_eq!(followed.listed().len(), 4);
    let row = followed.row().to_string();
    let saved = fs::read_to_string(followed.directory.path().join("test.list")).unwrap();
    assert!(!row.contains(KEY) && !saved.contains(KEY));
}

/// The newer interface, as APIBAN's own client speaks it.
#[test]
fn apiban_by_its_newer_interface() {
    let server = ListServer::start(no_new_bans()).unwrap();
    server.answer_with(|request| {
        let has_key = request
            .to_ascii_lowercase()
            .contains(&format!("authorization: bearer {}\r\n", KEY.to_lowercase()));
        if !request.starts_with("POST /api/get ") {
            return json("404 Not Found", "{\"error\":\"not found\"}");
        }
        if !has_key || !request.contains("\"set\":\"test\"") {
            return json("403 Forbidden", "{\"ipaddress\":[\"0.0.0.0\"],\"ID\":\"unauthorized\"}");
        }
        match request.contains("\"id\":\"100\"") {
            true => json(
                "200 OK",
                "{\"ipaddress\":[\"198.51.100.1\",\"198.51.100.2\"],\"ID\":\"1700000001\"}",
            ),
            false => no_new_bans(),
        }
    });
    let (config, key) = with_key(&server, "api/", FeedFormat::Apiban);
    let config = FeedConfig { set: Some("test".to_owned()), ..config };
    let mut followed = Followed::new(config);
    followed.until("the list", |followed| followed.state.is_settled);
    assert_eq!(followed.listed(), ["198.51.100.1", "198.51.100.2"]);
    let asked = server.requests().len();
    assert_eq!(followed.sync(false).error, None, "that there is nothing new is no fault");
    let since = server.requests().split_off(asked);
    assert!(since.iter().all(|request| request.contains("\"id\":\"1700000001\"")), "{since:?}");
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.starts_with("POST ") && !request.contains(&format!("/{KEY}")))
    );
    fs::write(key.path().join("key"), "another").unwrap();
    let error = followed.sync(false).error.unwrap();
    assert!(error.contains("refuses the key"), "{error}");
    assert_eq!(followed.listed().len(), 2);
}

#[test]
fn apiban_that_wants_a_pause() {
    let server = ListServer::start(no_new_bans()).unwrap();
    let too_many = || {
        Reply::new(
            "429 Too Many Requests",
            &["Retry-After: 90"],
            "{\"ipaddress\":\"rate limit\",\"ID\":\"none\"}",
        )
    };
    server.answer_with(move |head| match head {
        head if head.starts_with("POST ") => no_such_page(),
        head if head.contains("/banned/100 ") => {
            json("200 OK", "{\"ipaddress\":[\"198.51.100.1\"],\"ID\":\"250\"}")
        }
        _ => too_many(),
    });
    let (config, _key) = with_key(&server, "api/", FeedFormat::Apiban);
    let mut followed = Followed::new(config);
    followed.until("the first page", |followed| {
        followed.state.is_settled && followed.state.next_ms > 0
    });
    assert_eq!(followed.listed(), ["198.51.100.1"], "what came before the pause is in force");
    let state = followed.sync(false);
    assert!(state.error.unwrap().contains("HTTP 429"));
    let next = followed.row()["next"].as_u64().unwrap();
    assert!((79..=100).contains(&next), "{next}");
    server.reply(json("403 Forbidden", "{\"ipaddress\":[\"0.0.0.0\"],\"ID\":\"unauthorized\"}"));
    let error = followed.sync(false).error.unwrap();
    assert!(error.contains("refuses the key") && !error.contains(KEY), "{error}");
    assert_eq!(followed.listed(), ["198.51.100.1"]);
}

#[test]
fn a_key_goes_to_one_server_only() {
    let other = ListServer::start(no_new_bans()).unwrap();
    let location = format!("Location: {}", other.url("x"));
    for (format, path) in [(FeedFormat::Apiban, "api"), (FeedFormat::Crowdsec, "")] {
        let server = ListServer::start(Reply::new("302 Found", &[&location], "")).unwrap();
        let (config, _key) = with_key(&server, path, format);
        let mut followed = Followed::new(config);
        let error = followed
            .until("a failure", |followed| followed.state.error.is_some())
            .error
            .clone()
            .unwrap();
        assert!(error.contains("must not go") && !error.contains(KEY), "{error}");
    }
    assert!(other.requests().is_empty());
}

#[test]
fn a_key_file_is_read_each_time() {
    let server = ListServer::start(json("200 OK", "{\"new\":null,\"deleted\":null}")).unwrap();
    let (config, key) = with_key(&server, "", FeedFormat::Crowdsec);
    let mut followed = Followed::new(config);
    followed.until("an answer", |followed| followed.state.is_settled);
    fs::write(key.path().join("key"), "another").unwrap();
    followed.sync(false);
    assert!(
        server.requests().last().unwrap().to_ascii_lowercase().contains("x-api-key: another\r\n")
    );
    fs::remove_file(key.path().join("key")).unwrap();
    assert!(followed.sync(false).error.unwrap().contains("cannot be read"));
}

fn decision(value: &str, duration: &str) -> String {
    let scope = if value.contains('/') { "Range" } else { "Ip" };
    format!(
        r#"{{"id":1,"origin":"cscli","type":"ban","scope":"{scope}","value":"{value}",
            "duration":"{duration}","scenario":"s"}}"#
    )
}

#[test]
fn crowdsec_tells_what_changes() {
    let server = ListServer::start(no_new_bans()).unwrap();
    let all = [
        decision("198.51.100.1", "3h59m"),
        decision("203.0.113.0/24", "24h"),
        decision("198.51.100.2", "1s"),
    ];
    let all = format!("{{\"new\":[{}],\"deleted\":null}}", all.join(","));
    let more = format!(
        "{{\"new\":[{}],\"deleted\":[{}]}}",
        decision("198.51.100.3", "1h"),
        decision("198.51.100.1", "-1s")
    );
    server.answer_with(move |head| match head.contains("startup=true") {
        true => json("200 OK", &all),
        false => json("200 OK", &more),
    });
    let (config, _key) = with_key(&server, "", FeedFormat::Crowdsec);
    let mut followed = Followed::new(config);
    followed.until("everything", |followed| followed.state.is_settled);
    assert_eq!(followed.listed(), ["198.51.100.1", "198.51.100.2", "203.0.113.0/24"]);
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    followed.sync(false);
    assert_eq!(
        followed.listed(),
        ["198.51.100.3", "203.0.113.0/24"],
        "one deleted, one over, one new"
    );
    // After a failure the changes of the meantime are unknown: everything is fetched again, as by a
    // new daemon.
    server.reply(json("500 Internal Server Error", ""));
    followed.sync(false);
    assert_eq!(followed.listed().len(), 2);
    server.reply(json("200 OK", &format!("{{\"new\":[{}]}}", decision("198.51.100.9", "1h"))));
    followed.sync(false);
    let last = server.requests().pop().unwrap();
    assert!(
        last.starts_with("GET /v1/decisions/stream?") && last.contains("startup=true"),
        "{last}"
    );
    assert_eq!(followed.listed(), ["198.51.100.9"]);
    let mut followed = followed.restart();
    followed.until("everything", |followed| followed.state.next_ms > 0);
    followed.sync(false);
    assert!(server.requests().iter().filter(|head| head.contains("startup=true")).count() >= 3);
}
