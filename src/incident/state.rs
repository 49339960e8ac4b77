//! Where drctl keeps its own memory, and how it writes there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::error::{Error, Kind};

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

/// Nothing says where the state directory is.
#[derive(Debug, thiserror::Error)]
#[error(
    "drctl has no state directory: HOME and XDG_STATE_HOME are not set, and user {0} has no home in {PASSWD}"
)]
pub struct NoStateDir(u32);

impl From<NoStateDir> for Error {
    fn from(e: NoStateDir) -> Self {
        Self::new(Kind::Refused, e.to_string())
            .untouched("everything")
            .next("--state-dir DIR    # the same for every run: incidents and locks are looked for there")
    }
}

/// The users of this machine.
const PASSWD: &str = "/etc/passwd";

impl StateDir {
    /// A directory that is known.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// `flag` (`--state-dir`, `$DRCTL_STATE_DIR`), else `$XDG_STATE_HOME/drctl`, else
    /// `/var/lib/drctl` for root, else `~/.local/state/drctl`.
    ///
    /// # Errors
    /// [`NoStateDir`] where the user's home is not known.
    pub fn resolve(flag: Option<&Path>) -> Result<Self, NoStateDir> {
        let passwd =
            || fs::read(PASSWD).map_or_else(|_| String::new(), |b| String::from_utf8_lossy(&b).into());
        let user = rustix::process::geteuid().as_raw();
        Self::find(flag, user, |name| std::env::var_os(name), passwd)
    }

    fn find(
        flag: Option<&Path>,
        user: u32,
        env: impl Fn(&str) -> Option<OsString>,
        passwd: impl FnOnce() -> String,
    ) -> Result<Self, NoStateDir> {
        if let Some(path) = flag {
            return Ok(Self::at(path));
        }
        // A relative one would be another in every directory: an incident and its lock would not be
        // found again. The XDG specification ignores it too.
        let absolute = |name| env(name).map(PathBuf::from).filter(|p| p.is_absolute());
        if let Some(base) = absolute("XDG_STATE_HOME") {
            return Ok(Self(base.join("drctl")));
        }
        if user == 0 {
            return Ok(Self::at("/var/lib/drctl"));
        }
        absolute("HOME")
            .or_else(|| home_of(user, &passwd()))
            .map(|home| Self(home.join(".local/state/drctl")))
            .ok_or(NoStateDir(user))
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

/// A user's home in the text of `/etc/passwd`, passwd(5).
fn home_of(user: u32, passwd: &str) -> Option<PathBuf> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let &[_, _, id, _, _, home, ..] = fields.as_slice() else {
            return None;
        };
        (id.parse() == Ok(user) && home.starts_with('/')).then(|| PathBuf::from(home))
    })
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
    fn the_state_directory_does_not_depend_on_where_drctl_is_started() {
        const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nops:x:1000:1000::/home/ops:/bin/sh\nnone:x:1001:1001:::\n";
        let found = |flag: Option<&str>, user, xdg: Option<&str>, home: Option<&str>| {
            let env = |name: &str| match name {
                "HOME" => home.map(OsString::from),
                _ => xdg.map(OsString::from),
            };
            StateDir::find(flag.map(Path::new), user, env, || USERS.into())
                .map(|s| s.path().display().to_string())
                .ok()
        };
        let ops = Some("/home/ops/.local/state/drctl".to_owned());
        for (flag, user, xdg, home, expected) in [
            (
                Some("here"),
                1000,
                Some("/x"),
                Some("/h"),
                Some("here".to_owned()),
            ),
            (None, 1000, Some("/x"), Some("/h"), Some("/x/drctl".into())),
            (None, 0, None, Some("/root"), Some("/var/lib/drctl".into())),
            (None, 0, Some("x"), None, Some("/var/lib/drctl".into())),
            (None, 1000, None, Some("/h"), Some("/h/.local/state/drctl".into())),
            (None, 1000, None, None, ops.clone()),
            (None, 1000, Some(""), Some(""), ops.clone()),
            (None, 1000, Some("x"), Some("h"), ops),
            (None, 1001, None, None, None),
            (None, 1002, None, None, None),
        ] {
            assert_eq!(
                found(flag, user, xdg, home),
                expected,
                "{flag:?} {user} {xdg:?} {home:?}"
            );
        }
        let error = Error::from(NoStateDir(1002));
        assert!(error.message.contains("user 1002"), "{error}");
        assert!(error.next[0].starts_with("--state-dir DIR"), "{error}");
    }

    #[test]
    fn identities_sort_by_time() {
        let at: Timestamp = "2026-11-20T18:30:12.5Z".parse().unwrap();
        let id = fresh_id(at, "db-corruption");
        assert!(id.starts_with("20261120T183012Z-db-corruption-"), "{id}");
    }
}
