//! What each [`Action`] does. Every one can be applied again after it was cut off
//! anywhere; `plan::action` says why.

mod cluster;
mod container;
mod damaged;
mod mend;
mod network;
mod prove;
mod recreate;
mod redis;
mod redis_files;
mod salvage;
mod scripts;
mod server;
mod server_files;
mod sessions;
mod side_server;
mod space;
mod sql;
mod swap;

pub use container::running;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::event::{Event, SharedReporter, Verdict};
use crate::incident::StateDir;
use crate::plan::{Action, ClusterAction, PostgresAction, RedisAction, SessionAction, WorkloadAction};
use crate::postgres::PgError;
use crate::system::{PostgresServer, System};
use crate::workload::{HelperOutput, Meter, Staging, StagingSpec, WorkloadError, metered};

/// How often the progress of a transfer is told.
const TOLD_EVERY: Duration = Duration::from_millis(500);

/// What an action works with.
pub struct ActionContext<'a> {
    /// The deployment.
    pub system: &'a System,
    /// The run (incident) on whose behalf it acts.
    pub run: &'a str,
    /// Where drctl remembers incidents: what they need is not removed.
    pub state: &'a StateDir,
    /// Where progress goes.
    pub reporter: &'a SharedReporter,
    /// Longest acceptable duration.
    pub deadline: Duration,
    /// What the steps before it found out, by the names of [`Outcome::facts`].
    pub facts: BTreeMap<String, Value>,
}

impl ActionContext<'_> {
    pub(super) fn note(&self, text: impl Into<String>) {
        self.reporter.event(&Event::Note { text: text.into() });
    }

    pub(super) fn warn(&self, text: impl Into<String>) {
        self.reporter.event(&Event::Warning { text: text.into() });
    }

    /// Makes a directory of a backup readable for a helper of the server's image, which
    /// takes a transfer where the engine is remote. `copies` as in [`Staging::filled`].
    async fn staged(
        &self,
        server: &PostgresServer,
        purpose: &str,
        directory: &str,
        copies: u64,
    ) -> Result<Staging, WorkloadError> {
        let spec = StagingSpec {
            deployment: self.system.deployment(),
            run: self.run,
            purpose,
            image: &server.container.image_id,
        };
        let sent = Meter::default();
        let directory = Path::new(directory);
        let staging = Staging::filled(&self.system.docker, spec, directory, copies, self.deadline, &sent);
        let mut staging = std::pin::pin!(staging);
        loop {
            tokio::select! {
                done = &mut staging => return done,
                () = tokio::time::sleep(TOLD_EVERY) => self.reporter.event(&Event::Progress {
                    what: format!("{} to {}", directory.display(), self.system.docker.host()),
                    bytes: metered(&sent),
                    total: None,
                }),
            }
        }
    }
}

/// What an action did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// One line for people.
    pub text: String,
    /// Facts for the report, as `rows-salvaged`.
    pub facts: BTreeMap<String, Value>,
    /// What it could not take back and left as it is, where that is no reason to stop.
    pub left: Option<String>,
}

impl Outcome {
    fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            facts: BTreeMap::new(),
            left: None,
        }
    }

    /// Of an undo that had to leave something as it is.
    fn stays(left: String) -> Self {
        Self {
            left: Some(left.clone()),
            ..Self::new(left)
        }
    }

    fn fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }
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
    /// It ended before it had changed anything, in words.
    #[error("{0}")]
    Untouched(String),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl From<crate::error::Error> for ActionError {
    fn from(e: crate::error::Error) -> Self {
        Self::Other(e.to_string())
    }
}

/// Names what was attempted in an error of the server.
fn pg<'a>(what: impl Into<String> + 'a) -> impl FnOnce(PgError) -> ActionError + 'a {
    move |source| ActionError::Postgres {
        what: what.into(),
        source,
    }
}

/// A helper's output, when it ended well.
fn succeeded(what: &str, output: HelperOutput) -> Result<HelperOutput, ActionError> {
    if output.exit_code == 0 {
        Ok(output)
    } else {
        Err(ActionError::Helper {
            what: what.to_owned(),
            exit_code: output.exit_code,
            last_words: output.last_words(),
        })
    }
}

/// Carries out one action.
///
/// # Errors
/// [`ActionError`]; the action can be applied again or undone.
pub async fn apply(cx: &ActionContext<'_>, action: &Action) -> Result<Outcome, ActionError> {
    match action {
        Action::Postgres(action) => postgres(cx, action).await,
        Action::Sessions(action) => on_sessions(cx, action).await,
        Action::Cluster(action) => on_files(cx, action).await,
        Action::Workload(action) => workload(cx, action).await,
        Action::Network(action) => network::apply(cx, action).await,
        Action::Redis(action) => on_redis(cx, action).await,
        Action::Container(action) => recreate::apply(cx, action).await,
        Action::Space(action) => space::apply(cx, action).await,
        Action::Server(action) => server_files::apply(cx, action).await,
    }
}

async fn on_redis(cx: &ActionContext<'_>, action: &RedisAction) -> Result<Outcome, ActionError> {
    use RedisAction as A;
    match action {
        A::SetConfig { service, name, value } => redis::set_config(cx, service, name, value).await,
        A::ClearPatterns { service, patterns } => redis::clear_patterns(cx, service, patterns).await,
        A::ClearStaleMembers {
            service,
            database,
            index,
            owner_prefix,
            kept,
        } => redis::clear_stale_members(cx, service, *database, (index, kept), owner_prefix).await,
        A::PutMembersBack {
            service,
            database,
            index,
            kept,
        } => redis::put_members_back(cx, service, *database, index, kept).await,
        A::KillScript { service } => redis::kill_script(cx, service).await,
        A::Save { service } => redis::save(cx, service).await,
        A::KeepSnapshot { service, run, files } => redis_files::keep_snapshot(cx, service, run, files).await,
        A::PutSnapshotBack { service, run, files } => {
            redis_files::put_snapshot_back(cx, service, run, files).await
        }
        A::MendFiles {
            service,
            run,
            files,
            mend,
        } => redis_files::mend(cx, service, run, files, mend).await,
        A::PutFilesBack { service, run, files } => redis_files::put_back(cx, service, run, files).await,
        A::DropKept { service, run, files } => redis_files::drop_kept(cx, service, run, files).await,
        A::Warm { url } => redis_files::warm(cx, url).await,
    }
}

async fn workload(cx: &ActionContext<'_>, action: &WorkloadAction) -> Result<Outcome, ActionError> {
    use WorkloadAction as A;
    match action {
        A::Stop { service } => container::stop(cx, service).await,
        A::Start { service, wait } => container::start(cx, service, *wait).await,
        A::StartTogether { services } => container::start_together(cx, services).await,
        A::StopTogether { services } => container::stop_together(cx, services).await,
        A::Thaw { service } => container::thaw(cx, service).await,
        A::Restart { service } => container::restart(cx, service).await,
    }
}

async fn postgres(cx: &ActionContext<'_>, action: &PostgresAction) -> Result<Outcome, ActionError> {
    use PostgresAction as A;
    match action {
        A::Reindex {
            service,
            database,
            index,
        } => sql::reindex(cx, service, database, index).await,
        A::RestoreSide {
            service,
            database,
            side,
            dump,
            jobs,
        } => sql::restore_side(cx, service, database, side, dump, *jobs).await,
        A::ProveSide {
            service,
            database,
            side,
            floors,
        } => sql::prove_side(cx, service, database, side, floors).await,
        A::FenceWriters { service, database } => sql::fence_writers(cx, service, database).await,
        A::UnfenceWriters { service, database } => sql::unfence_writers(cx, service, database).await,
        A::SalvageRows {
            service,
            from,
            into,
            tables,
        } => sql::salvage_rows(cx, service, from, into, tables).await,
        A::SwapDatabases {
            service,
            database,
            side,
            kept,
        } => swap::swap(cx, service, database, side, kept).await,
        A::SwapBack {
            service,
            database,
            side,
            kept,
            undone,
        } => swap::swap_back(cx, service, database, (side, kept), undone).await,
        A::DropDatabase { service, database } => swap::drop_database(cx, service, database).await,
    }
}

async fn on_sessions(cx: &ActionContext<'_>, action: &SessionAction) -> Result<Outcome, ActionError> {
    use SessionAction as A;
    match action {
        A::FreeSlot { service, title } => sessions::free_slot(cx, service, title).await,
        A::End {
            service,
            sessions,
            rules,
            free,
        } => sessions::end(cx, service, sessions, rules, *free).await,
        A::Unblock {
            service,
            session,
            transaction,
            waiting,
            how,
        } => {
            let agreed = sessions::Agreed {
                session,
                transaction: transaction.as_deref(),
                waiting: *waiting,
            };
            sessions::unblock(cx, service, &agreed, *how).await
        }
        A::RestartPools {
            service,
            applications,
        } => sessions::restart_pools(cx, service, applications).await,
    }
}

async fn on_files(cx: &ActionContext<'_>, action: &ClusterAction) -> Result<Outcome, ActionError> {
    use ClusterAction as A;
    match action {
        A::ExtractBase {
            service,
            run,
            base,
            first_segment,
            whole,
        } => cluster::extract_base(cx, service, run, base, (first_segment, *whole)).await,
        A::CopyDamaged { service, run, tables } => damaged::copy(cx, service, run, tables).await,
        A::KeepWal {
            service,
            run,
            first_segment,
            whole,
        } => cluster::keep_wal(cx, service, run, (first_segment, *whole)).await,
        A::ProveSide { service, run, floors } => cluster::prove_side(cx, service, run, floors).await,
        A::SalvageRows { service, run, tables } => cluster::salvage_rows(cx, service, run, tables).await,
        A::SalvageFromLog {
            service,
            run,
            first_segment,
            from,
            into,
            tables,
        } => cluster::salvage_from_log(cx, service, run, first_segment, (from, into), tables).await,
        A::Switch { service, run } => cluster::switch(cx, service, run).await,
        A::SwitchBack { service, run } => cluster::switch_back(cx, service, run).await,
        A::Discard { service, run } => cluster::discard(cx, service, run).await,
    }
}
