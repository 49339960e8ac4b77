//! The staging directory: making, measuring, digesting and sealing files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::manifest::FileDigest;

/// Bytes read at once for a digest: large enough for full speed, small in memory.
const CHUNK: usize = 256 << 10;

/// Makes a directory that only its owner can enter: dumps hold everybody's data.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file that only its owner can read, and waits until it is on disk.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Waits until everything written to the file system of `path` is on disk. One call for the
/// whole set: the tools' own way, an fsync for each of thousands of files, takes four times
/// as long.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// Waits until a directory's entries are on disk.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Bytes and number of the regular files below `path`. Files that vanish meanwhile are
/// left out: the directory may be growing.
#[must_use]
pub fn measure(path: &Path) -> (u64, u64) {
    let mut sum = (0, 0);
    each(path, &mut |meta| {
        sum.0 += meta.len();
        sum.1 += 1;
    });
    sum
}

/// Bytes that the regular files below `path` take on the disk: holes are left out.
#[must_use]
pub fn allocated(path: &Path) -> u64 {
    let mut sum = 0;
    // POSIX leaves the unit open; on Linux it is 512 bytes (inode(7)).
    each(path, &mut |meta| sum += meta.blocks() * 512);
    sum
}

fn each(path: &Path, found: &mut dyn FnMut(&fs::Metadata)) {
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            // Not followed: a link's target is not part of the set.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                pending.push(entry.path());
            } else if meta.is_file() {
                found(&meta);
            }
        }
    }
}

/// Regular files below `root`, relative to it, sorted. `enter` decides about directories.
pub fn list(root: &Path, enter: &dyn Fn(&Path) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if enter(&path) {
                    pending.push(path);
                }
            } else if kind.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Size and SHA-256 of `root`/`path`.
pub fn digest(root: &Path, path: &Path) -> io::Result<FileDigest> {
    let mut file = File::open(root.join(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer)?;
        let Some(part) = buffer.get(..n).filter(|p| !p.is_empty()) else {
            break;
        };
        hash.update(part);
        bytes += n as u64;
    }
    Ok(FileDigest {
        path: path.to_string_lossy().into_owned(),
        bytes,
        sha256: hex(&hash.finalize()),
    })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// Removes a directory tree; one that is not there is fine.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Bytes that the regular files below `path` take, as far as they have no other name that keeps
/// them: what its removal gives back.
#[must_use]
pub fn freed(path: &Path) -> u64 {
    let mut sum = 0;
    each(path, &mut |meta| {
        if meta.nlink() <= 1 {
            sum += meta.blocks() * 512;
        }
    });
    sum
}

/// Bytes that may still be written to the file system of `path` (for others than root).
pub fn free_space(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A database's name as one harmless path component: anything unusual as `%XX`, and never
/// the name of something else in the same directory.
#[must_use]
pub fn component(name: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (i, b) in name.bytes().enumerate() {
        if b.is_ascii_alphanumeric() || b == b'_' || (i > 0 && (b == b'-' || b == b'.')) {
            text.push(char::from(b));
        } else {
            let _ = write!(text, "%{b:02X}");
        }
    }
    if text == "base" || Path::new(&text).extension().is_some_and(|e| e == "sql") {
        text.push('%');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_names_are_harmless_paths_and_stay_apart() {
        for (name, path) in [
            ("simgen", "simgen"),
            ("base", "base%"),
            ("globals.sql", "globals.sql%"),
            ("..", "%2E."),
            ("a/b", "a%2Fb"),
            ("-x", "%2Dx"),
            ("ä", "%C3%A4"),
        ] {
            assert_eq!(component(name), path);
        }
    }

    #[test]
    fn trees_are_measured_listed_and_digested() {
        let dir = tempfile::tempdir().unwrap();
        make_private_dir(&dir.path().join("a/b")).unwrap();
        write_private(&dir.path().join("a/one"), b"abc").unwrap();
        write_private(&dir.path().join("a/b/two"), b"").unwrap();
        assert_eq!(measure(dir.path()), (3, 2));
        let all = list(dir.path(), &|_| true).unwrap();
        assert_eq!(all, [PathBuf::from("a/b/two"), PathBuf::from("a/one")]);
        let d = digest(dir.path(), &all[1]).unwrap();
        assert_eq!(d.bytes, 3);
        assert!(d.sha256.starts_with("ba7816bf8f01cfea"), "{}", d.sha256);
    }
}
