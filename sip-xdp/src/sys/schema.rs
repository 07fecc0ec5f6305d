//! Schemas of values that have a name in JSON and no type of their own there.

/// Defines a type, for schemas alone, of strings that are one of these names.
macro_rules! one_of {
    ($(#[$words:meta])* $type:ident, $description:literal, $names:expr) => {
        $(#[$words])*
        #[derive(Debug)]
        pub enum $type {}

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let names: Vec<&str> = $names.into_iter().collect();
                schemars::json_schema!({ "description": $description, "enum": names })
            }
        }
    };
}

/// Defines a type, for schemas alone, of objects with a counter for each of these names.
macro_rules! counters_of {
    ($(#[$words:meta])* $type:ident, $description:literal, $names:expr) => {
        $(#[$words])*
        #[derive(Debug)]
        pub enum $type {}

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let names: Vec<&str> = $names.into_iter().collect();
                let counter = || serde_json::json!({ "type": "integer", "minimum": 0 });
                let fields = names.iter().map(|name| ((*name).to_owned(), counter()));
                let fields: serde_json::Map<_, _> = fields.collect();
                schemars::json_schema!({
                    "description": $description,
                    "type": "object",
                    "properties": fields,
                    "required": names,
                })
            }
        }
    };
}

pub(crate) use {counters_of, one_of};
