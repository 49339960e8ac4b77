//! Looks at a server that may be down. One that answers and is no standby costs one question;
//! the files and the configuration are read only where there is something to explain.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::super::DetectOptions;
use super::super::server_trouble::{self, Kind, Traces};
use super::{Configuration, EVIDENCE_FORMAT, Evidence};
use crate::error::Result;
use crate::probe::backends::replaying;
use crate::probe::connection::{Connection, question, replay_paused};
use crate::probe::containers::{self, ContainerFacts, ContainerState};
use crate::probe::files::Look;
use crate::probe::logs;
use crate::probe::observer::Observer;
use crate::probe::settings;
use crate::runbook::Runbook;
use crate::system::{PostgresServer, System};
use crate::workload::{ContainerInfo, POSTGRES, Status};

/// How long one is watched that was started a moment ago: the engine's first restarts come
/// faster.
const SECOND_LOOK: Duration = Duration::from_millis(2500);

pub(super) async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
    let system = world.system;
    let service = system.postgres_service(options.service.as_deref())?.to_string();
    let container = world
        .containers()
        .await
        .get(&service)
        .cloned()
        .unwrap_or(ContainerState::Missing);
    let mut ev = nothing(&system.runbook, service, container);
    if ev.container.found().is_none() {
        return Ok(ev);
    }
    let mut server = system.postgres(&ev.service).await?;
    ev.data_directory.clone_from(&server.data_dir);
    // It would be asked in vain, for as long as the deadline is, and no file explains it.
    if let Some(cause) = ev.container.found().and_then(frozen) {
        ev.connection = Connection::Closed { cause: cause.into() };
        return Ok(ev);
    }
    let (connection, client) = question(server.connect().await).await;
    ev.connection = connection;
    if let (
        Connection::Open {
            in_recovery: true, ..
        },
        Some(client),
    ) = (&ev.connection, &client)
    {
        ev.replay_paused = replay_paused(client).await;
    }
    drop(client);
    if !ev.connection.is_open() && is_fresh(&server.container, ev.taken_at) {
        (server, ev.connection) = second_look(system, server, ev.connection).await?;
        ev.container = containers::one(system, &ev.service).await;
    }
    if matches!(
        ev.connection,
        Connection::Open {
            in_recovery: false,
            ..
        }
    ) {
        return Ok(ev);
    }
    let docker = &system.docker;
    let (log, look, processes, sharing, rivals, host) = tokio::join!(
        logs::read(docker, &server.container),
        world.files(&server),
        docker.processes(&server.container.id),
        docker.sharing_data(&server.container, &server.data_dir),
        docker.servers_sharing_data(POSTGRES, &server.container, &server.data_dir),
        world.host(),
    );
    let Look {
        files,
        control,
        server_user,
    } = look;
    ev.log = log.unwrap_or_default();
    ev.files = files;
    ev.control = control;
    ev.server_user = server_user;
    ev.replay = replaying(&processes.unwrap_or_default());
    ev.sharing = sharing.unwrap_or_default();
    ev.rivals = rivals.unwrap_or_default();
    ev.memory_available = host.as_ref().map(|h| h.memory_available);
    ev.configuration = configuration(world, &server, &ev).await;
    Ok(ev)
}

/// Why nobody need be asked: what is frozen does not answer.
fn frozen(facts: &ContainerFacts) -> Option<&'static str> {
    if facts.info.status == Status::Paused {
        Some("not asked: its container is paused")
    } else if facts.is_stopped_by_signal() {
        Some("not asked: its main process is stopped by a signal")
    } else {
        None
    }
}

/// Started a moment ago: it may be about to end, and to be started again by the engine.
fn is_fresh(container: &ContainerInfo, now: Timestamp) -> bool {
    container.is_running()
        && container
            .started_at
            .is_some_and(|at| now.duration_since(at) < SignedDuration::from_secs(10))
}

/// Watches one that was started a moment ago until it answers, has ended, or for a while.
async fn second_look(
    system: &System,
    mut server: PostgresServer,
    mut connection: Connection,
) -> Result<(PostgresServer, Connection)> {
    let restarts = server.container.restart_count;
    let end = tokio::time::Instant::now() + SECOND_LOOK;
    while tokio::time::Instant::now() < end
        && server.container.is_running()
        && server.container.restart_count == restarts
        && !connection.is_open()
    {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server = system.postgres(&server.service).await?;
        connection = question(server.connect().await).await.0;
    }
    Ok((server, connection))
}

fn nothing(rb: &Runbook, service: String, container: ContainerState) -> Evidence {
    let port = rb.postgres_services().find(|(n, ..)| n.as_str() == service);
    Evidence {
        format: EVIDENCE_FORMAT,
        taken_at: Timestamp::now(),
        port: port.map_or(0, |(_, _, p)| p.port),
        service,
        data_directory: String::new(),
        container,
        connection: Connection::Closed {
            cause: "there is no container".into(),
        },
        log: Vec::new(),
        control: Err("not looked at".into()),
        files: Err("not looked at".into()),
        server_user: None,
        configuration: None,
        sharing: Vec::new(),
        rivals: Vec::new(),
        replay_paused: None,
        replay: None,
        memory_available: None,
    }
}

/// Where the configuration may be the reason: the server does not start, listens elsewhere, or
/// waits for WAL that nobody sends.
async fn configuration(
    world: &Observer<'_>,
    server: &PostgresServer,
    ev: &Evidence,
) -> Option<Configuration> {
    let user = ev.server_user.as_ref()?;
    let docker = &world.system.docker;
    let trouble = server_trouble::of(traces(ev, &server.container)).map(|t| t.kind);
    // A damaged or a full one has other worries, and one that is let start may say more. One that
    // runs may listen elsewhere, whatever else its log complains of.
    let asks = matches!(
        trouble,
        None | Some(Kind::Configuration | Kind::RecoverySource | Kind::LockFile)
    );
    if !asks && !server.container.is_running() {
        return None;
    }
    let log = match trouble {
        Some(Kind::Configuration) => docker
            .logs(&server.container.id, None, 200)
            .await
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    let probe = world.system.runbook.deadlines.probe.max(Duration::from_secs(3)) + Duration::from_secs(4);
    let run = format!("detect-{}-{}", std::process::id(), ev.taken_at.as_second());
    let look = settings::look(world.system, server, user, &run, &log, probe).await;
    Some(match look {
        Ok(found) => Configuration {
            port: found.in_force("port", &format!("the runbook says port {}", ev.port)),
            listen_addresses: found.in_force(
                "listen_addresses",
                "the server is not reached at the addresses that it listens on",
            ),
            has_source: found.is_set("primary_conninfo") || found.is_set("restore_command"),
            rules_broken: found.rules.broken,
            rules_changed: found.rules.changed,
            broken: found.broken,
            refused: found.refused,
            problem: None,
        },
        Err(why) => Configuration {
            problem: Some(why),
            ..Configuration::default()
        },
    })
}

pub(super) fn traces<'a>(ev: &'a Evidence, container: &'a ContainerInfo) -> Traces<'a> {
    Traces {
        container,
        log: &ev.log,
        control: &ev.control,
        files: &ev.files,
    }
}
