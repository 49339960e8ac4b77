//! Stopping and starting a PostgreSQL server, and its sessions.

use std::time::Duration;

use super::{ActionContext, ActionError, Outcome, pg};
use crate::event::seconds;
use crate::postgres::{Client, PgError, quote_literal};
use crate::system::PostgresServer;
use crate::workload::Status;

/// How often a starting server is asked.
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn stop(cx: &ActionContext<'_>, service: &str) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    if server.container.status == Status::Paused {
        // A frozen process cannot act on its stop signal and would be killed.
        cx.system.docker.unpause(&server.container.id).await?;
    } else if server.container.is_running() {
        let states = cx.system.docker.process_states(&server.container.id).await;
        if states.is_ok_and(|all| all.first().is_some_and(|s| s.starts_with('T'))) {
            cx.system.docker.resume(&server.container.id).await?;
        }
    }
    if server.container.is_running() && server.container.stop_signal != "SIGINT" {
        // SIGTERM is the smart shutdown, which waits for clients until the engine loses
        // patience and kills the server (PostgreSQL manual, 19.5). End them first.
        if let Ok(client) = server.connect_to(&server.admin.writable()).await {
            end_sessions(&client, None).await?;
        }
    }
    let begun = tokio::time::Instant::now();
    let grace = server.stop_grace(cx.system.runbook.deadlines.stop);
    cx.system.docker.stop(&server.container.id, grace).await?;
    let after = cx.system.docker.inspect(&server.container.id).await?;
    if after.is_running() || after.status == Status::Restarting {
        return Err(ActionError::Other(format!(
            "{service} is still running after its stop"
        )));
    }
    Ok(
        Outcome::new(format!("{service} is stopped, exit code {}", after.exit_code))
            .fact("stop-seconds", begun.elapsed().as_secs_f64()),
    )
}

pub(super) async fn start(cx: &ActionContext<'_>, service: &str, wait: bool) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let begun = tokio::time::Instant::now();
    cx.system.docker.start(&server.container.id).await?;
    if !wait {
        return Ok(Outcome::new(format!("{service} is started")));
    }
    let end = begun + cx.deadline;
    loop {
        let server = cx.system.postgres(service).await?;
        if matches!(
            server.container.status,
            Status::Exited | Status::Dead | Status::Restarting
        ) {
            return Err(ActionError::Other(format!(
                "{service} does not stay up (exit code {}): {}",
                server.container.exit_code,
                last_log(cx, &server).await
            )));
        }
        let last = match server.connect().await {
            Ok(client) => match client.value("select pg_is_in_recovery()").await {
                Ok(Some(answer)) if answer == "f" => {
                    return Ok(Outcome::new(format!("{service} takes connections"))
                        .fact("start-seconds", begun.elapsed().as_secs_f64()));
                }
                Ok(_) => "it is still in recovery".to_owned(),
                Err(e) => e.to_string(),
            },
            Err(e) => e.to_string(),
        };
        if tokio::time::Instant::now() >= end {
            return Err(ActionError::Other(format!(
                "{service} runs and does not take connections after {}: {last}",
                seconds(cx.deadline)
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn last_log(cx: &ActionContext<'_>, server: &PostgresServer) -> String {
    match cx.system.docker.logs(&server.container.id, None, 5).await {
        Ok(lines) => lines.into_iter().map(|l| l.text).collect::<Vec<_>>().join("; "),
        Err(e) => e.to_string(),
    }
}

/// Ends every other client session, of one database or of all, without waiting for them
/// one by one. Replication and background workers are left alone.
pub(super) async fn end_sessions(client: &Client, database: Option<&str>) -> Result<(), ActionError> {
    let of = database.map_or_else(String::new, |d| format!(" and datname = {}", quote_literal(d)));
    client
        .rows(&format!(
            "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity \
             where pid <> pg_catalog.pg_backend_pid() and backend_type = 'client backend'{of}"
        ))
        .await
        .map_err(pg("ending sessions"))?;
    Ok(())
}

/// Waits until no session of a database is left, ending those that come back.
pub(super) async fn wait_empty(client: &Client, database: &str, limit: Duration) -> Result<(), ActionError> {
    let end = tokio::time::Instant::now() + limit;
    loop {
        let left: u64 = client
            .value(&format!(
                "select count(*) from pg_catalog.pg_stat_activity where datname = {} and pid <> pg_catalog.pg_backend_pid()",
                quote_literal(database)
            ))
            .await
            .map_err(pg("counting sessions"))?
            .and_then(|n| n.parse().ok())
            .unwrap_or_default();
        if left == 0 {
            return Ok(());
        }
        if tokio::time::Instant::now() >= end {
            return Err(ActionError::Other(format!(
                "{left} sessions of {database} do not end within {}",
                seconds(limit)
            )));
        }
        // Autovacuum workers too: they hold the rename up and start again by themselves.
        client
            .rows(&format!(
                "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity \
                 where datname = {} and pid <> pg_catalog.pg_backend_pid()",
                quote_literal(database)
            ))
            .await
            .map_err(pg("ending sessions"))?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A session for work: may write, and each statement may take as long as the step.
pub(super) async fn session(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    database: &str,
) -> Result<Client, ActionError> {
    let mut spec = server.admin.to_database(database).writable();
    spec.deadline = cx.system.runbook.deadlines.probe.max(Duration::from_secs(5));
    server.connect_to(&spec).await.map_err(pg(format!(
        "connecting to database {database} of {}",
        server.service
    )))
}

/// A session to a database that is not the one being renamed.
pub(super) async fn session_beside(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    database: &str,
) -> Result<Client, ActionError> {
    let configured = server.config.admin_database.as_str();
    let first = if configured == database {
        "postgres"
    } else {
        configured
    };
    match session(cx, server, first).await {
        Err(ActionError::Postgres {
            source: PgError::Server { .. },
            ..
        }) if database != "template1" => session(cx, server, "template1").await,
        other => other,
    }
}
