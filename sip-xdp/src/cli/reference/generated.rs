//! Schemas that are generated from types: their definitions are in `types.json`, to which schemas
//! that are written by hand refer.

use std::fs;
use std::path::Path;

use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};
use sip_xdp::config::{Detect, FeedFormat};
use sip_xdp::detect::KindName;

/// The types, in any order: those that they consist of come with them.
const TYPES: &[fn(&mut SchemaGenerator)] = &[add::<Detect>, add::<KindName>, add::<FeedFormat>];

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// What the schemas of this program have in common: nothing is left open, descriptions are lines,
/// and there is no word that only generators of code need.
fn tidy(schema: &mut Schema) {
    if schema.get("properties").is_some() && schema.get("additionalProperties").is_none() {
        schema.insert("additionalProperties".to_owned(), false.into());
        if schema.get("required").is_none() {
            schema.insert("required".to_owned(), json!([]));
        }
    }
    if let Some(words) = schema.get("description").and_then(Value::as_str) {
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        schema.insert("description".to_owned(), words.into());
    }
    schema.remove("default");
    if schema.get("format").and_then(Value::as_str).is_some_and(|name| name.starts_with("uint")) {
        schema.remove("format");
    }
    transform_subschemas(&mut tidy, schema);
}

/// `types.json`.
fn generated() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut generator = settings.into_generator();
    TYPES.iter().for_each(|add| add(&mut generator));
    let mut definitions = generator.take_definitions(false);
    definitions.values_mut().flat_map(<&mut Schema>::try_from).for_each(tidy);
    definitions.sort_keys();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Types of sip-xdp, generated from its code by `cargo xtask docs`",
        "$defs": definitions,
    })
}

/// Compares `types.json` with what is generated, or writes it when `SIP_XDP_BLESS` is set.
pub(super) fn compare() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/types.json");
    let text = serde_json::to_string_pretty(&generated()).expect("a schema is JSON") + "\n";
    if std::env::var_os("SIP_XDP_BLESS").is_some() {
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    } else {
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(found, text, "schemas/types.json is stale: run `cargo xtask docs`");
    }
}
