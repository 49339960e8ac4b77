//! What is observed of a database server that may be damaged. Only facts: what they mean
//! is decided in `diagnose`, so that a plan can be made again from a saved file.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::postgres::Lsn;
pub use crate::probe::connection::Connection;
pub use crate::probe::control::ControlData;
pub use crate::probe::counts::EmptyPages;
use crate::probe::facts::DatabaseFacts;
pub use crate::probe::files::FileFacts;
pub use crate::probe::logs::{LogFinding, LogPattern};
pub use crate::probe::relations::{Check, RelationFinding, RelationKind};
pub use crate::probe::slots::SlotFacts;
use crate::workload::ContainerInfo;

/// Version of the persisted form.
pub const EVIDENCE_FORMAT: u32 = 1;

/// Everything that was observed, in one value.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// [`EVIDENCE_FORMAT`].
    pub format: u32,
    /// When observing began.
    pub taken_at: Timestamp,
    /// How long observing took, in milliseconds.
    pub took_ms: u64,
    /// Whether every table was read in full.
    pub deep: bool,
    /// The service in the runbook.
    pub service: String,
    /// Its container.
    pub container: ContainerInfo,
    /// What the log of the last run says, newest last.
    pub log: Vec<LogFinding>,
    /// A session as the administrator.
    pub connection: Connection,
    /// `pg_controldata`, or why it could not be read.
    pub control: Result<ControlData, String>,
    /// The data directory, or why it could not be looked at.
    pub files: Result<FileFacts, String>,
    /// Connection slots, when a session was possible.
    pub slots: Option<SlotFacts>,
    /// Per database of the runbook.
    pub databases: BTreeMap<String, DatabaseEvidence>,
    /// Every database of the server but its templates, when a session was possible. Evidence
    /// of an older format has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub present: Vec<String>,
    /// Logical replication from or to its databases, when a session was possible. Evidence of an
    /// older format has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logical: Vec<LogicalLink>,
    /// Backup sets, newest first.
    pub backups: Vec<BackupEvidence>,
    /// Sets that cannot be used: label and why.
    pub unusable_backups: Vec<(String, String)>,
}

/// One end of a logical replication. It is bound to its database itself, not to the name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LogicalLink {
    /// Database.
    pub database: String,
    /// Name of the subscription or of the slot.
    pub name: String,
    /// What it is.
    pub end: LogicalEnd,
}

/// An end of a logical replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogicalEnd {
    /// The database fetches (`pg_subscription`).
    Subscription,
    /// Somebody fetches from the database (`pg_replication_slots`).
    Slot,
}

/// What is observed of one database.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DatabaseEvidence {
    /// A session to it.
    pub connection: Connection,
    /// `pg_stat_database.checksum_failures`; lost at a crash.
    pub checksum_failures: Option<u64>,
    /// Relations that were examined.
    pub examined: u32,
    /// Relations that were to be examined and were not at all, for want of time, of a lock or
    /// of a session. Evidence of an older format has none.
    #[serde(default)]
    pub unfinished: u32,
    /// What could not be examined, and why.
    pub not_examined: Vec<(String, String)>,
    /// What is wrong.
    pub findings: Vec<RelationFinding>,
    /// Sizes, row counts and newest rows now.
    pub facts: Option<DatabaseFacts>,
    /// Pages of zeros that may be new ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub empty_pages: Vec<EmptyPages>,
}

/// What a backup set offers for this service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BackupEvidence {
    /// Label.
    pub label: String,
    /// Directory on the engine's host.
    pub path: String,
    /// When the data in it was current: the start of the snapshot.
    pub taken_at: Timestamp,
    /// Server version number it was taken from.
    pub version: u32,
    /// System identifier it was taken from.
    pub system_identifier: String,
    /// Timeline that the server was on; 0 where that was not recorded.
    #[serde(default)]
    pub timeline: u32,
    /// Dumps: database → directory and bytes.
    pub dumps: BTreeMap<String, (String, u64)>,
    /// The base backup.
    pub base: Option<BaseEvidence>,
    /// What was recorded then, per database.
    pub facts: BTreeMap<String, DatabaseFacts>,
    /// How long taking the dump and the base took, in seconds, for estimates.
    pub dump_seconds: Option<f64>,
    /// As above, for the base backup.
    pub base_seconds: Option<f64>,
}

/// A base backup in a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BaseEvidence {
    /// Directory on the engine's host.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// First WAL segment that it needs.
    pub first_segment: String,
    /// Where it starts.
    pub start: Lsn,
    /// Where it is consistent.
    pub end: Lsn,
    /// Timeline.
    pub timeline: u32,
}
