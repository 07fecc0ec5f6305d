//! State of the terminal view, and its keys.

use std::cmp::Reverse;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::rates::Rates;
use crate::net::network::Network;
use crate::observe::snapshot::{Overview, Worst};

/// Maximum length of typed text.
const LONGEST: usize = 64;

/// Rows per page.
const PAGE: isize = 10;

/// Sort order of the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// Most packets per second first.
    Rate,
    /// Most packets first.
    Packets,
    /// Latest first.
    Latest,
    /// By address.
    Address,
}

impl Sort {
    const ALL: [Self; 4] = [Self::Rate, Self::Packets, Self::Latest, Self::Address];

    /// Its name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Packets => "packets",
            Self::Latest => "latest",
            Self::Address => "address",
        }
    }

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }
}

/// A command for the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// Block for an hour.
    Block(Network),
    /// Unblock.
    Unblock(Network),
    /// Trust permanently.
    Trust(Network),
}

impl Order {
    /// The confirmation question.
    pub(super) fn question(&self) -> String {
        match self {
            Self::Block(network) => format!("Block {network} for one hour?"),
            Self::Unblock(network) => format!("Unblock {network}, and forget what it did?"),
            Self::Trust(network) => format!("Trust {network}: never drop, never ban it?"),
        }
    }

    /// The success message.
    pub(super) fn done(&self) -> String {
        match self {
            Self::Block(network) => format!("{network} is blocked for one hour"),
            Self::Unblock(network) => format!("{network} is not blocked any more"),
            Self::Trust(network) => format!("{network} is trusted"),
        }
    }
}

/// The command for which an address is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// Block.
    Block,
    /// Trust.
    Trust,
}

/// The external effect of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Quit.
    Quit,
    /// Send a command to the daemon.
    Order(Order),
}

/// The overlay, which receives the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Overlay {
    /// None.
    Nothing,
    /// Key help.
    Help,
    /// Details of the selected source.
    Details,
    /// Filter input.
    Filter,
    /// Address input.
    Address(Verb, String),
    /// Confirmation question.
    Confirm(Order),
}

/// The state of the screen.
#[derive(Debug)]
pub(super) struct App {
    /// Last reading.
    pub(super) overview: Overview,
    /// Rates of change.
    pub(super) rates: Rates,
    /// Sort order.
    pub(super) sort: Sort,
    /// Text that shown sources must contain.
    pub(super) filter: String,
    /// Current overlay.
    pub(super) overlay: Overlay,
    /// Result of the last command.
    pub(super) message: Option<Result<String, String>>,
    /// Whether colours are off.
    pub(super) plain: bool,
    /// The selected source, by identity, since rows move.
    selected: Option<(Network, Option<u16>)>,
    /// Its last row, so that the cursor stays when the source disappears.
    row: usize,
    is_paused: bool,
    has_read: bool,
}

impl App {
    /// The state before the first reading.
    pub(super) fn new(plain: bool) -> Self {
        Self {
            overview: Overview::empty(Default::default()),
            rates: Rates::default(),
            sort: Sort::Rate,
            filter: String::new(),
            overlay: Overlay::Nothing,
            message: None,
            plain,
            selected: None,
            row: 0,
            is_paused: false,
            has_read: false,
        }
    }

    /// Takes a reading.
    pub(super) fn update(&mut self, overview: Overview) {
        if self.has_read {
            self.rates.update(&self.overview, &overview);
        }
        (self.overview, self.has_read) = (overview, true);
    }

    /// Takes the result of a command.
    pub(super) fn answered(&mut self, answer: Result<String, String>) {
        self.message = Some(answer);
    }

    /// Whether reading is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// The sources as shown.
    pub(super) fn rows(&self) -> Vec<&Worst> {
        let wanted = self.filter.to_lowercase();
        let fits = |one: &&Worst| {
            wanted.is_empty()
                || [&one.network.to_string(), &one.owner, &one.reason, one.state]
                    .into_iter()
                    .any(|text: &str| text.to_lowercase().contains(&wanted))
        };
        let mut rows: Vec<&Worst> = self.overview.worst.iter().filter(fits).collect();
        match self.sort {
            // Readings are sorted by packets; the stable sort keeps that order among equal rates.
            Sort::Rate => rows.sort_by(|one, other| {
                self.rates.of_source(other).total_cmp(&self.rates.of_source(one))
            }),
            Sort::Packets => rows.sort_by_key(|one| Reverse(one.packets)),
            Sort::Latest => rows.sort_by_key(|one| Reverse(one.since)),
            Sort::Address => rows.sort_by_key(|one| one.network),
        }
        rows
    }

    /// Index of the selected row.
    pub(super) fn cursor(&self, rows: &[&Worst]) -> Option<usize> {
        let known = self
            .selected
            .and_then(|selected| rows.iter().position(|one| (one.network, one.port) == selected));
        (!rows.is_empty()).then(|| known.unwrap_or(self.row.min(rows.len() - 1)))
    }

    /// The selected source.
    pub(super) fn selected(&self) -> Option<&Worst> {
        let rows = self.rows();
        self.cursor(&rows).map(|cursor| rows[cursor])
    }

    /// Handles a key.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Effect> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            if key.code == KeyCode::Char('u') {
                match &mut self.overlay {
                    Overlay::Filter => self.filter.clear(),
                    Overlay::Address(_, text) => text.clear(),
                    _ => {}
                }
            }
            return (key.code == KeyCode::Char('c')).then_some(Effect::Quit);
        }
        match std::mem::replace(&mut self.overlay, Overlay::Nothing) {
            Overlay::Nothing => return self.plain_key(key.code),
            // Any key closes these.
            Overlay::Help | Overlay::Details => {}
            Overlay::Filter => match key.code {
                KeyCode::Enter => {}
                KeyCode::Esc => self.filter.clear(),
                code => {
                    edit(&mut self.filter, code);
                    self.overlay = Overlay::Filter;
                }
            },
            Overlay::Address(verb, mut text) => match key.code {
                KeyCode::Esc => {}
                KeyCode::Enter => match text.trim().parse::<Network>() {
                    Ok(network) => {
                        let order = if verb == Verb::Block { Order::Block } else { Order::Trust };
                        self.overlay = Overlay::Confirm(order(network));
                    }
                    Err(error) => {
                        self.message = Some(Err(error.to_string()));
                        self.overlay = Overlay::Address(verb, text);
                    }
                },
                code => {
                    edit(&mut text, code);
                    self.overlay = Overlay::Address(verb, text);
                }
            },
            Overlay::Confirm(order) => match key.code {
                KeyCode::Char('y' | 'Y') => return Some(Effect::Order(order)),
                // Enter is easily pressed by accident; changes need a letter.
                KeyCode::Enter => self.overlay = Overlay::Confirm(order),
                _ => self.message = Some(Ok("nothing was changed".to_owned())),
            },
        }
        None
    }

    fn plain_key(&mut self, code: KeyCode) -> Option<Effect> {
        self.message = None;
        let address = self.selected().map(|one| one.network.to_string()).unwrap_or_default();
        match code {
            KeyCode::Char('q') => return Some(Effect::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.overlay = Overlay::Help,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('/' | 'f') => self.overlay = Overlay::Filter,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('b') => self.overlay = Overlay::Address(Verb::Block, address),
            KeyCode::Char('t') => self.overlay = Overlay::Address(Verb::Trust, address),
            KeyCode::Char('u') => match self.selected() {
                Some(one) if one.state == "blocked" => {
                    self.overlay = Overlay::Confirm(Order::Unblock(one.network))
                }
                Some(one) => {
                    self.message = Some(Err(format!("{} is limited, not blocked", one.network)))
                }
                None => {}
            },
            KeyCode::Enter if self.selected().is_some() => self.overlay = Overlay::Details,
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::PageUp => self.go(-PAGE),
            KeyCode::PageDown => self.go(PAGE),
            KeyCode::Home => self.go(isize::MIN),
            KeyCode::End => self.go(isize::MAX),
            _ => {}
        }
        None
    }

    /// Moves the cursor.
    fn go(&mut self, by: isize) {
        let rows = self.rows();
        let Some(cursor) = self.cursor(&rows) else {
            return;
        };
        let row = cursor.saturating_add_signed(by).min(rows.len() - 1);
        let selected = (rows[row].network, rows[row].port);
        (self.row, self.selected) = (row, Some(selected));
    }
}

fn edit(text: &mut String, code: KeyCode) {
    match code {
        KeyCode::Char(typed) if text.chars().count() < LONGEST => text.push(typed),
        KeyCode::Backspace => _ = text.pop(),
        _ => {}
    }
}
