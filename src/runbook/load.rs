//! From a path to a validated runbook, or to everything that is wrong with the file.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::model::Runbook;
use super::node::{self, Position};
use super::problem::{Collector, DocumentPath, Invalid, ProblemKind};
use super::{check, raw, semantic, text};

/// The largest file that is read: 1 MiB. A runbook has a few kilobytes.
pub const MAX_BYTES: u64 = 1024 * 1024;

/// Reads and checks a runbook. Time and memory are bounded whatever the path leads to.
///
/// # Errors
/// [`Invalid`] with every problem of the file, each with its place.
pub fn load(path: &Path) -> Result<Runbook, Invalid> {
    let bytes = read_bounded(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| not_utf8(path, &bytes, error.valid_up_to()))?;
    parse(path, text)
}

/// Checks the text of a runbook; `path` is only named in problems.
///
/// # Errors
/// As [`load`].
pub fn parse(path: &Path, text: &str) -> Result<Runbook, Invalid> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let document = match node::read(text) {
        Ok(document) => document,
        Err(_)
            if text
                .lines()
                .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) =>
        {
            return Err(Invalid::whole_file(
                path,
                ProblemKind::NotYaml,
                None,
                "the file is empty".to_owned(),
                Some(next_command()),
            ));
        }
        Err(error) => return Err(not_yaml(path, text, &error)),
    };
    let mut found = Collector::new(path, text);
    let root = &document.root;
    if matches!(root.value, node::Value::Null) {
        return Err(Invalid::whole_file(
            path,
            ProblemKind::NotYaml,
            None,
            "the file is empty".to_owned(),
            Some(next_command()),
        ));
    }
    let defect = |message: String| {
        Invalid::whole_file(
            path,
            ProblemKind::Unreadable,
            None,
            message,
            Some("this is a defect of drctl: please report it".to_owned()),
        )
    };
    check::against_schema(root, &mut found).map_err(defect)?;
    semantic::check(root, &mut found);
    if let Some(error) = document.duplicate
        && !found.has(ProblemKind::DuplicateKey)
    {
        let at = error.at.unwrap_or(Position::START);
        let message = found.about(at, &error.message);
        found.add(
            ProblemKind::DuplicateKey,
            at,
            &DocumentPath::default(),
            message,
            None,
        );
    }
    if !found.is_empty() {
        return Err(found.into_invalid());
    }
    // What passed the schema and the checks is a runbook; if not, the two disagree, which must not pass silently.
    let raw: raw::Runbook =
        serde_json::from_value(root.to_json()).map_err(|error| defect(error.to_string()))?;
    Runbook::from_raw(raw, path.to_owned())
        .ok_or_else(|| defect("a service lacks the facts of its kind".to_owned()))
}

fn next_command() -> String {
    "see what a runbook holds: `drctl runbook schema`".to_owned()
}

/// Reads at most [`MAX_BYTES`]. Neither a huge file nor a pipe that nobody writes to can make this hang or grow.
fn read_bounded(path: &Path) -> Result<Vec<u8>, Invalid> {
    let unreadable = |error: &std::io::Error| {
        Invalid::whole_file(
            path,
            ProblemKind::Unreadable,
            None,
            format!("cannot read the runbook: {error}"),
            None,
        )
    };
    // Without O_NONBLOCK, opening a FIFO waits for a writer.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(path)
        .map_err(|error| unreadable(&error))?;
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() {
            "a directory"
        } else {
            "not a regular file"
        };
        return Err(Invalid::whole_file(
            path,
            ProblemKind::Unreadable,
            None,
            format!("the runbook is {what}"),
            None,
        ));
    }
    let too_large = |size: String| {
        let message =
            format!("the file has {size}, more than the 1 MiB that a runbook may have; it was not read");
        Invalid::whole_file(
            path,
            ProblemKind::TooLarge,
            None,
            message,
            Some("check that the path is the runbook's".to_owned()),
        )
    };
    if metadata.len() > MAX_BYTES {
        return Err(too_large(format!("{} bytes", metadata.len())));
    }
    let mut bytes = Vec::new();
    // The size may be a lie (/proc) or grow meanwhile.
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(&error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        Err(too_large("grown while it was read".to_owned()))
    } else {
        Ok(bytes)
    }
}

fn not_utf8(path: &Path, bytes: &[u8], offset: usize) -> Invalid {
    let before = bytes.get(..offset).unwrap_or_default();
    let line = before.split(|&byte| byte == b'\n').count();
    let column = before
        .rsplit(|&byte| byte == b'\n')
        .next()
        .map_or(0, |line| String::from_utf8_lossy(line).chars().count())
        + 1;
    let at = Position {
        line: u64::try_from(line).unwrap_or(1),
        column: u64::try_from(column).unwrap_or(1),
    };
    let byte = bytes.get(offset).copied().unwrap_or_default();
    let message = format!("the file is not UTF-8: byte 0x{byte:02x} at offset {offset}");
    Invalid::whole_file(
        path,
        ProblemKind::NotUtf8,
        Some(at),
        message,
        Some("save the file as UTF-8".to_owned()),
    )
}

fn not_yaml(path: &Path, text: &str, error: &node::NotYaml) -> Invalid {
    let mut found = Collector::new(path, text);
    let at = error.at.unwrap_or(Position::START);
    let words = found.about(at, &error.message);
    let (kind, message, suggestion) = if error.is_limit {
        (ProblemKind::TooComplex, beyond(&error.message).to_owned(), None)
    } else if error.message.starts_with("duplicate mapping key") {
        (
            ProblemKind::DuplicateKey,
            words,
            Some("keep one of the two".to_owned()),
        )
    } else if error.message.contains("multiple") && error.message.contains("document") {
        let suggestion = "keep one document: remove the `---` line and what follows it".to_owned();
        (
            ProblemKind::NotYaml,
            "the file holds several YAML documents".to_owned(),
            Some(suggestion),
        )
    } else if error.message.contains("non-finite") {
        (
            ProblemKind::BadValue,
            "the number is not finite".to_owned(),
            Some("`.nan` and `.inf` are no limits: write a number, or remove the key".to_owned()),
        )
    } else {
        let suggestion = text::shorten(&error.message)
            .contains("tab")
            .then(|| "indent with spaces".to_owned());
        (
            ProblemKind::NotYaml,
            format!("this is not YAML: {words}"),
            suggestion,
        )
    };
    found.add(kind, at, &DocumentPath::default(), message, suggestion);
    found.into_invalid()
}

/// A limit of the reader, which speaks of its own insides, in words.
fn beyond(message: &str) -> &'static str {
    let message = message.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if has(&["alias", "anchor", "replay", "merge"]) {
        "the aliases (`*name`) stand for more than a runbook can hold"
    } else if has(&["depth", "recursion", "nest"]) {
        "the document has more levels than a runbook can have"
    } else {
        "the document holds more than a runbook can hold"
    }
}
