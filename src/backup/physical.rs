//! The copy of a whole server: a plain base backup with the WAL that it needs. Plain
//! rather than compressed: it is verified, and put back, in a third of the time.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use serde::Deserialize;

use super::files;
use super::logical::own_user;
use super::manifest::PhysicalPart;
use super::preflight::Surveyed;
use super::run::Run;
use crate::error::{Error, Kind, Result};
use crate::postgres::Lsn;

/// Copies, then compares what was written with PostgreSQL's own manifest and reads the WAL.
/// Not synced file by file: see [`files::sync_file_system`], which finds little left to do,
/// because the disk is asked to write while the processor compares.
const COPY: &str = r#"
pg_basebackup --pgdata=/backup --format=plain --wal-method=stream --checkpoint=fast --label="$1" --no-sync --no-password || exit 41
{ sync -f /backup 2>/dev/null || sync; } &
pg_verifybackup --quiet /backup || exit 42
wait
"#;
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
    let output = run.helper(&spec, &what, written, surveyed.cluster_bytes).await?;
    match output.exit_code {
        0 => {}
        42 => {
            return Err(Error::new(
                Kind::BackupDamaged,
                format!(
                    "the base backup of {subject} does not hold: {}",
                    output.last_words()
                ),
            )
            .untouched("the server and every older backup; what this run had written was removed")
            .next("drctl backup    # again")
            .next("dmesg | tail    # a disk that does not keep what is written?"));
        }
        _ => return Err(run.tool_failed("pg_basebackup", &subject, &output)),
    }
    let finished = Timestamp::now();
    run.fetch(staging, &what, surveyed.cluster_bytes).await?;
    let ranges = wal_ranges(&target.join("backup_manifest"))
        .map_err(|e| run.io(&target.join("backup_manifest"), &e))?;
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

/// `WAL-Ranges` of a `backup_manifest` (PostgreSQL manual, 76.2), without reading the rest.
fn wal_ranges(manifest: &Path) -> std::io::Result<Vec<WalRange>> {
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
