//! A PostgreSQL server that does not answer, for any reason that is not damage.
//!
//! Symptom: nobody gets a connection. Cause: it was stopped, killed or frozen; it replays its log
//! after a crash; it was told something that it cannot start with (a setting, a rule of access,
//! a signal file); its files belong to somebody else; it listens where nobody asks.
//!
//! What drctl does, gentlest first: wait while it replays its log; let a frozen one run again;
//! start a stopped one; set aside exactly the setting, the owner, the left-over file that keeps
//! it from running, with the old state kept beside and an undo. What it never does: restart a
//! server that replays (it would begin anew), take a file that may not be read for a damaged
//! one, remove a lock file while anything runs on the same data, start a second server on the same
//! data or one on a directory that has lost its data, end a recovery that somebody paused, promote a standby, or touch
//! data. Positive evidence of damage is handed over to `db-corruption`, a full disk to
//! `disk-full`, taken connections to `connection-exhaustion`, a lost network to
//! `network-partition`.

mod detect;
mod diagnose;
mod plan;
#[cfg(test)]
mod tests;
mod trouble;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DetectOptions, Diagnosis, PlanRequest, Refusal, Scenario};
use crate::error::Result;
use crate::plan::{ConfigLine, Plan, Remedy};
use crate::probe::connection::Connection;
use crate::probe::containers::ContainerState;
use crate::probe::control::ControlData;
use crate::probe::files::FileFacts;
use crate::probe::logs::LogFinding;
use crate::probe::observer::Observer;
use crate::runbook::Runbook;

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct DbDown;

/// Version of the persisted form.
pub const EVIDENCE_FORMAT: u32 = 1;

/// What is observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// [`EVIDENCE_FORMAT`].
    pub format: u32,
    /// When.
    pub taken_at: Timestamp,
    /// The service in the runbook.
    pub service: String,
    /// Its port in the runbook.
    pub port: u16,
    /// Where its data is, as the container sees it.
    pub data_directory: String,
    /// Its container.
    pub container: ContainerState,
    /// A session as the administrator.
    pub connection: Connection,
    /// What the log of the last run says, newest last. Empty when the server answers.
    pub log: Vec<LogFinding>,
    /// `pg_controldata`, or why it was not read.
    pub control: Result<ControlData, String>,
    /// The data directory, or why it was not looked at.
    pub files: Result<FileFacts, String>,
    /// `uid:gid` as which the server has to run.
    pub server_user: Option<String>,
    /// The configuration, where there was reason to read it.
    pub configuration: Option<Configuration>,
    /// Other containers that run on the same data.
    pub sharing: Vec<String>,
    /// Those of them in which a server runs, or may at any moment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rivals: Vec<String>,
    /// Whether the replay of one that only reads is paused; `None` where it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_paused: Option<bool>,
    /// The process that replays the log, by its title.
    pub replay: Option<String>,
    /// Bytes of memory that the machine has left; `None` where the engine is on another one.
    pub memory_available: Option<u64>,
}

/// What a look at the configuration gave.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Configuration {
    /// Lines without which the server's program accepts the rest.
    pub broken: Vec<ConfigLine>,
    /// What it still says against the rest.
    pub refused: Option<String>,
    /// The line that `port` comes from, if one sets it.
    pub port: Option<ConfigLine>,
    /// The line that `listen_addresses` comes from, if one sets it.
    pub listen_addresses: Option<ConfigLine>,
    /// Whether a source of WAL is set: `primary_conninfo` or `restore_command`.
    pub has_source: bool,
    /// What is wrong with the rules of access, which the program alone does not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules_broken: Option<String>,
    /// When the rules of access were changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules_changed: Option<Timestamp>,
    /// Why it could not be read.
    pub problem: Option<String>,
}

impl Scenario for DbDown {
    const NAME: &'static str = "db-down";
    const ABOUT: &'static str =
        "A PostgreSQL server that does not answer: stopped, frozen, replaying, misconfigured";
    const REMEDIES: &'static [Remedy] = &[
        Remedy::Wait,
        Remedy::Thaw,
        Remedy::Start,
        Remedy::RaiseLimit,
        Remedy::FixPermissions,
        Remedy::Repair,
        Remedy::Reconfigure,
        Remedy::ClearStale,
        Remedy::Restart,
    ];
    const CAUSES: &'static [&'static str] = &[
        "service-crash",
        "connection-exhaustion",
        "stuck-sessions",
        "monitoring-down",
    ];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
        detect::detect(world, options).await
    }

    fn diagnose(ev: &Evidence, _: &Runbook) -> Diagnosis {
        diagnose::diagnose(ev)
    }

    fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
        plan::plan(ev, rb, request)
    }
}
