//! Removing the sets that no rule wants any more.
//!
//! A set stops being one with a single rename: its manifest becomes `pruned.json`. Only then
//! its files go, that name last. Whoever is killed in between leaves a directory that no
//! restore takes for a set and that the next run removes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::catalogue::{Catalogue, Entry, PRUNED, Set};
use super::create::{catalogue_error, lock_directory, locked, unwritable};
use super::retention::{Candidate, Decision, decide};
use super::{Label, files, manifest};
use crate::error::{Error, Kind, Result};
use crate::event::{Event, SharedReporter, Verdict};
use crate::incident::{Listing, Lock, StateDir, backup_lock, recovery_lock};
use crate::runbook::Runbook;

/// What may be taken from a backup directory, and why the rest stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prune {
    /// The directory.
    pub directory: PathBuf,
    /// About each set of the deployment, newest first.
    pub sets: Vec<Decision>,
    /// What killed runs left: name, bytes, and what it is.
    pub remains: Vec<(Label, u64, &'static str)>,
    /// Sets of other deployments, which are left alone.
    pub foreign: usize,
}

/// A set that may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prunable {
    /// Its name.
    pub label: Label,
    /// Bytes that its removal gives back.
    pub bytes: u64,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Sets.
    pub labels: Vec<String>,
    /// Bytes that they took on the disk.
    pub bytes: u64,
}

impl Prune {
    /// What goes: what killed runs left, then the oldest first.
    #[must_use]
    pub fn goes(&self) -> Vec<Prunable> {
        let remains = self.remains.iter().map(|(label, bytes, _)| Prunable {
            label: label.clone(),
            bytes: *bytes,
        });
        let sets = self.sets.iter().rev().filter(|d| d.goes());
        remains
            .chain(sets.map(|d| Prunable {
                label: d.label.clone(),
                bytes: d.bytes,
            }))
            .collect()
    }
}

/// Looks at the backup directory, and decides by the runbook's rules; without rules every set
/// stays. Sets that were not finished are remains only while no backup runs, which whoever has no
/// `hold` finds out by the directory's lock. Nothing is changed.
///
/// # Errors
/// A directory that cannot be read.
pub fn look(runbook: &Runbook, state: &StateDir, hold: Option<&Hold>) -> Result<Prune> {
    let directory = &runbook.backup.directory;
    let deployment = runbook.deployment.as_str();
    let used = in_use(state, deployment)?;
    let idle = hold.is_some() || lock_directory(directory).is_ok();
    let (mut candidates, mut remains, mut foreign) = (Vec::new(), Vec::new(), 0);
    let catalogue = Catalogue::open(directory, deployment);
    for entry in catalogue.list().map_err(catalogue_error)? {
        match entry {
            Entry::Set(set) | Entry::Failed(set) => candidates.push(candidate(&set, &used)),
            Entry::Foreign { .. } => foreign += 1,
            Entry::Pruned { label, path } if is_ours(&path, deployment) => {
                remains.push((label, files::freed(&path), "its removal was begun"));
            }
            Entry::Partial { label, path } if idle => {
                remains.push((label, files::freed(&path), "it was never finished"));
            }
            // Nobody knows whose they are, or they are at work.
            Entry::Pruned { .. } | Entry::Damaged { .. } | Entry::Partial { .. } | Entry::Suspect { .. } => {}
        }
    }
    let sets = match &runbook.backup.keep {
        Some(keep) => decide(&candidates, keep),
        None => Vec::new(),
    };
    Ok(Prune {
        directory: directory.clone(),
        sets,
        remains,
        foreign,
    })
}

/// Sets that a recovery is half-way with, and which one.
///
/// # Errors
/// [`Kind::Refused`] while an incident cannot be read: it may need any of them.
fn in_use(state: &StateDir, deployment: &str) -> Result<BTreeMap<String, String>> {
    let listing = Listing::read(state);
    if let Some(found) = listing.unknown(deployment) {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "which backup sets a recovery needs is not known: {} cannot be read: {}",
                found.path.display(),
                found.cause
            ),
        )
        .untouched("every backup set")
        .next("drctl incident list"));
    }
    Ok(listing
        .incidents
        .into_iter()
        .filter(|i| i.plan.deployment == deployment && i.progress.stage.is_half_way())
        .filter_map(|i| Some((i.plan.backup.clone()?, i.id().to_owned())))
        .collect())
}

fn candidate(set: &Set, used: &BTreeMap<String, String>) -> Candidate {
    let unsound = set
        .failure()
        .map(|p| format!("its verification failed at {}", p.at))
        .or_else(|| hollow(set));
    Candidate {
        label: set.label.clone(),
        bytes: files::freed(&set.path),
        dump: set.manifest.dumps().next().is_some(),
        base: set.manifest.postgres.values().any(|p| p.physical.is_some()),
        verified: set.proof.as_ref().is_some_and(|p| p.verdict == Verdict::Pass),
        unsound,
        used_by: used.get(&set.label.to_string()).cloned(),
    }
}

/// What is missing of a set, by names and sizes alone: its files are not read.
fn hollow(set: &Set) -> Option<String> {
    for file in &set.manifest.files {
        match fs::symlink_metadata(set.path.join(&file.path)) {
            Ok(meta) if meta.is_file() && meta.len() == file.bytes => {}
            Ok(meta) => {
                return Some(format!(
                    "{} has {} bytes instead of {}",
                    file.path,
                    meta.len(),
                    file.bytes
                ));
            }
            Err(e) => return Some(format!("{}: {e}", file.path)),
        }
    }
    set.manifest
        .postgres
        .values()
        .filter_map(|p| p.physical.as_ref())
        .find_map(|base| {
            let (bytes, count) = files::measure(&set.path.join(&base.path));
            ((bytes, count) != (base.bytes, base.files)).then(|| {
                format!(
                    "{} has {count} files of {bytes} bytes instead of {} of {}",
                    base.path, base.files, base.bytes
                )
            })
        })
}

/// The manifest, under the name that it has while its set is removed, tells whose set it was.
/// An empty directory is nobody's.
fn is_ours(path: &Path, deployment: &str) -> bool {
    match fs::read(path.join(PRUNED)) {
        Err(_) => true,
        Ok(text) => serde_json::from_slice::<serde_json::Value>(&text)
            .is_ok_and(|m| m["deployment"].as_str() == Some(deployment)),
    }
}

/// What keeps backups, and recoveries that could need a set, away meanwhile.
#[derive(Debug)]
pub struct Hold {
    _locks: Vec<Lock>,
    _directory: File,
}

/// Takes the locks that a removal needs.
///
/// # Errors
/// [`Kind::Locked`] while a backup, or a recovery, of the deployment
/// runs.
pub fn hold(runbook: &Runbook, state: &StateDir) -> Result<Hold> {
    let deployment = runbook.deployment.as_str();
    let take = |name: &str| Lock::acquire(state, name, "backup prune").map_err(|e| locked(&e));
    Ok(Hold {
        _locks: vec![take(&backup_lock(deployment))?, take(&recovery_lock(deployment))?],
        _directory: lock_directory(&runbook.backup.directory)?,
    })
}

/// The same for a recovery, which holds its own lock already. A backup at work holds that of the
/// directory.
///
/// # Errors
/// As [`hold`].
pub fn hold_directory(runbook: &Runbook) -> Result<Hold> {
    Ok(Hold {
        _locks: Vec::new(),
        _directory: lock_directory(&runbook.backup.directory)?,
    })
}

/// Removes sets of the deployment, in the order given. One that is gone, or is another
/// deployment's, is passed over. The caller holds the locks.
///
/// # Errors
/// The first that cannot be removed; those before it are gone.
pub fn prune_labels(
    runbook: &Runbook,
    _hold: &Hold,
    labels: &[Label],
    reporter: &SharedReporter,
) -> Result<Pruned> {
    let deployment = runbook.deployment.as_str();
    let directory = &runbook.backup.directory;
    let entries = Catalogue::open(directory, deployment)
        .list()
        .map_err(catalogue_error)?;
    let mut done = Pruned::default();
    for label in labels {
        let found = entries
            .iter()
            .filter(|e| e.label() == label)
            .find_map(|e| match e {
                Entry::Set(set) => Some(&set.path),
                Entry::Pruned { path, .. } if is_ours(path, deployment) => Some(path),
                // The lock is held: nobody writes it.
                Entry::Partial { path, .. } => Some(path),
                _ => None,
            });
        let Some(path) = found else { continue };
        let bytes = files::freed(path);
        remove(path).map_err(|e| {
            let mut error = unwritable(path, &e);
            error.message = format!("backup {label} could not be removed: {e}");
            error.untouched = Some("every set that is to be kept".into());
            error.next("drctl backup prune    # goes on where this one stopped")
        })?;
        done.labels.push(label.to_string());
        done.bytes += bytes;
        reporter.event(&Event::Note {
            text: format!("backup {label} removed, {}", crate::event::bytes(bytes)),
        });
    }
    Ok(done)
}

/// If power fails after the rename, the set is none any more; before it, it is whole.
fn remove(path: &Path) -> io::Result<()> {
    let marker = path.join(PRUNED);
    match fs::rename(path.join(manifest::FILE_NAME), &marker) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => files::sync_dir(path)?,
    }
    crash_hook("begun");
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == PRUNED {
            continue;
        }
        // Not followed: what a link leads to is not part of the set.
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
        crash_hook("half");
    }
    match fs::remove_file(&marker) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::remove_dir(path)?;
    files::sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Lets a test kill the run at a named place, as a power failure would.
#[cfg(debug_assertions)]
fn crash_hook(place: &str) {
    if std::env::var("DRCTL_CRASH_IN_PRUNE").as_deref() == Ok(place) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::sleep(std::time::Duration::from_secs(5));
    }
}

#[cfg(not(debug_assertions))]
fn crash_hook(_: &str) {}
