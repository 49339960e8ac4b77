//! From what was seen to what is said of it: services, file systems, endpoints, backups. The database servers are
//! `servers`'.

use std::time::Duration;

use jiff::Timestamp;

use super::finding::{Finding, Level, Limit, Measure};
use super::memory::Memory;
use super::{servers, trend};
use crate::event::{bytes, seconds};
use crate::probe::containers::{ContainerFacts, ContainerState, end_in_words};
use crate::probe::endpoints::Answers;
use crate::probe::overview::{Known, Overview};
use crate::runbook::{Percent, Runbook};
use crate::workload::Status;

/// A pair of limits of which trouble lies above.
pub(super) fn above(warning: Option<f64>, critical: Option<f64>) -> (Option<Limit>, Option<Limit>) {
    (warning.map(Limit::Above), critical.map(Limit::Above))
}

pub(super) fn percent(p: Option<Percent>) -> Option<f64> {
    p.map(Percent::get)
}

pub(super) fn in_seconds(d: Option<Duration>) -> Option<f64> {
    d.map(|d| d.as_secs_f64())
}

/// All findings of a run. `before` is the memory as the run before has left it, `after` with this run taken in.
#[must_use]
pub fn judge(
    seen: &Overview,
    runbook: &Runbook,
    before: &Memory,
    after: &Memory,
    now: Timestamp,
) -> Vec<Finding> {
    let mut found = vec![match &seen.engine {
        Known::Good(_) => Finding::new("engine", Level::Ok, "answers"),
        Known::Failed(why) | Known::Unknown(why) => Finding::new("engine", Level::Unknown, why.clone()),
        Known::NotConfigured => Finding::new("engine", Level::Unknown, "not configured"),
    }];
    for (name, state) in &seen.containers {
        found.push(service(seen, runbook, before, name, state));
    }
    found.extend(servers::postgres(seen, runbook, before));
    found.extend(servers::redis(seen, runbook, before));
    for (name, answers) in &seen.endpoints {
        found.push(endpoint(runbook, name, answers, &after.recent(name)));
    }
    found.extend(disks(seen, runbook, after));
    found.extend(host_memory(seen, runbook));
    found.push(backup(seen, runbook, now));
    found
}

/// The state of all of it. Without an engine nothing is known of most, so what is left being well, or nearly, says
/// nothing; what is critical is so all the same, and nobody is woken by UNKNOWN.
#[must_use]
pub fn overall(findings: &[Finding]) -> Level {
    let worst = findings.iter().fold(Level::Ok, |worst, f| worst.or(f.level));
    let blind = findings
        .iter()
        .any(|f| f.key == "engine" && f.level == Level::Unknown);
    if blind && worst != Level::Critical {
        return Level::Unknown;
    }
    worst
}

/// A container: how it is, whether it was restarted since the last run, how much memory it has left.
fn service(
    seen: &Overview,
    runbook: &Runbook,
    before: &Memory,
    name: &str,
    state: &ContainerState,
) -> Finding {
    let key = format!("service/{name}");
    let facts = match state {
        ContainerState::Found(facts) => facts,
        ContainerState::Missing => return Finding::new(key, Level::Critical, "it has no container"),
        ContainerState::Unknown(why) => return Finding::new(key, Level::Unknown, why.clone()),
    };
    let (mut level, mut text) = of_container(facts);
    let restarted = before
        .restarts
        .get(name)
        .filter(|(id, _)| *id == facts.info.id)
        .map_or(0, |(_, count)| facts.info.restart_count - count);
    let mut event = None;
    if restarted > 0 {
        level = level.or(Level::Warning);
        event = Some(Level::Warning);
        text = format!("{text}, restarted by the engine {restarted} times since the last run");
    }
    let mut measures = vec![Measure::new(
        format!("restarts_{name}"),
        cast(u64::try_from(facts.info.restart_count).unwrap_or_default()),
        "c",
    )];
    if let Some(usage) = seen.usage.get(name) {
        let used = cast(usage.memory);
        let mut measure = Measure::new(format!("memory_{name}"), used, "B");
        if let Some(limit) = usage.memory_limit {
            let share = |p: f64| cast(limit) * p / 100.0;
            let limits = &runbook.thresholds;
            let (w, c) = above(
                percent(limits.memory).map(share),
                percent(limits.critical.memory).map(share),
            );
            measure = measure.limits(w, c).max(cast(limit));
            if measure.level().rank() > level.rank() {
                level = measure.level();
                let uses = format!(
                    "it uses {} of the {} of memory that it may use",
                    bytes(usage.memory),
                    bytes(limit)
                );
                text = event.map_or(uses.clone(), |_| format!("{text}; {uses}"));
            }
        }
        measures.push(measure);
    }
    Finding {
        measures,
        event,
        ..Finding::new(key, level, text)
    }
}

/// How a container is, in words.
pub(crate) fn of_container(facts: &ContainerFacts) -> (Level, String) {
    let (level, text) = of_one(facts);
    (level, format!("{text}{}", facts.info.among()))
}

fn of_one(facts: &ContainerFacts) -> (Level, String) {
    let info = &facts.info;
    let health = info.health.as_deref();
    match info.status {
        Status::Running if facts.is_stopped_by_signal() => {
            (Level::Critical, "its process is frozen (SIGSTOP)".to_owned())
        }
        Status::Running if health == Some("unhealthy") => {
            (Level::Critical, "running, and its health check fails".to_owned())
        }
        Status::Running if health == Some("starting") => (Level::Ok, "running, starting".to_owned()),
        Status::Running if health == Some("healthy") => (Level::Ok, "running, healthy".to_owned()),
        Status::Running => (Level::Ok, "running".to_owned()),
        Status::Paused => (Level::Critical, "it is paused".to_owned()),
        Status::Restarting => (
            Level::Critical,
            format!("it crashes again and again: {}", end_in_words(info)),
        ),
        Status::Created => (Level::Critical, "it was created and never started".to_owned()),
        Status::Exited | Status::Dead => (
            Level::Critical,
            format!("it does not run: {}", end_in_words(info)),
        ),
    }
}

/// An endpoint: whether it answers, and how the answers of the last runs were. A limit counts as broken when this run
/// breaks it and the last runs together do: one slow answer is no alarm, and an alarm ends with its cause.
fn endpoint(runbook: &Runbook, name: &str, now: &Answers, recent: &Answers) -> Finding {
    let key = format!("endpoint/{name}");
    let limits = &runbook.thresholds;
    let asked = now.millis.len() + now.failures.len();
    let why = now.failures.last().map_or("nothing was asked", String::as_str);
    let (w, c) = above(percent(limits.error_rate), percent(limits.critical.error_rate));
    let errors = Measure::new(format!("errors_{name}"), error_rate(recent), "%")
        .limits(w, c)
        .max(100.0);
    if now.is_down() {
        return Finding {
            measures: vec![errors],
            ..Finding::new(key, Level::Critical, format!("no good answer: {why}"))
        };
    }
    if asked == 0 {
        return Finding::new(key, Level::Unknown, why);
    }
    let mut level = Level::Ok;
    let mut text = Vec::new();
    let failing = Measure {
        value: error_rate(now),
        ..errors.clone()
    };
    let errors_level = lesser(errors.level(), failing.level());
    let failed = now.failures.len();
    // Whatever the limits are; one answer of two is one slow answer.
    if failed > 1 && failed * 2 >= asked {
        level = level.or(errors_level).or(Level::Warning);
        text.push(format!("{failed} of {asked} requests failed: {why}"));
    } else if errors_level != Level::Ok {
        level = level.or(errors_level);
        text.push(format!(
            "{:.1} % of the last requests failed: {why}",
            errors.value
        ));
    }
    let mut measures = vec![errors];
    if let (Some(p95), Some(here)) = (recent.p95().or_else(|| now.p95()), now.p95()) {
        let (w, c) = above(
            in_seconds(limits.response_time_p95),
            in_seconds(limits.critical.response_time_p95),
        );
        let time = Measure::new(format!("time_{name}"), cast(p95) / 1000.0, "s").limits(w, c);
        let this_run = Measure {
            value: cast(here) / 1000.0,
            ..time.clone()
        };
        let slow = lesser(time.level(), this_run.level());
        if slow != Level::Ok {
            level = level.or(slow);
            text.push(format!("it takes {p95} ms at the 95th percentile"));
        }
        measures.push(time);
    }
    if text.is_empty() {
        let p95 = now.p95().map(|ms| format!(" in {ms} ms")).unwrap_or_default();
        text.push(format!("answers{p95}"));
    }
    Finding {
        measures,
        ..Finding::new(key, level, text.join(", "))
    }
}

fn lesser(a: Level, b: Level) -> Level {
    if a.rank() < b.rank() { a } else { b }
}

fn error_rate(answers: &Answers) -> f64 {
    let failed = answers.failures.len();
    let all = failed + answers.millis.len();
    #[expect(clippy::cast_precision_loss, reason = "a handful of requests")]
    let rate = failed as f64 * 100.0 / all.max(1) as f64;
    rate
}

/// File systems: how full, and when they will be.
fn disks(seen: &Overview, runbook: &Runbook, after: &Memory) -> Vec<Finding> {
    let limits = &runbook.thresholds;
    let mut found: Vec<Finding> = seen
        .file_systems
        .found
        .iter()
        .map(|disk| {
            let (w, c) = above(percent(limits.disk), percent(limits.critical.disk));
            let used = Measure::new(format!("disk_{}", disk.name), disk.percent(), "%")
                .limits(w, c)
                .max(100.0);
            let mut level = used.level();
            let mut text = format!(
                "{:.0} % of {} used, {} free",
                disk.percent(),
                bytes(disk.size),
                bytes(disk.free)
            );
            let mut measures = vec![used];
            if let Some(left) = after.disks.get(&disk.name).and_then(|h| trend::time_to_full(h)) {
                let below = |d: Option<Duration>| in_seconds(d).map(Limit::Below);
                let full = Measure::new(format!("full_in_{}", disk.name), left.as_secs_f64(), "s")
                    .limits(below(limits.disk_full_in), below(limits.critical.disk_full_in));
                level = level.or(full.level());
                text = format!("{text}, full in about {}", days(left));
                measures.push(full);
            }
            if !disk.services.is_empty() {
                text = format!("{text} ({})", disk.services.join(", "));
            }
            Finding {
                measures,
                ..Finding::new(format!("disk/{}", disk.name), level, text)
            }
        })
        .collect();
    found.extend(seen.file_systems.unknown.iter().map(|why| {
        let (service, why) = why.split_once(": ").unwrap_or((why, ""));
        // A container that does not run is told of elsewhere.
        let level = if seen
            .containers
            .get(service)
            .and_then(ContainerState::found)
            .is_some_and(|f| f.info.is_running())
        {
            Level::Unknown
        } else {
            Level::Ok
        };
        Finding::new(format!("disk/{service}"), level, why)
    }));
    found
}

/// `12 days`, `5 h 20 min`.
#[must_use]
pub(crate) fn days(d: Duration) -> String {
    match d.as_secs() / 86_400 {
        0 | 1 => seconds(d),
        n => format!("{n} days"),
    }
}

fn host_memory(seen: &Overview, runbook: &Runbook) -> Option<Finding> {
    let host = seen.host.as_ref().filter(|h| h.memory > 0)?;
    let limits = &runbook.thresholds;
    let used = host.memory.saturating_sub(host.memory_available);
    let (w, c) = above(percent(limits.memory), percent(limits.critical.memory));
    let measure = Measure::new("memory", cast(used) * 100.0 / cast(host.memory), "%")
        .limits(w, c)
        .max(100.0);
    let text = format!("{:.0} % of {} used", measure.value, bytes(host.memory));
    Some(Finding {
        measures: vec![measure.clone(), Measure::new("load1", host.load, "")],
        ..Finding::new(
            "host",
            measure.level(),
            format!("memory {text}, load {:.2}", host.load),
        )
    })
}

/// The last good backup against what was promised.
fn backup(seen: &Overview, runbook: &Runbook, now: Timestamp) -> Finding {
    let view = match &seen.backup {
        Known::Good(view) => view,
        Known::Failed(why) => return Finding::new("backup", Level::Critical, why.clone()),
        Known::Unknown(why) => return Finding::new("backup", Level::Unknown, why.clone()),
        Known::NotConfigured => return Finding::new("backup", Level::Unknown, "not configured"),
    };
    let age = Duration::try_from(now.duration_since(view.taken_at)).unwrap_or_default();
    let promised = runbook.objectives.rpo;
    let limits = &runbook.thresholds;
    let critical = limits.critical.backup_age.map_or(promised, |d| d.min(promised));
    let (w, c) = above(in_seconds(limits.backup_age), Some(critical.as_secs_f64()));
    let measure = Measure::new("backup_age", age.as_secs_f64(), "s").limits(w, c);
    let mut level = measure.level();
    let mut text = format!(
        "{} is {} old, objective {}",
        view.label,
        seconds(age),
        seconds(promised)
    );
    // One that is being written looks like one that was left; a damaged one does not.
    let damaged: Vec<&str> = view
        .newer
        .iter()
        .filter(|n| !n.ends_with(" is partial"))
        .map(String::as_str)
        .collect();
    if !damaged.is_empty() {
        level = level.or(Level::Warning);
        text = format!("{text}; newer: {}", damaged.join(", "));
    }
    if view.taken_at > now {
        level = level.or(Level::Warning);
        text = format!("{} is from the future: a clock is wrong", view.label);
    }
    Finding {
        measures: vec![measure],
        ..Finding::new("backup", level, text)
    }
}

/// For perfdata, where a float is all there is.
#[expect(clippy::cast_precision_loss, reason = "shown with three places")]
pub(super) fn cast(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_engine_what_is_critical_is_said() {
        use Level::{Critical, Ok, Unknown, Warning};
        let of = |engine, rest: &[Level]| {
            let mut found = vec![Finding::new("engine", engine, "")];
            found.extend(
                rest.iter()
                    .map(|level| Finding::new("endpoint/health", *level, "")),
            );
            overall(&found)
        };
        for (engine, rest, level) in [
            (Ok, &[Ok, Ok][..], Ok),
            (Ok, &[Unknown, Warning], Warning),
            (Ok, &[Unknown, Ok], Unknown),
            (Unknown, &[Ok], Unknown),
            (Unknown, &[Warning], Unknown),
            (Unknown, &[Critical, Unknown], Critical),
        ] {
            assert_eq!(of(engine, rest), level, "{engine:?} {rest:?}");
        }
    }

    #[test]
    fn an_endpoint_that_mostly_fails_is_not_well_whatever_the_limits() {
        let runbook = crate::runbook::parse(
            std::path::Path::new("drctl.yaml"),
            "version: 1\ndeployment: shop\nenvironment: staging\nplatform: { docker: {} }\n\
             objectives: { rto: 2h, rpo: 24h }\nservices: { web: { kind: app } }\n\
             backup: { directory: /var/backups/drctl/shop }\n",
        )
        .unwrap();
        for (good, bad, level) in [
            (5, 0, Level::Ok),
            (3, 2, Level::Ok),
            // One slow answer, and the one that came at the same time.
            (1, 1, Level::Ok),
            (2, 2, Level::Warning),
            (1, 4, Level::Warning),
            (0, 5, Level::Critical),
            (0, 0, Level::Unknown),
        ] {
            let now = Answers {
                millis: vec![5; good],
                failures: vec!["status 500".into(); bad],
            };
            let found = endpoint(&runbook, "health", &now, &now);
            assert_eq!(found.level, level, "{good} {bad}: {}", found.text);
        }
    }
}
