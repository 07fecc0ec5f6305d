//! The README's reference and the schemas name every command, option and configuration key that
//! there is, and none that there is not. The metrics are held against it where they are made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use serde_json::Value;
use sip_xdp::config::{Config, FeedConfig};

use super::Cli;

const README: &str = include_str!("../../../README.md");

/// Schemas of what is no command's output: what others refer to, messages, and what the web page
/// reads.
const NO_COMMAND: [&str; 4] = ["common", "notify", "web-history", "web-overview"];

/// Prints a script for a shell, whatever is asked for.
const NO_JSON: &str = "completions";

/// Options by command.
type Options = BTreeMap<String, BTreeSet<String>>;

/// A section of the README, without its heading.
fn section(heading: &str) -> &'static str {
    let start = README
        .find(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("the README has no section {heading}"));
    let text = &README[start + heading.len() + 2..];
    let level = heading.bytes().take_while(|byte| *byte == b'#').count();
    let is_end = |line: &&str| {
        let marks = line.bytes().take_while(|byte| *byte == b'#').count();
        (1..=level).contains(&marks) && line[marks..].starts_with(' ')
    };
    // A comment of a code block is no heading.
    let mut is_code = false;
    let mut length = 0;
    for line in text.split_inclusive('\n') {
        is_code ^= line.starts_with("```");
        if !is_code && is_end(&line) {
            break;
        }
        length += line.len();
    }
    &text[..length]
}

/// The first block of TOML in a text.
fn toml(text: &str) -> &str {
    let (_, block) = text.split_once("```toml\n").expect("there is a block of TOML");
    block.split_once("```").expect("it has an end").0
}

/// What is between backticks in a line.
fn code(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// An option as it is written in a usage: `[--ttl 1h]`, `[--iface IF]...`.
fn option(word: &str) -> Option<&str> {
    let word = word.trim_matches(['[', ']', '.']);
    (word.starts_with('-') && word.len() > 1).then_some(word)
}

/// The commands that do something, and those options of each that not all have.
fn commands() -> (Options, BTreeSet<String>) {
    fn walk(command: &clap::Command, path: &str, found: &mut Options) {
        let mut subcommands =
            command.get_subcommands().filter(|one| one.get_name() != "help").peekable();
        if subcommands.peek().is_none() {
            found.insert(path.to_owned(), options(command, false));
        }
        for one in subcommands {
            walk(one, format!("{path} {}", one.get_name()).trim(), found);
        }
    }
    let mut all = Cli::command();
    let global = options(&all, true);
    all.build();
    let mut found = Options::new();
    walk(&all, "", &mut found);
    (found, global)
}

/// The options of a command as they are typed: those that every command has, or the others.
fn options(command: &clap::Command, global: bool) -> BTreeSet<String> {
    let typed = |argument: &clap::Arg| match (argument.get_long(), argument.get_short()) {
        (Some("help" | "version"), _) => None,
        (Some(long), _) => Some(format!("--{long}")),
        (None, short) => short.map(|short| format!("-{short}")),
    };
    command
        .get_arguments()
        .filter(|argument| argument.is_global_set() == global)
        .filter_map(typed)
        .collect()
}

/// The commands of the README's table, with the options that it gives them.
fn documented(known: &Options) -> Options {
    let mut found = Options::new();
    for row in section("## Commands").lines().filter(|line| line.starts_with("| `")) {
        let cell = row.replace("\\|", "/");
        let cell = cell.split('|').nth(1).unwrap_or_default();
        for usage in code(cell) {
            let words: Vec<&str> = usage.split(' ').collect();
            let name =
                words.iter().take_while(|word| word.bytes().all(|byte| byte.is_ascii_lowercase()));
            let name = name.copied().collect::<Vec<_>>().join(" ");
            // Another name of a command, in brackets behind it.
            if Cli::command()
                .get_subcommands()
                .any(|command| command.get_all_aliases().any(|alias| alias == name))
            {
                continue;
            }
            assert!(
                known.contains_key(&name),
                "the README has a command that there is not: {usage}"
            );
            found
                .entry(name)
                .or_default()
                .extend(words.into_iter().filter_map(option).map(str::to_owned));
        }
    }
    found
}

#[test]
fn the_readme_has_every_command_with_its_options() {
    let (known, global) = commands();
    let documented = documented(&known);
    for (name, options) in &known {
        let documented_options =
            documented.get(name).unwrap_or_else(|| panic!("the README does not have `{name}`"));
        assert_eq!(
            documented_options, options,
            "`{name}`: left is the README's table, right is the command line"
        );
    }
    let paragraph = section("## Commands").split("\n|").next().unwrap_or_default();
    let documented_options: BTreeSet<String> = paragraph
        .split('`')
        .filter_map(|code| option(code.split(' ').next()?))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        documented_options, global,
        "left is what the README says all commands have, right is what they do"
    );
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
fn the_readme_has_every_key_of_the_configuration_with_its_default() {
    let (whole, feed) = (toml(section("## Configuration")), toml(section("## Feeds")));
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
    let mut documented_options = read(whole);
    assert!(documented_options.remove("feeds"), "the list of feeds is there, too");
    documented_options.extend(read(&feed.replace("\n#", "\n")));
    assert_eq!(documented_options, known, "left is the README, right is what the program knows");

    let default = |text: &str| {
        Config::parse(text).unwrap_or_else(|error| panic!("the README's block {error}"))
    };
    assert_eq!(default(whole), Config::default());
    let feeds = default(feed).feeds;
    assert_eq!(feeds, [FeedConfig::new(&feeds[0].name, &feeds[0].url)]);
}

/// The schemas by name.
fn schemas() -> BTreeMap<String, Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_slice(&fs::read(&path).unwrap()).unwrap())
    };
    fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap().path())).collect()
}

#[test]
fn every_command_has_a_schema() {
    let of_commands =
        commands().0.into_keys().filter(|name| name != NO_JSON).map(|name| name.replace(' ', "-"));
    let expected: BTreeSet<String> = of_commands.chain(NO_COMMAND.map(str::to_owned)).collect();
    let found: BTreeSet<String> = schemas().into_keys().collect();
    assert_eq!(
        found, expected,
        "left is the folder sip-xdp/schemas, right is what there must be in it"
    );
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
    for (name, schema) in schemas() {
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
        assert!(schema["title"].is_string(), "{name}");
        walk(&name, &schema);
    }
}

/// Every field of what commands print is explained, or named at least. The configuration has a
/// reference of its own.
#[test]
fn the_readme_has_every_field_of_the_json() {
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
    schemas()
        .iter()
        .filter(|(name, _)| *name != "config-show")
        .for_each(|(_, schema)| walk(schema, &mut fields));
    let words: BTreeSet<&str> =
        README.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let missing: Vec<_> = fields.iter().filter(|field| !words.contains(field.as_str())).collect();
    assert!(missing.is_empty(), "the README does not name {missing:?}");
}
