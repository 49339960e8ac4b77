//! What one run of `check`, or of `backup`, leaves for the next: who has been told of what, what is still to be told, and samples for
//! whatever is judged over time. One JSON file for each deployment in the state directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::alerts::Track;
use super::trend::Sample;
use crate::incident::{StateDir, try_write_in, write_atomically};
use crate::probe::endpoints::Answers;

/// Version of the file's format.
const FORMAT: u32 = 1;
/// More than this is not one of these files.
const LARGEST: u64 = 16 << 20;
/// Room for a memory that has grown since it was written last.
const ROOM: u32 = 64 << 10;
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
    /// The state of the whole deployment then: `OK`, `WARNING` …; of a backup, how it ended.
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
    /// Where it goes when `path` cannot be written after all.
    spare: Option<PathBuf>,
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
    open_or(state, crate::incident::private_fallback().as_ref(), deployment)
}

fn open_or(state: &StateDir, fallback: Option<&StateDir>, deployment: &str) -> Opened {
    let mut notes = Vec::new();
    let away = away_name(state, deployment);
    let spare = fallback.map(|dir| file(dir, &away));
    let home = (state, deployment, spare);
    let in_memory = fallback.map(|dir| (dir, away.as_str(), Some(file(state, deployment))));
    for (n, (dir, name, other)) in std::iter::once(home).chain(in_memory).enumerate() {
        match open_in(dir, name, other, n == 0) {
            Ok(mut opened) => {
                if n > 0 {
                    notes.push(volatile(dir.path()));
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

fn file(dir: &StateDir, name: &str) -> PathBuf {
    dir.path().join("check").join(format!("{name}.json"))
}

/// The name in `/dev/shm`, where all state directories of a user meet: another one's memory is not ours.
fn away_name(home: &StateDir, deployment: &str) -> String {
    let digest = Sha256::digest(home.path().as_os_str().as_encoded_bytes());
    let short = digest
        .iter()
        .take(6)
        .fold(0_u64, |all, byte| (all << 8) | u64::from(*byte));
    format!("{deployment}-{short:012x}")
}

fn volatile(dir: &Path) -> String {
    format!(
        "this run's memory is in {}, which does not survive a reboot",
        dir.display()
    )
}

/// What earlier runs knew, to look at only; `None` where there is nothing that can be read.
#[must_use]
pub fn peek(state: &StateDir, deployment: &str) -> Option<Memory> {
    let spare = match crate::incident::away() {
        crate::incident::Away::Ours(dir) => Some(file(&dir, &away_name(state, deployment))),
        _ => None,
    };
    std::iter::once(file(state, deployment))
        .chain(spare)
        .filter(|path| path.exists())
        .filter_map(|path| read(&path).ok())
        .max_by_key(|memory| memory.at)
}

/// `other` is where the memory may be as well: what was written last counts. Only `at_home` is it where it goes next.
fn open_in(
    state: &StateDir,
    deployment: &str,
    other: Option<PathBuf>,
    at_home: bool,
) -> Result<Opened, String> {
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
    if !busy {
        // On a full disk everything is there, and nothing can be written any more.
        let length = fs::metadata(&path).map_or(0, |m| u32::try_from(m.len()).unwrap_or(u32::MAX));
        try_write_in(&directory, length.saturating_add(ROOM)).map_err(unwritable)?;
    }
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
    let newer = other
        .as_ref()
        .filter(|path| path.exists())
        .and_then(|path| read(path).ok())
        .filter(|m| m.at > memory.at);
    Ok(Opened {
        store: (!busy).then_some(Store {
            path,
            spare: other.filter(|_| at_home),
            _lock: lock,
        }),
        memory: Some(newer.unwrap_or(memory)),
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
    /// Writes it, so that the next run sees all of it or what was there before. Gives what somebody should know when it
    /// is not where it belongs.
    ///
    /// # Errors
    /// In words.
    pub fn save(&self, memory: &Memory) -> Result<Option<String>, String> {
        let mut text = serde_json::to_vec(&Memory {
            format: FORMAT,
            ..memory.clone()
        })
        .map_err(|e| e.to_string())?;
        text.push(b'\n');
        let Err(e) = write_atomically(&self.path, &text) else {
            // Older now; after a clock was set back it would look newer.
            if let Some(spare) = &self.spare {
                let _ = fs::remove_file(spare);
            }
            return Ok(None);
        };
        let why = format!(
            "what this run knows cannot be kept in {}: {e}",
            self.path.display()
        );
        let kept = self.spare.as_ref().and_then(|spare| {
            let directory = spare.parent()?;
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .ok()?;
            write_atomically(spare, &text).ok()?;
            Some(volatile(directory))
        });
        kept.map(|kept| Some(format!("{why}; {kept}"))).ok_or(why)
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
        StateDir::at(dir)
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
    fn what_cannot_be_kept_at_home_is_kept_in_memory_and_found_there() {
        let dir = tempfile::tempdir().unwrap();
        let (home, away) = (state(&dir.path().join("home")), state(&dir.path().join("away")));
        let at = |second| Memory {
            format: 1,
            at: Timestamp::from_second(second).unwrap(),
            ..Memory::default()
        };
        let first = open_or(&home, Some(&away), "shop");
        let store = first.store.unwrap();
        assert_eq!(store.save(&at(1)), Ok(None));
        fs::rename(home.path(), dir.path().join("gone")).unwrap();
        let note = store.save(&at(2)).unwrap().unwrap();
        assert!(note.contains("does not survive a reboot"), "{note}");
        drop(store);
        fs::rename(dir.path().join("gone"), home.path()).unwrap();

        // Another state directory's memory is another one.
        let other = open_or(&state(&dir.path().join("other")), Some(&away), "shop");
        assert_eq!(other.memory, Some(Memory::default()));
        let second = open_or(&home, Some(&away), "shop");
        assert_eq!(second.memory, Some(at(2)));
        let store = second.store.unwrap();
        assert_eq!(store.save(&at(3)), Ok(None));
        assert!(!file(&away, &away_name(&home, "shop")).exists());
        drop(store);

        // Home cannot be written at all: what it knows is taken along.
        fs::remove_file(home.path().join("check/shop.lock")).unwrap();
        fs::create_dir(home.path().join("check/shop.lock")).unwrap();
        let third = open_or(&home, Some(&away), "shop");
        assert_eq!(third.memory, Some(at(3)));
        assert_eq!(third.notes.len(), 2, "{:?}", third.notes);
        assert_eq!(third.store.unwrap().save(&at(4)), Ok(None));
        assert!(file(&home, "shop").exists());
        let nowhere = open_or(&home, None, "shop");
        assert!(nowhere.store.is_none() && nowhere.memory.is_none());
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
