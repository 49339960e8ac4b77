//! No connection is left: every slot of a PostgreSQL server is taken.
//!
//! Symptom: the application gets `too many clients` or `remaining connection slots are
//! reserved`, answers slowly or not at all; `pg_isready` still says that all is well. Cause:
//! sessions that are held and not used, transactions that were begun and forgotten, or a
//! queue of waiting sessions behind one that holds a lock.
//!
//! What drctl does, gentlest first: make the one session let go that the others wait for; end
//! sessions that do nothing, oldest first, and only as many as are needed; restart the
//! application's services one by one, and only those that do not come back by themselves.
//! What it never does: end a running statement without being asked, decide about a prepared
//! transaction, or touch replication, autovacuum, backups or itself.

mod diagnose;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DetectOptions, Diagnosis, PlanRequest, Refusal, Scenario};
use crate::error::Result;
use crate::plan::{Plan, Remedy, SessionRules};
use crate::postgres::{Client, PgError, sqlstate};
use crate::probe::backends::{self, Backend};
use crate::probe::connection::{Connection, question};
use crate::probe::endpoints::Answers;
use crate::probe::logs::{self, LogPattern};
use crate::probe::observer::Observer;
use crate::probe::sessions::{self, SessionFacts};
use crate::runbook::Runbook;
use crate::system::PostgresServer;

/// A superuser's slots come and go too: so often a refusal is asked again.
const ATTEMPTS: u32 = 3;
/// Between two of them.
const AGAIN: Duration = Duration::from_millis(100);

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionExhaustion;

/// What is observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// When.
    pub taken_at: Timestamp,
    /// The PostgreSQL service.
    pub service: String,
    /// Its container.
    pub container: String,
    /// Seconds after which the operator wants idle sessions ended, instead of the runbook's.
    pub idle_over: Option<u64>,
    /// Seconds after which the operator wants running statements ended.
    pub running_over: Option<u64>,
    /// A session as the administrator.
    pub connection: Connection,
    /// The sessions, when one could be had.
    pub facts: Option<SessionFacts>,
    /// The processes' titles, when none could be had.
    pub backends: Vec<Backend>,
    /// When a session was last turned away for want of a slot, by the server's log.
    pub turned_away: Option<Timestamp>,
    /// Prepared transactions, where a session waits for one.
    #[serde(default)]
    pub prepared: Vec<Prepared>,
    /// How the endpoints answer, where some sessions wait for another.
    #[serde(default)]
    pub endpoints: BTreeMap<String, Answers>,
}

/// A transaction that its session has prepared and left: it holds its locks until somebody
/// decides about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Prepared {
    /// The name by which it is decided about.
    pub gid: String,
    /// When it was prepared, as the server writes it.
    pub prepared: String,
    /// The role that did it.
    pub owner: String,
    /// The database in which it must be decided about.
    pub database: String,
}

impl Evidence {
    /// Which sessions may be ended: the operator's word before the runbook's.
    fn rules(&self, rb: &Runbook) -> SessionRules {
        let of = rb
            .postgres_services()
            .find(|(name, ..)| name.as_str() == self.service)
            .map(|(_, _, p)| p.sessions.clone())
            .unwrap_or_default();
        SessionRules {
            idle_after: self.idle_over.unwrap_or(of.idle_after.as_secs()),
            idle_in_transaction_after: self.idle_over.unwrap_or(of.idle_in_transaction_after.as_secs()),
            running_over: self.running_over,
        }
    }
}

impl Scenario for ConnectionExhaustion {
    const NAME: &'static str = "connection-exhaustion";
    const ABOUT: &'static str = "A PostgreSQL server without a free connection, or a queue behind one lock";
    const REMEDIES: &'static [Remedy] = &[Remedy::UnblockSessions, Remedy::EndSessions, Remedy::Restart];
    const CAUSES: &'static [&'static str] = &["service-overload", "service-crash", "outage"];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
        let system = world.system;
        let service = system.postgres_service(options.service.as_deref())?.to_string();
        let server = system.postgres(&service).await?;
        let log = async {
            logs::read(&system.docker, &server.container)
                .await
                .unwrap_or_default()
                .into_iter()
                .filter(|l| l.pattern == LogPattern::TooManyConnections)
                .filter_map(|l| l.at)
                .max()
        };
        let ((connection, client), turned_away) = tokio::join!(connect(&server), log);
        let facts = match &client {
            Some(client) => sessions::read(client).await.ok(),
            None => None,
        };
        let waiting = facts.as_ref().map_or(&[][..], |f| &f.sessions[..]);
        let prepared = match &client {
            Some(client) if waiting.iter().any(|s| s.waits_for.contains(&0)) => prepared(client).await,
            _ => Vec::new(),
        };
        // A few that wait matter where users notice; nobody is asked where that decides nothing.
        let endpoints = if facts.as_ref().is_some_and(diagnose::is_undecided) {
            world.endpoints().await.clone()
        } else {
            BTreeMap::new()
        };
        let nobody = matches!(&connection, Connection::Refused { sqlstate, .. }
            if sqlstate == sqlstate::TOO_MANY_CONNECTIONS);
        let backends = if nobody {
            let processes = system.docker.processes(&server.container.id).await;
            backends::sessions(&processes.unwrap_or_default())
        } else {
            Vec::new()
        };
        Ok(Evidence {
            taken_at: Timestamp::now(),
            service,
            container: server.container.name,
            idle_over: options.idle_over.map(|d| d.as_secs()),
            running_over: options.running_over.map(|d| d.as_secs()),
            connection,
            facts,
            backends,
            turned_away,
            prepared,
            endpoints,
        })
    }

    fn diagnose(evidence: &Evidence, runbook: &Runbook) -> Diagnosis {
        diagnose::diagnose(evidence, runbook)
    }

    fn plan(evidence: &Evidence, runbook: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
        plan::plan(evidence, runbook, request)
    }
}

/// The oldest first; empty where the server does not say.
async fn prepared(client: &Client) -> Vec<Prepared> {
    let rows = client
        .rows(
            "select gid, prepared::text, owner, database from pg_catalog.pg_prepared_xacts order by prepared",
        )
        .await
        .unwrap_or_default();
    rows.iter()
        .map(|r| Prepared {
            gid: r.text(0).to_owned(),
            prepared: r.text(1).to_owned(),
            owner: r.text(2).to_owned(),
            database: r.text(3).to_owned(),
        })
        .collect()
}

async fn connect(server: &PostgresServer) -> (Connection, Option<Client>) {
    let mut attempt = 1;
    loop {
        match server.connect().await {
            Err(e @ PgError::Server { .. }) if e.is(sqlstate::TOO_MANY_CONNECTIONS) && attempt < ATTEMPTS => {
                attempt += 1;
                tokio::time::sleep(AGAIN).await;
            }
            other => return question(other).await,
        }
    }
}
