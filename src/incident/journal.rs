//! The journal of one incident: what is about to be done, then that it was done. It is
//! written ahead: a record is on disk before its effect begins, so whatever kills drctl,
//! `resume` and `undo` know where it stood. A failed append is an error, never a warning.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::state::StateError;
use crate::event::Verdict;
use crate::plan::Remedy;

/// Version of the persisted form. A reader refuses a newer one.
pub const JOURNAL_FORMAT: u32 = 1;
/// File name inside the incident's directory.
pub const JOURNAL_FILE: &str = "journal.jsonl";
/// Bytes set aside when a journal is made, so that a disk that fills up during the
/// recovery does not stop it half-way. A run writes a few dozen records below 1 KiB.
const RESERVED: u64 = 256 * 1024;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Entry {
    /// `JOURNAL_FORMAT`.
    pub format: u32,
    /// Position, from 1, without gaps.
    pub seq: u64,
    /// When it was written.
    pub at: Timestamp,
    /// What it says.
    pub record: Record,
}

/// What a line says. Steps are counted from 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// The incident exists.
    #[serde(rename_all = "kebab-case")]
    Opened {
        /// Its identity.
        incident: String,
        /// Its place among the incidents that its state directory knew: higher than all of them.
        /// A clock can be set back. 0: written by a drctl that did not count.
        #[serde(default)]
        number: u64,
        /// The deployment.
        deployment: String,
        /// The scenario's name.
        scenario: String,
        /// The service.
        service: String,
        /// When drctl was started.
        began: Timestamp,
        /// When the diagnosis was known.
        diagnosed: Timestamp,
        /// When users were first turned away, as far as known by now.
        down_since: Option<Timestamp>,
        /// The incident whose remedy did not hold, before this one.
        follows: Option<String>,
        /// Version of drctl.
        drctl: String,
    },
    /// The plan that was shown.
    #[serde(rename_all = "kebab-case")]
    Planned {
        /// The remedy.
        remedy: Remedy,
        /// How many steps it has.
        steps: usize,
    },
    /// The operator agreed.
    #[serde(rename_all = "kebab-case")]
    Approved {
        /// To what: `recover`, `resume`, `undo`, `close`.
        what: String,
        /// How: `typed the deployment's name`, `--yes`.
        how: String,
    },
    /// A step is about to begin.
    StepStarted {
        /// Which.
        step: usize,
    },
    /// A step ended well.
    StepFinished {
        /// Which.
        step: usize,
        /// One line.
        outcome: String,
        /// Facts for the report.
        facts: BTreeMap<String, serde_json::Value>,
        /// How long it took.
        seconds: f64,
    },
    /// A step failed: from here the plan is taken back.
    StepFailed {
        /// Which.
        step: usize,
        /// Why.
        cause: String,
        /// It had not changed anything, in this run or an earlier one: there is nothing to take
        /// back.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        untouched: bool,
    },
    /// A signal asked drctl to stop.
    Interrupted {
        /// Its name.
        signal: String,
    },
    /// The operator decided to take everything back.
    UndoDecided {},
    /// A step is about to be taken back.
    UndoStarted {
        /// Which.
        step: usize,
    },
    /// A step is taken back.
    UndoFinished {
        /// Which.
        step: usize,
        /// One line.
        outcome: String,
        /// What drctl could not take back, if anything.
        left: Option<String>,
    },
    /// A step could not be taken back.
    UndoFailed {
        /// Which.
        step: usize,
        /// Why.
        cause: String,
    },
    /// Every step that began is taken back.
    Undone {},
    /// One check of the proof.
    Checked {
        /// What was checked.
        what: String,
        /// Whether it held.
        verdict: Verdict,
        /// What was found.
        found: String,
    },
    /// Facts measured for the report.
    Measured {
        /// By name.
        facts: BTreeMap<String, serde_json::Value>,
    },
    /// The proof is complete.
    Verified {
        /// The worst of its verdicts.
        verdict: Verdict,
    },
    /// The report was written.
    ReportWritten {},
    /// A remark of the operator.
    Noted {
        /// What they said.
        text: String,
    },
    /// Kept data is about to be dropped: no undo from here.
    DiscardStarted {},
    /// The incident is over.
    Closed {
        /// What was dropped, one line each.
        dropped: Vec<String>,
        /// What stays as it is, because it could not be taken back, one line each.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        left: Vec<String>,
    },
}

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be written: nothing further may be done.
    #[error(transparent)]
    Write(#[from] StateError),
    /// It cannot be read.
    #[error("the journal {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line in the middle makes no sense.
    #[error("the journal {} is damaged in line {line}: {cause}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        cause: String,
    },
    /// It was written by a newer drctl.
    #[error("the journal {} has format {found}, this drctl knows {JOURNAL_FORMAT}: use the drctl that wrote it", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
}

/// Where records go. A trait so that the engine's order of records and effects can be
/// tested for every point at which a run can be cut off.
pub trait Log {
    /// Makes a record durable.
    ///
    /// # Errors
    /// [`JournalError`]; the effect that the record announces must not happen then.
    fn append(&mut self, record: Record) -> Result<(), JournalError>;
}

/// An open journal. Its owner holds the deployment's lock.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    length: u64,
    seq: u64,
}

impl Journal {
    /// Makes the journal of a new incident, with room set aside, and makes its name
    /// durable.
    ///
    /// # Errors
    /// [`JournalError::Write`], also when the disk has no room for it.
    pub fn create(path: &Path) -> Result<Self, JournalError> {
        let made = (|| {
            let file = OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(path)?;
            match reserve(&file) {
                // Not every file system can set room aside; then a full disk is met at an append.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(e) => return Err(e.into()),
            }
            File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
            Ok(file)
        })();
        let file = made.map_err(|source| StateError {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            file,
            path: path.to_owned(),
            length: 0,
            seq: 0,
        })
    }

    /// Opens a journal to continue it. A torn last line is cut off: its effect never began.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path) -> Result<(Self, Vec<Entry>), JournalError> {
        let (entries, length) = read(path)?;
        let opened = (|| {
            let mut file = OpenOptions::new().write(true).open(path)?;
            cut(&file, length)?;
            // Also where it never was: a journal that came home from memory is a copy.
            let _ = reserve(&file);
            file.seek(SeekFrom::Start(length))?;
            file.sync_all()?;
            Ok(file)
        })();
        let file = opened.map_err(|source| StateError {
            path: path.to_owned(),
            source,
        })?;
        let seq = entries.last().map_or(0, |e| e.seq);
        Ok((
            Self {
                file,
                path: path.to_owned(),
                length,
                seq,
            },
            entries,
        ))
    }

    /// The records of a journal.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn entries(path: &Path) -> Result<Vec<Entry>, JournalError> {
        Ok(read(path)?.0)
    }
}

impl Log for Journal {
    fn append(&mut self, record: Record) -> Result<(), JournalError> {
        let entry = Entry {
            format: JOURNAL_FORMAT,
            seq: self.seq + 1,
            at: Timestamp::now(),
            record,
        };
        let written = (|| {
            let mut line = serde_json::to_vec(&entry)?;
            line.push(b'\n');
            self.file.write_all(&line)?;
            self.file.sync_data()?;
            Ok(line.len() as u64)
        })();
        match written {
            Ok(bytes) => {
                self.length += bytes;
                self.seq += 1;
                crash_hook(self.seq);
                Ok(())
            }
            Err(source) => {
                // A half-written line must not be glued to the next one.
                let _ = cut(&self.file, self.length);
                let _ = self.file.seek(SeekFrom::Start(self.length));
                Err(StateError {
                    path: self.path.clone(),
                    source,
                }
                .into())
            }
        }
    }
}

/// Lets a test cut the run off right after a record is durable, as a power failure would.
/// Not in published builds.
#[cfg(debug_assertions)]
fn crash_hook(seq: u64) {
    let asked = std::env::var("DRCTL_CRASH_AFTER_RECORD")
        .ok()
        .and_then(|n| n.parse::<u64>().ok());
    if asked == Some(seq) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is delivered before anything else of this thread runs in practice;
        // waiting makes it certain.
        std::thread::sleep(std::time::Duration::from_secs(5));
    }
}

#[cfg(not(debug_assertions))]
fn crash_hook(_: u64) {}

/// Sets the room of a journal aside, beyond its end. Where it is set aside already, nothing changes.
fn reserve(file: &File) -> rustix::io::Result<()> {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, RESERVED)
}

/// Cuts off what is behind `length`. A truncation gives the room that is set aside back, one to the
/// same length too: on a disk that has filled up since, the next record would not fit.
fn cut(file: &File, length: u64) -> std::io::Result<()> {
    if file.metadata()?.len() != length {
        file.set_len(length)?;
        // Best effort: when somebody else was quicker, an append tells.
        let _ = reserve(file);
    }
    Ok(())
}

/// Only the version, to tell a newer format from damage.
#[derive(Deserialize)]
struct Version {
    format: u64,
}

/// The entries and the length in bytes of what is whole.
fn read(path: &Path) -> Result<(Vec<Entry>, u64), JournalError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .map_err(|source| JournalError::Read {
            path: path.to_owned(),
            source,
        })?;
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let mut entries: Vec<Entry> = Vec::new();
    let mut length = 0;
    for (i, line) in bytes[..whole].split_inclusive(|&b| b == b'\n').enumerate() {
        let damaged = |cause: String| JournalError::Damaged {
            path: path.to_owned(),
            line: i + 1,
            cause,
        };
        match serde_json::from_slice::<Version>(line) {
            Ok(v) if v.format > u64::from(JOURNAL_FORMAT) => {
                return Err(JournalError::Newer {
                    path: path.to_owned(),
                    found: v.format,
                });
            }
            _ => {}
        }
        let entry: Entry = serde_json::from_slice(line).map_err(|e| damaged(e.to_string()))?;
        let expected = entries.last().map_or(1, |e| e.seq + 1);
        if entry.seq != expected {
            return Err(damaged(format!(
                "record {} where {expected} was expected",
                entry.seq
            )));
        }
        entries.push(entry);
        length += line.len() as u64;
    }
    Ok((entries, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(path: &Path) {
        let mut journal = Journal::create(path).unwrap();
        for step in 1..=3 {
            journal.append(Record::StepStarted { step }).unwrap();
        }
    }

    #[test]
    fn what_was_appended_is_read_again_and_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(JOURNAL_FILE);
        three(&path);
        assert!(
            matches!(Journal::create(&path), Err(JournalError::Write(_))),
            "a journal is never begun twice"
        );
        let (mut journal, entries) = Journal::open(&path).unwrap();
        assert_eq!(entries.len(), 3);
        journal.append(Record::Undone {}).unwrap();
        let entries = Journal::entries(&path).unwrap();
        assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(entries[3].record, Record::Undone {});
    }

    #[test]
    fn a_torn_last_line_is_as_if_it_never_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(JOURNAL_FILE);
        three(&path);
        let whole = std::fs::read(&path).unwrap();
        let last_line = whole[..whole.len() - 1]
            .iter()
            .rposition(|&b| b == b'\n')
            .unwrap()
            + 1;
        for cut in last_line..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(Journal::entries(&path).unwrap().len(), 2, "cut at {cut}");
        }
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(Record::Undone {}).unwrap();
        assert_eq!(Journal::entries(&path).unwrap()[2].record, Record::Undone {});
    }

    #[test]
    fn what_was_set_aside_stays_so_when_a_journal_is_opened() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(JOURNAL_FILE);
        three(&path);
        let blocks = || std::fs::metadata(&path).unwrap().blocks();
        let before = blocks();
        drop(Journal::open(&path).unwrap());
        assert!(blocks() >= before, "{} of {before}", blocks());
        // Torn.
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"format\":1")
            .unwrap();
        drop(Journal::open(&path).unwrap());
        assert!(blocks() >= before, "{} of {before}", blocks());
    }

    #[test]
    fn damage_and_newer_formats_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(JOURNAL_FILE);
        three(&path);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("\"seq\":2", "\"seq\":5", 1)).unwrap();
        assert!(matches!(
            Journal::entries(&path),
            Err(JournalError::Damaged { line: 2, .. })
        ));
        std::fs::write(&path, text.replacen("step-started", "step-begun", 1)).unwrap();
        assert!(matches!(
            Journal::entries(&path),
            Err(JournalError::Damaged { line: 1, .. })
        ));
        std::fs::write(&path, text.replace("\"format\":1", "\"format\":2")).unwrap();
        assert!(matches!(
            Journal::entries(&path),
            Err(JournalError::Newer { found: 2, .. })
        ));
    }

    #[test]
    fn the_first_format_still_reads() {
        let line = r#"{"format":1,"seq":1,"at":"2026-11-20T18:30:12Z","record":{"step-finished":{"step":2,"outcome":"3 rows","facts":{"rows-salvaged":3},"seconds":0.5}}}"#;
        let entry: Entry = serde_json::from_str(line).unwrap();
        assert!(matches!(entry.record, Record::StepFinished { step: 2, .. }));
        assert_eq!(serde_json::to_string(&entry).unwrap(), line);
        let line =
            r#"{"format":1,"seq":1,"at":"2026-11-20T18:30:12Z","record":{"closed":{"dropped":["all"]}}}"#;
        let entry: Entry = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&entry).unwrap(), line);
    }
}
