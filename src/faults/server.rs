//! Stopping and starting the server around a fault, and waiting until the world is as
//! the fault says.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, PgError, sqlstate};
use crate::probe::logs::{self, LogPattern};
use crate::system::{PostgresServer, System};
use crate::workload::Status;

/// Between two looks at something that takes seconds.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a sound server may take from its start to its first answer.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// After so many restarts by the engine a server is in a crash loop.
const LOOPS: i64 = 3;
/// How long a broken server may take to fail for the first time.
const FAIL_DEADLINE: Duration = Duration::from_secs(60);

/// Stops the server cleanly, whatever its image's stop signal is: everything that was
/// in memory is in the files then, and no replay will write over what is damaged next.
///
/// # Errors
/// A server that had to be killed; it is started again then.
pub async fn stop_cleanly(system: &System, server: &PostgresServer) -> Result<()> {
    let grace = server.stop_grace(system.runbook.deadlines.stop);
    let name = &server.container.name;
    let was_running = server.container.is_running();
    // SIGTERM is PostgreSQL's "smart" shutdown, which waits for every client to leave
    // (PostgreSQL manual, 19.5). SIGINT is "fast".
    if was_running
        && !matches!(
            server.container.stop_signal.trim_start_matches("SIG"),
            "INT" | "2"
        )
    {
        system.docker.kill(name, "SIGINT").await?;
        system.docker.wait_stopped(name, grace).await?;
    }
    system.docker.stop(name, grace).await?;
    let after = system.docker.inspect(name).await?;
    if was_running && after.exit_code != 0 {
        system.docker.start(name).await?;
        return Err(Error::new(
            Kind::FailedUndone,
            format!(
                "{} did not stop cleanly (exit code {}) within {}; it was started again",
                server.service,
                after.exit_code,
                crate::event::seconds(grace)
            ),
        )
        .untouched("the data: nothing is damaged under a server that stopped badly"));
    }
    Ok(())
}

/// Stops a server that may be in any state, a crash loop included; how it ends does not
/// matter.
///
/// # Errors
/// The engine's trouble.
pub async fn stop_anyhow(system: &System, server: &PostgresServer) -> Result<()> {
    let grace = server.stop_grace(system.runbook.deadlines.stop);
    Ok(system.docker.stop(&server.container.name, grace).await?)
}

/// Ends the server as a power failure would: the WAL since the last checkpoint is
/// needed by the next start. SIGKILL and not SIGQUIT, because the engine takes the
/// former for an order to stay down and may answer the latter by its restart policy.
///
/// # Errors
/// The engine's trouble.
pub async fn crash(system: &System, server: &PostgresServer) -> Result<()> {
    let name = &server.container.name;
    if !server.container.is_running() {
        return Ok(());
    }
    system.docker.kill(name, "SIGKILL").await?;
    if system.docker.wait_stopped(name, Duration::from_secs(30)).await? {
        Ok(())
    } else {
        Err(Error::new(
            Kind::FailedChanged,
            format!("container {name} did not end within 30 s of SIGKILL"),
        ))
    }
}

/// Starts the server and waits until it answers a question.
///
/// # Errors
/// [`Kind::VerifyFailed`] with its last answer when it does not in two minutes.
pub async fn start_and_serve(system: &System, server: &PostgresServer) -> Result<()> {
    system.docker.start(&server.container.name).await?;
    let end = tokio::time::Instant::now() + START_DEADLINE;
    loop {
        let answer = match system.postgres(&server.service).await {
            Ok(now) => match now.connect().await {
                Ok(client) => client
                    .value("select 1")
                    .await
                    .map(drop)
                    .map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            },
            Err(e) => Err(e.to_string()),
        };
        match answer {
            Ok(()) => return Ok(()),
            Err(cause)
                if tokio::time::Instant::now() >= end
                    || system.docker.inspect(&server.container.name).await?.restart_count >= LOOPS =>
            {
                return Err(Error::new(
                    Kind::VerifyFailed,
                    format!("{} was started and does not serve: {cause}", server.service),
                )
                .next(format!("docker logs --tail 50 {}", server.container.name)));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Starts the server and waits until it has failed once.
///
/// # Errors
/// [`Kind::VerifyFailed`] when it serves after all: the fault has missed.
pub async fn start_and_fail(system: &System, server: &PostgresServer) -> Result<String> {
    let name = &server.container.name;
    // An engine may report the failed start here, or only in the state below.
    let _ = system.docker.start(name).await;
    let end = tokio::time::Instant::now() + FAIL_DEADLINE;
    loop {
        let now = system.docker.inspect(name).await?;
        match now.status {
            Status::Restarting => {
                return Ok(format!(
                    "restarts again and again, last exit code {}",
                    now.exit_code
                ));
            }
            Status::Exited | Status::Dead | Status::Created => {
                return Ok(format!("exited with code {}", now.exit_code));
            }
            _ if now.restart_count > 0 => {
                return Ok(format!("has restarted {} times", now.restart_count));
            }
            _ => {}
        }
        if let Ok(up) = system.postgres(&server.service).await
            && up.connect().await.is_ok()
        {
            return Err(Error::new(
                Kind::VerifyFailed,
                format!(
                    "{} started and serves although it was damaged: the fault has missed",
                    server.service
                ),
            )
            .next("drctl drill heal"));
        }
        if tokio::time::Instant::now() >= end {
            return Err(Error::new(
                Kind::VerifyFailed,
                format!(
                    "{name} neither serves nor fails after {}",
                    crate::event::seconds(FAIL_DEADLINE)
                ),
            ));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Starts the server and waits until it says that it is ready.
///
/// # Errors
/// [`Kind::VerifyFailed`] when it is reached after all: the fault has missed.
pub async fn start_deaf(system: &System, server: &PostgresServer) -> Result<String> {
    system.docker.start(&server.container.name).await?;
    let end = tokio::time::Instant::now() + START_DEADLINE;
    loop {
        let now = system.postgres(&server.service).await?;
        let log = logs::read(&system.docker, &now.container).await?;
        if log.iter().any(|l| l.pattern == LogPattern::Ready) {
            return match now.connect().await {
                Err(e) => Ok(format!("the server is ready, and is not reached: {e}")),
                Ok(_) => Err(Error::new(
                    Kind::VerifyFailed,
                    format!("{} is reached all the same: the fault has missed", server.service),
                )
                .next("drctl drill heal")),
            };
        }
        if tokio::time::Instant::now() >= end {
            return Err(Error::new(
                Kind::VerifyFailed,
                format!("{} does not become ready", server.service),
            )
            .next(format!("docker logs --tail 50 {}", server.container.name)));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A superuser session on `database` that may write.
///
/// # Errors
/// [`Kind::Refused`] when the server does not let us in: a fault needs a sound server.
pub async fn session(server: &PostgresServer, database: &str) -> Result<Client> {
    let spec = server.admin.to_database(database).writable();
    server
        .connect_to(&spec)
        .await
        .map_err(|e| not_sound(server, database, &e))
}

fn not_sound(server: &PostgresServer, database: &str, e: &PgError) -> Error {
    let error = Error::new(
        Kind::Refused,
        format!(
            "database {database} on {} does not answer; a fault is injected only into a sound server",
            server.service
        ),
    )
    .because(e)
    .untouched("everything");
    if e.is(sqlstate::INVALID_CATALOG) {
        error.next("drctl drill inject … --database NAME")
    } else {
        error.next("drctl drill heal    # is an earlier fault still there?")
    }
}

/// Turns a failed question into the boundary error.
pub fn asking(server: &PostgresServer, what: &str) -> impl FnOnce(PgError) -> Error {
    let message = format!("{what} on {} failed", server.service);
    move |e| Error::new(Kind::Internal, message).because(&e)
}
