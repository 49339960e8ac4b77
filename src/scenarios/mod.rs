//! One module per failure. Each reads like the page of the guide it replaces: what is
//! observed, what it means, what is done about it.

pub mod db_corruption;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::plan::{Plan, Remedy};
use crate::runbook::Runbook;

/// How sure a diagnosis is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    /// Positive evidence.
    Confirmed,
    /// Signs that allow another explanation.
    Suspected,
    /// Looked at, and it is not this.
    Absent,
    /// It could not be looked at.
    Unknown,
}

/// What the evidence means for one scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Diagnosis {
    /// How sure.
    pub certainty: Certainty,
    /// One sentence: what is wrong, with names.
    pub summary: String,
    /// The facts behind it.
    pub reasons: Vec<String>,
    /// What it is instead, when it only looks like this scenario: name, explanation and
    /// the commands to type.
    pub look_alike: Option<LookAlike>,
}

/// A failure that only looks like the scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LookAlike {
    /// A word, as `permissions`.
    pub name: String,
    /// What it is, in a sentence or two.
    pub explanation: String,
    /// What to type instead.
    pub next: Vec<String>,
}

/// What the operator and the engine ask of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRequest {
    /// The run's identity.
    pub run: String,
    /// Remedies that were tried and did not hold.
    pub tried: Vec<Remedy>,
    /// The remedy that the operator chose.
    pub remedy: Option<Remedy>,
    /// The backup set that the operator chose.
    pub backup: Option<String>,
    /// Now.
    pub now: Timestamp,
}

/// Why there is no plan. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What stands in the way.
    pub message: String,
    /// Details, one per line.
    pub reasons: Vec<String>,
    /// What to type next.
    pub next: Vec<String>,
}

/// A failure that drctl can recover from. `detect` observes; the rest is pure.
pub trait Scenario {
    /// The name: file, subcommand, label.
    const NAME: &'static str;
    /// What is observed. A plan can be made again from a saved one.
    type Evidence: Serialize + DeserializeOwned + Send + Sync;

    /// What the evidence means.
    fn diagnose(evidence: &Self::Evidence, runbook: &Runbook) -> Diagnosis;

    /// The least destructive remedy that has not been tried, as a plan.
    ///
    /// # Errors
    /// [`Refusal`] when no remedy is safe or possible.
    fn plan(evidence: &Self::Evidence, runbook: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal>;
}
