//! The reference page of the configuration, made from the schemas: what is documented is what is read.

use std::collections::VecDeque;
use std::fmt::Write;

use serde_json::Value;

const HEAD: &str = "\
# Configuration

This page is made from the types that read the configuration (`UPDATE=1 cargo test -p outrigger-config`); what is not \
here does not exist. Examples stand in [config-examples](../config-examples), and beside them a JSON Schema for \
editors: begin a file with `# yaml-language-server: $schema=schema.json`.

A file holds one or more YAML documents, parted by lines `---`. Each is a `Service`, a `Gateway` or the one `Mesh`; its \
field `kind` says which. Reading is strict, so that a slip never becomes a silent default:

- Unknown fields, duplicate fields, anchors, aliases and tags are refused.
- Text that looks like a number, `true`, `false` or `null` must stand in quotes: `exact: \"1\"`.
- Values with units need their unit.
- A document is at most 1 MiB, and nothing in it is nested deeper than 64 levels.
- Every problem is told at once, each as `file:line:column: path: what is wrong`. A refused file changes nothing.
";

/// The whole page.
pub(super) fn page() -> String {
    let mut page = HEAD.to_owned();
    let documents = super::documents();
    let definitions = &documents["definitions"];
    let kinds = ["Service", "Mesh", "Gateway"];
    for (place, kind) in kinds.into_iter().enumerate() {
        let _ = write!(page, "\n# `kind: {kind}`\n");
        let before = kinds[..place].iter().map(|kind| (*kind).to_owned());
        let shared = reached(definitions, before.collect());
        for name in reached(definitions, vec![kind.to_owned()]) {
            if !shared.contains(&name) {
                section(&mut page, &name, &definitions[&name]);
            }
        }
    }
    let bootstrap = super::bootstrap();
    page.push_str(
        "\n# The proxy's bootstrap\n\nWhat `outrigger-proxy --config proxy.yaml` reads, once. Flags and `OUTRIGGER_*` \
         variables win over it. `kind: Proxy` may stand in it. Port 0 is any free port, which the log names.\n",
    );
    section(&mut page, "Proxy", &bootstrap);
    let definitions = &bootstrap["definitions"];
    for name in reached(definitions, used(&bootstrap)) {
        if name != "Duration" && name != "TlsVersion" {
            section(&mut page, &name, &definitions[&name]);
        }
    }
    page
}

/// The types that are met on the way down from these, themselves first, each once.
fn reached(definitions: &Value, roots: Vec<String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut next = VecDeque::from(roots);
    while let Some(name) = next.pop_front() {
        if found.contains(&name) || definitions.get(&name).is_none() {
            continue;
        }
        next.extend(used(&definitions[&name]));
        found.push(name);
    }
    found
}

/// The types of the fields of a schema, and of its items, in the order of the table.
fn used(schema: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for (_, field, _) in fields(schema) {
        names.extend(reference(field).or_else(|| reference(&field["items"])));
    }
    for word in schema["oneOf"].as_array().into_iter().flatten() {
        names.extend(reference(word));
        names.extend(fields(word).iter().filter_map(|(_, field, _)| reference(field)));
    }
    names
}

/// The fields of a mapping: the required ones first.
fn fields(schema: &Value) -> Vec<(&str, &Value, bool)> {
    let required = |name: &str| {
        schema["required"]
            .as_array()
            .is_some_and(|required| required.iter().any(|one| one == name))
    };
    let mut fields: Vec<(&str, &Value, bool)> = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| *name != "kind")
        .map(|(name, field)| (name.as_str(), field, required(name)))
        .collect();
    fields.sort_by_key(|(name, _, required)| (!required, *name != "name", *name));
    fields
}

fn section(page: &mut String, name: &str, schema: &Value) {
    let _ = write!(page, "\n## {name}\n\n{}\n", text(&schema["description"]));
    if let Some(words) = schema["oneOf"].as_array() {
        page.push_str("\n| word | meaning |\n|---|---|\n");
        for word in words {
            let _ = writeln!(page, "| {} | {} |", written(word), text(&word["description"]));
        }
        return;
    }
    let fields = fields(schema);
    if fields.is_empty() {
        return;
    }
    page.push_str("\n| field | type | default | meaning |\n|---|---|---|---|\n");
    for (name, field, required) in fields {
        let default = match &field["default"] {
            _ if required => "required".to_owned(),
            Value::Null => String::new(),
            Value::Array(items) if items.is_empty() => "empty".to_owned(),
            Value::String(word) => format!("`{word}`"),
            other => format!("`{other}`"),
        };
        let _ = writeln!(
            page,
            "| `{name}` | {} | {default} | {} |",
            type_of(field),
            text(&field["description"])
        );
    }
}

/// One of several things that may be written.
fn written(word: &Value) -> String {
    if let Some(word) = word["const"].as_str() {
        return format!("`{word}`");
    }
    match fields(word).first() {
        Some((name, field, _)) => format!("`{name}:` {}", type_of(field)),
        None => type_of(word),
    }
}

/// What may be written, in words.
fn type_of(field: &Value) -> String {
    if let Some(name) = reference(field) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    match text(&field["type"]) {
        "array" => format!("list of {}", type_of(&field["items"])),
        "integer" => match (field["minimum"].as_i64(), field["maximum"].as_i64()) {
            (Some(min), Some(max)) => format!("whole number, {min} to {max}"),
            (Some(0), None) => "whole number, not negative".to_owned(),
            _ => "whole number".to_owned(),
        },
        "boolean" => "true or false".to_owned(),
        "string" => "text".to_owned(),
        "object" => "mapping of names to text".to_owned(),
        other => other.to_owned(),
    }
}

/// The type that a schema points to.
fn reference(schema: &Value) -> Option<String> {
    let target = schema
        .get("$ref")
        .or_else(|| schema["allOf"].get(0)?.get("$ref"))?;
    target.as_str()?.rsplit('/').next().map(str::to_owned)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
