//! The record of one injected fault: `<state>/drills/<id>/fault.json`. It is on disk,
//! with everything that healing needs, before the fault is.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::db_corruption::Damage;
use super::mend::Mend;
use crate::error::{Error, Kind, Result};
use crate::incident::{StateDir, write_atomically};

/// Version of the file's format; raised when a field changes its meaning.
pub const FORMAT: u32 = 1;
const FILE: &str = "fault.json";

/// How far a fault has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Written down; may have been begun.
    Planned,
    /// In force.
    Injected,
    /// Put right by `drill heal`.
    Healed,
    /// Found gone: a recovery has replaced what was damaged, or its time ran out.
    Gone,
    /// Given up by `drill heal --forget`.
    Forgotten,
}

impl Status {
    /// True while there may be something to heal.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Planned | Self::Injected)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Planned => "planned",
            Self::Injected => "injected",
            Self::Healed => "healed",
            Self::Gone => "gone",
            Self::Forgotten => "forgotten",
        })
    }
}

/// A table of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TableRef {
    /// Database.
    pub database: String,
    /// Table, qualified and quoted.
    pub table: String,
}

/// How a fault is put right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Heal {
    /// The saved original goes back, if what the fault left is still in its place.
    Files {
        /// What was done.
        damage: Damage,
        /// Where the original is, as the container sees it.
        saved: String,
        /// Whether the server must be stopped meanwhile.
        offline: bool,
        /// The table whose indexes are built again afterwards. Index scans that met
        /// rows which were not there have marked their entries as dead, and a row that
        /// comes back would not be found through them.
        reindex: Option<TableRef>,
    },
    /// The index is built again, if it still is the file that was damaged.
    Reindex {
        /// Database.
        database: String,
        /// Index, qualified and quoted.
        index: String,
        /// `pg_relation_filenode` of the index: another one has been built since.
        filenode: String,
    },
    /// Small effects on running services, each put right by itself.
    Mend {
        /// In order.
        mends: Vec<Mend>,
    },
    /// The container is started.
    Start,
    /// The table that the fault has made is dropped.
    DropTable {
        /// The table.
        table: TableRef,
    },
    /// A file in the container's shared memory is removed.
    FreeSharedMemory {
        /// The file.
        file: String,
    },
    /// The helper that holds the sessions is removed, and the role that it used.
    EndSessions {
        /// The role.
        role: String,
    },
}

/// One fault in one deployment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Record {
    /// `FORMAT`.
    pub format: u32,
    /// Identity: the directory's name, and the label of every helper.
    pub id: String,
    /// The deployment.
    pub deployment: String,
    /// `db-corruption/heap-page`.
    pub fault: String,
    /// The service.
    pub service: String,
    /// Its container when the fault was planned.
    pub container: String,
    /// What was hit, for a person.
    pub target: String,
    /// How it is put right.
    pub heal: Heal,
    /// How far it has come.
    pub status: Status,
    /// What the last attempt to inject or heal ended with, where there is more to say.
    pub note: Option<String>,
    /// When this record was first written, before the fault.
    pub planned_at: Timestamp,
    /// When the fault was in force.
    pub injected_at: Option<Timestamp>,
    /// When it was healed or found gone.
    pub ended_at: Option<Timestamp>,
    /// When its time to live is over.
    pub expires_at: Option<Timestamp>,
}

impl Record {
    /// Writes the record so that the next boot sees it.
    ///
    /// # Errors
    /// A state directory that cannot be written; the effect must not follow then.
    pub fn save(&self, state: &StateDir) -> Result<()> {
        let dir = state
            .subdirectory("drills")
            .and_then(|_| state.subdirectory(&format!("drills/{}", self.id)))
            .map_err(|e| unwritable(&self.id, &e))?;
        let text = serde_json::to_vec_pretty(self).map_err(|e| unwritable(&self.id, &e))?;
        write_atomically(&dir.join(FILE), &text).map_err(|e| unwritable(&self.id, &e))
    }
}

fn unwritable(id: &str, e: &(dyn std::error::Error + 'static)) -> Error {
    Error::new(
        Kind::Internal,
        format!("the record of fault {id} could not be written"),
    )
    .because(e)
    .untouched("the deployment: no fault is injected that is not on record first")
    .next("drctl --state-dir DIR drill inject …    # a directory that can be written")
}

/// Every record of a deployment, oldest first, and the files that could not be read.
///
/// # Errors
/// A state directory that cannot be read at all.
pub fn all(state: &StateDir, deployment: &str) -> Result<(Vec<Record>, Vec<String>)> {
    let dir: PathBuf = state.path().join("drills");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        Err(e) => {
            return Err(Error::new(
                Kind::Internal,
                format!("the records of drills in {} cannot be read", dir.display()),
            )
            .because(&e));
        }
    };
    let (mut records, mut unreadable) = (Vec::new(), Vec::new());
    for entry in entries.flatten() {
        let path = entry.path().join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            // A drill that injected nothing.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => {
                unreadable.push(format!("{}: {e}", path.display()));
                continue;
            }
        };
        match serde_json::from_slice::<Record>(&text) {
            Ok(r) if r.format != FORMAT => unreadable.push(format!(
                "{}: format {}, this drctl knows {FORMAT}",
                path.display(),
                r.format
            )),
            Ok(r) if r.deployment == deployment => records.push(r),
            Ok(_) => {}
            Err(e) => unreadable.push(format!("{}: {e}", path.display())),
        }
    }
    records.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((records, unreadable))
}

/// The record of fault `id`; `None` where there is none.
///
/// # Errors
/// One that cannot be read.
pub fn find(state: &StateDir, id: &str) -> Result<Option<Record>> {
    let path = state.path().join("drills").join(id).join(FILE);
    let unreadable = |why: String| {
        Error::new(
            Kind::Internal,
            format!(
                "the record of fault {id}, {}, cannot be read: {why}",
                path.display()
            ),
        )
    };
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e.to_string())),
    };
    let record: Record = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
    if record.format != FORMAT {
        return Err(unreadable(format!(
            "format {}, this drctl knows {FORMAT}",
            record.format
        )));
    }
    Ok(Some(record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, deployment: &str) -> Record {
        Record {
            format: FORMAT,
            id: id.into(),
            deployment: deployment.into(),
            fault: "db-corruption/missing-segment".into(),
            service: "postgres".into(),
            container: "c".into(),
            target: "t".into(),
            heal: Heal::Files {
                damage: Damage::Remove {
                    path: "base/5/16384".into(),
                },
                saved: "/data/.drctl/fault-x".into(),
                offline: true,
                reindex: None,
            },
            status: Status::Planned,
            note: None,
            planned_at: Timestamp::UNIX_EPOCH,
            injected_at: None,
            ended_at: None,
            expires_at: None,
        }
    }

    #[test]
    fn records_of_other_deployments_and_torn_ones_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        assert!(all(&state, "simgen").unwrap().0.is_empty());
        for (id, deployment) in [("b", "simgen"), ("a", "simgen"), ("c", "other")] {
            record(id, deployment).save(&state).unwrap();
        }
        let torn = state.subdirectory("drills/torn").unwrap();
        std::fs::write(torn.join(FILE), "{\"format\": 1").unwrap();
        let (records, unreadable) = all(&state, "simgen").unwrap();
        assert_eq!(
            records.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(unreadable.len(), 1);
        assert!(unreadable[0].contains("torn"));
    }

    /// Every past version of the format stays readable or is refused by name.
    #[test]
    fn format_1_is_read() {
        let text = r#"{"format":1,"id":"i","deployment":"d","fault":"f","service":"s","container":"c","target":"t",
            "heal":{"end-sessions":{"role":"r"}},"status":"gone","note":null,"planned-at":"2026-11-20T18:30:12Z",
            "injected-at":null,"ended-at":null,"expires-at":"2026-11-20T19:30:12Z"}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert!(!record.status.is_open());
        assert!(serde_json::from_str::<Record>(&text.replace("\"note\"", "\"remark\"")).is_err());
    }
}
