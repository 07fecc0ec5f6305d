//! The chapter of commands, from clap's tree.

use std::fmt::Write as _;

use clap::{Arg, CommandFactory as _};

use super::super::Cli;
use super::page::{cell, compare, wrap};

const HEAD: &str = "Exit status: 0 for success, 1 for failure (one line on the standard error), 2 \
    for a wrong command line. Commands that change something go through the daemon's control \
    socket, which root and members of the group `sip-xdp` may use. `status`, `stats`, `top`, \
    `explain`, `block list`, `block export`, `trust list` and `state export` read the pinned maps \
    and the store, and work without a daemon; `explain` then lacks the evidence, which only the \
    daemon has.";

/// An option or argument as it is typed.
fn typed(argument: &Arg) -> String {
    let values: Vec<String> = argument
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(|name| name.to_string())
        .collect();
    let takes_value = argument.get_action().takes_values();
    let value = if takes_value { values.join(" ") } else { String::new() };
    let repeated = if argument.get_num_args().is_some_and(|range| range.max_values() > 1)
        || matches!(argument.get_action(), clap::ArgAction::Append)
    {
        "..."
    } else {
        ""
    };
    let name = match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, Some(long)) => format!("--{long}"),
        (None, None) => return format!("{value}{repeated}"),
    };
    format!("{name} {value}").trim().to_owned() + repeated
}

fn help(argument: &Arg) -> String {
    let help = argument.get_long_help().or(argument.get_help());
    let mut text = cell(&help.map(|help| help.to_string()).unwrap_or_default());
    let values: Vec<_> = argument
        .get_possible_values()
        .iter()
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if argument.get_action().takes_values() && !values.is_empty() {
        let _ = write!(text, ": {}", values.join(", "));
    }
    let defaults = argument.get_default_values().iter().filter(|value| !value.is_empty());
    let defaults: Vec<_> = defaults.map(|value| value.to_string_lossy()).collect();
    if argument.get_action().takes_values() && !defaults.is_empty() {
        let _ = write!(text, " (default `{}`)", defaults.join(" "));
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(text, "; or the variable `{}`", variable.to_string_lossy());
    }
    text
}

fn table<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let rows: String = arguments
        .filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"))
        .filter(|argument| !argument.is_hide_set())
        .map(|argument| format!("| `{}` | {} |\n", typed(argument), help(argument)))
        .collect();
    if rows.is_empty() { rows } else { format!("\n| argument | meaning |\n|---|---|\n{rows}") }
}

fn walk(command: &clap::Command, path: &str, text: &mut String) {
    let mut subcommands =
        command.get_subcommands().filter(|one| one.get_name() != "help").peekable();
    if subcommands.peek().is_none() {
        let about = command.get_long_about().or(command.get_about());
        let about = about.map(|about| about.to_string()).unwrap_or_default();
        // The first line is a title for clap; in the manual it is a sentence.
        let sentence = |text: &str| match text.ends_with(['.', ':']) {
            true => wrap(text),
            false => wrap(&format!("{text}.")),
        };
        let about = about.split("\n\n").map(sentence).collect::<Vec<_>>().join("\n\n");
        let aliases: Vec<_> = command.get_all_aliases().map(|name| format!("`{name}`")).collect();
        let _ = write!(text, "\n## sip-xdp {path}\n\n{about}");
        if !aliases.is_empty() {
            let _ = write!(text, " The same as {}.", aliases.join(", "));
        }
        let _ = write!(
            text,
            "\n{}",
            table(command.get_arguments().filter(|argument| !argument.is_global_set()))
        );
    }
    for one in subcommands {
        walk(one, format!("{path} {}", one.get_name()).trim(), text);
    }
}

#[test]
fn the_chapter_of_commands_is_current() {
    let mut all = Cli::command();
    all.build();
    let mut text = format!("{}\n\n## Global options\n\n", wrap(HEAD));
    text.push_str(&wrap(
        "They stand before or behind the command. Two instances with different directories run \
         side by side.",
    ));
    text.push('\n');
    text.push_str(&table(all.get_arguments().filter(|argument| argument.is_global_set())));
    walk(&all, "", &mut text);
    compare("commands", "Commands", &text);
}
