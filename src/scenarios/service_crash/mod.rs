//! A service of the application that does not run: stopped, killed, frozen, or in a loop of
//! crashes.
//!
//! Symptom: a part of the application does not answer, requests hang or end in 502 and 504.
//! Cause: somebody stopped it, the kernel or a person killed it, a signal or the engine froze
//! it, or it ends as soon as it is started.
//!
//! What drctl does, gentlest first: let a frozen one run again; start a stopped one; restart
//! one that says itself that it is unwell; create its container anew, from the image that ran
//! last, where restarts do not help or its own files are damaged. What it never does: restart
//! what works, touch PostgreSQL or Redis (they have scenarios of their own, which know what a
//! careless restart can cost), start a job that has done its work, or run a migration again
//! that has failed.

#[cfg(test)]
pub(crate) mod fixtures;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Certainty, DetectOptions, Diagnosis, LookAlike, PlanRequest, Refusal, Scenario};
use crate::error::Result;
use crate::plan::{Plan, Remedy};
use crate::probe::containers::{ContainerFacts, ContainerState, again, end_in_words};
use crate::probe::observer::Observer;
use crate::runbook::{Runbook, ServiceKind};
use crate::system::System;
use crate::workload::{ContainerInfo, Status};

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct ServiceCrash;

/// What is observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// When.
    pub taken_at: Timestamp,
    /// The service that was asked about, if one was.
    pub service: Option<String>,
    /// Every service's container.
    pub containers: BTreeMap<String, ContainerState>,
    /// A second look, a moment later, at those that run and were started a moment ago by the
    /// engine itself: between two crashes they look well.
    #[serde(default)]
    pub again: BTreeMap<String, ContainerState>,
    /// Files of its image that a container which cannot start has changed or deleted.
    #[serde(default)]
    pub changed: BTreeMap<String, Vec<String>>,
}

/// The engine counts a container as up after this long, and starts its patience anew.
const COUNTS_AS_UP: SignedDuration = SignedDuration::from_secs(10);
/// How long a container is watched that may be between two crashes.
const SECOND_LOOK: Duration = Duration::from_millis(2500);

/// What is wrong with one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Frozen,
    Stopped,
    /// It cannot be started as it is: its program or its files are missing.
    Broken,
    /// It ends because a migration of its database fails: the same again would fail again.
    Migration,
    Loops,
    Unhealthy,
}

/// One service in trouble.
struct Patient<'a> {
    service: &'a str,
    facts: &'a ContainerFacts,
    trouble: Trouble,
    /// Files of its image that it has changed or deleted.
    changed: &'a [String],
}

impl Scenario for ServiceCrash {
    const NAME: &'static str = "service-crash";
    const ABOUT: &'static str = "An application service that stopped, froze, or crashes again and again";
    const REMEDIES: &'static [Remedy] = &[Remedy::Thaw, Remedy::Start, Remedy::Restart, Remedy::Recreate];
    const CAUSES: &'static [&'static str] = &[];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
        super::known_service(&world.system.runbook, options)?;
        let containers = world.containers().await.clone();
        let taken_at = Timestamp::now();
        let found = |wanted: fn(&ContainerFacts) -> bool| {
            containers
                .iter()
                .filter_map(|(name, state)| state.found().map(|facts| (name.clone(), facts)))
                .filter(move |(_, facts)| wanted(facts))
        };
        let second = async {
            let restarted: Vec<_> = found(was_restarted).collect();
            if restarted.is_empty() {
                return Vec::new();
            }
            let now = world.system.docker.clock().await.ok().flatten();
            let young = restarted.into_iter().filter(|(_, f)| may_loop(f, now));
            join_all(young.map(|(name, facts)| async {
                let state = watch(world.system, facts).await;
                (name, state)
            }))
            .await
        };
        let changed = join_all(found(is_broken).map(|(name, facts)| async move {
            let files = world.system.docker.changed_files(&facts.info.id).await;
            (name, files.unwrap_or_default())
        }));
        let (again, changed) = tokio::join!(second, changed);
        Ok(Evidence {
            taken_at,
            service: options.service.clone(),
            again: again.into_iter().collect(),
            changed: changed.into_iter().collect(),
            containers,
        })
    }

    fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
        diagnose(ev, rb)
    }

    fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
        plan::plan(ev, rb, request)
    }
}

/// It runs, and the engine has restarted it.
fn was_restarted(facts: &ContainerFacts) -> bool {
    facts.info.is_running() && facts.info.restart_count > 0
}

/// The engine has restarted it, and that was only a moment ago by the engine's own clock: that of
/// this machine may be ahead of it by more than a moment. Without its time, it may have been.
fn may_loop(facts: &ContainerFacts, now: Option<Timestamp>) -> bool {
    let young = |at| now.is_none_or(|now| now.duration_since(at) < COUNTS_AS_UP);
    was_restarted(facts) && facts.info.started_at.is_some_and(young)
}

/// It does not run because its program or its files are missing, or goes round in circles.
fn is_broken(facts: &ContainerFacts) -> bool {
    !facts.info.is_running()
        && (matches!(trouble(facts), Some(Trouble::Broken)) || facts.info.restart_count > 0)
}

/// Looks until it has crashed again, or for a while.
async fn watch(system: &System, first: &ContainerFacts) -> ContainerState {
    let end = tokio::time::Instant::now() + SECOND_LOOK;
    loop {
        let state = again(system, &first.info).await;
        let crashed = state
            .found()
            .is_some_and(|now| !now.info.is_running() || now.info.restart_count != first.info.restart_count);
        if crashed || tokio::time::Instant::now() >= end {
            return state;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The services that this scenario looks after, of those that were asked about.
fn concerned<'a>(ev: &'a Evidence, rb: &'a Runbook) -> impl Iterator<Item = (&'a str, &'a ContainerState)> {
    ev.containers.iter().filter_map(|(name, state)| {
        let ours = rb
            .service(name)
            .is_some_and(|s| matches!(s.kind, ServiceKind::App | ServiceKind::Nginx));
        let asked = ev.service.as_ref().is_none_or(|s| s == name);
        (ours && asked).then_some((name.as_str(), state))
    })
}

/// A container that has ended because its work is done, as that of a migration or an import.
///
/// Exit code 0 alone does not say so: `docker stop` of most servers ends in it, and Compose's
/// policy is `no` where the file names none. So nothing may speak for a service: nobody in the
/// runbook depends on it (but for its end), it publishes no port, and nobody checks its health. To take a service
/// for a job is to leave users without it; to start a job again is to do its work twice.
pub(super) fn is_finished_job(
    service: &str,
    info: &ContainerInfo,
    containers: &BTreeMap<String, ContainerState>,
    rb: &Runbook,
) -> bool {
    let ended = info.status == Status::Exited && info.exit_code == 0 && info.error.is_empty();
    let app = rb
        .service(service)
        .is_some_and(|s| matches!(s.kind, ServiceKind::App));
    ended
        && app
        && info.restart_policy == "no"
        && info.health.is_none()
        && info.published.is_empty()
        && info.to_publish.is_empty()
        && rb
            .dependents(service)
            .iter()
            .all(|name| waits_for_its_end(containers.get(name.as_str()), service))
}

/// Whether a container only waited for the end of `service` before its own start, as Compose has
/// written down in a label.
fn waits_for_its_end(dependent: Option<&ContainerState>, service: &str) -> bool {
    let needs = dependent
        .and_then(ContainerState::found)
        .and_then(|facts| facts.info.labels.get("com.docker.compose.depends_on"));
    needs.is_some_and(|needs| {
        needs
            .split(',')
            .any(|one| one.starts_with(&format!("{service}:service_completed_successfully")))
    })
}

/// What is said of a finished job, so that one that was meant to run is not overlooked.
pub(super) fn job_in_words(service: &str, info: &ContainerInfo) -> String {
    format!(
        "{service} has done its work, by all that can be seen: exit code 0, the engine was told not to start it \
         again, nobody depends on it, and it has neither a published port nor a health check; it is not started \
         (if it should run: docker start {})",
        info.name
    )
}

fn trouble(facts: &ContainerFacts) -> Option<Trouble> {
    let info = &facts.info;
    match info.status {
        Status::Paused => Some(Trouble::Frozen),
        Status::Running if facts.is_stopped_by_signal() => Some(Trouble::Frozen),
        Status::Running if info.health.as_deref() == Some("unhealthy") => Some(Trouble::Unhealthy),
        Status::Running => None,
        Status::Restarting if migration(facts).is_some() => Some(Trouble::Migration),
        Status::Restarting if matches!(info.exit_code, 126 | 127) => Some(Trouble::Broken),
        Status::Restarting => Some(Trouble::Loops),
        Status::Created | Status::Exited | Status::Dead => match info.exit_code {
            126 | 127 => Some(Trouble::Broken),
            _ if info.status == Status::Created && !info.error.is_empty() => Some(Trouble::Broken),
            code if code != 0 && migration(facts).is_some() => Some(Trouble::Migration),
            _ => Some(Trouble::Stopped),
        },
    }
}

fn patients<'a>(ev: &'a Evidence, rb: &'a Runbook) -> Vec<Patient<'a>> {
    concerned(ev, rb)
        .filter_map(|(service, state)| {
            let first = state.found()?;
            let later = ev.again.get(service).and_then(ContainerState::found);
            let crashed = later
                .filter(|now| !now.info.is_running() || now.info.restart_count > first.info.restart_count);
            let facts = crashed.unwrap_or(first);
            let trouble = match crashed {
                Some(now) if migration(now).is_some() => Trouble::Migration,
                Some(_) => Trouble::Loops,
                None if is_finished_job(service, &first.info, &ev.containers, rb) => return None,
                None => trouble(first)?,
            };
            Some(Patient {
                service,
                facts,
                trouble,
                changed: ev.changed.get(service).map_or(&[], Vec::as_slice),
            })
        })
        .collect()
}

fn in_words(p: &Patient<'_>) -> String {
    let info = &p.facts.info;
    let service = format!("{}{}", p.service, info.among());
    match p.trouble {
        Trouble::Frozen if info.status == Status::Paused => format!("{service} is paused by the engine"),
        Trouble::Frozen => format!("{service} is stopped by a signal (its main process is in state T)"),
        Trouble::Stopped => format!("{service} does not run: {}", end_in_words(info)),
        Trouble::Broken => format!("{service} cannot be started: {}", end_in_words(info)),
        Trouble::Migration => format!(
            "{service} ends at its start because a migration of its database fails: {}",
            end_in_words(info)
        ),
        Trouble::Loops => format!(
            "{service} crashes again and again ({} restarts): {}",
            info.restart_count,
            end_in_words(info)
        ),
        Trouble::Unhealthy => format!("{service} runs, and its own health check fails"),
    }
}

/// Whether a line of a log speaks of something that went wrong.
pub(crate) fn speaks_of_error(text: &str) -> bool {
    let text = text.to_lowercase();
    [
        "error",
        "fatal",
        "panic",
        "exception",
        "traceback",
        "cannot",
        "failed",
        "refused",
    ]
    .iter()
    .any(|word| text.contains(word))
}

/// The line of a log that speaks of a migration that failed. Frameworks word it differently
/// (`alembic.util.exc`, `Migration failed`, `migrate: error`, `Flyway … migration … failed`); one that only
/// could not reach its server is none.
fn migration(facts: &ContainerFacts) -> Option<&str> {
    facts
        .last_words
        .iter()
        .rev()
        .map(|l| l.text.as_str())
        .find(|text| {
            let lower = text.to_lowercase();
            let unreachable = ["refused", "could not connect", "timeout", "timed out", "resolve"]
                .iter()
                .any(|w| lower.contains(w));
            ["migrat", "alembic", "flyway", "liquibase"]
                .iter()
                .any(|w| lower.contains(w))
                && speaks_of_error(text)
                && !unreachable
        })
}

/// The line of a log that most likely tells why: the last that speaks of an error.
fn telling_line(facts: &ContainerFacts) -> Option<&str> {
    let lines = || facts.last_words.iter().rev().map(|l| l.text.as_str());
    migration(facts)
        .or_else(|| lines().find(|t| speaks_of_error(t)))
        .or_else(|| lines().find(|t| !t.trim().is_empty()))
}

fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
    let patients = patients(ev, rb);
    let mut reasons = Vec::new();
    for p in &patients {
        reasons.push(in_words(p));
        if let Some(line) = telling_line(p.facts).filter(|_| p.trouble != Trouble::Frozen) {
            reasons.push(format!("{} said last: {line}", p.service));
        }
        if let Some(first) = p.changed.first() {
            reasons.push(format!(
                "its container has changed or deleted {} files of its image, as {first}",
                p.changed.len()
            ));
        }
    }
    let names: Vec<&str> = patients.iter().map(|p| p.service).collect();
    let missing: Vec<&str> = concerned(ev, rb)
        .filter(|(_, s)| matches!(s, ContainerState::Missing))
        .map(|(n, _)| n)
        .collect();
    let unknown: Vec<String> = concerned(ev, rb)
        .filter_map(|(n, s)| match s {
            ContainerState::Unknown(cause) => Some(format!("{n}: {cause}")),
            _ => None,
        })
        .collect();
    let said = |certainty, summary: String, reasons, look_alike| Diagnosis {
        certainty,
        summary,
        reasons,
        look_alike,
    };
    if !patients.is_empty() {
        return said(
            Certainty::Confirmed,
            format!(
                "{} of the application: {}",
                if names.len() == 1 { "a service" } else { "services" },
                names.join(", ")
            ),
            reasons,
            None,
        );
    }
    if !missing.is_empty() {
        let explanation = format!("there is no container of {}", missing.join(", "));
        return said(
            Certainty::Confirmed,
            explanation.clone(),
            vec!["the engine has none with its Compose labels or its name".into()],
            Some(LookAlike {
                name: "no-container".into(),
                explanation,
                next: vec![format!(
                    "docker compose up -d {}    # create it from the compose file",
                    missing.join(" ")
                )],
            }),
        );
    }
    if let Some(other) = asked_elsewhere(ev, rb) {
        return other;
    }
    if !unknown.is_empty() {
        return said(
            Certainty::Unknown,
            "the engine does not tell how the services are".into(),
            unknown,
            None,
        );
    }
    let count = concerned(ev, rb).count();
    said(
        Certainty::Absent,
        format!("none of the {count} services of the application has crashed"),
        remarks(ev, rb),
        None,
    )
}

/// What looks unwell and is not, or only needs time.
fn remarks(ev: &Evidence, rb: &Runbook) -> Vec<String> {
    let ago = |facts: &ContainerFacts| {
        facts.info.started_at.map_or_else(String::new, |at| {
            let age = Duration::try_from(ev.taken_at.duration_since(at)).unwrap_or_default();
            format!(" {} ago", crate::event::seconds(age))
        })
    };
    concerned(ev, rb)
        .filter_map(|(name, state)| Some((name, state.found()?)))
        .filter_map(|(name, facts)| {
            if facts.info.health.as_deref() == Some("starting") {
                Some(format!(
                    "{name} was started{}, and its health check has not answered yet: wait",
                    ago(facts)
                ))
            } else if is_finished_job(name, &facts.info, &ev.containers, rb) {
                Some(job_in_words(name, &facts.info))
            } else if ev.again.contains_key(name) {
                Some(format!(
                    "{name} has crashed {} times, runs since{} and stays up",
                    facts.info.restart_count,
                    ago(facts)
                ))
            } else {
                None
            }
        })
        .collect()
}

/// The operator asked about a database: it has scenarios of its own.
fn asked_elsewhere(ev: &Evidence, rb: &Runbook) -> Option<Diagnosis> {
    let name = ev.service.as_deref()?;
    let (kind, scenario) = match &rb.service(name)?.kind {
        ServiceKind::Postgres(_) => ("a PostgreSQL server", "db-down"),
        ServiceKind::Redis(_) => ("a Redis server", "redis-failure"),
        ServiceKind::App | ServiceKind::Nginx => return None,
    };
    let explanation = format!("{name} is {kind}: a restart can cost data, so it has a scenario of its own");
    Some(Diagnosis {
        certainty: Certainty::Absent,
        summary: explanation.clone(),
        reasons: Vec::new(),
        look_alike: Some(LookAlike {
            name: scenario.into(),
            explanation,
            next: vec![
                format!("drctl diagnose {scenario}"),
                format!("drctl recover {scenario}"),
            ],
        }),
    })
}
