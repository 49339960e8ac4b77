//! The JSON Schema of the runbook, generated from [`super::raw`].
//!
//! Editors use it through the first line of a runbook (`# yaml-language-server: $schema=…`), and loading uses the very
//! same schema, so the two cannot disagree.

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value};

use super::raw;

/// The schema as published: JSON Schema draft 2020-12, pretty-printed, with a final newline.
#[must_use]
pub fn schema() -> String {
    let schema = generator(false).into_root_schema_for::<raw::Runbook>();
    // A tree of JSON values has no key that is not a text, the one thing that printing it could fail on.
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

/// The schema without references: the path of a failed keyword then is a path into this value.
pub(super) fn inlined() -> Value {
    generator(true).into_root_schema_for::<raw::Runbook>().to_value()
}

fn generator(inline: bool) -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = inline)
        .with_transform(RecursiveTransform(plainly))
        .into_generator()
}

/// Says the same with keywords whose failures name the culprit: a failed `oneOf` or `anyOf` says only "none of these".
fn plainly(schema: &mut Schema) {
    drop_null(schema);
    merge_constants(schema);
    merge_tagged(schema);
    name_keys(schema);
    if let Some(schema) = schema.as_object_mut() {
        // Rust's integer widths mean nothing to the reader of a runbook.
        let is_width = |format: &Value| {
            format
                .as_str()
                .is_some_and(|name| name.starts_with("uint") || name.starts_with("int") || name == "double")
        };
        if schema.get("format").is_some_and(is_width) {
            schema.remove("format");
        }
    }
}

/// An optional key may be left out; it may not be present and empty, which is more often a line that somebody forgot to
/// finish.
fn drop_null(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    if object.get("default").is_some_and(Value::is_null) {
        object.remove("default");
    }
    if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type").is_none_or(|kind| kind != "null"));
        if choices.len() == 1
            && let Some(Value::Object(only)) = choices.pop()
        {
            object.remove("anyOf");
            for (key, value) in only {
                // The description beside the reference is the one of this very key.
                object.entry(key).or_insert(value);
            }
        }
    }
}

/// `oneOf` of constants, one per enum variant, becomes `enum`; the variants' descriptions are appended to the enum's.
fn merge_constants(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    let Some(Value::Array(choices)) = object.get("oneOf") else {
        return;
    };
    let Some(constants) = choices
        .iter()
        .map(|choice| choice.get("const").cloned())
        .collect::<Option<Vec<Value>>>()
    else {
        return;
    };
    let lines: Vec<String> = choices
        .iter()
        .zip(&constants)
        .filter_map(|(choice, constant)| {
            Some(format!(
                "{}: {}",
                constant.as_str()?,
                choice.get("description")?.as_str()?
            ))
        })
        .collect();
    append_description(object, &lines);
    object.remove("oneOf");
    object.insert("type".to_owned(), "string".into());
    object.insert("enum".to_owned(), Value::Array(constants));
}

/// `oneOf` of objects with one key each (an externally tagged enum) becomes one object that has exactly one of the keys.
fn merge_tagged(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    let Some(Value::Array(choices)) = object.get("oneOf") else {
        return;
    };
    let mut properties = Map::new();
    for choice in choices {
        let Some(Value::Object(of_choice)) = choice.get("properties") else {
            return;
        };
        for (key, value) in of_choice {
            let mut value = value.clone();
            if let (Some(value), Some(description)) = (value.as_object_mut(), choice.get("description")) {
                value.entry("description").or_insert_with(|| description.clone());
            }
            properties.insert(key.clone(), value);
        }
    }
    object.remove("oneOf");
    object.insert("type".to_owned(), "object".into());
    object.insert("properties".to_owned(), Value::Object(properties));
    object.insert("additionalProperties".to_owned(), false.into());
    object.insert("minProperties".to_owned(), 1.into());
    object.insert("maxProperties".to_owned(), 1.into());
}

/// A mapping whose keys are names: a bad name is one problem, and its value is checked all the same.
fn name_keys(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if !matches!(object.get("patternProperties"), Some(Value::Object(patterns)) if patterns.len() == 1) {
        return;
    }
    if let Some(Value::Object(patterns)) = object.remove("patternProperties") {
        for (pattern, value) in patterns {
            object.insert(
                "propertyNames".to_owned(),
                serde_json::json!({ "pattern": pattern }),
            );
            object.insert("additionalProperties".to_owned(), value);
        }
    }
}

fn append_description(object: &mut Map<String, Value>, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let mut description = object
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    for line in lines {
        description.push_str("\n- ");
        description.push_str(line);
    }
    object.insert("description".to_owned(), description.trim_start().into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_says_which_key_is_wrong() {
        let text = schema();
        assert!(text.contains("\"$schema\": \"https://json-schema.org/draft/2020-12/schema\""));
        for keyword in ["\"oneOf\"", "\"anyOf\"", "\"null\""] {
            assert!(
                !text.contains(keyword),
                "{keyword} in the schema hides which key is wrong"
            );
        }
    }

    /// Every key has a description: it is the only documentation an editor shows.
    #[test]
    fn every_key_is_described() {
        fn walk(value: &Value, path: &str, missing: &mut Vec<String>) {
            if let Some(Value::Object(properties)) = value.get("properties") {
                for (key, property) in properties {
                    if property.get("description").is_none() {
                        missing.push(format!("{path}.{key}"));
                    }
                }
            }
            if let Value::Object(object) = value {
                for (key, child) in object {
                    walk(child, &format!("{path}.{key}"), missing);
                }
            }
        }
        let mut missing = Vec::new();
        walk(&inlined(), "", &mut missing);
        assert!(missing.is_empty(), "{missing:#?}");
    }

    #[test]
    fn the_committed_schema_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/schema.json");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == schema(),
            "runbooks/schema.json is out of date; regenerate it: drctl runbook schema > runbooks/schema.json"
        );
    }
}
