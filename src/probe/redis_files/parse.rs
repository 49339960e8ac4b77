//! What the check tools of Redis print, as it is read.

use jiff::Timestamp;

use super::{AppendFacts, AppendState, Keys, OTHER_FORMAT, RedisFileFacts, SnapshotFacts, SnapshotState};
use crate::plan::RedisFiles;

/// Lines of a manifest that are read: a server that cannot rewrite its log opens one file more
/// with each attempt.
const MOST_FILES: usize = 1000;

pub(super) fn parse(text: &str) -> Result<RedisFileFacts, String> {
    let all = |key: &str| -> Vec<&str> {
        text.lines()
            .filter_map(|l| l.strip_prefix(key)?.strip_prefix('='))
            .collect()
    };
    let one = |key: &str| all(key).first().copied();
    if let Some(error) = one("error") {
        return Err(error.to_owned());
    }
    let need = |key: &str| one(key).ok_or_else(|| format!("the look at its files told no {key}"));
    let append_entry = one("append-entry");
    let name = need("append-name")?;
    Ok(RedisFileFacts {
        files: RedisFiles {
            directory: need("directory")?.to_owned(),
            snapshot: need("snapshot-name")?.to_owned(),
            append_only: need("append-only")?.eq_ignore_ascii_case("yes"),
            append_entry: append_entry.unwrap_or("appendonlydir").to_owned(),
            append_name: name.to_owned(),
        },
        free: need("free")?.trim().parse::<u64>().unwrap_or_default() << 10,
        snapshot: one("snapshot").map(|s| snapshot(s, &all("check-snapshot"), one("snapshot-header"))),
        append: append_entry.map(|entry| {
            let sizes = all("append-file");
            let files: Vec<(u64, &str)> = sizes.iter().filter_map(|l| size_and_name(l)).collect();
            append(
                entry,
                name,
                &files,
                &all("manifest"),
                &all("check-append"),
                (one("behind"), one("base-header")),
            )
        }),
    })
}

fn size_and_name(line: &str) -> Option<(u64, &str)> {
    let (size, path) = line.split_once(' ')?;
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    Some((size.parse().ok()?, name))
}

/// The format of a file that the check refused for it, in words. A Valkey of its own format
/// writes its own name in place of `REDIS`, which Redis calls a wrong signature: a damaged
/// beginning has other bytes there.
fn other_version(said: &[&str], header: Option<&str>) -> Option<String> {
    let refused = |words: &str| {
        said.iter()
            .find_map(|l| l.split_once(words))
            .map(|(_, rest)| rest.trim())
    };
    // A number that is none is read as 0: a beginning that was overwritten.
    if let Some(number) = refused(OTHER_FORMAT).filter(|n| *n != "0") {
        return Some(format!("RDB format {number}{}", writers(number)));
    }
    refused("Wrong signature trying to load DB from file")?;
    let number = header?.strip_prefix("VALKEY")?;
    Some(format!("the RDB format {number} of Valkey"))
}

/// Which versions write an RDB format (`RDB_VERSION` of rdb.h).
fn writers(number: &str) -> &'static str {
    match number.parse::<u32>() {
        Ok(9) => ", which Redis 5 and 6 write",
        Ok(10) => ", which Redis 7.0 writes",
        Ok(11) => ", which Redis 7.2 and Valkey 7.2 and 8 write",
        Ok(12) => ", which Redis 7.4 and 8 write",
        _ => "",
    }
}

fn snapshot(line: &str, said: &[&str], header: Option<&str>) -> SnapshotFacts {
    let mut words = line.split_whitespace();
    let mut number = || words.next().and_then(|w| w.parse::<i64>().ok());
    let bytes = number().and_then(|n| n.try_into().ok()).unwrap_or_default();
    let modified = number().and_then(|n| Timestamp::from_second(n).ok());
    let state = if said.iter().any(|l| l.contains("RDB looks OK")) {
        SnapshotState::Sound
    } else if said.iter().any(|l| l.contains("RDB CRC error")) {
        SnapshotState::ChecksumWrong
    } else {
        other_version(said, header).map_or_else(
            || SnapshotState::Damaged(first_trouble(said)),
            SnapshotState::OtherVersion,
        )
    };
    SnapshotFacts {
        bytes,
        modified,
        state,
        keys: keys(said),
    }
}

/// The first line behind the mark of `redis-check-rdb`.
fn first_trouble(said: &[&str]) -> String {
    let behind = said.iter().skip_while(|l| !l.contains("ERROR DETECTED")).nth(1);
    let line = behind
        .or(said.last())
        .copied()
        .unwrap_or("its check said nothing");
    // Without the offset in the tool's own brackets.
    line.split_once("] ").map_or(line, |(_, text)| text).to_owned()
}

/// The last counts that a check printed.
fn keys(said: &[&str]) -> Keys {
    let count = |end: &str| {
        let line = said
            .iter()
            .rev()
            .find_map(|l| l.strip_prefix("[info] ")?.strip_suffix(end));
        line.and_then(|n| n.trim().parse().ok()).unwrap_or_default()
    };
    Keys {
        all: count(" keys read"),
        expiring: count(" expires"),
    }
}

fn append(
    entry: &str,
    name: &str,
    files: &[(u64, &str)],
    manifest: &[&str],
    said: &[&str],
    (behind, header): (Option<&str>, Option<&str>),
) -> AppendFacts {
    let single = entry == name;
    let base_keys = said
        .iter()
        .any(|l| l.contains("RDB looks OK"))
        .then(|| keys(said));
    let state = if !single && !is_manifest(manifest) {
        AppendState::Manifest {
            rebuilt: rebuilt(name, files),
        }
    } else if said.iter().any(|l| is_verdict_good(l)) {
        AppendState::Sound
    } else if let Some(format) = other_version(said, header) {
        AppendState::OtherVersion(format)
    } else {
        let cut = said.iter().find_map(|l| cut(l, name));
        match cut {
            // What stands behind a damaged file was written after it: it cannot stay either.
            Some((file, good, bytes)) if (good > 0 || !single) && is_last(&file, manifest, single) => {
                AppendState::Cut {
                    file,
                    good,
                    bytes,
                    behind: behind.and_then(|n| n.trim().parse().ok()).unwrap_or_default(),
                }
            }
            Some((file, good, _)) => AppendState::Damaged(format!("{file} from byte {good} on")),
            None => AppendState::Damaged(first_trouble(said)),
        }
    };
    AppendFacts {
        bytes: files.iter().map(|(size, _)| size).sum(),
        state,
        base_keys,
    }
}

/// `All AOF files and manifest are valid`; of a single file `AOF … is valid`.
fn is_verdict_good(line: &str) -> bool {
    line.starts_with("All AOF files and manifest are valid")
        || line.starts_with("AOF ") && line.ends_with(" is valid")
}

pub(super) fn has_extension(path: &str, wanted: &str) -> bool {
    std::path::Path::new(path)
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case(wanted))
}

/// The file, the bytes that are good, all bytes, of a line about a damaged one.
fn cut(line: &str, name: &str) -> Option<(String, u64, u64)> {
    let rest = line.strip_prefix("AOF analyzed: ")?;
    let field = |key: &str| {
        let (_, value) = rest.split_once(key)?;
        Some(value.split(',').next().unwrap_or(value))
    };
    let file = field("filename=").map_or(name, |f| f.rsplit_once('/').map_or(f, |(_, n)| n));
    let number = |key: &str| field(key)?.trim().parse::<u64>().ok();
    let (bytes, good, diff) = (number("size=")?, number("ok_up_to=")?, number("diff=")?);
    // A base that is a snapshot cannot be cut.
    (diff > 0 && !has_extension(file, "rdb")).then(|| (file.to_owned(), good, bytes))
}

/// The words of a line of a manifest: `file NAME seq N type T` (Redis 7, aof.c).
fn entry_of(line: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let value = |key: &str| {
        let at = words.iter().position(|w| *w == key)?;
        words.get(at + 1).copied()
    };
    value("seq")?.parse::<u64>().ok()?;
    let kind = value("type").filter(|t| ["b", "h", "i"].contains(t))?;
    Some((value("file")?, kind))
}

fn is_manifest(lines: &[&str]) -> bool {
    let lines: Vec<&&str> = lines
        .iter()
        .filter(|l| !l.trim().is_empty() && !l.starts_with('#'))
        .collect();
    !lines.is_empty() && lines.iter().all(|l| entry_of(l).is_some())
}

fn is_last(file: &str, manifest: &[&str], single: bool) -> bool {
    let mut parts = manifest.iter().filter_map(|l| entry_of(l));
    single
        || parts
            .rfind(|(_, kind)| *kind != "h")
            .is_some_and(|(name, _)| name == file)
}

/// The manifest that belongs to the files. Only where it is certain: one base and one file of
/// changes. Of several it is not known which are leftovers of a rewrite, and a change that is
/// replayed twice is another state.
fn rebuilt(name: &str, files: &[(u64, &str)]) -> Result<Vec<String>, String> {
    let (mut bases, mut changes) = (Vec::new(), Vec::new());
    for (_, file) in files.iter().take(MOST_FILES) {
        let Some(rest) = file.strip_prefix(name).and_then(|r| r.strip_prefix('.')) else {
            continue;
        };
        let Some((sequence, kind)) = rest.split_once('.') else {
            continue;
        };
        let Ok(sequence) = sequence.parse::<u64>() else {
            continue;
        };
        match kind {
            "base.rdb" | "base.aof" => bases.push(format!("file {file} seq {sequence} type b")),
            "incr.aof" => changes.push(format!("file {file} seq {sequence} type i")),
            _ => {}
        }
    }
    match (bases.len(), changes.len()) {
        (1, 1) => Ok([bases, changes].concat()),
        (0, 0) => Err("none of its files is there".into()),
        (b, c) => Err(format!(
            "it is not certain which of its files belong together: {b} are a base, {c} hold changes"
        )),
    }
}
