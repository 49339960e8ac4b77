//! Every effect that drctl can have on a deployment during a recovery: a closed list.
//!
//! Each action can be applied again after it was cut off anywhere: that is what `resume`
//! relies on. The doc comment of each says why a second application is safe.

use serde::{Deserialize, Serialize};

use super::NetworkAction;
use super::SessionAction;
use super::SpaceAction;
use super::{ContainerAction, RedisAction, ServerAction};

/// One effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// SQL on a running server.
    Postgres(PostgresAction),
    /// Sessions of a running server.
    Sessions(SessionAction),
    /// Files of a server's data directory.
    Cluster(ClusterAction),
    /// Containers.
    Workload(WorkloadAction),
    /// Networks.
    Network(NetworkAction),
    /// A running Redis server.
    Redis(RedisAction),
    /// Containers made anew, doubled, given other limits.
    Container(ContainerAction),
    /// Room on a disk.
    Space(SpaceAction),
    /// A PostgreSQL server's configuration, and the owner and place of its files.
    Server(ServerAction),
}

/// A table whose newer rows are brought over from damaged data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SalvageTable {
    /// `schema.name`.
    pub table: String,
    /// Column that tells newer rows, when the runbook names one. Of a type that is no time, all
    /// rows are read.
    pub newest: Option<String>,
    /// Only rows at or after this moment are read (RFC 3339); all rows without it.
    pub since: Option<String>,
    /// Whether missing rows are inserted, or only counted.
    pub merge: bool,
}

/// The least number of rows that a table must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RowFloor {
    /// `schema.name`.
    pub table: String,
    /// Rows.
    pub at_least: u64,
}

/// SQL on a running server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PostgresAction {
    /// `REINDEX INDEX CONCURRENTLY`, falling back to the plain form where the server
    /// refuses. Again: an invalid `_ccnew` leftover is dropped first.
    #[serde(rename_all = "kebab-case")]
    Reindex {
        /// Service.
        service: String,
        /// Database.
        database: String,
        /// `schema.index`.
        index: String,
    },
    /// Creates `side` and fills it from the dump in a backup set. Again: a leftover
    /// `side` is dropped first; its name carries the run, so it is ours.
    #[serde(rename_all = "kebab-case")]
    RestoreSide {
        /// Service.
        service: String,
        /// The database whose settings `side` takes over.
        database: String,
        /// Name of the side database.
        side: String,
        /// Directory of the dump on the engine's host.
        dump: String,
        /// Parallel jobs.
        jobs: u32,
    },
    /// Checks a side database: amcheck, rows, validation queries. Reads only.
    #[serde(rename_all = "kebab-case")]
    ProveSide {
        /// Service.
        service: String,
        /// The database as the runbook knows it.
        database: String,
        /// The side database that is checked.
        side: String,
        /// Rows that must be there.
        floors: Vec<RowFloor>,
    },
    /// Makes a database read-only for everyone but drctl and ends the sessions that
    /// could still write. Again: says the same.
    #[serde(rename_all = "kebab-case")]
    FenceWriters {
        /// Service.
        service: String,
        /// Database.
        database: String,
    },
    /// Takes the fence away. Again: there is none.
    #[serde(rename_all = "kebab-case")]
    UnfenceWriters {
        /// Service.
        service: String,
        /// Database.
        database: String,
    },
    /// Reads what is readable in the damaged database and missing in the side database;
    /// counts it, and inserts it where the table says so. Again: rows that are there by
    /// their key are not inserted twice.
    #[serde(rename_all = "kebab-case")]
    SalvageRows {
        /// Service.
        service: String,
        /// Damaged database.
        from: String,
        /// Side database.
        into: String,
        /// Tables.
        tables: Vec<SalvageTable>,
    },
    /// Swaps names: `database` becomes `kept`, `side` becomes `database`, in one
    /// transaction, with settings, grants and comment carried over. Again: the names
    /// tell whether it has happened.
    #[serde(rename_all = "kebab-case")]
    SwapDatabases {
        /// Service.
        service: String,
        /// The name that users know.
        database: String,
        /// The restored one.
        side: String,
        /// What the damaged one is called from then on.
        kept: String,
    },
    /// The swap backwards. Again: the names tell.
    #[serde(rename_all = "kebab-case")]
    SwapBack {
        /// Service.
        service: String,
        /// The name that users know.
        database: String,
        /// What the restored one was called before the swap.
        side: String,
        /// What the damaged one is called now.
        kept: String,
        /// What the restored one is called from then on: it may hold work that users did
        /// since the swap, and stays until the incident is closed.
        undone: String,
    },
    /// Drops a database whose name carries the run. Again: gone is gone.
    #[serde(rename_all = "kebab-case")]
    DropDatabase {
        /// Service.
        service: String,
        /// Database.
        database: String,
    },
}

/// Files of a server's data directory. `run` names the work directory beside the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterAction {
    /// Copies a base backup to `new` beside the data, set up to replay WAL, and keeps a
    /// copy of the WAL that is there now. Again: starts over; nothing uses `new` yet.
    #[serde(rename_all = "kebab-case")]
    ExtractBase {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// Directory of the base backup on the engine's host.
        base: String,
        /// First WAL segment that the backup needs.
        first_segment: String,
        /// Whether the plan counts on all of the log since then: without it the step fails.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        whole: bool,
    },
    /// Copies the whole damaged data directory to `new` beside it, makes the copy start,
    /// with a new control file or `pg_resetwal` if it needs that, and takes out of it what
    /// cannot be read and what refers to that. Again: starts over.
    #[serde(rename_all = "kebab-case")]
    CopyDamaged {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// Per database, tables that are known to be damaged, as `schema.name`. Others are
        /// found in the copy.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tables: Vec<(String, Vec<String>)>,
    },
    /// Copies the WAL of the stopped server. Again: copies the same.
    #[serde(rename_all = "kebab-case")]
    KeepWal {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// First segment that matters.
        first_segment: String,
        /// Whether the plan counts on all of the log since then: without it the step fails.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        whole: bool,
    },
    /// Starts `new` as a side server nobody knows, lets it replay, proves it and stops it
    /// cleanly. Again: it starts where it stopped.
    #[serde(rename_all = "kebab-case")]
    ProveSide {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// Per database, the rows that must be there.
        floors: Vec<(String, Vec<RowFloor>)>,
    },
    /// Makes a copy of the damaged data start, reads from it what is readable and missing
    /// in `new`, counts it, and inserts it where the table says so. Again: a new copy.
    #[serde(rename_all = "kebab-case")]
    SalvageRows {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// Per database, the tables.
        tables: Vec<(String, Vec<SalvageTable>)>,
    },
    /// Replays the log of the running server on the extracted base backup in a side server,
    /// brings rows over that the damage no longer shows, and removes `new` again. Again: a
    /// marker tells whether it was done; otherwise the replay goes on where it stopped.
    #[serde(rename_all = "kebab-case")]
    SalvageFromLog {
        /// Service.
        service: String,
        /// Run.
        run: String,
        /// First WAL segment that the backup needs.
        first_segment: String,
        /// Damaged database.
        from: String,
        /// Side database on the running server.
        into: String,
        /// Tables.
        tables: Vec<SalvageTable>,
    },
    /// Moves the old data aside and `new` in, entry by entry by rename, what makes a
    /// server start last. Again: goes on where it stopped.
    #[serde(rename_all = "kebab-case")]
    Switch {
        /// Service.
        service: String,
        /// Run.
        run: String,
    },
    /// The switch backwards. What was in service until then, with the work that users did
    /// since, stays as `.drctl/RUN-undone` until the incident is closed. Again: goes on
    /// where it stopped.
    #[serde(rename_all = "kebab-case")]
    SwitchBack {
        /// Service.
        service: String,
        /// Run.
        run: String,
    },
    /// Removes the run's work directory and all that is in it. Again: gone is gone.
    #[serde(rename_all = "kebab-case")]
    Discard {
        /// Service.
        service: String,
        /// Run.
        run: String,
    },
}

/// Containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadAction {
    /// Stops a service cleanly. Again: it is stopped.
    #[serde(rename_all = "kebab-case")]
    Stop {
        /// Service.
        service: String,
    },
    /// Starts a service; with `wait`, until it takes connections. Again: it runs.
    #[serde(rename_all = "kebab-case")]
    Start {
        /// Service.
        service: String,
        /// Whether to wait until it answers.
        wait: bool,
    },
    /// Starts services that do not need each other, at once, and waits until each answers. An
    /// application that does not come up is left to the proof. Again: they run.
    #[serde(rename_all = "kebab-case")]
    StartTogether {
        /// Services.
        services: Vec<String>,
    },
    /// Stops services cleanly, at once. Again: they are stopped.
    #[serde(rename_all = "kebab-case")]
    StopTogether {
        /// Services.
        services: Vec<String>,
    },
    /// Lets the processes of a service run again, whether the engine froze them or a
    /// signal did. Again: they run.
    #[serde(rename_all = "kebab-case")]
    Thaw {
        /// Service.
        service: String,
    },
    /// Stops a service cleanly, starts it and waits until it stays up. Again: once more.
    #[serde(rename_all = "kebab-case")]
    Restart {
        /// Service.
        service: String,
    },
}

impl Action {
    /// The services that it only stops.
    #[must_use]
    pub fn stops(&self) -> &[String] {
        match self {
            Self::Workload(WorkloadAction::Stop { service }) => std::slice::from_ref(service),
            Self::Workload(WorkloadAction::StopTogether { services }) => services,
            _ => &[],
        }
    }

    /// The services whose container it stops, replaces or limits, or doubles: of a service with
    /// several it would take one for all.
    #[must_use]
    pub fn changes_the_container_of(&self) -> &[String] {
        use ContainerAction as C;
        match self {
            Self::Workload(WorkloadAction::Restart { service })
            | Self::Container(
                C::Recreate { service, .. } | C::Double { service, .. } | C::SetLimits { service, .. },
            ) => std::slice::from_ref(service),
            _ => self.stops(),
        }
    }

    /// What it does, in words, for an undo line.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::Postgres(a) => match a {
                PostgresAction::Reindex { index, .. } => format!("rebuild index {index}"),
                PostgresAction::RestoreSide { side, .. } => format!("restore the dump into {side}"),
                PostgresAction::ProveSide { side, .. } => format!("check {side}"),
                PostgresAction::FenceWriters { database, .. } => format!("make {database} read-only"),
                PostgresAction::UnfenceWriters { database, .. } => format!("let {database} be written again"),
                PostgresAction::SalvageRows { from, into, .. } => format!("bring rows from {from} to {into}"),
                PostgresAction::SwapDatabases {
                    database, side, kept, ..
                } => {
                    format!("rename {database} to {kept} and {side} to {database}")
                }
                PostgresAction::SwapBack {
                    database,
                    undone,
                    kept,
                    ..
                } => {
                    format!("rename {database} to {undone} and {kept} to {database}")
                }
                PostgresAction::DropDatabase { database, .. } => format!("drop database {database}"),
            },
            Self::Sessions(a) => a.summary(),
            Self::Cluster(a) => match a {
                ClusterAction::ExtractBase { .. } => "copy the base backup beside the data".into(),
                ClusterAction::CopyDamaged { .. } => {
                    "copy the damaged data beside itself and mend the copy".into()
                }
                ClusterAction::KeepWal { .. } => "keep a copy of the WAL".into(),
                ClusterAction::ProveSide { .. } => "start and check the side server".into(),
                ClusterAction::SalvageRows { .. } => {
                    "bring readable rows over from a copy of the damage".into()
                }
                ClusterAction::SalvageFromLog { .. } => {
                    "bring hidden rows over from the write-ahead log".into()
                }
                ClusterAction::Switch { .. } => "switch to the new data directory".into(),
                ClusterAction::SwitchBack { .. } => "switch back to the old data directory".into(),
                ClusterAction::Discard { service, run } => {
                    format!("remove the work directory .drctl/{run} of {service}")
                }
            },
            Self::Network(a) => a.summary(),
            Self::Redis(a) => a.summary(),
            Self::Container(a) => a.summary(),
            Self::Space(a) => a.summary(),
            Self::Server(a) => a.summary(),
            Self::Workload(a) => match a {
                WorkloadAction::Stop { service } => format!("stop {service}"),
                WorkloadAction::Start { service, .. } => format!("start {service}"),
                WorkloadAction::StartTogether { services } => format!("start {}", services.join(", ")),
                WorkloadAction::StopTogether { services } => format!("stop {}", services.join(", ")),
                WorkloadAction::Thaw { service } => format!("let {service} run again"),
                WorkloadAction::Restart { service } => format!("restart {service}"),
            },
        }
    }
}
