//! What a PostgreSQL server is busy with: statements that run long or wait, and those that are
//! slow on the whole. Texts come without the values in them.

use serde::{Deserialize, Serialize};

use crate::postgres::PgError;
use crate::system::PostgresServer;

/// A statement that runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Running {
    /// Its backend.
    pub pid: i64,
    /// The role.
    pub role: String,
    /// Seconds since it began.
    pub seconds: f64,
    /// What it waits for, as `Lock: relation`; empty when it works.
    pub waits: String,
    /// Its beginning, without values.
    pub text: String,
}

/// A statement in the server's statistics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Slow {
    /// How often it was called.
    pub calls: u64,
    /// Milliseconds that it takes on average.
    pub mean_millis: f64,
    /// Its beginning, without values.
    pub text: String,
}

/// What a server is busy with.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Queries {
    /// Statements that have run for more than a second or wait for a lock, longest first.
    pub running: Vec<Running>,
    /// The slowest by `pg_stat_statements`; empty where the extension is not installed.
    pub slow: Vec<Slow>,
}

impl Queries {
    /// How many wait for a lock.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.running
            .iter()
            .filter(|r| r.waits.starts_with("Lock"))
            .count()
    }
}

/// Asks a server.
///
/// # Errors
/// [`PgError`] of the first question; without statistics the second is left out.
pub async fn read(server: &PostgresServer) -> Result<Queries, PgError> {
    let database = server.config.databases.keys().next();
    let spec = database.map_or_else(
        || server.admin.clone(),
        |name| server.admin.to_database(name.as_str()),
    );
    let client = server.connect_to(&spec).await?;
    let running = client
        .rows(
            r"select pid, usename, extract(epoch from clock_timestamp() - query_start),
                     coalesce(wait_event_type || ': ' || wait_event, ''),
                     left(regexp_replace(query, '''[^'']*''?|\d+', '?', 'g'), 80)
              from pg_catalog.pg_stat_activity
              where backend_type = 'client backend' and state = 'active' and pid <> pg_catalog.pg_backend_pid()
                and (wait_event_type = 'Lock' or query_start < clock_timestamp() - interval '1 second')
              order by query_start limit 10",
        )
        .await?;
    let slow = client
        .rows(
            r"select calls, mean_exec_time, left(regexp_replace(query, '''[^'']*''?|\d+', '?', 'g'), 80)
              from pg_stat_statements where calls >= 5 order by mean_exec_time desc limit 5",
        )
        .await
        .unwrap_or_default();
    Ok(Queries {
        running: running
            .iter()
            .map(|r| Running {
                pid: r.number(0).unwrap_or_default(),
                role: r.text(1).to_owned(),
                seconds: r.number(2).unwrap_or_default(),
                waits: r.text(3).to_owned(),
                text: r.text(4).split_whitespace().collect::<Vec<_>>().join(" "),
            })
            .collect(),
        slow: slow
            .iter()
            .map(|r| Slow {
                calls: r.number(0).unwrap_or_default(),
                mean_millis: r.number(1).unwrap_or_default(),
                text: r.text(2).split_whitespace().collect::<Vec<_>>().join(" "),
            })
            .collect(),
    })
}
