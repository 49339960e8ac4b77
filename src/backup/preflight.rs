//! What must be true before a backup begins. Everything here only reads.

use std::path::Path;

use super::manifest::Manifest;
use super::{Options, files};
use crate::error::{Error, Kind, Result};
use crate::event;
use crate::postgres::{Lsn, PgError, is_damage};
use crate::system::{PostgresServer, System, WORK_DIR};

/// Room for WAL that is written while a base backup runs, on top of its segments.
const WAL_MARGIN: u64 = 64 << 20;

/// A server that is to be backed up.
pub struct Surveyed {
    /// The server.
    pub server: PostgresServer,
    /// `server_version`.
    pub version: String,
    /// `server_version_num`.
    pub version_number: u32,
    /// `pg_control_system()`.
    pub system_identifier: String,
    /// Current timeline.
    pub timeline: u32,
    /// Bytes of one WAL segment.
    pub wal_segment_size: u64,
    /// `data_checksums`.
    pub data_checksums: bool,
    /// WAL position.
    pub lsn: Lsn,
    /// `uid:gid` of the data directory.
    pub owner: String,
    /// Bytes of all databases together.
    pub cluster_bytes: u64,
    /// The databases to dump, with their sizes.
    pub databases: Vec<(String, u64)>,
    /// Directory in the set.
    pub directory: String,
    /// An open incident's files lie in the data directory and will be copied too.
    pub has_work_dir: bool,
}

/// What a run will need, and what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that the base backups will take.
    pub physical: u64,
    /// Bytes that the dumps will take.
    pub logical: u64,
    /// Bytes free.
    pub free: u64,
}

/// The error for a server that does not answer as it should.
pub fn server_error(service: &str, doing: &str, e: &PgError) -> Error {
    let error = match e {
        PgError::NoConnection { .. } | PgError::Timeout { .. } | PgError::Broken { .. } => {
            Error::new(Kind::Unreachable, format!("{doing} on {service}: {e}")).next("drctl diagnose")
        }
        PgError::Server { sqlstate: code, .. } if is_damage(code, &e.to_string()) => {
            Error::new(Kind::FailedUndone, format!("{doing} on {service}: {e}"))
                .next("drctl recover db-corruption    # the server's own words speak of damaged data")
        }
        PgError::Server { sqlstate: code, .. }
            if code.starts_with("08")
                || code.starts_with("57P")
                || code.starts_with("53")
                || code.starts_with("28")
                || code.starts_with("3D") =>
        {
            Error::new(Kind::Unreachable, format!("{doing} on {service}: {e}")).next("drctl diagnose")
        }
        PgError::Server { .. } | PgError::TooLong { .. } => {
            Error::new(Kind::FailedUndone, format!("{doing} on {service}: {e}"))
        }
    };
    error.untouched("the server and every older backup")
}

/// Where the engine is remote, each part lies there for a while before it is brought here:
/// compares the largest with what is free. A small question of one process: exec is right.
pub async fn far_room(system: &System, servers: &[Surveyed], options: Options) -> Result<()> {
    if system.docker.is_local() {
        return Ok(());
    }
    for surveyed in servers {
        let physical = options.physical.then(|| base_bytes(surveyed));
        let dumps = surveyed
            .databases
            .iter()
            .filter(|_| options.logical)
            .map(|(_, b)| *b);
        let needed = physical.into_iter().chain(dumps).max().unwrap_or_default();
        // Volumes and the containers' own files lie on the same disk.
        let container = &surveyed.server.container;
        let argv = ["df", "-Pk", "/"];
        let deadline = system.runbook.deadlines.probe;
        let said = system.docker.exec(&container.id, None, &argv, deadline).await?;
        let free = said
            .stdout
            .lines()
            .nth(1)
            .and_then(|l| l.split_whitespace().nth(3)?.parse::<u64>().ok())
            .map(|kib| kib.saturating_mul(1024));
        if let Some(free) = free
            && needed > free
        {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "the host behind {} has {} free for volumes, and a part of the backup takes about {} there before it is brought here",
                    system.docker.host(),
                    event::bytes(free),
                    event::bytes(needed)
                ),
            )
            .untouched("everything: nothing was written, no older backup was removed")
            .next("drctl diagnose")
            .next("drctl backup --logical-only"));
        }
    }
    Ok(())
}

/// Bytes that the base backup of a server takes at most.
fn base_bytes(surveyed: &Surveyed) -> u64 {
    surveyed.cluster_bytes + WAL_MARGIN + 4 * surveyed.wal_segment_size
}

/// A copy of a server with tablespaces of its own is refused; a dump leaves them out, and is not.
fn no_tablespaces(service: &str, tablespaces: Option<u32>, options: Options) -> Result<()> {
    if !options.physical || tablespaces == Some(0) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!("{service} has tablespaces of its own, which physical backups do not hold yet"),
    )
    .untouched("everything: nothing was written")
    .next("drctl backup --logical-only"))
}

/// Looks at one PostgreSQL service.
pub async fn survey(system: &System, service: &str, directory: String, options: Options) -> Result<Surveyed> {
    let server = system.postgres(service).await?;
    let fail = |e: PgError| server_error(service, "the survey before the backup", &e);
    let client = server.connect().await.map_err(fail)?;
    let rows = client
        .rows(
            "select current_setting('server_version'), current_setting('server_version_num'), \
             (select system_identifier from pg_control_system()), \
             (select timeline_id from pg_control_checkpoint()), \
             pg_size_bytes(current_setting('wal_segment_size')), current_setting('data_checksums') = 'on', \
             case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, \
             (select count(*) from pg_tablespace where spcname not in ('pg_default', 'pg_global'))",
        )
        .await
        .map_err(fail)?;
    let sizes = client
        .within(
            system.runbook.deadlines.step,
            "select datname, pg_database_size(oid) from pg_database order by datname",
        )
        .await
        .map_err(fail)?;
    let incomplete = || {
        Error::new(
            Kind::CouldNotVerify,
            format!("{service} does not tell its own version"),
        )
    };
    let row = rows.first().ok_or_else(incomplete)?;
    no_tablespaces(service, row.number(7), options)?;
    let mut databases = Vec::new();
    for name in server.config.databases.keys() {
        let size = sizes
            .iter()
            .find(|r| r.text(0) == name.as_str())
            .and_then(|r| r.number(1));
        let Some(size) = size else {
            return Err(Error::new(
                Kind::BackupDamaged,
                format!("database {name}, which the runbook names, does not exist on {service}"),
            )
            .untouched("every older backup: nothing was written")
            .next("drctl backup list")
            .next("drctl diagnose"));
        };
        databases.push((name.to_string(), size));
    }
    // A small question of one process: exec is right. Prints a line for each that exists.
    let work = format!("{}/{WORK_DIR}", server.data_dir);
    let found = system
        .docker
        .exec(
            &server.container.id,
            None,
            &["stat", "-c", "%u:%g", &server.data_dir, &work],
            system.runbook.deadlines.probe,
        )
        .await?;
    let mut lines = found.stdout.lines();
    let owner = lines.next().unwrap_or_default().trim().to_owned();
    if owner.is_empty() {
        return Err(Error::new(
            Kind::CouldNotVerify,
            format!(
                "the owner of {} in {} cannot be found: {}",
                server.data_dir,
                server.container.name,
                found.stderr.trim()
            ),
        )
        .untouched("everything: nothing was written"));
    }
    Ok(Surveyed {
        version: row.text(0).to_owned(),
        version_number: row.number(1).ok_or_else(incomplete)?,
        system_identifier: row.text(2).to_owned(),
        timeline: row.number(3).ok_or_else(incomplete)?,
        wal_segment_size: row.number(4).ok_or_else(incomplete)?,
        data_checksums: row.is_true(5),
        lsn: row.number(6).ok_or_else(incomplete)?,
        cluster_bytes: sizes.iter().filter_map(|r| r.number::<u64>(1)).sum(),
        owner,
        databases,
        directory,
        has_work_dir: lines.next().is_some(),
        server,
    })
}

/// Bytes that the dump of a database will probably take: a fifth more than last time, half
/// of the database when there was no last time.
#[must_use]
pub fn expected_dump(previous: Option<&Manifest>, service: &str, database: &str, database_bytes: u64) -> u64 {
    previous
        .and_then(|m| m.postgres.get(service)?.logical.get(database))
        .map_or(database_bytes / 2, |l| l.bytes / 5 * 6)
}

/// Compares what the run will need with what is free below `directory`.
pub fn room(
    directory: &Path,
    servers: &[Surveyed],
    previous: Option<&Manifest>,
    options: Options,
) -> Result<Room> {
    // The directory need not exist yet.
    let existing = directory
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("/"));
    let free = files::free_space(existing).map_err(|e| {
        Error::new(
            Kind::Refused,
            format!("{} cannot be asked for free space: {e}", existing.display()),
        )
        .untouched("everything: nothing was written")
    })?;
    let physical = if options.physical {
        servers.iter().map(base_bytes).sum()
    } else {
        0
    };
    let logical = if options.logical {
        servers
            .iter()
            .flat_map(|s| {
                s.databases
                    .iter()
                    .map(|(db, size)| expected_dump(previous, &s.server.service, db, *size))
            })
            .sum()
    } else {
        0
    };
    let room = Room {
        physical,
        logical,
        free,
    };
    if physical + logical <= free {
        return Ok(room);
    }
    let mut error = Error::new(
        Kind::Refused,
        format!(
            "{} has {} free, and the backup needs about {}: {} for the base backup, {} for the dumps",
            directory.display(),
            event::bytes(free),
            event::bytes(physical + logical),
            event::bytes(physical),
            event::bytes(logical)
        ),
    )
    .untouched("everything: nothing was written, no older backup was removed");
    if physical > 0 && logical > 0 && logical <= free {
        error = error.next("drctl backup --logical-only");
    }
    Err(error
        .next(format!("df -h {}", existing.display()))
        .next("drctl backup list"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tablespaces_stand_in_the_way_of_a_copy_only() {
        let with = |logical, physical, tablespaces| {
            let options = Options {
                logical,
                physical,
                accept_shrink: false,
            };
            no_tablespaces("db", tablespaces, options).is_ok()
        };
        assert!(with(true, true, Some(0)));
        assert!(!with(true, true, Some(1)));
        assert!(!with(false, true, Some(1)));
        // A server that does not tell is not taken for one without.
        assert!(!with(true, true, None));
        // What the refusal says to type is accepted.
        assert!(with(true, false, Some(1)));
    }
}
