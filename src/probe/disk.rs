//! The file systems that matter to a deployment: how large, how much is free, and what of it
//! lies there. A volume is asked where it is: on this machine when the engine is on it, else
//! inside a container that runs. No container is created for it: on an engine whose own disk is
//! full none could be.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::containers::ContainerState;
use crate::system::System;
use crate::workload::ContainerInfo;

/// A file system that does not answer is left out after this long.
const DEADLINE: Duration = Duration::from_secs(2);

/// Stands before the device numbers of this machine where the engine is on another one.
pub const HERE: &str = "here:";

/// What lies on a file system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// The engine's own: images, the containers' layers and logs, volumes.
    Engine,
    /// A volume, or a directory of the host, that a service writes to.
    #[serde(rename_all = "kebab-case")]
    Volume {
        /// Service.
        service: String,
        /// Where the container sees it.
        destination: String,
    },
    /// The deployment's backups.
    Backups,
    /// drctl's own memory.
    State,
    /// A container's log.
    #[serde(rename_all = "kebab-case")]
    Log {
        /// Service.
        service: String,
    },
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Engine => f.write_str("the engine's data"),
            Self::Volume { service, destination } => write!(f, "{destination} of {service}"),
            Self::Backups => f.write_str("the backups"),
            Self::State => f.write_str("drctl's state directory"),
            Self::Log { service } => write!(f, "the log of {service}"),
        }
    }
}

/// A use, and where it was asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Place {
    /// What lies there.
    pub what: Use,
    /// Path on the host that has it.
    pub path: String,
}

/// One file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileSystem {
    /// Which: the host's device number, `here:` before those of this machine where the engine
    /// is on another one.
    pub id: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that an ordinary program may still write.
    pub free: u64,
    /// How many files it can hold; 0 where it has no such limit.
    pub inodes: u64,
    /// How many more it can hold.
    pub free_inodes: u64,
    /// It takes no writes at all.
    pub read_only: bool,
    /// What lies on it.
    pub places: Vec<Place>,
}

/// What a file system says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Device number.
    pub device: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes free for an ordinary program.
    pub free: u64,
    /// Files that it can hold; 0 for no limit.
    pub inodes: u64,
    /// Files more.
    pub free_inodes: u64,
    /// Mounted read-only.
    pub read_only: bool,
}

/// All that were seen, and the places that could not be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Disks {
    /// Each once.
    pub file_systems: Vec<FileSystem>,
    /// What could not be looked at, and why.
    pub unseen: Vec<(Use, String)>,
}

impl Disks {
    /// The file system that holds a use.
    #[must_use]
    pub fn of(&self, wanted: &Use) -> Option<&FileSystem> {
        self.file_systems
            .iter()
            .find(|f| f.places.iter().any(|p| &p.what == wanted))
    }

    fn add(&mut self, prefix: &str, room: Room, place: Place) {
        let id = format!("{prefix}{}", room.device);
        if let Some(known) = self.file_systems.iter_mut().find(|f| f.id == id) {
            // A bind mount may be read-only where its file system is not.
            known.read_only |= room.read_only;
            known.places.push(place);
            return;
        }
        self.file_systems.push(FileSystem {
            id,
            size: room.size,
            free: room.free,
            inodes: room.inodes,
            free_inodes: room.free_inodes,
            read_only: room.read_only,
            places: vec![place],
        });
    }
}

/// Asks the file system of `path`, or of what exists above it.
///
/// # Errors
/// The operating system's.
pub fn room(path: &Path) -> std::io::Result<Room> {
    let existing = path
        .ancestors()
        .find(|p| p.symlink_metadata().is_ok())
        .unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)?;
    Ok(Room {
        device: std::fs::metadata(existing)?.dev(),
        size: stat.f_blocks.saturating_mul(stat.f_frsize),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        // Not `f_favail`: some file systems leave that at 0.
        free_inodes: stat.f_ffree,
        read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

/// The same on a thread of its own: a network file system may never answer.
async fn room_here(path: PathBuf) -> Result<Room, String> {
    let asking = tokio::task::spawn_blocking(move || room(&path));
    match tokio::time::timeout(DEADLINE, asking).await {
        Ok(Ok(Ok(room))) => Ok(room),
        Ok(Ok(Err(e))) => Err(e.to_string()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("its file system does not answer".into()),
    }
}

/// Size of a block, blocks, free ones, files, free ones; the device; and the mounts.
const ASK: &str = "stat -f -c '%S %b %a %c %d' \"$1\" && stat -c %d \"$1\" && cat /proc/self/mountinfo";

/// Asks inside a running container; its kernel is the host's, so the device is the host's too.
///
/// # Errors
/// Why it could not be asked.
pub async fn room_inside(system: &System, container: &ContainerInfo, path: &str) -> Result<Room, String> {
    if !container.is_running() {
        return Err(format!(
            "container {} does not run, and its files are on another host",
            container.name
        ));
    }
    let out = system
        .docker
        .exec(&container.id, None, &["sh", "-c", ASK, "ask", path], DEADLINE)
        .await
        .map_err(|e| e.to_string())?;
    parse(&out.stdout, path).ok_or_else(|| format!("{path} cannot be asked: {}", out.stderr.trim()))
}

fn parse(said: &str, path: &str) -> Option<Room> {
    let mut lines = said.lines();
    let numbers: Vec<u64> = lines
        .next()?
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    let [block, blocks, free, inodes, free_inodes] = numbers.try_into().ok()?;
    let device = lines.next()?.trim().parse().ok()?;
    // The mount with the longest name that leads to the path (proc(5): fields 5 and 6).
    let options = lines
        .filter_map(|l| {
            let mut fields = l.split(' ').skip(4);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(mount, _)| Path::new(path).starts_with(mount))
        .max_by_key(|(mount, _)| mount.len())
        .map_or("", |(_, options)| options);
    Some(Room {
        device,
        size: block.saturating_mul(blocks),
        free: block.saturating_mul(free),
        inodes,
        free_inodes,
        read_only: options.split(',').any(|o| o == "ro"),
    })
}

/// Looks at every file system that the deployment writes to, and at drctl's own.
pub async fn look(
    system: &System,
    containers: &BTreeMap<String, ContainerState>,
    state: Option<&Path>,
) -> Disks {
    let mut disks = Disks::default();
    let local = system.docker.is_local();
    let here = if local { "" } else { HERE };
    let own = [
        (Use::Backups, Some(system.runbook.backup.directory.as_path())),
        (Use::State, state),
    ];
    for (what, path) in own {
        let Some(path) = path else { continue };
        let place = Place {
            what: what.clone(),
            path: path.display().to_string(),
        };
        match room_here(path.to_owned()).await {
            Ok(room) => disks.add(here, room, place),
            Err(why) => disks.unseen.push((what, why)),
        }
    }
    let running = containers
        .values()
        .filter_map(ContainerState::found)
        .map(|f| &f.info)
        .find(|i| i.is_running());
    let root = system.docker.data_root().await.unwrap_or_default();
    if !root.is_empty() {
        let asked = match (local, running) {
            (true, _) => room_here(PathBuf::from(&root)).await,
            // The containers' own layers lie there.
            (false, Some(container)) => room_inside(system, container, "/").await.map(|room| Room {
                // A container may well be read-only itself.
                read_only: false,
                ..room
            }),
            (false, None) => Err("no container runs that could be asked".into()),
        };
        match asked {
            Ok(room) => disks.add(
                "",
                room,
                Place {
                    what: Use::Engine,
                    path: root,
                },
            ),
            Err(why) => disks.unseen.push((Use::Engine, why)),
        }
    }
    for (service, state) in containers {
        let Some(facts) = state.found() else { continue };
        for mount in facts.info.mounts.iter().filter(|m| m.writable) {
            let what = Use::Volume {
                service: service.clone(),
                destination: mount.destination.clone(),
            };
            let mut asked = Err(String::new());
            if local {
                asked = room_here(PathBuf::from(&mount.source)).await;
            }
            if asked.is_err() {
                asked = room_inside(system, &facts.info, &mount.destination).await;
            }
            match asked {
                Ok(room) => disks.add(
                    "",
                    room,
                    Place {
                        what,
                        path: mount.source.clone(),
                    },
                ),
                Err(why) => disks.unseen.push((what, why)),
            }
        }
        if local && let Ok(Some(log)) = system.docker.log_file(&facts.info.id).await {
            let place = Place {
                what: Use::Log {
                    service: service.clone(),
                },
                path: log.display().to_string(),
            };
            if let Ok(room) = room_here(log).await {
                disks.add("", room, place);
            }
        }
    }
    disks
}

/// Bytes on the disk below a directory of this machine; `None` when it cannot be read in time.
pub async fn size_of(path: PathBuf) -> Option<u64> {
    let adding = tokio::task::spawn_blocking(move || {
        std::fs::read_dir(&path).ok()?;
        Some(crate::backup::allocated(&path))
    });
    tokio::time::timeout(DEADLINE, adding).await.ok()?.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_says_is_read() {
        let said = "4096 100 25 1000 10\n65024\n\
            1 0 0:1 / / rw,relatime - overlay overlay rw\n\
            2 1 8:1 / /data rw - ext4 /dev/sda1 rw\n\
            3 1 8:2 /x /data/ro ro,noatime - ext4 /dev/sda2 rw\n";
        let room = parse(said, "/data").unwrap();
        assert_eq!((room.size, room.free, room.device), (409_600, 102_400, 65024));
        assert_eq!((room.inodes, room.free_inodes, room.read_only), (1000, 10, false));
        assert!(parse(said, "/data/ro/pg").unwrap().read_only);
        assert!(!parse(said, "/database").unwrap().read_only);
        assert_eq!(parse("sh: stat: not found\n", "/"), None);
    }

    #[test]
    fn a_path_that_does_not_exist_is_where_it_would_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let there = room(dir.path()).unwrap();
        let not_yet = room(&dir.path().join("a/b/c")).unwrap();
        assert_eq!(there.device, not_yet.device);
        assert!(there.size > 0 && !there.read_only);
    }
}
