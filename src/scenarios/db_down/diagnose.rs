//! What the evidence means: why nobody gets a connection. What only looks so, or is another
//! scenario's, is named and left alone.

use super::super::server_trouble::Lost;
use super::super::{Certainty, Diagnosis, LookAlike, missing_library};
use super::Evidence;
use super::detect::traces;
use super::trouble::{disk_full, permissions, port_taken, trouble};
use crate::postgres::{is_damage, sqlstate};
use crate::probe::connection::Connection;
use crate::probe::containers::{ContainerFacts, ContainerState, end_in_words};
use crate::probe::files::{Listens, ServerState};
use crate::probe::logs::{LogPattern, may_loop};
use crate::workload::Status;

/// Addresses that only the server's own container reaches.
const LOOPBACK: [&str; 4] = ["", "localhost", "127.0.0.1", "::1"];

/// Why the server does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// It answers.
    Answers,
    /// No container carries its name.
    NoContainer,
    /// The engine froze it, or a signal did.
    Frozen,
    /// It replays its log, or is just starting.
    Replaying,
    /// It was asked to stop and waits for its clients.
    ShuttingDown,
    /// It ended, or was ended, for no reason of its own.
    Stopped,
    /// It was killed for want of memory.
    OutOfMemory,
    /// Files of it are not its own.
    Permissions,
    /// Empty directories that it needs, or its `PG_VERSION`, are gone.
    Lost(Lost),
    /// It refuses its configuration.
    Configuration,
    /// It serves, at another port or only inside its container.
    Elsewhere(Listens),
    /// A lock file that nobody holds keeps it from starting.
    LockFile,
    /// It was made a standby, or told to recover, without a source.
    SignalFile(&'static str),
    /// Something that drctl does not put right: what, and what to type.
    ByHand(&'static str, Vec<String>),
    /// Another scenario's, or a standby at its work.
    Instead(LookAlike),
    /// It could not be found out.
    Unknown(String),
}

/// The cause and what tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub cause: Cause,
    pub reasons: Vec<String>,
}

pub(super) fn diagnose(ev: &Evidence) -> Diagnosis {
    let Finding { cause, reasons } = classify(ev);
    let service = &ev.service;
    let certainty = match &cause {
        Cause::Answers | Cause::Instead(_) => Certainty::Absent,
        Cause::Unknown(_) => Certainty::Unknown,
        _ => Certainty::Confirmed,
    };
    let summary = match &cause {
        Cause::Answers => format!("{service} answers"),
        Cause::Instead(other) => other.explanation.clone(),
        Cause::Unknown(why) => format!("{service} could not be judged: {why}"),
        cause => format!("{service} does not answer: {}", in_words(ev, cause)),
    };
    Diagnosis {
        certainty,
        summary,
        reasons,
        look_alike: match cause {
            Cause::Instead(other) => Some(other),
            _ => None,
        },
    }
}

fn in_words(ev: &Evidence, cause: &Cause) -> String {
    let facts = ev.container.found();
    match cause {
        Cause::NoContainer => "it has no container".into(),
        Cause::Frozen if facts.is_some_and(|f| f.info.status == Status::Paused) => {
            "its container is paused".into()
        }
        Cause::Frozen => "its main process is stopped by a signal".into(),
        Cause::Replaying => "it is starting, or replaying its log after a crash".into(),
        Cause::ShuttingDown => "it was asked to stop, and waits for its clients to leave".into(),
        Cause::Stopped => facts.map_or_else(String::new, |f| {
            format!("its container does not run ({})", end_in_words(&f.info))
        }),
        Cause::OutOfMemory => "it was killed for want of memory".into(),
        Cause::Permissions => "files of its data directory have the wrong owner or mode".into(),
        Cause::Lost(lost) => format!("{} is gone, and it does not start without", lost.in_words()),
        Cause::Configuration => "it refuses its configuration".into(),
        Cause::Elsewhere(listens) if listens.port != ev.port => {
            format!("it listens on port {} and not on {}", listens.port, ev.port)
        }
        Cause::Elsewhere(_) => "it listens inside its own container only".into(),
        Cause::LockFile => "a left-over postmaster.pid keeps it from starting".into(),
        Cause::SignalFile("standby.signal") => {
            "it only reads: a left-over standby.signal makes it a standby of nobody".into()
        }
        Cause::SignalFile(file) => format!("a left-over {file} has it recover from nowhere"),
        Cause::ByHand(what, _) => (*what).to_owned(),
        Cause::Answers | Cause::Instead(_) | Cause::Unknown(_) => String::new(),
    }
}

pub(super) fn found(cause: Cause, reasons: Vec<String>) -> Finding {
    Finding { cause, reasons }
}

fn instead(name: &str, explanation: impl Into<String>, reasons: Vec<String>, next: &[String]) -> Finding {
    found(
        Cause::Instead(LookAlike {
            name: name.into(),
            explanation: explanation.into(),
            next: next.to_vec(),
        }),
        reasons,
    )
}

/// Another scenario's failure.
pub(super) fn other(scenario: &str, explanation: impl Into<String>, reasons: Vec<String>) -> Finding {
    instead(
        scenario,
        explanation,
        reasons,
        &[
            format!("drctl diagnose {scenario}"),
            format!("drctl recover {scenario}"),
        ],
    )
}

/// Names the cause.
pub(super) fn classify(ev: &Evidence) -> Finding {
    let facts = match &ev.container {
        ContainerState::Found(facts) => facts,
        ContainerState::Missing => {
            let reasons = vec!["the engine has none with its Compose labels or its name".into()];
            return found(Cause::NoContainer, reasons);
        }
        ContainerState::Unknown(cause) => {
            let why = "the engine does not tell how its container is".into();
            return found(Cause::Unknown(why), vec![cause.clone()]);
        }
    };
    if let Connection::Open { in_recovery, .. } = ev.connection {
        return if in_recovery {
            recovering(ev)
        } else {
            found(Cause::Answers, remarks(ev))
        };
    }
    if facts.info.status == Status::Paused {
        return found(Cause::Frozen, vec!["the engine says that it is paused".into()]);
    }
    if facts.is_stopped_by_signal() {
        let reason = "its main process is in state T: stopped by a signal, which the engine does not know of";
        return found(Cause::Frozen, vec![reason.into()]);
    }
    match (&facts.info.status, &ev.connection) {
        (Status::Running, Connection::Refused { sqlstate, message }) => refused(ev, facts, sqlstate, message),
        (Status::Running, Connection::Closed { cause }) => closed(ev, facts, cause),
        (Status::Running, Connection::Silent) => found(
            Cause::Unknown("it accepts connections and answers nothing".into()),
            vec!["an overloaded host looks like this, and so does a disk that does not answer".into()],
        ),
        _ => down(ev, facts),
    }
}

/// It answers: what it has been through is worth telling.
fn remarks(ev: &Evidence) -> Vec<String> {
    let facts = ev.container.found();
    facts
        .filter(|f| f.info.restart_count > 0)
        .map(|f| {
            format!(
                "the engine has restarted it {} times since it was started",
                f.info.restart_count
            )
        })
        .into_iter()
        .collect()
}

/// It lets people in and only reads.
fn recovering(ev: &Evidence) -> Finding {
    let reasons = vec!["pg_is_in_recovery() says true".into()];
    let has = |file: &str| {
        ev.files
            .as_ref()
            .is_ok_and(|f| f.signals.iter().any(|s| s == file))
    };
    match &ev.configuration {
        Some(c) if c.problem.is_none() && !c.has_source && has("standby.signal") => {
            let mut reasons: Vec<String> = reasons;
            reasons.push(
                "standby.signal is there, and neither primary_conninfo nor restore_command is set".into(),
            );
            found(Cause::SignalFile("standby.signal"), reasons)
        }
        Some(c) if c.has_source && has("standby.signal") => instead(
            "standby",
            format!("{} answers: it is a standby, and only reads as such", ev.service),
            reasons,
            &["select * from pg_stat_wal_receiver;    # is its primary there?".into()],
        ),
        _ if ev.replay_paused == Some(true) => paused(ev, reasons),
        // A server that crashed, or was restored, lets readers in before it is done.
        _ => replaying(ev, reasons),
    }
}

/// It waits for somebody to decide whether this is the state that was wanted: never drctl.
fn paused(ev: &Evidence, mut reasons: Vec<String>) -> Finding {
    reasons.push("its replay is paused, as at a recovery target: it does not go on by itself".into());
    let name = ev
        .container
        .found()
        .map_or(ev.service.as_str(), |f| f.info.name.as_str());
    let next = vec![
        format!("docker logs --tail 20 {name}    # where it stopped, and why"),
        "# look whether the data is as it should be: it can be read. Then, as the administrator:".into(),
        "select pg_wal_replay_resume();    -- goes on; at its target: ends the recovery there".into(),
        "select pg_promote();    -- ends the recovery at once (PostgreSQL 12 and later)".into(),
    ];
    found(
        Cause::ByHand(
            "it only reads: its recovery is paused, and waits for a decision",
            next,
        ),
        reasons,
    )
}

fn replaying(ev: &Evidence, mut reasons: Vec<String>) -> Finding {
    reasons.extend(ev.replay.as_ref().map(|r| format!("at work: {r}")));
    if let Ok(control) = &ev.control {
        reasons.push(format!("pg_controldata: state {:?}", control.state));
    }
    let begun = ev
        .log
        .iter()
        .rev()
        .find(|l| l.pattern == LogPattern::CrashRecovery);
    reasons.extend(begun.map(|l| l.line.clone()));
    found(Cause::Replaying, reasons)
}

/// It runs, and turned the administrator away.
fn refused(ev: &Evidence, facts: &ContainerFacts, code: &str, message: &str) -> Finding {
    let reasons = vec![message.to_owned()];
    match code {
        // Between two crashes it is "starting up" too; then its last words count.
        sqlstate::CANNOT_CONNECT_NOW if may_loop(&facts.info) => match trouble(ev, facts) {
            Some(finding) => finding,
            None => replaying(ev, reasons),
        },
        sqlstate::CANNOT_CONNECT_NOW if message.contains("shutting down") => {
            found(Cause::ShuttingDown, reasons)
        }
        sqlstate::CANNOT_CONNECT_NOW => replaying(ev, reasons),
        sqlstate::TOO_MANY_CONNECTIONS => other(
            "connection-exhaustion",
            format!("{} runs, and every connection of it is taken", ev.service),
            reasons,
        ),
        sqlstate::INVALID_PASSWORD | sqlstate::INVALID_AUTHORIZATION => instead(
            "wrong-password",
            format!("{} runs, and refuses drctl's user or password", ev.service),
            reasons,
            &[
                "drctl runbook show    # which secret is used for the admin user?".into(),
                format!(
                    "docker exec {} cat {}/pg_hba.conf    # which rule refuses?",
                    facts.info.name, ev.data_directory
                ),
            ],
        ),
        _ if message.contains("ermission denied") => permissions(ev, facts, reasons),
        sqlstate::DISK_FULL => disk_full(ev, facts, reasons),
        code if is_damage(code, message) => other(
            "db-corruption",
            "what a session needs to begin is damaged",
            reasons,
        ),
        _ => match missing_library::of(message, None, &facts.info.name) {
            Some(missing) => instead(
                "library-missing",
                format!("{} runs, and {}", ev.service, missing.explanation),
                reasons,
                &missing.next,
            ),
            None => found(Cause::Unknown("it refuses the session".into()), reasons),
        },
    }
}

/// It runs, and nothing is reached at its port.
fn closed(ev: &Evidence, facts: &ContainerFacts, cause: &str) -> Finding {
    let info = &facts.info;
    if may_loop(info)
        && let Some(finding) = trouble(ev, facts)
    {
        return finding;
    }
    let shares =
        ["host", "none"].contains(&info.network_mode.as_str()) || info.network_mode.starts_with("container:");
    if info.attachments.is_empty() && info.networks.is_empty() && !shares {
        return other(
            "network-partition",
            format!("{} runs, and is in no network", ev.service),
            vec![cause.to_owned()],
        );
    }
    let listens = ev
        .files
        .as_ref()
        .ok()
        .and_then(crate::probe::files::FileFacts::listens);
    // The log may go elsewhere, or may have gone on for long since it said so.
    let state = ev
        .files
        .as_ref()
        .ok()
        .and_then(|f| f.server_state(info.started_at));
    let ready = match state {
        Some(ServerState::Ready | ServerState::Standby) => true,
        Some(ServerState::Starting | ServerState::Stopping) => false,
        None => ev.log.iter().any(|l| l.pattern == LogPattern::Ready),
    };
    match listens {
        Some(listens) if listens.port != ev.port || LOOPBACK.contains(&listens.address.as_str()) => {
            let reasons = vec![
                cause.to_owned(),
                format!(
                    "postmaster.pid: port {}, address {:?}",
                    listens.port, listens.address
                ),
            ];
            found(Cause::Elsewhere(listens), reasons)
        }
        Some(listens) if ready => other(
            "network-partition",
            format!(
                "{} runs and listens on port {}, and is not reached from here",
                ev.service, listens.port
            ),
            vec![cause.to_owned()],
        ),
        _ if !ready => replaying(ev, vec![cause.to_owned()]),
        _ => found(
            Cause::Unknown("it runs, says that it is ready, and nothing listens".into()),
            vec![cause.to_owned()],
        ),
    }
}

/// Its container does not run, or goes round in circles.
fn down(ev: &Evidence, facts: &ContainerFacts) -> Finding {
    let info = &facts.info;
    if info.error.contains("network") && info.error.contains("not found") {
        let reasons = vec![info.error.clone()];
        return other(
            "network-partition",
            format!("{} cannot be started: its network is gone", ev.service),
            reasons,
        );
    }
    if let Some(finding) = port_taken(facts, &info.error) {
        return finding;
    }
    if let Some(finding) = trouble(ev, facts) {
        return finding;
    }
    let mut reasons = vec![end_in_words(info)];
    if !ev.log.is_empty() {
        reasons.push("nothing in its log speaks of damage".into());
    }
    if info.oom_killed && info.exit_code == 137 {
        reasons.push(match info.memory_limit {
            0 => "it has no memory limit of its own: the machine ran out".into(),
            limit => format!("its limit is {}", crate::event::bytes(limit)),
        });
        return found(Cause::OutOfMemory, reasons);
    }
    let name = &info.name;
    if let Some(line) = traces(ev, info).has(LogPattern::OtherFatal)
        && traces(ev, info).ended_by_itself()
    {
        reasons.push(line.to_owned());
        let next = vec![
            format!("docker logs --tail 50 {name}"),
            "drctl diagnose db-corruption --deep".into(),
        ];
        return found(Cause::ByHand("it ends at its start", next), reasons);
    }
    if matches!(info.exit_code, 126 | 127) || (info.status == Status::Created && !info.error.is_empty()) {
        reasons.extend(Some(info.error.clone()).filter(|e| !e.is_empty()));
        let next = vec![
            format!("docker inspect {name} --format '{{{{.Config.Image}}}} {{{{.Path}}}} {{{{.Args}}}}'"),
            format!(
                "docker compose up -d {}    # creates the container anew; named volumes are used again",
                ev.service
            ),
        ];
        return found(Cause::ByHand("its container cannot be started", next), reasons);
    }
    if info.status == Status::Restarting {
        let next = vec![format!("docker logs --tail 50 {name}")];
        return found(
            Cause::ByHand("it ends again and again, and its log does not say why", next),
            reasons,
        );
    }
    found(Cause::Stopped, reasons)
}
