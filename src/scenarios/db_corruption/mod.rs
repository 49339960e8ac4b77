//! A damaged database: pages, indexes, out-of-line values, files, control data, WAL.
//!
//! Symptom: queries fail with `invalid page`, `could not open file`, `could not access
//! status of transaction`; the server does not start; or rows are simply gone. Cause: the
//! disk, the file system, a copy that was no backup, a tool used in place.
//!
//! What drctl does, gentlest first: rebuild what can be derived (indexes); restore the one
//! database beside the damaged one and swap names; restore the server beside its old data,
//! replay what is left of its log, and switch; without any backup, bring a copy of the
//! damage to life. What it never does: repair in place, run `pg_resetwal` on the only copy,
//! drop the damaged data before the operator says so, or treat a look-alike (wrong owner,
//! full disk, stopped container) as damage.

mod detect;
mod diagnose;
mod evidence;
mod look_alike;
mod loss;
mod plan;
mod restore_database;
mod silent;
mod steps;

use detect::detect;
pub use evidence::*;

use super::{DetectOptions, Diagnosis, PlanRequest, Refusal, Scenario};
use crate::error::Error;
use crate::plan::{Plan, Remedy};
use crate::probe::observer::Observer;
use crate::runbook::Runbook;

/// The scenario's name on the command line, in plans and in labels.
pub const NAME: &str = "db-corruption";

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct DbCorruption;

impl Scenario for DbCorruption {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str = "A damaged PostgreSQL database: pages, indexes, files, control data, WAL";
    const REMEDIES: &'static [Remedy] = &[
        Remedy::Reindex,
        Remedy::RestoreDatabase,
        Remedy::RestoreCluster,
        Remedy::Salvage,
    ];
    const CAUSES: &'static [&'static str] = &["db-down", "connection-exhaustion", "service-crash", "outage"];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence, Error> {
        detect(world, options).await
    }

    fn diagnose(evidence: &Evidence, runbook: &Runbook) -> Diagnosis {
        diagnose::diagnose(evidence, runbook)
    }

    fn plan(evidence: &Evidence, runbook: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
        plan::plan(evidence, runbook, request)
    }
}

/// The rungs of this ladder, least destructive first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rung {
    Reindex,
    RestoreDatabase,
    RestoreCluster,
    Salvage,
}

impl Rung {
    const ALL: [Self; 4] = [
        Self::Reindex,
        Self::RestoreDatabase,
        Self::RestoreCluster,
        Self::Salvage,
    ];

    fn remedy(self) -> Remedy {
        match self {
            Self::Reindex => Remedy::Reindex,
            Self::RestoreDatabase => Remedy::RestoreDatabase,
            Self::RestoreCluster => Remedy::RestoreCluster,
            Self::Salvage => Remedy::Salvage,
        }
    }

    fn of(remedy: Remedy) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.remedy() == remedy)
    }
}

#[cfg(test)]
mod tests;
