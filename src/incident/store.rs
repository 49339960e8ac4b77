//! The directory of an incident: `<state>/incidents/<id>/` with the evidence, the plan,
//! the journal and the report. The journal is made last: without it there is no incident.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::away::{Away, away};
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
    /// Whether something was left as it is that drctl can take back when it is told to.
    #[must_use]
    pub fn left_by_choice(&self) -> bool {
        let has_undo = |number: usize| {
            let step = self.plan.steps.get(number.wrapping_sub(1));
            step.is_some_and(|s| matches!(s.undo, crate::plan::Undo::Action(_)))
        };
        self.progress.left.iter().any(|(number, _)| has_undo(*number))
    }

    /// What one more undo would do about what was left as it is, for people.
    #[must_use]
    pub fn undo_again(&self) -> &'static str {
        if self.progress.undo_decided {
            "again, once what is in its way is gone"
        } else {
            "stop what was left running, too"
        }
    }

    /// What stays as it is when it is closed before everything is taken back, one line each.
    #[must_use]
    pub fn what_stays(&self) -> Vec<String> {
        let step = |number: usize| {
            let title = self
                .plan
                .steps
                .get(number.wrapping_sub(1))
                .map(|s| s.title.as_str());
            format!("step {number} ({})", title.unwrap_or_default())
        };
        let failed = |number: usize| self.progress.undo_failed.as_ref().filter(|(n, _)| *n == number);
        let not_undone = self.progress.to_undo().into_iter().map(|n| match failed(n) {
            Some((_, cause)) => format!("{} is not taken back: {cause}", step(n)),
            None => format!("{} is not taken back", step(n)),
        });
        let left = self
            .progress
            .left
            .iter()
            .map(|(n, why)| format!("{}: {why}", step(*n)));
        let kept = self
            .plan
            .discard
            .iter()
            .map(|a| format!("not done: {}", a.summary()));
        not_undone.chain(left).chain(kept).collect()
    }

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
        // The run becomes part of paths and of names of databases: it is the directory's, and what
        // `fresh_id` makes.
        let named = directory.file_name().and_then(|n| n.to_str()) == Some(plan.run.as_str());
        if !named || !plan.run.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(IncidentError::File {
                path: directory.join("plan.json"),
                cause: format!("it is the plan of incident {:?}", plan.run),
            });
        }
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

    /// What tells which of two incidents came later. The time alone does not: a clock can be set
    /// back between them.
    #[must_use]
    pub fn place(&self) -> (u64, Option<Timestamp>) {
        (self.progress.number, self.opened_at())
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

/// An incident that cannot be read.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// Its directory; the state directory's own, where not even a list can be had.
    pub path: PathBuf,
    /// Why.
    pub cause: String,
    /// Its deployment, where that much of it can be read.
    pub deployment: Option<String>,
}

impl Unreadable {
    fn new(path: PathBuf, cause: String) -> Self {
        let deployment = fs::read(path.join("plan.json"))
            .ok()
            .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
            .and_then(|plan| Some(plan.get("deployment")?.as_str()?.to_owned()));
        Self {
            path,
            cause,
            deployment,
        }
    }

    /// The directory's name, which is the incident's.
    #[must_use]
    pub fn name(&self) -> String {
        self.path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }
}

/// Every incident that can be found, oldest first, and the directories that hold none
/// that could be read.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those that could be read.
    pub incidents: Vec<Incident>,
    /// Those that could not.
    pub unreadable: Vec<Unreadable>,
    /// A place that looks like drctl's and is somebody else's: nothing in it was read.
    pub foreign: Option<PathBuf>,
}

impl Listing {
    /// Reads the incidents of the state directory, and of the memory file system, where a
    /// run ends up whose state directory could not be written.
    #[must_use]
    pub fn read(state: &StateDir) -> Self {
        let mut all = Self::default();
        all.read_in(state);
        match away() {
            Away::Ours(away) if away.path() != state.path() => all.read_in(&away),
            Away::Foreign(path) => all.foreign = Some(path),
            _ => {}
        }
        all.incidents
            .sort_by(|a, b| (a.place(), a.id()).cmp(&(b.place(), b.id())));
        all
    }

    fn read_in(&mut self, root: &StateDir) {
        let path = root.path().join("incidents");
        let found = match fs::read_dir(&path) {
            Ok(found) => found,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(e) => {
                self.unreadable.push(Unreadable::new(path, e.to_string()));
                return;
            }
        };
        for path in found.flatten().map(|e| e.path()) {
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
                Ok(incident) if self.incidents.iter().any(|i| i.id() == incident.id()) => {}
                // Cut off before the first record: nothing was done either.
                Ok(incident) if incident.entries.is_empty() => {}
                Ok(incident) => self.incidents.push(incident),
                Err(e) => self.unreadable.push(Unreadable::new(path, e.to_string())),
            }
        }
    }

    /// The number of the next incident. Asked under the deployment's lock: only within a deployment
    /// does the order matter.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        let highest = self.incidents.iter().map(|i| i.progress.number).max();
        highest.unwrap_or(0) + 1
    }

    /// The first that cannot be read and may be `deployment`'s: what it has changed, and whether it
    /// has come to its end, is not known.
    #[must_use]
    pub fn unknown(&self, deployment: &str) -> Option<&Unreadable> {
        self.unreadable
            .iter()
            .find(|u| u.deployment.as_deref().is_none_or(|d| d == deployment))
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
        if let Some(found) = self.unreadable.iter().find(|u| u.name() == id) {
            return Err(IncidentError::File {
                path: found.path.clone(),
                cause: found.cause.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn put(state: &StateDir, name: &str, plan: &str) {
        let directory = state.subdirectory("incidents").unwrap().join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("plan.json"), plan).unwrap();
        fs::write(directory.join(JOURNAL_FILE), "{}\n").unwrap();
    }

    fn no_evidence() -> Case {
        Case {
            format: CASE_FORMAT,
            certainty: String::new(),
            summary: String::new(),
            reasons: vec![],
            evidence: serde_json::Value::Null,
        }
    }

    #[test]
    fn an_incident_that_cannot_be_read_is_not_none() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        assert!(Listing::read(&state).unknown("simgen").is_none());
        // A newer drctl's plan of another deployment: no concern of ours.
        put(&state, "one", r#"{ "format": 99, "deployment": "other" }"#);
        assert!(Listing::read(&state).unknown("simgen").is_none());
        put(&state, "two", r#"{ "format": 99, "deployment": "simgen" }"#);
        let listing = Listing::read(&state);
        let unknown = listing.unknown("simgen").unwrap();
        assert_eq!(unknown.name(), "two");
        assert!(unknown.cause.contains("format 99"), "{}", unknown.cause);
        fs::remove_dir_all(dir.path().join("incidents/two")).unwrap();
        // Nobody can say whose.
        put(&state, "three", "torn");
        assert!(Listing::read(&state).unknown("simgen").is_some());
    }

    #[test]
    fn a_place_that_cannot_be_listed_is_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        fs::write(dir.path().join("incidents"), "").unwrap();
        assert!(Listing::read(&state).unknown("simgen").is_some());
    }

    #[test]
    fn the_order_is_that_of_the_numbers_and_not_of_the_clock() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        let case = no_evidence();
        // As they were opened: before drctl counted, then each an hour earlier by the clock.
        for (id, number, hour) in [("d", None, 12), ("c", Some(1), 11), ("b", Some(2), 10)] {
            let mut plan = crate::engine::a_plan();
            plan.run = id.into();
            let (directory, journal) = Incident::create(&state, &case, &plan).unwrap();
            drop(journal);
            let number = number.map_or_else(String::new, |n| format!(r#""number":{n},"#));
            let at = format!("2026-11-20T{hour}:00:00Z");
            let line = format!(
                r#"{{"format":1,"seq":1,"at":"{at}","record":{{"opened":{{"incident":"{id}",{number}"deployment":"simgen","scenario":"s","service":"postgres","began":"{at}","diagnosed":"{at}","down-since":null,"follows":null,"drctl":"0.1.0"}}}}}}"#
            );
            fs::write(directory.join(JOURNAL_FILE), line + "\n").unwrap();
        }
        let listing = Listing::read(&state);
        assert!(listing.unreadable.is_empty(), "{:?}", listing.unreadable);
        let order: Vec<&str> = listing.incidents.iter().map(Incident::id).collect();
        assert_eq!(order, ["d", "c", "b"]);
        assert_eq!(listing.next_number(), 3);
        assert_eq!(listing.choose(None, "simgen").unwrap().id(), "b");
        assert_eq!(Listing::default().next_number(), 1);
    }

    #[test]
    fn a_plan_belongs_to_the_directory_that_it_lies_in() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        let case = no_evidence();
        let mut plan = crate::engine::a_plan();
        plan.run = "20261120T183012Z-db-corruption-1f3a".into();
        let (directory, _journal) = Incident::create(&state, &case, &plan).unwrap();
        assert!(Incident::load(&directory).is_ok());
        let elsewhere = directory.with_file_name("other");
        fs::rename(&directory, &elsewhere).unwrap();
        let refused = Incident::load(&elsewhere).unwrap_err().to_string();
        assert!(refused.contains("the plan of incident"), "{refused}");
    }
}
