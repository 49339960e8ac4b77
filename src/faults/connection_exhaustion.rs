//! Connection slots that are all taken, and what only looks like it.

use super::harm::{Harm, Prepared};
use super::mend::Mend;
use super::server::{asking, session};
use super::sessions::{self, How};
use super::{Fault, Request};
use crate::error::{Error, Kind, Result};
use crate::postgres::quote_literal;
use crate::system::{PostgresServer, System};

/// Every fault of this family.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "connection-exhaustion/idle",
        summary: "idle sessions of one program hold every ordinary connection",
        leaves: "53300 for the application; pg_isready accepts, the administrator gets in",
        live: true,
    },
    Fault {
        name: "connection-exhaustion/idle-in-transaction",
        summary: "sessions that have begun a transaction and do nothing hold every ordinary connection",
        leaves: "53300 for the application; `idle in transaction` in pg_stat_activity",
        live: true,
    },
    Fault {
        name: "connection-exhaustion/lock-pile-up",
        summary: "one forgotten transaction has locked a table, and everybody waits for it until no connection is left",
        leaves: "53300 and hanging requests; wait_event_type Lock, pg_blocking_pids lead to one session",
        live: true,
    },
    Fault {
        name: "connection-exhaustion/lock-queue",
        summary: "a change of a table waits for a reader, and everybody waits behind the change",
        leaves: "53300 and hanging requests; an AccessExclusiveLock that is not granted",
        live: true,
    },
    Fault {
        name: "connection-exhaustion/reserved",
        summary: "idle sessions hold every connection, those reserved for superusers too",
        leaves: "53300 for everybody, the administrator included",
        live: true,
    },
    Fault {
        name: "connection-exhaustion/busy",
        summary: "look-alike: every connection is at work",
        leaves: "53300 for the application; all sessions are active and wait for nobody",
        live: true,
    },
    Fault {
        name: "connection-exhaustion/own-limit",
        summary: "look-alike: the application's role has a connection limit of its own, and has reached it",
        leaves: "53300 `too many connections for role`; most connections are free",
        live: false,
    },
];

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// A server that is not sound, or has no table or role that the fault needs.
pub async fn prepare(
    system: &System,
    variant: &str,
    service: Option<&str>,
    request: &Request,
    id: &str,
) -> Result<Option<Prepared>> {
    let name = system.postgres_service(service)?;
    let server = system.postgres(name.as_str()).await?;
    let database = request
        .database
        .clone()
        .unwrap_or_else(|| first_database(&server));
    if variant == "own-limit" {
        return own_limit(&server, &database).await.map(Some);
    }
    let how = match variant {
        "idle" => How::Idle,
        "idle-in-transaction" => How::InTransaction,
        "reserved" => How::Reserved,
        "busy" => How::Busy,
        "lock-pile-up" => How::PileUp {
            table: table(&server, &database, request)?,
        },
        "lock-queue" => How::Queue {
            table: table(&server, &database, request)?,
        },
        _ => return Ok(None),
    };
    let target = match &how {
        How::PileUp { table } | How::Queue { table } => {
            format!(
                "every ordinary connection of {}, waiting for table {table}",
                server.service
            )
        }
        How::Reserved => format!("every connection of {}", server.service),
        _ => format!("every ordinary connection of {}", server.service),
    };
    let sessions = sessions::prepare(&server, &database, how, request.ttl, id).await?;
    Ok(Some(Prepared {
        target,
        mends: vec![Mend::EndSessions {
            service: server.service.clone(),
            database,
            role: sessions.role.clone(),
            run: id.to_owned(),
        }],
        container: server.container.name.clone(),
        harms: vec![Harm::HoldSessions {
            service: server.service.clone(),
            sessions,
            run: id.to_owned(),
        }],
        service: server.service,
    }))
}

fn first_database(server: &PostgresServer) -> String {
    let first = server.config.databases.keys().next();
    first.map_or_else(|| server.admin.database.clone(), ToString::to_string)
}

/// The table that everybody waits for: the one that was asked for, or the one that the
/// application writes.
fn table(server: &PostgresServer, database: &str, request: &Request) -> Result<String> {
    let tables = server
        .config
        .databases
        .iter()
        .find(|(name, _)| name.as_str() == database)
        .map(|(_, d)| &d.tables);
    request
        .table
        .clone()
        .or_else(|| {
            let tables = tables?;
            let written = tables.iter().find(|(_, t)| t.traffic_number.is_some());
            written
                .or_else(|| tables.iter().next())
                .map(|(n, _)| n.to_string())
        })
        .ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!("the runbook names no table of database {database}"),
            )
            .untouched("everything")
            .next("drctl drill inject … --table TABLE")
        })
}

async fn own_limit(server: &PostgresServer, database: &str) -> Result<Prepared> {
    let role = server
        .config
        .databases
        .iter()
        .find(|(name, _)| name.as_str() == database)
        .and_then(|(_, d)| d.application_user.as_ref())
        .map(ToString::to_string)
        .ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!("the runbook names no application-user of database {database}"),
            )
            .untouched("everything")
        })?;
    let before = session(server, &server.admin.database)
        .await?
        .value(&format!(
            "select rolconnlimit from pg_roles where rolname = {}",
            quote_literal(&role)
        ))
        .await
        .map_err(asking(server, "the question for the role's limit"))?
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| {
            Error::new(
                Kind::Refused,
                format!("there is no role {role} on {}", server.service),
            )
            .untouched("everything")
        })?;
    let limit = |limit| (server.service.clone(), role.clone(), limit);
    let ((service, role_of_harm, none), (_, role, before)) = (limit(0), limit(before));
    Ok(Prepared {
        target: format!("the connection limit of role {role}, and its sessions"),
        service: service.clone(),
        container: server.container.name.clone(),
        harms: vec![Harm::LimitRole {
            service: service.clone(),
            role: role_of_harm,
            limit: none,
        }],
        mends: vec![Mend::LimitRole {
            service,
            role,
            limit: before,
            was: none,
        }],
    })
}
