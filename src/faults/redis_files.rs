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
    let serving = match system.docker.inspect(container).await {
        // Created anew since, it may have other volumes: those are not the fault's.
        Err(WorkloadError::NotFound { .. }) => return Ok(None),
        other => other?.is_running(),
    };
    let damaged = on_files(system, container, files, fault, &["state"]).await? == "damaged";
    if damaged {
        system
            .docker
            .stop(container, system.runbook.deadlines.stop)
            .await?;
    }
    let restore: &[&str] = if serving {
        &["restore", "serving"]
    } else {
        &["restore"]
    };
    on_files(system, container, files, fault, restore).await?;
    Ok(damaged.then(|| format!("the files of {service} are as they were")))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use super::FILES;

    fn run(dir: &Path, arguments: &[&str]) -> Result<String, String> {
        let out = Command::new("/bin/sh")
            .args(["-c", FILES, "redis-files"])
            .args(arguments)
            .env("DIR", dir)
            .env("SNAPSHOT", "dump.rdb")
            .env("ENTRY", "appendonlydir")
            .env("NAME", "appendonly.aof")
            .env("SAVED", ".drctl-f")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if out.status.success() {
            Ok(text(&out.stdout))
        } else {
            Err(text(&out.stderr))
        }
    }

    const ORIGINAL: &str = "REDIS0011 a snapshot that is sound";

    fn damaged() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("dump.rdb"), ORIGINAL).unwrap();
        run(dir.path(), &["damage", "rdb-damaged"]).unwrap();
        assert_ne!(
            fs::read(dir.path().join("dump.rdb")).unwrap(),
            ORIGINAL.as_bytes()
        );
        assert_eq!(run(dir.path(), &["state"]).unwrap(), "damaged");
        dir
    }

    fn is_whole(dir: &Path) -> bool {
        fs::read(dir.join("dump.rdb")).unwrap() == ORIGINAL.as_bytes() && !dir.join(".drctl-f").exists()
    }

    #[test]
    fn the_original_comes_back_wherever_the_last_attempt_was_cut_off() {
        let dir = damaged();
        run(dir.path(), &["restore"]).unwrap();
        assert!(is_whole(dir.path()));
        // The damaged file was put aside, and the original not yet in its place …
        let dir = damaged();
        let (kept, aside) = (dir.path().join("dump.rdb"), dir.path().join(".drctl-f/aside"));
        fs::rename(&kept, &aside).unwrap();
        run(dir.path(), &["restore"]).unwrap();
        assert!(is_whole(dir.path()));
        // … or already there.
        let dir = damaged();
        let (kept, saved) = (dir.path().join("dump.rdb"), dir.path().join(".drctl-f"));
        fs::rename(&kept, saved.join("aside")).unwrap();
        fs::rename(saved.join("original"), &kept).unwrap();
        run(dir.path(), &["restore"]).unwrap();
        assert!(is_whole(dir.path()));
    }

    #[test]
    fn an_original_without_a_file_in_its_place_is_kept_unless_the_server_serves() {
        let dir = damaged();
        fs::remove_file(dir.path().join("dump.rdb")).unwrap();
        assert!(
            run(dir.path(), &["restore"])
                .unwrap_err()
                .contains("its original stays")
        );
        assert!(dir.path().join(".drctl-f/original").exists());
        run(dir.path(), &["restore", "serving"]).unwrap();
        assert!(!dir.path().join(".drctl-f").exists());
    }

    #[test]
    fn a_file_that_took_the_place_of_the_damaged_one_stays() {
        let dir = damaged();
        fs::write(dir.path().join("new"), "another").unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("dump.rdb")).unwrap();
        assert_eq!(run(dir.path(), &["state"]).unwrap(), "replaced");
        run(dir.path(), &["restore"]).unwrap();
        assert_eq!(fs::read(dir.path().join("dump.rdb")).unwrap(), b"another");
    }
}
