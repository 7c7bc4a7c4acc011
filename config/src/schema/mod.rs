//! The JSON Schemas of what a person may write, for editors, and the reference page that is made from them.
//!
//! A schema cannot say all that [`crate::check`] checks. Whatever it refuses, `check` refuses; not the other way
//! round.

#[cfg(test)]
mod reference;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::{Bootstrap, Gateway, Mesh, Service};

/// The schema of a document of kind `Service`, `Mesh` or `Gateway`, in the draft that editors know best.
pub fn documents() -> Value {
    let mut definitions = Map::new();
    let kinds = [
        named::<Service>("Service", &mut definitions),
        named::<Mesh>("Mesh", &mut definitions),
        named::<Gateway>("Gateway", &mut definitions),
    ];
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Outrigger service, mesh and gateway documents",
        "type": "object",
        "properties": {
            "kind": {
                "description": "What the document is about: one service, what holds for all of them, or what is served to callers outside.",
                "enum": ["Service", "Mesh", "Gateway"],
            },
        },
        "required": ["kind"],
        // Rather than `oneOf`: an editor then speaks of the mistake inside the kind that was written.
        "allOf": kinds,
        "definitions": definitions,
    })
}

/// The schema of a proxy's bootstrap.
pub fn bootstrap() -> Value {
    let (mut root, definitions) = parts::<Bootstrap>();
    allow_kind(&mut root, "Proxy", "May be left out: the file stands alone.");
    root.insert(
        "$schema".to_owned(),
        json!("http://json-schema.org/draft-07/schema#"),
    );
    root.insert("title".to_owned(), json!("Outrigger proxy bootstrap"));
    root.insert("definitions".to_owned(), Value::Object(definitions));
    Value::Object(root)
}

/// The rule for one kind; its types are added to the definitions.
fn named<T: JsonSchema>(kind: &'static str, definitions: &mut Map<String, Value>) -> Value {
    let (mut root, more) = parts::<T>();
    allow_kind(&mut root, kind, "What the document is about.");
    definitions.extend(more);
    definitions.insert(kind.to_owned(), Value::Object(root));
    json!({
        "if": { "properties": { "kind": { "const": kind } }, "required": ["kind"] },
        "then": { "$ref": format!("#/definitions/{kind}") },
    })
}

/// The schema of a type, and those of the types inside it.
fn parts<T: JsonSchema>() -> (Map<String, Value>, Map<String, Value>) {
    let schema: Schema = SchemaSettings::draft07()
        .into_generator()
        .into_root_schema_for::<T>();
    let Value::Object(mut root) = plain(schema.to_value()) else {
        return (Map::new(), Map::new());
    };
    let definitions = match root.remove("definitions") {
        Some(Value::Object(definitions)) => definitions,
        _ => Map::new(),
    };
    root.remove("$schema");
    (root, definitions)
}

/// The same schema without what editors stumble over: formats of Rust's own, line breaks inside sentences, and
/// `null`, which is read as absent but is no way to write anything.
fn plain(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(plain).collect()),
        Value::Object(fields) => Value::Object(plain_fields(fields)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

fn plain_fields(fields: Map<String, Value>) -> Map<String, Value> {
    let mut plainer = Map::new();
    for (key, value) in fields {
        let value = plain(value);
        match (key.as_str(), value) {
            ("format", _) | ("default", Value::Null | Value::Object(_)) => {}
            ("description", Value::String(text)) => {
                plainer.insert(key, Value::String(text.replace('\n', " ")));
            }
            ("type", Value::Array(mut types)) => {
                types.retain(|one| one != "null");
                let only = if types.len() == 1 { types.pop() } else { None };
                plainer.insert(key, only.unwrap_or(Value::Array(types)));
            }
            ("anyOf", Value::Array(mut choices)) => {
                let all = choices.len();
                choices.retain(|choice| choice.get("type").is_none_or(|kind| kind != "null"));
                let word = if choices.len() < all { "allOf" } else { "oneOf" };
                plainer.insert(word.to_owned(), Value::Array(choices));
            }
            (_, value) => {
                plainer.insert(key, value);
            }
        }
    }
    plainer
}

fn allow_kind(root: &mut Map<String, Value>, kind: &str, description: &str) {
    if let Some(Value::Object(properties)) = root.get_mut("properties") {
        properties.insert(
            "kind".to_owned(),
            json!({ "const": kind, "description": description }),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Compares with the file; with `UPDATE=1` in the environment it is written anew.
    fn assert_current(file: &str, made: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, made).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == made,
            "{file} is out of date: run `UPDATE=1 cargo test -p outrigger-config`"
        );
    }

    /// In the order of the keys, whatever another crate of the same build asks of `serde_json`.
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Array(items) => items.iter().map(sorted).collect(),
            Value::Object(fields) => {
                let fields: BTreeMap<&String, Value> =
                    fields.iter().map(|(key, value)| (key, sorted(value))).collect();
                json!(fields)
            }
            other => other.clone(),
        }
    }

    fn pretty(schema: &Value) -> String {
        format!("{}\n", serde_json::to_string_pretty(&sorted(schema)).unwrap())
    }

    #[test]
    fn the_schemas_beside_the_examples_are_current() {
        assert_current("config-examples/schema.json", &pretty(&documents()));
        assert_current("config-examples/proxy.schema.json", &pretty(&bootstrap()));
    }

    #[test]
    fn the_reference_page_is_current() {
        assert_current("docs/configuration.md", &reference::page());
    }
}
