//! What is wrong with a runbook: data for `--json`, and text with the source line and a caret for a person.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::mask;
use super::node::Position;

/// How many problems one run reports. A file with more is not a runbook with mistakes, it is another file.
const MAX_PROBLEMS: usize = 100;

/// How much of a source line is shown, in characters.
const MAX_SNIPPET: usize = 120;

/// The sort of a problem. Stable names, for programs that read `--json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The file could not be opened or read.
    Unreadable,
    /// The file is larger than a runbook can be.
    TooLarge,
    /// The file is not UTF-8.
    NotUtf8,
    /// The file is not one YAML document.
    NotYaml,
    /// A limit of depth or size was met: a tower of brackets, an alias bomb.
    TooComplex,
    /// A key that a runbook does not have.
    UnknownKey,
    /// A key that is given twice.
    DuplicateKey,
    /// A required key is missing.
    MissingField,
    /// A value of another type.
    WrongType,
    /// A value of the right type that is not acceptable.
    BadValue,
    /// A reference to something that the runbook does not have.
    UnknownReference,
    /// Services that depend on each other in a circle.
    DependencyCycle,
}

/// One problem of a runbook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The sort of the problem.
    pub kind: ProblemKind,
    /// The runbook.
    pub file: PathBuf,
    /// The line, counted from 1; none if the problem is the file itself.
    pub line: Option<u64>,
    /// The column in characters, counted from 1.
    pub column: Option<u64>,
    /// The place in the document, such as `services.postgres.depends-on[0]`. Empty for the document itself.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub suggestion: Option<String>,
    /// The source line, for the snippet. Values that may be secret are left out.
    #[serde(skip)]
    source_line: Option<String>,
}

/// A runbook that cannot be used, with everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Invalid {
    /// The file.
    pub file: PathBuf,
    /// Every problem, in the order of the file. Never empty.
    pub problems: Vec<Problem>,
    /// How many further problems were left out. After a thousand drctl stops looking.
    pub left_out: usize,
}

impl std::error::Error for Invalid {}

/// Where in the document a problem is, as keys and indices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DocumentPath(pub Vec<String>);

impl DocumentPath {
    pub(super) fn new(segments: &[&str]) -> Self {
        Self(segments.iter().map(|&segment| segment.to_owned()).collect())
    }

    pub(super) fn join(&self, segment: &str) -> Self {
        let mut longer = self.clone();
        longer.0.push(segment.to_owned());
        longer
    }

    /// Whether the place is that of a secret's reference, or below it. What stands there by mistake, keys and numbers
    /// included, may be the secret itself.
    pub(super) fn is_secret(&self) -> bool {
        self.secret_at().is_some()
    }

    /// The number of segments that lead to the reference.
    fn secret_at(&self) -> Option<usize> {
        let segments: Vec<&str> = self.0.iter().map(String::as_str).collect();
        match segments.as_slice() {
            ["services", _, "postgres" | "redis", "password", ..]
            | ["notify", _, "email", "password", ..] => Some(4),
            // A request that logs in holds a password, and nothing of it is needed to say what is wrong.
            ["notify", _, "webhook" | "ping", ..] | ["write-check", "write", "body", ..] => Some(3),
            _ => None,
        }
    }

    /// The path as it may be printed: below a secret's reference no further than the keys that belong there.
    pub(super) fn printable(&self) -> Self {
        const KEYS: [&str; 6] = ["url", "plain", "env", "file", "command", "container-env"];
        let Some(from) = self.secret_at() else {
            return self.clone();
        };
        let below = self.0.iter().skip(from).take_while(|segment| {
            KEYS.contains(&segment.as_str())
                || segment.len() < 4 && segment.bytes().all(|b| b.is_ascii_digit())
        });
        Self(self.0.iter().take(from).chain(below).cloned().collect())
    }
}

impl fmt::Display for DocumentPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.0.iter().enumerate() {
            let plain = !segment.is_empty()
                && segment
                    .chars()
                    .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
            if segment.bytes().all(|b| b.is_ascii_digit()) && !segment.is_empty() {
                write!(f, "[{segment}]")?;
            } else if !plain {
                write!(f, "[{:?}]", super::text::shorten(segment))?;
            } else {
                write!(f, "{}{segment}", if index == 0 { "" } else { "." })?;
            }
        }
        Ok(())
    }
}

/// Collects problems while a document is checked.
pub(super) struct Collector<'a> {
    file: &'a Path,
    lines: Vec<&'a str>,
    /// The same, as they may be shown.
    showable: Vec<Option<String>>,
    problems: Vec<Problem>,
}

impl<'a> Collector<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Self {
        Self {
            file,
            lines: text.lines().collect(),
            showable: mask::showable(text),
            problems: Vec::new(),
        }
    }

    /// Records a problem at a place.
    pub(super) fn add(
        &mut self,
        kind: ProblemKind,
        at: Position,
        path: &DocumentPath,
        message: impl Into<String>,
        suggestion: Option<String>,
    ) {
        let source_line = line_of(&self.showable, at)
            .cloned()
            .flatten()
            .filter(|_| !path.is_secret())
            .map(|line| match kind {
                // A misspelt `password` is a password all the same.
                ProblemKind::UnknownKey => without_value(&line, at.column),
                _ => line,
            });
        let problem = Problem {
            kind,
            file: self.file.to_owned(),
            line: Some(at.line),
            column: Some(at.column),
            path: path.printable().to_string(),
            message: message.into(),
            suggestion,
            source_line,
        };
        self.problems.push(problem);
    }

    /// A number or a word at a place, as it was written.
    pub(super) fn word_at(&self, at: Position) -> Option<&'a str> {
        let skip = usize::try_from(at.column).ok()?.checked_sub(1)?;
        let line = line_of(&self.lines, at)?;
        let (from, _) = line.char_indices().nth(skip)?;
        let rest = line.get(from..)?;
        let word = rest.split([' ', '\t', ',', ']', '}']).next()?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
        (!word.is_empty() && word.chars().all(is_plain)).then_some(word)
    }

    /// The reader's words about a place, without what they quote where that may be a secret.
    pub(super) fn about(&self, at: Position, message: &str) -> String {
        let is_whole = line_of(&self.showable, at)
            .is_none_or(|shown| shown.as_deref() == line_of(&self.lines, at).copied());
        if is_whole {
            return message.to_owned();
        }
        message
            .split(['`', ':'])
            .next()
            .unwrap_or_default()
            .trim_end()
            .to_owned()
    }

    /// Whether so much was found that looking further would only cost time.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() >= 10 * MAX_PROBLEMS
    }

    pub(super) fn has(&self, kind: ProblemKind) -> bool {
        self.problems.iter().any(|problem| problem.kind == kind)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Everything that was found, in the order of the file.
    pub(super) fn into_invalid(mut self) -> Invalid {
        self.problems
            .sort_by_key(|problem| (problem.line, problem.column));
        self.problems.dedup();
        let left_out = self.problems.len().saturating_sub(MAX_PROBLEMS);
        self.problems.truncate(MAX_PROBLEMS);
        Invalid {
            file: self.file.to_owned(),
            problems: self.problems,
            left_out,
        }
    }
}

impl Invalid {
    /// A problem of the file as a whole, or at a place that was found without reading it as YAML.
    pub(super) fn whole_file(
        file: &Path,
        kind: ProblemKind,
        at: Option<Position>,
        message: String,
        suggestion: Option<String>,
    ) -> Self {
        let problem = Problem {
            kind,
            file: file.to_owned(),
            line: at.map(|at| at.line),
            column: at.map(|at| at.column),
            path: String::new(),
            message,
            suggestion,
            source_line: None,
        };
        Self {
            file: file.to_owned(),
            problems: vec![problem],
            left_out: 0,
        }
    }
}

fn line_of<T>(lines: &[T], at: Position) -> Option<&T> {
    lines.get(usize::try_from(at.line).ok()?.checked_sub(1)?)
}

/// A source line up to the colon behind the key at a column.
fn without_value(line: &str, column: u64) -> String {
    let skip = usize::try_from(column).unwrap_or(usize::MAX).saturating_sub(1);
    let key = line
        .char_indices()
        .nth(skip)
        .map_or(line.len(), |(start, _)| start);
    match line.get(key..).and_then(|rest| rest.find(':')) {
        Some(colon) => format!("{}: …", line.get(..key + colon).unwrap_or_default()),
        None => line.to_owned(),
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}", self.message)?;
        if let (Some(line), Some(column), Some(source)) = (self.line, self.column, &self.source_line) {
            snippet(f, line, column, source)?;
        }
        if let Some(suggestion) = &self.suggestion {
            write!(f, "\n    help: {suggestion}")?;
        }
        Ok(())
    }
}

/// The source line and a caret under the column, cut to a window around it.
fn snippet(f: &mut fmt::Formatter<'_>, line: u64, column: u64, source: &str) -> fmt::Result {
    let column = usize::try_from(column).unwrap_or(usize::MAX).saturating_sub(1);
    let from = if column >= MAX_SNIPPET {
        column - MAX_SNIPPET / 2
    } else {
        0
    };
    // A tab or a control character would move the caret away from what it points at.
    let visible = |c: char| {
        if c == '\t' {
            ' '
        } else {
            crate::printable::visible(c)
        }
    };
    let shown: String = source.chars().skip(from).take(MAX_SNIPPET).map(visible).collect();
    let caret = (column - from).min(shown.chars().count());
    write!(f, "\n  {line:>4} | {shown}\n       | {:caret$}^", "")
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        let count = self.problems.len() + self.left_out;
        write!(
            f,
            "{}: {count} problem{} found",
            self.file.display(),
            if count == 1 { "" } else { "s" }
        )?;
        if self.left_out > 0 {
            write!(f, ", the first {} are shown", self.problems.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Every place where the schema has a reference to a secret is known to be one: a new one must not be forgotten.
    #[test]
    fn every_reference_to_a_secret_is_known() {
        fn walk(schema: &Value, path: &DocumentPath, found: &mut Vec<DocumentPath>) {
            let properties = schema.get("properties").and_then(Value::as_object);
            let has = |key: &str| properties.is_some_and(|keys| keys.contains_key(key));
            if has("env") && has("file") && has("command") {
                found.push(path.clone());
                return;
            }
            for (key, child) in properties.into_iter().flatten() {
                walk(child, &path.join(key), found);
            }
            for (key, segment) in [("additionalProperties", "name"), ("items", "0")] {
                if let Some(child) = schema.get(key) {
                    walk(child, &path.join(segment), found);
                }
            }
        }
        let mut found = Vec::new();
        walk(
            &super::super::schema::inlined(),
            &DocumentPath::default(),
            &mut found,
        );
        assert_eq!(found.len(), 5, "{found:?}");
        for path in found {
            assert!(path.is_secret(), "{path}");
        }
    }
}
