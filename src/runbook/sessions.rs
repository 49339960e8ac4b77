//! When a database session may be ended to make room for others.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration;

/// When a session that does nothing may be ended to free its connection slot. A statement that runs is never ended by this.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sessions {
    /// How long a session must have been idle outside a transaction.
    #[serde(default = "default_idle_after", with = "duration::required")]
    #[schemars(with = "duration::DurationText")]
    pub idle_after: Duration,
    /// How long a session must have been idle inside a transaction. Its uncommitted work is rolled back.
    #[serde(default = "default_idle_in_transaction_after", with = "duration::required")]
    #[schemars(with = "duration::DurationText")]
    pub idle_in_transaction_after: Duration,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            idle_after: default_idle_after(),
            idle_in_transaction_after: default_idle_in_transaction_after(),
        }
    }
}

fn default_idle_after() -> Duration {
    Duration::from_secs(10 * 60)
}

fn default_idle_in_transaction_after() -> Duration {
    Duration::from_secs(60)
}
