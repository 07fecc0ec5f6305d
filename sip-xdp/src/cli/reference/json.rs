//! The chapter of JSON outputs, from the schemas.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::page::{cell, compare, wrap};
use super::schemas::generate;

const HEAD: &str = "Every command prints JSON with `--json`. Objects carry `\"schema\": 1`; arrays \
    and the lines of `watch` do not. Fields are added, never renamed or removed. Times are RFC \
    3339 in UTC, durations are seconds. A field is always present unless its row says optional.";

const FILES: &str = "These tables are made from the JSON Schemas (draft 2020-12) in \
    `sip-xdp/schemas`, which packages install in `/usr/share/sip-xdp/schemas`. The schemas set \
    `additionalProperties: false`: validate with those of the version that runs.";

/// Schemas by name.
type Schemas = BTreeMap<String, Value>;

/// Where something is defined: the schema's name and the name inside it.
fn target<'a>(reference: &'a str, here: &'a str) -> (&'a str, &'a str) {
    let (file, name) = reference.split_once("#/$defs/").unwrap_or((reference, ""));
    (if file.is_empty() { here } else { file.trim_end_matches(".json") }, name)
}

fn anchor(file: &str, name: &str) -> String {
    match (file, name) {
        ("common", name) => name.to_owned(),
        (file, "") => file.to_owned(),
        (file, name) => format!("{file}-{name}"),
    }
}

/// What a value is, in words.
fn kind(value: &Value, here: &str, all: &Schemas) -> String {
    if let Some(reference) = value["$ref"].as_str() {
        let (file, name) = target(reference, here);
        let found = if name.is_empty() { &all[file] } else { &all[file]["$defs"][name] };
        assert!(!found.is_null(), "{reference} leads nowhere");
        let anchor = anchor(file, name);
        return format!("[{anchor}](#{})", anchor.to_lowercase());
    }
    if !value["const"].is_null() {
        return format!("`{}`", value["const"]);
    }
    if let Some(values) = value["enum"].as_array() {
        let words = values.iter().map(|one| match one {
            Value::Null => "null".to_owned(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        });
        return words.collect::<Vec<_>>().join(", ");
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(choices) = value[choice].as_array() {
            let words: Vec<_> = choices.iter().map(|one| kind(one, here, all)).collect();
            return words.join(" or ");
        }
    }
    match &value["type"] {
        Value::Array(types) => {
            types.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or ")
        }
        Value::String(name) if name == "array" => match value["items"].as_object() {
            Some(_) => format!("array of {}", kind(&value["items"], here, all)),
            None => "array".to_owned(),
        },
        Value::String(name) if name == "object" && value["additionalProperties"].is_object() => {
            format!("object of {}, by name", kind(&value["additionalProperties"], here, all))
        }
        Value::String(name) => name.clone(),
        _ => "any".to_owned(),
    }
}

/// Rows for the fields of an object, those of objects inside it included.
fn rows(value: &Value, path: &str, here: &str, all: &Schemas, text: &mut String) {
    for choice in ["anyOf", "oneOf"] {
        for one in value[choice].as_array().into_iter().flatten() {
            rows(one, path, here, all, text);
        }
    }
    if value["items"].is_object() {
        let inside =
            if path.is_empty() { "[]." } else { &format!("{}[].", path.trim_end_matches('.')) };
        rows(&value["items"], inside, here, all, text);
    }
    let Some(fields) = value["properties"].as_object() else { return };
    let required = value["required"].as_array().cloned().unwrap_or_default();
    for (name, field) in fields {
        let optional = if required.iter().any(|one| one == name) { "" } else { ", optional" };
        let words = field["description"].as_str().unwrap_or_default();
        let what = kind(field, here, all);
        let _ = writeln!(text, "| `{path}{name}` | {what}{optional} | {} |", cell(words));
        rows(field, &format!("{path}{name}."), here, all, text);
    }
}

/// A section: heading, description, table.
fn section(heading: &str, value: &Value, here: &str, all: &Schemas) -> String {
    let mut text = format!("\n{heading}\n\n");
    let words = value["description"].as_str().unwrap_or_default();
    let mut table = String::new();
    rows(value, "", here, all, &mut table);
    let what = kind(value, here, all);
    let words = match (what.as_str(), value["pattern"].as_str()) {
        ("object", _) => words.to_owned(),
        (_, Some(pattern)) => format!("{words} Type: {what}, as `{pattern}`."),
        _ => format!("{words} Type: {what}."),
    };
    if !words.trim().is_empty() {
        let _ = writeln!(text, "{}\n", wrap(&words));
    }
    if !table.is_empty() {
        let _ = write!(text, "| field | type | meaning |\n|---|---|---|\n{table}");
    }
    text
}

#[test]
fn the_chapter_of_json_is_current() {
    let all = generate();
    let mut text = format!("{}\n\n{}\n", wrap(HEAD), wrap(FILES));
    for (file, schema) in all.iter().filter(|(file, _)| *file != "common") {
        let _ = write!(text, "\n## {file}\n\n{}.\n", schema["title"].as_str().unwrap_or_default());
        let whole = section("", schema, file, &all);
        text.push_str(&format!("\n{}", whole.trim_start_matches('\n')));
        for (name, inner) in schema["$defs"].as_object().into_iter().flatten() {
            text.push_str(&section(&format!("### {}", anchor(file, name)), inner, file, &all));
        }
    }
    text.push_str("\n## Types that several outputs share\n");
    for (name, inner) in all["common"]["$defs"].as_object().into_iter().flatten() {
        text.push_str(&section(&format!("### {name}"), inner, "common", &all));
    }
    // One empty line between paragraphs.
    while text.contains("\n\n\n") {
        text = text.replace("\n\n\n", "\n\n");
    }
    compare("json", "JSON", &text);
}
