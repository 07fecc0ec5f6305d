//! Tests of the screen, against stored texts, and of the keys. `SIP_XDP_BLESS=1` rewrites the
//! texts.

use std::fs;
use std::path::PathBuf;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::app::{App, Effect, Order, Overlay, Sort};
use super::draw::draw;
use crate::api::answers::DaemonStatus;
use crate::api::event_stream::Latest;
use crate::bans::event::Event;
use crate::dataplane::counters::{
    ByVerdict, FilteredInterface, InterfaceStats, Occupancy, ResponseStats, SourceStats, Stats,
};
use crate::dataplane::tables::ledger::Tier;
use crate::feeds::engine::FeedRow;
use crate::observe::snapshot::{Bans, FromDaemon, Overview, Storm, Worst};
use std::sync::Arc;

fn worst(network: &str, state: &'static str, packets: u64, reason: &str) -> Worst {
    Worst {
        network: network.parse().unwrap(),
        port: None,
        state,
        owner: if state == "limited" { "requests".to_owned() } else { "auto".to_owned() },
        reason: reason.to_owned(),
        tier: Some(Tier::Proven),
        since: Some("2026-01-02T03:00:00Z".parse().unwrap()),
        expires: (state == "blocked").then(|| "2026-01-02T03:14:05Z".parse().unwrap()),
        packets,
        dry_run: false,
    }
}

/// A host under attack, `second` seconds after its start.
fn attacked(second: u64) -> Overview {
    let feed = |name: &str, error: Option<&str>| FeedRow {
        name: name.to_owned(),
        ipv4: 12_345,
        ipv6: 6,
        age: Some(240),
        error: error.map(str::to_owned),
        ..FeedRow::default()
    };
    let status = DaemonStatus {
        pid: 7,
        served_sources: 3,
        feeds: vec![feed("apiban", None), feed("spamhaus", Some("HTTP 503"))],
        ..DaemonStatus::default()
    };
    let ban = Arc::new(Event {
        time: "2026-01-02T03:04:00Z".parse().unwrap(),
        tier: Some(Tier::Proven),
        ..Event::new("ban").about("198.51.100.66".parse().unwrap()).kind("rejected").reason(
            "10 rejected passwords for the user \u{1b}[31m\u{202e}evil in 1 s, nonce echoed",
        )
    });
    let packets = ByVerdict {
        pass: [("good", 40 * second), ("unknown", 3 * second), ("keepalive", 9 * second)].into(),
        drop: [("blocked", 12_000 * second * second), ("limited", 70 * second), ("storm", 0)]
            .into(),
        would_drop: Default::default(),
    };
    let time = jiff::Timestamp::from_second(1_767_323_045 + second as i64).unwrap();
    let interface = FilteredInterface {
        interface: "eth0".to_owned(),
        index: 2,
        current_name: Some("eth0".to_owned()),
        mode: Some(crate::dataplane::attach::xdp::Mode::Native),
        since: time,
        dry_run: false,
        attached: true,
        trial_over: false,
        trial_until: None,
        egress: None,
    };
    let stats = Stats {
        schema: 1,
        time,
        since: Some(time),
        interfaces: vec![InterfaceStats {
            interface: "eth0".to_owned(),
            mode: interface.mode,
            bytes: packets.clone(),
            packets,
            methods: Default::default(),
            tcp: Default::default(),
        }],
        responses: ResponseStats { accepted: 120, challenged: 130, refused: 9 },
        lost_events: 5,
        lost_samples: 120_000,
        blocklist: Occupancy { ipv4: 12_400, ipv6: 6, capacity: 131_072 },
        sources: SourceStats { tracked: 800, good: 204, peers: 2 },
    };
    let mut port = worst(
        "203.0.113.99",
        "blocked",
        3 * second,
        "30 rejected passwords for the user 200 of an office",
    );
    port.port = Some(49_152);
    let reason = "10 rejected passwords for the user 101 in 1 s, nonce echoed, none accepted";
    Overview {
        time,
        loaded: true,
        enforcing: true,
        interfaces: vec![interface],
        stats: Some(stats),
        storm: Storm { is_storm: false, new_sources: 12 },
        bans: Bans { proven: 3, unproven: 1, dry_run: 0 },
        worst: vec![
            worst("198.51.100.66", "blocked", 12_000 * second * second, reason),
            worst(
                "2001:db8:1234:5678::/64",
                "blocked",
                500,
                "friendly-scanner, the User-Agent of an attack tool",
            ),
            port,
            worst("192.0.2.7", "limited", 70 * second, "requests over the limit"),
        ],
        warnings: vec![
            "the feed spamhaus fails: HTTP 503; its last list stays in force (12351 networks)"
                .to_owned(),
        ],
        ..Overview::empty(FromDaemon {
            status: Some(status),
            trouble: None,
            latest: Latest { bans: vec![ban; 3], ..Latest::default() },
        })
    }
}

fn in_a_storm(second: u64) -> Overview {
    let mut overview = attacked(second);
    overview.storm = Storm { is_storm: true, new_sources: 48_211 };
    if let Some(stats) = &mut overview.stats {
        stats.interfaces[0].packets.drop.insert("storm", 250_000 * second);
        stats.blocklist.ipv4 = 125_000;
    }
    overview.warnings = vec![
        "a storm: more new sources than can be real; strangers share one budget until it is over"
            .to_owned(),
        "the block list is nearly full: 125006 networks of 131072; raise capacity.networks and \
         restart the daemon"
            .to_owned(),
        "the feed spamhaus fails: HTTP 503".to_owned(),
    ];
    overview
}

fn nothing(second: u64) -> Overview {
    let mut overview = attacked(second);
    overview.daemon = None;
    overview.latest = Latest::default();
    overview.worst.clear();
    overview.bans = Bans::default();
    overview.warnings = vec![
        "no daemon: limits and bans are enforced, but nobody new is banned; start `sip-xdp run`"
            .to_owned(),
    ];
    if let Some(stats) = &mut overview.stats {
        stats.interfaces[0].packets = ByVerdict::default();
        stats.blocklist = Occupancy { ipv4: 0, ipv6: 0, capacity: 131_072 };
        stats.sources = SourceStats { tracked: 0, good: 0, peers: 0 };
        stats.responses = ResponseStats { accepted: 0, challenged: 0, refused: 0 };
        (stats.lost_events, stats.lost_samples) = (0, 0);
    }
    overview
}

fn app(reading: impl Fn(u64) -> Overview) -> App {
    let mut app = App::new(false);
    (1..=40).for_each(|second| app.update(reading(second)));
    app
}

fn screen(app: &App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app)).unwrap();
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(width));
    lines
        .map(|cells| {
            cells.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned() + "\n"
        })
        .collect()
}

/// Compares a screen with the stored one of this name.
fn looks_like(name: &str, screen: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("src/observe/top/screens/{name}.txt"));
    if std::env::var_os("SIP_XDP_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, screen).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(kept, screen, "{name} looks different now:\n{screen}");
}

fn press(app: &mut App, keys: &str) -> Option<Effect> {
    let code = |key| match key {
        '\n' => KeyCode::Enter,
        '\u{1b}' => KeyCode::Esc,
        other => KeyCode::Char(other),
    };
    let keys: Vec<_> = keys.chars().map(code).collect();
    keys.into_iter().map(|code| app.key(KeyEvent::new(code, KeyModifiers::NONE))).last().flatten()
}

#[test]
fn an_attack_on_a_small_and_on_a_large_screen() {
    let app = app(attacked);
    looks_like("attack-80x24", &screen(&app, 80, 24));
    looks_like("attack-200x60", &screen(&app, 200, 60));
}

#[test]
fn a_storm() {
    let app = app(in_a_storm);
    looks_like("storm-80x24", &screen(&app, 80, 24));
    looks_like("storm-200x60", &screen(&app, 200, 60));
}

#[test]
fn nothing_at_all() {
    looks_like("nothing-80x24", &screen(&app(nothing), 80, 24));
    let mut not_loaded = App::new(false);
    not_loaded
        .update(Overview { time: attacked(0).time, ..Overview::empty(FromDaemon::default()) });
    looks_like("not-loaded-80x24", &screen(&not_loaded, 80, 24));
}

#[test]
fn popups() {
    let mut app = app(attacked);
    press(&mut app, "?");
    looks_like("help-80x24", &screen(&app, 80, 24));
    press(&mut app, "x\n");
    looks_like("details-80x24", &screen(&app, 80, 24));
    press(&mut app, "xu");
    looks_like("sure-80x24", &screen(&app, 80, 24));
}

#[test]
fn any_size_can_be_drawn() {
    let mut app = app(in_a_storm);
    for keys in ["", "?", "\u{1b}\n", "\u{1b}u", "\u{1b}b", "\u{1b}\u{1b}/"] {
        press(&mut app, keys);
        for (width, height) in
            [(1, 1), (10, 3), (60, 16), (61, 17), (80, 24), (79, 100), (300, 20), (300, 100)]
        {
            screen(&app, width, height);
        }
    }
}

#[test]
fn attacker_chosen_text_moves_no_cursor() {
    let screen = screen(&app(attacked), 80, 24);
    assert!(screen.contains("evil") && !screen.contains('\u{1b}') && !screen.contains('\u{202e}'));
}

#[test]
fn no_colours_means_none() {
    let mut app = app(in_a_storm);
    app.plain = true;
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| draw(frame, &app)).unwrap();
    let cells = terminal.backend().buffer().content();
    assert!(
        cells.iter().all(|cell| cell.fg == ratatui::style::Color::Reset
            && cell.bg == ratatui::style::Color::Reset)
    );
}

/// Green, yellow and cyan letters are hardly readable on white, blue ones hardly on black.
#[test]
fn letters_can_be_read_on_a_dark_and_on_a_light_background() {
    use ratatui::style::Color::{Black, Magenta, Red, Reset};
    for keys in ["", "u"] {
        let mut app = app(in_a_storm);
        press(&mut app, keys);
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &app)).unwrap();
        let cells = terminal.backend().buffer().content();
        for cell in cells.iter().filter(|cell| cell.symbol().is_ascii()) {
            let is_readable = match cell.fg {
                Reset | Red | Magenta => cell.bg == Reset,
                Black => cell.bg != Reset && cell.bg != Black,
                _ => cell.symbol() == " ",
            };
            assert!(is_readable, "{cell:?}");
        }
    }
}

#[test]
fn important_rows_stay_visible() {
    let mut overview = in_a_storm(1);
    let one = overview.interfaces[0].clone();
    overview.interfaces = (0..9)
        .map(|n| FilteredInterface { interface: format!("enp{n}s0f0np0"), ..one.clone() })
        .collect();
    overview.daemon = None;
    let mut app = App::new(false);
    app.update(overview);
    let shown = screen(&app, 80, 24);
    let title = shown.lines().next().unwrap();
    assert!(
        title.contains("NO DAEMON")
            && title.contains("enp0s0f0np0")
            && title.ends_with("03:04:06 UTC"),
        "{title}"
    );
    assert!(
        shown.contains("2001:db8:1234:5678::/64 ") && shown.contains("203.0.113.99:49152 "),
        "{shown}"
    );
}

/// The kernel counts the window so far, which may have just started.
#[test]
fn new_sources_are_those_of_the_fullest_window() {
    let mut app = App::new(false);
    for (second, new_sources) in [(1, 12), (2, 4_484), (3, 7)] {
        let mut overview = in_a_storm(second);
        overview.storm.new_sources = new_sources;
        app.update(overview);
    }
    assert!(
        screen(&app, 80, 24).contains("STORM     4484 new sources/s"),
        "{}",
        screen(&app, 80, 24)
    );
    (4..12).for_each(|second| app.update(attacked(second)));
    assert!(screen(&app, 80, 24).contains("STORM     none"));
}

#[test]
fn nothing_changes_without_a_yes() {
    let mut app = app(attacked);
    assert_eq!(press(&mut app, "u"), None);
    assert_eq!(press(&mut app, "\n"), None, "Enter is no yes");
    assert_eq!(press(&mut app, "n"), None);
    assert_eq!(app.message, Some(Ok("nothing was changed".to_owned())));
    let unblock = press(&mut app, "uy");
    assert_eq!(unblock, Some(Effect::Order(Order::Unblock("198.51.100.66".parse().unwrap()))));
    assert_eq!(app.overlay, Overlay::Nothing);
    // A typed address instead of the selected one.
    press(&mut app, "t");
    app.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL));
    press(&mut app, "nonsense\n");
    assert!(matches!(app.message, Some(Err(_))) && matches!(app.overlay, Overlay::Address(..)));
    app.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL));
    let trust = press(&mut app, "192.0.2.0/28\ny");
    assert_eq!(trust, Some(Effect::Order(Order::Trust("192.0.2.0/28".parse().unwrap()))));
    assert_eq!(
        press(&mut app, "b\ny"),
        Some(Effect::Order(Order::Block("198.51.100.66".parse().unwrap())))
    );
    assert_eq!(press(&mut app, "q"), Some(Effect::Quit));
    assert_eq!(
        app.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)),
        Some(Effect::Quit)
    );
}

#[test]
fn limited_sources_cannot_be_unblocked() {
    let mut app = app(attacked);
    press(&mut app, "/192.0.2.7\n");
    assert_eq!(app.rows().len(), 1);
    press(&mut app, "u");
    assert_eq!(
        (&app.overlay, app.message.as_ref().map(Result::is_err)),
        (&Overlay::Nothing, Some(true))
    );
    press(&mut app, "\u{1b}");
    assert_eq!(app.rows().len(), 4);
}

#[test]
fn the_cursor_stays_on_its_source() {
    let mut app = app(attacked);
    press(&mut app, "jj");
    let selected = app.selected().unwrap().network;
    for sort in [Sort::Packets, Sort::Latest, Sort::Address, Sort::Rate] {
        press(&mut app, "s");
        assert_eq!((app.sort, app.selected().unwrap().network), (sort, selected));
    }
    let mut without = attacked(41);
    without.worst.retain(|one| one.network != selected);
    app.update(without);
    assert!(app.selected().is_some(), "another one takes its place");
}
