//! Wrong and implausible responses. Whatever comes, the last good list stays in force.

use std::time::{Duration, Instant};

use sip_xdp::config::FeedFormat;
use sip_xdp_tests::{ListServer, Reply};

use crate::feeds::harness::{Followed, addresses, config};

/// A feed that has had a good list of 100 entries.
fn followed() -> (ListServer, Followed) {
    let server = ListServer::start(Reply::list(addresses(100))).unwrap();
    let mut followed = Followed::new(config(&server, "list.txt", FeedFormat::List));
    followed.until("the first list", |followed| followed.state.is_settled);
    assert_eq!(followed.listed().len(), 100);
    (server, followed)
}

/// The feed's error for this response; the last list must stay.
fn is_kept(reply: Reply, expected: &str) {
    let (server, mut followed) = followed();
    server.reply(reply);
    let state = followed.sync(false);
    let error = state.error.clone().unwrap_or_default();
    assert!(error.contains(expected), "{error:?}, not {expected:?}");
    assert_eq!((followed.listed().len(), followed.changes), (100, 1), "the last good list stays");
    println!("{error}");
    // And it recovers with the next good response.
    server.reply(Reply::list(addresses(101)));
    assert_eq!(followed.sync(false).error, None);
    assert_eq!(followed.listed().len(), 101);
}

fn refused(reply: Reply, expected: &str) {
    let (server, mut followed) = followed();
    server.reply(reply);
    for _ in 0..2 {
        let state = followed.sync(false);
        assert!(state.is_refused && state.error.as_ref().unwrap().contains(expected), "{state:?}");
        assert!(followed.row()["guards"].as_array().unwrap().contains(&"size".into()));
        assert_eq!(followed.listed().len(), 100);
    }
    let state = followed.sync(true);
    assert!(!state.is_refused && state.error.is_none(), "{state:?}");
    assert_ne!(followed.listed().len(), 100, "an operator took it");
    assert_eq!(followed.sync(false).error, None, "and it is what the next list is held against");
}

#[test]
fn html_with_status_200() {
    is_kept(
        Reply::list("<!DOCTYPE html>\n<html><body>Sorry, 192.0.2.1 is blocked</body></html>\n"),
        "HTML",
    );
}

#[test]
fn json_instead_of_lines() {
    is_kept(Reply::list("{\"error\": \"gone\"}\n"), "JSON");
}

#[test]
fn a_wrong_content_type() {
    is_kept(
        Reply::new("200 OK", &["Content-Type: text/html; charset=utf-8"], addresses(100)),
        "sends text/html",
    );
    is_kept(
        Reply::new("200 OK", &["Content-Type: image/png"], b"\x89PNG\r\n\x1a\n"),
        "sends image/png",
    );
}

#[test]
fn prose() {
    is_kept(
        Reply::list("This list has moved.\nPlease see our website.\n192.0.2.1\n"),
        "2 of 3 lines are no entries",
    );
}

#[test]
fn an_empty_list() {
    refused(Reply::list(""), "it is empty");
    refused(Reply::list("# nothing today\n"), "it is empty");
}

#[test]
fn a_list_that_shrank_by_half() {
    refused(Reply::list(addresses(50)), "it shrank from 100 to 50 entries");
}

#[test]
fn a_list_that_tripled() {
    refused(Reply::list(addresses(300)), "it grew from 100 to 300 entries");
}

#[test]
fn a_list_that_changed_as_lists_do() {
    let (server, mut followed) = followed();
    for count in [60, 170, 100] {
        server.reply(Reply::list(addresses(count)));
        assert_eq!(followed.sync(false).error, None);
        assert_eq!(followed.listed().len(), count as usize);
    }
}

#[test]
fn a_fused_line() {
    let (server, mut followed) = followed();
    server.reply(Reply::list(addresses(100).replacen(
        "198.51.100.7\n198.51.100.8\n",
        "198.51.100.7198.51.100.8\n",
        1,
    )));
    let state = followed.sync(false);
    assert_eq!((state.error, state.tally.first_malformed), (None, Some(8)));
    assert_eq!(followed.row()["skipped"]["malformed"], 1);
    assert_eq!(followed.listed().len(), 98);
    assert!(!followed.blocks("198.51.100.7") && !followed.blocks("98.51.100.8"));
}

#[test]
fn gzip() {
    let (server, mut followed) = followed();
    let packed = gzip_of(&addresses(120));
    let headers = ["Content-Type: text/plain", "Content-Encoding: gzip"];
    server.reply(Reply::new("200 OK", &headers, &packed));
    assert_eq!(followed.sync(false).error, None);
    assert_eq!(followed.listed().len(), 120);
}

#[test]
fn truncated_gzip() {
    let packed = gzip_of(&addresses(120));
    let headers = ["Content-Type: text/plain", "Content-Encoding: gzip"];
    is_kept(Reply::new("200 OK", &headers, &packed[..packed.len() / 2]), "cut off");
    is_kept(Reply::new("200 OK", &headers, "this is not gzip"), "compression");
}

#[test]
fn a_body_that_is_cut_off() {
    let Reply::Bytes(mut bytes) = Reply::list(addresses(100)) else { panic!("no bytes") };
    bytes.truncate(bytes.len() - 100);
    is_kept(Reply::Bytes(bytes), "cut off");
}

#[test]
fn not_found() {
    is_kept(
        Reply::new("404 Not Found", &["Content-Type: text/plain"], addresses(100)),
        "HTTP 404: there is no such list",
    );
}

#[test]
fn too_many_requests() {
    let (server, mut followed) = followed();
    server.reply(Reply::new("429 Too Many Requests", &["Retry-After: 7200"], ""));
    assert!(followed.sync(false).error.unwrap().contains("HTTP 429"));
    let next = followed.row()["next"].as_u64().unwrap();
    assert!((6_400..=8_000).contains(&next), "asked again in {next} s");
    server.reply(Reply::new("503 Service Unavailable", &[], ""));
    assert!(followed.sync(false).error.unwrap().contains("HTTP 503"));
    let next = followed.row()["next"].as_u64().unwrap();
    assert!((50..=70).contains(&next), "the second failure in turn: {next} s");
}

#[test]
fn a_slow_loris() {
    let (server, mut followed) = followed();
    let Reply::Bytes(bytes) = Reply::list(addresses(100)) else { panic!("no bytes") };
    server.reply(Reply::Dripping(bytes, Duration::from_millis(200)));
    let start = Instant::now();
    assert!(followed.sync(false).error.unwrap().contains("no whole answer within 30 s"));
    assert!(start.elapsed() < Duration::from_secs(35), "{:?}", start.elapsed());
    assert_eq!(followed.listed().len(), 100);
}

#[test]
fn an_endless_body() {
    let (server, _) = followed();
    let mut config = config(&server, "list.txt", FeedFormat::List);
    config.guards.max_bytes = 1 << 20;
    server.reply(Reply::Endless(b"# nothing but comments\n".repeat(1_000)));
    let mut followed = Followed::new(config);
    let error = followed
        .until("a failure", |followed| followed.state.error.is_some())
        .error
        .clone()
        .unwrap();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    server.reply(Reply::Endless(vec![b'1'; 10_000]));
    assert!(
        followed.sync(false).error.unwrap().contains("more than 1048576 bytes"),
        "one endless line"
    );
}

#[test]
fn a_bomb_of_zeros() {
    let packed = gzip_of(&"\n".repeat(16 << 20));
    assert!(packed.len() < 100_000);
    let server =
        ListServer::start(Reply::new("200 OK", &["Content-Encoding: gzip"], packed)).unwrap();
    let mut config = config(&server, "list.txt", FeedFormat::List);
    config.guards.max_bytes = 1 << 20;
    let mut followed = Followed::new(config);
    let error = followed
        .until("a failure", |followed| followed.state.error.is_some())
        .error
        .clone()
        .unwrap();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
}

#[test]
fn too_many_entries() {
    let server = ListServer::start(Reply::list(addresses(100))).unwrap();
    let mut config = config(&server, "list.txt", FeedFormat::List);
    config.guards.max_entries = 99;
    let mut followed = Followed::new(config);
    let error = followed
        .until("a failure", |followed| followed.state.error.is_some())
        .error
        .clone()
        .unwrap();
    assert!(error.contains("more than 99 entries"), "{error}");
}

#[test]
fn a_redirect_loop() {
    let (server, mut followed) = followed();
    let before = server.requests().len();
    server.reply(Reply::new("302 Found", &["Location: /list.txt"], ""));
    assert!(followed.sync(false).error.unwrap().contains("redirects"));
    let asked = server.requests().len() - before;
    assert!(asked <= 6, "{asked} requests");
    assert_eq!(followed.listed().len(), 100);
}

#[test]
fn a_redirect_to_the_list() {
    let (server, mut followed) = followed();
    server.answer_with(|head| match head.starts_with("GET /moved ") {
        true => Reply::list(addresses(101)),
        false => Reply::new("301 Moved Permanently", &["Location: /moved"], ""),
    });
    assert_eq!(followed.sync(false).error, None);
    assert_eq!(followed.listed().len(), 101);
}

#[test]
fn nobody_listens() {
    let (server, mut followed) = followed();
    drop(server);
    std::thread::sleep(Duration::from_millis(100));
    assert!(followed.sync(false).error.is_some());
    assert_eq!(followed.listed().len(), 100);
}

#[test]
fn bogons_and_default_routes() {
    let (server, mut followed) = followed();
    let odd = "0.0.0.0/0\n::/0\n10.0.0.0/8\n0.1.0.1\n127.0.0.1\n192.168.1.1\n\
               fe80::1\n::1\n::ffff:8.8.8.8\n224.0.0.1\n";
    server.reply(Reply::list(addresses(100) + odd));
    assert_eq!(followed.sync(false).error, None);
    assert_eq!(followed.listed().len(), 100);
    let row = followed.row();
    assert_eq!(
        (&row["skipped"]["too_broad"], &row["skipped"]["special"]),
        (&2.into(), &8.into()),
        "{row}"
    );
}

#[test]
fn what_must_stay_reachable() {
    let server =
        ListServer::start(Reply::list("198.51.100.0/24\n203.0.113.1\n192.0.2.7\n")).unwrap();
    let config = config(&server, "list.txt", FeedFormat::List);
    let mut followed = Followed::protecting(config, &["198.51.100.1", "203.0.113.0/24"]);
    followed.until("the first list", |followed| followed.state.is_settled);
    assert!(!followed.blocks("198.51.100.1") && !followed.blocks("203.0.113.1"));
    assert!(followed.blocks("198.51.100.2") && followed.blocks("192.0.2.7"));
    let row = followed.row();
    assert_eq!((&row["split"], &row["skipped"]["protected"]), (&1.into(), &1.into()), "{row}");
    // When that changes, the next list is fetched completely, and has it.
    followed.protect(&[]);
    followed.sync(false);
    assert!(followed.blocks("198.51.100.1") && followed.blocks("203.0.113.1"));
}

#[test]
fn duplicates_and_host_bits() {
    let (server, mut followed) = followed();
    server.reply(Reply::list(addresses(100).repeat(2) + "203.0.113.77/24\n"));
    assert_eq!(followed.sync(false).error, None);
    let row = followed.row();
    assert_eq!(
        (&row["skipped"]["duplicate"], &row["host_bits"]),
        (&100.into(), &1.into()),
        "{row}"
    );
    assert!(followed.blocks("203.0.113.1"));
}

#[test]
fn crlf_bom_and_ipv6() {
    let (server, mut followed) = followed();
    let text =
        format!("\u{feff}{}2001:db8::/32\n2001:db8:1::1\n", addresses(100)).replace('\n', "\r\n");
    server.reply(Reply::list(text));
    assert_eq!(followed.sync(false).error, None);
    let row = followed.row();
    assert_eq!(
        (&row["ipv4"], &row["ipv6"], &row["skipped"]),
        (&100.into(), &2.into(), &serde_json::json!({})),
        "{row}"
    );
}

/// A gzip file made by gzip(1), as servers send it.
fn gzip_of(text: &str) -> Vec<u8> {
    use std::io::Write as _;
    let mut command = std::process::Command::new("gzip");
    let command =
        command.arg("-c").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut gzip = command.spawn().unwrap();
    let mut input = gzip.stdin.take().unwrap();
    let text = text.to_owned();
    let writing = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let packed = gzip.wait_with_output().unwrap().stdout;
    writing.join().unwrap();
    packed
}
