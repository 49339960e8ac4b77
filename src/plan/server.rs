//! Effects on a PostgreSQL server that is down and sound: its configuration, the owner and mode
//! of its files, files that it trips over. `run` names the directory `.drctl/RUN` in the data
//! directory, where what was there before is kept.

use serde::{Deserialize, Serialize};

/// A line of a configuration file that a server cannot start with, or does not serve with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ConfigLine {
    /// File in the data directory.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// How it begins: all of it, unless its value may be a secret.
    pub begins: String,
    /// What speaks against it.
    pub why: String,
}

impl ConfigLine {
    /// `postgresql.auto.conf line 3: port = 5433`.
    #[must_use]
    pub fn in_words(&self) -> String {
        format!("{} line {}: {}", self.file, self.line, self.begins)
    }
}

/// What is done to a server's own files, or waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerAction {
    /// Waits until the server has replayed its log and takes connections, and tells how far it
    /// is. Changes nothing. Again: goes on waiting.
    #[serde(rename_all = "kebab-case")]
    AwaitRecovery {
        /// Service.
        service: String,
    },
    /// Turns lines of configuration files into comments that name the run; a copy of each file
    /// as it was is kept first. Fails when a line is not what it was, or when the server's
    /// program does not accept the rest. Again: a line that is a comment of the run stays one.
    #[serde(rename_all = "kebab-case")]
    SetAside {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// The lines.
        lines: Vec<ConfigLine>,
    },
    /// Makes the comments of the run lines again. Again: none is left.
    #[serde(rename_all = "kebab-case")]
    PutLinesBack {
        /// Service.
        service: String,
        /// Run.
        run: String,
    },
    /// Gives files that belong to another user, or that their own user may not use, back to
    /// `owner`; who had them and how is written down first. Again: the list that is there is gone
    /// through once more.
    #[serde(rename_all = "kebab-case")]
    FixPermissions {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// `uid:gid` of the server's user.
        owner: String,
    },
    /// Gives the files the owner and mode that they had. Again: the same.
    #[serde(rename_all = "kebab-case")]
    RestorePermissions {
        /// Service.
        service: String,
        /// Run.
        run: String,
    },
    /// Makes directories that begin empty, and `PG_VERSION`, where they are not there. Again: they
    /// are.
    #[serde(rename_all = "kebab-case")]
    MakeMissing {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// `uid:gid` of the server's user.
        owner: String,
        /// The directories.
        directories: Vec<String>,
        /// Content of `PG_VERSION`, if it is missing.
        version: Option<String>,
    },
    /// Moves files out of the data directory of a server that does not run, into the run's
    /// directory. Fails where any container that runs has the same data. Again: what is moved
    /// is moved.
    #[serde(rename_all = "kebab-case")]
    MoveAside {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// Their names.
        files: Vec<String>,
    },
    /// Moves them back. Again: nothing is left to move.
    #[serde(rename_all = "kebab-case")]
    MoveBack {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// Their names.
        files: Vec<String>,
    },
}

impl ServerAction {
    /// What it does, in words.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::AwaitRecovery { service } => format!("wait for {service}"),
            Self::SetAside { lines, .. } => {
                let words: Vec<String> = lines.iter().map(ConfigLine::in_words).collect();
                format!("set aside {}", words.join("; "))
            }
            Self::PutLinesBack { .. } => "put the lines of the configuration back".into(),
            Self::FixPermissions { owner, .. } => format!("give the files to {owner}"),
            Self::RestorePermissions { .. } => "give the files the owner and mode that they had".into(),
            Self::MakeMissing { directories, .. } if directories.is_empty() => "write PG_VERSION".into(),
            Self::MakeMissing { directories, .. } => format!("make {}", directories.join(", ")),
            Self::MoveAside { files, .. } => format!("move {} aside", files.join(", ")),
            Self::MoveBack { files, .. } => format!("move {} back", files.join(", ")),
        }
    }
}
