//! The directory of an incident: `<state>/incidents/<id>/` with the evidence, the plan,
//! the journal and the report. The journal is made last: without it there is no incident.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::journal::{Entry, JOURNAL_FILE, Journal, JournalError, Record};
use super::progress::{Progress, Stage};
use super::state::{StateDir, StateError, write_atomically};
use crate::plan::{PLAN_FORMAT, Plan};

/// Version of `evidence.json`.
pub const CASE_FORMAT: u32 = 1;

/// Why there is an incident: what was found, and what it was taken to mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Case {
    /// [`CASE_FORMAT`].
    pub format: u32,
    /// `confirmed` or `suspected`.
    pub certainty: String,
    /// One sentence.
    pub summary: String,
    /// The facts behind it.
    pub reasons: Vec<String>,
    /// What the scenario observed, in its own format.
    pub evidence: serde_json::Value,
}

/// An incident cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum IncidentError {
    /// Its journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Its directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// One of its files.
    #[error("{} cannot be read: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// None of that name.
    #[error("there is no incident {0:?}")]
    Unknown(String),
    /// Several of that name.
    #[error("{given:?} is the beginning of several incidents: {}", candidates.join(", "))]
    Ambiguous {
        /// What was typed.
        given: String,
        /// What it could mean.
        candidates: Vec<String>,
    },
    /// None that could be meant.
    #[error("{0} has no open incident")]
    NoneOpen(String),
}

/// One incident as it is on disk.
#[derive(Debug, Clone)]
pub struct Incident {
    /// Its directory.
    pub directory: PathBuf,
    /// Why it exists.
    pub case: Case,
    /// What was, or is to be, done.
    pub plan: Plan,
    /// Its journal.
    pub entries: Vec<Entry>,
    /// How far it has come.
    pub progress: Progress,
}

impl Incident {
    /// Makes the directory of a new incident. Its identity is the plan's run.
    ///
    /// # Errors
    /// [`IncidentError::State`]; nothing that counts as an incident is left behind.
    pub fn create(state: &StateDir, case: &Case, plan: &Plan) -> Result<(PathBuf, Journal), IncidentError> {
        let directory = state.subdirectory("incidents")?.join(&plan.run);
        let fail = |source| StateError {
            path: directory.clone(),
            source,
        };
        // Fails on a directory that is there: the clean-up below only ever removes our own.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(fail)?;
        let made = (|| -> Result<Journal, IncidentError> {
            fs::File::open(directory.parent().unwrap_or(Path::new(".")))
                .and_then(|d| d.sync_all())
                .map_err(fail)?;
            write_json(&directory.join("evidence.json"), case)?;
            write_json(&directory.join("plan.json"), plan)?;
            Ok(Journal::create(&directory.join(JOURNAL_FILE))?)
        })();
        match made {
            Ok(journal) => Ok((directory, journal)),
            Err(e) => {
                for name in ["evidence.json", "plan.json", JOURNAL_FILE] {
                    let _ = fs::remove_file(directory.join(name));
                }
                let _ = fs::remove_dir(&directory);
                Err(e)
            }
        }
    }

    /// Reads an incident.
    ///
    /// # Errors
    /// [`IncidentError`].
    pub fn load(directory: &Path) -> Result<Self, IncidentError> {
        let plan: Plan = read_json(&directory.join("plan.json"), PLAN_FORMAT)?;
        let case: Case = read_json(&directory.join("evidence.json"), CASE_FORMAT)?;
        let entries = Journal::entries(&directory.join(JOURNAL_FILE))?;
        let progress = Progress::of(&entries);
        Ok(Self {
            directory: directory.to_owned(),
            case,
            plan,
            entries,
            progress,
        })
    }

    /// Opens its journal to continue it, and reads it anew: another run may have written
    /// since it was loaded.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn reopen(&mut self) -> Result<Journal, JournalError> {
        let (journal, entries) = Journal::open(&self.directory.join(JOURNAL_FILE))?;
        self.progress = Progress::of(&entries);
        self.entries = entries;
        Ok(journal)
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.plan.run
    }

    /// When it was opened.
    #[must_use]
    pub fn opened_at(&self) -> Option<Timestamp> {
        self.entries.first().map(|e| e.at)
    }

    /// When anything last happened.
    #[must_use]
    pub fn last_at(&self) -> Option<Timestamp> {
        self.entries.last().map(|e| e.at)
    }

    /// True until it is closed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.progress.stage != Stage::Closed
    }

    /// The facts that steps and measurements left, later ones over earlier ones.
    #[must_use]
    pub fn facts(&self) -> std::collections::BTreeMap<String, serde_json::Value> {
        let mut all = std::collections::BTreeMap::new();
        for entry in &self.entries {
            if let Record::StepFinished { facts, .. } | Record::Measured { facts } = &entry.record {
                all.extend(facts.clone());
            }
        }
        all
    }
}

/// Every incident that can be found, oldest first, and the directories that hold none
/// that could be read.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those that could be read.
    pub incidents: Vec<Incident>,
    /// Name and reason of those that could not.
    pub unreadable: Vec<(String, String)>,
}

impl Listing {
    /// Reads the incidents of the state directory, and of the memory file system, where a
    /// run ends up whose state directory could not be written.
    #[must_use]
    pub fn read(state: &StateDir) -> Self {
        let mut all = Self::default();
        let away = StateDir::resolve(Some(&fallback_path()));
        let roots = if away.path() == state.path() {
            vec![away]
        } else {
            vec![state.clone(), away]
        };
        for root in roots {
            let Ok(directory) = fs::read_dir(root.path().join("incidents")) else {
                continue;
            };
            for path in directory.flatten().map(|e| e.path()) {
                // A copy that is on its way home.
                if path
                    .file_name()
                    .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."))
                {
                    continue;
                }
                // Cut off before it began: nothing was done.
                if !path.join(JOURNAL_FILE).exists() {
                    continue;
                }
                match Incident::load(&path) {
                    // Brought home, and cut off before the copy in memory went.
                    Ok(incident) if all.incidents.iter().any(|i| i.id() == incident.id()) => {}
                    // Cut off before the first record: nothing was done either.
                    Ok(incident) if incident.entries.is_empty() => {}
                    Ok(incident) => all.incidents.push(incident),
                    Err(e) => all.unreadable.push((
                        path.file_name()
                            .unwrap_or_default()
                            .to_string_lossy()
                            .into_owned(),
                        e.to_string(),
                    )),
                }
            }
        }
        all.incidents
            .sort_by(|a, b| (a.opened_at(), a.id()).cmp(&(b.opened_at(), b.id())));
        all
    }

    /// The incident called `id`, or the only one that begins so; without `id`, the latest
    /// of `deployment` that is not closed.
    ///
    /// # Errors
    /// [`IncidentError`].
    pub fn choose(mut self, id: Option<&str>, deployment: &str) -> Result<Incident, IncidentError> {
        let Some(id) = id else {
            let latest = self
                .incidents
                .iter()
                .rposition(|i| i.plan.deployment == deployment && i.is_open());
            return match latest {
                Some(index) => Ok(self.incidents.swap_remove(index)),
                None => Err(IncidentError::NoneOpen(deployment.to_owned())),
            };
        };
        if let Some(index) = self.incidents.iter().position(|i| i.id() == id) {
            return Ok(self.incidents.swap_remove(index));
        }
        if let Some((name, cause)) = self.unreadable.iter().find(|(name, _)| name == id) {
            return Err(IncidentError::File {
                path: PathBuf::from(name),
                cause: cause.clone(),
            });
        }
        let matching: Vec<usize> = (0..self.incidents.len())
            .filter(|&i| !id.is_empty() && self.incidents[i].id().starts_with(id))
            .collect();
        match matching.as_slice() {
            [only] => Ok(self.incidents.swap_remove(*only)),
            [] => Err(IncidentError::Unknown(id.to_owned())),
            several => Err(IncidentError::Ambiguous {
                given: id.to_owned(),
                candidates: several
                    .iter()
                    .map(|&i| self.incidents[i].id().to_owned())
                    .collect(),
            }),
        }
    }
}

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

/// The directory of [`fallback_path`], made if need be; `None` when it is not ours alone.
#[must_use]
pub fn private_fallback() -> Option<StateDir> {
    let fallback = StateDir::resolve(Some(&fallback_path()));
    // It may be there from an earlier run.
    let _ = fs::DirBuilder::new().mode(0o700).create(fallback.path());
    // /dev/shm is everybody's: a directory that someone else made there is not used.
    fs::symlink_metadata(fallback.path())
        .is_ok_and(|m| {
            m.is_dir() && m.uid() == rustix::process::geteuid().as_raw() && m.mode().trailing_zeros() >= 6
        })
        .then_some(fallback)
}

/// Moves incidents that could not be written at home, and that nobody is half-way with, from
/// memory to the state directory `home`. Gives those that moved, and why one could not.
///
/// If power fails in the middle, the copy has no name yet and the original is still there; after
/// the rename the original is a second copy, which goes next time. Nothing is copied over what
/// home has already.
#[must_use]
pub fn bring_home(home: &StateDir) -> (Vec<String>, Option<StateError>) {
    let away = fallback_path().join("incidents");
    let mut moved = Vec::new();
    let Ok(found) = fs::read_dir(&away) else {
        return (moved, None);
    };
    for path in found.flatten().map(|e| e.path()) {
        let Some(name) = path.file_name().and_then(|n| n.to_str()).map(str::to_owned) else {
            continue;
        };
        let settled = Incident::load(&path).is_ok_and(|i| {
            // Another state directory's run is not ours to move.
            !i.progress.stage.is_half_way() && belongs(&path, home)
        });
        if !settled {
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
    let path = directory.join(format!(".probe-{}", std::process::id()));
    let tried = (|| {
        let file = fs::File::create(&path)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1024 * 1024) {
            Ok(()) => {}
            // No way to reserve here: writing tells.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                fs::write(&path, vec![0_u8; 1024 * 1024])?;
            }
            Err(e) => return Err(e.into()),
        }
        file.sync_all()
    })();
    let _ = fs::remove_file(&path);
    tried.map_err(|source| StateError {
        path: directory,
        source,
    })
}

/// Writes a small JSON file so that a reader sees the old content or the new.
///
/// # Errors
/// [`StateError`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
    let fail = |source| StateError {
        path: path.to_owned(),
        source,
    };
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| fail(e.into()))?;
    text.push(b'\n');
    write_atomically(path, &text).map_err(fail)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path, known: u32) -> Result<T, IncidentError> {
    let fail = |cause: String| IncidentError::File {
        path: path.to_owned(),
        cause,
    };
    let text = fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
    let format = value
        .get("format")
        .and_then(serde_json::Value::as_u64)
        .unwrap_or_default();
    if format > u64::from(known) {
        return Err(fail(format!(
            "it has format {format}, this drctl knows {known}: use the drctl that wrote it"
        )));
    }
    serde_json::from_value(value).map_err(|e| fail(e.to_string()))
}
