//! Layout: for 80 columns and 24 lines, with more detail where there is room.
//!
//! More than 400 lines: one function per panel of a single screen.

use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Sparkline, Wrap};

use super::app::{App, Overlay, Verb};
use super::rates::Column;
use crate::observe::snapshot::Worst;
use crate::text;

/// Smallest usable size.
const SMALLEST: (u16, u16) = (60, 16);

/// Columns between the source, which has the width that it needs, and the reason, which takes the
/// rest: heads and widths.
const HEADS: [(&str, usize); 4] = [("PKT/S", 7), ("PACKETS", 7), ("BY", 9), ("LEFT", 5)];

/// Minimum width of the source: an IPv6 /64, or an IPv4 address with its port.
const SOURCE: usize = 23;

/// Width reserved for the reason before the source column grows.
const WHY: usize = 60;

/// Width of the state panel.
const STATE: u16 = 31;

/// Rows of verdicts; only the first ones are shown without room for all.
const ROWS: [(&str, &[Column]); 15] = [
    ("passed", &PASSED),
    ("dropped", &DROPPED),
    ("  blocked", &[("drop", "blocked"), ("would_drop", "blocked")]),
    ("  limited", &[("drop", "limited"), ("would_drop", "limited")]),
    ("  storm", &[("drop", "storm"), ("would_drop", "storm")]),
    ("  closed", &[("drop", "closed"), ("would_drop", "closed")]),
    ("  good", &[("pass", "good")]),
    ("  unknown", &[("pass", "unknown")]),
    ("  trusted", &[("pass", "trusted")]),
    ("  peer", &[("pass", "peer")]),
    ("  response", &[("pass", "response")]),
    ("  keepalive", &[("pass", "keepalive")]),
    ("  unparsed", &[("pass", "unparsed")]),
    ("  fragment", &[("pass", "fragment")]),
    ("  not SIP", &[("pass", "not_sip")]),
];

/// In a dry run: what would be dropped.
const DROPPED: [Column; 8] = [
    ("drop", "blocked"),
    ("drop", "closed"),
    ("drop", "limited"),
    ("drop", "storm"),
    ("would_drop", "blocked"),
    ("would_drop", "closed"),
    ("would_drop", "limited"),
    ("would_drop", "storm"),
];

const PASSED: [Column; 9] = [
    ("pass", "not_sip"),
    ("pass", "trusted"),
    ("pass", "good"),
    ("pass", "peer"),
    ("pass", "unknown"),
    ("pass", "response"),
    ("pass", "keepalive"),
    ("pass", "unparsed"),
    ("pass", "fragment"),
];

/// Colours that are readable on dark and light backgrounds, among the sixteen of every terminal:
/// green and yellow are too bright for letters on white, so they are backgrounds of black letters,
/// or lines.
struct Look {
    plain: bool,
}

impl Look {
    fn colour(&self, colour: Color) -> Style {
        if self.plain { Style::new() } else { Style::new().fg(colour) }
    }

    fn label(&self, colour: Color) -> Style {
        if self.plain { Style::new() } else { Style::new().fg(Color::Black).bg(colour) }
    }

    fn good(&self) -> Style {
        self.label(Color::Green)
    }

    fn bad(&self) -> Style {
        self.colour(Color::Red)
    }

    fn warn(&self) -> Style {
        let emphasis = if self.plain { Modifier::BOLD } else { Modifier::empty() };
        self.label(Color::Yellow).add_modifier(emphasis)
    }

    fn head(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn dim(&self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}

/// Draws the screen.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let text = format!(
            "too small: {}x{}, at least {}x{}",
            area.width, area.height, SMALLEST.0, SMALLEST.1
        );
        return frame.render_widget(Paragraph::new(text), area);
    }
    let look = Look { plain: app.plain };
    let spare = area.height.saturating_sub(24);
    let warnings = app.overview.warnings.len().min(2 + usize::from(spare) / 8) as u16;
    let bans = 4 + (spare / 4).min(10);
    let rates = 7 + (spare / 2).min(9);
    let [title, warned, top, worst, latest, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(warnings),
        Constraint::Length(rates),
        Constraint::Min(5),
        Constraint::Length(bans),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(title_line(app, &look, usize::from(title.width)), title);
    warning_lines(frame, app, &look, warned);
    let [left, _, right] =
        Layout::horizontal([Constraint::Min(40), Constraint::Length(1), Constraint::Length(STATE)])
            .areas(top);
    verdicts(frame, app, &look, left);
    frame.render_widget(Paragraph::new(state_lines(app, &look, right.height)), right);
    worst_sources(frame, app, &look, worst);
    latest_bans(frame, app, &look, latest);
    frame.render_widget(foot_line(app, &look), foot);
    match &app.overlay {
        Overlay::Help => popup(frame, "keys", help()),
        Overlay::Details => {
            if let Some(one) = app.selected() {
                popup(frame, "source", details(app, one));
            }
        }
        Overlay::Confirm(order) => {
            let lines = vec![
                Line::from(order.question()),
                Line::default(),
                Line::from("y yes   any other key no"),
            ];
            popup(frame, "sure?", lines);
        }
        Overlay::Nothing | Overlay::Filter | Overlay::Address(..) => {}
    }
}

fn title_line<'a>(app: &App, look: &Look, width: usize) -> Line<'a> {
    let overview = &app.overview;
    let state = match (overview.enforcing, overview.loaded) {
        (true, _) => Span::styled(" enforcing ", look.good()),
        (false, true) => Span::styled(" NOT ENFORCING ", look.warn()),
        (false, false) => Span::styled(" NOT LOADED ", look.warn()),
    };
    let mut line = Line::from(vec![Span::styled("sip-xdp top ", look.head()), state]);
    for (is_so, label) in
        [(overview.daemon.is_none(), " NO DAEMON "), (app.is_paused(), " PAUSED ")]
    {
        if is_so {
            line.extend([Span::raw(" "), Span::styled(label, look.warn())]);
        }
    }
    // With many interfaces the rest stays visible.
    let time = overview.time.strftime("  %H:%M:%S UTC").to_string();
    let on: Vec<String> = overview
        .interfaces
        .iter()
        .map(|one| {
            format!(
                "{} ({})",
                one.interface,
                one.mode.map(|mode| mode.to_string()).unwrap_or_default()
            )
        })
        .collect();
    let on = if on.is_empty() { String::new() } else { format!("on {}", on.join(", ")) };
    let room = width.saturating_sub(line.width() + time.len());
    line.extend([Span::raw(cut(&on, room)), Span::raw(time)]);
    line
}

fn warning_lines(frame: &mut Frame<'_>, app: &App, look: &Look, area: Rect) {
    let warnings = &app.overview.warnings;
    let shown = usize::from(area.height);
    let lines = warnings.iter().take(shown).enumerate().map(|(n, warning)| {
        let more = warnings.len() - shown;
        let more = if n + 1 == shown && more > 0 { format!("(+{more}) ") } else { String::new() };
        Line::styled(
            cut(&format!("! {more}{}", text::line(warning)), usize::from(area.width)),
            look.warn(),
        )
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
}

/// Rates and totals by verdict, with sparklines.
fn verdicts(frame: &mut Frame<'_>, app: &App, look: &Look, area: Rect) {
    let totals = app.overview.packets();
    let is_dry_run = app.overview.interfaces.iter().any(|one| one.dry_run);
    let head = format!("{:12} {:>8} {:>13}", "PACKETS", "PER S", "TOTAL");
    frame.render_widget(Line::styled(head, look.head()), Rect { height: 1, ..area });
    for (n, (name, columns)) in
        ROWS.iter().enumerate().take(usize::from(area.height).saturating_sub(1))
    {
        let row = Rect { y: area.y + 1 + n as u16, height: 1, ..area };
        let rates = app.rates.of(columns);
        let rate = rates.last().map_or_else(|| "-".to_owned(), |rate| short(*rate));
        let total: u64 = columns.iter().filter_map(|column| totals.get(column)).sum();
        let is_drop = columns[0].0 == "drop";
        let (style, colour) = match (is_drop, rates.last()) {
            (true, Some(1..)) => (look.bad(), look.bad()),
            _ if is_drop => (Style::new(), look.bad()),
            _ => (Style::new(), look.colour(Color::Green)),
        };
        let name = if *name == "dropped" && is_dry_run { "would drop" } else { name };
        frame.render_widget(Line::styled(format!("{name:12} {rate:>8} {total:>13}"), style), row);
        let width = row.width.saturating_sub(37);
        let latest = &rates[rates.len().saturating_sub(usize::from(width))..];
        // The latest value is at the right end.
        let shift = width.saturating_sub(latest.len() as u16);
        let line = Rect { x: row.x + 37 + shift, width: width - shift, ..row };
        frame.render_widget(Sparkline::default().data(latest).style(colour), line);
    }
}

/// The state of tables, feeds and storms.
fn state_lines<'a>(app: &App, look: &Look, height: u16) -> Vec<Line<'a>> {
    let overview = &app.overview;
    let mut lines = Vec::new();
    let mut say = |name: &str, value: String, style: Style| {
        lines.push(Line::from(vec![
            Span::styled(format!("{name:9} "), look.head()),
            Span::styled(value, style),
        ]));
    };
    let Some(stats) = &overview.stats else {
        say("STATE", "nothing is loaded".to_owned(), look.warn());
        return lines;
    };
    let storm = match overview.storm.is_storm {
        true => (
            format!("{} new sources/s", app.rates.newcomers().max(overview.storm.new_sources)),
            look.warn(),
        ),
        false => ("none".to_owned(), Style::new()),
    };
    say("STORM", storm.0, storm.1);
    let used = stats.blocklist.ipv4 + stats.blocklist.ipv6;
    let capacity = stats.blocklist.capacity;
    let share = used * 100 / (capacity as usize).max(1);
    let full = if share >= 90 { look.warn() } else { Style::new() };
    say("BLOCKED", format!("{used}, {share} % full"), full);
    let bans = &overview.bans;
    let dry = if bans.dry_run > 0 { ", not enforced" } else { "" };
    say("BANS", format!("{} proven, {} not{dry}", bans.proven, bans.unproven), Style::new());
    say("SOURCES", format!("{} metered", stats.sources.tracked), Style::new());
    let (good, peers) = (stats.sources.good, stats.sources.peers);
    let served = overview.daemon.as_ref().map_or(0, |daemon| daemon.served_sources);
    let good = if served > 0 {
        format!("{}+{served} served, {peers} peers", good.saturating_sub(served))
    } else {
        format!("{good}, and {peers} peers")
    };
    say("GOOD", good, Style::new());
    let lost = stats.lost_events + stats.lost_samples;
    let feeds = overview.daemon.as_ref().map(|daemon| &daemon.feeds[..]).unwrap_or_default();
    let failing = feeds.iter().filter(|feed| feed.error.is_some()).count();
    match (overview.daemon.is_some(), failing) {
        (false, _) => say("FEEDS", "ask the daemon".to_owned(), look.dim()),
        (true, 0) => say("FEEDS", format!("{}, none fails", feeds.len()), Style::new()),
        (true, _) => say("FEEDS", format!("{failing} of {} fail", feeds.len()), look.warn()),
    }
    say(
        "LOST",
        format!("{} samples", short(lost)),
        if lost > 0 { look.dim() } else { Style::new() },
    );
    let answers = &stats.responses;
    let (accepted, refused) =
        (short(answers.accepted), short(answers.challenged + answers.refused));
    say("ANSWERS", format!("{accepted} yes, {refused} no"), Style::new());
    for feed in feeds {
        let name = cut(&text::line(&feed.name), 9);
        let entries = feed.ipv4 + feed.ipv6;
        let age =
            feed.age.map_or_else(|| "never".to_owned(), |age| format!("{} ago", span(age as i64)));
        let style = if feed.error.is_none() { Style::new() } else { look.warn() };
        say(&name, format!("{} {age}", short(entries as u64)), style);
    }
    lines.truncate(usize::from(height));
    lines
}

fn worst_sources(frame: &mut Frame<'_>, app: &App, look: &Look, area: Rect) {
    let rows = app.rows();
    let cursor = app.cursor(&rows);
    let width = usize::from(area.width);
    let filter =
        if app.filter.is_empty() { String::new() } else { format!(", with \"{}\"", app.filter) };
    let title = format!("WORST SOURCES  by {}{filter}, {} shown", app.sort.name(), rows.len());
    let fixed: usize = HEADS.iter().map(|(_, width)| width + 1).sum();
    let longest = rows.iter().map(|one| place(one).chars().count()).max().unwrap_or(0);
    let source = longest.min(width.saturating_sub(fixed + 1 + WHY)).max(SOURCE);
    let why = width.saturating_sub(source + 1 + fixed);
    let heads = in_columns("SOURCE", HEADS.map(|(head, _)| head), source);
    let mut lines = vec![
        Line::styled(rule(&title, width), look.head()),
        Line::styled(format!("{heads}WHY"), look.dim()),
    ];
    let room = usize::from(area.height).saturating_sub(lines.len());
    // The selected row stays visible.
    let first = cursor.map_or(0, |cursor| (cursor + 1).saturating_sub(room));
    for (n, one) in rows.iter().enumerate().skip(first).take(room) {
        let text = row(app, one, source) + &cut(&text::line(&one.reason), why);
        let style = match one.state {
            _ if one.dry_run => look.dim(),
            "limited" => look.colour(Color::Magenta),
            _ => Style::new(),
        };
        let style = if cursor == Some(n) { style.add_modifier(Modifier::REVERSED) } else { style };
        lines.push(Line::styled(format!("{text:width$}"), style));
    }
    if rows.is_empty() {
        let what = if app.filter.is_empty() {
            "nobody is kept out"
        } else {
            "nobody fits the filter; Esc clears it"
        };
        lines.push(Line::styled(what, look.dim()));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// A row without its reason.
fn row(app: &App, one: &Worst, source: usize) -> String {
    let rate = app.rates.of_source(one);
    let rate = if rate > 0.0 { short(rate.round() as u64) } else { "-".to_owned() };
    let by = if one.state == "limited" { "limit" } else { &one.owner };
    in_columns(&place(one), [&rate, &short(one.packets), by, &left(one, app.overview.time)], source)
}

/// The source in `source` columns, then two right-aligned numbers and two words.
fn in_columns(first: &str, others: [&str; 4], source: usize) -> String {
    let mut text = format!("{:source$} ", cut(first, source));
    for (n, (cell, (_, width))) in others.into_iter().zip(HEADS).enumerate() {
        let cell = cut(cell, width);
        text.push_str(&if n < 2 { format!("{cell:>width$} ") } else { format!("{cell:width$} ") });
    }
    text
}

fn latest_bans(frame: &mut Frame<'_>, app: &App, look: &Look, area: Rect) {
    let width = usize::from(area.width);
    let mut lines = vec![Line::styled(rule("LATEST BANS", width), look.head())];
    let latest = &app.overview.latest;
    let shown = |field: Option<String>| text::line(&field.unwrap_or_default());
    for ban in latest.bans.iter().take(usize::from(area.height).saturating_sub(1)) {
        let time = ban.time.strftime("%T");
        let address = shown(ban.address.map(|address| address.to_string()));
        let port = ban.port.map(|port| format!(":{port}")).unwrap_or_default();
        let dry = if ban.dry_run { " (dry run)" } else { "" };
        let (kind, reason) = (shown(ban.kind.clone()), shown(ban.reason.clone()));
        let what = format!("{time} {address}{port} {kind}{dry}  {reason}");
        lines.push(Line::from(cut(&what, width)));
    }
    if latest.bans.is_empty() {
        let what = if app.overview.daemon.is_some() {
            "none since the daemon started"
        } else {
            "ask the daemon"
        };
        lines.push(Line::styled(what, look.dim()));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn foot_line<'a>(app: &App, look: &Look) -> Line<'a> {
    match &app.overlay {
        Overlay::Filter => {
            return Line::from(format!(
                "filter: {}_   Enter keeps it, Esc clears it",
                text::line(&app.filter)
            ));
        }
        Overlay::Address(verb, text) => {
            let what = if *verb == Verb::Block { "block" } else { "trust" };
            let error = match &app.message {
                Some(Err(error)) => format!("   {}", text::line(error)),
                _ => "   address or network; Ctrl-U clears, Esc leaves".to_owned(),
            };
            return Line::from(format!("{what}: {}_{error}", text::line(text)));
        }
        _ => {}
    }
    match &app.message {
        Some(Ok(message)) => Line::styled(text::line(message), look.good()),
        Some(Err(error)) => Line::styled(text::line(error), look.bad()),
        None => Line::styled(
            "q quit  s sort  / filter  Enter details  b block  u unblock  t trust  ? help",
            look.dim(),
        ),
    }
}

fn help<'a>() -> Vec<Line<'a>> {
    [
        "up down, j k     select a source; also Page Up, Page Down, Home, End",
        "Enter            all about it: evidence, since when, until when",
        "s                sort by rate, packets, latest, address",
        "/                filter by a part of address, owner or reason",
        "b                block an address or network for one hour",
        "u                unblock the selected source",
        "t                trust an address or network for good",
        "p                pause, and go on",
        "q, Ctrl-C        quit",
        "",
        "Blocking, unblocking and trusting need a daemon, and are asked again.",
    ]
    .map(Line::from)
    .to_vec()
}

fn details<'a>(app: &App, one: &Worst) -> Vec<Line<'a>> {
    let time = |time: Option<Timestamp>, otherwise: &str| {
        time.map_or_else(|| otherwise.to_owned(), |time| time.strftime("%F %T UTC").to_string())
    };
    let tier = one.tier.map(|tier| format!(", {}", tier.name())).unwrap_or_default();
    let dry_run = if one.dry_run { ", in a dry run: not enforced" } else { "" };
    let rate = app.rates.of_source(one);
    let mut lines = vec![
        Line::from(place(one)),
        Line::from(format!("{} by {}{tier}{dry_run}", one.state, one.owner)),
        Line::from(format!("since {}", time(one.since, "not known"))),
    ];
    if one.state == "blocked" {
        lines.push(Line::from(format!("until {}", time(one.expires, "somebody unblocks it"))));
    }
    lines.push(Line::from(format!("{} packets dropped, {rate:.0} a second now", one.packets)));
    lines.push(Line::default());
    lines.push(Line::from(text::line(&one.reason)));
    lines.push(Line::default());
    lines.push(Line::from(format!("sip-xdp explain {} says more", one.network.address())));
    lines
}

/// Draws lines above everything else.
fn popup(frame: &mut Frame<'_>, title: &str, lines: Vec<Line<'_>>) {
    let area = frame.area();
    let longest = lines.iter().map(Line::width).max().unwrap_or(0).max(title.len() + 2) as u16;
    let width = (longest + 4).min(area.width.saturating_sub(4));
    // Lines break between words, so that one may need a line more than its length suggests.
    let inner = usize::from(width.saturating_sub(4)).max(1);
    let rows = |line: &Line<'_>| {
        line.width().div_ceil(inner).max(1) + usize::from(line.width() > 2 * inner)
    };
    let height = lines.iter().map(rows).sum::<usize>() as u16 + 2;
    let height = height.min(area.height.saturating_sub(2));
    let text = Paragraph::new(lines).wrap(Wrap { trim: false });
    let area = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, area);
    let block = Block::new().borders(Borders::ALL).title(format!(" {title} "));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    frame.render_widget(
        text,
        Rect { x: inner.x + 1, width: inner.width.saturating_sub(2), ..inner },
    );
}

fn rule(title: &str, width: usize) -> String {
    let line = "\u{2500}".repeat(width.saturating_sub(title.chars().count() + 1));
    cut(&format!("{title} {line}"), width)
}

fn place(one: &Worst) -> String {
    match one.port {
        Some(port) if one.network.is_v4() => format!("{}:{port}", one.network),
        Some(port) => format!("[{}]:{port}", one.network),
        None => one.network.to_string(),
    }
}

/// Remaining time of an entry.
fn left(one: &Worst, now: Timestamp) -> String {
    match (one.state, one.expires) {
        ("blocked", None) => "-".to_owned(),
        (_, Some(end)) => span(end.duration_since(now).as_secs().max(0)),
        _ => String::new(),
    }
}

/// A time in seconds in at most five characters.
fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number in at most seven characters.
fn short(number: u64) -> String {
    match number {
        ..100_000 => number.to_string(),
        100_000..10_000_000 => format!("{:.1}k", number as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1}M", number as f64 / 1e6),
        _ => format!("{:.1}G", number as f64 / 1e9),
    }
}

/// At most `width` characters of a text, with a mark where it is cut.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['\u{2026}']).collect()
}
