//! The chapter of the configuration, from the file that packages install and the defaults.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use sip_xdp::config::{Config, Detect};
use toml::{Table, Value};

use super::page::{compare, wrap};

/// The file that packages install: each default as a comment, with its explanation. The tables of
/// detection rules are generated from the rules, and written when `SIP_XDP_BLESS` is set.
fn packaged() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/config.toml");
    let found = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{error}"));
    let is_rule = |paragraph: &&str| paragraph.contains("\n#[detect.");
    let paragraphs: Vec<&str> = found.split("\n\n").collect();
    let first = paragraphs.iter().position(is_rule).expect("there is a rule");
    let last = paragraphs.iter().rposition(is_rule).expect("there is a rule");
    let (above, below) = (&paragraphs[..first], &paragraphs[last + 1..]);
    let rules = Detect::commented();
    let text = [above, &[rules.as_str()], below].concat().join("\n\n");
    if std::env::var_os("SIP_XDP_BLESS").is_some() {
        fs::write(&path, &text).unwrap_or_else(|error| panic!("{error}"));
    } else {
        assert_eq!(found, text, "packaging/config.toml is stale: run `cargo xtask docs`");
    }
    text
}

const HEAD: &str = "The file is `/etc/sip-xdp/config.toml` (TOML). Every key is optional; the \
    block below has every key with its default, but for the tables `[[feeds]]` and `[[hep]]`, \
    which the chapters [Feeds](../feeds.md) and [Integrations](../integrations.md) describe. The \
    command line wins over the file. An unknown key is an error that names the nearest \
    valid one. `sip-xdp config check` validates the file, `sip-xdp reload` or SIGHUP applies it, \
    and an invalid file leaves the running configuration in force. \
    `sip-xdp config show` prints what is in force.";

/// A value as the file has it, over several lines where it is long.
fn written(key: &str, value: &Value) -> String {
    let line = format!("{key} = {}", inline(value));
    if line.chars().count() <= 100 {
        return line;
    }
    let Some(values) = value.as_array() else { panic!("{line} is too long") };
    let mut lines = vec![format!("{key} = ["), "   ".to_owned()];
    for value in values {
        let word = format!(" {},", inline(value));
        if lines.last().is_some_and(|line| line.len() + word.len() > 100) {
            lines.push("   ".to_owned());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(&word);
        }
    }
    lines.push("]".to_owned());
    lines.join("\n")
}

fn inline(value: &Value) -> String {
    match value {
        Value::Array(values) => {
            format!("[{}]", values.iter().map(inline).collect::<Vec<_>>().join(", "))
        }
        Value::Table(table) => {
            let fields = table.iter().map(|(key, value)| format!("{key} = {}", inline(value)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// The packaged file with every default switched on.
fn spelt_out() -> String {
    let defaults = Table::try_from(Config::default()).expect("the defaults are a table");
    let mut table = &defaults;
    let mut text = String::new();
    // What stands before the first key says how to use the file, which the chapter says itself.
    let packaged = packaged();
    let (_, body) = packaged.split_once("\n\n").expect("a paragraph stands in front");
    let mut is_example = false;
    for line in body.lines() {
        // The example of a feed or of HEP, in whose place stands that there is none.
        let example = line.strip_prefix("# [[").and_then(|rest| rest.strip_suffix("]]"));
        if let Some(key) = example {
            let _ = writeln!(text, "{key} = []");
        }
        is_example = (is_example || example.is_some()) && !line.is_empty();
        if is_example {
            continue;
        }
        let bare = line.strip_prefix('#').unwrap_or(line);
        if let Some(path) = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = path.split('.').fold(&defaults, |table, key| {
                table[key].as_table().unwrap_or_else(|| panic!("[{path}] is no table"))
            });
            let _ = writeln!(text, "[{path}]");
            continue;
        }
        match bare.split_once(" = ") {
            Some((key, _))
                if key
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') =>
            {
                let _ = writeln!(text, "{}", written(key, &table[key]));
            }
            _ => {
                let _ = writeln!(text, "{line}");
            }
        }
    }
    text
}

#[test]
fn the_chapter_of_the_configuration_is_current() {
    let body = format!("{}\n\n## Every key\n\n```toml\n{}\n```", wrap(HEAD), spelt_out().trim());
    compare("configuration", "Configuration", &body);
}
