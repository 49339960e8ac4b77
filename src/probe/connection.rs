//! Whether a session can be had. `pg_isready` and the container's health say yes in cases in
//! which nobody gets in, so a session is opened and asked something.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::postgres::{Client, PgError};

/// How an attempt to open a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connection {
    /// It works; the server's version number (`150013`) and start time.
    #[serde(rename_all = "kebab-case")]
    Open {
        /// `server_version_num`.
        version: u32,
        /// `pg_postmaster_start_time()`.
        started_at: Option<Timestamp>,
        /// `pg_is_in_recovery()`.
        in_recovery: bool,
    },
    /// The server refused, with its reason.
    #[serde(rename_all = "kebab-case")]
    Refused {
        /// SQLSTATE.
        sqlstate: String,
        /// The server's message and detail.
        message: String,
    },
    /// Nothing listens.
    #[serde(rename_all = "kebab-case")]
    Closed {
        /// The system's words.
        cause: String,
    },
    /// It accepts and does not answer within the deadline.
    Silent,
}

impl From<&PgError> for Connection {
    fn from(e: &PgError) -> Self {
        match e {
            PgError::Server { sqlstate, .. } => Self::Refused {
                sqlstate: sqlstate.clone(),
                message: e.to_string(),
            },
            PgError::Timeout { .. } => Self::Silent,
            // No server answers so to a short question.
            PgError::TooLong { .. } => Self::Closed { cause: e.to_string() },
            PgError::NoConnection { cause, .. } | PgError::Broken { cause, .. } => {
                Self::Closed { cause: cause.clone() }
            }
        }
    }
}

impl Connection {
    /// True when a session was open and answered.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }
}

/// Whether the replay of the log is paused, as by a recovery that has reached its target
/// (`recovery_target_action = 'pause'`): it never ends by itself. `None` where the server does not
/// tell, or is in no recovery.
pub async fn replay_paused(client: &Client) -> Option<bool> {
    let version = client
        .value("select pg_catalog.current_setting('server_version_num')")
        .await
        .ok()??;
    let state = client
        .value(paused_question(version.parse().ok()?))
        .await
        .ok()??;
    Some(matches!(state.as_str(), "t" | "paused"))
}

fn paused_question(version: u32) -> &'static str {
    match version {
        ..100_000 => "select pg_catalog.pg_is_xlog_replay_paused()",
        100_000..140_000 => "select pg_catalog.pg_is_wal_replay_paused()",
        _ => "select pg_catalog.pg_get_wal_replay_pause_state()",
    }
}

const QUESTION: &str = r#"
select pg_catalog.current_setting('server_version_num'),
  pg_catalog.to_char(pg_catalog.pg_postmaster_start_time() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
  pg_catalog.pg_is_in_recovery()"#;

/// Asks an attempt's session who it is. The session is handed back when it answers.
pub async fn question(attempt: Result<Client, PgError>) -> (Connection, Option<Client>) {
    let client = match attempt {
        Ok(client) => client,
        Err(e) => return (Connection::from(&e), None),
    };
    match client.rows(QUESTION).await {
        Err(e) => (Connection::from(&e), None),
        Ok(rows) => {
            let row = rows.first();
            let open = Connection::Open {
                version: row.and_then(|r| r.number(0)).unwrap_or_default(),
                started_at: row.and_then(|r| r.number(1)),
                in_recovery: row.is_some_and(|r| r.is_true(2)),
            };
            (open, Some(client))
        }
    }
}
