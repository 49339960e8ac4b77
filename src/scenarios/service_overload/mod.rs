//! A service that has too little: its memory or processor limit holds it back.
//!
//! Symptom: answers are slow or late, health checks time out, the kernel kills it. Cause: more
//! work than its limits allow, a limit that was set too low, or a leak.
//!
//! What drctl does, gentlest first: raise the limit, live, within what the machine has free;
//! restart the service; start a second instance of it where the runbook allows that. What it
//! never does: take a busy service for an overloaded one (high use and quick answers are fine),
//! treat the application for what its database is slow at, or restart a database.

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
use crate::probe::containers::{ContainerFacts, ContainerState};
use crate::probe::endpoints::{self, Answers};
use crate::probe::host::Host;
use crate::probe::observer::Observer;
use crate::probe::queries::{self, Queries};
use crate::probe::usage::{self, Usage};
use crate::runbook::Runbook;

/// Percent of a memory limit from which on it is too little, where the runbook does not say.
const MEMORY: f64 = 90.0;
/// Milliseconds that an answer may take, where the runbook does not say.
const SLOW: u64 = 1000;
/// How long a death for want of memory counts.
const LATELY: SignedDuration = SignedDuration::from_mins(15);
/// A statement that has run this long is worth naming.
const LONG: f64 = 1.0;

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct ServiceOverload;

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
    /// What each used while the endpoints were asked.
    pub usage: BTreeMap<String, Usage>,
    /// How the endpoints answered meanwhile.
    pub endpoints: BTreeMap<String, Answers>,
    /// The machine, where the engine is on it.
    pub host: Option<Host>,
    /// What each PostgreSQL server is busy with; why it could not be asked.
    pub queries: BTreeMap<String, std::result::Result<Queries, String>>,
}

/// Between the two readings of the counters, at least, where a processor limit is set: ten periods
/// of the scheduler.
const WINDOW: Duration = Duration::from_secs(1);

/// What a service has too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Want {
    /// The kernel has killed it for want of memory.
    Killed,
    Memory,
    Processor,
    /// The same, and nobody has noticed yet.
    Busy,
}

/// One service that has too little.
struct Patient<'a> {
    service: &'a str,
    facts: &'a ContainerFacts,
    usage: Option<&'a Usage>,
    want: Want,
}

impl Scenario for ServiceOverload {
    const NAME: &'static str = "service-overload";
    const ABOUT: &'static str = "A service that its memory or processor limit holds back";
    const REMEDIES: &'static [Remedy] = &[Remedy::RaiseLimit, Remedy::Restart, Remedy::ScaleOut];
    const CAUSES: &'static [&'static str] = &["service-crash", "redis-failure"];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
        super::known_service(&world.system.runbook, options)?;
        let system = world.system;
        let containers = world.containers().await.clone();
        let limited = async {
            let before = usage::read_all(system, &containers).await;
            let began = tokio::time::Instant::now();
            // A limit shows only while there is work: the requests are some.
            let endpoints = endpoints::look(&system.runbook).await;
            // On a machine that answers at once they would be over before the scheduler has counted.
            let limited = containers
                .values()
                .filter_map(ContainerState::found)
                .any(|f| f.info.is_running() && f.info.cpu_limit().is_some());
            if limited {
                tokio::time::sleep_until(began + WINDOW).await;
            }
            let after = usage::read_all(system, &containers).await;
            let usage = after
                .iter()
                .filter_map(|(name, after)| {
                    let info = &containers.get(name)?.found()?.info;
                    Some((name.clone(), usage::between(before.get(name)?, after, info)))
                })
                .collect();
            (usage, endpoints)
        };
        let busy = join_all(system.runbook.postgres_services().map(|(name, ..)| async move {
            let asked = match system.postgres(name.as_str()).await {
                Ok(server) => queries::read(&server).await.map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            };
            (name.to_string(), asked)
        }));
        let ((usage, endpoints), queries, host) = tokio::join!(limited, busy, world.host());
        Ok(Evidence {
            taken_at: Timestamp::now(),
            service: options.service.clone(),
            containers,
            usage,
            endpoints,
            host: host.clone(),
            queries: queries.into_iter().collect(),
        })
    }

    fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
        diagnose(ev, rb)
    }

    fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
        plan::plan(ev, rb, request)
    }
}

/// Percent of its memory limit from which on a service has too little.
fn memory_threshold(rb: &Runbook) -> f64 {
    rb.thresholds.memory.map_or(MEMORY, crate::runbook::Percent::get)
}

/// Milliseconds that an answer may take at the 95th percentile.
fn slow_threshold(rb: &Runbook) -> u64 {
    rb.thresholds
        .response_time_p95
        .map_or(SLOW, |d| u64::try_from(d.as_millis()).unwrap_or(SLOW))
}

/// Endpoints that answer late or not, in words.
fn slow_endpoints(ev: &Evidence, rb: &Runbook) -> Vec<String> {
    let limit = slow_threshold(rb);
    ev.endpoints
        .iter()
        .filter_map(|(name, a)| match a.p95() {
            Some(p95) if p95 <= limit => None,
            Some(p95) => Some(format!(
                "endpoint {name} takes {p95} ms at the 95th percentile, limit {limit} ms"
            )),
            None => Some(format!(
                "endpoint {name} does not answer in time ({} of {} requests)",
                a.failures.len(),
                a.failures.len() + a.millis.len()
            )),
        })
        .collect()
}

fn patients<'a>(ev: &'a Evidence, rb: &Runbook) -> Vec<Patient<'a>> {
    let slow = !slow_endpoints(ev, rb).is_empty();
    ev.containers
        .iter()
        .filter(|(name, _)| ev.service.as_ref().is_none_or(|s| s == *name))
        .filter_map(|(service, state)| {
            let facts = state.found()?;
            let usage = ev.usage.get(service);
            let want = want(facts, usage, slow, memory_threshold(rb), ev.taken_at)?;
            Some(Patient {
                service,
                facts,
                usage,
                want,
            })
        })
        .collect()
}

fn want(
    facts: &ContainerFacts,
    usage: Option<&Usage>,
    slow: bool,
    threshold: f64,
    now: Timestamp,
) -> Option<Want> {
    let info = &facts.info;
    // The engine's flag stays after the next start, and a child's death sets it, too: with a limit,
    // the signal and the time it means what it says.
    let killed = info.oom_killed
        && info.memory_limit > 0
        && info.exit_code == 137
        && info.finished_at.is_some_and(|at| now.duration_since(at) < LATELY);
    if killed && (!info.is_running() || info.restart_count > 0) {
        return Some(Want::Killed);
    }
    let usage = usage?;
    if usage.memory_percent().is_some_and(|p| p >= threshold) {
        return Some(Want::Memory);
    }
    // Stopped by its limit, and somebody notices.
    let noticed = slow || info.health.as_deref() == Some("unhealthy");
    if usage.is_held_back() && noticed {
        return Some(Want::Processor);
    }
    usage.is_exhausted().then_some(Want::Busy)
}

fn in_words(p: &Patient<'_>) -> String {
    let service = p.service;
    let mib = |bytes: u64| bytes >> 20;
    match (p.want, p.usage) {
        (Want::Killed, _) => format!(
            "{service} was killed for want of memory: its limit is {} MiB",
            mib(p.facts.info.memory_limit)
        ),
        (Want::Memory, Some(u)) => format!(
            "{service} uses {} MiB of memory, {:.0} % of its limit of {} MiB",
            mib(u.memory),
            u.memory_percent().unwrap_or_default(),
            mib(u.memory_limit.unwrap_or_default())
        ),
        (_, Some(u)) => format!(
            "{service} is stopped by its limit of {:.2} processors in {} of {} periods in which it works",
            u.cpu_limit.unwrap_or_default(),
            u.throttled,
            u.periods
        ),
        (_, None) => format!("{service} has too little"),
    }
}

fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
    let patients = patients(ev, rb);
    let slow = slow_endpoints(ev, rb);
    let said = |certainty, summary: String, reasons, look_alike| Diagnosis {
        certainty,
        summary,
        reasons,
        look_alike,
    };
    if !patients.is_empty() {
        let names: Vec<&str> = patients.iter().map(|p| p.service).collect();
        let mut reasons: Vec<String> = patients.iter().map(in_words).collect();
        reasons.extend(slow);
        let certainty = if patients.iter().all(|p| p.want == Want::Busy) {
            Certainty::Suspected
        } else {
            Certainty::Confirmed
        };
        return said(
            certainty,
            format!("held back by its limits: {}", names.join(", ")),
            reasons,
            None,
        );
    }
    let busy = busy_databases(ev);
    if !slow.is_empty() && !busy.is_empty() {
        let explanation = "the endpoints wait for the database, and no service is at its limits".to_owned();
        let mut reasons = slow;
        reasons.extend(busy);
        return said(
            Certainty::Absent,
            explanation.clone(),
            reasons,
            Some(LookAlike {
                name: "slow-database".into(),
                explanation,
                // Not `drctl diagnose`: that is what has just looked, and named no queue worth a plan.
                next: vec![
                    "drctl diagnose connection-exhaustion    # who holds what and who waits for whom, in full".into(),
                    "select pid, pg_blocking_pids(pid), usename, state, now() - xact_start as open, left(query, 60) \
                     from pg_stat_activity where state <> 'idle' order by xact_start;"
                        .into(),
                    "select pg_cancel_backend(PID);    # ends that one statement, and rolls it back".into(),
                ],
            }),
        );
    }
    let running = ev
        .containers
        .values()
        .filter_map(ContainerState::found)
        .filter(|f| f.info.is_running());
    let unread = running.count().saturating_sub(ev.usage.len());
    if unread > 0 && ev.usage.is_empty() {
        return said(
            Certainty::Unknown,
            "the engine does not tell what the services use".into(),
            Vec::new(),
            None,
        );
    }
    let mut reasons = slow;
    reasons.extend(busy);
    reasons.extend(ev.usage.iter().filter(|(_, u)| u.cpus >= 0.5).map(|(name, u)| {
        format!(
            "{name} keeps {:.1} processors busy; no limit of its own holds it back",
            u.cpus
        )
    }));
    said(
        Certainty::Absent,
        "no service is at its memory or processor limit".into(),
        reasons,
        None,
    )
}

/// Statements that run long or wait, in words.
fn busy_databases(ev: &Evidence) -> Vec<String> {
    let mut words = Vec::new();
    for (name, queries) in &ev.queries {
        let Ok(q) = queries else { continue };
        if q.waiting() > 0 {
            words.push(format!("{name}: {} statements wait for a lock", q.waiting()));
        }
        if let Some(first) = q.running.iter().find(|r| r.seconds >= LONG) {
            words.push(format!(
                "{name}: {} statements have run for longer than a second, the longest for {:.0} s: {}",
                q.running.iter().filter(|r| r.seconds >= LONG).count(),
                first.seconds,
                first.text
            ));
            // Only of interest while it is busy: on the whole, every server has a slowest statement.
            words.extend(q.slow.first().map(|s| {
                format!(
                    "{name}: slowest on the whole, {:.0} ms in {} calls: {}",
                    s.mean_millis, s.calls, s.text
                )
            }));
        }
    }
    words
}
