//! What this machine has left: memory, processors, disk. Only where the engine is on it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where an engine usually keeps its data; what does not exist is left out.
const PATHS: &[&str] = &["/", "/var", "/var/lib/docker"];
/// A file system that does not answer is left out after this long.
const DEADLINE: Duration = Duration::from_secs(1);

/// This machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Host {
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of memory that programs can still get.
    pub memory_available: u64,
    /// Processors.
    pub cpus: u32,
    /// Load average of the last minute.
    pub load: f64,
    /// File systems, each once.
    pub disks: Vec<Disk>,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Disk {
    /// Where it was asked.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that a program may still write.
    pub free: u64,
}

impl Disk {
    /// How full it is, in words.
    #[must_use]
    pub fn in_words(&self, how: &str) -> String {
        format!(
            "the disk that holds {} is {how}: {} MiB free of {}",
            self.path,
            self.free >> 20,
            self.size >> 20
        )
    }
}

impl Host {
    /// What is exhausted, in words.
    #[must_use]
    pub fn exhausted(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.memory > 0 && self.memory_available < self.memory / 20 {
            words.push(format!(
                "this machine has {} MiB of memory left, of {}",
                self.memory_available >> 20,
                self.memory >> 20
            ));
        }
        for disk in self.disks.iter().filter(|d| d.free < d.size / 50) {
            words.push(disk.in_words("nearly full"));
        }
        words
    }
}

/// Looks; `None` where this system does not say.
pub async fn look() -> Option<Host> {
    let looking = tokio::task::spawn_blocking(|| {
        let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
        let field = |name: &str| {
            let line = meminfo.lines().find(|l| l.starts_with(name))?;
            line.split_whitespace()
                .nth(1)?
                .parse::<u64>()
                .ok()
                .map(|kib| kib << 10)
        };
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let mut host = Host {
            memory: field("MemTotal:")?,
            memory_available: field("MemAvailable:")?,
            cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
            load: load
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or_default(),
            disks: Vec::new(),
        };
        let mut seen = Vec::new();
        for path in PATHS {
            let Ok(stat) = rustix::fs::statvfs(*path) else {
                continue;
            };
            if !seen.contains(&stat.f_fsid) && stat.f_blocks > 0 {
                seen.push(stat.f_fsid);
                host.disks.push(Disk {
                    path: (*path).to_owned(),
                    size: stat.f_blocks * stat.f_frsize,
                    free: stat.f_bavail * stat.f_frsize,
                });
            }
        }
        Some(host)
    });
    tokio::time::timeout(DEADLINE, looking).await.ok()?.ok()?
}
