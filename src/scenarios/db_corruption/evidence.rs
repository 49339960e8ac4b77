//! What is observed of a database server that may be damaged. Only facts: what they mean
//! is decided in `diagnose`, so that a plan can be made again from a saved file.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::postgres::{Lsn, PgError};
use crate::probe::facts::DatabaseFacts;
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
    /// Backup sets, newest first.
    pub backups: Vec<BackupEvidence>,
    /// Sets that cannot be used: label and why.
    pub unusable_backups: Vec<(String, String)>,
}

/// How an attempt to open a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connection {
    /// It works; the server's version number (`150013`) and start time.
    #[serde(rename_all = "kebab-case")]
    Open {
        /// `server_version_num`.
        version: u32,
        /// `pg_postmaster_start_time()`.
        started_at: Option<Timestamp>,
        /// `pg_is_in_recovery()`.
        in_recovery: bool,
    },
    /// The server refused, with its reason.
    #[serde(rename_all = "kebab-case")]
    Refused {
        /// SQLSTATE.
        sqlstate: String,
        /// The server's message and detail.
        message: String,
    },
    /// Nothing listens.
    #[serde(rename_all = "kebab-case")]
    Closed {
        /// The system's words.
        cause: String,
    },
    /// It accepts and does not answer within the deadline.
    Silent,
}

impl From<&PgError> for Connection {
    fn from(e: &PgError) -> Self {
        match e {
            PgError::Server { sqlstate, .. } => Self::Refused {
                sqlstate: sqlstate.clone(),
                message: e.to_string(),
            },
            PgError::Timeout { .. } => Self::Silent,
            PgError::NoConnection { cause, .. } | PgError::Broken { cause, .. } => {
                Self::Closed { cause: cause.clone() }
            }
        }
    }
}

/// What a log line stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogPattern {
    /// `invalid page in block`, `page verification failed`, other XX001/XX002 texts.
    DamagedPage,
    /// `incorrect checksum in control file`, missing or short `pg_control`.
    ControlFile,
    /// `could not locate a valid checkpoint record`, `invalid primary checkpoint record`.
    NoCheckpoint,
    /// Replay ended at damage: `incorrect prev-link`, `incorrect resource manager data
    /// checksum`, `invalid magic number` followed by readiness.
    ReplayEndedEarly,
    /// `could not access status of transaction`, `could not open file "pg_xact/…"`.
    TransactionStatus,
    /// `could not open file "base/…"`: a relation's file is gone.
    MissingFile,
    /// A configuration file is unreadable or wrong.
    Configuration,
    /// `Permission denied`, `has invalid permissions`, wrong owner.
    Permission,
    /// `database files are incompatible with server` by version.
    WrongVersion,
    /// `No space left on device` on the data or WAL.
    DiskFull,
    /// `could not resize shared memory segment`.
    SharedMemory,
    /// `sorry, too many clients already`, `remaining connection slots are reserved`.
    TooManyConnections,
    /// `redo starts at`, `database system was not properly shut down`.
    CrashRecovery,
    /// `database system is ready to accept connections`.
    Ready,
    /// Any other PANIC or FATAL of the server itself.
    OtherFatal,
}

/// One telling log line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LogFinding {
    /// What it stands for.
    pub pattern: LogPattern,
    /// When.
    pub at: Option<Timestamp>,
    /// The line.
    pub line: String,
}

/// `pg_controldata` (PostgreSQL manual, reference page of that name).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ControlData {
    /// Cluster state, as `in production`, `shut down`.
    pub state: String,
    /// System identifier.
    pub system_identifier: String,
    /// Latest checkpoint's REDO location.
    pub redo: Option<Lsn>,
    /// Latest checkpoint's timeline.
    pub timeline: u32,
    /// Next transaction, without its epoch.
    pub next_xid: u64,
    /// Data page checksum version; 0 is off.
    pub checksum_version: u32,
    /// Bytes per WAL segment.
    pub wal_segment_size: u64,
    /// True when `pg_controldata` warned that the checksum does not match.
    pub checksum_mismatch: bool,
}

/// The data directory as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileFacts {
    /// `uid:gid` of the data directory.
    pub owner: String,
    /// Octal mode of the data directory, as `700`.
    pub mode: String,
    /// Content of `PG_VERSION`.
    pub version: Option<String>,
    /// Major version of the server program in the image.
    pub program_version: Option<String>,
    /// Files and directories that are owned by someone else than the majority, or that
    /// the server's user cannot write; the first twenty.
    pub foreign: Vec<String>,
    /// Directories that a server needs and that are not there.
    pub missing_directories: Vec<String>,
    /// Names of files in `pg_wal` (segments and histories), sorted.
    pub wal: Vec<String>,
    /// Names of files in `pg_xact`, sorted.
    pub xact: Vec<String>,
    /// What `postgres -C` says against the configuration, when it refuses it.
    pub configuration_error: Option<String>,
    /// Bytes in the data directory, `.drctl` left out.
    pub data_bytes: u64,
    /// Bytes free on its file system.
    pub disk_free: u64,
    /// Bytes of its file system.
    pub disk_total: u64,
    /// Bytes used of `/dev/shm` and its size, when the container runs.
    pub shm: Option<(u64, u64)>,
}

/// Connection slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SlotFacts {
    /// `max_connections`.
    pub max: u32,
    /// `superuser_reserved_connections`.
    pub reserved: u32,
    /// Client backends now.
    pub used: u32,
    /// Of those, idle.
    pub idle: u32,
    /// Of those, idle in a transaction.
    pub idle_in_transaction: u32,
}

/// What a relation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelationKind {
    /// Table or materialised view.
    Heap,
    /// Index.
    Index,
    /// Out-of-line values of a table.
    Toast,
    /// Index of the out-of-line values.
    ToastIndex,
}

/// How a finding was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// `verify_heapam`.
    HeapStructure,
    /// `bt_index_check(…, heapallindexed)`.
    IndexStructure,
    /// Every row read, out-of-line values included.
    FullRead,
    /// Rows by the primary key's index against rows in the table, in one snapshot.
    IndexAgainstHeap,
    /// All-zero pages inside the file that are not new.
    ZeroPages,
    /// The file is not there or shorter than the catalogue says.
    FileSize,
}

/// Something wrong with one relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RelationFinding {
    /// `schema.name` of the relation.
    pub relation: String,
    /// What it is.
    pub kind: RelationKind,
    /// `schema.name` of the table it belongs to (itself for a table).
    pub table: String,
    /// How it was found.
    pub check: Check,
    /// SQLSTATE, when a statement failed.
    pub sqlstate: Option<String>,
    /// The server's words or ours.
    pub message: String,
    /// Damaged blocks of the relation, the first hundred.
    pub blocks: Vec<u64>,
    /// Rows known to be missing from the table, when countable.
    pub rows_missing: Option<u64>,
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
    /// What could not be examined, and why.
    pub not_examined: Vec<(String, String)>,
    /// What is wrong.
    pub findings: Vec<RelationFinding>,
    /// Sizes, row counts and newest rows now.
    pub facts: Option<DatabaseFacts>,
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
