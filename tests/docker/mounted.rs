//! A file system that a test can fill.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::stack::run;

/// A small file system of its own, gone when dropped.
pub struct Mounted(pub PathBuf);

impl Mounted {
    /// Mounts one of that size. `None`, and said, where that is not allowed.
    pub fn at(path: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let options = format!("size={size},mode=700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path);
        let out = run(&mut mount, None, Duration::from_secs(10));
        if out.code == Some(0) {
            return Some(Self(path));
        }
        eprintln!(
            "SKIPPED: no file system can be mounted here: {}",
            out.stderr.trim()
        );
        None
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        let mut df = Command::new("df");
        df.args(["--output=avail", "-B1"]).arg(&self.0);
        let out = run(&mut df, None, Duration::from_secs(10)).ok();
        out.lines().last().unwrap().trim().parse().unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        run(umount.arg("-l").arg(&self.0), None, Duration::from_secs(10));
    }
}
