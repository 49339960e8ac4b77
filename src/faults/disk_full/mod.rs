//! Full disks, and what only says so.
//!
//! A disk is filled to the brim only where it is small: on the machine's own disk the fault would
//! hit everybody. What fills it is files of the fault's own, whose names its record has.

mod mend;
mod sets;

use std::path::Path;
use std::time::Duration;

use super::db_corruption::memory;
use super::harm::{Harm, Prepared, victim};
use super::mend::Mend;
use super::server::{asking, session};
use super::{Fault, Request};
use crate::backup::Label;
use crate::error::{Error, Kind, Result};
use crate::event::bytes;
use crate::postgres::quote_literal;
use crate::probe::disk;
use crate::runbook::ServiceKind;
use crate::system::{PostgresServer, System};

pub use mend::{DiskMend, put_right};

/// Every fault of this family.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "disk-full/nearly-full",
        summary: "look-alike: a server's disk is nearly full, and enough is left",
        leaves: "`df` says 9x %, 256 MiB are free, everything works",
        live: false,
    },
    Fault {
        name: "disk-full/data-volume",
        summary: "a file fills the disk of a PostgreSQL server, until its log cannot grow",
        leaves: "PANIC `could not write to file \"pg_wal/xlogtemp…\": No space left on device`, a crash loop",
        live: false,
    },
    Fault {
        name: "disk-full/wal",
        summary: "a replication slot that nobody uses holds back the log until the disk is full",
        leaves: "the same, and a large pg_wal that no checkpoint makes smaller",
        live: false,
    },
    Fault {
        name: "disk-full/backups",
        summary: "old backup sets fill the disk of the backup directory",
        leaves: "the next backup is refused for want of room; the services run",
        live: false,
    },
    Fault {
        name: "disk-full/shm",
        summary: "look-alike: a server's shared memory is full, and a parallel query fails",
        leaves: "53100 `could not resize shared memory segment … No space left on device`; the disk is fine",
        live: true,
    },
    Fault {
        name: "disk-full/temp-file-limit",
        summary: "look-alike: a statement wants more temporary files than temp_file_limit allows",
        leaves: "53400 `temporary file size exceeds temp_file_limit`; the disk is fine",
        live: false,
    },
];

/// A disk that is larger is somebody's, and not filled.
const LARGEST: u64 = 8 << 30;
/// What is left: less than a segment of the log, and enough for records of drctl's own.
const LEAVE: u64 = 6 << 20;
/// What is left of one that is nearly full.
const LEAVE_ENOUGH: u64 = 256 << 20;
/// Bytes of log that the slot is made to hold back, at most.
const HELD_BACK: u64 = 256 << 20;
/// How long a server may take to meet the end of its disk.
const PATIENCE: Duration = Duration::from_secs(90);

/// One effect on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskHarm {
    /// A file beside the data takes all but so many bytes.
    Fill {
        /// Its name.
        file: String,
        /// Bytes that are left.
        leave: u64,
    },
    /// The server is made to begin new segments of its log until it ends.
    Exhaust,
    /// A slot is made, and log is written that it holds back.
    HoldWal {
        /// The slot.
        slot: String,
    },
    /// Copies of the newest backup set, with older labels, and a file that takes the rest.
    OldSets {
        /// The labels, as many as may be made.
        labels: Vec<Label>,
        /// The fault.
        id: String,
    },
    /// `/dev/shm` is filled, and a parallel query fails.
    SharedMemory {
        /// The fault.
        id: String,
    },
    /// `temp_file_limit` is low, and a sort fails.
    TempFileLimit,
}

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// No such service, one that does not run, a disk that is too large, no backup to copy.
pub async fn prepare(
    system: &System,
    variant: &str,
    service: Option<&str>,
    request: &Request,
    id: &str,
) -> Result<Option<Prepared>> {
    let is_postgres = |s: &crate::runbook::Service| matches!(s.kind, ServiceKind::Postgres(_));
    let (service, info) = victim(system, service, is_postgres).await?;
    let file = format!("drctl-fault-{id}");
    let fill = |leave| DiskHarm::Fill {
        file: file.clone(),
        leave,
    };
    let remove = DiskMend::Remove {
        service: service.clone(),
        file: file.clone(),
    };
    if matches!(variant, "nearly-full" | "data-volume" | "wal") {
        data_small_enough(system, &service).await?;
    }
    let mut target = format!("the disk of the data of {service}");
    let (harms, mends) = match variant {
        "nearly-full" => (vec![fill(LEAVE_ENOUGH)], vec![remove]),
        "data-volume" => (vec![fill(LEAVE), DiskHarm::Exhaust], vec![remove]),
        "wal" => {
            let slot = slot_name(id);
            (
                vec![
                    DiskHarm::HoldWal { slot: slot.clone() },
                    fill(LEAVE),
                    DiskHarm::Exhaust,
                ],
                vec![
                    remove,
                    DiskMend::DropSlot {
                        service: service.clone(),
                        slot,
                    },
                ],
            )
        }
        "backups" => {
            let directory = &system.runbook.backup.directory;
            small_enough(directory)?;
            target = format!("the disk of {}", directory.display());
            (
                vec![DiskHarm::OldSets {
                    labels: sets::older_labels(system)?,
                    id: id.to_owned(),
                }],
                vec![DiskMend::RemoveSets { id: id.to_owned() }],
            )
        }
        "shm" => {
            // Refuses where that would exceed the container's memory.
            memory::prepare(&system.postgres(&service).await?, request, id)?;
            target = format!("/dev/shm of container {}", info.name);
            (
                vec![DiskHarm::SharedMemory { id: id.to_owned() }],
                vec![DiskMend::FreeSharedMemory {
                    service: service.clone(),
                    file: memory::file(id),
                }],
            )
        }
        "temp-file-limit" => {
            target = format!("temp_file_limit of {service}");
            let before = mend::temp_file_limit(system, &service).await?;
            (
                vec![DiskHarm::TempFileLimit],
                vec![DiskMend::TempFileLimit {
                    service: service.clone(),
                    before,
                }],
            )
        }
        _ => return Ok(None),
    };
    Ok(Some(Prepared {
        target,
        container: info.name,
        harms: harms.into_iter().map(Harm::Disk).collect(),
        mends: mends.into_iter().map(Mend::Disk).collect(),
        service,
    }))
}

fn slot_name(id: &str) -> String {
    // Lower case, digits and underscores are what a slot's name may have.
    format!("drctl_fault_{}", id.to_lowercase().replace('-', "_"))
}

fn too_large(what: &str, size: u64) -> Error {
    Error::new(
        Kind::Refused,
        format!(
            "the disk of {what} has {}: to fill it would hit everybody on this machine",
            bytes(size)
        ),
    )
    .untouched("everything")
    .next("# put it on a small file system of its own, as tests/docker/disk_full.rs does")
}

fn small_enough(directory: &Path) -> Result<()> {
    let room = disk::room(directory).map_err(|e| {
        Error::new(
            Kind::Refused,
            format!("the disk of {} cannot be asked: {e}", directory.display()),
        )
        .untouched("everything")
    })?;
    if room.size > LARGEST {
        return Err(too_large(&directory.display().to_string(), room.size));
    }
    Ok(())
}

/// The same of a server's data, asked inside its container.
async fn data_small_enough(system: &System, service: &str) -> Result<()> {
    let server = system.postgres(service).await?;
    let room = disk::room_inside(system, &server.container, &server.data_dir)
        .await
        .map_err(|e| {
            Error::new(
                Kind::Refused,
                format!("the disk of the data of {service} cannot be asked: {e}"),
            )
            .untouched("everything")
        })?;
    if room.size > LARGEST {
        return Err(too_large(&format!("the data of {service}"), room.size));
    }
    Ok(())
}

/// Does it.
///
/// # Errors
/// What failed; the mend tells how to put right what was begun.
pub async fn apply(system: &System, service: &str, harm: &DiskHarm, request: &Request) -> Result<String> {
    match harm {
        DiskHarm::Fill { file, leave } => {
            let server = system.postgres(service).await?;
            fill(system, &server, file, *leave).await
        }
        DiskHarm::Exhaust => exhaust(system, service).await,
        DiskHarm::HoldWal { slot } => hold_wal(system, service, slot).await,
        DiskHarm::OldSets { labels, id } => {
            let (directory, deployment, labels, id) = (
                system.runbook.backup.directory.clone(),
                system.deployment().to_owned(),
                labels.clone(),
                id.clone(),
            );
            tokio::task::spawn_blocking(move || sets::old_sets(&directory, &deployment, &labels, &id))
                .await
                .unwrap_or_else(|e| Err(std::io::Error::other(e)))
                .map_err(|e| Error::new(Kind::FailedChanged, format!("old sets could not be made: {e}")))
        }
        DiskHarm::SharedMemory { id } => {
            let server = system.postgres(service).await?;
            memory::inject(system, &server, id, request.ttl).await?;
            fails_with(&server, "could not resize shared memory segment", PARALLEL).await
        }
        DiskHarm::TempFileLimit => {
            let server = system.postgres(service).await?;
            let client = session(&server, &server.admin.database).await?;
            for sql in [
                "alter system set temp_file_limit = '64kB'",
                "select pg_reload_conf()",
            ] {
                client
                    .execute(sql)
                    .await
                    .map_err(asking(&server, "the change of temp_file_limit"))?;
            }
            fails_with(&server, "temp_file_limit", SORT).await
        }
    }
}

const PARALLEL: &[&str] = &[
    "set parallel_setup_cost = 0",
    "set parallel_tuple_cost = 0",
    "set min_parallel_table_scan_size = 0",
    "set max_parallel_workers_per_gather = 4",
    "select count(*) from pg_class a join pg_attribute b on b.attrelid = a.oid",
];
const SORT: &[&str] = &[
    "set work_mem = '64kB'",
    "select g from generate_series(1, 500000) g order by g desc limit 1 offset 400000",
];

/// Runs statements until the server fails one with these words: a setting takes a moment.
async fn fails_with(server: &PostgresServer, words: &str, statements: &[&str]) -> Result<String> {
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let client = session(server, &server.admin.database).await?;
        for sql in statements {
            match client.execute(sql).await {
                Err(e) if e.to_string().contains(words) => return Ok(e.to_string()),
                _ => {}
            }
        }
        if tokio::time::Instant::now() >= end {
            return Err(Error::new(
                Kind::FailedChanged,
                format!("no statement failed with {words:?}"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Arguments: file, bytes that are left, bytes of the largest disk that is filled.
const FILL: &str = r#"
cd "$PGDATA" || exit 1
df -Pk . | tail -n 1 | { read -r _ size _ free _
  [ "$size" -le "$(($3 / 1024))" ] || { echo "$size" ; exit 3; }
  kib=$((free - $2 / 1024))
  [ "$kib" -gt 0 ] || exit 0
  fallocate -l "$((kib * 1024))" "$1" 2>/dev/null || dd if=/dev/zero of="$1" bs=1024 count="$kib" 2>/dev/null
  [ -s "$1" ] || { echo "nothing could be written" >&2; exit 1; }
  chown --reference=. "$1" 2>/dev/null
  exit 0; }
"#;

async fn helper(
    system: &System,
    server: &PostgresServer,
    purpose: &str,
    argv: &[&str],
) -> Result<crate::workload::HelperOutput> {
    let spec = server.files_helper(system.deployment(), purpose, purpose, false, argv);
    Ok(system.docker.run_helper(&spec, Duration::from_secs(120)).await?)
}

async fn fill(system: &System, server: &PostgresServer, file: &str, leave: u64) -> Result<String> {
    let (leave, largest) = (leave.to_string(), LARGEST.to_string());
    let argv = ["/bin/sh", "-c", FILL, "fill", file, &leave, &largest];
    let out = helper(system, server, "fault-fill", &argv).await?;
    match out.exit_code {
        0 => Ok(format!("{file} fills the disk")),
        3 => Err(too_large(
            &format!("the data of {}", server.service),
            out.stdout.trim().parse::<u64>().unwrap_or_default() << 10,
        )),
        _ => Err(Error::new(
            Kind::FailedChanged,
            format!("the disk could not be filled: {}", out.last_words()),
        )),
    }
}

/// New segments until none fits: those that were set aside for use again go first.
async fn exhaust(system: &System, service: &str) -> Result<String> {
    let end = tokio::time::Instant::now() + PATIENCE;
    let mut last = String::new();
    loop {
        let server = system.postgres(service).await?;
        if server.container.restart_count > 0 || !server.container.is_running() {
            return Ok(format!("{service} ended: {last}"));
        }
        let sql = "select pg_logical_emit_message(false, 'drctl', repeat('x', 1000000)), txid_current(), pg_switch_wal()";
        let tried = match server.connect_to(&server.admin.writable()).await {
            Ok(client) => client.execute(sql).await,
            Err(e) => Err(e),
        };
        if let Err(e) = tried {
            last = e.to_string();
        }
        if tokio::time::Instant::now() >= end {
            return Err(Error::new(
                Kind::FailedChanged,
                format!("{service} did not come to the end of its disk: {last}"),
            ));
        }
    }
}

/// Writes log behind a slot, to a half of what is free at most.
async fn hold_wal(system: &System, service: &str, slot: &str) -> Result<String> {
    let server = system.postgres(service).await?;
    let client = session(&server, &server.admin.database).await?;
    let failed = || asking(&server, "the slot");
    client
        .execute(&format!(
            "select pg_create_physical_replication_slot({}, true)",
            quote_literal(slot)
        ))
        .await
        .map_err(failed())?;
    let free = disk::room(Path::new(
        server
            .container
            .mount_of(&server.data_dir)
            .map_or("/", |m| m.source.as_str()),
    ))
    .map_or(HELD_BACK, |r| r.free);
    let mut left = HELD_BACK.min(free / 2);
    while left > 0 {
        let size = left.min(8 << 20);
        client
            .execute(&format!(
                "select pg_logical_emit_message(false, 'drctl', repeat(md5(random()::text), {}))",
                size / 32
            ))
            .await
            .map_err(failed())?;
        left -= size;
    }
    client.execute("checkpoint").await.map_err(failed())?;
    Ok(format!("slot {slot} holds back the log"))
}
