//! What a Redis server would load at its start: its snapshot (RDB) and its append-only file
//! (AOF), judged by the check tools of its own image. It works whether or not the server runs.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::plan::RedisFiles;
use crate::system::System;
use crate::workload::{ContainerInfo, HelperSpec};

const LOOK: &str = include_str!("redis_files.sh");
/// Lines of a manifest that are read: a server that cannot rewrite its log opens one file more
/// with each attempt.
const MOST_FILES: usize = 1000;
/// What a server and the check tool say of a file that a newer version has written (rdb.c,
/// redis-check-rdb.c); the number stands behind it.
pub const OTHER_FORMAT: &str = "Can't handle RDB format version";

/// The files of one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedisFileFacts {
    /// Where they are and which of them it loads.
    pub files: RedisFiles,
    /// Bytes free on their file system.
    pub free: u64,
    /// The snapshot, if there is one.
    pub snapshot: Option<SnapshotFacts>,
    /// The append-only file, if there is one.
    pub append: Option<AppendFacts>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SnapshotFacts {
    /// Bytes.
    pub bytes: u64,
    /// When it was written.
    pub modified: Option<Timestamp>,
    /// What `redis-check-rdb` says.
    pub state: SnapshotState,
    /// Keys that it could read.
    pub keys: Keys,
}

/// How a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// It can be loaded.
    Sound,
    /// Every key can be read, and the checksum at the end is another one.
    ChecksumWrong,
    /// It is whole as far as can be told, and of a format that this image does not read; in words.
    OtherVersion(String),
    /// It cannot be read to its end.
    Damaged(String),
}

/// Keys of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Keys {
    /// All of them.
    pub all: u64,
    /// Those that end by themselves.
    pub expiring: u64,
}

impl Keys {
    /// Those that are there at any later time.
    #[must_use]
    pub fn lasting(self) -> u64 {
        self.all.saturating_sub(self.expiring)
    }
}

/// An append-only file, all parts of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AppendFacts {
    /// Bytes of all files.
    pub bytes: u64,
    /// What its manifest and `redis-check-aof` say.
    pub state: AppendState,
    /// Keys of its base, where that could be read: what comes behind it changes them.
    pub base_keys: Option<Keys>,
}

/// How an append-only file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppendState {
    /// It can be loaded.
    Sound,
    /// Its files are there, and the list of them is not, or cannot be read.
    #[serde(rename_all = "kebab-case")]
    Manifest {
        /// The list as it must be; or why that is not certain.
        rebuilt: Result<Vec<String>, String>,
    },
    /// A command cannot be read; the server stops there.
    #[serde(rename_all = "kebab-case")]
    Cut {
        /// The file.
        file: String,
        /// Bytes up to the damage.
        good: u64,
        /// Bytes of the file.
        bytes: u64,
        /// Commands behind it, as far as they can be told.
        behind: u64,
    },
    /// Its base is of a format that this image does not read; in words.
    OtherVersion(String),
    /// Its base or something else cannot be read, in words.
    Damaged(String),
}

impl RedisFileFacts {
    /// Whether what the server loads has something that keeps it from starting.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        if self.files.append_only {
            self.append
                .as_ref()
                .is_some_and(|a| a.state != AppendState::Sound)
        } else {
            self.snapshot
                .as_ref()
                .is_some_and(|s| s.state != SnapshotState::Sound)
        }
    }

    /// In which format the files are that the server would load, where it is one that its image
    /// does not read: those are not damaged, another image loads them.
    #[must_use]
    pub fn other_version(&self) -> Option<&str> {
        if self.files.append_only {
            match &self.append.as_ref()?.state {
                AppendState::OtherVersion(format) => Some(format),
                _ => None,
            }
        } else {
            self.snapshot_of_another_version()
        }
    }

    /// The same of the snapshot, whether the server would load it or not.
    #[must_use]
    pub fn snapshot_of_another_version(&self) -> Option<&str> {
        match &self.snapshot.as_ref()?.state {
            SnapshotState::OtherVersion(format) => Some(format),
            _ => None,
        }
    }

    /// Bytes of what the server loads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        if self.files.append_only {
            self.append.as_ref().map_or(0, |a| a.bytes)
        } else {
            self.snapshot.as_ref().map_or(0, |s| s.bytes)
        }
    }

    /// What is wrong, in words.
    #[must_use]
    pub fn in_words(&self) -> String {
        let directory = &self.files.directory;
        if self.files.append_only {
            match self.append.as_ref().map(|a| &a.state) {
                None => format!("there is no append-only file in {directory}"),
                Some(AppendState::Sound) => "its append-only file can be read".into(),
                Some(AppendState::Manifest { rebuilt: Ok(_) }) => {
                    "the files of its append-only file are there, and their list (the manifest) cannot be read".into()
                }
                Some(AppendState::Manifest { rebuilt: Err(why) }) => {
                    format!("the manifest of its append-only file cannot be read, and {why}")
                }
                Some(AppendState::Cut {
                    file,
                    good,
                    bytes,
                    behind,
                }) => format!(
                    "{file} cannot be read from byte {good} of {bytes} on; about {behind} commands stand behind that"
                ),
                Some(AppendState::OtherVersion(format)) => {
                    format!("the base of its append-only file is of {format}, which this image does not read")
                }
                Some(AppendState::Damaged(why)) => format!("its append-only file cannot be read: {why}"),
            }
        } else {
            let name = &self.files.snapshot;
            match self.snapshot.as_ref().map(|s| (&s.state, s.keys.all)) {
                None => format!("there is no {name} in {directory}"),
                Some((SnapshotState::Sound, keys)) => format!("{name} can be read: {keys} keys"),
                Some((SnapshotState::ChecksumWrong, keys)) => {
                    format!("all {keys} keys of {name} can be read, and its checksum is wrong")
                }
                Some((SnapshotState::OtherVersion(format), _)) => {
                    format!("{name} is of {format}, which this image does not read")
                }
                Some((SnapshotState::Damaged(why), keys)) => {
                    format!("{name} cannot be read behind its first {keys} keys: {why}")
                }
            }
        }
    }
}

/// Looks at the files of a container.
///
/// # Errors
/// In words: the engine's trouble, an image without the tools, longer than `deadline`.
pub async fn look(
    system: &System,
    container: &ContainerInfo,
    run: &str,
    deadline: Duration,
) -> Result<RedisFileFacts, String> {
    let argv = ["/bin/sh", "-c", LOOK, "redis-files"];
    let mut spec = HelperSpec::new(
        system.deployment(),
        run,
        "redis-files",
        &container.image_id,
        &argv,
    );
    // Not read-only: redis-check-aof opens what it checks for writing, and does not write without
    // --fix.
    spec.volumes_from = Some((container.id.clone(), false));
    spec.env = environment(container);
    let output = system
        .docker
        .run_helper(&spec, deadline)
        .await
        .map_err(|e| e.to_string())?;
    parse(&output.stdout)
}

fn environment(container: &ContainerInfo) -> Vec<(String, String)> {
    let words: Vec<&str> = container
        .command
        .iter()
        .flat_map(|w| w.split_whitespace())
        .map(|w| w.trim_matches(['"', '\'']))
        .collect();
    let option = |name: &str| {
        let at = words.iter().position(|w| w.eq_ignore_ascii_case(name));
        let value = at.and_then(|at| words.get(at + 1));
        value.map_or_else(String::new, |v| (*v).to_owned())
    };
    let file = words
        .iter()
        .find(|w| !w.starts_with("--") && has_extension(w, "conf"));
    [
        ("WORKDIR", container.working_dir.clone()),
        ("CONF", file.map_or_else(String::new, |f| (*f).to_owned())),
        ("ARG_DIR", option("--dir")),
        ("ARG_SNAPSHOT", option("--dbfilename")),
        ("ARG_APPENDONLY", option("--appendonly")),
        ("ARG_LOGS", option("--appenddirname")),
        ("ARG_NAME", option("--appendfilename")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn parse(text: &str) -> Result<RedisFileFacts, String> {
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

fn has_extension(path: &str, wanted: &str) -> bool {
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

#[cfg(test)]
mod tests;
