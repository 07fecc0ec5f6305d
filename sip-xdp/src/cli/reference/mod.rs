//! The chapters of the manual that are generated from the program: commands, configuration, JSON
//! and log lines. Metrics and kinds of bans are generated where they are defined.

mod commands;
mod configuration;
mod json;
mod log;
mod page;
mod schemas;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use serde_json::Value;
use sip_xdp::config::{Config, FeedConfig};

use super::Cli;

/// A file of the manual.
fn chapter(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Schemas of what is no command's output: what others refer to, messages, and what the web page
/// reads.
const NO_COMMAND: [&str; 4] = ["common", "notify", "web-history", "web-overview"];

/// Prints a script for a shell, whatever is asked for.
const NO_JSON: &str = "completions";

/// The first block of TOML in a text.
fn toml(text: &str) -> &str {
    let (_, block) = text.split_once("```toml\n").expect("there is a block of TOML");
    block.split_once("```").expect("it has an end").0
}

/// The commands that do something, by their words.
fn commands() -> BTreeSet<String> {
    fn walk(command: &clap::Command, path: &str, found: &mut BTreeSet<String>) {
        let mut subcommands =
            command.get_subcommands().filter(|one| one.get_name() != "help").peekable();
        if subcommands.peek().is_none() {
            found.insert(path.to_owned());
        }
        for one in subcommands {
            walk(one, format!("{path} {}", one.get_name()).trim(), found);
        }
    }
    let mut all = Cli::command();
    all.build();
    let mut found = BTreeSet::new();
    walk(&all, "", &mut found);
    found
}

/// Whether an invocation names a command and only options that it has.
fn is_known(words: &[&str]) -> bool {
    let mut command = Cli::command();
    command.build();
    let mut options: BTreeSet<String> = BTreeSet::new();
    let mut extend = |command: &clap::Command| {
        for argument in command.get_arguments() {
            options.extend(argument.get_long().map(|long| format!("--{long}")));
            options.extend(argument.get_short().map(|short| format!("-{short}")));
        }
    };
    extend(&command);
    let mut used = Vec::new();
    for word in words {
        let word = word.trim_matches(|c: char| "[].,;:)'".contains(c));
        if word.starts_with('-') && word.len() > 1 {
            used.push(word.split('=').next().unwrap_or(word).to_owned());
        } else if command.has_subcommands() {
            match command.find_subcommand(word).cloned() {
                Some(inner) => {
                    extend(&inner);
                    command = inner;
                }
                // The value of an option stands before the command.
                None if !used.is_empty() => {}
                // What is no word of a command is a placeholder.
                None => return !word.bytes().all(|byte| byte.is_ascii_lowercase()),
            }
        }
    }
    options.extend(["--version", "--help", "-V", "-h"].map(str::to_owned));
    used.iter().all(|option| options.contains(option))
}

#[test]
fn documents_name_no_command_or_option_that_does_not_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages: Vec<PathBuf> = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    pages.extend(fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut count = 0;
    for page in pages.iter().filter(|page| page.extension().is_some_and(|end| end == "md")) {
        let text = fs::read_to_string(page).unwrap();
        for line in text.lines() {
            for code in line.split('`').flat_map(|part| part.split(['|', ';', '&'])) {
                let words = code.trim().trim_start_matches("$ ").trim_start_matches("sudo ");
                let Some(words) = words.strip_prefix("sip-xdp ") else { continue };
                let words: Vec<_> =
                    words.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
                // A sentence about the program, or its output, starts with its name, too.
                if line.contains(&format!("`sip-xdp {}", words.join(" ")))
                    || code.trim_start().starts_with("$ ")
                    || code.trim_start().starts_with("sudo ")
                {
                    assert!(is_known(&words), "{}: sip-xdp {words:?}", page.display());
                    count += 1;
                }
            }
        }
    }
    assert!(count > 40, "only {count} invocations were found");
    assert!(!is_known(&["blok", "add"]) && !is_known(&["block", "add", "--tll"]));
}

/// The keys of a table with those of the tables in it, joined by dots.
fn keys(table: &toml::Table, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        let rows = value.as_array().and_then(|rows| rows.first()).and_then(toml::Value::as_table);
        match value.as_table().or(rows) {
            Some(inner) => found.extend(keys(inner, &format!("{path}."))),
            None => drop(found.insert(path)),
        }
    }
    found
}

#[test]
fn the_configuration_chapter_has_every_key_with_its_default() {
    let (configuration, feeds) = (chapter("reference/configuration.md"), chapter("feeds.md"));
    let (whole, feed) = (toml(&configuration), toml(&feeds));
    let template = FeedConfig {
        key_file: Some(PathBuf::new()),
        set: Some(String::new()),
        ..FeedConfig::new("example", "")
    };
    let known = Config { feeds: vec![template], ..Config::default() };
    let known = keys(&toml::Table::try_from(known).unwrap(), "");
    let read = |text: &str| {
        keys(&text.parse::<toml::Table>().unwrap_or_else(|error| panic!("{error}")), "")
    };
    let mut documented = read(whole);
    assert!(documented.remove("feeds"), "the list of feeds is there, too");
    documented.extend(read(&feed.replace("\n#", "\n")));
    assert_eq!(documented, known, "left is the manual, right is what the program knows");

    let default = |text: &str| {
        Config::parse(text).unwrap_or_else(|error| panic!("the manual's block {error}"))
    };
    assert_eq!(default(whole), Config::default());
    let feeds = default(feed).feeds;
    assert_eq!(feeds, [FeedConfig::new(&feeds[0].name, &feeds[0].url)]);
}

#[test]
fn every_command_has_a_schema() {
    let of_commands =
        commands().into_iter().filter(|name| name != NO_JSON).map(|name| name.replace(' ', "-"));
    let expected: BTreeSet<String> = of_commands.chain(NO_COMMAND.map(str::to_owned)).collect();
    let found: BTreeSet<String> = schemas::generate().into_keys().collect();
    assert_eq!(found, expected, "left is what has a schema, right is what must have one");
}

/// What an object may have that no schema says would never be noticed.
#[test]
fn schemas_leave_nothing_open() {
    fn walk(name: &str, value: &Value) {
        if let Some(fields) = value["properties"].as_object() {
            assert_eq!(value["additionalProperties"], false, "{name}: {value}");
            assert!(value["required"].is_array(), "{name}: {value}");
            for required in
                value["required"].as_array().into_iter().flatten().filter_map(Value::as_str)
            {
                assert!(
                    fields.contains_key(required),
                    "{name} requires {required}, which it does not have"
                );
            }
        }
        match value {
            Value::Object(fields) => fields.values().for_each(|inner| walk(name, inner)),
            Value::Array(items) => items.iter().for_each(|inner| walk(name, inner)),
            _ => {}
        }
    }
    for (name, schema) in schemas::generate() {
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
        assert!(schema["title"].is_string(), "{name}");
        walk(&name, &schema);
    }
}

/// Every field of what commands print is explained, or named at least. The configuration has a
/// reference of its own.
#[test]
fn the_chapter_has_every_field_of_the_json() {
    fn walk(value: &Value, fields: &mut BTreeSet<String>) {
        fields.extend(
            value["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()),
        );
        match value {
            Value::Object(inner) => inner.values().for_each(|inner| walk(inner, fields)),
            Value::Array(items) => items.iter().for_each(|inner| walk(inner, fields)),
            _ => {}
        }
    }
    let mut fields = BTreeSet::new();
    schemas::generate().iter().for_each(|(_, schema)| walk(schema, &mut fields));
    let text = chapter("reference/json.md");
    let words: BTreeSet<&str> =
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let missing: Vec<_> = fields.iter().filter(|field| !words.contains(field.as_str())).collect();
    assert!(missing.is_empty(), "the chapter does not name {missing:?}");
}
