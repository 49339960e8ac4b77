//! A directory that only its owner can enter, where others may have been first.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

/// Makes `path` a directory of ours alone, with the directories above it, or makes sure that it
/// is one. In a place like `/var/tmp` everybody can make it before us, or put a link there.
///
/// # Errors
/// The operating system's, and [`io::ErrorKind::PermissionDenied`] where it is another's, or
/// open to others, or no directory: nothing in it can be trusted then, and nothing was changed.
pub fn private_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        // What is there in its place is judged below.
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    is_private(path)
}

/// Whether `path` is a directory of ours alone. Nothing is made.
///
/// # Errors
/// As [`private_directory`]; [`io::ErrorKind::NotFound`] where there is none.
pub fn is_private(path: &Path) -> io::Result<()> {
    // Not followed: a link could lead to a directory of ours that is meant for something else.
    let meta = fs::symlink_metadata(path)?;
    let denied = |why: String| {
        let text = format!("{} {why}", path.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    };
    if !meta.is_dir() {
        return denied("is no directory".into());
    }
    let us = rustix::process::geteuid().as_raw();
    if meta.uid() != us {
        return denied(format!("belongs to user {}, not to {us}", meta.uid()));
    }
    // The set-group-ID bit is inherited, and lets nobody in.
    let mode = meta.mode() & 0o777;
    if mode != 0o700 {
        return denied(format!("has mode {mode:o} instead of 700"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_a_directory_of_ours_alone_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        private_directory(&at("a/b")).unwrap();
        assert_eq!(fs::metadata(at("a/b")).unwrap().mode() & 0o7777, 0o700);
        // Again.
        private_directory(&at("a/b")).unwrap();
        let refused = |name: &str| {
            let e = private_directory(&at(name)).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::PermissionDenied, "{name}: {e}");
            e.to_string()
        };
        symlink(at("a/b"), at("link")).unwrap();
        assert!(refused("link").contains("no directory"));
        symlink(at("nowhere"), at("dangling")).unwrap();
        assert!(refused("dangling").contains("no directory"));
        fs::write(at("file"), "").unwrap();
        assert!(refused("file").contains("no directory"));
        fs::create_dir(at("open")).unwrap();
        for mode in [0o755, 0o770, 0o701, 0o777] {
            fs::set_permissions(at("open"), fs::Permissions::from_mode(mode)).unwrap();
            assert!(refused("open").contains(&format!("{mode:o}")), "{mode:o}");
        }
        // Only root can make one that belongs to somebody else.
        if rustix::process::geteuid().is_root() {
            private_directory(&at("theirs")).unwrap();
            std::os::unix::fs::chown(at("theirs"), Some(65_534), None).unwrap();
            assert!(refused("theirs").contains("65534"));
        }
        assert_eq!(
            is_private(&at("none")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
