//! Tests: the output is valid for Prometheus, and the dashboard's metrics exist.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::api::answers::{HepExportStatus, HepStatus};
use crate::api::event_stream::Latest;
use crate::dataplane::counters::{
    ByVerdict, FilteredInterface, Occupancy, ResponseStats, SourceStats, TcpStats,
};
use crate::feeds::engine::FeedRow;
use crate::observe::snapshot::{Bans, FromDaemon, ListCount, Storm};

/// An overview with every field set.
fn full() -> Overview {
    let packets = ByVerdict {
        pass: [("good", 1)].into(),
        drop: [("blocked", 2)].into(),
        would_drop: [("blocked", 3)].into(),
    };
    let status = DaemonStatus {
        registrar_failing: true,
        sees_responses: true,
        watched_sources: 7,
        served_sources: 3,
        tables: vec![Fill { table: "known".into(), used: 5, limit: 65_536 }],
        hep: vec![HepStatus {
            listen: "udp:127.0.0.1:9060".to_owned(),
            taken: 5,
            ..HepStatus::default()
        }],
        hep_export: Some(HepExportStatus { bans: 3, lost: 1, ..HepExportStatus::default() }),
        feeds: vec![FeedRow {
            name: "a\"b".to_owned(),
            ipv4: 5,
            ipv6: 1,
            age: Some(9),
            error: Some("x".to_owned()),
            guards: vec!["size".to_owned()],
            ..FeedRow::default()
        }],
        ..DaemonStatus::default()
    };
    let interface = FilteredInterface {
        interface: "eth0".to_owned(),
        index: 2,
        current_name: Some("eth0".to_owned()),
        mode: None,
        since: crate::dataplane::counters::now(),
        dry_run: false,
        attached: true,
        trial_over: false,
        trial_until: None,
        egress: None,
    };
    let stats = Stats {
        schema: 1,
        time: crate::dataplane::counters::now(),
        since: None,
        interfaces: vec![InterfaceStats {
            interface: "eth0".to_owned(),
            mode: None,
            bytes: packets.clone(),
            packets,
            methods: [("register", 4)].into(),
            tcp: TcpStats { connections: 5, limited: 1, segments: 9, sampled: 7, unsampled: 2 },
        }],
        responses: ResponseStats { accepted: 1, challenged: 2, refused: 3 },
        lost_events: 1,
        lost_samples: 2,
        blocklist: Occupancy { ipv4: 1, ipv6: 2, capacity: 100 },
        sources: SourceStats { tracked: 1, good: 2, peers: 3 },
    };
    let latest = Latest {
        events: [("storm".to_owned(), 2)].into(),
        bans_by_kind: [("rejected".to_owned(), 3)].into(),
        ..Latest::default()
    };
    Overview {
        loaded: true,
        enforcing: true,
        interfaces: vec![interface],
        stats: Some(stats),
        storm: Storm { is_storm: true, new_sources: 3_000 },
        lists: vec![ListCount { list: "block", owner: "auto", entries: 2 }],
        bans: Bans { proven: 1, unproven: 1, dry_run: 0 },
        ..Overview::empty(FromDaemon { status: Some(status), trouble: None, latest })
    }
}

/// A strict parser of the text format: samples by name, each with its labels as written.
fn parse(text: &str) -> BTreeMap<String, Vec<(String, f64)>> {
    let mut families: BTreeMap<String, Vec<(String, f64)>> = BTreeMap::new();
    let (mut helped, mut typed) = (None, None);
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(help.len() > 10 && help.ends_with('.'), "{line}");
            assert!(!families.contains_key(name), "{name} twice");
            helped = Some(name.to_owned());
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(helped.as_deref(), Some(name), "HELP and TYPE stand together");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            families.insert(name.to_owned(), Vec::new());
            typed = Some(name.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            assert_eq!(typed.as_deref(), Some(name), "a sample without its family: {line}");
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            );
            families.get_mut(name).unwrap().push((labels.to_owned(), value.parse().unwrap()));
        }
    }
    families
}

#[test]
fn it_is_what_prometheus_reads() {
    let families = parse(&render(&full()));
    for (name, samples) in &families {
        assert!(name.starts_with("sip_xdp_"), "{name}");
        assert!(
            !samples.is_empty(),
            "{name} has no sample, so that this test does not see how it looks"
        );
        let labels: BTreeSet<_> = samples.iter().map(|(labels, _)| labels).collect();
        assert_eq!(labels.len(), samples.len(), "a series of {name} twice");
    }
    let value = |name: &str, labels: &str| {
        families[name].iter().find(|(all, _)| all == labels).map(|(_, value)| *value)
    };
    let blocked = "interface=\"eth0\",verdict=\"drop\",reason=\"blocked\"}";
    assert_eq!(value("sip_xdp_packets_total", blocked), Some(2.0));
    assert_eq!(value("sip_xdp_feed_error", "feed=\"a\\\"b\"}"), Some(1.0));
    assert_eq!(value("sip_xdp_bans_total", "kind=\"rejected\"}"), Some(3.0));
    assert_eq!(value("sip_xdp_bans_total", "kind=\"slow\"}"), Some(0.0), "before there is one");
    assert_eq!(value("sip_xdp_storm", ""), Some(1.0));
}

#[test]
fn nothing_loaded_is_said_too() {
    let families = parse(&render(&Overview::empty(FromDaemon::default())));
    assert_eq!(families["sip_xdp_enforcing"], [(String::new(), 0.0)]);
}

#[test]
fn the_dashboard_shows_what_there_is() {
    let dashboard = include_str!("../../../../packaging/grafana/sip-xdp.json");
    let families = parse(&render(&full()));
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let mut asked = BTreeSet::new();
    let panels = dashboard["panels"].as_array().unwrap();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let names: Vec<_> = words.filter(|word| word.starts_with("sip_xdp_")).collect();
            assert!(!names.is_empty(), "{title} asks for nothing: {query}");
            for name in names {
                assert!(
                    families.contains_key(name),
                    "{title} asks for {name}, which does not exist"
                );
                asked.insert(name.to_owned());
            }
        }
    }
    assert!(panels.len() >= 10 && asked.len() >= 15, "{} panels ask for {asked:?}", panels.len());
}

/// Families of a rendering: name, type, labels and help.
fn reference(text: &str) -> Vec<(String, String, BTreeSet<String>, String)> {
    let mut families: Vec<(String, String, BTreeSet<String>, String)> = Vec::new();
    let mut help = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap().1;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            families.push((name.to_owned(), kind.to_owned(), BTreeSet::new(), help.to_owned()));
        } else if let Some((_, labels)) = line.split_once('{') {
            // A label's value may hold anything; its name stands before `="`.
            let names = labels.split("=\"").map(|part| {
                part.rsplit(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap_or("")
            });
            families
                .last_mut()
                .unwrap()
                .2
                .extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    families
}

#[test]
fn the_chapter_of_metrics_is_current() {
    let head = "`http://127.0.0.1:9598/metrics` offers these in Prometheus' text format \
                (`[metrics] listen` says where). No label names a source, so that attackers \
                cannot create series. `sip-xdp/packaging/grafana/sip-xdp.json` is a dashboard \
                that uses them.";
    let mut text = format!(
        "{}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n",
        crate::page::wrap(head)
    );
    for (name, kind, labels, help) in reference(&render(&full())) {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let help = crate::page::cell(&help);
        text += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
    }
    crate::page::compare("metrics", "Metrics", &text);
}
