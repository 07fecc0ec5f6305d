//! The metrics. No label names a source: senders of packets must not control the number of series.

use super::text::{Kind, Text};
use crate::api::answers::DaemonStatus;
use crate::dataplane::counters::{InterfaceStats, Stats};
use crate::dataplane::tables::ledger::Tier;
use crate::detect::kinds;
use crate::lists::Fill;
use crate::observe::snapshot::Overview;

use Kind::{Counter, Gauge};

/// All metrics, in Prometheus's text format.
pub(crate) fn render(overview: &Overview) -> String {
    let mut text = Text::default();
    build(&mut text, overview);
    if let Some(stats) = &overview.stats {
        packets(&mut text, &stats.interfaces);
        counters(&mut text, stats);
    }
    lists(&mut text, overview);
    storm_state(&mut text, overview);
    events(&mut text, overview);
    if let Some(daemon) = &overview.daemon {
        state(&mut text, daemon);
        feeds(&mut text, daemon);
        tcp(&mut text, daemon);
        hep(&mut text, daemon);
        hep_export(&mut text, daemon);
        sockets(&mut text, daemon);
    }
    text.finish()
}

fn build(text: &mut Text, overview: &Overview) {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    text.family("sip_xdp_build_info", Gauge, "The version that runs; always 1.")
        .sample(&version, 1);
    let enforcing = u8::from(overview.enforcing);
    text.single(
        "sip_xdp_enforcing",
        Gauge,
        "1 if packets are dropped on all interfaces, 0 if not.",
        enforcing,
    );
    text.family(
        "sip_xdp_interface_attached",
        Gauge,
        "1 if the filter is on the interface, 0 if it was taken off.",
    );
    for one in &overview.interfaces {
        let mode = one.mode.map(|mode| mode.to_string()).unwrap_or_default();
        text.sample(&[("interface", &one.interface), ("mode", &mode)], u8::from(one.attached));
    }
    text.family(
        "sip_xdp_interface_dry_run",
        Gauge,
        "1 if nothing is dropped on the interface, 0 if something may be.",
    );
    for one in &overview.interfaces {
        text.sample(&[("interface", &one.interface)], u8::from(one.dry_run));
    }
    let help = "1 if the driver took the program natively and shows it nothing, 0 if not, or if \
                generic mode took over.";
    text.family("sip_xdp_interface_blind", Gauge, help);
    let blind = overview.daemon.as_ref().map(|daemon| &daemon.blind[..]).unwrap_or_default();
    for one in &overview.interfaces {
        let is_blind =
            blind.iter().any(|blind| blind.interface == one.interface && blind.action.is_none());
        text.sample(&[("interface", &one.interface)], u8::from(is_blind));
    }
    let count = overview.warnings.len();
    text.single("sip_xdp_warnings", Gauge, "Warnings that `sip-xdp status` shows.", count);
    let memory = overview.memory;
    text.single("sip_xdp_tables_bytes", Gauge, "Kernel memory that the tables take.", memory);
}

fn packets(text: &mut Text, interfaces: &[InterfaceStats]) {
    let help = "Packets by interface, verdict and reason; would_drop is what a dry run passed.";
    text.family("sip_xdp_packets_total", Counter, help);
    by_verdict(text, interfaces, |one| &one.packets);
    text.family("sip_xdp_bytes_total", Counter, "The same in bytes, link headers included.");
    by_verdict(text, interfaces, |one| &one.bytes);
    text.family(
        "sip_xdp_messages_total",
        Counter,
        "Packets whose start line was read, by method or kind.",
    );
    for one in interfaces {
        for (method, count) in &one.methods {
            text.sample(&[("interface", &one.interface), ("method", method)], count);
        }
    }
    let help = "TCP SYNs to SIP ports, of sources that are neither trusted nor blocked.";
    text.family("sip_xdp_tcp_connections_total", Counter, help);
    for one in interfaces {
        text.sample(&[("interface", &one.interface)], one.tcp.connections);
    }
    let help = "TCP SYNs and segments over a limit.";
    text.family("sip_xdp_tcp_limited_total", Counter, help);
    for one in interfaces {
        text.sample(&[("interface", &one.interface)], one.tcp.limited);
    }
    let help =
        "TCP segments with payload that passed, read by the detector or not, for lack of room.";
    text.family("sip_xdp_tcp_segments_total", Counter, help);
    for one in interfaces {
        for (read, count) in [("yes", one.tcp.sampled), ("no", one.tcp.unsampled)] {
            text.sample(&[("interface", &one.interface), ("read", read)], count);
        }
    }
}

fn by_verdict(
    text: &mut Text,
    interfaces: &[InterfaceStats],
    of: impl Fn(&InterfaceStats) -> &crate::dataplane::counters::ByVerdict,
) {
    for one in interfaces {
        for (verdict, counts) in of(one).each() {
            for (reason, count) in counts {
                text.sample(
                    &[("interface", &one.interface), ("verdict", verdict), ("reason", reason)],
                    count,
                );
            }
        }
    }
}

fn counters(text: &mut Text, stats: &Stats) {
    let Stats { responses, sources, blocklist, .. } = stats;
    text.family(
        "sip_xdp_responses_total",
        Counter,
        "Our own responses that left through a filtered interface.",
    )
    .sample(&[("answer", "accepted")], responses.accepted)
    .sample(&[("answer", "challenged")], responses.challenged)
    .sample(&[("answer", "refused")], responses.refused);
    let help = "Limits that the daemon was not told of, because there was no room.";
    text.single("sip_xdp_lost_events_total", Counter, help, stats.lost_events);
    let help =
        "Samples of passing packets that the detector did not see, because there was no room.";
    text.single("sip_xdp_lost_samples_total", Counter, help, stats.lost_samples);
    text.family("sip_xdp_blocked_networks", Gauge, "Networks in the block list, feeds included.")
        .sample(&[("family", "ipv4")], blocklist.ipv4)
        .sample(&[("family", "ipv6")], blocklist.ipv6);
    let help = "Networks that the lists have room for, together.";
    text.single("sip_xdp_networks_capacity", Gauge, help, blocklist.capacity);
    text.single("sip_xdp_sources_tracked", Gauge, "Sources that have a meter.", sources.tracked);
    text.single("sip_xdp_sources_good", Gauge, "Addresses that are known good now.", sources.good);
    text.single("sip_xdp_sources_peers", Gauge, "Addresses that are peers now.", sources.peers);
}

fn lists(text: &mut Text, overview: &Overview) {
    text.family(
        "sip_xdp_list_entries",
        Gauge,
        "Entries of the lists, by owner; feed is all feeds together.",
    );
    for one in &overview.lists {
        text.sample(&[("list", one.list), ("owner", one.owner)], one.entries);
    }
    let bans = &overview.bans;
    text.family(
        "sip_xdp_bans",
        Gauge,
        "Bans that last, by how sure their evidence is, those of a dry run included.",
    )
    .sample(&[("tier", Tier::Proven.name())], bans.proven)
    .sample(&[("tier", Tier::Unproven.name())], bans.unproven);
    text.single(
        "sip_xdp_bans_dry_run",
        Gauge,
        "Bans of a dry run, which are not enforced.",
        bans.dry_run,
    );
}

fn storm_state(text: &mut Text, overview: &Overview) {
    let storm = &overview.storm;
    let help = "1 while there are more new sources than can be real, 0 otherwise.";
    text.single("sip_xdp_storm", Gauge, help, u8::from(storm.is_storm));
    let help = "Distinct new sources in the second or so that was counted last.";
    text.single("sip_xdp_new_sources", Gauge, help, storm.new_sources);
}

fn events(text: &mut Text, overview: &Overview) {
    let latest = &overview.latest;
    text.family(
        "sip_xdp_bans_total",
        Counter,
        "Bans since the daemon started, by kind of evidence.",
    );
    // All kinds, before there is a ban of one, so that the first one is seen as an increase.
    let kinds = kinds();
    for (kind, _) in &kinds {
        let count = latest.bans_by_kind.get(kind.name).copied().unwrap_or(0);
        text.sample(&[("kind", kind.name)], count);
    }
    for (kind, count) in latest
        .bans_by_kind
        .iter()
        .filter(|(name, _)| kinds.iter().all(|(kind, _)| kind.name != *name))
    {
        text.sample(&[("kind", kind)], count);
    }
    let help = "Events since the daemon started, as `sip-xdp watch` shows them: one a minute for \
                each source.";
    text.family("sip_xdp_events_total", Counter, help);
    for (event, count) in &latest.events {
        text.sample(&[("event", event)], count);
    }
}

fn state(text: &mut Text, daemon: &DaemonStatus) {
    let help = "1 while the registrar rejects sources that it accepted within a day: rejections \
                ban nobody.";
    text.single("sip_xdp_registrar_failing", Gauge, help, u8::from(daemon.registrar_failing));
    let help = "0 if hardly any of our responses is seen: volume bans nobody then.";
    text.single("sip_xdp_sees_responses", Gauge, help, u8::from(daemon.sees_responses));
    text.single(
        "sip_xdp_learning",
        Gauge,
        "1 while volume bans nobody because of `learn`.",
        u8::from(daemon.learning),
    );
    let help = "Sources that the detector keeps evidence of.";
    text.single("sip_xdp_watched_sources", Gauge, help, daemon.watched_sources);
    let help = "Addresses whose calls the server takes without credentials.";
    text.single("sip_xdp_sources_served", Gauge, help, daemon.served_sources);
    let used = |fill: &Fill| fill.used;
    let limit = |fill: &Fill| fill.limit;
    for (name, figure, help) in [
        (
            "sip_xdp_table_used",
            used as fn(&Fill) -> usize,
            "How much of each bounded table is used.",
        ),
        ("sip_xdp_table_limit", limit, "How much there may be in each bounded table."),
    ] {
        text.family(name, Gauge, help);
        for table in &daemon.tables {
            text.sample(&[("table", &table.table)], figure(table));
        }
    }
}

fn feeds(text: &mut Text, daemon: &DaemonStatus) {
    let feeds = &daemon.feeds;
    text.family("sip_xdp_feed_entries", Gauge, "Networks of the feed that are in force.");
    for feed in feeds {
        for (family, count) in [("ipv4", feed.ipv4), ("ipv6", feed.ipv6)] {
            text.sample(&[("feed", &feed.name), ("family", family)], count);
        }
    }
    text.family(
        "sip_xdp_feed_age_seconds",
        Gauge,
        "Time since the feed's server last confirmed its list.",
    );
    for feed in feeds {
        if let Some(age) = feed.age {
            text.sample(&[("feed", &feed.name)], age);
        }
    }
    text.family(
        "sip_xdp_feed_error",
        Gauge,
        "1 if the last answer could not be used, 0 if it could.",
    );
    for feed in feeds {
        text.sample(&[("feed", &feed.name)], u8::from(feed.error.is_some()));
    }
    text.family(
        "sip_xdp_feed_guards_fired",
        Gauge,
        "How many guards found something in the last list.",
    );
    for feed in feeds {
        text.sample(&[("feed", &feed.name)], feed.guards.len());
    }
}

fn tcp(text: &mut Text, daemon: &DaemonStatus) {
    let tcp = &daemon.tcp;
    let help = "TCP connections that are followed.";
    text.single("sip_xdp_tcp_followed", Gauge, help, tcp.followed);
    let help = "SIP messages that were read over TCP, in both directions.";
    text.single("sip_xdp_tcp_messages_total", Counter, help, tcp.messages);
    let help = "TCP connections whose messages cannot be read on the wire, by transport.";
    text.family("sip_xdp_tcp_unread_connections_total", Counter, help)
        .sample(&[("transport", "tls")], tcp.tls)
        .sample(&[("transport", "ws")], tcp.websocket);
    let help = "Pieces of TCP connections that were not seen.";
    text.single("sip_xdp_tcp_lost_pieces_total", Counter, help, tcp.lost);
}

fn hep(text: &mut Text, daemon: &DaemonStatus) {
    let help = "HEP packets by place and by what became of them; ignored are those of transports \
                that are read on the wire.";
    text.family("sip_xdp_hep_packets_total", Counter, help);
    for place in &daemon.hep {
        for (result, count) in [
            ("taken", place.taken),
            ("ignored", place.ignored),
            ("refused", place.refused),
            ("malformed", place.malformed),
            ("lost", place.lost),
        ] {
            text.sample(&[("listen", &place.listen), ("result", result)], count);
        }
    }
}

fn hep_export(text: &mut Text, daemon: &DaemonStatus) {
    let Some(export) = &daemon.hep_export else {
        return;
    };
    let help = "Bans and dropped messages for the capture server, by what became of them.";
    text.family("sip_xdp_hep_export_total", Counter, help);
    for (result, count) in [
        ("ban", export.bans),
        ("packet", export.packets),
        ("suppressed", export.suppressed),
        ("lost", export.lost),
    ] {
        text.sample(&[("result", result)], count);
    }
}

fn sockets(text: &mut Text, daemon: &DaemonStatus) {
    let sockets = &daemon.sockets;
    let help = "TCP sockets of banned sources that were destroyed.";
    text.single("sip_xdp_sockets_destroyed_total", Counter, help, sockets.destroyed);
    let help = "Bans for which no sockets were looked for, since they came too fast.";
    text.single("sip_xdp_sockets_lost_total", Counter, help, sockets.lost);
}

#[cfg(test)]
mod tests;
