//! Giving a full disk room again.
//!
//! Nothing here deletes what only one place has: a backup set goes when the runbook's rules
//! say so, an image when nobody uses it and it can be built again, a log when it has been read
//! back from another disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{ActionContext, ActionError, Outcome, container};
use crate::backup::{self, Label, Pruned};
use crate::event::{Event, SharedReporter, bytes};
use crate::incident::StateDir;
use crate::plan::SpaceAction;
use crate::private_dir::private_directory;
use crate::probe::disk;
use crate::runbook::Runbook;
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

/// Tells work on another thread that nobody waits for it any more: it ends at the next place
/// where everything is whole. Dropping a future alone would let it go on unseen.
#[derive(Default)]
struct Ended(Arc<AtomicBool>);

impl Ended {
    fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn prune(
    cx: &ActionContext<'_>,
    labels: &[String],
    path: &Path,
    enough: u64,
) -> Result<Outcome, ActionError> {
    let runbook = cx.system.runbook.clone();
    let (state, reporter, path) = (cx.state.clone(), cx.reporter.clone(), path.to_owned());
    let labels: Vec<Label> = labels.iter().filter_map(|l| l.parse().ok()).collect();
    let before = free(&path);
    let ended = Ended::default();
    let flag = ended.flag();
    let work = move || {
        let is_over = || free(&path) >= enough || flag.load(Ordering::Relaxed);
        let done = prune_again(&runbook, &state, &labels, &reporter, is_over);
        (done, free(&path))
    };
    let ((done, failed), after) = tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| ActionError::Other(e.to_string()))?;
    drop(ended);
    if let Some(e) = failed {
        return Err(if done.labels.is_empty() {
            ActionError::Untouched(format!("{e} (no backup set was removed)"))
        } else {
            ActionError::Other(format!(
                "{e} (removed before, and gone: {})",
                done.labels.join(", ")
            ))
        });
    }
    Ok(Outcome::new(format!(
        "{} backup sets removed{}, {} free now",
        done.labels.len(),
        if done.labels.is_empty() {
            String::new()
        } else {
            format!(" ({})", done.labels.join(", "))
        },
        bytes(after)
    ))
    .fact("backups-removed", done.labels.len())
    .fact("backup-sets-removed", done.labels.join(" "))
    .fact(
        "freed-by-backups",
        format!("{} bytes", after.saturating_sub(before)),
    ))
}

/// Removes those of `labels` that the runbook's rules still let go, asked again under the hold:
/// days may have passed since the plan, the rules and the other sets may have changed, and one of
/// these may be the last verified one by now. What was removed, and why it ended early.
fn prune_again(
    runbook: &Runbook,
    state: &StateDir,
    labels: &[Label],
    reporter: &SharedReporter,
    is_over: impl Fn() -> bool,
) -> (Pruned, Option<crate::error::Error>) {
    let mut done = Pruned::default();
    // Only the directory's own lock: the recovery holds the deployment's, and a lock file
    // could not be written on a full disk.
    let asked = backup::hold_directory(runbook)
        .and_then(|hold| Ok((backup::look(runbook, state, Some(&hold))?, hold)));
    let (now, hold) = match asked {
        Ok(asked) => asked,
        Err(e) => return (done, Some(e)),
    };
    let goes: Vec<Label> = now.goes().into_iter().map(|g| g.label).collect();
    for label in labels {
        if is_over() {
            break;
        }
        if !goes.contains(label) {
            if let Some(decision) = now.sets.iter().find(|d| &d.label == label) {
                reporter.event(&Event::Warning {
                    text: format!("backup {label} stays: {}", decision.reasons()),
                });
            }
            continue;
        }
        match backup::prune_labels(runbook, &hold, std::slice::from_ref(label), reporter) {
            Ok(one) => {
                done.labels.extend(one.labels);
                done.bytes += one.bytes;
            }
            Err(e) => return (done, Some(e)),
        }
    }
    (done, None)
}

async fn remove_images(cx: &ActionContext<'_>, images: &[String]) -> Result<Outcome, ActionError> {
    let project = cx.system.runbook.docker().compose_project.clone();
    // Looked at again: one may have got a name, or a container, since.
    let now = cx.system.docker.nameless_images(project.as_str()).await?;
    let mut removed: Vec<&str> = Vec::new();
    for id in now.iter().map(|i| &i.id).filter(|id| images.contains(id)) {
        match cx.system.docker.remove_image(id).await {
            Ok(true) => {
                cx.note(format!("image {id} removed"));
                removed.push(id);
            }
            Ok(false) => {}
            Err(e) if removed.is_empty() => {
                return Err(ActionError::Untouched(format!("{e} (no image was removed)")));
            }
            Err(e) => {
                return Err(ActionError::Other(format!(
                    "{e} (removed before, and gone: {})",
                    removed.join(", ")
                )));
            }
        }
    }
    Ok(Outcome::new(format!("{} images removed", removed.len()))
        .fact("images-removed", removed.len())
        .fact("image-ids-removed", removed.join(" ")))
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
    let ended = Ended::default();
    let flag = ended.flag();
    let work = move || archive(&from, &to, &|| flag.load(Ordering::Relaxed));
    let (target, length, compressed) = tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| ActionError::Other(e.to_string()))?
        .map_err(|e| {
            ActionError::Untouched(format!(
                "the log of {name} could not be archived in {}, and is as it was: {e}",
                into.display()
            ))
        })?;
    drop(ended);
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
/// emptied at once then. The archive's name, bytes of the log, and of the archive.
///
/// The archive is opened once, when it is made, and everything is done through that: nothing
/// that stands under its name later, a link least of all, is written to or believed.
fn archive(log: &Path, target: &Path, is_over: &dyn Fn() -> bool) -> io::Result<(PathBuf, u64, u64)> {
    let directory = target.parent().unwrap_or(Path::new("/"));
    private_directory(directory)?;
    let target = fresh(target);
    let partial = target.with_extension("partial");
    match std::fs::remove_file(&partial) {
        // Left by a run of this incident that was killed: the log was not emptied then.
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let made = (|| {
        let mut from = OpenOptions::new().read(true).write(true).open(log)?;
        let mut file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .mode(0o600)
            .open(&partial)?;
        let mut length = append(&mut from, &file, is_over)?;
        file.rewind()?;
        from.rewind()?;
        let mut back = zstd::Decoder::new(&file)?;
        if !same(&mut back, &mut from, length, is_over)? {
            return Err(io::Error::other("what was written does not read back as it was"));
        }
        drop(back);
        // The rest, which came while it was read back, as a frame of its own (RFC 8878, 3).
        from.seek(SeekFrom::Start(length))?;
        file.seek(SeekFrom::End(0))?;
        length += append(&mut from, &file, is_over)?;
        // Whole and under its name before anything is taken away.
        std::fs::rename(&partial, &target)?;
        File::open(directory)?.sync_all()?;
        if from.metadata()?.len() > length {
            length += append(&mut from, &file, is_over)?;
        }
        // In place: the engine goes on appending to the same file. What it wrote since the line
        // before, a matter of microseconds, is gone from the log.
        from.set_len(0)?;
        from.sync_all()?;
        Ok((target, length, file.metadata()?.len()))
    })();
    if made.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    made
}

/// Compresses what `from` holds from where it stands to its end, and waits until it is on disk.
fn append(from: &mut File, file: &File, is_over: &dyn Fn() -> bool) -> io::Result<u64> {
    let mut to = zstd::Encoder::new(file, LEVEL)?;
    let length = copy(from, &mut to, is_over)?;
    to.finish()?;
    file.sync_all()?;
    Ok(length)
}

/// Nobody waits any more: the log is left as it is.
fn over() -> io::Error {
    io::Error::other("it was stopped before the log was emptied")
}

/// Copies from where `from` stands to its end.
fn copy(from: &mut File, to: &mut impl Write, is_over: &dyn Fn() -> bool) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut copied = 0;
    loop {
        if is_over() {
            return Err(over());
        }
        let n = from.read(&mut buffer)?;
        let Some(part) = buffer.get(..n).filter(|p| !p.is_empty()) else {
            return Ok(copied);
        };
        to.write_all(part)?;
        copied += n as u64;
    }
}

/// Whether both give the same first `length` bytes.
fn same(
    one: &mut impl Read,
    other: &mut impl Read,
    length: u64,
    is_over: &dyn Fn() -> bool,
) -> io::Result<bool> {
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut left = length;
    while left > 0 {
        if is_over() {
            return Err(over());
        }
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
    let mut info = cx.system.container(service).await?;
    if info.status == Status::Running && info.restart_count > 0 {
        // It may have begun before there was room, and end once more.
        tokio::time::sleep(container::STAYS_UP).await;
        info = cx.system.container(service).await?;
    }
    if info.status != Status::Restarting {
        let done = container::start(cx, service, true).await;
        // One that runs is never stopped: it replays its log, serves, or holds what only it has.
        if done.is_ok()
            || info.status != Status::Running
            || cx.system.container(service).await?.status != Status::Restarting
        {
            return done;
        }
    }
    // Ends the pause that the engine makes between two attempts, a minute at last.
    cx.system
        .docker
        .stop(&info.id, cx.system.runbook.deadlines.stop)
        .await?;
    container::start(cx, service, true).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn archived(log: &Path, target: &Path) -> io::Result<(PathBuf, u64, u64)> {
        archive(log, target, &|| false)
    }

    #[test]
    fn a_log_is_archived_whole_and_emptied_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x-json.log");
        let text = "{\"log\":\"a line\"}\n".repeat(50_000);
        std::fs::write(&log, &text).unwrap();
        // The engine's handle.
        let mut engine = OpenOptions::new().append(true).open(&log).unwrap();
        let target = dir.path().join("archive/api1-run.log.zst");
        let (name, length, compressed) = archived(&log, &target).unwrap();
        assert_eq!((name, length), (target.clone(), text.len() as u64));
        assert!(compressed < length / 20, "{compressed}");
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
        let back = zstd::decode_all(File::open(&target).unwrap()).unwrap();
        assert_eq!(back, text.as_bytes());
        engine.write_all(b"after\n").unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"after\n");
        // Again: under another name, and the first archive stays.
        let (second, ..) = archived(&log, &target).unwrap();
        assert_eq!(zstd::decode_all(File::open(&target).unwrap()).unwrap(), back);
        assert_eq!(second, dir.path().join("archive/api1-run.log.2.zst"));
        assert_eq!(zstd::decode_all(File::open(second).unwrap()).unwrap(), b"after\n");
    }

    #[test]
    fn a_log_that_cannot_be_archived_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x-json.log");
        std::fs::write(&log, "text").unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(archived(&log, &dir.path().join("file/a.zst")).is_err());
        assert_eq!(std::fs::read(&log).unwrap(), b"text");
        // Nobody waits any more: at no moment is it emptied after that.
        for patience in 0..4 {
            let asked = std::cell::Cell::new(0);
            let is_over = || asked.replace(asked.get() + 1) >= patience;
            assert!(archive(&log, &dir.path().join("a/a.zst"), &is_over).is_err());
            assert_eq!(std::fs::read(&log).unwrap(), b"text", "{patience}");
            assert_eq!(
                std::fs::read_dir(dir.path().join("a")).unwrap().count(),
                0,
                "{patience}"
            );
        }
    }

    #[test]
    fn a_directory_or_a_link_that_somebody_laid_out_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x-json.log");
        let victim = dir.path().join("victim");
        std::fs::write(&log, "secret").unwrap();
        std::fs::write(&victim, "untouched").unwrap();
        // A directory that others can enter, and a link to one that is ours.
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert!(archived(&log, &open.join("a.log.zst")).is_err());
        let own = dir.path().join("own");
        private_directory(&own).unwrap();
        symlink(&own, dir.path().join("link")).unwrap();
        assert!(archived(&log, &dir.path().join("link/a.log.zst")).is_err());
        assert_eq!(std::fs::read(&log).unwrap(), b"secret");
        // A link under the name that the archive has while it is written: replaced, not followed.
        symlink(&victim, own.join("a.log.partial")).unwrap();
        archived(&log, &own.join("a.log.zst")).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"untouched");
        let made = own.join("a.log.zst");
        assert!(made.symlink_metadata().unwrap().is_file());
        assert_eq!(zstd::decode_all(File::open(made).unwrap()).unwrap(), b"secret");
    }

    /// A backup directory of sets `labels`, and a runbook that keeps the last one.
    fn sets(dir: &Path, labels: &[&str]) -> Runbook {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml");
        let mut runbook = crate::runbook::load(Path::new(path)).unwrap();
        runbook.backup.directory = dir.join("backups");
        runbook.backup.keep = Some(crate::runbook::Keep {
            last: 1,
            ..crate::runbook::Keep::default()
        });
        let deployment = runbook.deployment.to_string();
        for label in labels {
            let set = runbook.backup.directory.join(label);
            std::fs::create_dir_all(&set).unwrap();
            let manifest = format!(
                r#"{{"format":1,"deployment":"{deployment}","label":"{label}","started":"2026-11-20T02:00:00Z",
                "finished":"2026-11-20T02:01:00Z","drctl-version":"0.1.0","bytes":1,"skew-seconds":0.5,
                "postgres":{{{}}},"files":[]}}"#,
                backup::A_SERVER
            );
            std::fs::write(set.join(backup::FILE_NAME), manifest).unwrap();
        }
        runbook
    }

    #[test]
    fn only_sets_that_the_rules_still_let_go_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let all = ["20260101T020000Z", "20260102T020000Z", "20260103T020000Z"];
        let runbook = sets(dir.path(), &all);
        let state = StateDir::at(dir.path().join("state"));
        let reporter: SharedReporter = Arc::new(crate::event::Silent);
        let labels: Vec<Label> = all.iter().map(|l| l.parse().unwrap()).collect();
        let left = || {
            let mut left: Vec<String> = std::fs::read_dir(&runbook.backup.directory)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            left.sort();
            left
        };
        let prune = |labels: &[Label], over: bool| {
            let (done, failed) = prune_again(&runbook, &state, labels, &reporter, || over);
            assert!(failed.is_none(), "{failed:?}");
            done.labels
        };
        // Nobody waits any more, or enough is free.
        assert!(prune(&labels, true).is_empty());
        // Since the plan the newest set has failed, or gone: the one that was old is the last.
        std::fs::remove_dir_all(runbook.backup.directory.join(all[2])).unwrap();
        assert_eq!(prune(&labels, false), [all[0]]);
        assert_eq!(left(), [all[1]]);
        // Rules that were taken out of the runbook let nothing go.
        let mut runbook = sets(dir.path(), &all);
        runbook.backup.keep = None;
        let (done, failed) = prune_again(&runbook, &state, &labels, &reporter, || false);
        assert!(failed.is_none() && done.labels.is_empty());
        assert_eq!(left(), all);
    }

    #[test]
    fn work_is_told_when_nobody_waits_for_it() {
        let ended = Ended::default();
        let flag = ended.flag();
        assert!(!flag.load(Ordering::Relaxed));
        drop(ended);
        assert!(flag.load(Ordering::Relaxed));
    }
}
