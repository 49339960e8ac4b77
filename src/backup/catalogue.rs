//! The sets in a backup directory. Only what is there counts: there is no index that could
//! disagree with the directories.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::label::{Label, NotALabel};
use super::manifest::{self, Manifest};
use super::proof::Proof;
use crate::event::Verdict;

/// Ending of a set that is being written, or that a killed run left.
pub const PARTIAL: &str = ".partial";
/// Ending of a set that was written and not believed.
pub const SUSPECT: &str = ".suspect";
/// What a manifest is called from the moment at which the removal of its set begins.
pub const PRUNED: &str = "pruned.json";
/// A manifest is small; more than this is not one.
const MANIFEST_LIMIT: u64 = 256 << 20;

/// A backup directory, as one deployment sees it: several may share it.
#[derive(Debug, Clone)]
pub struct Catalogue {
    directory: PathBuf,
    deployment: String,
}

/// A set that has a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Set {
    /// Its name.
    pub label: Label,
    /// Its directory.
    pub path: PathBuf,
    /// Its record.
    pub manifest: Manifest,
    /// What its last verification found.
    pub proof: Option<Proof>,
}

impl Set {
    /// The verification that it failed, when the last one did.
    #[must_use]
    pub fn failure(&self) -> Option<&Proof> {
        self.proof.as_ref().filter(|p| p.verdict == Verdict::Fail)
    }
}

/// What stands in a backup directory under a set's name.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A set of this deployment.
    Set(Box<Set>),
    /// A set of this deployment whose last verification failed: nothing is restored from it, and
    /// nothing is measured against it, until a verification of it passes.
    Failed(Box<Set>),
    /// Another deployment's. It is listed so that its name is not taken, and left alone.
    Foreign {
        /// Its name.
        label: Label,
        /// Its directory.
        path: PathBuf,
        /// Whose it is.
        deployment: String,
    },
    /// A directory whose manifest is missing, unreadable, another's or of no data.
    Damaged {
        /// Its name.
        label: Label,
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Being written, or left by a run that was killed.
    Partial {
        /// Its name.
        label: Label,
        /// Its directory.
        path: PathBuf,
    },
    /// Being removed by retention, or left so by a run that was killed: the next one finishes it.
    Pruned {
        /// Its name.
        label: Label,
        /// Its directory.
        path: PathBuf,
    },
    /// Written, not believed, kept aside: it is empty or shrank too much.
    Suspect {
        /// Its name.
        label: Label,
        /// Its directory.
        path: PathBuf,
    },
}

impl Entry {
    /// The name it has.
    #[must_use]
    pub fn label(&self) -> &Label {
        match self {
            Self::Set(set) | Self::Failed(set) => &set.label,
            Self::Foreign { label, .. }
            | Self::Damaged { label, .. }
            | Self::Partial { label, .. }
            | Self::Pruned { label, .. }
            | Self::Suspect { label, .. } => label,
        }
    }

    /// `good`, `failed`, `foreign`, `damaged`, `partial`, `pruned`, `suspect`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self {
            Self::Set(_) => "good",
            Self::Failed(_) => "failed",
            Self::Foreign { .. } => "foreign",
            Self::Damaged { .. } => "damaged",
            Self::Partial { .. } => "partial",
            Self::Pruned { .. } => "pruned",
            Self::Suspect { .. } => "suspect",
        }
    }

    /// Why nothing can be restored from it; `None` for a good set.
    #[must_use]
    pub fn unusable(&self) -> Option<String> {
        Some(match self {
            Self::Set(_) => return None,
            Self::Failed(set) => match set.failure() {
                Some(proof) => format!(
                    "its verification failed at {} (drctl backup verify {} looks again)",
                    proof.at, set.label
                ),
                None => "its verification failed".into(),
            },
            Self::Foreign { deployment, .. } => format!("it belongs to deployment {deployment}"),
            Self::Damaged { why, .. } => why.clone(),
            Self::Partial { .. } => "it was not finished".into(),
            Self::Pruned { .. } => "its removal has begun (drctl backup prune finishes it)".into(),
            Self::Suspect { .. } => {
                "it was kept aside because it is empty or smaller than it should be".into()
            }
        })
    }
}

/// Why there is no such set.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The directory cannot be read.
    #[error("the backup directory {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither a label nor `latest`.
    #[error(transparent)]
    NotALabel(#[from] NotALabel),
    /// There is no good set at all.
    #[error("there is no backup in {}", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// No set of that name.
    #[error("there is no backup {label} in {} (the latest is {latest})", path.display())]
    Absent {
        /// The name asked for.
        label: Label,
        /// The directory.
        path: PathBuf,
        /// The newest good one.
        latest: String,
    },
    /// There is a directory of that name, and it is no good set.
    #[error("{} is not a usable backup: {why}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The set of that name is another deployment's.
    #[error("{} belongs to deployment {deployment}", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        deployment: String,
    },
}

impl CatalogueError {
    /// True when what was asked for is there and is damaged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Unusable { .. })
    }
}

impl Catalogue {
    /// The sets of `deployment` in `directory`. A directory that does not exist yet holds none.
    #[must_use]
    pub fn open(directory: &Path, deployment: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            deployment: deployment.to_owned(),
        }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Everything that has a set's name, oldest first. Anything else in the directory is not
    /// drctl's and is left out.
    ///
    /// # Errors
    /// [`CatalogueError::Unreadable`].
    pub fn list(&self) -> Result<Vec<Entry>, CatalogueError> {
        let names = self.names()?;
        let mut found: Vec<Entry> = names.iter().filter_map(|n| self.entry(n)).collect();
        found.sort_by(|a, b| (a.label(), a.state()).cmp(&(b.label(), b.state())));
        Ok(found)
    }

    /// Names of the directories; none where there is no backup directory yet.
    fn names(&self) -> Result<Vec<String>, CatalogueError> {
        let unreadable = |source| CatalogueError::Unreadable {
            path: self.directory.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(unreadable(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            // A link could lead out of the backup directory.
            if entry.file_type().map_err(unreadable)?.is_dir()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        let path = self.directory.join(name);
        if let Some(label) = name.strip_suffix(PARTIAL) {
            let label = label.parse().ok()?;
            return Some(Entry::Partial { label, path });
        }
        if let Some(label) = name.strip_suffix(SUSPECT) {
            let label: Label = label.parse().ok()?;
            return Some(match read_manifest(&path, &label, &self.deployment) {
                Err(NoManifest::Foreign(deployment)) => Entry::Foreign {
                    label,
                    path,
                    deployment,
                },
                _ => Entry::Suspect { label, path },
            });
        }
        let label: Label = name.parse().ok()?;
        Some(match read_manifest(&path, &label, &self.deployment) {
            Ok(manifest) => {
                let set = Box::new(Set {
                    proof: Proof::of(&path, &label),
                    label,
                    path,
                    manifest,
                });
                if set.failure().is_some() {
                    Entry::Failed(set)
                } else {
                    Entry::Set(set)
                }
            }
            Err(NoManifest::Foreign(deployment)) => Entry::Foreign {
                label,
                path,
                deployment,
            },
            Err(_) if is_pruned(&path) => Entry::Pruned { label, path },
            Err(NoManifest::Damaged(why)) => Entry::Damaged { label, path, why },
        })
    }

    /// The deployment's good sets, oldest first.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn sets(&self) -> Result<Vec<Set>, CatalogueError> {
        Ok(self
            .list()?
            .into_iter()
            .filter_map(|e| match e {
                Entry::Set(set) => Some(*set),
                _ => None,
            })
            .collect())
    }

    /// The newest good set, and what stands in the way of newer ones: reads only as many manifests as it must, for it
    /// is asked every few minutes.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn newest(&self) -> Result<(Option<Set>, Vec<Entry>), CatalogueError> {
        let mut names = self.names()?;
        names.sort_by(|a, b| b.cmp(a));
        let mut newer = Vec::new();
        for name in names {
            match self.entry(&name) {
                Some(Entry::Set(set)) => return Ok((Some(*set), newer)),
                None | Some(Entry::Foreign { .. }) => {}
                Some(other) => newer.push(other),
            }
        }
        Ok((None, newer))
    }

    /// The set called `name`, or the newest good one for `latest`. One whose verification failed
    /// is found by its name only, to be shown and looked at again: see [`Set::failure`].
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn find(&self, name: &str) -> Result<Set, CatalogueError> {
        if name == "latest" {
            return self.sets()?.pop().ok_or_else(|| CatalogueError::Empty {
                path: self.directory.clone(),
            });
        }
        let label: Label = name.parse()?;
        let named = self
            .list()?
            .into_iter()
            .filter(|e| e.label() == &label)
            .min_by_key(|e| !matches!(e, Entry::Set(_) | Entry::Failed(_)));
        match named {
            Some(Entry::Set(set) | Entry::Failed(set)) => Ok(*set),
            Some(Entry::Foreign { path, deployment, .. }) => {
                Err(CatalogueError::Foreign { path, deployment })
            }
            Some(
                ref entry @ (Entry::Damaged { ref path, .. }
                | Entry::Partial { ref path, .. }
                | Entry::Pruned { ref path, .. }
                | Entry::Suspect { ref path, .. }),
            ) => Err(CatalogueError::Unusable {
                path: path.clone(),
                why: entry.unusable().unwrap_or_default(),
            }),
            None => Err(CatalogueError::Absent {
                latest: self
                    .sets()?
                    .pop()
                    .map_or_else(|| "none".to_owned(), |s| s.label.to_string()),
                label,
                path: self.directory.clone(),
            }),
        }
    }

    /// The set that one made as `label` is measured against: the newest good one of the
    /// deployment before it. With `dumps` one that holds dumps, whose sizes are compared too;
    /// the facts, which every set has, do for a copy of the server alone.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn baseline(&self, label: &Label, dumps: bool) -> Result<Option<Set>, CatalogueError> {
        let holds = |s: &Set| {
            if dumps {
                s.manifest.dumps().next().is_some()
            } else {
                s.manifest.postgres.values().any(|p| !p.facts.is_empty())
            }
        };
        Ok(self.sets()?.into_iter().rfind(|s| &s.label < label && holds(s)))
    }

    /// A label for `now` that nothing in the directory has.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn fresh_label(&self, now: jiff::Timestamp) -> Result<Label, CatalogueError> {
        let taken: Vec<Label> = self.list()?.iter().map(|e| e.label().clone()).collect();
        let mut number = 1;
        loop {
            let label = Label::new(now, number);
            if !taken.contains(&label) {
                return Ok(label);
            }
            number += 1;
        }
    }
}

/// Its removal has begun: the manifest was taken away as the first thing. Nothing but an empty
/// directory is what remains when the run was killed just before its last step.
fn is_pruned(path: &Path) -> bool {
    let is_there = |name: &str| fs::symlink_metadata(path.join(name)).is_ok();
    !is_there(manifest::FILE_NAME)
        && (is_there(PRUNED) || fs::read_dir(path).is_ok_and(|mut names| names.next().is_none()))
}

/// Why a directory is no set of the deployment.
enum NoManifest {
    /// It is another's.
    Foreign(String),
    /// What is wrong with it.
    Damaged(String),
}

impl From<String> for NoManifest {
    fn from(why: String) -> Self {
        Self::Damaged(why)
    }
}

fn read_manifest(path: &Path, label: &Label, deployment: &str) -> Result<Manifest, NoManifest> {
    let file = path.join(manifest::FILE_NAME);
    let size = match fs::metadata(&file) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err("it has no manifest.json".to_owned().into());
        }
        Err(e) => return Err(format!("manifest.json: {e}").into()),
    };
    if size > MANIFEST_LIMIT {
        return Err(format!("manifest.json is {size} bytes long: that is no manifest").into());
    }
    let text = fs::read(&file).map_err(|e| format!("manifest.json: {e}"))?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| format!("manifest.json: {e}"))?;
    // Before the format: the other deployment may have a newer drctl.
    match value.get("deployment").and_then(serde_json::Value::as_str) {
        Some(whose) if whose != deployment => return Err(NoManifest::Foreign(whose.to_owned())),
        _ => {}
    }
    // Said before the shape is looked at: a newer format has fields that are unknown here.
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(manifest::FORMAT) => {}
        Some(format) => {
            return Err(format!(
                "manifest.json has format {format}; this drctl reads format {}",
                manifest::FORMAT
            )
            .into());
        }
        None => return Err("manifest.json names no format".to_owned().into()),
    }
    let manifest: Manifest = serde_json::from_value(value).map_err(|e| format!("manifest.json: {e}"))?;
    if &manifest.label != label {
        return Err(format!("its manifest is that of {}", manifest.label).into());
    }
    if manifest.parts().is_empty() {
        return Err("it holds neither a dump nor a base backup".to_owned().into());
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(label: &str) -> String {
        format!(
            r#"{{"format":1,"deployment":"d","label":"{label}","started":"2026-11-20T02:00:00Z",
            "finished":"2026-11-20T02:01:00Z","drctl-version":"0.1.0","bytes":1,"skew-seconds":0.5,
            "postgres":{{{}}},"files":[]}}"#,
            manifest::A_SERVER
        )
    }

    fn put(dir: &Path, name: &str, content: Option<String>) {
        fs::create_dir(dir.join(name)).unwrap();
        if let Some(content) = content {
            fs::write(dir.join(name).join(manifest::FILE_NAME), content).unwrap();
        }
    }

    #[test]
    fn only_a_directory_with_its_own_manifest_is_a_set() {
        let dir = tempfile::tempdir().unwrap();
        let (good, newer) = ("20261120T020000Z", "20261121T020000Z");
        put(dir.path(), good, Some(manifest(good)));
        put(dir.path(), newer, None);
        fs::write(dir.path().join(newer).join("RESTORE.md"), "").unwrap();
        put(dir.path(), "20261119T020000Z", None);
        put(dir.path(), "20261118T020000Z", None);
        fs::write(dir.path().join("20261118T020000Z").join(PRUNED), "").unwrap();
        put(dir.path(), "20261122T020000Z", Some(manifest(good)));
        put(
            dir.path(),
            "20261123T020000Z",
            Some(manifest("20261123T020000Z").replace(":1,", ":2,")),
        );
        put(
            dir.path(),
            "20261124T020000Z",
            Some(manifest("20261124T020000Z").replace("\"bytes\"", "\"weight\":1,\"bytes\"")),
        );
        put(dir.path(), "20261125T020000Z.partial", None);
        put(
            dir.path(),
            "20261126T020000Z.suspect",
            Some(manifest("20261126T020000Z")),
        );
        put(dir.path(), "lost+found", None);
        fs::write(dir.path().join("20261127T020000Z"), "a file").unwrap();

        let catalogue = Catalogue::open(dir.path(), "d");
        let states: Vec<&str> = catalogue.list().unwrap().iter().map(Entry::state).collect();
        assert_eq!(
            states,
            [
                "pruned", "pruned", "good", "damaged", "damaged", "damaged", "damaged", "partial", "suspect"
            ]
        );
        assert_eq!(catalogue.find("latest").unwrap().label.to_string(), good);
        assert_eq!(catalogue.find(good).unwrap().path, dir.path().join(good));
        assert!(catalogue.find(newer).unwrap_err().is_damage());
        assert!(matches!(
            catalogue.find("../etc"),
            Err(CatalogueError::NotALabel(_))
        ));
        assert!(matches!(
            catalogue.find("20200101T000000Z"),
            Err(CatalogueError::Absent { .. })
        ));
        let taken = catalogue
            .fresh_label("2026-11-20T02:00:00Z".parse().unwrap())
            .unwrap();
        assert_eq!(taken.to_string(), "20261120T020000Z-2");
    }

    #[test]
    fn an_absent_directory_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(&dir.path().join("none"), "d");
        assert!(catalogue.list().unwrap().is_empty());
        assert!(matches!(
            catalogue.find("latest"),
            Err(CatalogueError::Empty { .. })
        ));
    }

    /// Facts without a dump, as `--physical-only` records them.
    fn with_facts(text: &str) -> String {
        text.replace(
            "\"facts\":{}",
            r#""facts":{"app":{"taken-at":"2026-11-20T02:00:00Z","lsn":"0/1","bytes":1,"stats-reset":null,
            "relations":[]}}"#,
        )
    }

    /// As it was made where the runbook turned both off.
    #[test]
    fn a_set_without_data_is_no_backup() {
        let dir = tempfile::tempdir().unwrap();
        let (good, empty) = ("20261120T020000Z", "20261121T020000Z");
        put(dir.path(), good, Some(manifest(good)));
        let mut facts: serde_json::Value = serde_json::from_str(&with_facts(&manifest(empty))).unwrap();
        facts["postgres"]["db"]["physical"] = serde_json::Value::Null;
        put(dir.path(), empty, Some(facts.to_string()));
        let catalogue = Catalogue::open(dir.path(), "d");
        let entries = catalogue.list().unwrap();
        assert_eq!(entries[1].state(), "damaged");
        assert!(entries[1].unusable().unwrap().contains("neither a dump"));
        assert_eq!(catalogue.find("latest").unwrap().label.to_string(), good);
        let (newest, newer) = catalogue.newest().unwrap();
        assert_eq!(newest.unwrap().label.to_string(), good);
        assert_eq!(newer.len(), 1);
    }

    fn prove(dir: &Path, label: &str, verdict: &str) {
        let text = format!(
            r#"{{"format":1,"label":"{label}","at":"2026-11-20T03:00:00Z","drctl-version":"1","verdict":"{verdict}"}}"#
        );
        fs::write(dir.join(label).join("proof.json"), text).unwrap();
    }

    #[test]
    fn a_set_whose_verification_failed_is_passed_over_until_one_passes() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = ("20261120T020000Z", "20261121T020000Z");
        for label in [old, new] {
            put(dir.path(), label, Some(with_facts(&manifest(label))));
        }
        let catalogue = Catalogue::open(dir.path(), "d");
        let latest = || catalogue.find("latest").unwrap().label.to_string();
        assert_eq!(latest(), new);
        prove(dir.path(), new, "fail");
        let entries = catalogue.list().unwrap();
        assert_eq!(entries[1].state(), "failed");
        assert!(entries[1].unusable().unwrap().contains("failed at 2026-11-20"));
        assert_eq!(latest(), old);
        let (newest, newer) = catalogue.newest().unwrap();
        assert_eq!(newest.unwrap().label.to_string(), old);
        assert_eq!(newer.len(), 1);
        // By its name, to be looked at again.
        assert!(catalogue.find(new).unwrap().failure().is_some());
        let later: Label = "20261122T020000Z".parse().unwrap();
        let baseline = |dumps| {
            catalogue
                .baseline(&later, dumps)
                .unwrap()
                .map(|s| s.label.to_string())
        };
        assert_eq!(baseline(false).as_deref(), Some(old));
        assert_eq!(baseline(true), None);
        prove(dir.path(), new, "pass");
        assert_eq!(latest(), new);
        // The record of another set says nothing.
        fs::copy(
            dir.path().join(new).join("proof.json"),
            dir.path().join(old).join("proof.json"),
        )
        .unwrap();
        assert_eq!(catalogue.find(old).unwrap().proof, None);
    }

    #[test]
    fn sets_of_another_deployment_are_no_sets_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = ("20261120T020000Z", "20261121T020000Z");
        put(dir.path(), ours, Some(with_facts(&manifest(ours))));
        let foreign = |label: &str| with_facts(&manifest(label)).replace("\"d\"", "\"e\"");
        put(dir.path(), theirs, Some(foreign(theirs)));
        // Of a format that this drctl does not read, and one that was not believed.
        let newer = "20261122T020000Z";
        put(
            dir.path(),
            newer,
            Some(foreign(newer).replace("\"format\":1", "\"format\":9")),
        );
        let aside = "20261123T020000Z";
        put(dir.path(), &format!("{aside}{SUSPECT}"), Some(foreign(aside)));
        let catalogue = Catalogue::open(dir.path(), "d");
        let states: Vec<&str> = catalogue.list().unwrap().iter().map(Entry::state).collect();
        assert_eq!(states, ["good", "foreign", "foreign", "foreign"]);
        assert_eq!(catalogue.find("latest").unwrap().label.to_string(), ours);
        let (newest, newer) = catalogue.newest().unwrap();
        assert_eq!(newest.unwrap().label.to_string(), ours);
        assert!(newer.is_empty());
        assert!(matches!(
            catalogue.find(theirs),
            Err(CatalogueError::Foreign { deployment, .. }) if deployment == "e"
        ));
        let later: Label = "20261124T020000Z".parse().unwrap();
        let before = catalogue.baseline(&later, false).unwrap().unwrap();
        assert_eq!(before.label.to_string(), ours);
        // Their names are taken all the same.
        let taken = catalogue
            .fresh_label("2026-11-21T02:00:00Z".parse().unwrap())
            .unwrap();
        assert_eq!(taken.to_string(), "20261121T020000Z-2");
        assert!(Catalogue::open(dir.path(), "f").sets().unwrap().is_empty());
    }
}
