//! What a backup set says about itself: `manifest.json`, written last. A directory without
//! one is not a backup set, whatever else it holds.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Label;
use crate::postgres::{Lsn, Properties};
use crate::probe::facts::DatabaseFacts;

/// Version of the manifest's format. A reader refuses any other.
pub const FORMAT: u32 = 1;
/// The manifest's file name in a set.
pub const FILE_NAME: &str = "manifest.json";

/// A copied server without facts, as it stands in a manifest.
#[cfg(test)]
pub const A_SERVER: &str = r#""db":{"server-version":"15","server-version-number":150020,"system-identifier":"1",
    "timeline":1,"wal-segment-size":16777216,"data-checksums":true,"image":"p","image-id":"sha256:1","data-dir":"/d",
    "owner":"1:1","start-lsn":"0/1","end-lsn":"0/2","globals":null,"logical":{},"physical":{"path":"postgres/base",
    "bytes":0,"files":0,"start-lsn":"0/1","end-lsn":"0/2","timeline":1,"start-segment":"000000010000000000000001",
    "finished":"2026-11-20T02:01:00Z","seconds":1.0},"facts":{}}"#;

/// The record of one backup set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// Always [`FORMAT`].
    pub format: u32,
    /// The deployment that was backed up.
    pub deployment: String,
    /// The set's name, also the name of its directory.
    pub label: Label,
    /// When the run began.
    pub started: Timestamp,
    /// When the last byte of the last part was on disk.
    pub finished: Timestamp,
    /// Version of the drctl that made it.
    pub drctl_version: String,
    /// Size of the whole set in bytes, this file left out.
    pub bytes: u64,
    /// Seconds between the earliest and the latest moment that a part of the set shows. The
    /// parts are each consistent in themselves, and apart from each other by this much.
    pub skew_seconds: f64,
    /// What was saved of each PostgreSQL service.
    pub postgres: BTreeMap<String, PostgresPart>,
    /// Files with a digest of ours, in the order of their paths. Files of a base backup are
    /// missing here: PostgreSQL's own `backup_manifest`, which is listed, has their checksums.
    pub files: Vec<FileDigest>,
}

/// What was saved of one PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PostgresPart {
    /// `server_version`, as `15.20 (Debian 15.20-1)`.
    pub server_version: String,
    /// `server_version_num`, as 150020. A physical restore needs the same major version.
    pub server_version_number: u32,
    /// `pg_control_system()`: the same number means the same cluster.
    pub system_identifier: String,
    /// Timeline at the start.
    pub timeline: u32,
    /// Bytes of one WAL segment.
    pub wal_segment_size: u64,
    /// Whether pages carry checksums (`data_checksums`).
    pub data_checksums: bool,
    /// The container's image as it was asked for, as `postgres:15`.
    pub image: String,
    /// The image that really ran (`sha256:…`).
    pub image_id: String,
    /// Data directory inside the container.
    pub data_dir: String,
    /// `uid:gid` of the data directory: a restored one must belong to them.
    pub owner: String,
    /// WAL position when the run began.
    pub start_lsn: Lsn,
    /// WAL position when the run was done.
    pub end_lsn: Lsn,
    /// Roles, their settings and memberships, as SQL. Holds password hashes.
    pub globals: Option<String>,
    /// Dumps by database.
    pub logical: BTreeMap<String, LogicalPart>,
    /// The copy of the whole server.
    pub physical: Option<PhysicalPart>,
    /// What was true of each database, for later comparison.
    pub facts: BTreeMap<String, DatabaseFacts>,
}

/// One database's dump.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LogicalPart {
    /// Directory of the dump (`pg_dump --format=directory`), relative to the set.
    pub path: String,
    /// File with the properties of the database that the dump leaves out (settings, access
    /// rights, comment), relative to the set.
    pub settings: String,
    /// Size on disk.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
    /// When the dump's snapshot was taken, at the earliest.
    pub snapshot_at: Timestamp,
    /// WAL position just before the snapshot.
    pub lsn: Lsn,
    /// Tables dumped at once.
    pub jobs: u32,
    /// Seconds it took.
    pub seconds: f64,
    /// Tables with data in the dump's table of contents.
    pub tables: u64,
    /// Size of the database on the server (`pg_database_size`).
    pub database_bytes: u64,
    /// `pg_encoding_to_char`, as `UTF8`.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// The database's owner.
    pub owner: String,
    /// `datlocprovider`: `c` (the C library), `i` (ICU), `b` (built in). None before PostgreSQL 15,
    /// and in manifests that did not record it; so are those that follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale_provider: Option<String>,
    /// The locale of a provider other than the C library.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// Rules beside an ICU locale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icu_rules: Option<String>,
    /// The database's tablespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tablespace: Option<String>,
    /// Exact row counts by `schema.table`, counted in a snapshot just before the dump's.
    pub table_rows: BTreeMap<String, u64>,
}

impl LogicalPart {
    /// What the database was made with.
    #[must_use]
    pub fn properties(&self) -> Properties {
        Properties {
            encoding: self.encoding.clone(),
            collate: self.collate.clone(),
            ctype: self.ctype.clone(),
            owner: self.owner.clone(),
            provider: self.locale_provider.clone(),
            locale: self.locale.clone(),
            icu_rules: self.icu_rules.clone(),
            tablespace: self.tablespace.clone(),
        }
    }
}

/// The copy of a whole server (`pg_basebackup`, plain format, with its WAL).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PhysicalPart {
    /// Directory, relative to the set: a data directory.
    pub path: String,
    /// Size on disk.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
    /// Replay must begin here.
    pub start_lsn: Lsn,
    /// Replay must reach at least here.
    pub end_lsn: Lsn,
    /// Timeline of both.
    pub timeline: u32,
    /// The WAL segment that holds `start_lsn`.
    pub start_segment: String,
    /// When it was complete: it shows the server at about this moment.
    pub finished: Timestamp,
    /// Seconds it took, its verification left out.
    pub seconds: f64,
}

/// A file of the set and its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileDigest {
    /// Path relative to the set.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256, lower case hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// The dumps of all services: service, database, dump.
    pub fn dumps(&self) -> impl Iterator<Item = (&str, &str, &LogicalPart)> {
        self.postgres
            .iter()
            .flat_map(|(s, p)| p.logical.iter().map(move |(db, l)| (s.as_str(), db.as_str(), l)))
    }

    /// Bytes of all dumps.
    #[must_use]
    pub fn logical_bytes(&self) -> u64 {
        self.dumps().map(|(.., l)| l.bytes).sum()
    }

    /// Bytes of all base backups.
    #[must_use]
    pub fn physical_bytes(&self) -> u64 {
        self.postgres
            .values()
            .filter_map(|p| p.physical.as_ref())
            .map(|p| p.bytes)
            .sum()
    }

    /// `dump`, `base`, `dump+base`: what the set holds.
    #[must_use]
    pub fn parts(&self) -> String {
        let mut parts = Vec::new();
        if self.dumps().next().is_some() {
            parts.push("dump");
        }
        if self.postgres.values().any(|p| p.physical.is_some()) {
            parts.push("base");
        }
        parts.join("+")
    }
}
