//! Damage to the files that a Redis server loads at its start, and how it is put right.

use std::time::Duration;

use tokio::time::Instant;

use super::redis::{LIMIT, client, failed};
use crate::error::{Error, Kind, Result};
use crate::plan::RedisFiles;
use crate::probe::redis_files;
use crate::system::System;
use crate::workload::{HelperSpec, WorkloadError};

const FILES: &str = include_str!("redis_files.sh");

/// Where the server's files are; for a fault that is to damage them.
///
/// # Errors
/// The engine's trouble, or an image in which they cannot be looked at.
pub async fn files_of(system: &System, service: &str, fault: &str) -> Result<RedisFiles> {
    let server = system.redis(service).await?;
    redis_files::look(system, &server.container, fault, LIMIT)
        .await
        .map(|seen| seen.files)
        .map_err(|e| {
            Error::new(Kind::Refused, format!("the files of {service}: {e}")).untouched("everything")
        })
}

async fn on_files(
    system: &System,
    container: &str,
    files: &RedisFiles,
    fault: &str,
    arguments: &[&str],
) -> Result<String> {
    let info = system.docker.inspect(container).await?;
    let mut argv = vec!["/bin/sh", "-c", FILES, "redis-files"];
    argv.extend_from_slice(arguments);
    let deployment = system.deployment();
    let mut spec = HelperSpec::new(deployment, fault, "fault-redis-files", &info.image_id, &argv);
    spec.volumes_from = Some((info.id, false));
    spec.env = [
        ("DIR", files.directory.clone()),
        ("SNAPSHOT", files.snapshot.clone()),
        ("ENTRY", files.append_entry.clone()),
        ("NAME", files.append_name.clone()),
        ("SAVED", format!(".drctl-{fault}")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let output = system.docker.run_helper(&spec, LIMIT).await?;
    if output.exit_code != 0 {
        return Err(Error::new(
            Kind::FailedChanged,
            format!("the files of {container}: {}", output.last_words()),
        ));
    }
    Ok(output.stdout.trim().to_owned())
}

/// Has the server write its files, damages them while it is stopped, and starts it; says what was
/// seen.
pub(super) async fn damage(
    system: &System,
    service: &str,
    container: &str,
    kind: &str,
    files: &RedisFiles,
    fault: &str,
) -> Result<String> {
    let client = client(system, service, 0).await?;
    let written = if files.append_only {
        "BGREWRITEAOF"
    } else {
        "BGSAVE"
    };
    client
        .ask::<String>(&::redis::cmd(written))
        .await
        .map_err(failed(written))?;
    let end = Instant::now() + LIMIT;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let state = client.info().await.map_err(failed("INFO"))?.persistence;
        if !state.saving && !state.aof_rewriting {
            break;
        }
        if Instant::now() >= end {
            return Err(Error::new(
                Kind::FailedChanged,
                format!(
                    "{service} has not written its data after {}",
                    crate::event::seconds(LIMIT)
                ),
            ));
        }
    }
    system
        .docker
        .stop(container, system.runbook.deadlines.stop)
        .await?;
    on_files(system, container, files, fault, &["damage", kind]).await?;
    system.docker.start(container).await?;
    // It must not come up: that is the fault.
    let end = Instant::now() + LIMIT;
    loop {
        let now = system.docker.inspect(container).await?;
        if !now.is_running() || now.restart_count > 0 {
            return Ok(format!("{service} cannot load its files"));
        }
        if Instant::now() >= end {
            return Err(Error::new(
                Kind::FailedChanged,
                format!("{service} has started with damaged files: the fault has missed"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Puts the originals back, unless others have taken the place of the damaged ones; `None` where
/// there was nothing to do.
pub(super) async fn restore(
    system: &System,
    service: &str,
    container: &str,
    files: &RedisFiles,
    fault: &str,
) -> Result<Option<String>> {
    match system.docker.inspect(container).await {
        // Created anew since, it may have other volumes: those are not the fault's.
        Err(WorkloadError::NotFound { .. }) => return Ok(None),
        other => other?,
    };
    let damaged = on_files(system, container, files, fault, &["state"]).await? == "damaged";
    if damaged {
        system
            .docker
            .stop(container, system.runbook.deadlines.stop)
            .await?;
    }
    on_files(system, container, files, fault, &["restore"]).await?;
    Ok(damaged.then(|| format!("the files of {service} are as they were")))
}
