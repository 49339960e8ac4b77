//! Damage to the files of a cluster: what is done, and the helper that does it and
//! undoes it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::system::{PostgresServer, System};

/// The whole procedure, for `sh -c`.
const SCRIPT: &str = include_str!("files.sh");

/// One piece of damage. Paths are relative to the data directory, blocks are counted
/// from the beginning of that file and are 8192 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Damage {
    /// Random bytes inside one block.
    Scramble {
        /// File.
        path: String,
        /// Block in the file.
        block: u64,
        /// First byte in the block.
        offset: u32,
        /// Number of bytes.
        length: u32,
    },
    /// One block of zeros, which PostgreSQL takes for a valid empty page.
    Zero {
        /// File.
        path: String,
        /// Block in the file.
        block: u64,
    },
    /// The record in the WAL that replay would begin at. Found by the helper once the
    /// server has stopped: before, each checkpoint moves it.
    Checkpoint,
    /// The file ends after so many blocks.
    Truncate {
        /// File.
        path: String,
        /// Blocks that stay.
        blocks: u64,
    },
    /// The file is not there.
    Remove {
        /// File.
        path: String,
    },
    /// One more line at the end of a configuration file.
    Config {
        /// File.
        path: String,
        /// The line.
        line: String,
    },
    /// Another major version than the cluster's.
    Version {
        /// File.
        path: String,
        /// The version that it claims.
        major: String,
    },
    /// A directory and everything in it belongs to root.
    Owner {
        /// Directory.
        path: String,
    },
    /// A file or directory has another mode.
    Mode {
        /// File or directory.
        path: String,
        /// Octal.
        mode: String,
    },
    /// An empty file where none belongs.
    Plant {
        /// File.
        path: String,
    },
}

impl Damage {
    fn argv(&self) -> Vec<String> {
        let mut argv: Vec<String> = Vec::new();
        let mut add = |parts: &[&str]| argv.extend(parts.iter().map(|p| (*p).to_owned()));
        match self {
            Self::Scramble {
                path,
                block,
                offset,
                length,
            } => add(&[
                "scramble",
                path,
                &block.to_string(),
                &offset.to_string(),
                &length.to_string(),
            ]),
            Self::Zero { path, block } => add(&["zero", path, &block.to_string()]),
            Self::Checkpoint => add(&["checkpoint"]),
            Self::Truncate { path, blocks } => add(&["truncate", path, &blocks.to_string()]),
            Self::Remove { path } => add(&["remove", path]),
            Self::Config { path, line } => add(&["config", path, line]),
            Self::Version { path, major } => add(&["version", path, major]),
            Self::Owner { path } => add(&["owner", path]),
            Self::Mode { path, mode } => add(&["mode", path, mode]),
            Self::Plant { path } => add(&["plant", path]),
        }
        argv
    }
}

/// How the damaged place looks now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// As the fault left it.
    Damaged,
    /// As it was before the fault.
    Intact,
    /// Neither: somebody has put something else there since. The reason.
    Replaced(String),
}

/// What the helper is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Save the original, then damage.
    Damage,
    /// Only look.
    State,
    /// Put the original back if the damage is still as it was left.
    Restore,
}

/// Runs one action in a helper with the server's mounts.
///
/// # Errors
/// The helper's own words when it failed; the engine's trouble.
pub async fn run(
    system: &System,
    server: &PostgresServer,
    id: &str,
    action: Action,
    damage: &Damage,
) -> Result<Found> {
    let word = match action {
        Action::Damage => "damage",
        Action::State => "state",
        Action::Restore => "restore",
    };
    let arguments = damage.argv();
    let mut argv = vec![word];
    let dir = saved_dir(server, id);
    argv.push(&dir);
    argv.extend(arguments.iter().map(String::as_str));
    let out = script(system, server, id, action == Action::State, &argv).await?;
    let last = out.lines().last().unwrap_or_default().trim();
    match last {
        "damaged" => Ok(Found::Damaged),
        "intact" => Ok(Found::Intact),
        other => match other.strip_prefix("replaced: ") {
            Some(reason) => Ok(Found::Replaced(reason.to_owned())),
            None => Err(Error::new(
                Kind::Internal,
                format!(
                    "the helper on {} gave no answer that is known: {other:?}",
                    server.service
                ),
            )),
        },
    }
}

/// Removes the saved originals of a fault.
///
/// # Errors
/// As [`run`].
pub async fn forget(system: &System, server: &PostgresServer, id: &str) -> Result<()> {
    script(system, server, id, false, &["forget", &saved_dir(server, id)])
        .await
        .map(drop)
}

/// Where the originals are kept: beside the data, inside the same volume.
#[must_use]
pub fn saved_dir(server: &PostgresServer, id: &str) -> String {
    server.work_dir(&format!("fault-{id}"))
}

async fn script(
    system: &System,
    server: &PostgresServer,
    id: &str,
    read_only: bool,
    argv: &[&str],
) -> Result<String> {
    let mut full = vec!["sh", "-c", SCRIPT, "drctl"];
    full.extend_from_slice(argv);
    let spec = server.files_helper(system.deployment(), id, "fault", read_only, &full);
    // Copies at most one segment of a relation (1 GiB) on a slow disk.
    let out = system.docker.run_helper(&spec, Duration::from_secs(300)).await?;
    if out.exit_code != 0 {
        return Err(Error::new(
            Kind::Internal,
            format!(
                "the helper on the files of {} failed with exit code {}: {}",
                server.service,
                out.exit_code,
                out.last_words()
            ),
        ));
    }
    Ok(out.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_reads_the_arguments_that_it_is_given() {
        let damage = Damage::Scramble {
            path: "base/5/16384".into(),
            block: 7,
            offset: 2048,
            length: 4096,
        };
        assert_eq!(damage.argv(), ["scramble", "base/5/16384", "7", "2048", "4096"]);
        let json = serde_json::to_string(&damage).unwrap();
        assert_eq!(serde_json::from_str::<Damage>(&json).unwrap(), damage);
    }
}
