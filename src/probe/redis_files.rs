//! What a Redis server would load at its start: its snapshot (RDB) and its append-only file
//! (AOF), judged by the check tools of its own image. It works whether or not the server runs.

mod parse;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::plan::RedisFiles;
use crate::system::System;
use crate::workload::{ContainerInfo, HelperSpec, WorkloadError};

const LOOK: &str = include_str!("redis_files.sh");
/// What a server and the check tool say of a file that a newer version has written (rdb.c,
/// redis-check-rdb.c); the number stands behind it.
pub const OTHER_FORMAT: &str = "Can't handle RDB format version";

/// The files of one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedisFileFacts {
    /// Where they are and which of them it loads.
    pub files: RedisFiles,
    /// Bytes free on their file system.
    pub free: u64,
    /// The snapshot, if there is one.
    pub snapshot: Option<SnapshotFacts>,
    /// The append-only file, if there is one.
    pub append: Option<AppendFacts>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SnapshotFacts {
    /// Bytes.
    pub bytes: u64,
    /// When it was written.
    pub modified: Option<Timestamp>,
    /// What `redis-check-rdb` says.
    pub state: SnapshotState,
    /// Keys that it could read.
    pub keys: Keys,
}

/// How a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// It can be loaded.
    Sound,
    /// Every key can be read, and the checksum at the end is another one.
    ChecksumWrong,
    /// It is whole as far as can be told, and of a format that this image does not read; in words.
    OtherVersion(String),
    /// It cannot be read to its end.
    Damaged(String),
}

/// Keys of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Keys {
    /// All of them.
    pub all: u64,
    /// Those that end by themselves.
    pub expiring: u64,
}

impl Keys {
    /// Those that are there at any later time.
    #[must_use]
    pub fn lasting(self) -> u64 {
        self.all.saturating_sub(self.expiring)
    }
}

/// An append-only file, all parts of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AppendFacts {
    /// Bytes of all files.
    pub bytes: u64,
    /// What its manifest and `redis-check-aof` say.
    pub state: AppendState,
    /// Keys of its base, where that could be read: what comes behind it changes them.
    pub base_keys: Option<Keys>,
}

/// How an append-only file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppendState {
    /// It can be loaded.
    Sound,
    /// Its files are there, and the list of them is not, or cannot be read.
    #[serde(rename_all = "kebab-case")]
    Manifest {
        /// The list as it must be; or why that is not certain.
        rebuilt: Result<Vec<String>, String>,
    },
    /// A command cannot be read; the server stops there.
    #[serde(rename_all = "kebab-case")]
    Cut {
        /// The file.
        file: String,
        /// Bytes up to the damage.
        good: u64,
        /// Bytes of the file.
        bytes: u64,
        /// Commands behind it, as far as they can be told.
        behind: u64,
    },
    /// Its base is of a format that this image does not read; in words.
    OtherVersion(String),
    /// Its base or something else cannot be read, in words.
    Damaged(String),
}

impl RedisFileFacts {
    /// Whether what the server loads has something that keeps it from starting.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        if self.files.append_only {
            self.append
                .as_ref()
                .is_some_and(|a| a.state != AppendState::Sound)
        } else {
            self.snapshot
                .as_ref()
                .is_some_and(|s| s.state != SnapshotState::Sound)
        }
    }

    /// Whether a start finds nothing to load and writes over what is there: without its manifest
    /// Redis 7 does not look at the parts of its append-only file.
    #[must_use]
    pub fn would_be_overwritten(&self) -> bool {
        let lost = |a: &AppendFacts| a.bytes > 0 && matches!(a.state, AppendState::Manifest { .. });
        self.files.append_only && self.append.as_ref().is_some_and(lost)
    }

    /// In which format the files are that the server would load, where it is one that its image
    /// does not read: those are not damaged, another image loads them.
    #[must_use]
    pub fn other_version(&self) -> Option<&str> {
        if self.files.append_only {
            match &self.append.as_ref()?.state {
                AppendState::OtherVersion(format) => Some(format),
                _ => None,
            }
        } else {
            self.snapshot_of_another_version()
        }
    }

    /// The same of the snapshot, whether the server would load it or not.
    #[must_use]
    pub fn snapshot_of_another_version(&self) -> Option<&str> {
        match &self.snapshot.as_ref()?.state {
            SnapshotState::OtherVersion(format) => Some(format),
            _ => None,
        }
    }

    /// Bytes of what the server loads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        if self.files.append_only {
            self.append.as_ref().map_or(0, |a| a.bytes)
        } else {
            self.snapshot.as_ref().map_or(0, |s| s.bytes)
        }
    }

    /// What is wrong, in words.
    #[must_use]
    pub fn in_words(&self) -> String {
        let directory = &self.files.directory;
        if self.files.append_only {
            match self.append.as_ref().map(|a| &a.state) {
                None => format!("there is no append-only file in {directory}"),
                Some(AppendState::Sound) => "its append-only file can be read".into(),
                Some(AppendState::Manifest { rebuilt: Ok(_) }) => {
                    "the files of its append-only file are there, and their list (the manifest) cannot be read".into()
                }
                Some(AppendState::Manifest { rebuilt: Err(why) }) => {
                    format!("the manifest of its append-only file cannot be read, and {why}")
                }
                Some(AppendState::Cut {
                    file,
                    good,
                    bytes,
                    behind,
                }) => format!(
                    "{file} cannot be read from byte {good} of {bytes} on; about {behind} commands stand behind that"
                ),
                Some(AppendState::OtherVersion(format)) => {
                    format!("the base of its append-only file is of {format}, which this image does not read")
                }
                Some(AppendState::Damaged(why)) => format!("its append-only file cannot be read: {why}"),
            }
        } else {
            let name = &self.files.snapshot;
            match self.snapshot.as_ref().map(|s| (&s.state, s.keys.all)) {
                None => format!("there is no {name} in {directory}"),
                Some((SnapshotState::Sound, keys)) => format!("{name} can be read: {keys} keys"),
                Some((SnapshotState::ChecksumWrong, keys)) => {
                    format!("all {keys} keys of {name} can be read, and its checksum is wrong")
                }
                Some((SnapshotState::OtherVersion(format), _)) => {
                    format!("{name} is of {format}, which this image does not read")
                }
                Some((SnapshotState::Damaged(why), keys)) => {
                    format!("{name} cannot be read behind its first {keys} keys: {why}")
                }
            }
        }
    }
}

/// Looks at the files of a container.
///
/// # Errors
/// In words: the engine's trouble, an image without the tools, longer than `deadline`.
pub async fn look(
    system: &System,
    container: &ContainerInfo,
    run: &str,
    deadline: Duration,
) -> Result<RedisFileFacts, String> {
    let argv = ["/bin/sh", "-c", LOOK, "redis-files"];
    let mut spec = HelperSpec::new(
        system.deployment(),
        run,
        "redis-files",
        &container.image_id,
        &argv,
    );
    // Not read-only: redis-check-aof opens what it checks for writing, and does not write without
    // --fix.
    spec.volumes_from = Some((container.id.clone(), false));
    spec.env = environment(container);
    let output = system
        .docker
        .run_helper(&spec, deadline)
        .await
        .map_err(|e| e.to_string())?;
    parse::parse(&output.stdout)
}

/// Whether the directory of an append-only file is there and its manifest is not, by the names
/// that the command line and its configuration file give. A few questions to the engine, for whom
/// a look would take too long.
///
/// # Errors
/// The engine's trouble.
pub async fn lacks_manifest(system: &System, container: &ContainerInfo) -> Result<bool, WorkloadError> {
    let docker = &system.docker;
    let paths = paths_of(system, container).await?;
    Ok(docker.has_path(&container.id, &paths.append).await?
        && !docker.has_path(&container.id, &paths.manifest).await?)
}

/// The directory of a server's files, by the same names.
///
/// # Errors
/// The engine's trouble.
pub async fn data_directory(system: &System, container: &ContainerInfo) -> Result<String, WorkloadError> {
    Ok(paths_of(system, container).await?.directory)
}

async fn paths_of(system: &System, container: &ContainerInfo) -> Result<Paths, WorkloadError> {
    let told: BTreeMap<String, String> = environment(container).into_iter().collect();
    let configuration = match told.get("CONF").filter(|file| !file.is_empty()) {
        Some(file) => {
            let path = Path::new("/").join(&container.working_dir).join(file);
            let path = path.display().to_string();
            system.docker.read_small(&container.id, &path).await?
        }
        None => None,
    };
    Ok(paths(
        container,
        &told,
        configuration.as_deref().unwrap_or_default(),
    ))
}

/// Where a server's files are.
struct Paths {
    directory: String,
    /// Directory of the append-only file.
    append: String,
    manifest: String,
}

/// The command line counts, then the configuration file, then what the server takes by itself.
fn paths(container: &ContainerInfo, told: &BTreeMap<String, String>, configuration: &str) -> Paths {
    let setting = |option: &str, key: &str, default: &str| {
        let value = told.get(option).filter(|v| !v.is_empty()).cloned();
        value
            .or_else(|| configured(configuration, key))
            .unwrap_or_else(|| default.to_owned())
    };
    let directory = Path::new("/")
        .join(&container.working_dir)
        .join(setting("ARG_DIR", "dir", "."));
    let append = directory.join(setting("ARG_LOGS", "appenddirname", "appendonlydir"));
    let name = setting("ARG_NAME", "appendfilename", "appendonly.aof");
    let manifest = append.join(format!("{name}.manifest"));
    // Without its `.`, so that it compares.
    let plain = |path: &Path| path.components().collect::<PathBuf>().display().to_string();
    Paths {
        directory: plain(&directory),
        append: plain(&append),
        manifest: plain(&manifest),
    }
}

/// A setting of a configuration file: the last line that has it counts.
fn configured(text: &str, key: &str) -> Option<String> {
    let value = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|w| w.eq_ignore_ascii_case(key))?;
        words.next().map(|v| v.replace(['"', '\''], ""))
    };
    text.lines().filter_map(value).next_back()
}

fn environment(container: &ContainerInfo) -> Vec<(String, String)> {
    let words: Vec<&str> = container
        .command
        .iter()
        .flat_map(|w| w.split_whitespace())
        .map(|w| w.trim_matches(['"', '\'']))
        .collect();
    let option = |name: &str| {
        let at = words.iter().position(|w| w.eq_ignore_ascii_case(name));
        let value = at.and_then(|at| words.get(at + 1));
        value.map_or_else(String::new, |v| (*v).to_owned())
    };
    let file = words
        .iter()
        .find(|w| !w.starts_with("--") && parse::has_extension(w, "conf"));
    [
        ("WORKDIR", container.working_dir.clone()),
        ("CONF", file.map_or_else(String::new, |f| (*f).to_owned())),
        ("ARG_DIR", option("--dir")),
        ("ARG_SNAPSHOT", option("--dbfilename")),
        ("ARG_APPENDONLY", option("--appendonly")),
        ("ARG_LOGS", option("--appenddirname")),
        ("ARG_NAME", option("--appendfilename")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[cfg(test)]
mod tests;
