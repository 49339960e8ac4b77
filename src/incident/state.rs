//! Where drctl keeps its own memory, and how it writes there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// drctl's own directory: incidents, drills, locks, recorded facts.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the state directory {} cannot be written: {source}", path.display())]
pub struct StateError {
    /// What was tried.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

impl StateDir {
    /// `flag` (`--state-dir`, `$DRCTL_STATE_DIR`), else `$XDG_STATE_HOME/drctl`, else
    /// `/var/lib/drctl` for root, else `~/.local/state/drctl`.
    #[must_use]
    pub fn resolve(flag: Option<&Path>) -> Self {
        let env = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        Self(match (flag, env("XDG_STATE_HOME")) {
            (Some(path), _) => path.to_owned(),
            (None, Some(base)) => base.join("drctl"),
            (None, None) if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/drctl"),
            (None, None) => env("HOME").unwrap_or_default().join(".local/state/drctl"),
        })
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A subdirectory, made if need be, readable by its owner only.
    ///
    /// # Errors
    /// [`StateError`] naming the path.
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf, StateError> {
        use std::os::unix::fs::DirBuilderExt;
        let path = self.0.join(name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| StateError {
                path: path.clone(),
                source,
            })?;
        Ok(path)
    }
}

/// Writes a whole small file so that a reader, and the next boot, sees the old content or
/// the new, never a part: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// The operating system's error; the old content is intact then.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name for a run that sorts by time and is unique on this machine:
/// `20261120T183012Z-db-corruption-1f3a`.
#[must_use]
pub fn fresh_id(now: Timestamp, subject: &str) -> String {
    let salt = now
        .subsec_nanosecond()
        .unsigned_abs()
        .wrapping_mul(2_654_435_761)
        .wrapping_add(std::process::id());
    format!(
        "{}-{subject}-{:04x}",
        now.strftime("%Y%m%dT%H%M%SZ"),
        (salt >> 8) & 0xffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_write_replaces_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("facts.json");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_atomically(&dir.path().join("absent/facts.json"), b"x").is_err());
    }

    #[test]
    fn identities_sort_by_time() {
        let at: Timestamp = "2026-11-20T18:30:12.5Z".parse().unwrap();
        let id = fresh_id(at, "db-corruption");
        assert!(id.starts_with("20261120T183012Z-db-corruption-"), "{id}");
    }
}
