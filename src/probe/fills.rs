//! What fills a disk: a server's write-ahead log and who holds it back, temporary files, the
//! containers' logs, images that nobody uses.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::connection::{self, Connection};
use super::containers::ContainerState;
use super::disk::size_of;
use super::logs::{self, LogFinding};
use crate::postgres::Client;
use crate::system::{PostgresServer, System};

/// Words of a server that are older say nothing of now.
const RECENT: SignedDuration = SignedDuration::from_mins(5);
/// Lines of its log that are looked at for them.
const LINES: usize = 2000;

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// `physical` or `logical`.
    pub kind: String,
    /// Somebody reads from it now.
    pub active: bool,
    /// Bytes of log that it keeps from being removed.
    pub retains: u64,
}

/// What the server says of its log and its temporary files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Wal {
    /// Bytes of one segment.
    pub segment: u64,
    /// Bytes of `max_wal_size`: what a checkpoint aims at.
    pub max: u64,
    /// Bytes of `wal_keep_size`.
    pub keep: u64,
    /// Its slots, the one that holds back most first.
    pub slots: Vec<Slot>,
    /// The segment that `archive_command` could not put away, when the last attempt failed.
    pub archive_fails: Option<String>,
}

/// Words that look like a full disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// `could not resize shared memory segment`.
    SharedMemory,
    /// `temporary file size exceeds "temp_file_limit"`.
    TempFileLimit,
    /// `Read-only file system`.
    ReadOnly,
    /// `Disk quota exceeded`.
    Quota,
}

/// In the server's words; the first that matches counts.
const WORDS: &[(Word, &[&str])] = &[
    (
        Word::SharedMemory,
        &[
            "could not resize shared memory segment",
            "could not resize dynamic shared memory segment",
            "could not map dynamic shared memory segment",
        ],
    ),
    (Word::TempFileLimit, &["temp_file_limit"]),
    (Word::ReadOnly, &["Read-only file system"]),
    (Word::Quota, &["Disk quota exceeded"]),
];

/// What is known of a PostgreSQL server on a disk that may be full.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Database {
    /// What its log says of its last run.
    pub log: Vec<LogFinding>,
    /// Whether it lets the administrator in.
    pub connection: Connection,
    /// What it says itself; `None` when it does not answer.
    pub wal: Option<Wal>,
    /// Bytes in `pg_wal`.
    pub wal_bytes: Option<u64>,
    /// Bytes of temporary files.
    pub temporary_bytes: Option<u64>,
    /// Names of its slots as they lie on the disk, when it cannot say more of them itself.
    pub slot_names: Vec<String>,
    /// Bytes used of `/dev/shm` and its size, when it runs.
    pub shared_memory: Option<(u64, u64)>,
    /// What it said lately that looks like a full disk, and the line; the latest last.
    pub words: Vec<(Word, String)>,
}

/// A container's log on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ContainerLog {
    /// Service.
    pub service: String,
    /// Container.
    pub container: String,
    /// The file.
    pub path: String,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// An image that lost its name and that no container uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OldImage {
    /// Its identifier.
    pub id: String,
    /// Bytes of all its layers; those that another image has too stay.
    pub bytes: u64,
    /// Bytes that go with it for certain; 0 where the engine does not tell.
    #[serde(default)]
    pub own_bytes: u64,
}

const WAL: &str = "select pg_size_bytes(current_setting('wal_segment_size')), pg_size_bytes(current_setting('max_wal_size')), \
    coalesce(pg_size_bytes(current_setting('wal_keep_size', true)), 0), \
    (select last_failed_wal from pg_catalog.pg_stat_archiver where current_setting('archive_mode') <> 'off' \
       and last_failed_time > coalesce(last_archived_time, '-infinity'))";
const SLOTS: &str = "select slot_name, slot_type, active, \
    greatest(0, pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, \
      restart_lsn))::bigint from pg_catalog.pg_replication_slots where restart_lsn is not null order by 4 desc";
const FILES: &str =
    "select (select sum(size) from pg_ls_waldir())::bigint, (select sum(size) from pg_ls_tmpdir())::bigint";

async fn ask(client: &Client) -> Option<(Wal, Option<u64>, Option<u64>)> {
    let rows = client.rows(WAL).await.ok()?;
    let row = rows.first()?;
    let slots = client.rows(SLOTS).await.unwrap_or_default();
    let files = client.rows(FILES).await.unwrap_or_default();
    let size = |column| files.first().and_then(|r| r.number(column));
    Some((
        Wal {
            segment: row.number(0)?,
            max: row.number(1)?,
            keep: row.number(2).unwrap_or_default(),
            archive_fails: row.opt(3).map(str::to_owned),
            slots: slots
                .iter()
                .map(|r| Slot {
                    name: r.text(0).to_owned(),
                    kind: r.text(1).to_owned(),
                    active: r.is_true(2),
                    retains: r.number(3).unwrap_or_default(),
                })
                .collect(),
        },
        size(0),
        // No temporary file is no row.
        Some(size(1).unwrap_or_default()),
    ))
}

/// Looks at a server. Nothing is changed, and none of it needs room.
pub async fn database(system: &System, server: &PostgresServer) -> Database {
    let deadline = system.runbook.deadlines.probe;
    let (log, (connection, client), words, shared_memory) = tokio::join!(
        logs::read(&system.docker, &server.container),
        async { connection::question(server.connect().await).await },
        words(system, server),
        super::files::shared_memory(system, server, deadline),
    );
    let asked = match &client {
        Some(client) => ask(client).await,
        None => None,
    };
    let (wal, mut wal_bytes, mut temporary_bytes) = match asked {
        Some((wal, wal_bytes, temporary)) => (Some(wal), wal_bytes, temporary),
        None => (None, None, None),
    };
    let mut slot_names = Vec::new();
    // The server cannot say it: its files can, where they are on this machine.
    if wal_bytes.is_none()
        && system.docker.is_local()
        && let Some(mount) = server.container.mount_of(&server.data_dir)
    {
        let inside = server
            .data_dir
            .strip_prefix(&mount.destination)
            .unwrap_or_default();
        let data = std::path::Path::new(&mount.source).join(inside.trim_start_matches('/'));
        wal_bytes = size_of(data.join("pg_wal")).await;
        temporary_bytes = size_of(data.join("base/pgsql_tmp")).await.or(Some(0));
        slot_names = std::fs::read_dir(data.join("pg_replslot"))
            .into_iter()
            .flatten()
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .collect();
        slot_names.sort();
    }
    Database {
        log: log.unwrap_or_default(),
        connection,
        wal,
        wal_bytes,
        temporary_bytes,
        slot_names,
        shared_memory,
        words,
    }
}

/// What the server said lately that looks like a full disk.
async fn words(system: &System, server: &PostgresServer) -> Vec<(Word, String)> {
    let since = Timestamp::now().checked_sub(RECENT).ok();
    let lines = system
        .docker
        .logs(&server.container.id, since, LINES)
        .await
        .unwrap_or_default();
    let mut found: Vec<(Word, String)> = Vec::new();
    for line in lines {
        // A statement that speaks of these words is the user's, and not kept.
        if ["STATEMENT:", "QUERY:", "CONTEXT:", "HINT:"]
            .iter()
            .any(|s| line.text.contains(s))
        {
            continue;
        }
        let word = WORDS
            .iter()
            .find(|(_, texts)| texts.iter().any(|t| line.text.contains(t)));
        if let Some((word, _)) = word {
            found.retain(|(w, _)| w != word);
            found.push((*word, line.text.trim().chars().take(400).collect()));
        }
    }
    found
}

/// The logs of the services' containers, where the engine keeps them on this machine and drctl
/// may read them; the largest first.
pub async fn logs_of(system: &System, containers: &BTreeMap<String, ContainerState>) -> Vec<ContainerLog> {
    let mut found = Vec::new();
    if !system.docker.is_local() {
        return found;
    }
    for (service, state) in containers {
        let Some(facts) = state.found() else { continue };
        let Ok(Some(path)) = system.docker.log_file(&facts.info.id).await else {
            continue;
        };
        let Ok(meta) = std::fs::metadata(&path) else {
            continue;
        };
        found.push(ContainerLog {
            service: service.clone(),
            container: facts.info.name.clone(),
            path: path.display().to_string(),
            bytes: std::os::unix::fs::MetadataExt::blocks(&meta) * 512,
        });
    }
    found.sort_by_key(|l| std::cmp::Reverse(l.bytes));
    found
}
