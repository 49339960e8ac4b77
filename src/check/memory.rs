//! What one run of `check` leaves for the next: who has been told of what, what is still to be told, and samples for
//! whatever is judged over time. One JSON file for each deployment in the state directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::alerts::Track;
use super::trend::Sample;
use crate::incident::{StateDir, write_atomically};
use crate::probe::endpoints::Answers;

/// Version of the file's format.
const FORMAT: u32 = 1;
/// More than this is not one of these files.
const LARGEST: u64 = 16 << 20;
/// Requests of earlier runs that are kept for each endpoint.
const REQUESTS: usize = 50;

/// All of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Memory {
    /// Always 1, the version of this form.
    pub format: u32,
    /// When it was written.
    pub at: Timestamp,
    /// What has been found, by key.
    pub tracks: BTreeMap<String, Track>,
    /// What is to be told, by the identity of the way to tell it.
    pub pending: BTreeMap<String, Vec<Message>>,
    /// Histories of file systems, by name.
    pub disks: BTreeMap<String, Vec<Sample>>,
    /// The last requests to each endpoint, oldest first: milliseconds, or nothing for one that failed.
    pub requests: BTreeMap<String, Vec<Option<u64>>>,
    /// Counters of Redis servers as they were, by service.
    pub redis: BTreeMap<String, RedisCounters>,
    /// Restarts of containers as they were: service → container and count.
    pub restarts: BTreeMap<String, (String, i64)>,
    /// Failed checksums of PostgreSQL servers as they were, by service.
    pub checksums: BTreeMap<String, u64>,
}

/// Counters since a start of the server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedisCounters {
    /// Another one after each start.
    pub run_id: String,
    /// Reads that found their key.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Keys removed for want of memory.
    pub evicted: u64,
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Message {
    /// When it was found.
    pub at: Timestamp,
    /// `alert`, `recovery` or `reminder`.
    pub kind: String,
    /// The state of the whole deployment then: `OK`, `WARNING` …
    pub status: String,
    /// One line.
    pub subject: String,
    /// All of it, the subject left out.
    pub body: String,
}

/// Where a memory is kept.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// Held as long as this lives: two runs at once would tell everything twice.
    _lock: fs::File,
}

/// What came of opening it.
pub struct Opened {
    /// Where to write it; `None` where it cannot be written, or another run is at it.
    pub store: Option<Store>,
    /// What was remembered; `None` when nothing can be: then every run is the first.
    pub memory: Option<Memory>,
    /// What somebody should know, in words.
    pub notes: Vec<String>,
    /// Another run holds it, and does the telling.
    pub busy: bool,
}

/// Opens the memory of a deployment. It never fails: a check without one is better than no check.
#[must_use]
pub fn open(state: &StateDir, deployment: &str) -> Opened {
    let mut notes = Vec::new();
    let fallback = crate::incident::private_fallback();
    for (n, dir) in std::iter::once(state).chain(&fallback).enumerate() {
        match open_in(dir, deployment) {
            Ok(mut opened) => {
                if n > 0 {
                    notes.push(format!(
                        "this run's memory is in {}, which does not survive a reboot",
                        dir.path().display()
                    ));
                }
                notes.append(&mut opened.notes);
                opened.notes = notes;
                return opened;
            }
            Err(why) => notes.push(why),
        }
    }
    notes.push("nothing can be remembered: whatever is wrong is told in every run".to_owned());
    Opened {
        store: None,
        memory: None,
        notes,
        busy: false,
    }
}

/// What earlier runs knew, to look at only; `None` where there is nothing that can be read.
#[must_use]
pub fn peek(state: &StateDir, deployment: &str) -> Option<Memory> {
    let of = |dir: &Path| dir.join("check").join(format!("{deployment}.json"));
    let fallback = match crate::incident::away() {
        crate::incident::Away::Ours(directory) => Some(directory),
        _ => None,
    };
    std::iter::once(state)
        .chain(&fallback)
        .map(|dir| of(dir.path()))
        .filter(|path| path.exists())
        .find_map(|path| read(&path).ok())
}

fn open_in(state: &StateDir, deployment: &str) -> Result<Opened, String> {
    let directory = state.subdirectory("check").map_err(|e| e.to_string())?;
    let unwritable = |e: std::io::Error| {
        format!(
            "the state directory {} cannot be written: {e}",
            directory.display()
        )
    };
    let lock = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join(format!("{deployment}.lock")))
        .map_err(unwritable)?;
    let busy = match lock.try_lock() {
        Ok(()) => false,
        Err(fs::TryLockError::WouldBlock) => true,
        Err(fs::TryLockError::Error(e)) => return Err(unwritable(e)),
    };
    let path = directory.join(format!("{deployment}.json"));
    let mut notes = Vec::new();
    if busy {
        notes.push(
            "another check of this deployment is running: this one only looks, and tells nobody".to_owned(),
        );
    }
    let memory = match read(&path) {
        Ok(memory) => memory,
        Err(Unreadable::Newer(why)) => {
            // Written by a newer drctl, which will want it back as it is.
            notes.push(format!(
                "{why}: use the drctl that wrote it; until then every run is the first"
            ));
            return Ok(Opened {
                store: None,
                memory: None,
                notes,
                busy,
            });
        }
        Err(Unreadable::Damaged(why)) => {
            let aside = path.with_extension("damaged.json");
            let kept = if busy || fs::rename(&path, &aside).is_err() {
                String::new()
            } else {
                format!("; it is kept as {}", aside.display())
            };
            notes.push(format!("what earlier runs knew is lost: {why}{kept}"));
            Memory::default()
        }
    };
    Ok(Opened {
        store: (!busy).then_some(Store { path, _lock: lock }),
        memory: Some(memory),
        notes,
        busy,
    })
}

enum Unreadable {
    Newer(String),
    Damaged(String),
}

fn read(path: &Path) -> Result<Memory, Unreadable> {
    let damaged = |why: String| Unreadable::Damaged(format!("{}: {why}", path.display()));
    let length = match fs::metadata(path) {
        Ok(m) => m.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Memory::default()),
        Err(e) => return Err(damaged(e.to_string())),
    };
    if length > LARGEST {
        return Err(damaged(format!("it has {length} bytes")));
    }
    let text = fs::read(path).map_err(|e| damaged(e.to_string()))?;
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    let format = value
        .get("format")
        .and_then(serde_json::Value::as_u64)
        .unwrap_or_default();
    if format > u64::from(FORMAT) {
        return Err(Unreadable::Newer(format!(
            "{} has format {format}, this drctl knows {FORMAT}",
            path.display()
        )));
    }
    serde_json::from_value(value).map_err(|e| damaged(e.to_string()))
}

impl Store {
    /// Writes it, so that the next run sees all of it or what was there before.
    ///
    /// # Errors
    /// In words.
    pub fn save(&self, memory: &Memory) -> Result<(), String> {
        let mut text = serde_json::to_vec(&Memory {
            format: FORMAT,
            ..memory.clone()
        })
        .map_err(|e| e.to_string())?;
        text.push(b'\n');
        write_atomically(&self.path, &text).map_err(|e| {
            format!(
                "what this run knows cannot be kept in {}: {e}",
                self.path.display()
            )
        })
    }
}

impl Memory {
    /// Adds a run's requests to those of the runs before.
    pub fn record_requests(&mut self, endpoint: &str, answers: &Answers) {
        let kept = self.requests.entry(endpoint.to_owned()).or_default();
        kept.extend(answers.millis.iter().map(|ms| Some(*ms)));
        kept.extend(answers.failures.iter().map(|_| None));
        let surplus = kept.len().saturating_sub(REQUESTS);
        kept.drain(..surplus);
    }

    /// The same requests as if they were of one run.
    #[must_use]
    pub fn recent(&self, endpoint: &str) -> Answers {
        let kept = self.requests.get(endpoint).map(Vec::as_slice).unwrap_or_default();
        Answers {
            millis: kept.iter().flatten().copied().collect(),
            failures: kept
                .iter()
                .filter(|r| r.is_none())
                .map(|_| String::new())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(dir: &Path) -> StateDir {
        StateDir::resolve(Some(dir))
    }

    #[test]
    fn what_was_saved_is_there_again_and_two_runs_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(&state(dir.path()), "shop");
        assert!(first.notes.is_empty() && !first.busy, "{:?}", first.notes);
        let mut memory = first.memory.unwrap();
        memory.record_requests(
            "health",
            &Answers {
                millis: vec![5; 60],
                failures: vec!["x".into()],
            },
        );
        let store = first.store.unwrap();
        store.save(&memory).unwrap();

        let second = open(&state(dir.path()), "shop");
        assert!(second.busy && second.store.is_none() && second.notes[0].contains("another check"));
        let other = open(&state(dir.path()), "other");
        assert!(!other.busy && other.memory.unwrap().requests.is_empty());
        drop(store);
        let third = open(&state(dir.path()), "shop");
        let recent = third.memory.unwrap().recent("health");
        assert_eq!((recent.millis.len(), recent.failures.len()), (49, 1));
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_a_newer_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("check/shop.json");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for damaged in ["{", "[]", r#"{"format":1}"#, r#"{"format":1,"more":2}"#] {
            fs::write(&path, damaged).unwrap();
            let opened = open(&state(dir.path()), "shop");
            assert!(opened.notes[0].contains("is lost"), "{:?}", opened.notes);
            assert!(opened.store.is_some() && opened.memory == Some(Memory::default()));
            assert_eq!(
                fs::read_to_string(dir.path().join("check/shop.damaged.json")).unwrap(),
                damaged
            );
        }
        let newer = r#"{"format":2,"more":2}"#;
        fs::write(&path, newer).unwrap();
        let opened = open(&state(dir.path()), "shop");
        assert!(opened.store.is_none() && opened.memory.is_none());
        assert_eq!(fs::read_to_string(&path).unwrap(), newer);
    }

    /// Files of the first format are read for ever.
    #[test]
    fn format_1_is_read() {
        let memory: Memory = serde_json::from_str(include_str!("fixtures/memory-1.json")).unwrap();
        assert_eq!(memory.format, 1);
        assert_eq!(memory.tracks.len(), 1);
    }
}
