//! The copy of a whole server: a plain base backup with the WAL that it needs. Plain
//! rather than compressed: it is verified, and put back, in a third of the time.

use std::time::Instant;

use jiff::Timestamp;

use super::base_manifest::{self, BaseManifest, Compared};
use super::files;
use super::logical::own_user;
use super::manifest::PhysicalPart;
use super::preflight::Surveyed;
use super::run::Run;
use crate::error::{Error, Kind, Result};

/// Copies, and lets PostgreSQL's own tool check the list of files and read the WAL. The
/// files are compared with the list by [`BaseManifest::compare`], meanwhile where the
/// list is of the usual kind. Not synced file by file: see [`files::sync_file_system`], which
/// finds little left to do, because the disk is asked to write while the copy goes on.
const COPY: &str = r#"
( while sleep 0.5; do sync -f /backup 2>/dev/null || sync; done ) &
syncing=$!
pg_basebackup --pgdata=/backup --format=plain --wal-method=stream --checkpoint=fast --label="$1" --no-sync --no-password || exit 41
kill "$syncing" 2>/dev/null
pg_verifybackup --quiet --skip-checksums /backup || exit 42
"#;
/// For a list with checksums that are not computed here.
const VERIFY: &str = "pg_verifybackup --quiet /backup || exit 42";

/// Copies one server.
pub async fn copy(run: &Run<'_>, surveyed: &Surveyed) -> Result<PhysicalPart> {
    let server = &surveyed.server;
    let subject = format!("the server {}", server.service);
    let began = Instant::now();
    let relative = format!("{}/base", surveyed.directory);
    let target = run.staging.join(&relative);
    files::make_private_dir(&target).map_err(|e| run.io(&target, &e))?;
    let label = format!("drctl {}", run.label);
    let mut spec = server.client_helper(
        run.system.deployment(),
        &run.label.to_string(),
        "backup-base",
        &["sh", "-c", COPY, "copy", &label],
    );
    spec.user = Some(own_user());
    // Files that belong to the server's own user can be put back by a plain copy. Only root
    // can give them away, and read them afterwards.
    if rustix::process::geteuid().is_root()
        && let Some((uid, gid)) = surveyed.owner.split_once(':')
        && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
    {
        std::os::unix::fs::chown(&target, Some(uid), Some(gid)).map_err(|e| run.io(&target, &e))?;
        spec.user = Some(surveyed.owner.clone());
    }
    let owner = spec.user.clone().unwrap_or_else(own_user);
    let staging = run.area(server, "backup-base", &target, &owner).await?;
    spec.mounts.push(staging.mount("/backup", false));
    let what = format!("base backup of {}", server.service);
    let growing = target.clone();
    let written = move || files::measure(&growing).0;
    let output = run.helper(&spec, &what, written, surveyed.cluster_bytes).await?;
    match output.exit_code {
        0 => {}
        42 => return Err(does_not_hold(&subject, &output.last_words())),
        _ => return Err(run.tool_failed("pg_basebackup", &subject, &output)),
    }
    let finished = Timestamp::now();
    run.fetch(&staging, &what, surveyed.cluster_bytes).await?;
    let list = target.join(base_manifest::FILE_NAME);
    let base = target.clone();
    let (manifest, compared) = tokio::task::spawn_blocking(move || {
        let manifest = BaseManifest::read(&base)?;
        let compared = manifest.compare(&base)?;
        Ok::<_, std::io::Error>((manifest, compared))
    })
    .await
    .unwrap_or_else(|e| Err(std::io::Error::other(e)))
    .map_err(|e| run.io(&list, &e))?;
    match compared {
        Compared::Same { .. } => {}
        Compared::Different(problems) => return Err(does_not_hold(&subject, &problems.join("; "))),
        Compared::OtherChecksum(_) => {
            spec.argv = ["sh", "-c", VERIFY].map(str::to_owned).to_vec();
            let deadline = run.system.runbook.deadlines.step;
            let output = run.system.docker.run_helper(&spec, deadline).await?;
            if output.exit_code != 0 {
                return Err(does_not_hold(&subject, &output.last_words()));
            }
        }
    }
    staging.close().await?;
    let ranges = manifest.wal_ranges();
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
        return Err(Error::new(
            Kind::BackupDamaged,
            format!("the base backup of {subject} does not say which WAL it needs"),
        ));
    };
    let (bytes, count) = files::measure(&target);
    Ok(PhysicalPart {
        path: relative,
        bytes,
        files: count,
        start_lsn: first.start,
        end_lsn: last.end,
        timeline: last.timeline,
        start_segment: first
            .start
            .segment_name(first.timeline, surveyed.wal_segment_size),
        finished,
        seconds: began.elapsed().as_secs_f64(),
    })
}

fn does_not_hold(subject: &str, words: &str) -> Error {
    Error::new(
        Kind::BackupDamaged,
        format!("the base backup of {subject} does not hold: {words}"),
    )
    .untouched("the server and every older backup; what this run had written was removed")
    .next("drctl backup    # again")
    .next("dmesg | tail    # a disk that does not keep what is written?")
}
