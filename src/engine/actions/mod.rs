//! What each [`Action`] does. Every one can be applied again after it was cut off
//! anywhere; `plan::action` says why.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::{SharedReporter, Verdict};
use crate::plan::Action;
use crate::postgres::PgError;
use crate::system::System;
use crate::workload::WorkloadError;

/// What an action works with.
pub struct ActionContext<'a> {
    /// The deployment.
    pub system: &'a System,
    /// The run (incident) on whose behalf it acts.
    pub run: &'a str,
    /// Where progress goes.
    pub reporter: &'a SharedReporter,
    /// Longest acceptable duration.
    pub deadline: Duration,
}

/// What an action did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// One line for people.
    pub text: String,
    /// Facts for the report, as `rows-salvaged`.
    pub facts: BTreeMap<String, serde_json::Value>,
}

/// One check of a proof, made inside an action or by `verify`.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Checked {
    /// What was checked.
    pub what: String,
    /// Whether it held.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
}

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// The engine's trouble.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The server's trouble.
    #[error("{what}: {source}")]
    Postgres {
        /// What was attempted.
        what: String,
        /// The server's words.
        source: PgError,
    },
    /// A tool in a helper failed.
    #[error("{what} failed with exit code {exit_code}: {last_words}")]
    Helper {
        /// What was attempted.
        what: String,
        /// Its exit code.
        exit_code: i64,
        /// The end of what it said.
        last_words: String,
    },
    /// A proof did not hold: what was restored is not brought into service.
    #[error("{what} does not hold: {found}")]
    Unproven {
        /// What was checked.
        what: String,
        /// What was found.
        found: String,
    },
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl From<crate::error::Error> for ActionError {
    fn from(e: crate::error::Error) -> Self {
        Self::Other(e.to_string())
    }
}

/// Carries out one action.
///
/// # Errors
/// [`ActionError`]; the action can be applied again or undone.
pub async fn apply(_cx: &ActionContext<'_>, action: &Action) -> Result<Outcome, ActionError> {
    Err(ActionError::Other(action.summary()))
}
