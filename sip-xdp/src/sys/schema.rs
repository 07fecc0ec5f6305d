//! Schemas of values that have a name in JSON and no type of their own there.

use schemars::{Schema, json_schema};
use serde_json::{Map, Value, json};

/// Strings that are one of these names.
pub(crate) fn one_of(description: &str, names: impl IntoIterator<Item = &'static str>) -> Schema {
    let names: Vec<&str> = names.into_iter().collect();
    json_schema!({ "description": description, "enum": names })
}

/// Objects with a counter for each of these names.
pub(crate) fn counters_of(
    description: &str,
    names: impl IntoIterator<Item = &'static str>,
) -> Schema {
    let names: Vec<&str> = names.into_iter().collect();
    let counter = || json!({ "type": "integer", "minimum": 0 });
    let fields: Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), counter())).collect();
    json_schema!({
        "description": description,
        "type": "object",
        "properties": fields,
        "required": names,
    })
}

/// Defines a type that has no values, and only a schema, for `#[schemars(with = ...)]`.
macro_rules! schema_of {
    ($(#[$words:meta])* $type:ident, $schema:expr) => {
        $(#[$words])*
        #[derive(Debug)]
        pub enum $type {}

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $schema
            }
        }
    };
}

pub(crate) use schema_of;
