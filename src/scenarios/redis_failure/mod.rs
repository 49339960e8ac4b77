//! A Redis that does not serve: stopped, frozen, refusing writes because it cannot save, or
//! unable to load its data.
//!
//! Symptom: the application's cache and sessions fail; PING is refused or not answered. Cause:
//! somebody or the kernel ended it, a save failed, its files are damaged.
//!
//! What drctl does, gentlest first: let a frozen one run again; start a stopped one; have it
//! save once more when a save has failed, and, where that cannot be, let writes through without
//! one; end a script that keeps it from everything else; make files loadable that are not, on a
//! copy, with the loss stated before; restart it.
//! What it never does: restart one that is loading or only out of reach, stop one that cannot save
//! (what is unsaved would be lost), change the only copy of its files, give up files that another
//! version of the image reads, or touch a replica's role.

mod loss;
mod plan;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use self::trouble::{Trouble, trouble};
use super::{Certainty, DetectOptions, Diagnosis, PlanRequest, Refusal, Scenario};
use crate::error::Result;
use crate::plan::{Plan, Remedy};
use crate::probe::containers::{self, ContainerFacts, ContainerState, end_in_words};
use crate::probe::observer::Observer;
use crate::probe::redis::{self, RedisState};
use crate::probe::redis_files::{self, RedisFileFacts};
use crate::redis::ErrorKind;
use crate::runbook::Runbook;
use crate::system::System;
use crate::workload::ContainerInfo;

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct RedisFailing;

/// What is observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// When.
    pub taken_at: Timestamp,
    /// Per Redis service.
    pub servers: BTreeMap<String, Server>,
    /// Bytes of memory that the engine's machine can still give; looked at only where a server was
    /// killed for want of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_available: Option<u64>,
}

/// One Redis server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Server {
    /// Its container.
    pub container: ContainerState,
    /// How it answers, or why it could not be asked.
    pub state: Result<RedisState, String>,
    /// What it would load at its start, or why that could not be seen; looked at only where it
    /// ends by itself, is empty, or may have to be killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Result<RedisFileFacts, String>>,
}

/// How long after its start a container may be one that is about to end again.
const FRESH: SignedDuration = SignedDuration::from_secs(10);
/// How long such a one is watched.
const SECOND_LOOK: Duration = Duration::from_millis(2500);
/// The check tools read the files from end to end: tens of MiB per second on a slow disk.
const FILES_LIMIT: Duration = Duration::from_secs(60);
/// The same beside a script that can be ended without them.
const BUSY_FILES_LIMIT: Duration = Duration::from_secs(3);

/// How long a server that takes connections and does not answer is asked on: one that a script
/// keeps busy says so, to everybody, only when that has taken `busy-reply-threshold`, five seconds
/// where nobody has set it (redis 7.0, config.c).
const BUSY_LOOK: Duration = Duration::from_secs(6);

impl Scenario for RedisFailing {
    const NAME: &'static str = "redis-failure";
    const ABOUT: &'static str = "A Redis that stopped, froze, cannot save or cannot load its data";
    const REMEDIES: &'static [Remedy] = &[
        Remedy::Thaw,
        Remedy::Start,
        Remedy::KillScript,
        Remedy::RaiseLimit,
        Remedy::Save,
        Remedy::Unblock,
        Remedy::Repair,
        Remedy::LoadSnapshot,
        Remedy::Restart,
        Remedy::StartEmpty,
    ];
    const CAUSES: &'static [&'static str] = &["service-crash", "stuck-sessions"];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
        let (containers, states) = tokio::join!(world.containers(), world.redis());
        let servers = states
            .iter()
            .filter(|(name, _)| options.service.as_ref().is_none_or(|s| s == *name))
            .map(|(name, state)| async {
                let mut server = Server {
                    container: containers.get(name).cloned().unwrap_or(ContainerState::Missing),
                    state: state.clone(),
                    files: None,
                };
                if let Some(limit) = worth_a_second_look(&server) {
                    second_look(world.system, name, &mut server, limit).await;
                }
                if let Some(facts) = server.container.found()
                    && (needs_files(&server) || may_be_overwritten(world.system, &facts.info).await)
                {
                    let run = format!("detect-{}", std::process::id());
                    // To end a script needs no file: they tell what the rung after that would cost.
                    let limit = match trouble(&server) {
                        Some(Trouble::Busy(_)) => BUSY_FILES_LIMIT,
                        _ => FILES_LIMIT,
                    };
                    server.files = Some(redis_files::look(world.system, &facts.info, &run, limit).await);
                }
                (name.clone(), server)
            });
        let mut ev = Evidence {
            taken_at: Timestamp::now(),
            servers: join_all(servers).await.into_iter().collect(),
            memory_available: None,
        };
        let killed = |s: &Server| matches!(trouble(s), Some(Trouble::OutOfMemory));
        if ev.servers.values().any(killed) {
            ev.memory_available = world.host().await.as_ref().map(|h| h.memory_available);
        }
        Ok(ev)
    }

    fn diagnose(ev: &Evidence, _: &Runbook) -> Diagnosis {
        diagnose(ev)
    }

    fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
        plan::plan(ev, rb, request)
    }
}

/// It does not answer; or it loads its data once more, and may end at the same place as before.
fn is_unsettled(server: &Server) -> bool {
    match trouble(server) {
        Some(Trouble::Silent(_)) => true,
        Some(Trouble::Instead(l)) if l.name == "loading" => {
            let facts = server.container.found();
            facts.is_some_and(|f| f.info.restart_count > 0)
        }
        _ => false,
    }
}

/// How long a server that does not answer is watched, if that may tell why.
fn worth_a_second_look(server: &Server) -> Option<Duration> {
    if !is_unsettled(server) {
        return None;
    }
    let hangs = server
        .state
        .as_ref()
        .is_ok_and(|s| s.failed_with(ErrorKind::Timeout));
    if hangs {
        return Some(BUSY_LOOK);
    }
    // Between two crashes of a loop a container runs for the blink of an eye.
    let started = server.container.found().and_then(|f| f.info.started_at);
    let fresh = started.is_some_and(|at| Timestamp::now().duration_since(at) < FRESH);
    fresh.then_some(SECOND_LOOK)
}

/// Watches one until it answers, says why it does not, or has ended; for a while.
async fn second_look(system: &System, name: &str, server: &mut Server, limit: Duration) {
    let end = tokio::time::Instant::now() + limit;
    while tokio::time::Instant::now() < end && is_unsettled(server) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.container = containers::one(system, name).await;
        server.state = match system.redis(name).await {
            Ok(resolved) => Ok(redis::observe(&resolved, false).await),
            Err(e) => Err(e.to_string()),
        };
    }
}

/// Whether one that does not run may have lost the manifest of its append-only file. To read all
/// files of each that is only stopped would delay its start.
async fn may_be_overwritten(system: &System, container: &ContainerInfo) -> bool {
    !container.is_running()
        && redis_files::lacks_manifest(system, container)
            .await
            .unwrap_or_default()
}

/// Whether the answer depends on what lies on the disk.
fn needs_files(server: &Server) -> bool {
    match trouble(server) {
        // Of a busy one: what a restart would find, should the script not let itself be ended.
        Some(Trouble::Damaged(_) | Trouble::Busy(_)) => true,
        None => server
            .state
            .as_ref()
            .ok()
            .and_then(|s| s.info.as_ref())
            .is_some_and(|i| i.persistence.aof_enabled && i.keys() == 0),
        _ => false,
    }
}

/// The first server in trouble, those that can be helped before the others.
fn first(ev: &Evidence) -> Option<(&str, &Server, Trouble)> {
    let mut all: Vec<_> = ev
        .servers
        .iter()
        .filter_map(|(name, server)| Some((name.as_str(), server, trouble(server)?)))
        .collect();
    let rank = |t: &Trouble| match t {
        Trouble::Unknown(_) => 2,
        Trouble::Instead(_) => 1,
        _ => 0,
    };
    all.sort_by_key(|(.., t)| rank(t));
    all.into_iter().next()
}

fn diagnose(ev: &Evidence) -> Diagnosis {
    let Some((name, server, trouble)) = first(ev) else {
        return Diagnosis {
            certainty: Certainty::Absent,
            summary: "every Redis answers".into(),
            reasons: Vec::new(),
            look_alike: None,
        };
    };
    let facts = server.container.found();
    let ended = facts.map_or_else(String::new, |f| end_in_words(&f.info));
    let (certainty, summary, reasons, look_alike) = match trouble {
        Trouble::Frozen => (Certainty::Confirmed, format!("{name} is frozen"), vec![], None),
        Trouble::Stopped => (
            Certainty::Confirmed,
            format!("{name} does not run"),
            vec![ended],
            None,
        ),
        Trouble::OutOfMemory => (
            Certainty::Confirmed,
            format!("{name} was killed for want of memory"),
            last_words(facts, ended),
            None,
        ),
        Trouble::Loops => (
            Certainty::Confirmed,
            format!("{name} ends again and again"),
            last_words(facts, ended),
            None,
        ),
        Trouble::Damaged(line) => (
            Certainty::Confirmed,
            format!("{name} cannot load its data"),
            damage_reasons(server, line, ended),
            None,
        ),
        Trouble::Ignored => (
            Certainty::Suspected,
            format!("{name} is empty, and a snapshot lies beside it that it has not loaded"),
            ignored_reasons(server),
            None,
        ),
        Trouble::CannotSave => (
            Certainty::Confirmed,
            format!("{name} refuses writes because it could not save its data"),
            save_reasons(server),
            None,
        ),
        Trouble::Busy(text) => (
            Certainty::Confirmed,
            format!("{name} runs a script that keeps it from everything else"),
            vec![text],
            None,
        ),
        Trouble::Silent(text) => (
            Certainty::Confirmed,
            format!("{name} runs and does not answer"),
            vec![text],
            None,
        ),
        Trouble::Instead(other) => (
            Certainty::Absent,
            format!("{name}: {}", other.explanation),
            vec![],
            Some(other),
        ),
        Trouble::Unknown(text) => (
            Certainty::Unknown,
            format!("{name} could not be judged"),
            vec![text],
            None,
        ),
    };
    Diagnosis {
        certainty,
        summary,
        reasons,
        look_alike,
    }
}

fn last_words(facts: Option<&ContainerFacts>, ended: String) -> Vec<String> {
    let mut all = vec![ended];
    all.extend(
        facts
            .into_iter()
            .flat_map(|f| f.last_words.iter().rev().take(3).rev().map(|l| l.text.clone())),
    );
    all
}

fn damage_reasons(server: &Server, line: String, ended: String) -> Vec<String> {
    let files = match &server.files {
        Some(Ok(files)) => files.in_words(),
        Some(Err(why)) => format!("its files could not be looked at: {why}"),
        None => return vec![line, ended],
    };
    vec![files, line, ended]
}

fn ignored_reasons(server: &Server) -> Vec<String> {
    let mut all = vec!["with an append-only file Redis does not look at a snapshot at its start".to_owned()];
    if let Some(Ok(files)) = &server.files
        && let Some(snapshot) = &files.snapshot
    {
        all.push(format!(
            "{} of {} holds {} keys",
            files.files.snapshot,
            snapshot
                .modified
                .map_or_else(|| "an unknown time".to_owned(), |t| t.to_string()),
            snapshot.keys.all
        ));
    }
    all
}

fn save_reasons(server: &Server) -> Vec<String> {
    let mut all = Vec::new();
    if let Ok(state) = &server.state {
        all.extend(state.first_failure().map(|f| f.text.clone()));
        if let Some(info) = &state.info {
            all.push(format!(
                "{} changes since the last save that succeeded are in memory only",
                info.persistence.changes_since_save
            ));
        }
    }
    all.extend(server.container.found().and_then(|f| {
        f.last_words
            .iter()
            .rev()
            .find(|l| l.text.contains("rror"))
            .map(|l| l.text.clone())
    }));
    all
}
