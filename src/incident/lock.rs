//! One run at a time for one deployment and purpose. The kernel drops the lock when the
//! process dies, so there is no stale lock to clear; the file's content only says who
//! holds it and how far it has come. Not to be trusted on NFS.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::state::{StateDir, StateError};

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Holder {
    /// Process.
    pub pid: u32,
    /// What it does: `backup`, `recover db-corruption`.
    pub command: String,
    /// Since when.
    pub since: Timestamp,
    /// How far it has come, in words.
    pub progress: String,
}

/// A lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another run holds it.
    #[error("{} is already at it: process {}, since {}, {}", holder.command, holder.pid, holder.since, holder.progress)]
    Held {
        /// Who.
        holder: Holder,
    },
    /// Another run holds it and has not said who it is yet.
    #[error("another run holds {}", path.display())]
    HeldByUnknown {
        /// The lock file.
        path: PathBuf,
    },
    /// The file cannot be made or written.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Name of the lock that a recovery of a deployment holds.
#[must_use]
pub fn recovery_lock(deployment: &str) -> String {
    format!("recover-{deployment}")
}

/// Name of the lock of whoever writes to, or removes from, a deployment's backups.
#[must_use]
pub fn backup_lock(deployment: &str) -> String {
    format!("backup-{deployment}")
}

/// A held lock; released when dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    holder: Holder,
}

impl Lock {
    /// Takes the lock `name` or says who has it. Does not wait.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn acquire(state: &StateDir, name: &str, command: &str) -> Result<Self, LockError> {
        let path = state.subdirectory("locks")?.join(format!("{name}.lock"));
        let fail = |source| StateError {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(serde_json::from_str(&text).map_or_else(
                    |_| LockError::HeldByUnknown { path: path.clone() },
                    |holder| LockError::Held { holder },
                ));
            }
            Err(TryLockError::Error(e)) => return Err(fail(e).into()),
        }
        let mut lock = Self {
            file,
            holder: Holder {
                pid: std::process::id(),
                command: command.to_owned(),
                since: Timestamp::now(),
                progress: "just started".into(),
            },
        };
        match lock.write() {
            // The kernel holds the lock; only who holds it cannot be said on a full disk.
            Err(e) if e.kind() != std::io::ErrorKind::StorageFull => Err(fail(e).into()),
            _ => Ok(lock),
        }
    }

    /// Tells those who ask how far this run has come. Best effort: a full disk must not
    /// stop a recovery over a courtesy.
    pub fn progress(&mut self, text: &str) {
        self.holder.progress = text.to_owned();
        let _ = self.write();
    }

    fn write(&mut self) -> std::io::Result<()> {
        let text = serde_json::to_string(&self.holder)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(text.as_bytes())?;
        self.file.set_len(text.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_learns_who_is_first_and_how_far() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        let mut first = Lock::acquire(&state, "backup-simgen", "backup").unwrap();
        first.progress("12 MiB of 40 MiB");
        match Lock::acquire(&state, "backup-simgen", "backup") {
            Err(LockError::Held { holder }) => {
                assert_eq!(holder.pid, std::process::id());
                assert_eq!(holder.progress, "12 MiB of 40 MiB");
            }
            other => panic!("expected Held, got {other:?}"),
        }
        drop(first);
        // A program that another test starts at this moment holds the file until it is itself.
        let free = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            Lock::acquire(&state, "backup-simgen", "backup").is_ok()
        });
        assert!(free);
    }
}
