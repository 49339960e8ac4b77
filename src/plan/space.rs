//! Effects that give a full disk room again, and what follows from it.

use serde::{Deserialize, Serialize};

/// Room on a disk. What is already enough is not freed: each looks first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpaceAction {
    /// Removes backup sets that the runbook's rules no longer want, the oldest first, until so
    /// much is free. Again: what is gone is passed over, what was begun is finished.
    #[serde(rename_all = "kebab-case")]
    PruneBackups {
        /// Labels.
        labels: Vec<String>,
        /// A path on the disk that is full.
        path: String,
        /// Bytes that are wanted free there.
        enough: u64,
    },
    /// Removes images of the deployment that have lost their name and that no container uses.
    /// Again: gone is gone.
    #[serde(rename_all = "kebab-case")]
    RemoveImages {
        /// Identifiers.
        images: Vec<String>,
    },
    /// Writes a container's log, compressed, to another disk, reads it back, and empties the
    /// file in place: the engine holds it open. Again: what has been written since the file was
    /// emptied is archived under another name.
    #[serde(rename_all = "kebab-case")]
    ArchiveLog {
        /// Service.
        service: String,
        /// Its container's name.
        container: String,
        /// Directory on another disk.
        into: String,
        /// A path on the disk that is full.
        path: String,
        /// Bytes that are wanted free there.
        enough: u64,
    },
    /// Lets a service come back that a full disk has stopped: a server that the engine starts
    /// again and again is started anew, one that runs is waited for. Again: it runs.
    #[serde(rename_all = "kebab-case")]
    Revive {
        /// Service.
        service: String,
    },
}

impl SpaceAction {
    /// What it does, in words.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::PruneBackups { labels, .. } => format!("remove {} old backup sets", labels.len()),
            Self::RemoveImages { images } => format!("remove {} images without a name", images.len()),
            Self::ArchiveLog { container, into, .. } => {
                format!("archive the log of {container} in {into}, and empty it")
            }
            Self::Revive { service } => format!("bring {service} back"),
        }
    }
}
