//! Giving a full disk room again.
//!
//! Nothing here deletes what only one place has: a backup set goes when the runbook's rules
//! say so, an image when nobody uses it and it can be built again, a log when it has been read
//! back from another disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{ActionContext, ActionError, Outcome, container};
use crate::backup::{self, Label, Pruned};
use crate::event::bytes;
use crate::plan::SpaceAction;
use crate::probe::disk;
use crate::runbook::ServiceKind;
use crate::workload::Status;

/// As zstd's own default: about as fast as a disk, and logs shrink to a twentieth.
const LEVEL: i32 = 3;
/// Bytes copied at once.
const CHUNK: usize = 256 << 10;

pub(super) async fn apply(cx: &ActionContext<'_>, action: &SpaceAction) -> Result<Outcome, ActionError> {
    match action {
        SpaceAction::PruneBackups { labels, path, enough } => {
            prune(cx, labels, Path::new(path), *enough).await
        }
        SpaceAction::RemoveImages { images } => remove_images(cx, images).await,
        SpaceAction::ArchiveLog {
            service,
            container,
            into,
            path,
            enough,
        } => archive_log(cx, service, container, Path::new(into), Path::new(path), *enough).await,
        SpaceAction::Revive { service } => revive(cx, service).await,
    }
}

fn free(path: &Path) -> u64 {
    disk::room(path).map(|r| r.free).unwrap_or_default()
}

async fn prune(
    cx: &ActionContext<'_>,
    labels: &[String],
    path: &Path,
    enough: u64,
) -> Result<Outcome, ActionError> {
    let runbook = cx.system.runbook.clone();
    let (reporter, path) = (cx.reporter.clone(), path.to_owned());
    let labels: Vec<Label> = labels.iter().filter_map(|l| l.parse().ok()).collect();
    let before = free(&path);
    let work = move || {
        // Only the directory's own lock: the recovery holds the deployment's, and a lock file
        // could not be written on a full disk.
        let hold = backup::hold_directory(&runbook)?;
        let mut done = Pruned::default();
        for label in labels {
            if free(&path) >= enough {
                break;
            }
            let one = backup::prune_labels(&runbook, &hold, &[label], &reporter)?;
            done.labels.extend(one.labels);
            done.bytes += one.bytes;
        }
        Ok::<_, crate::error::Error>((done, free(&path)))
    };
    let (done, after) = tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| ActionError::Other(e.to_string()))??;
    Ok(Outcome::new(format!(
        "{} backup sets removed, {} free now",
        done.labels.len(),
        bytes(after)
    ))
    .fact("backups-removed", done.labels.len())
    .fact(
        "freed-by-backups",
        format!("{} bytes", after.saturating_sub(before)),
    ))
}

async fn remove_images(cx: &ActionContext<'_>, images: &[String]) -> Result<Outcome, ActionError> {
    let project = cx.system.runbook.docker().compose_project.clone();
    // Looked at again: one may have got a name, or a container, since.
    let now = cx.system.docker.nameless_images(project.as_str()).await?;
    let mut removed = 0;
    for (id, _) in now.iter().filter(|(id, _)| images.contains(id)) {
        removed += usize::from(cx.system.docker.remove_image(id).await?);
    }
    Ok(Outcome::new(format!("{removed} images removed")).fact("images-removed", removed))
}

async fn archive_log(
    cx: &ActionContext<'_>,
    service: &str,
    name: &str,
    into: &Path,
    disk: &Path,
    enough: u64,
) -> Result<Outcome, ActionError> {
    if free(disk) >= enough {
        return Ok(Outcome::new("enough is free: the log stays as it is"));
    }
    let Some(log) = cx.system.docker.log_file(name).await? else {
        return Ok(Outcome::new(format!("{name} keeps no log in a file")));
    };
    let target = into.join(format!("{service}-{}.log.zst", cx.run));
    let (from, to) = (log.clone(), target.clone());
    let (length, compressed) = tokio::task::spawn_blocking(move || archive(&from, &to))
        .await
        .map_err(|e| ActionError::Other(e.to_string()))?
        .map_err(|e| {
            ActionError::Other(format!(
                "the log of {name} could not be archived in {}, and is as it was: {e}",
                into.display()
            ))
        })?;
    Ok(Outcome::new(format!(
        "the log of {name}, {}, is in {} ({}), and the file is empty",
        bytes(length),
        target.display(),
        bytes(compressed)
    ))
    .fact("log-archived", target.display().to_string())
    .fact("freed-by-logs", format!("{length} bytes")))
}

/// A name that nothing has: an archive is never written over.
fn fresh(path: &Path) -> PathBuf {
    let mut number = 1;
    loop {
        let name = if number == 1 {
            path.to_owned()
        } else {
            path.with_extension(format!("{number}.zst"))
        };
        if name.symlink_metadata().is_err() {
            return name;
        }
        number += 1;
    }
}

/// Writes `log` compressed to `target`, reads it back, and empties the log. The engine appends
/// to the file meanwhile: what it adds is copied too until nothing more comes, and the file is
/// emptied at once then. Bytes of the log, and of the archive.
fn archive(log: &Path, target: &Path) -> io::Result<(u64, u64)> {
    let directory = target.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let target = fresh(target);
    let partial = target.with_extension("partial");
    let made = (|| {
        let mut from = OpenOptions::new().read(true).write(true).open(log)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&partial)?;
        let mut to = zstd::Encoder::new(file, LEVEL)?;
        let mut length = copy(&mut from, &mut to)?;
        let file = to.finish()?;
        file.sync_all()?;
        let mut back = zstd::Decoder::new(File::open(&partial)?)?;
        let mut original = File::open(log)?;
        if !same(&mut back, &mut original, length)? {
            return Err(io::Error::other("what was written does not read back as it was"));
        }
        // The rest, which came while it was read back, as a frame of its own (RFC 8878, 3).
        let file = OpenOptions::new().append(true).open(&partial)?;
        let mut to = zstd::Encoder::new(file, LEVEL)?;
        length += copy(&mut from, &mut to)?;
        let file = to.finish()?;
        file.sync_all()?;
        // Whole and under its name before anything is taken away.
        std::fs::rename(&partial, &target)?;
        File::open(directory)?.sync_all()?;
        let compressed = file.metadata()?.len();
        if from.metadata()?.len() > length {
            let mut rest = zstd::Encoder::new(OpenOptions::new().append(true).open(&target)?, LEVEL)?;
            length += copy(&mut from, &mut rest)?;
            rest.finish()?.sync_all()?;
        }
        // In place: the engine goes on appending to the same file. What it wrote since the line
        // before, a matter of microseconds, is gone from the log.
        from.set_len(0)?;
        from.sync_all()?;
        Ok((length, compressed))
    })();
    if made.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    made
}

/// Copies from where `from` stands to its end.
fn copy(from: &mut File, to: &mut impl Write) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut copied = 0;
    loop {
        let n = from.read(&mut buffer)?;
        let Some(part) = buffer.get(..n).filter(|p| !p.is_empty()) else {
            return Ok(copied);
        };
        to.write_all(part)?;
        copied += n as u64;
    }
}

/// Whether both give the same first `length` bytes.
fn same(one: &mut impl Read, other: &mut impl Read, length: u64) -> io::Result<bool> {
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut left = length;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let (a, b) = (&mut a[..n], &mut b[..n]);
        one.read_exact(a)?;
        other.read_exact(b)?;
        if a != b {
            return Ok(false);
        }
        left -= n as u64;
    }
    Ok(true)
}

async fn revive(cx: &ActionContext<'_>, service: &str) -> Result<Outcome, ActionError> {
    let is_postgres = cx
        .system
        .runbook
        .service(service)
        .is_some_and(|s| matches!(s.kind, ServiceKind::Postgres(_)));
    let info = cx.system.container(service).await?;
    // A start that has just succeeded by itself is not disturbed: the engine tries again and
    // again, and its next attempt found room.
    if is_postgres
        && info.status == Status::Running
        && let Ok(server) = cx.system.postgres(service).await
        && let Ok(client) = server.connect().await
        && client
            .value("select pg_is_in_recovery()")
            .await
            .ok()
            .flatten()
            .as_deref()
            == Some("f")
    {
        return Ok(Outcome::new(format!("{service} has come back by itself")));
    }
    if matches!(info.status, Status::Restarting) || info.restart_count > 0 {
        // Ends the pause that the engine makes between two attempts, a minute at last.
        cx.system
            .docker
            .stop(&info.id, cx.system.runbook.deadlines.stop)
            .await?;
    }
    container::start(cx, service, true).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_archived_whole_and_emptied_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x-json.log");
        let text = "{\"log\":\"a line\"}\n".repeat(50_000);
        std::fs::write(&log, &text).unwrap();
        // The engine's handle.
        let mut engine = OpenOptions::new().append(true).open(&log).unwrap();
        let target = dir.path().join("archive/api1-run.log.zst");
        let (length, compressed) = archive(&log, &target).unwrap();
        assert_eq!(length, text.len() as u64);
        assert!(compressed < length / 20, "{compressed}");
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
        let back = zstd::decode_all(File::open(&target).unwrap()).unwrap();
        assert_eq!(back, text.as_bytes());
        engine.write_all(b"after\n").unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"after\n");
        // Again: under another name, and the first archive stays.
        archive(&log, &target).unwrap();
        assert_eq!(zstd::decode_all(File::open(&target).unwrap()).unwrap(), back);
        let second = dir.path().join("archive/api1-run.log.2.zst");
        assert_eq!(zstd::decode_all(File::open(second).unwrap()).unwrap(), b"after\n");
    }

    #[test]
    fn a_log_that_cannot_be_archived_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x-json.log");
        std::fs::write(&log, "text").unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(archive(&log, &dir.path().join("file/a.zst")).is_err());
        assert_eq!(std::fs::read(&log).unwrap(), b"text");
    }
}
