//! Stopping and starting a PostgreSQL server, and its sessions.

use std::time::Duration;

use super::{ActionContext, ActionError, Outcome, pg};
use crate::event::seconds;
use crate::postgres::{Client, PgError, quote_literal, sqlstate};
use crate::probe::connection::replay_paused;
use crate::system::{PostgresServer, System};
use crate::workload::{POSTGRES, Status};

/// How often a starting server is asked.
const POLL: Duration = Duration::from_millis(100);
/// How long a start is waited for without a word.
const TOLD_AFTER: Duration = Duration::from_secs(5);

pub(super) async fn stop(cx: &ActionContext<'_>, service: &str) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    if server.container.status == Status::Paused {
        // A frozen process cannot act on its stop signal and would be killed.
        cx.system.docker.unpause(&server.container.id).await?;
    } else if server.container.is_running() {
        let docker = &cx.system.docker;
        if docker
            .is_stopped_by_signal(&server.container.id)
            .await
            .unwrap_or_default()
        {
            docker.resume(&server.container.id).await?;
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

/// Every start of a PostgreSQL server comes through here: two servers on one data directory destroy
/// it, and on an empty one the image's entrypoint makes a new, empty cluster, perhaps on the
/// mount point of the disk that holds the data. Nothing to ask of one that runs.
pub(super) async fn may_start(cx: &ActionContext<'_>, server: &PostgresServer) -> Result<(), ActionError> {
    if server.container.is_running() {
        return Ok(());
    }
    must_be_alone(cx, server, "it is not started").await?;
    must_have_data(cx, server).await
}

/// Refuses where another server runs on the same data. `untouched` says what is left alone.
pub(super) async fn must_be_alone(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    untouched: &str,
) -> Result<(), ActionError> {
    let others = cx
        .system
        .docker
        .servers_sharing_data(POSTGRES, &server.container, &server.data_dir)
        .await?;
    match others.as_slice() {
        [] => Ok(()),
        others => Err(ActionError::Other(held_by(&server.service, others, untouched))),
    }
}

pub(super) fn held_by(service: &str, others: &[String], untouched: &str) -> String {
    let names = others.join(", ");
    format!(
        "container {names} runs on the data of {service}: {untouched}, for two servers on one data directory destroy it; \
         `docker logs --tail 20 {first}` tells what it is, `docker stop {all}` ends it if {service} is the one that should run",
        first = others.first().map_or("", String::as_str),
        all = others.join(" "),
    )
}

/// Refuses where a server that has run before finds no data any more. A container that never ran
/// may make its first data.
pub(super) async fn must_have_data(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
) -> Result<(), ActionError> {
    let container = &server.container;
    // In memory it is made anew at each start.
    let lasting = container
        .mount_of(&server.data_dir)
        .is_some_and(|m| !m.source.is_empty());
    // Its command may name another directory than the one that is known.
    let elsewhere = container.command.iter().any(|word| {
        word.starts_with("-D") || word.starts_with("--pgdata") || word.contains("data_directory")
    });
    if container.started_at.is_none() || !lasting || elsewhere {
        return Ok(());
    }
    for file in ["PG_VERSION", "global/pg_control"] {
        let path = format!("{}/{file}", server.data_dir);
        if cx.system.docker.has_path(&container.id, &path).await? {
            return Ok(());
        }
    }
    Err(ActionError::Other(no_data(server)))
}

fn no_data(server: &PostgresServer) -> String {
    let (container, data) = (&server.container, &server.data_dir);
    let source = container.mount_of(data).map_or("", |m| m.source.as_str());
    format!(
        "the data directory {data} of {service} is empty (neither PG_VERSION nor global/pg_control is there), and it has run before: \
         it is not started, for it would make a new, empty cluster there; `findmnt -T {source}` tells whether its disk is mounted, \
         `docker inspect {name} --format '{{{{json .Mounts}}}}'` and `docker volume ls` which volume it has",
        service = server.service,
        name = container.name,
    )
}

pub(super) async fn start(cx: &ActionContext<'_>, service: &str, wait: bool) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let begun = tokio::time::Instant::now();
    may_start(cx, &server).await?;
    cx.system.docker.start(&server.container.id).await?;
    if !wait {
        return Ok(Outcome::new(format!("{service} is started")));
    }
    let end = begun + cx.deadline;
    let mut told = false;
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
                Ok(_) if replay_paused(&client).await == Some(true) => {
                    return Err(ActionError::Other(paused(service)));
                }
                Ok(_) => "it is still in recovery".to_owned(),
                Err(e) => e.to_string(),
            },
            Err(e) => e.to_string(),
        };
        if !told && begun.elapsed() > TOLD_AFTER {
            // A silent wait would be taken for a hang, and cut off in the middle of a replay.
            cx.note(format!(
                "waiting for {service}, up to {}: {last}",
                seconds(cx.deadline)
            ));
            told = true;
        }
        if tokio::time::Instant::now() >= end {
            return Err(ActionError::Other(format!(
                "{service} runs and does not take connections after {}: {last}",
                seconds(cx.deadline)
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether it runs and takes no connections yet, or no longer. Where that cannot be asked, no:
/// nor of one that the engine starts again and again, which begins anew by itself.
pub(super) async fn replays(system: &System, service: &str) -> bool {
    match system.postgres(service).await {
        Ok(server) if server.container.restart_count > 0 => false,
        Ok(server) => matches!(server.connect().await, Err(e) if e.is(sqlstate::CANNOT_CONNECT_NOW)),
        Err(_) => false,
    }
}

/// Its recovery waits for a decision, which drctl does not take.
pub(super) fn paused(service: &str) -> String {
    format!(
        "the recovery of {service} is paused, and waits for ever; it was not touched: `select pg_wal_replay_resume()` has it go on \
         (at its target: end there), `select pg_promote()` ends it; look first whether the data is as it should be"
    )
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
