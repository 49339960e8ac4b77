//! Effects on the sessions of a PostgreSQL server.

use serde::{Deserialize, Serialize};

/// One session. A process number is used again; with the start it is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SessionRef {
    /// The server's process number.
    pub pid: i32,
    /// `backend_start`, as the server writes it.
    pub started: String,
}

/// Which sessions may be ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SessionRules {
    /// Seconds that one must have been idle outside a transaction.
    pub idle_after: u64,
    /// Seconds that one must have been idle inside a transaction.
    pub idle_in_transaction_after: u64,
    /// Seconds that a statement must have been running; `None`: none is ended.
    pub running_over: Option<u64>,
}

/// How a session is made to let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Release {
    /// Its statement is cancelled, the session stays.
    Cancel,
    /// It is ended, and its transaction rolled back.
    Terminate,
}

/// Sessions of a PostgreSQL server. An ended session does not come back; its application
/// connects again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionAction {
    /// Asks one idle session of a superuser to end, by the title of its process and from
    /// inside the container: the only way in when even the reserved slots are taken. Again:
    /// nothing is done once a superuser gets in.
    #[serde(rename_all = "kebab-case")]
    FreeSlot {
        /// Service.
        service: String,
        /// The process's title, up to and with the state.
        title: String,
    },
    /// Ends sessions until so many ordinary slots are free. Each is looked at again: one
    /// that works meanwhile is left alone. Again: those that were ended are gone, and where
    /// enough slots are free nothing is done.
    #[serde(rename_all = "kebab-case")]
    End {
        /// Service.
        service: String,
        /// Which, in this order. Empty: nobody could look before; those that `rules` allow.
        sessions: Vec<SessionRef>,
        /// What must be true of each.
        rules: SessionRules,
        /// How many ordinary slots are wanted.
        free: u32,
    },
    /// Makes the one session let go that the others wait for. It is looked at again: one that
    /// does something else by now is left alone. Again: it is gone, or waits no more.
    #[serde(rename_all = "kebab-case")]
    Unblock {
        /// Service.
        service: String,
        /// Which.
        session: SessionRef,
        /// `xact_start`, as the server writes it: a pooled session runs one transaction after
        /// the other. `None`: none was open.
        #[serde(default)]
        transaction: Option<String>,
        /// It is given up because it still waits for a lock that excludes readers.
        #[serde(default)]
        waiting: bool,
        /// How.
        how: Release,
    },
    /// Restarts, one by one, those services whose pools have not come back: the endpoints
    /// fail, and the service has no session on the server. Again: the same question.
    #[serde(rename_all = "kebab-case")]
    RestartPools {
        /// The PostgreSQL service.
        service: String,
        /// Services of the application that use it.
        applications: Vec<String>,
    },
}

impl SessionAction {
    /// What it does, in words.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::FreeSlot { service, .. } => format!("end one idle superuser session of {service}"),
            Self::End { service, .. } => format!("end sessions of {service} that do not work"),
            Self::Unblock {
                session,
                how: Release::Cancel,
                ..
            } => format!("cancel the statement of session {}", session.pid),
            Self::Unblock { session, .. } => format!("end session {}", session.pid),
            Self::RestartPools { applications, .. } => {
                format!(
                    "restart those of {} that do not come back",
                    applications.join(", ")
                )
            }
        }
    }
}
