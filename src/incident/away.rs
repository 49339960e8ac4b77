//! drctl's memory where its own directory cannot be written: a directory in the memory file
//! system, from which incidents are brought home as soon as there is room.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::lock::{Lock, recovery_lock};
use super::state::{StateDir, StateError, write_atomically};
use super::store::Incident;
use crate::private_dir::{is_private, private_directory};

/// Where a run keeps its memory when the state directory cannot be written. Lost at a
/// reboot, which is said aloud.
#[must_use]
pub fn fallback_path() -> PathBuf {
    PathBuf::from(format!("/dev/shm/drctl-{}", rustix::process::geteuid().as_raw()))
}

/// The state directory if it can be written, durably and with room for a journal; else
/// one in memory, with the reason why the first cannot be used.
///
/// # Errors
/// The first one's [`StateError`] when neither can be written.
pub fn writable(state: &StateDir) -> Result<(StateDir, Option<StateError>), StateError> {
    let Err(first) = try_write(state) else {
        return Ok((state.clone(), None));
    };
    match private_fallback() {
        Some(fallback) if try_write(&fallback).is_ok() => Ok((fallback, Some(first))),
        _ => Err(first),
    }
}

/// What is at [`fallback_path`].
#[derive(Debug, Clone)]
pub enum Away {
    /// Nothing.
    Absent,
    /// A directory that is this user's alone.
    Ours(StateDir),
    /// Something else. `/dev/shm` is everybody's: what somebody else has put there is neither read,
    /// or he could have drctl carry out a plan of his, nor written.
    Foreign(PathBuf),
}

/// Looks at [`fallback_path`]; nothing is made.
#[must_use]
pub fn away() -> Away {
    let path = fallback_path();
    match is_private(&path) {
        Ok(()) => Away::Ours(StateDir::at(path)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Away::Absent,
        Err(_) => Away::Foreign(path),
    }
}

/// The directory of [`fallback_path`], made if need be; `None` when it is not ours alone.
#[must_use]
pub fn private_fallback() -> Option<StateDir> {
    let path = fallback_path();
    private_directory(&path).ok()?;
    Some(StateDir::at(path))
}

/// Moves incidents that could not be written at home, and that nobody is half-way with or at work
/// on, from memory to the state directory `home`. `holding` is the deployment whose lock in memory
/// the caller has himself. Gives those that moved, and why one could not.
///
/// If power fails in the middle, the copy has no name yet and the original is still there; after
/// the rename the original is a second copy, which goes next time. Nothing is copied over what
/// home has already.
#[must_use]
pub fn bring_home(home: &StateDir, holding: Option<&str>) -> (Vec<String>, Option<StateError>) {
    let mut moved = Vec::new();
    let Away::Ours(away) = away() else {
        return (moved, None);
    };
    let Ok(found) = fs::read_dir(away.path().join("incidents")) else {
        return (moved, None);
    };
    for path in found.flatten().map(|e| e.path()) {
        let Some(name) = path.file_name().and_then(|n| n.to_str()).map(str::to_owned) else {
            continue;
        };
        // Another state directory's run is not ours to move.
        if !belongs(&path, home) {
            continue;
        }
        let Ok(incident) = Incident::load(&path) else {
            continue;
        };
        let deployment = incident.plan.deployment.as_str();
        // Who writes to its journal would go on writing to a file without a name.
        let _lock = if holding == Some(deployment) {
            None
        } else {
            match Lock::acquire(&away, &recovery_lock(deployment), "bring an incident home") {
                Ok(lock) => Some(lock),
                Err(_) => continue,
            }
        };
        // Read under the lock.
        if !Incident::load(&path).is_ok_and(|i| !i.progress.stage.is_half_way()) {
            continue;
        }
        match move_home(&path, home, &name) {
            Ok(()) => moved.push(name),
            Err(e) => return (moved, Some(e)),
        }
    }
    (moved, None)
}

/// Whose it is: the state directory that it could not be written to.
const HOME_FILE: &str = "home";

/// Remembers in an incident that is kept in memory where it belongs.
///
/// # Errors
/// [`StateError`].
pub fn remember_home(directory: &Path, home: &StateDir) -> Result<(), StateError> {
    let path = directory.join(HOME_FILE);
    write_atomically(&path, home.path().as_os_str().as_encoded_bytes())
        .map_err(|source| StateError { path, source })
}

fn belongs(directory: &Path, home: &StateDir) -> bool {
    fs::read(directory.join(HOME_FILE)).is_ok_and(|h| h == home.path().as_os_str().as_encoded_bytes())
}

fn move_home(from: &Path, home: &StateDir, name: &str) -> Result<(), StateError> {
    let incidents = home.subdirectory("incidents")?;
    let (to, partial) = (incidents.join(name), incidents.join(format!(".{name}.moving")));
    let fail = |source| StateError {
        path: to.clone(),
        source,
    };
    let copied = (|| {
        if to.exists() {
            return Ok(());
        }
        let _ = fs::remove_dir_all(&partial);
        fs::DirBuilder::new().mode(0o700).create(&partial)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() && entry.file_name() != HOME_FILE {
                let copy = partial.join(entry.file_name());
                fs::copy(entry.path(), &copy)?;
                fs::File::open(&copy)?.sync_all()?;
            }
        }
        fs::File::open(&partial)?.sync_all()?;
        fs::rename(&partial, &to)?;
        fs::File::open(&incidents)?.sync_all()
    })();
    if let Err(e) = copied {
        let _ = fs::remove_dir_all(&partial);
        return Err(fail(e));
    }
    fs::remove_dir_all(from).map_err(fail)
}

fn try_write(state: &StateDir) -> Result<(), StateError> {
    let directory = state.subdirectory("incidents")?;
    try_write_in(&directory, 1024 * 1024).map_err(|source| StateError {
        path: directory,
        source,
    })
}

/// Whether a directory takes so many bytes, durably. Nothing stays.
///
/// # Errors
/// The operating system's.
pub fn try_write_in(directory: &Path, bytes: u32) -> std::io::Result<()> {
    let path = directory.join(format!(".probe-{}", std::process::id()));
    let tried = (|| {
        let file = fs::File::create(&path)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, u64::from(bytes)) {
            Ok(()) => {}
            // No way to reserve here: writing tells.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                std::io::copy(
                    &mut std::io::Read::take(std::io::repeat(0), u64::from(bytes)),
                    &mut &file,
                )?;
            }
            Err(e) => return Err(e.into()),
        }
        file.sync_all()
    })();
    let _ = fs::remove_file(&path);
    tried
}
