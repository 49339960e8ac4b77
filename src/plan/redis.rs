//! Effects on a running Redis server.

use serde::{Deserialize, Serialize};

/// A running Redis server.
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
            Self::Save { service } => format!("save the data of {service}"),
        }
    }
}
