//! The JSON Schemas of what is printed, from the types that are serialised. `cargo xtask docs`
//! writes them to `sip-xdp/schemas`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use sip_xdp::api::answers::{
    Applied, Confirmed, HostRemoved, HostTrusted, Listed, Removed, Unloaded,
};
use sip_xdp::api::event_stream::Line;
use sip_xdp::config::Config;
use sip_xdp::dataplane::counters::{Row, SCHEMA, Stats};
use sip_xdp::feeds::engine::FeedRow;
use sip_xdp::integrations::notify::Notice;
use sip_xdp::observe::metrics::HistoryPage;
use sip_xdp::observe::report::Report;
use sip_xdp::observe::snapshot::Overview;
use sip_xdp::store::state_dump::Export;
use sip_xdp::tools::doctor::Diagnosis;
use sip_xdp::tools::replay::{Comparison, Replayed};
use sip_xdp::tools::suggest::Suggestions;

use super::super::{config, explain, generate, import, run, state, status};

/// The file of types that several outputs share.
const COMMON: &str = "common";

/// The dialect of the schemas.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The key under which a schema keeps the types that it refers to.
const DEFINITIONS: &str = "#/$defs/";

/// An output that is an object of either kind.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "for its schema alone")]
enum Either<A, B> {
    A(A),
    B(B),
}

/// The schema of one output: name, title, and how it is generated.
type Output = (&'static str, &'static str, fn(&mut SchemaGenerator) -> Schema);

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// All outputs. Where two have one type, the second refers to the first.
const OUTPUTS: [Output; 33] = [
    ("block-add", "sip-xdp block add --json", of::<Listed>),
    ("block-del", "sip-xdp block del --json", of::<Removed>),
    ("block-export", "sip-xdp block export --json", of::<Vec<Row>>),
    ("block-import", "sip-xdp block import --json", of::<import::Imported>),
    ("block-list", "sip-xdp block list --json", of::<Vec<Row>>),
    ("config-check", "sip-xdp config check --json", of::<config::Checked>),
    ("config-show", "sip-xdp config show --json", of::<Config>),
    ("confirm", "sip-xdp confirm --json", of::<Confirmed>),
    ("doctor", "sip-xdp doctor --json", of::<Diagnosis>),
    ("explain", "sip-xdp explain IP --json", of::<explain::Report>),
    ("feed-list", "sip-xdp feed list --json", of::<Vec<FeedRow>>),
    ("feed-sync", "sip-xdp feed sync --json", of::<Vec<FeedRow>>),
    ("man", "sip-xdp man --json", of::<generate::Written>),
    ("notify", "What a notification's command reads and its webhook is sent", of::<Notice>),
    ("reload", "sip-xdp reload --json", of::<Applied>),
    ("replay", "sip-xdp replay --json", of::<Either<Replayed, Comparison>>),
    ("report", "sip-xdp report --json", of::<Report>),
    ("run", "The line of sip-xdp run --json that says it enforces", of::<run::Ready>),
    ("state-export", "sip-xdp state export", of::<Export>),
    ("state-import", "sip-xdp state import --json", of::<state::Counts>),
    ("stats", "sip-xdp stats --json", of::<Stats>),
    ("status", "sip-xdp status --json", of::<status::Report>),
    ("top", "sip-xdp top --json", of::<Overview>),
    ("trust-add", "sip-xdp trust add --json", of::<Either<Listed, HostTrusted>>),
    ("trust-del", "sip-xdp trust del --json", of::<Either<Removed, HostRemoved>>),
    ("trust-import", "sip-xdp trust import --json", of::<import::Imported>),
    ("trust-list", "sip-xdp trust list --json", of::<Vec<Row>>),
    ("trust-suggest", "sip-xdp trust suggest --json", of::<Suggestions>),
    ("unban", "sip-xdp unban --json", of::<Removed>),
    ("unload", "sip-xdp unload --json", of::<Unloaded>),
    ("watch", "A line of sip-xdp watch --json", of::<Line>),
    ("web-history", "/api/history of the web page", of::<HistoryPage>),
    ("web-overview", "/api/overview of the web page", of::<Overview>),
];

/// Outputs that are lines of a stream, which carry no version of the format.
const LINES: [&str; 3] = ["notify", "run", "watch"];

/// What each schema says that its type does not.
fn complete(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("default");
            if let Some(Value::String(words)) = fields.get_mut("description") {
                // In JSON an `Option` is null, and nothing is a link into the code.
                let plain = words.replace("`None`", "null").replace("[`", "`").replace("`]", "`");
                *words = plain.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            if fields.contains_key("properties") {
                fields.entry("additionalProperties").or_insert(json!(false));
                fields.entry("required").or_insert(json!([]));
            }
            match fields.get("format").and_then(Value::as_str) {
                Some("date-time") => drop(fields.insert("pattern".to_owned(), json!("Z$"))),
                Some("ip") => {
                    fields.retain(|key, _| key != "format" && key != "type");
                    let family = |name| json!({ "type": "string", "format": name });
                    fields.insert("anyOf".to_owned(), json!([family("ipv4"), family("ipv6")]));
                }
                // The width of a number in Rust.
                Some(width)
                    if ["uint", "int", "double"].iter().any(|start| width.starts_with(start)) =>
                {
                    fields.remove("format");
                }
                _ => {}
            }
            fields.values_mut().for_each(complete);
        }
        Value::Array(items) => items.iter_mut().for_each(complete),
        _ => {}
    }
}

/// The types that a value refers to.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            let name = fields.get("$ref").and_then(Value::as_str);
            found.extend(name.and_then(|name| name.strip_prefix(DEFINITIONS)).map(str::to_owned));
            fields.values().for_each(|inner| references(inner, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| references(inner, found)),
        _ => {}
    }
}

/// Those, and what they refer to in turn.
fn closure(value: &Value, types: &Map<String, Value>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    references(value, &mut found);
    let mut waiting: Vec<String> = found.iter().cloned().collect();
    while let Some(name) = waiting.pop() {
        let mut inner = BTreeSet::new();
        references(&types[&name], &mut inner);
        waiting.extend(inner.into_iter().filter(|name| found.insert(name.clone())));
    }
    found
}

/// Points references to the file that a type is in.
fn redirect(value: &mut Value, here: &str, places: &BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get_mut("$ref")
                && let Some(name) = reference.strip_prefix(DEFINITIONS)
            {
                let place = &places[name];
                *reference = match place.strip_suffix(".json") {
                    Some(_) => place.clone(),
                    None if place == here => format!("{DEFINITIONS}{name}"),
                    None => format!("{place}.json{DEFINITIONS}{name}"),
                };
            }
            fields.values_mut().for_each(|inner| redirect(inner, here, places));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| redirect(inner, here, places)),
        _ => {}
    }
}

/// Adds the version of the format to an object, first.
fn with_version(value: &mut Value) {
    let fields = value.as_object_mut().expect("a schema is an object");
    let properties = fields.entry("properties").or_insert(json!({}));
    let properties = properties.as_object_mut().expect("properties are an object");
    let known = properties.contains_key("schema");
    let version = json!({ "description": "Version of the format.", "const": SCHEMA });
    let mut all = Map::from_iter([("schema".to_owned(), version.clone())]);
    all.append(properties);
    all.insert("schema".to_owned(), version);
    *properties = all;
    if known {
        return;
    }
    let required = fields.entry("required").or_insert(json!([]));
    required.as_array_mut().expect("names are an array").insert(0, json!("schema"));
}

/// The type that a schema is a reference to and nothing else.
fn named(value: &Value) -> Option<&str> {
    value["$ref"].as_str()?.strip_prefix(DEFINITIONS)
}

/// The schemas by name.
pub(super) fn generate() -> BTreeMap<String, Value> {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut generator = settings.into_generator();
    let mut roots: Vec<(&str, &str, Value)> = OUTPUTS
        .iter()
        .map(|(name, title, schema)| (*name, *title, schema(&mut generator).to_value()))
        .collect();
    let mut types: Map<String, Value> = generator.take_definitions(true);
    types.values_mut().for_each(complete);
    roots.iter_mut().for_each(|(_, _, root)| complete(root));

    // Objects that are printed as they are carry the version.
    for (_, _, root) in roots.iter_mut().filter(|(name, ..)| !LINES.contains(name)) {
        let choices = named(root).and_then(|one| types[one]["anyOf"].as_array().cloned());
        let names: Vec<String> = match (choices, named(root)) {
            (Some(choices), _) => choices.iter().filter_map(named).map(str::to_owned).collect(),
            (None, Some(one)) => vec![one.to_owned()],
            (None, None) => Vec::new(),
        };
        names.iter().for_each(|one| with_version(&mut types[one]));
        if names.is_empty() && root["type"] == "object" {
            with_version(root);
        }
    }

    // A type is defined by the output that is one, else by the only one that uses it, or in common.
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for (name, _, root) in &roots {
        if let Some(one) = named(root) {
            places.entry(one.to_owned()).or_insert(format!("{name}.json"));
        }
    }
    let mut users: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (name, _, root) in &roots {
        for one in closure(root, &types) {
            users.entry(one).or_default().insert(name);
        }
    }
    for (one, names) in users {
        let only = if names.len() == 1 { names.first().copied() } else { None };
        places.entry(one).or_insert_with(|| only.unwrap_or(COMMON).to_owned());
    }

    let mut files = BTreeMap::new();
    for (name, title, root) in roots {
        let own = format!("{name}.json");
        let body = match named(&root) {
            Some(one) if places[one] == own => types[one].clone(),
            _ => root,
        };
        files.insert(name.to_owned(), file(name, title, body, &types, &places));
    }
    let title = "Types that several outputs of sip-xdp share";
    files.insert(COMMON.to_owned(), file(COMMON, title, json!({}), &types, &places));
    files
}

/// One file: head, body, and the types that are defined in it.
fn file(
    name: &str,
    title: &str,
    mut body: Value,
    types: &Map<String, Value>,
    places: &BTreeMap<String, String>,
) -> Value {
    redirect(&mut body, name, places);
    let mut whole = json!({ "$schema": DIALECT, "title": title });
    let fields = whole.as_object_mut().expect("just made");
    fields.extend(body.as_object().expect("a schema is an object").clone());
    let here = types.iter().filter(|(one, _)| places.get(*one).is_some_and(|at| at == name));
    let mut definitions: BTreeMap<&str, Value> =
        here.map(|(one, definition)| (one.as_str(), definition.clone())).collect();
    definitions.values_mut().for_each(|definition| redirect(definition, name, places));
    if !definitions.is_empty() {
        fields.insert("$defs".to_owned(), json!(definitions));
    }
    whole
}

/// The folder of the schemas.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

#[test]
fn the_schemas_are_current() {
    let written = |value: &Value| format!("{value:#}\n");
    let generated: BTreeMap<String, String> =
        generate().iter().map(|(name, schema)| (format!("{name}.json"), written(schema))).collect();
    let entries = || fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    if std::env::var_os("SIP_XDP_BLESS").is_some() {
        entries().for_each(|path| fs::remove_file(path).unwrap());
        for (name, text) in &generated {
            fs::write(folder().join(name), text).unwrap();
        }
    }
    let found: BTreeMap<String, String> =
        entries().map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect();
    let stale: BTreeSet<&String> = generated
        .keys()
        .chain(found.keys())
        .filter(|name| generated.get(*name) != found.get(*name))
        .collect();
    assert!(stale.is_empty(), "{stale:?} in sip-xdp/schemas are stale: run `cargo xtask docs`");
}
