//! The copy of a whole server: a plain base backup with the WAL that it needs. Plain
//! rather than compressed: it is verified, and put back, in a third of the time.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Deserialize;

use super::base_check::{self, Compared};
use super::files;
use super::logical::own_user;
use super::manifest::PhysicalPart;
use super::preflight::Surveyed;
use super::run::Run;
use crate::error::{Error, Kind, Result};
use crate::postgres::Lsn;
use crate::workload::HelperOutput;

/// Copies, then checks the manifest, the list of files and the WAL; drctl compares the
/// checksums meanwhile (see [`base_check`]). Not synced file by file: [`write_out`] asks the
/// disk to write while the copy goes on.
const COPY: &str = r#"
pg_basebackup --pgdata=/backup --format=plain --wal-method=stream --checkpoint=fast --label="$1" --no-sync --no-password || exit 41
pg_verifybackup --quiet --skip-checksums /backup || exit 42
"#;
/// The whole comparison, where drctl cannot compute the checksums.
const VERIFY: [&str; 3] = ["pg_verifybackup", "--quiet", "/backup"];
/// How often to look whether the copy is complete.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often the disk is asked to write what has been copied.
const WRITE_EVERY: Duration = Duration::from_millis(250);
/// The WAL ranges stand at the end of the manifest, whose length grows with the cluster.
const TAIL: u64 = 64 << 10;

#[derive(Debug, Deserialize)]
struct WalRange {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

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
    let damaged = |words: &str| {
        Error::new(
            Kind::BackupDamaged,
            format!("the base backup of {subject} does not hold: {words}"),
        )
        .untouched("the server and every older backup; what this run had written was removed")
        .next("drctl backup    # again")
        .next("dmesg | tail    # a disk that does not keep what is written?")
    };
    let compared = compare_when_complete(&target);
    let copying = run.helper(&spec, &what, written, surveyed.cluster_bytes);
    let (mut compared, mut copying) = (std::pin::pin!(compared), std::pin::pin!(copying));
    let mut writing = std::pin::pin!(write_out(&target));
    let (mut output, mut answer) = (None, None);
    // A copy that failed is never complete: then there is nothing to wait for.
    let here = staging.is_local();
    while output.is_none() || here && answer.is_none() && output.as_ref().is_none_or(succeeded) {
        tokio::select! {
            done = &mut copying, if output.is_none() => output = Some(done?),
            found = &mut compared, if here && answer.is_none() => answer = Some(found),
            e = &mut writing => return Err(run.io(&target, &e)),
        }
    }
    let (Some(output), mut compared) = (output, answer) else {
        return Err(Error::new(Kind::Internal, "the copy ended without an end"));
    };
    match output.exit_code {
        0 => {}
        42 => return Err(damaged(&output.last_words())),
        _ => return Err(run.tool_failed("pg_basebackup", &subject, &output)),
    }
    let finished = Timestamp::now();
    // What is on the other machine is compared when it is here.
    if !here {
        run.fetch(&staging, &what, surveyed.cluster_bytes).await?;
        compared = Some(compare_when_complete(&target).await);
    }
    match compared {
        Some(Ok(Compared::Equal)) => {}
        Some(Ok(Compared::Different(words))) => return Err(damaged(&words)),
        Some(Err(e)) => return Err(run.io(&target, &e)),
        Some(Ok(Compared::Unknown)) | None => {
            let mut whole = spec.clone();
            whole.argv = VERIFY.map(str::to_owned).to_vec();
            let output = run.helper(&whole, &what, || 0, surveyed.cluster_bytes).await?;
            if output.exit_code != 0 {
                return Err(damaged(&output.last_words()));
            }
        }
    }
    let ranges = wal_ranges(&target.join(base_check::MANIFEST))
        .map_err(|e| run.io(&target.join(base_check::MANIFEST), &e))?;
    staging.close().await?;
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

fn succeeded(output: &HelperOutput) -> bool {
    output.exit_code == 0
}

/// Waits for the manifest, which `pg_basebackup` gives its name when all else is written, and
/// compares what was copied with it.
async fn compare_when_complete(base: &Path) -> io::Result<Compared> {
    while !base.join(base_check::MANIFEST).exists() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let base = base.to_owned();
    tokio::task::spawn_blocking(move || base_check::compare(&base))
        .await
        .unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// Asks the disk again and again to write, so that little is left to wait for at the end.
/// Left alone, the system waits for seconds before it begins. Completes when the disk fails:
/// that is told only once, so it must not be left to the last such call.
async fn write_out(base: &Path) -> io::Error {
    loop {
        tokio::time::sleep(WRITE_EVERY).await;
        let base = base.to_owned();
        let written = tokio::task::spawn_blocking(move || files::sync_file_system(&base)).await;
        if let Ok(Err(e)) = written {
            return e;
        }
    }
}

/// `WAL-Ranges` of a `backup_manifest` (PostgreSQL manual, 76.2), without reading the rest.
fn wal_ranges(manifest: &Path) -> io::Result<Vec<WalRange>> {
    let mut file = File::open(manifest)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(parse_wal_ranges(&String::from_utf8_lossy(&tail)))
}

fn parse_wal_ranges(tail: &str) -> Vec<WalRange> {
    tail.rsplit_once("\"WAL-Ranges\":")
        .and_then(|(_, rest)| serde_json::Deserializer::from_str(rest).into_iter().next())
        .and_then(std::result::Result::ok)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_manifest_tells_the_wal() {
        let tail = "},\n{ \"Path\": \"x\" }\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/4000028\", \
                    \"End-LSN\": \"0/4000100\" }\n],\n\"Manifest-Checksum\": \"ab\"}\n";
        let ranges = parse_wal_ranges(tail);
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0].start.to_string(), "0/4000028");
        assert_eq!(ranges[0].timeline, 1);
        assert!(parse_wal_ranges("{}").is_empty());
    }
}
