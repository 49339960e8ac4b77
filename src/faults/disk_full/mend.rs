//! How the effects on disks are put right.

use serde::{Deserialize, Serialize};

use super::{helper, sets};
use crate::error::{Error, Kind, Result};
use crate::faults::db_corruption::memory;
use crate::faults::server::{asking, session, start_and_serve, stop_anyhow};
use crate::postgres::quote_literal;
use crate::system::System;

/// How one effect is put right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskMend {
    /// The file is gone, and the server runs.
    #[serde(rename_all = "kebab-case")]
    Remove {
        /// Service.
        service: String,
        /// The file's name beside the data.
        file: String,
    },
    /// The slot is gone.
    #[serde(rename_all = "kebab-case")]
    DropSlot {
        /// Service.
        service: String,
        /// Slot.
        slot: String,
    },
    /// The sets that carry the fault's mark, and its file, are gone.
    #[serde(rename_all = "kebab-case")]
    RemoveSets {
        /// The fault.
        id: String,
    },
    /// The shared memory is free.
    #[serde(rename_all = "kebab-case")]
    FreeSharedMemory {
        /// Service.
        service: String,
        /// The file.
        file: String,
    },
    /// The setting is what it was.
    #[serde(rename_all = "kebab-case")]
    TempFileLimit {
        /// Service.
        service: String,
        /// Its value in `postgresql.auto.conf`, when there was one.
        before: Option<String>,
    },
}

/// Where the value of `temp_file_limit` comes from, when that is `ALTER SYSTEM`.
pub(super) async fn temp_file_limit(system: &System, service: &str) -> Result<Option<String>> {
    let server = system.postgres(service).await?;
    let client = session(&server, &server.admin.database).await?;
    client
        .value(
            "select setting from pg_file_settings where name = 'temp_file_limit' and sourcefile like '%postgresql.auto.conf'",
        )
        .await
        .map_err(asking(&server, "the question for temp_file_limit"))
}

/// Puts one effect right; says what was done, or nothing when all was right.
///
/// # Errors
/// The engine's, the server's or the operating system's trouble.
pub async fn put_right(system: &System, mend: &DiskMend) -> Result<Option<String>> {
    match mend {
        DiskMend::Remove { service, file } => {
            let server = system.postgres(service).await?;
            let script = "[ -e \"$PGDATA/$1\" ] || exit 3; rm -f -- \"$PGDATA/$1\"";
            let argv = ["/bin/sh", "-c", script, "remove", file];
            let out = helper(system, &server, "fault-remove", &argv).await?;
            if !matches!(out.exit_code, 0 | 3) {
                return Err(Error::new(
                    Kind::FailedChanged,
                    format!("{file} could not be removed: {}", out.last_words()),
                ));
            }
            let server = system.postgres(service).await?;
            if server.connect().await.is_err() {
                // Ends the pause between two attempts of the engine.
                stop_anyhow(system, &server).await?;
                start_and_serve(system, &server).await?;
                return Ok(Some(format!("{file} is gone, and {service} runs")));
            }
            Ok((out.exit_code == 0).then(|| format!("{file} is gone")))
        }
        DiskMend::DropSlot { service, slot } => {
            let server = system.postgres(service).await?;
            let client = session(&server, &server.admin.database).await?;
            let failed = || asking(&server, "the removal of the slot");
            let name = quote_literal(slot);
            let there = client
                .value(&format!(
                    "select 1 from pg_replication_slots where slot_name = {name}"
                ))
                .await
                .map_err(failed())?;
            if there.is_none() {
                return Ok(None);
            }
            for sql in [
                format!("select pg_drop_replication_slot({name})"),
                "checkpoint".into(),
            ] {
                client.execute(&sql).await.map_err(failed())?;
            }
            Ok(Some(format!("slot {slot} is gone")))
        }
        DiskMend::RemoveSets { id } => {
            let (directory, id) = (system.runbook.backup.directory.clone(), id.clone());
            let removed = tokio::task::spawn_blocking(move || sets::remove_sets(&directory, &id))
                .await
                .unwrap_or_else(|e| Err(std::io::Error::other(e)))
                .map_err(|e| {
                    Error::new(Kind::FailedChanged, format!("old sets could not be removed: {e}"))
                })?;
            Ok((removed > 0).then(|| format!("{removed} files and sets of the fault are gone")))
        }
        DiskMend::FreeSharedMemory { service, file } => {
            let server = system.postgres(service).await?;
            let freed = memory::free(system, &server, file).await?;
            Ok(freed.then(|| "the shared memory is free".to_owned()))
        }
        DiskMend::TempFileLimit { service, before } => {
            let server = system.postgres(service).await?;
            let client = session(&server, &server.admin.database).await?;
            if &temp_file_limit(system, service).await? == before {
                return Ok(None);
            }
            let set = before.as_ref().map_or_else(
                || "alter system reset temp_file_limit".to_owned(),
                |v| format!("alter system set temp_file_limit = {}", quote_literal(v)),
            );
            for sql in [set.as_str(), "select pg_reload_conf()"] {
                client
                    .execute(sql)
                    .await
                    .map_err(asking(&server, "the change of temp_file_limit"))?;
            }
            Ok(Some("temp_file_limit is what it was".into()))
        }
    }
}
