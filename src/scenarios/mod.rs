//! One module per failure. Each reads like the page of the guide it replaces: what is
//! observed, what it means, what is done about it.

pub mod connection_exhaustion;
pub mod db_corruption;
pub mod db_down;
pub mod disk_full;
pub mod ladder;
mod limits;
pub(crate) mod missing_library;
pub mod network_partition;
pub mod outage;
pub mod redis_failure;
pub mod redis_oom;
pub(crate) mod server_trouble;
pub mod service_crash;
pub mod service_overload;
pub mod stuck_sessions;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{Error, Kind, Result};
use crate::plan::{Plan, Remedy};
use crate::probe::observer::Observer;
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

impl Certainty {
    /// The word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Suspected => "suspected",
            Self::Absent => "absent",
            Self::Unknown => "unknown",
        }
    }
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

/// What to look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DetectOptions {
    /// One service; the only one of its kind, or all that can have the failure, when `None`.
    pub service: Option<String>,
    /// Reads everything: every row of every table, every index against its table. Bounded by
    /// the runbook's step deadline, where the quick look is bounded by the probe deadline.
    pub deep: bool,
    /// Idle database sessions older than this may be ended, whatever the runbook says.
    pub idle_over: Option<Duration>,
    /// Statements that run for longer than this may be ended.
    pub running_over: Option<Duration>,
    /// drctl's own directory, as the command line gives it: its disk may be full, too.
    pub state_dir: Option<PathBuf>,
}

/// Refuses a service that the runbook does not have.
///
/// # Errors
/// [`Kind::Usage`].
pub fn known_service(runbook: &Runbook, options: &DetectOptions) -> Result<()> {
    match &options.service {
        Some(wanted) if runbook.service(wanted).is_none() => Err(Error::new(
            Kind::Usage,
            format!("the runbook has no service {wanted:?}"),
        )
        .untouched("everything")
        .next("drctl runbook show")),
        _ => Ok(()),
    }
}

/// A failure that drctl can recover from. `detect` observes; the rest is pure.
pub trait Scenario {
    /// The name: file, subcommand, label.
    const NAME: &'static str;
    /// What fails, in a few words, for lists and help.
    const ABOUT: &'static str;
    /// The ladder: its remedies, least destructive first.
    const REMEDIES: &'static [Remedy];
    /// Scenarios whose symptoms this failure brings about: it is named before them.
    const CAUSES: &'static [&'static str];
    /// What is observed. A plan can be made again from a saved one.
    type Evidence: Serialize + DeserializeOwned + Send + Sync;

    /// Observes. Read-only, bounded, and a probe that failed is evidence too.
    ///
    /// # Errors
    /// No such service, or an engine that cannot be reached. A service that is down is not
    /// an error.
    fn detect(
        world: &Observer<'_>,
        options: &DetectOptions,
    ) -> impl Future<Output = Result<Self::Evidence>> + Send;

    /// What the evidence means.
    fn diagnose(evidence: &Self::Evidence, runbook: &Runbook) -> Diagnosis;

    /// The least destructive remedy that has not been tried, as a plan.
    ///
    /// # Errors
    /// [`Refusal`] when no remedy is safe or possible.
    fn plan(evidence: &Self::Evidence, runbook: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal>;
}

/// A scenario as a value, for those who ask all of them.
#[derive(Clone, Copy)]
pub struct Entry {
    /// [`Scenario::NAME`].
    pub name: &'static str,
    /// [`Scenario::ABOUT`].
    pub about: &'static str,
    /// [`Scenario::CAUSES`].
    pub causes: &'static [&'static str],
    /// Observes and diagnoses.
    pub look: for<'a> fn(&'a Observer<'a>, &'a DetectOptions) -> Looking<'a>,
}

/// A look that is under way.
pub type Looking<'a> = Pin<Box<dyn Future<Output = Result<Looked>> + Send + 'a>>;

/// What one scenario made of what it saw.
#[derive(Debug, Clone)]
pub struct Looked {
    /// What it means.
    pub diagnosis: Diagnosis,
    /// What was seen.
    pub evidence: serde_json::Value,
}

fn entry<S: Scenario>() -> Entry {
    Entry {
        name: S::NAME,
        about: S::ABOUT,
        causes: S::CAUSES,
        look: |world, options| {
            Box::pin(async move {
                let evidence = S::detect(world, options).await?;
                Ok(Looked {
                    diagnosis: S::diagnose(&evidence, &world.system.runbook),
                    evidence: serde_json::to_value(&evidence).unwrap_or_default(),
                })
            })
        },
    }
}

/// Every scenario. The order counts where nothing else decides: what is deeper comes first.
#[must_use]
pub fn registry() -> Vec<Entry> {
    vec![
        entry::<disk_full::DiskFull>(),
        entry::<db_corruption::DbCorruption>(),
        entry::<network_partition::NetworkPartition>(),
        entry::<db_down::DbDown>(),
        entry::<redis_oom::RedisOom>(),
        entry::<redis_failure::RedisFailing>(),
        entry::<connection_exhaustion::ConnectionExhaustion>(),
        entry::<outage::Outage>(),
        entry::<service_overload::ServiceOverload>(),
        entry::<service_crash::ServiceCrash>(),
        entry::<stuck_sessions::StuckSessions>(),
    ]
}
