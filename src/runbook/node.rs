//! A YAML document as a tree in which every key and value knows where it stands.
//!
//! Deserialising straight into structs stops at the first error. This tree is what lets all problems be reported at
//! once, each with its line and column.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use serde_yaml::Spanned;
use serde_yaml::options::DuplicateKeyPolicy;

/// A place in the file. Both count from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// The line.
    pub line: u64,
    /// The column.
    pub column: u64,
}

impl Position {
    /// The first character of the file.
    pub(super) const START: Self = Self { line: 1, column: 1 };

    fn of(location: serde_yaml::Location) -> Self {
        // The reader says 0 where it knows no place.
        Self {
            line: location.line().max(1),
            column: location.column().max(1),
        }
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Where the value starts (an alias: where it is used).
    pub at: Position,
    /// The value.
    pub value: Value,
}

/// A YAML value.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// Nothing, or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file, duplicates included.
    Map(Vec<Entry>),
}

/// One key of a mapping.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// The key.
    pub key: String,
    /// Where the key starts.
    pub key_at: Position,
    /// The value.
    pub node: Node,
}

impl Node {
    /// The value of a key, the last one where the key is given twice.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    /// The entry of a key, the last one where the key is given twice.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().rev().find(|entry| entry.key == key)
    }

    /// The entries of a mapping; none for any other value.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a sequence; none for any other value.
    pub(super) fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The text, if it is one.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The child under a key or an index.
    pub(super) fn child(&self, segment: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(_) => self.get(segment),
            Value::List(items) => items.get(segment.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// The same value for the schema check. Of a key that is given twice the last value counts.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(truth) => (*truth).into(),
            Value::Number(number) => serde_json::Value::Number(whole(number)),
            Value::Text(text) => text.clone().into(),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.node.to_json()))
                .collect(),
        }
    }

    /// What the value is, in words.
    pub(super) fn describe(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(number) if whole(number).is_f64() => "a number with a fraction",
            Value::Number(_) => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// A number without a fraction as the integer that it is: JSON Schema sees no difference between 1 and 1.0, serde does.
fn whole(number: &Number) -> Number {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0 => {
            format!("{float:.0}")
                .parse::<i64>()
                .map_or_else(|_| number.clone(), Number::from)
        }
        _ => number.clone(),
    }
}

/// Why a text could not be read as one YAML document.
#[derive(Debug)]
pub(super) struct NotYaml {
    /// Where reading stopped.
    pub at: Option<Position>,
    /// What the reader says.
    pub message: String,
    /// Whether a limit of size or depth was met, as opposed to a mistake in the syntax.
    pub is_limit: bool,
}

/// A document and what its reader had to say about keys.
pub(super) struct Document {
    /// The tree.
    pub root: Node,
    /// Set if the reader refused a duplicate key; the tree shows which.
    pub duplicate: Option<NotYaml>,
}

/// Reads one YAML document.
///
/// # Errors
/// The text is not YAML, holds several documents, or meets a limit.
pub(super) fn read(text: &str) -> Result<Document, NotYaml> {
    // A duplicate key must not hide the other problems. The lenient second reading keeps them all in the tree. It is
    // only a second reading: the reader drops some duplicates itself, so its own strict verdict must stand.
    match read_with(text, DuplicateKeyPolicy::Error) {
        Ok(root) => Ok(Document {
            root,
            duplicate: None,
        }),
        Err(first) => match read_with(text, DuplicateKeyPolicy::LastWins) {
            Ok(root) => Ok(Document {
                root,
                duplicate: Some(first),
            }),
            Err(_) => Err(first),
        },
    }
}

fn read_with(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Node, NotYaml> {
    let options = serde_yaml::options! {
        // Only `true` and `false`: a service named `no` stays a name.
        strict_booleans: true,
        with_snippet: false,
        duplicate_keys: duplicate_keys,
        // A runbook has a few hundred nodes and nine levels. Each level costs tens of kilobytes of stack. The limits end an alias bomb or a tower of brackets within milliseconds.
        budget: serde_yaml::budget! { max_nodes: 50_000, max_depth: 24, flow_nesting_limit: 24, max_aliases: 1_000, max_anchors: 1_000 },
        alias_limits: serde_yaml::alias_limits! { max_total_replayed_events: 50_000, max_replay_stack_depth: 16 },
    };
    serde_yaml::from_str_with_options::<Spanned<Bare>>(text, options)
        .map(node)
        .map_err(|error| {
            let message = error.to_string();
            let is_limit = ["budget", "limit", "depth", "nest"]
                .iter()
                .any(|word| message.contains(word));
            NotYaml {
                at: error.location().map(Position::of),
                message: without_place(&message),
                is_limit,
            }
        })
}

/// The reader's message without its own "line 3 column 4", which is printed once by us.
fn without_place(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    let rest = match first.strip_prefix("line ").and_then(|tail| tail.split_once(": ")) {
        Some((place, rest)) if place.contains("column") => rest,
        _ => first,
    };
    // Nor the advice for the programmer who uses the reader.
    let rest = rest.split(", set DuplicateKeyPolicy").next().unwrap_or(rest);
    let rest = rest.split(" at line ").next().unwrap_or(rest);
    rest.strip_prefix("error: ").unwrap_or(rest).trim().to_owned()
}

fn node(spanned: Spanned<Bare>) -> Node {
    let at = Position::of(spanned.referenced);
    let value = match spanned.value {
        Bare::Null => Value::Null,
        Bare::Bool(truth) => Value::Bool(truth),
        Bare::Number(number) => Value::Number(number),
        Bare::Text(text) => Value::Text(text),
        Bare::List(items) => Value::List(items.into_iter().map(node).collect()),
        Bare::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| Entry {
                    key_at: Position::of(key.referenced),
                    key: key.value,
                    node: node(value),
                })
                .collect(),
        ),
    };
    Node { at, value }
}

/// A value whose children carry places but which does not know its own.
enum Bare {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Spanned<Bare>>),
    Map(Vec<(Spanned<String>, Spanned<Bare>)>),
}

impl<'de> Deserialize<'de> for Bare {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BareVisitor)
    }
}

struct BareVisitor;

impl<'de> Visitor<'de> for BareVisitor {
    type Value = Bare;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Bare, E> {
        Ok(Bare::Null)
    }

    fn visit_none<E>(self) -> Result<Bare, E> {
        Ok(Bare::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Bare, D::Error> {
        Bare::deserialize(deserializer)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Bare, E> {
        Ok(Bare::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Bare, E> {
        Ok(Bare::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Bare, E> {
        Ok(Bare::Number(number.into()))
    }

    fn visit_i128<E: de::Error>(self, number: i128) -> Result<Bare, E> {
        Number::from_i128(number)
            .map(Bare::Number)
            .ok_or_else(|| E::custom("the number is too large"))
    }

    fn visit_u128<E: de::Error>(self, number: u128) -> Result<Bare, E> {
        Number::from_u128(number)
            .map(Bare::Number)
            .ok_or_else(|| E::custom("the number is too large"))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Bare, E> {
        Number::from_f64(number)
            .map(Bare::Number)
            .ok_or_else(|| E::custom("the number is not finite"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Bare, E> {
        Ok(Bare::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Bare, E> {
        Ok(Bare::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Bare, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Bare::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Bare, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Bare::Map(entries))
    }
}
