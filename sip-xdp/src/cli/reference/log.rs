//! The chapter of log lines, from the source: what is announced is logged in one line each.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::page::{compare, wrap};

const HEAD: &str = "Each decision is one line in the journal (`journalctl --unit sip-xdp`) and one \
    event for `sip-xdp watch`. These lines are stable: fields are added at the end, never renamed. \
    Words in capitals stand for values: PLACE is a network, or an address and `port=PORT`; WHO is \
    `notify command`, `notify webhook`, `crowdsec` or `hep_export`; WHAT is `unban` or `untrust`; \
    VERB of a feed \
    is `failed` or `refused`; VERB and UNDO of a host name are `trust` and `untrust`, or `admit` \
    and `unadmit`; KIND at the beginning of a line is the name of an event, such as \
    `registrar_failing`.";

const QUOTING: &str = "`reason` may contain text that others chose: user names, headers, a feed \
    server's answer. In it, quotes and backslashes have a backslash before them, and `=` is \
    written `\\x3d`, so that no `kind=` of the line's own occurs in it. A program that reads these \
    lines should nevertheless anchor its pattern at the beginning of the message, and read the \
    address where the line has it:";

const PATTERNS: &str = "```text\n\
    journal:   ^ban (?<address>\\S+) (?:port=\\d+ )?kind=(?<kind>\\S+) tier=\n\
    terminal:  ^\\S+ WARN +ban (?<address>\\S+) (?:port=\\d+ )?kind=(?<kind>\\S+) tier=\n\
    ```";

/// What begins a stable line.
const FIRST_WORDS: [&str; 22] = [
    "ban",
    "block",
    "conflict",
    "confirmed",
    "crowdsec",
    "disconnect",
    "exempt",
    "expelled",
    "feed",
    "good",
    "import",
    "interface",
    "limit",
    "nearly_full",
    "neighbours",
    "notify",
    "served",
    "storm",
    "suspect",
    "trust",
    "unban",
    "unconfirmed",
];

/// String literals of a file that begin with one of the words and have a field behind it.
fn lines(source: &str, found: &mut BTreeSet<String>) {
    // Tests make up lines of their own.
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    for rest in source.split("_args!(").skip(1).chain(source.split("log::").skip(1)) {
        let Some(start) = rest.find('"') else { continue };
        // What stands before the literal is no more than the macro's name.
        if rest[..start].trim().chars().any(|c| !c.is_ascii_alphanumeric() && !"!(_".contains(c)) {
            continue;
        }
        let literal = rest[start + 1..].replace("\\\"", "\u{1}");
        let Some((literal, _)) = literal.split_once('"') else { continue };
        let literal = literal.replace("\\\n", "").split_whitespace().collect::<Vec<_>>().join(" ");
        let literal = literal.replace('\u{1}', "\"");
        let word = literal.split(' ').next().unwrap_or_default();
        let is_recovery = literal.ends_with(" is well again");
        let is_known =
            FIRST_WORDS.contains(&word) || word.starts_with('{') && literal.contains(" reason=");
        if is_recovery || is_known && literal.contains('=') {
            found.insert(placeholders(&literal));
        }
    }
}

/// `{name}` becomes NAME, and a bare `{}` what its field is called.
fn placeholders(literal: &str) -> String {
    let mut text = String::new();
    let mut rest = literal;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let (name, after) = after.split_once('}').unwrap_or((after, ""));
        let field = before.rsplit(' ').next().unwrap_or_default().trim_end_matches('=');
        let name = match name {
            "" if field == "reason" => "\"...\"".to_owned(),
            "" if before == "feed " => "NAME".to_owned(),
            "" if field.is_empty() => "ADDRESS".to_owned(),
            "" => field.to_uppercase(),
            name => name.to_uppercase(),
        };
        text.push_str(&name);
        rest = after;
    }
    text + rest
}

fn walk(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            lines(&fs::read_to_string(&path).unwrap(), found);
        }
    }
}

#[test]
fn the_chapter_of_log_lines_is_current() {
    let mut found = BTreeSet::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for room in ["bans", "daemon", "feeds", "integrations"] {
        walk(&source.join(room), &mut found);
    }
    let ban = "ban PLACE kind=KIND tier=TIER for=FOR dry_run=DRY_RUN reason=\"...\"";
    assert!(found.contains(ban), "{ban} is not among {found:#?}");
    let mut text = format!("{}\n\n```text\n", wrap(HEAD));
    for line in &found {
        let _ = writeln!(text, "{line}");
    }
    let _ = write!(text, "```\n\n{}\n\n{PATTERNS}\n", wrap(QUOTING));
    compare("log-lines", "Log lines", &text);
}
