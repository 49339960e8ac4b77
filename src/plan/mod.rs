//! A recovery as pure data. The preview, the journal and the report are renderings of one
//! [`Plan`]; the engine executes it; nothing here touches the world.

mod action;
mod container;
mod lint;
mod network;
mod redis;
mod server;
mod services;
mod sessions;
mod space;

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use action::{Action, ClusterAction, PostgresAction, RowFloor, SalvageTable, WorkloadAction};
pub use container::{ContainerAction, Limits, SET_ASIDE, kept_name};
pub use lint::{LintError, lint};
pub use network::NetworkAction;
pub use redis::{FileMend, RedisAction, RedisFiles};
pub use server::{ConfigLine, ServerAction};
pub use sessions::{Release, SessionAction, SessionRef, SessionRules};
pub use space::SpaceAction;

/// Version of the persisted form. A reader refuses a newer one.
pub const PLAN_FORMAT: u32 = 1;

/// The remedies, of all scenarios. Within a scenario the order of its own list is the
/// ladder, least destructive first; the order here is the same where two are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// Nothing is changed: what looks broken is at work, and is watched until it is done.
    Wait,
    /// Let frozen processes run again.
    Thaw,
    /// Start what is stopped.
    Start,
    /// Connect containers to the networks and names that they have lost.
    Reconnect,
    /// End sessions that hold connections without working.
    EndSessions,
    /// End the one session that all others wait for.
    UnblockSessions,
    /// End the script that keeps a server from everything else, if it has written nothing.
    KillScript,
    /// Free what can be freed without loss.
    FreeSpace,
    /// Raise a limit, within what the host has.
    RaiseLimit,
    /// Delete the keys that the runbook names disposable.
    ClearCache,
    /// Remove entries that belong to nothing any more.
    ClearStale,
    /// Have a server save its data once more.
    Save,
    /// Let a server be written again that refuses writes to protect itself.
    Unblock,
    /// Give a server's files back to it: owner and mode.
    FixPermissions,
    /// Set aside the settings that a server cannot run with.
    Reconfigure,
    /// Repair a service's files, on a copy first.
    Repair,
    /// Have a server load its snapshot instead of its append-only file.
    LoadSnapshot,
    /// Restart a service.
    Restart,
    /// Start a second instance of a service.
    ScaleOut,
    /// Create a container anew from the same image.
    Recreate,
    /// Build damaged indexes anew from their tables.
    Reindex,
    /// Restore one database from a logical backup beside the damaged one and swap names.
    RestoreDatabase,
    /// Restore the whole cluster from a physical backup beside the old data, replay the
    /// WAL that is still there, and switch.
    RestoreCluster,
    /// Start a server without its data, which is kept aside.
    StartEmpty,
    /// No usable backup: make a copy of the damaged data start, and switch to the copy.
    Salvage,
    /// Start everything in the order in which it depends on each other.
    StartAll,
}

impl Remedy {
    /// The word on the command line and in YAML.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Thaw => "thaw",
            Self::Start => "start",
            Self::Reconnect => "reconnect",
            Self::EndSessions => "end-sessions",
            Self::UnblockSessions => "unblock-sessions",
            Self::KillScript => "kill-script",
            Self::FreeSpace => "free-space",
            Self::RaiseLimit => "raise-limit",
            Self::ClearCache => "clear-cache",
            Self::ClearStale => "clear-stale",
            Self::Save => "save",
            Self::Unblock => "unblock",
            Self::FixPermissions => "fix-permissions",
            Self::Reconfigure => "reconfigure",
            Self::Repair => "repair",
            Self::LoadSnapshot => "load-snapshot",
            Self::Restart => "restart",
            Self::ScaleOut => "scale-out",
            Self::Recreate => "recreate",
            Self::Reindex => "reindex",
            Self::RestoreDatabase => "restore-database",
            Self::RestoreCluster => "restore-cluster",
            Self::StartEmpty => "start-empty",
            Self::Salvage => "salvage",
            Self::StartAll => "start-all",
        }
    }

    /// What it does, in a few words.
    #[must_use]
    pub fn summary(self) -> &'static str {
        match self {
            Self::Wait => "wait until it is done by itself",
            Self::Thaw => "let the frozen processes run again",
            Self::Start => "start what is stopped",
            Self::Reconnect => "connect the containers to the networks and names that they have lost",
            Self::EndSessions => "end the sessions that hold connections without working",
            Self::UnblockSessions => "end the one session that all others wait for",
            Self::KillScript => "end the script that it runs, if that has written nothing yet",
            Self::FreeSpace => "free what can be freed without loss",
            Self::RaiseLimit => "raise the limit, within what the host has",
            Self::ClearCache => "delete the keys that the runbook names disposable",
            Self::ClearStale => "remove the entries that belong to nothing any more",
            Self::Save => "have it save its data once more",
            Self::Unblock => "let it be written again as it is",
            Self::FixPermissions => "give it its files back: owner and mode of exactly the wrong ones",
            Self::Reconfigure => "set aside exactly the settings that it cannot run with",
            Self::Repair => "repair its files, on a copy first",
            Self::LoadSnapshot => "load its snapshot instead of its append-only file",
            Self::Restart => "restart it",
            Self::ScaleOut => "start a second instance",
            Self::Recreate => "create its container anew from the same image",
            Self::Reindex => "build the damaged indexes anew",
            Self::RestoreDatabase => "restore the database beside the damaged one and swap names",
            Self::RestoreCluster => "restore the whole server beside the old data, replay its WAL and switch",
            Self::StartEmpty => "start it empty; its files are kept aside",
            Self::Salvage => "make a copy of the damaged data start and switch to it",
            Self::StartAll => "start everything in the order in which it depends on each other",
        }
    }
}

impl std::fmt::Display for Remedy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How much a step can hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Risk {
    /// Looks, or works on a side copy that nobody uses.
    ReadOnly,
    /// Changes something that its undo puts back completely.
    Reversible,
    /// Users notice: writers are fenced, a server stops.
    Disruptive,
    /// Something cannot be brought back, or comes back without later writes. Needs the
    /// deployment's name typed.
    Destructive,
}

impl std::fmt::Display for Risk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "read-only",
            Self::Reversible => "reversible",
            Self::Disruptive => "disruptive",
            Self::Destructive => "destructive",
        })
    }
}

/// How a step is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Undo {
    /// Nothing to take back, and why.
    NotNeeded(String),
    /// drctl does this.
    Action(Action),
    /// A person must do this.
    Manual(String),
    /// It stays, and why.
    Impossible(String),
}

impl std::fmt::Display for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotNeeded(why) => write!(f, "not needed: {why}"),
            Self::Action(action) => write!(f, "{}", action.summary()),
            Self::Manual(what) => write!(f, "by hand: {what}"),
            Self::Impossible(why) => write!(f, "impossible: {why}"),
        }
    }
}

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Step {
    /// What is done, imperative, with names.
    pub title: String,
    /// Why it is needed here.
    pub why: String,
    /// How much it can hurt.
    pub risk: Risk,
    /// What is done, for the engine.
    pub action: Action,
    /// How it is taken back.
    pub undo: Undo,
    /// Longest acceptable duration, in seconds.
    pub timeout_seconds: u64,
}

impl Step {
    /// The time limit.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }
}

impl Plan {
    /// The services that a step only starts, and that its undo stops: nothing before it has
    /// stopped them or touched their files, so no other undo needs them stopped.
    #[must_use]
    pub fn only_started(&self, number: usize) -> &[String] {
        use WorkloadAction as W;
        let index = number.wrapping_sub(1);
        let Some(step) = self.steps.get(index) else {
            return &[];
        };
        let starts = matches!(
            step.action,
            Action::Workload(W::Start { .. } | W::StartTogether { .. })
        );
        let harmless = |s: &Step| match &s.action {
            Action::Workload(action) => !matches!(action, W::Stop { .. } | W::StopTogether { .. }),
            action => matches!(action, Action::Network(_) | Action::Container(_)),
        };
        match &step.undo {
            Undo::Action(undo) if starts && self.steps.iter().take(index).all(harmless) => undo.stops(),
            _ => &[],
        }
    }
}

/// One thing that must be true afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expectation {
    /// The containers run, are not between two crashes, and have not restarted for a moment.
    #[serde(rename_all = "kebab-case")]
    ServicesRun {
        /// The services.
        services: Vec<String>,
    },
    /// A Redis server stores a value, gives it back and removes it.
    #[serde(rename_all = "kebab-case")]
    RedisWrites {
        /// The service.
        service: String,
    },
    /// A Redis server holds at least so many keys, in all its databases together.
    #[serde(rename_all = "kebab-case")]
    RedisKeys {
        /// The service.
        service: String,
        /// Keys.
        at_least: u64,
    },
    /// A set counts fewer members than its limit.
    #[serde(rename_all = "kebab-case")]
    RoomForSessions {
        /// The service.
        service: String,
        /// The set.
        index: String,
        /// Database.
        database: u32,
        /// The limit.
        limit: u64,
    },
    /// A service's container is below its memory and processor limits while it works.
    #[serde(rename_all = "kebab-case")]
    HasRoom {
        /// The service.
        service: String,
        /// Percent of the memory limit, from which on it is too little.
        memory_percent: String,
    },
    /// Every endpoint answers within so many milliseconds at the 95th percentile.
    #[serde(rename_all = "kebab-case")]
    Responsive {
        /// Milliseconds.
        millis: u64,
    },
    /// The server takes connections and has ended recovery.
    #[serde(rename_all = "kebab-case")]
    ServerAnswers {
        /// The service.
        service: String,
    },
    /// An ordinary role gets a connection: so many slots are free.
    #[serde(rename_all = "kebab-case")]
    FreeSlots {
        /// The service.
        service: String,
        /// How many, at least.
        at_least: u32,
    },
    /// amcheck finds nothing in the heap and the B-tree indexes. Empty `relations` means
    /// all of the database.
    #[serde(rename_all = "kebab-case")]
    Sound {
        /// The service.
        service: String,
        /// The database.
        database: String,
        /// Qualified names, `schema.name`.
        relations: Vec<String>,
    },
    /// Tables hold at least so many rows.
    #[serde(rename_all = "kebab-case")]
    Rows {
        /// The service.
        service: String,
        /// The database.
        database: String,
        /// Per table.
        floors: Vec<RowFloor>,
    },
    /// The runbook's validation queries hold.
    #[serde(rename_all = "kebab-case")]
    Validations {
        /// The service.
        service: String,
        /// The database.
        database: String,
    },
    /// The application's role can connect and read.
    #[serde(rename_all = "kebab-case")]
    ApplicationRole {
        /// The service.
        service: String,
        /// The database.
        database: String,
        /// The role.
        role: String,
    },
    /// So much is free on the disk that holds a path of this machine.
    #[serde(rename_all = "kebab-case")]
    Room {
        /// The path.
        path: String,
        /// Bytes.
        at_least: u64,
        /// Files that can still be made, where it limits them.
        #[serde(default)]
        files: u64,
    },
    /// A PostgreSQL server can write: its log, its tables, a checkpoint.
    #[serde(rename_all = "kebab-case")]
    ServerWrites {
        /// The service.
        service: String,
    },
    /// Services reach what they need by name, asked from inside them.
    #[serde(rename_all = "kebab-case")]
    Reaches {
        /// Who, and whom.
        edges: Vec<(String, String)>,
    },
    /// Every endpoint of the runbook answers as it should.
    Endpoints,
    /// The runbook's write and read through the application.
    WriteCheck,
}

/// What a plan loses, measured from the data before it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DataLoss {
    /// One sentence for the person who decides.
    pub summary: String,
    /// Nothing is lost, on positive evidence.
    pub none: bool,
    /// Rows known to be written since the backup that the remedy does not bring back by
    /// itself, before salvage; `None` when it could not be counted.
    pub rows_since_backup: Option<u64>,
    /// The newest row now, as far as it can be read.
    pub newest_now: Option<Timestamp>,
    /// The moment that the backup shows.
    pub backup_from: Option<Timestamp>,
}

/// A rung that was not chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Alternative {
    /// Which.
    pub remedy: Remedy,
    /// Whether `--remedy` can choose it.
    pub possible: bool,
    /// Why it was not chosen.
    pub why_not: String,
}

/// A recovery, ready to be shown, approved and executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_FORMAT`].
    pub format: u32,
    /// The scenario's name.
    pub scenario: String,
    /// The deployment.
    pub deployment: String,
    /// The run's identity: names of side databases, work directories and labels carry it.
    pub run: String,
    /// The service that is recovered.
    pub service: String,
    /// What is wrong, one sentence.
    pub diagnosis: String,
    /// The chosen rung.
    pub remedy: Remedy,
    /// The others.
    pub alternatives: Vec<Alternative>,
    /// The backup set it uses.
    pub backup: Option<String>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// What must be true afterwards.
    pub expect: Vec<Expectation>,
    /// What is lost.
    pub data_loss: DataLoss,
    /// How long it will take, in seconds, from measured sizes and speeds.
    pub estimate_seconds: u64,
    /// Bytes of disk needed beside the old data.
    pub disk_needed: u64,
    /// Bytes of disk free where they are needed; `None` when it could not be measured.
    pub disk_free: Option<u64>,
    /// What is kept, where, and how to let go of it.
    pub kept: String,
    /// What drops the kept data when the incident is closed.
    pub discard: Vec<Action>,
}

impl Plan {
    /// The most harmful of its steps.
    #[must_use]
    pub fn risk(&self) -> Risk {
        self.steps.iter().map(|s| s.risk).max().unwrap_or(Risk::ReadOnly)
    }
}
