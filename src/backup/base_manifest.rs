//! `backup_manifest`, the list that `pg_basebackup` makes of the files of a base backup
//! (PostgreSQL manual, 76), and the comparison of the files with it.
//!
//! `pg_verifybackup` compares with one thread and takes a quarter of the time of a backup.
//! Here every processor compares, with the same rules: each file that is listed is there, has
//! its length and its checksum, and nothing is there that is not listed, `pg_wal` and the
//! files that a server may write in the backup directory aside. What the tool checks besides,
//! the manifest's own checksum and the WAL, it is still asked for (`--skip-checksums`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;

use crate::postgres::Lsn;

/// Its name in the base backup.
pub const FILE_NAME: &str = "backup_manifest";
/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Not in the list by rule (`pg_verifybackup.c`, `should_ignore_relpath` of its defaults).
const NOT_LISTED: [&str; 5] = [
    FILE_NAME,
    "pg_wal",
    "postgresql.auto.conf",
    "recovery.signal",
    "standby.signal",
];

/// The list.
#[derive(Debug, Deserialize)]
pub struct BaseManifest {
    #[serde(rename = "Files")]
    files: Vec<Listed>,
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<WalRange>,
}

/// One file of the list.
#[derive(Debug, Deserialize)]
struct Listed {
    #[serde(rename = "Path", default)]
    path: Option<String>,
    /// For a name that is not UTF-8.
    #[serde(rename = "Encoded-Path", default)]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm", default)]
    algorithm: Option<String>,
    #[serde(rename = "Checksum", default)]
    checksum: Option<String>,
}

/// The WAL that a base backup needs.
#[derive(Debug, Clone, Deserialize)]
pub struct WalRange {
    /// Timeline.
    #[serde(rename = "Timeline")]
    pub timeline: u32,
    /// Where it begins.
    #[serde(rename = "Start-LSN")]
    pub start: Lsn,
    /// Where it ends.
    #[serde(rename = "End-LSN")]
    pub end: Lsn,
}

/// How a comparison ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// Every file is as the list says.
    Same {
        /// How many.
        files: usize,
    },
    /// These are not, in words; the first hundred.
    Different(Vec<String>),
    /// The list uses a checksum that is not computed here, or none: the tool must do it.
    OtherChecksum(String),
}

impl BaseManifest {
    /// Reads the list of a base backup.
    ///
    /// # Errors
    /// A file that cannot be read or is no such list.
    pub fn read(base: &Path) -> io::Result<Self> {
        let file = BufReader::new(File::open(base.join(FILE_NAME))?);
        serde_json::from_reader(file).map_err(io::Error::from)
    }

    /// The WAL that it needs.
    #[must_use]
    pub fn wal_ranges(&self) -> &[WalRange] {
        &self.wal_ranges
    }

    /// Compares the files of `base` with the list, by as many threads as there are
    /// processors.
    ///
    /// # Errors
    /// A file or directory that cannot be read for another reason than being absent.
    pub fn compare(&self, base: &Path) -> io::Result<Compared> {
        let mut expected: BTreeMap<PathBuf, &Listed> = BTreeMap::new();
        for listed in &self.files {
            match listed.algorithm.as_deref() {
                Some("CRC32C") => {}
                other => return Ok(Compared::OtherChecksum(other.unwrap_or("none").to_owned())),
            }
            let Some(path) = listed.path() else {
                return Ok(Compared::Different(vec![
                    "backup_manifest lists a file without a name".to_owned(),
                ]));
            };
            expected.insert(path, listed);
        }
        let mut problems = extra_files(base, &expected)?;
        let work: Vec<(&PathBuf, &&Listed)> = expected
            .iter()
            .filter(|(path, _)| !path.starts_with("pg_wal") && !is_not_listed(path))
            .collect();
        let next = AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let one = || -> io::Result<Vec<String>> {
            let mut problems = Vec::new();
            let mut buffer = vec![0; CHUNK];
            while let Some((path, listed)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                problems.extend(listed.problem(base, path, &mut buffer)?);
            }
            Ok(problems)
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(one)).collect();
            problems.extend(one()?);
            for other in others {
                problems.extend(
                    other.join().unwrap_or_else(|_| {
                        Err(io::Error::other("a thread that compares files ended early"))
                    })?,
                );
            }
            Ok::<(), io::Error>(())
        })?;
        Ok(if problems.is_empty() {
            Compared::Same { files: work.len() }
        } else {
            problems.sort();
            problems.truncate(100);
            Compared::Different(problems)
        })
    }
}

impl Listed {
    fn path(&self) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        if let Some(path) = &self.path {
            return Some(path.into());
        }
        let bytes = unhex(self.encoded_path.as_deref()?)?;
        Some(std::ffi::OsString::from_vec(bytes).into())
    }

    /// What is wrong with the file, if anything.
    fn problem(&self, base: &Path, path: &Path, buffer: &mut [u8]) -> io::Result<Option<String>> {
        let shown = path.display();
        let mut file = match File::open(base.join(path)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Some(format!("{shown} is listed and is not there")));
            }
            Err(e) => return Err(e),
        };
        let length = file.metadata()?.len();
        if length != self.size {
            return Ok(Some(format!(
                "{shown} has {length} bytes, the list says {}",
                self.size
            )));
        }
        let mut crc = 0;
        loop {
            let n = file.read(buffer)?;
            let Some(part) = buffer.get(..n).filter(|p| !p.is_empty()) else {
                break;
            };
            crc = crc32c::crc32c_append(crc, part);
        }
        // The list holds the number's bytes as they lie in the server's memory, and PostgreSQL
        // runs on the machine that its image is made for: this one's kind, little end first.
        let same = self
            .checksum
            .as_deref()
            .and_then(unhex)
            .is_some_and(|listed| listed == crc.to_le_bytes());
        Ok((!same).then(|| format!("{shown} has another checksum than the list says")))
    }
}

fn is_not_listed(path: &Path) -> bool {
    NOT_LISTED.iter().any(|n| path == Path::new(n))
}

/// Files that nothing lists.
fn extra_files(base: &Path, expected: &BTreeMap<PathBuf, &Listed>) -> io::Result<Vec<String>> {
    let mut extra = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(base.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            if is_not_listed(&path) {
                continue;
            }
            // Not followed: a tablespace is a link, and its files are listed below it.
            let kind =
                fs::metadata(entry.path()).map_or_else(|_| entry.file_type(), |m| Ok(m.file_type()))?;
            if kind.is_dir() {
                pending.push(path);
            } else if !expected.contains_key(&path) {
                extra.push(format!("{} is there and is not listed", path.display()));
            }
        }
    }
    Ok(extra)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A base backup of three files with its list.
    fn base() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("base/5")).unwrap();
        fs::create_dir_all(dir.path().join("pg_wal")).unwrap();
        let mut files = Vec::new();
        for (name, content) in [
            ("PG_VERSION", b"15\n".to_vec()),
            ("base/5/1259", vec![7; 3 * 8192]),
            ("base/5/empty", Vec::new()),
        ] {
            fs::write(dir.path().join(name), &content).unwrap();
            // The number's bytes, the least significant first.
            let crc = format!("{:08x}", crc32c::crc32c(&content).swap_bytes());
            files.push(format!(
                r#"{{ "Path": "{name}", "Size": {}, "Last-Modified": "2026-11-20 20:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "{crc}" }}"#,
                content.len()
            ));
        }
        // Of the WAL the list says where it begins and ends, and of this file nothing.
        fs::write(dir.path().join("pg_wal/000000010000000000000004"), "x").unwrap();
        fs::write(dir.path().join("postgresql.auto.conf"), "").unwrap();
        let list = format!(
            r#"{{ "PostgreSQL-Backup-Manifest-Version": 1, "Files": [ {} ],
            "WAL-Ranges": [ {{ "Timeline": 1, "Start-LSN": "0/4000028", "End-LSN": "0/4000100" }} ],
            "Manifest-Checksum": "ab"}}"#,
            files.join(",\n")
        );
        fs::write(dir.path().join(FILE_NAME), list).unwrap();
        dir
    }

    fn compared(dir: &tempfile::TempDir) -> Compared {
        BaseManifest::read(dir.path())
            .unwrap()
            .compare(dir.path())
            .unwrap()
    }

    fn different(dir: &tempfile::TempDir, words: &str) {
        match compared(dir) {
            Compared::Different(all) => assert!(all.len() == 1 && all[0].contains(words), "{all:?}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_checksum_is_that_of_postgresql() {
        // The check value of CRC-32C (RFC 3720, B.4 names the polynomial).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_whole_backup_is_the_same_and_tells_its_wal() {
        let dir = base();
        assert_eq!(compared(&dir), Compared::Same { files: 3 });
        let manifest = BaseManifest::read(dir.path()).unwrap();
        let range = &manifest.wal_ranges()[0];
        assert_eq!((range.timeline, range.start.to_string()), (1, "0/4000028".into()));
    }

    #[test]
    fn one_bit_is_seen() {
        let dir = base();
        let path = dir.path().join("base/5/1259");
        let mut content = fs::read(&path).unwrap();
        content[9000] ^= 1;
        fs::write(&path, content).unwrap();
        different(&dir, "base/5/1259 has another checksum");
    }

    #[test]
    fn what_is_missing_short_or_too_much_is_seen() {
        let dir = base();
        fs::remove_file(dir.path().join("base/5/empty")).unwrap();
        different(&dir, "base/5/empty is listed and is not there");
        let dir = base();
        fs::write(dir.path().join("base/5/1259"), [7; 8192]).unwrap();
        different(&dir, "base/5/1259 has 8192 bytes, the list says 24576");
        let dir = base();
        fs::write(dir.path().join("base/5/1260"), "x").unwrap();
        different(&dir, "base/5/1260 is there and is not listed");
    }

    #[test]
    fn another_checksum_is_left_to_the_tool() {
        let dir = base();
        let path = dir.path().join(FILE_NAME);
        let text = fs::read_to_string(&path).unwrap().replace("CRC32C", "SHA256");
        fs::write(&path, text).unwrap();
        assert_eq!(compared(&dir), Compared::OtherChecksum("SHA256".into()));
    }

    #[test]
    fn a_list_that_is_torn_is_an_error() {
        let dir = base();
        let path = dir.path().join(FILE_NAME);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(BaseManifest::read(dir.path()).is_err());
    }
}
