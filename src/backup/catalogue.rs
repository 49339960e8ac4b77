//! The sets in a backup directory. Only what is there counts: there is no index that could
//! disagree with the directories.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::label::{Label, NotALabel};
use super::manifest::{self, Manifest};

/// Ending of a set that is being written, or that a killed run left.
pub const PARTIAL: &str = ".partial";
/// Ending of a set that was written and not believed.
pub const SUSPECT: &str = ".suspect";
/// What a manifest is called from the moment at which the removal of its set begins.
pub const PRUNED: &str = "pruned.json";
/// A manifest is small; more than this is not one.
const MANIFEST_LIMIT: u64 = 256 << 20;

/// A backup directory.
#[derive(Debug, Clone)]
pub struct Catalogue {
    directory: PathBuf,
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
}

/// What stands in a backup directory under a set's name.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A set.
    Set(Box<Set>),
    /// A directory whose manifest is missing, unreadable or another's.
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
            Self::Set(set) => &set.label,
            Self::Damaged { label, .. }
            | Self::Partial { label, .. }
            | Self::Pruned { label, .. }
            | Self::Suspect { label, .. } => label,
        }
    }

    /// `good`, `damaged`, `partial`, `pruned`, `suspect`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self {
            Self::Set(_) => "good",
            Self::Damaged { .. } => "damaged",
            Self::Partial { .. } => "partial",
            Self::Pruned { .. } => "pruned",
            Self::Suspect { .. } => "suspect",
        }
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
}

impl CatalogueError {
    /// True when what was asked for is there and is damaged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Unusable { .. })
    }
}

impl Catalogue {
    /// The sets in `directory`. A directory that does not exist yet holds none.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
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
            let label = label.parse().ok()?;
            return Some(Entry::Suspect { label, path });
        }
        let label: Label = name.parse().ok()?;
        Some(match read_manifest(&path, &label) {
            Ok(manifest) => Entry::Set(Box::new(Set {
                label,
                path,
                manifest,
            })),
            Err(_) if is_pruned(&path) => Entry::Pruned { label, path },
            Err(why) => Entry::Damaged { label, path, why },
        })
    }

    /// The good sets, oldest first.
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
                Some(other) => newer.push(other),
                None => {}
            }
        }
        Ok((None, newer))
    }

    /// The set called `name`, or the newest good one for `latest`.
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
            .min_by_key(|e| !matches!(e, Entry::Set(_)));
        match named {
            Some(Entry::Set(set)) => Ok(*set),
            Some(Entry::Damaged { path, why, .. }) => Err(CatalogueError::Unusable { path, why }),
            Some(Entry::Partial { path, .. }) => Err(CatalogueError::Unusable {
                path,
                why: "it was not finished".into(),
            }),
            Some(Entry::Pruned { path, .. }) => Err(CatalogueError::Unusable {
                path,
                why: "its removal has begun (drctl backup prune finishes it)".into(),
            }),
            Some(Entry::Suspect { path, .. }) => Err(CatalogueError::Unusable {
                path,
                why: "it was kept aside because it is empty or smaller than it should be".into(),
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

    /// The newest good set that is older than `label`.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn before(&self, label: &Label) -> Result<Option<Set>, CatalogueError> {
        Ok(self.sets()?.into_iter().rfind(|s| &s.label < label))
    }

    /// The set that a dump made as `label` is measured against: the newest good one before it
    /// that holds a dump. A set of a server's copy alone has nothing to compare.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn baseline(&self, label: &Label) -> Result<Option<Set>, CatalogueError> {
        Ok(self
            .sets()?
            .into_iter()
            .rfind(|s| &s.label < label && s.manifest.dumps().next().is_some()))
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

fn read_manifest(path: &Path, label: &Label) -> Result<Manifest, String> {
    let file = path.join(manifest::FILE_NAME);
    let size = match fs::metadata(&file) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err("it has no manifest.json".into()),
        Err(e) => return Err(format!("manifest.json: {e}")),
    };
    if size > MANIFEST_LIMIT {
        return Err(format!("manifest.json is {size} bytes long: that is no manifest"));
    }
    let text = fs::read(&file).map_err(|e| format!("manifest.json: {e}"))?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| format!("manifest.json: {e}"))?;
    // Said before the shape is looked at: a newer format has fields that are unknown here.
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(manifest::FORMAT) => {}
        Some(format) => {
            return Err(format!(
                "manifest.json has format {format}; this drctl reads format {}",
                manifest::FORMAT
            ));
        }
        None => return Err("manifest.json names no format".into()),
    }
    let manifest: Manifest = serde_json::from_value(value).map_err(|e| format!("manifest.json: {e}"))?;
    if &manifest.label != label {
        return Err(format!("its manifest is that of {}", manifest.label));
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
            "postgres":{{}},"files":[]}}"#
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

        let catalogue = Catalogue::open(dir.path());
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
        assert!(catalogue.before(&newer.parse().unwrap()).unwrap().is_some());
        assert!(catalogue.before(&good.parse().unwrap()).unwrap().is_none());
        let taken = catalogue
            .fresh_label("2026-11-20T02:00:00Z".parse().unwrap())
            .unwrap();
        assert_eq!(taken.to_string(), "20261120T020000Z-2");
    }

    #[test]
    fn an_absent_directory_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(&dir.path().join("none"));
        assert!(catalogue.list().unwrap().is_empty());
        assert!(matches!(
            catalogue.find("latest"),
            Err(CatalogueError::Empty { .. })
        ));
    }
}
