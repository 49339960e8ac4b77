//! What a recovery of Redis costs in data, in words: measured from its files and its own counters.

use super::plan::Ground;
use super::{Server, Trouble};
use crate::event::bytes;
use crate::plan::{DataLoss, FileMend, Remedy};
use crate::probe::redis_files::{AppendState, RedisFileFacts};

impl Ground<'_> {
    pub(super) fn loss(&self, trouble: &Trouble) -> DataLoss {
        let (Some(files), Some(mend)) = (self.files, &self.mend) else {
            return match trouble {
                Trouble::Busy(_) if self.chosen == Remedy::Restart => DataLoss {
                    summary: killed_loss(self.files),
                    ..DataLoss::default()
                },
                _ => unsaved(self.server, self.chosen),
            };
        };
        let snapshot = files.snapshot.as_ref();
        let (none, summary) = match mend {
            FileMend::Manifest(_) => (true, "nothing is lost: every file is there".to_owned()),
            FileMend::Checksum => (
                false,
                format!(
                    "no key of {}; which of its bytes are not what they were is not known, so values may be wrong",
                    snapshot.map_or(0, |s| s.keys.all)
                ),
            ),
            FileMend::Cut => match files.append.as_ref().map(|a| &a.state) {
                Some(AppendState::Cut {
                    behind,
                    good,
                    bytes: all,
                    ..
                }) => (
                    false,
                    format!(
                        "what was written behind the damage: {}, about {behind} commands",
                        bytes(all.saturating_sub(*good))
                    ),
                ),
                _ => (false, "what was written behind the damage".to_owned()),
            },
            FileMend::FromSnapshot if matches!(trouble, Trouble::Ignored) => {
                (true, "nothing is lost: the server is empty".to_owned())
            }
            FileMend::FromSnapshot => (
                false,
                format!(
                    "what was written since the snapshot of {} ({} keys)",
                    snapshot
                        .and_then(|s| s.modified)
                        .map_or_else(|| "an unknown time".to_owned(), |t| t.to_string()),
                    snapshot.map_or(0, |s| s.keys.all)
                ),
            ),
            FileMend::Empty => (false, format!("all keys: {}", keys_in_words(files))),
        };
        DataLoss {
            summary,
            none,
            ..DataLoss::default()
        }
    }
}

fn keys_in_words(files: &RedisFileFacts) -> String {
    match (&files.snapshot, files.files.append_only) {
        (Some(snapshot), false) => format!(
            "{}, of which the first {} can be read; the file is kept",
            bytes(snapshot.bytes),
            snapshot.keys.all
        ),
        _ => format!("{}; the files are kept", bytes(files.bytes())),
    }
}

/// What is lost of a server that is killed in a script: it does not act on its stop signal there,
/// and cannot be asked what it has not saved.
pub(super) fn killed_loss(files: Option<&RedisFileFacts>) -> String {
    let script = "what the script has written";
    match files {
        Some(files) if files.files.append_only => {
            format!(
                "{script}, and what its append-only file did not have yet: a second's writes, where its settings are the usual ones"
            )
        }
        Some(files) => match &files.snapshot {
            Some(snapshot) => format!(
                "{script}, and everything written since the snapshot of {} ({} keys)",
                snapshot
                    .modified
                    .map_or_else(|| "an unknown time".to_owned(), |t| t.to_string()),
                snapshot.keys.all
            ),
            None => format!(
                "all keys: there is no {} in {}",
                files.files.snapshot, files.files.directory
            ),
        },
        None => format!(
            "{script}, and everything written since its last save; when that was is not known, for its files could not be looked at"
        ),
    }
}

fn unsaved(server: &Server, remedy: Remedy) -> DataLoss {
    let unsaved = server
        .state
        .as_ref()
        .ok()
        .and_then(|s| s.info.as_ref())
        .map(|i| i.persistence.changes_since_save);
    match (remedy, unsaved) {
        (Remedy::Restart, Some(0))
        | (
            Remedy::Thaw
            | Remedy::Start
            | Remedy::KillScript
            | Remedy::RaiseLimit
            | Remedy::Save
            | Remedy::Unblock,
            _,
        ) => DataLoss {
            summary: "nothing is lost: no data is touched".into(),
            none: true,
            ..DataLoss::default()
        },
        (_, unsaved) => DataLoss {
            summary: format!(
                "{} changes since its last save, if it cannot save on its way down",
                unsaved.map_or_else(|| "the".to_owned(), |n| n.to_string())
            ),
            ..DataLoss::default()
        },
    }
}
