//! What the formats are taken to say.

use std::io::{BufReader, Read};
use std::time::Duration;

use proptest::prelude::*;

use super::crowdsec::{Decisions, duration};
use super::*;

fn read(format: FeedFormat, text: &[u8]) -> Result<Parsed, String> {
    parse(format, text, 1_000)
}

fn networks(parsed: &Parsed) -> Vec<String> {
    parsed.networks.iter().map(ToString::to_string).collect()
}

#[test]
fn a_list_with_all_that_people_write() {
    let text =
        b"\xef\xbb\xbf# comment\r\n; another\r\n192.0.2.1\r\n\r\n  198.51.100.7/24 # host bits\n2001:db8::/32 ; v6\n\
                 192.0.2.1\n203.0.113.0/24\t\n2001:db8::5";
    let parsed = read(FeedFormat::List, text).unwrap();
    let expected = ["192.0.2.1", "198.51.100.0/24", "2001:db8::/32", "192.0.2.1", "203.0.113.0/24", "2001:db8::5"];
    assert_eq!(networks(&parsed), expected);
    assert_eq!((parsed.tally.host_bits, parsed.tally.skipped.len()), (1, 0));
}

#[test]
fn what_is_no_entry_is_skipped_with_its_line() {
    let mut text = b"192.0.2.1\n192.0.2.2\n192.0.2.3\n192.0.2.4\n192.0.2.5\n192.0.2.6\n192.0.2.7\n".to_vec();
    text.extend_from_slice(
        b"192.0.2.8198.51.100.1\n192.0.2.1 192.0.2.2\n192.0.2.1-192.0.2.9\nlocalhost\n192.0.2.\xff\n",
    );
    text.extend_from_slice(&[b'1'; 10_000]);
    text.extend_from_slice(b"\n0.0.0.0/0\n::/0\n::ffff:192.0.2.9\n192.0.2.9/33\n");
    let parsed = read(FeedFormat::List, &text).unwrap();
    assert_eq!(parsed.tally.first_malformed, Some(8));
    assert_eq!(parsed.tally.count(reason::MALFORMED), 7);
    assert_eq!((parsed.tally.count(reason::TOO_BROAD), parsed.tally.count(reason::SPECIAL)), (1, 1));
    // 0.0.0.0/0 is left to the guards, which know how broad a network may be.
    assert_eq!(parsed.networks.len(), 8);
}

#[test]
fn what_is_another_format_is_refused() {
    for format in [FeedFormat::List, FeedFormat::Spamhaus, FeedFormat::Dshield] {
        for text in ["<!DOCTYPE html>\n<html>", "\n\n  <?xml version=\"1.0\"?>", "<html>\n192.0.2.1\n192.0.2.2\n"] {
            assert!(read(format, text.as_bytes()).unwrap_err().contains("HTML"), "{format:?} {text}");
        }
    }
    assert!(read(FeedFormat::List, b"{\"cidr\":\"192.0.2.0/24\"}\n").unwrap_err().contains("JSON"));
    assert!(read(FeedFormat::List, b"[\"192.0.2.1\"]").unwrap_err().contains("JSON"));
    let error = read(FeedFormat::List, b"not found\n192.0.2.1\nsorry\n").unwrap_err();
    assert!(error.contains("2 of 3 lines") && error.contains("line 1"), "{error}");
    assert!(read(FeedFormat::List, &b"192.0.2.1\n".repeat(1_001)).unwrap_err().contains("more than 1000"));
}

#[test]
fn spamhaus_in_both_shapes() {
    let json = "{\"cidr\":\"192.0.2.0/24\",\"sblid\":\"SBL1\",\"rir\":\"ripe\"}\n{\"cidr\":\"2001:db8::/32\"}\n\
                {\"type\":\"metadata\",\"timestamp\":1,\"records\":2}\n";
    let parsed = read(FeedFormat::Spamhaus, json.as_bytes()).unwrap();
    assert_eq!(networks(&parsed), ["192.0.2.0/24", "2001:db8::/32"]);
    let cut = json.replace("{\"cidr\":\"2001:db8::/32\"}\n", "");
    assert!(read(FeedFormat::Spamhaus, cut.as_bytes()).unwrap_err().contains("announces 2 records and has 1"));
    let text = "; Spamhaus DROP List\n192.0.2.0/24 ; SBL256894\n198.51.100.0/24 ; SBL2\nnonsense ; SBL3\n";
    let parsed = read(FeedFormat::Spamhaus, text.as_bytes()).unwrap();
    assert_eq!(networks(&parsed), ["192.0.2.0/24", "198.51.100.0/24"]);
    assert_eq!(parsed.tally.first_malformed, Some(4));
}

#[test]
fn dshield_columns_must_agree() {
    let text = "# DShield\nStart\tEnd\tNetmask\n192.0.2.0\t192.0.2.255\t24\t5000\tNAME\tZZ\tmail\n\
                198.51.100.0\t198.51.100.255\t24\n203.0.113.0\t203.0.113.127\t24\n";
    let parsed = read(FeedFormat::Dshield, text.as_bytes()).unwrap();
    assert_eq!(networks(&parsed), ["192.0.2.0/24", "198.51.100.0/24"]);
    assert_eq!(parsed.tally.first_malformed, Some(5));
}

#[test]
fn apiban_pages() {
    let more = page(200, b"{\"ipaddress\":[\"192.0.2.1\",\"192.0.2.2\",\"x\"],\"ID\":\"98765\"}").unwrap();
    let Page::More(parsed, id) = more else { panic!("{more:?}") };
    assert_eq!((networks(&parsed).len(), id.as_str(), parsed.tally.count(reason::MALFORMED)), (2, "98765", 1));
    assert_eq!(page(400, b"{\"ipaddress\":[\"no new bans\"],\"ID\":\"none\"}"), Ok(Page::End));
    assert!(page(403, b"{\"ipaddress\":[\"0.0.0.0\"],\"ID\":\"unauthorized\"}").unwrap_err().contains("key"));
    assert!(page(429, b"{\"ipaddress\":\"rate limit exceeded\",\"ID\":\"none\"}").unwrap_err().contains("429"));
    assert!(page(200, b"<html>").unwrap_err().contains("HTML"));
    assert!(page(200, b"{\"ipaddress\":[\"192.0.2.1\"").unwrap_err().contains("cut off"));
    assert!(page(200, b"{\"ipaddress\":[\"192.0.2.1\"],\"ID\":\"../x\"}").unwrap_err().contains("no ID"));
}

#[test]
fn crowdsec_does_not_give_us_our_own_back() {
    let decision = |id: u32, scenario: &str| {
        format!(
            "{{\"id\":{id},\"origin\":\"crowdsec\",\"type\":\"ban\",\"scope\":\"Ip\",\"value\":\"192.0.2.1\",\
             \"duration\":\"1h\",\"scenario\":\"{scenario}\"}}"
        )
    };
    let new = [decision(4, "sip-xdp/gw1/rejected"), decision(5, "sip-xdp/gw10/rejected"), decision(6, "ssh-bf")];
    let text = format!("{{\"new\":[{}],\"deleted\":[{}]}}", new.join(","), decision(3, "sip-xdp/gw1/slow"));
    let ids =
        |own| -> Vec<u64> { decisions(text.as_bytes(), own).unwrap().new.iter().map(|((id, _), _)| *id).collect() };
    assert_eq!(ids(Some("sip-xdp/gw1/")), [5, 6]);
    assert_eq!(ids(None), [4, 5, 6]);
}

#[test]
fn crowdsec_decisions() {
    let text = "{\"new\":[{\"id\":1,\"origin\":\"CAPI\",\"type\":\"ban\",\"scope\":\"Ip\",\"value\":\"192.0.2.1\",\
                \"duration\":\"3h59m\",\"scenario\":\"x\"},{\"type\":\"ban\",\"scope\":\"Range\",\"value\":\"198.51.100.0/24\",\
                \"duration\":\"1h\"},{\"type\":\"captcha\",\"scope\":\"Ip\",\"value\":\"192.0.2.2\",\"duration\":\"1h\"},\
                {\"type\":\"ban\",\"scope\":\"Country\",\"value\":\"ZZ\",\"duration\":\"1h\"}],\"deleted\":null}";
    let found = decisions(text.as_bytes(), None).unwrap();
    assert_eq!(found.new.len(), 2);
    assert_eq!(found.new[0].1, Duration::from_secs(4 * 3_600 - 60));
    assert_eq!(found.tally.count(reason::OTHER), 2);
    assert_eq!(decisions(&b"{\"new\":null,\"deleted\":null}"[..], None), Ok(Decisions::default()));
    let text =
        "{\"deleted\":[{\"type\":\"ban\",\"scope\":\"Ip\",\"value\":\"192.0.2.1\",\"duration\":\"-5s\"}],\"new\":[]}";
    assert_eq!(decisions(text.as_bytes(), None).unwrap().deleted.len(), 1);
    assert!(decisions(&b"<html>"[..], None).is_err() && decisions(&b"{\"new\":["[..], None).is_err());
    for (text, expected) in [
        ("3h59m", Some(14_340.0)),
        ("1h2m3.5s", Some(3_723.5)),
        ("250ms", Some(0.25)),
        ("-1h", Some(0.0)),
        ("", None),
        ("5", None),
        ("1x", None),
        ("h", None),
        ("1.2.3h", None),
    ] {
        assert_eq!(duration(text).map(|found| found.as_secs_f64()), expected, "{text}");
    }
    assert!(duration(&"9".repeat(300)).is_none() && duration(&format!("{}h", "9".repeat(300))).is_some());
}

/// Hands out a few bytes at a time, as a slow network does.
struct Dripping<'a>(&'a [u8], usize);

impl Read for Dripping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.1.min(self.0.len()).min(buffer.len());
        buffer[..length].copy_from_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Ok(length)
    }
}

fn formats() -> impl Strategy<Value = FeedFormat> {
    prop_oneof![Just(FeedFormat::List), Just(FeedFormat::Spamhaus), Just(FeedFormat::Dshield)]
}

proptest! {
    #[test]
    fn no_bytes_upset_a_parser(bytes in prop::collection::vec(any::<u8>(), 0..600), format in formats()) {
        let _ = read(format, &bytes);
        let _ = page(200, &bytes);
        let _ = decisions(&bytes[..], None);
    }

    #[test]
    fn no_text_upsets_a_parser(text in "[0-9a-f.:/#; \t\r\n\"{}\\[\\],]{0,300}", format in formats(), drip in 1_usize..9) {
        let at_once = read(format, text.as_bytes());
        let dripping = parse(format, BufReader::with_capacity(drip, Dripping(text.as_bytes(), drip)), 1_000);
        prop_assert_eq!(at_once, dripping, "it matters not how the bytes arrive");
    }

    #[test]
    fn every_network_is_read_as_it_is_written(v4 in any::<u32>(), v6 in any::<u128>(), p in 0_u8..=32, q in 0_u8..=128) {
        let v4 = ipnet::Ipv4Net::new(v4.into(), p).unwrap();
        let v6 = ipnet::Ipv6Net::new((v6 | 1 << 126).into(), q.max(2)).unwrap();
        let text = format!("{v4}\r\n{v6} # both\n");
        let parsed = read(FeedFormat::List, text.as_bytes()).unwrap();
        prop_assert_eq!(parsed.networks, vec![Network::from(IpNet::from(v4)), Network::from(IpNet::from(v6))]);
    }

    #[test]
    fn fused_lines_name_nobody(one in any::<u32>(), two in any::<u32>()) {
        let fused = format!("{}{}", std::net::Ipv4Addr::from(one), std::net::Ipv4Addr::from(two));
        prop_assert_eq!(Word::read(&fused), Word::Malformed);
    }

    #[test]
    fn durations_never_panic(text in "[-0-9.hmsnuµ]{0,40}") {
        let _ = duration(&text);
    }
}
