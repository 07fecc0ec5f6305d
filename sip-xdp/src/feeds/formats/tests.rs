//! Tests of all formats: detection, non-lists, and arbitrary bytes.

use std::io::Read;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::config::FeedFormat as Name;

pub(super) fn limits() -> Limits {
    Limits { entries: 1_000, bytes: 1 << 20, min_count: 1, min_prefix: 8, min_prefix6: 19 }
}

pub(super) fn read_with(format: Name, text: &[u8], limits: &Limits) -> Result<Parsed, String> {
    parse(of(format), Box::new(text), limits).map_err(|failure| failure.reason)
}

pub(super) fn read(format: Name, text: &[u8]) -> Result<Parsed, String> {
    read_with(format, text, &limits())
}

pub(super) fn networks(parsed: &Parsed) -> Vec<String> {
    parsed.networks.iter().map(ToString::to_string).collect()
}

const LISTS: [Name; 5] = [Name::Auto, Name::List, Name::Counts, Name::Spamhaus, Name::Dshield];

#[test]
fn names_differ_and_are_read_as_they_are_written() {
    for (at, name) in Name::ALL.iter().enumerate() {
        assert_eq!(of(*name).is_none(), *name == Name::Auto, "{name:?}");
        let written = toml::Value::try_from(name).unwrap();
        assert_eq!(written.as_str(), Some(name.name()));
        assert_eq!(written.try_into::<Name>().unwrap(), *name);
        assert!(Name::ALL[..at].iter().all(|other| other.name() != name.name()), "{name:?}");
    }
}

#[test]
fn the_chapter_of_feeds_has_a_row_for_each_format() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/feeds.md");
    let chapter = std::fs::read_to_string(path).unwrap();
    let head = "| format | what it looks like |\n|---|---|\n";
    let (above, behind) = chapter.split_once(head).expect("there is a table of formats");
    let (found, below) = behind.split_once("\n\n").expect("the table has an end");
    let rows: Vec<String> =
        all().map(|format| format!("| `{}` | {} |", format.name(), format.words())).collect();
    let rows = rows.join("\n");
    if std::env::var_os("SIP_XDP_BLESS").is_some() {
        std::fs::write(path, format!("{above}{head}{rows}\n\n{below}")).unwrap();
    } else {
        assert_eq!(found, rows, "docs/feeds.md is stale: run `cargo xtask docs`");
    }
}

#[test]
fn malformed_entries_are_skipped_with_their_line() {
    let mut text =
        b"192.0.2.1\n192.0.2.2\n192.0.2.3\n192.0.2.4\n192.0.2.5\n192.0.2.6\n192.0.2.7\n".to_vec();
    text.extend_from_slice(
        b"192.0.2.8198.51.100.1\n192.0.2.9-192.0.2.1\nlocalhost\n192.0.2.\xff\n",
    );
    text.extend_from_slice(&[b'1'; 10_000]);
    text.extend_from_slice(b"\n0.0.0.0/0\n::/0\n::ffff:192.0.2.9\n192.0.2.9/33\n");
    let parsed = read(Name::List, &text).unwrap();
    assert_eq!(parsed.tally.first_malformed, Some(8));
    assert_eq!(parsed.tally.count(reason::MALFORMED), 6);
    assert_eq!(
        (parsed.tally.count(reason::TOO_BROAD), parsed.tally.count(reason::SPECIAL)),
        (1, 1)
    );
    // 0.0.0.0/0 is left to the guards, which limit prefix lengths.
    assert_eq!(parsed.networks.len(), 8);
}

#[test]
fn other_formats_are_refused() {
    for format in LISTS {
        for text in [
            "<!DOCTYPE html>\n<html>",
            "\n\n  <?xml version=\"1.0\"?>",
            "<html>\n192.0.2.1\n192.0.2.2\n",
        ] {
            assert!(
                read(format, text.as_bytes()).unwrap_err().contains("HTML"),
                "{format:?} {text}"
            );
        }
    }
    assert!(read(Name::List, b"{\"cidr\":\"192.0.2.0/24\"}\n").unwrap_err().contains("JSON"));
    assert!(read(Name::Auto, b"[\"192.0.2.1\"]").unwrap_err().contains("JSON"));
    let error = read(Name::List, b"nothing here\n192.0.2.1\nsorry\n").unwrap_err();
    assert!(error.contains("2 of 3 lines") && error.contains("line 1"), "{error}");
    assert!(
        read(Name::List, &b"192.0.2.1\n".repeat(1_001)).unwrap_err().contains("more than 1000")
    );
}

#[test]
fn error_pages_are_named_and_never_quoted() {
    for (text, expected) in [
        (
            "You have exceeded the number of allowed requests. Please try again later.\n",
            "its rate limit",
        ),
        ("# Too many requests from your address\n", "its rate limit"),
        ("error: unauthorized, key sEcret\n", "access is refused"),
        ("Down for maintenance\n\nsorry", "out of order"),
    ] {
        let failure = parse(None, Box::new(text.as_bytes()), &limits()).unwrap_err();
        assert!(
            failure.reason.contains(expected) && !failure.reason.contains("sEcret"),
            "{failure:?}"
        );
        assert_eq!(failure.retry_after.is_some(), expected.contains("rate"));
    }
    // In a valid list a comment may mention rate limits.
    let parsed = read(Name::Auto, b"# do not ask too often: rate limit 1/h\n192.0.2.1\n").unwrap();
    assert_eq!((parsed.networks.len(), parsed.format), (1, "list"));
}

/// A reader that returns a few bytes at a time, like a slow network.
struct Dripping<'a>(&'a [u8], usize);

impl Read for Dripping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.1.min(self.0.len()).min(buffer.len());
        buffer[..length].copy_from_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Ok(length)
    }
}

fn formats() -> impl Strategy<Value = Name> {
    prop::sample::select(&LISTS[..])
}

proptest! {
    #[test]
    fn no_bytes_upset_a_parser(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        format in formats(),
    ) {
        let _ = read(format, &bytes);
    }

    #[test]
    fn no_text_upsets_a_parser(
        text in "[0-9a-f.:/#; \t\r\n\"{}\\[\\],-]{0,300}",
        format in formats(),
        drip in 1_usize..9,
    ) {
        let at_once = read(format, text.as_bytes());
        let dripping = parse(of(format), Box::new(Dripping(text.as_bytes(), drip)), &limits());
        let dripping = dripping.map_err(|failure| failure.reason);
        prop_assert_eq!(at_once, dripping, "the sizes of reads matter");
    }

    #[test]
    fn long_lines_are_read_alike(
        words in prop::collection::vec("[0-9.,#; ]{0,40}", 0..300),
        drip in 1_usize..5_000,
    ) {
        let text = words.join(" ");
        let at_once = read(Name::List, text.as_bytes());
        let dripping = parse(of(Name::List), Box::new(Dripping(text.as_bytes(), drip)), &limits());
        prop_assert_eq!(at_once, dripping.map_err(|failure| failure.reason));
    }

    #[test]
    fn every_network_is_read_as_it_is_written(
        v4 in any::<u32>(),
        v6 in any::<u128>(),
        p in 0_u8..=32,
        q in 0_u8..=128,
    ) {
        let v4 = ipnet::Ipv4Net::new(v4.into(), p).unwrap();
        let v6 = ipnet::Ipv6Net::new((v6 | 1 << 126).into(), q.max(2)).unwrap();
        let text = format!("{v4}\r\n{v6} # both\n");
        let parsed = read(Name::List, text.as_bytes()).unwrap();
        let expected = vec![Network::from(IpNet::from(v4)), Network::from(IpNet::from(v6))];
        prop_assert_eq!(parsed.networks, expected);
    }

    #[test]
    fn fused_lines_name_nobody(one in any::<u32>(), two in any::<u32>()) {
        let fused = format!("{}{}", std::net::Ipv4Addr::from(one), std::net::Ipv4Addr::from(two));
        prop_assert_eq!(Word::read(&fused), Word::Malformed);
    }
}
