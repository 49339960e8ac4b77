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

    /// Mounts one of so many MiB on an image file: its size is counted in blocks, and its log is
    /// its own, as on a real disk. `None`, and said, where that is not allowed.
    pub fn image(directory: &std::path::Path, mib: u64) -> Option<Self> {
        let image = directory.join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-m", "0"]).arg(&image);
        let path = directory.join("disk");
        std::fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(&path);
        for command in [&mut make, &mut mount] {
            let out = run(command, None, Duration::from_secs(30));
            if out.code != Some(0) {
                eprintln!("SKIPPED: no image can be mounted here: {}", out.stderr.trim());
                return None;
            }
        }
        Some(Self(path))
    }

    /// Puts a copy of a directory's content on this disk, and the copy in its place.
    pub fn take_over(&self, name: &str, place: &str) -> Self {
        let copy = self.0.join(name);
        let mut command = Command::new("cp");
        command.arg("-a").arg(place).arg(&copy);
        run(&mut command, None, Duration::from_secs(60)).ok();
        let mut bind = Command::new("mount");
        bind.arg("--bind").arg(&copy).arg(place);
        run(&mut bind, None, Duration::from_secs(10)).ok();
        Self(PathBuf::from(place))
    }

    /// Writes a file until so many bytes are free, in small pieces at the end.
    pub fn fill(&self, name: &str, leave: u64) -> PathBuf {
        let path = self.0.join(name);
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        for piece in [1 << 20, 64 << 10, 4096, 512] {
            let block = vec![1_u8; piece];
            while self.free() >= leave + piece as u64 && std::io::Write::write_all(&mut file, &block).is_ok()
            {
            }
        }
        if leave == 0 {
            while std::io::Write::write_all(&mut file, b"x").is_ok() {}
        }
        let _ = file.sync_all();
        path
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
