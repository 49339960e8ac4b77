//! Effects on a Redis server: on one that runs, and on the files that one loads at its start.

use serde::{Deserialize, Serialize};

/// The files that a Redis server loads at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedisFiles {
    /// Data directory as the container sees it.
    pub directory: String,
    /// Name of the snapshot (`dbfilename`).
    pub snapshot: String,
    /// Whether the append-only file is loaded, and the snapshot is not.
    pub append_only: bool,
    /// Its place in the directory: a directory since version 7, before that one file.
    pub append_entry: String,
    /// What its files are called (`appendfilename`).
    pub append_name: String,
}

/// How the files are made loadable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileMend {
    /// The manifest is written anew, with these lines.
    Manifest(Vec<String>),
    /// The snapshot's wrong checksum is replaced by zeros, which a server does not compare
    /// (rdb.c: "RDB file was saved with checksum disabled").
    Checksum,
    /// Everything behind a damaged command is cut off, by `redis-check-aof --fix`.
    Cut,
    /// The append-only file is made of the snapshot.
    FromSnapshot,
    /// There is nothing to load.
    Empty,
}

/// A Redis server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RedisAction {
    /// `CONFIG SET`, until the server's next start. Again: says the same.
    #[serde(rename_all = "kebab-case")]
    SetConfig {
        /// Service.
        service: String,
        /// Parameter.
        name: String,
        /// Its value.
        value: String,
    },
    /// Removes the keys of patterns in every database, by scanning and in small batches, so
    /// that other clients hardly wait. Again: what is gone is not found.
    #[serde(rename_all = "kebab-case")]
    ClearPatterns {
        /// Service.
        service: String,
        /// As in `SCAN MATCH`.
        patterns: Vec<String>,
    },
    /// Removes from a set the members without a living owner: those whose key does not exist.
    /// Again: only those that are still without one.
    #[serde(rename_all = "kebab-case")]
    ClearStaleMembers {
        /// Service.
        service: String,
        /// Database.
        database: u32,
        /// The set.
        index: String,
        /// What stands before a member's name in its owner's key.
        owner_prefix: String,
        /// The set that keeps them for a day; empty: they are not kept.
        #[serde(default)]
        kept: String,
    },
    /// Puts the members that were removed back. Again: what is back is not kept any more.
    #[serde(rename_all = "kebab-case")]
    PutMembersBack {
        /// Service.
        service: String,
        /// Database.
        database: u32,
        /// The set.
        index: String,
        /// The set that keeps them.
        kept: String,
    },
    /// Keeps a copy of the snapshot of a server that runs: it would be overwritten by the save
    /// of its stop. Again: the first copy stays.
    #[serde(rename_all = "kebab-case")]
    KeepSnapshot {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// Where the files are.
        files: RedisFiles,
    },
    /// Puts that copy back into its place; what is there stays in the run's directory. Again: it
    /// is there.
    #[serde(rename_all = "kebab-case")]
    PutSnapshotBack {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// Where the files are.
        files: RedisFiles,
    },
    /// Makes the files of a server that does not run loadable: on a copy in the run's directory,
    /// which its check tool must accept before it takes the place of the old ones. Those stay in
    /// the run's directory. Fails where any container that runs has the same data. Again: goes on
    /// where it was cut off.
    #[serde(rename_all = "kebab-case")]
    MendFiles {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// Where the files are.
        files: RedisFiles,
        /// What is done.
        mend: FileMend,
    },
    /// Puts the old files back into their place; what was written since stays in the run's
    /// directory. Again: they are there.
    #[serde(rename_all = "kebab-case")]
    PutFilesBack {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// Where the files are.
        files: RedisFiles,
    },
    /// Drops the run's directory. Again: there is none.
    #[serde(rename_all = "kebab-case")]
    DropKept {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// Where the files are.
        files: RedisFiles,
    },
    /// Has the application fill the cache: `POST` to its address. An answer that is none is
    /// told and no failure: the cache fills by itself. Again: asks once more.
    #[serde(rename_all = "kebab-case")]
    Warm {
        /// Address.
        url: String,
    },
    /// Ends the script or function that a server runs, which Redis does only for one that has
    /// written nothing: no data is touched. Fails, with nothing done, where it has. Again: none
    /// runs.
    #[serde(rename_all = "kebab-case")]
    KillScript {
        /// Service.
        service: String,
    },
    /// `BGSAVE`, and waits for it to succeed: that ends the refusal of writes after a failed
    /// one. Again: saves once more.
    #[serde(rename_all = "kebab-case")]
    Save {
        /// Service.
        service: String,
    },
}

impl RedisAction {
    /// What it does, in words.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::SetConfig { name, value, .. } => format!("set {name} to {value}"),
            Self::ClearPatterns { patterns, .. } => {
                format!("delete keys like {}", patterns.join(", "))
            }
            Self::ClearStaleMembers { index, .. } => {
                format!("remove members of {index} that have no owner")
            }
            Self::PutMembersBack { index, .. } => format!("put the removed members of {index} back"),
            Self::KillScript { service } => format!("end the script that {service} runs"),
            Self::Save { service } => format!("save the data of {service}"),
            Self::KeepSnapshot { files, .. } => format!("keep a copy of {}", files.snapshot),
            Self::PutSnapshotBack { files, .. } => format!("put the copy of {} back", files.snapshot),
            Self::MendFiles { service, mend, .. } => match mend {
                FileMend::Manifest(_) => format!("write the manifest of {service} anew"),
                FileMend::Checksum => format!("take the checksum out of the snapshot of {service}"),
                FileMend::Cut => format!("cut the damage off the append-only file of {service}"),
                FileMend::FromSnapshot => format!("make the append-only file of {service} from its snapshot"),
                FileMend::Empty => format!("move the files of {service} aside"),
            },
            Self::PutFilesBack { service, .. } => format!("put the old files of {service} back"),
            Self::DropKept { service, run, .. } => {
                format!("drop what is kept of {service} in .drctl/{run}")
            }
            Self::Warm { url } => format!("have the cache filled: POST {url}"),
        }
    }
}
