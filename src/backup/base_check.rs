//! The files of a base backup against its own manifest (PostgreSQL manual, 76).
//!
//! `pg_verifybackup` computes checksums in one thread. Here all cores do, and it is left to
//! that program to check the manifest itself and the WAL. What is compared is not less: every
//! file that the manifest lists is there with its size and checksum, and no other file is.
//! (What is neither file nor directory, `pg_verifybackup` refuses in any case.)

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;

use super::files;

/// PostgreSQL's name of the manifest. It appears when everything else is written.
pub const MANIFEST: &str = "backup_manifest";
/// What may be in a base backup without being listed; the WAL is checked by
/// `pg_verifybackup`, and the others tell a server what to do with its copy.
const UNLISTED: [&str; 4] = [MANIFEST, "pg_wal", "recovery.signal", "standby.signal"];
/// The only algorithm that is computed here: `pg_basebackup`'s default.
const ALGORITHM: &str = "CRC32C";
/// Bytes read at once.
const CHUNK: usize = 256 << 10;
/// How many problems are named.
const NAMED: usize = 3;

/// What came of the comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// Every file is as the manifest says.
    Equal,
    /// What is not, in words.
    Different(String),
    /// The manifest has checksums that cannot be computed here, or none.
    Unknown,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(rename = "Files")]
    files: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// Hexadecimal: a path that is no UTF-8.
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

/// A file that the manifest lists.
struct Expected {
    path: PathBuf,
    size: u64,
    crc: u32,
}

/// Compares the files of `base` with its manifest.
///
/// # Errors
/// When the manifest, or a directory, cannot be read.
pub fn compare(base: &Path) -> io::Result<Compared> {
    let text = fs::read(base.join(MANIFEST))?;
    let manifest: Manifest = match serde_json::from_slice(&text) {
        Ok(manifest) => manifest,
        Err(e) => return Ok(Compared::Different(format!("{MANIFEST} cannot be read: {e}"))),
    };
    let mut expected = Vec::with_capacity(manifest.files.len());
    for listed in &manifest.files {
        if listed.algorithm.as_deref() != Some(ALGORITHM) {
            return Ok(Compared::Unknown);
        }
        match listed.expected() {
            Some(e) => expected.push(e),
            None => {
                return Ok(Compared::Different(format!(
                    "{MANIFEST} has an entry without meaning: {listed:?}"
                )));
            }
        }
    }
    let mut problems = Vec::new();
    let known: HashSet<&Path> = expected.iter().map(|e| e.path.as_path()).collect();
    if known.len() != expected.len() {
        problems.push(format!("{MANIFEST} lists a file twice"));
    }
    let unlisted = |p: &Path| UNLISTED.iter().any(|name| p == Path::new(name));
    for found in files::list(base, &|p| !unlisted(p))? {
        if !known.contains(found.as_path()) && !unlisted(&found) {
            problems.push(format!("{} is not in {MANIFEST}", found.display()));
        }
    }
    // The large ones first, so that the threads end together.
    expected.sort_by_key(|e| std::cmp::Reverse(e.size));
    problems.extend(compare_all(base, &expected)?);
    if problems.is_empty() {
        return Ok(Compared::Equal);
    }
    let more = problems.len().saturating_sub(NAMED);
    problems.truncate(NAMED);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    Ok(Compared::Different(problems.join("; ")))
}

fn compare_all(base: &Path, expected: &[Expected]) -> io::Result<Vec<String>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = vec![0; CHUNK];
        let mut problems = Vec::new();
        while let Some(e) = expected.get(next.fetch_add(1, Ordering::Relaxed)) {
            problems.extend(e.problem(base, &mut buffer));
        }
        problems
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut problems = work();
        for other in others {
            problems.extend(
                other
                    .join()
                    .map_err(|_| io::Error::other("a thread that computes checksums ended early"))?,
            );
        }
        Ok(problems)
    })
}

impl Listed {
    fn expected(&self) -> Option<Expected> {
        let path = match (&self.path, &self.encoded_path) {
            (Some(path), None) => PathBuf::from(path),
            (None, Some(hex)) => PathBuf::from(OsString::from_vec(bytes_of(hex)?)),
            _ => return None,
        };
        // The manifest is data: it must not lead out of the backup.
        let inside = path.components().all(|c| matches!(c, Component::Normal(_)));
        if !inside || path.as_os_str().is_empty() {
            return None;
        }
        // The server writes the number as it lies in its memory.
        let crc: [u8; 4] = bytes_of(self.checksum.as_deref()?)?.try_into().ok()?;
        Some(Expected {
            path,
            size: self.size,
            crc: u32::from_ne_bytes(crc),
        })
    }
}

impl Expected {
    /// What is wrong with the file.
    fn problem(&self, base: &Path, buffer: &mut [u8]) -> Option<String> {
        match checksum(&base.join(&self.path), buffer) {
            Err(e) => Some(format!("{}: {e}", self.path.display())),
            Ok((size, _)) if size != self.size => Some(format!(
                "{} has {size} bytes instead of {}",
                self.path.display(),
                self.size
            )),
            Ok((_, crc)) if crc != self.crc => Some(format!("{} has another checksum", self.path.display())),
            Ok(_) => None,
        }
    }
}

/// Length and CRC-32C of a regular file.
fn checksum(path: &Path, buffer: &mut [u8]) -> io::Result<(u64, u32)> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("no regular file"));
    }
    let mut file = File::open(path)?;
    let (mut bytes, mut crc) = (0, 0);
    loop {
        let n = match file.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let Some(part) = buffer.get(..n).filter(|p| !p.is_empty()) else {
            return Ok((bytes, crc));
        };
        crc = crc32c::crc32c_append(crc, part);
        bytes += n as u64;
    }
}

/// The bytes of a hexadecimal text.
fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        return None;
    }
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(hex.get(i..i + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backup of two files as the server writes it (checksums are from PostgreSQL's own
    /// `pg_checksum_raw_context`: CRC-32C of "123456789" is e3069283, little-endian).
    fn backup() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("base/5")).unwrap();
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        fs::write(dir.path().join("base/5/1"), "123456789").unwrap();
        fs::write(dir.path().join("empty"), "").unwrap();
        fs::write(dir.path().join("pg_wal/000000010000000000000001"), "wal").unwrap();
        fs::write(dir.path().join(MANIFEST), manifest(ALGORITHM, &sum())).unwrap();
        dir
    }

    fn sum() -> String {
        let bytes = 0xe306_9283_u32.to_ne_bytes();
        format!("{:08x}", u32::from_be_bytes(bytes))
    }

    fn manifest(algorithm: &str, sum: &str) -> String {
        format!(
            r#"{{ "PostgreSQL-Backup-Manifest-Version": 1, "Files": [
{{ "Path": "base/5/1", "Size": 9, "Last-Modified": "2026-11-20 21:00:00 GMT", "Checksum-Algorithm": "{algorithm}", "Checksum": "{sum}" }},
{{ "Encoded-Path": "656d707479", "Size": 0, "Last-Modified": "2026-11-20 21:00:00 GMT", "Checksum-Algorithm": "{algorithm}", "Checksum": "00000000" }}
],
"WAL-Ranges": [
{{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }}
],
"Manifest-Checksum": "00"}}
"#
        )
    }

    fn different(dir: &tempfile::TempDir) -> String {
        match compare(dir.path()).unwrap() {
            Compared::Different(words) => words,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_whole_backup_is_equal() {
        assert_eq!(compare(backup().path()).unwrap(), Compared::Equal);
    }

    #[test]
    fn every_difference_is_seen() {
        let dir = backup();
        fs::write(dir.path().join("base/5/1"), "123456788").unwrap();
        assert_eq!(different(&dir), "base/5/1 has another checksum");
        fs::write(dir.path().join("base/5/1"), "12345678").unwrap();
        assert_eq!(different(&dir), "base/5/1 has 8 bytes instead of 9");
        fs::write(dir.path().join("base/5/1"), "1234567890").unwrap();
        assert_eq!(different(&dir), "base/5/1 has 10 bytes instead of 9");
        fs::remove_file(dir.path().join("base/5/1")).unwrap();
        assert!(different(&dir).starts_with("base/5/1: No such file"));

        let dir = backup();
        fs::write(dir.path().join("base/5/2"), "").unwrap();
        assert_eq!(different(&dir), "base/5/2 is not in backup_manifest");
        let dir = backup();
        fs::write(dir.path().join("base/pg_wal"), "").unwrap();
        assert_eq!(different(&dir), "base/pg_wal is not in backup_manifest");
        // A link is not the file, whatever it leads to.
        let dir = backup();
        fs::rename(dir.path().join("base/5/1"), dir.path().join("pg_wal/1")).unwrap();
        std::os::unix::fs::symlink("../../pg_wal/1", dir.path().join("base/5/1")).unwrap();
        assert_eq!(different(&dir), "base/5/1: no regular file");
    }

    #[test]
    fn a_manifest_of_another_kind_is_not_believed() {
        let dir = backup();
        let write = |text: String| fs::write(dir.path().join(MANIFEST), text).unwrap();
        write(manifest("SHA256", &sum()));
        assert_eq!(compare(dir.path()).unwrap(), Compared::Unknown);
        write(manifest("NONE", ""));
        assert_eq!(compare(dir.path()).unwrap(), Compared::Unknown);
        write(manifest(ALGORITHM, "e3"));
        assert!(different(&dir).contains("without meaning"));
        write(manifest(ALGORITHM, &sum()).replace("base/5/1", "../1"));
        assert!(different(&dir).contains("without meaning"));
        write(manifest(ALGORITHM, &sum()).replace("656d707479", "626173652f352f31"));
        assert!(different(&dir).contains("twice"));
        write(manifest(ALGORITHM, &sum()).split_off(1));
        assert!(different(&dir).contains("cannot be read"));
        fs::remove_file(dir.path().join(MANIFEST)).unwrap();
        assert!(compare(dir.path()).is_err());
    }
}
