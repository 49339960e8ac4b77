//! The schema check: each failed keyword becomes a problem at the place of the value that failed it.

use jsonschema::error::{TypeKind, ValidationError, ValidationErrorKind};
use serde_json::Value;

use super::node::{Node, Value as NodeValue};
use super::problem::{Collector, DocumentPath, ProblemKind};
use super::suggest;
use super::text;

/// Checks a document against the schema of the runbook.
///
/// # Errors
/// The schema itself cannot be compiled, which is a defect of drctl.
pub(super) fn against_schema(root: &Node, found: &mut Collector<'_>) -> Result<(), String> {
    let schema = super::schema::inlined();
    let mut options = jsonschema::draft202012::options().should_validate_formats(true);
    for &(name, check) in text::FORMATS {
        options = options.with_format(name, move |text: &str| check(text).is_ok());
    }
    let validator = options.build(&schema).map_err(|error| error.to_string())?;
    let json = root.to_json();
    duplicates(root, &DocumentPath::default(), found);
    large_numbers(root, &DocumentPath::default(), found);
    for error in validator.iter_errors(&json) {
        if found.is_full() {
            break;
        }
        translate(&error, root, &schema, found);
    }
    Ok(())
}

/// Reports every key that is given twice in one mapping.
fn duplicates(node: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    let mut seen = std::collections::BTreeMap::new();
    for entry in node.entries() {
        let path = path.join(&entry.key);
        if let Some(first) = seen.insert(&entry.key, entry.key_at) {
            let name = if !path.is_secret() || path.printable() == path {
                format!("`{}`", text::shorten(&entry.key))
            } else {
                "a key".to_owned()
            };
            let message = format!("{name} is given twice; first on line {}", first.line);
            found.add(
                ProblemKind::DuplicateKey,
                entry.key_at,
                &path,
                message,
                Some("keep one of the two".to_owned()),
            );
        }
        duplicates(&entry.node, &path, found);
    }
    for (index, item) in node.items().iter().enumerate() {
        duplicates(item, &path.join(&index.to_string()), found);
    }
}

/// Reports numbers beyond 2^53, which JSON readers, editors among them, round.
fn large_numbers(node: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    if let NodeValue::Number(number) = &node.value
        && number
            .as_f64()
            .is_none_or(|number| number.abs() > 9_007_199_254_740_992.0)
    {
        found.add(
            ProblemKind::BadValue,
            node.at,
            path,
            "the number is too large",
            None,
        );
    }
    for entry in node.entries() {
        large_numbers(&entry.node, &path.join(&entry.key), found);
    }
    for (index, item) in node.items().iter().enumerate() {
        large_numbers(item, &path.join(&index.to_string()), found);
    }
}

fn translate(error: &ValidationError<'_>, root: &Node, schema: &Value, found: &mut Collector<'_>) {
    let path = DocumentPath(segments(error.instance_path().as_str()));
    let node = path
        .0
        .iter()
        .try_fold(root, |node, segment| node.child(segment))
        .unwrap_or(root);
    // The schema that holds the failed keyword.
    let here = error
        .schema_path()
        .as_str()
        .rsplit_once('/')
        .and_then(|(parent, _)| schema.pointer(parent))
        .unwrap_or(&Value::Null);
    let is_secret = path.is_secret();
    let mut bad_value = |message: String, suggestion: Option<String>| {
        found.add(ProblemKind::BadValue, node.at, &path, message, suggestion);
    };
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            for key in unexpected {
                if found.is_full() {
                    break;
                }
                let at = node.entry(key).map_or(node.at, |entry| entry.key_at);
                // A key that looks like none of those below a secret may be the secret.
                let message = if path.is_secret() && suggest::nearest(key, keys(here)).is_none() {
                    "a key that does not belong here".to_owned()
                } else {
                    format!("unknown key `{}`", text::shorten(key))
                };
                let suggestion = decimal_comma(node, key).or_else(|| suggest::did_you_mean(key, keys(here)));
                found.add(ProblemKind::UnknownKey, at, &path.join(key), message, suggestion);
            }
        }
        ValidationErrorKind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            // A misspelt key is reported once, as the unknown key that it is.
            let known: Vec<&str> = keys(here).collect();
            let is_misspelt = node.entries().iter().take(200).any(|entry| {
                !known.contains(&entry.key.as_str())
                    && suggest::nearest(&entry.key, known.iter().copied()) == Some(key)
            });
            if !is_misspelt {
                let suggestion = here
                    .pointer(&format!("/properties/{key}"))
                    .map(|property| format!("add `{key}: {}`", example(property)));
                found.add(
                    ProblemKind::MissingField,
                    node.at,
                    &path,
                    format!("`{key}` is missing"),
                    suggestion,
                );
            }
        }
        ValidationErrorKind::Type { kind } => {
            let found_here = node.describe();
            let expected = match kind {
                TypeKind::Single(one) => in_words(&one.to_string(), here),
                TypeKind::Multiple(_) => "another type",
            };
            let suggestion = instead(node, expected, here, &path, found);
            found.add(
                ProblemKind::WrongType,
                node.at,
                &path,
                format!("expected {expected}, found {found_here}"),
                Some(suggestion),
            );
        }
        ValidationErrorKind::Enum { options } => {
            let known: Vec<&str> = options
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            // A number where a word belongs fails `type` too, which says it better.
            if let Some(given) = node.text() {
                bad_value(
                    format!("`{}` is not possible here", text::shorten(given)),
                    suggest::did_you_mean(given, known.iter().copied()),
                );
            }
        }
        ValidationErrorKind::Format { format } => {
            let check = text::FORMATS.iter().find(|(name, _)| name == format);
            if let (Some((_, check)), Some(given)) = (check, node.text())
                && let Err(bad) = check(given)
            {
                bad_value(bad.message, bad.suggestion);
            }
        }
        // Beside a format these only help editors; the format's own message is the better one.
        ValidationErrorKind::Pattern { .. }
        | ValidationErrorKind::MinLength { .. }
        | ValidationErrorKind::MaxLength { .. }
            if here.get("format").is_some() => {}
        ValidationErrorKind::MinLength { .. } => bad_value(
            "the text is empty".to_owned(),
            Some("give a value, or remove the key".to_owned()),
        ),
        ValidationErrorKind::MinItems { .. } => bad_value(
            "the list is empty".to_owned(),
            Some(format!("for example `{}`", example(here))),
        ),
        ValidationErrorKind::MinProperties { .. } | ValidationErrorKind::MaxProperties { .. } => {
            if let Some((message, suggestion)) = wrong_count(here, node) {
                bad_value(message.to_owned(), suggestion);
            }
        }
        // Names that are keys are checked with the references, with a better message.
        ValidationErrorKind::PropertyNames { .. } => {}
        ValidationErrorKind::Minimum { .. } | ValidationErrorKind::Maximum { .. }
            if path.0 == ["version"] =>
        {
            bad_value(
                "this drctl reads version 1 of the runbook".to_owned(),
                Some("write `version: 1`, or use the drctl that the runbook was written for".to_owned()),
            );
        }
        ValidationErrorKind::Minimum { limit } => {
            bad_value(format!("the number is too small: at least {limit}"), None);
        }
        ValidationErrorKind::Maximum { limit } => {
            bad_value(format!("the number is too large: at most {limit}"), None);
        }
        ValidationErrorKind::Pattern { pattern } => {
            bad_value(format!("the text does not match {pattern}"), None);
        }
        // Its words may quote the value.
        _ if is_secret => bad_value("the value is not possible here".to_owned(), None),
        _ => bad_value(error.to_string(), None),
    }
}

/// What to write instead of a value of another type.
fn instead(node: &Node, expected: &str, here: &Value, path: &DocumentPath, found: &Collector<'_>) -> String {
    let example = example(here);
    let is_words = here.pointer("/items/type").is_some_and(|kind| kind == "string");
    match &node.value {
        NodeValue::Null if expected != "nothing" => {
            format!("give a value, for example `{example}`, or remove the key")
        }
        NodeValue::Number(_) | NodeValue::Bool(_) if expected == "a text" && path.is_secret() => {
            "quote it".to_owned()
        }
        NodeValue::Number(_) | NodeValue::Bool(_) if expected == "a text" => {
            // As it was written: of 0123 the number has lost the zero.
            let word = found
                .word_at(node.at)
                .map_or_else(|| node.to_json().to_string(), str::to_owned);
            format!("quote it: `\"{}\"`", text::shorten(&word))
        }
        NodeValue::Number(number) if is_deadline(here) && number.is_u64() => {
            format!("a time-out needs a unit, for example `{number}s`")
        }
        NodeValue::Text(given) => {
            let given = given.trim();
            // What stands in the arguments of a program is not repeated: it may be a secret.
            if is_words && matches!(path.0.last().map(String::as_str), Some("command" | "argv")) {
                return format!("write its words as a list, for example `{example}`");
            }
            let better = match expected {
                "a list" if is_words && is_plain(given) => Some(format!("[{given}]")),
                "true or false" => truth(given).map(|truth| truth.to_string()),
                "a number" | "a whole number" => number_in(given),
                _ => None,
            };
            match better {
                Some(better) if !path.is_secret() => format!("write `{better}`"),
                _ => format!("for example `{example}`"),
            }
        }
        _ => format!("for example `{example}`"),
    }
}

fn is_deadline(schema: &Value) -> bool {
    schema
        .get("format")
        .is_some_and(|format| format == "drctl-deadline")
}

/// A word that YAML reads as the text that it is.
fn is_plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@'))
}

/// What older versions of YAML take for true and false.
fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "on" | "true" | "y" => Some(true),
        "no" | "off" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// The number in `99,5` and in `50%`.
fn number_in(text: &str) -> Option<String> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if let Some(number) = text
        .strip_suffix('%')
        .map(str::trim)
        .filter(|number| digits(number))
    {
        return Some(number.to_owned());
    }
    let (whole, fraction) = text.split_once(',')?;
    (digits(whole) && digits(fraction)).then(|| format!("{whole}.{fraction}"))
}

/// `{ availability: 99,5 }` is a mapping with a key `5` that has no value.
fn decimal_comma(node: &Node, key: &str) -> Option<String> {
    let entries = node.entries();
    let index = entries.iter().position(|entry| entry.key == key)?;
    let (before, comma) = (entries.get(index.checked_sub(1)?)?, entries.get(index)?);
    let NodeValue::Number(whole) = &before.node.value else {
        return None;
    };
    let is_fraction = matches!(comma.node.value, NodeValue::Null) && key.bytes().all(|b| b.is_ascii_digit());
    (is_fraction && whole.is_u64()).then(|| {
        format!(
            "a decimal comma? write `{}: {whole}.{key}`",
            text::shorten(&before.key)
        )
    })
}

/// An empty mapping, or several keys where exactly one belongs.
fn wrong_count(here: &Value, node: &Node) -> Option<(&'static str, Option<String>)> {
    if here.get("maxProperties").is_none() {
        return Some((
            "nothing is listed here",
            Some("add at least one entry".to_owned()),
        ));
    }
    if node.entries().is_empty() {
        return Some(("exactly one key belongs here", suggest::one_of(keys(here))));
    }
    // Only known keys count: unknown ones are reported by themselves.
    let known: Vec<&str> = keys(here).filter(|key| node.get(key).is_some()).collect();
    (known.len() > 1).then(|| {
        (
            "only one of these keys is possible at a time",
            suggest::one_of(known),
        )
    })
}

fn keys(schema: &Value) -> impl Iterator<Item = &str> + Clone {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|properties| properties.keys().map(String::as_str))
}

/// A JSON type as an operator would say it.
fn in_words(kind: &str, schema: &Value) -> &'static str {
    match kind {
        "object" => "a mapping",
        "array" => "a list",
        "string"
            if schema
                .get("format")
                .is_some_and(|format| format == "drctl-duration" || format == "drctl-deadline") =>
        {
            "a duration"
        }
        "string" => "a text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        _ => "nothing",
    }
}

/// A value that the schema accepts, for a suggestion.
fn example(schema: &Value) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    };
    let short = |value: &Value| match value {
        Value::Array(words) if !words.is_empty() => {
            let words = words.iter().map(word).collect::<Option<Vec<_>>>()?;
            Some(format!("[{}]", words.join(", ")))
        }
        _ => word(value),
    };
    let listed = ["examples", "enum"]
        .iter()
        .find_map(|key| short(schema.get(key)?.get(0)?));
    if let Some(value) = listed.or_else(|| short(schema.get("default")?)) {
        return value;
    }
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
    let text = match (kind, format) {
        (_, "drctl-http-url") => "http://127.0.0.1:8080/health",
        (_, "drctl-docker-host") => "unix:///var/run/docker.sock",
        (_, "drctl-absolute-path") => "/etc/drctl/NAME",
        ("string", _) => "NAME",
        ("integer" | "number", _) => {
            return schema
                .get("minimum")
                .map_or_else(|| "1".to_owned(), Value::to_string);
        }
        ("boolean", _) => "true",
        ("array", _) => {
            return format!(
                "[{}]",
                schema.get("items").map_or_else(|| "…".to_owned(), example)
            );
        }
        ("object", _) => return example_object(schema),
        _ => "…",
    };
    text.to_owned()
}

/// The required keys of a mapping, or its first.
fn example_object(schema: &Value) -> String {
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let chosen: Vec<&str> = if required.is_empty() {
        keys(schema).take(1).collect()
    } else {
        required
    };
    let parts: Vec<String> = chosen
        .iter()
        .filter_map(|key| Some((key, schema.get("properties")?.get(key)?)))
        .map(|(key, property)| {
            // Deep mappings would make the hint longer than the runbook; one key with a word behind it does not.
            let is_mapping = |schema: &Value| schema.get("type").is_some_and(|kind| kind == "object");
            let is_short = property.get("maxProperties").is_some_and(|most| most == 1)
                && keys(property)
                    .next()
                    .and_then(|key| property.get("properties")?.get(key))
                    .is_some_and(|first| !is_mapping(first));
            let is_deep = is_mapping(property) && !is_short;
            format!(
                "{key}: {}",
                if is_deep {
                    "{ … }".to_owned()
                } else {
                    example(property)
                }
            )
        })
        .collect();
    if parts.is_empty() {
        "{ … }".to_owned()
    } else {
        format!("{{ {} }}", parts.join(", "))
    }
}

/// The segments of a JSON pointer.
fn segments(pointer: &str) -> Vec<String> {
    pointer
        .split('/')
        .skip(1)
        .map(|segment| segment.replace("~1", "/").replace("~0", "~"))
        .collect()
}
