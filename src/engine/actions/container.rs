//! Stopping, starting and thawing the container of a service. A PostgreSQL server has its
//! own way of stopping, and is up only when it takes connections.

use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::time::Instant;

use super::super::execute::Which;
use super::{ActionContext, ActionError, Outcome, redis_files, server};
use crate::event::seconds;
use crate::probe::containers::{ContainerState, again};
use crate::runbook::ServiceKind;
use crate::system::System;
use crate::workload::{ContainerInfo, Status};

/// How often a starting container is looked at.
pub(super) const POLL: Duration = Duration::from_millis(100);
/// How long a started container must stay up before it is believed: a crash loop's first
/// starts come faster than that (seen: 0.5 to 2.0 s on engine 20.10).
pub(super) const STAYS_UP: Duration = Duration::from_millis(1500);

fn is_postgres(cx: &ActionContext<'_>, service: &str) -> bool {
    cx.system
        .runbook
        .service(service)
        .is_some_and(|s| matches!(s.kind, ServiceKind::Postgres(_)))
}

pub(super) fn is_redis(cx: &ActionContext<'_>, service: &str) -> bool {
    cx.system
        .runbook
        .service(service)
        .is_some_and(|s| matches!(s.kind, ServiceKind::Redis(_)))
}

pub(super) async fn stop(cx: &ActionContext<'_>, service: &str) -> Result<Outcome, ActionError> {
    if is_postgres(cx, service) {
        return server::stop(cx, service).await;
    }
    let container = cx.system.container(service).await?;
    if let Some(why) = container.not_alone(service) {
        return Err(ActionError::Other(why));
    }
    if container.status == Status::Paused {
        // A frozen process cannot act on its stop signal and would be killed.
        cx.system.docker.unpause(&container.id).await?;
    }
    let begun = Instant::now();
    let grace = cx.system.runbook.deadlines.stop;
    cx.system.docker.stop(&container.id, grace).await?;
    let after = cx.system.docker.inspect(&container.id).await?;
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
    if is_postgres(cx, service) {
        return server::start(cx, service, wait).await;
    }
    let container = cx.system.container(service).await?;
    let others = stopped_beside(cx, &container).await?;
    let begun = Instant::now();
    let all: Vec<ContainerInfo> = std::iter::once(container).chain(others).collect();
    for one in &all {
        if is_redis(cx, service) && !one.is_running() {
            redis_files::may_start(cx, service, one, "it is not started").await?;
        }
        cx.system.docker.start(&one.id).await?;
    }
    if !wait {
        return Ok(Outcome::new(format!("{service} is started")));
    }
    for one in &all {
        until_up(cx, service, one, begun).await?;
    }
    Ok(Outcome::new(format!("{service} is up")).fact("start-seconds", begun.elapsed().as_secs_f64()))
}

/// The other containers of its service that do not run.
async fn stopped_beside(
    cx: &ActionContext<'_>,
    container: &ContainerInfo,
) -> Result<Vec<ContainerInfo>, ActionError> {
    let mut stopped = Vec::new();
    for name in container.replicas.iter().filter(|name| **name != container.name) {
        let other = cx.system.docker.inspect(name).await?;
        if matches!(other.status, Status::Exited | Status::Created | Status::Dead) {
            stopped.push(other);
        }
    }
    Ok(stopped)
}

pub(super) async fn start_together(
    cx: &ActionContext<'_>,
    services: &[String],
) -> Result<Outcome, ActionError> {
    let begun = Instant::now();
    let ended = join_all(services.iter().map(|s| start(cx, s, true))).await;
    let (up, failed) = apart(services, ended);
    let is_store = |name: &str| is_postgres(cx, name) || is_redis(cx, name);
    if !may_go_on(&up, &failed, is_store) {
        return Err(ActionError::Other(in_words(&failed)));
    }
    if failed.is_empty() {
        return Ok(Outcome::new(format!("up: {}", up.join(", ")))
            .fact("start-seconds", begun.elapsed().as_secs_f64()));
    }
    // The proof finds them down: that is where the recovery fails, with all the others up.
    cx.warn(format!("not up: {}", in_words(&failed)));
    Ok(
        Outcome::new(format!("up: {}; not up: {}", up.join(", "), in_words(&failed)))
            .fact("start-seconds", begun.elapsed().as_secs_f64()),
    )
}

/// Whether what comes next is started although `failed` did not come up. One application out of
/// several keeps nobody else down; what stores data is waited for by all the others.
fn may_go_on(up: &[&str], failed: &[(&str, String)], is_store: impl Fn(&str) -> bool) -> bool {
    failed.is_empty() || (!up.is_empty() && !failed.iter().any(|(name, _)| is_store(name)))
}

pub(super) async fn stop_together(
    cx: &ActionContext<'_>,
    services: &[String],
) -> Result<Outcome, ActionError> {
    let ended = join_all(services.iter().map(|s| stop(cx, s))).await;
    let (_, failed) = apart(services, ended);
    if !failed.is_empty() {
        return Err(ActionError::Other(in_words(&failed)));
    }
    Ok(Outcome::new(format!("stopped: {}", services.join(", "))))
}

/// Those of whom it ended well, and the others with why.
fn apart(services: &[String], ended: Vec<Result<Outcome, ActionError>>) -> (Vec<&str>, Vec<(&str, String)>) {
    let (mut well, mut failed) = (Vec::new(), Vec::new());
    for (service, ended) in services.iter().map(String::as_str).zip(ended) {
        match ended {
            Ok(_) => well.push(service),
            Err(e) => failed.push((service, e.to_string())),
        }
    }
    (well, failed)
}

/// Every failure is told, not only the first.
fn in_words(failed: &[(&str, String)]) -> String {
    let each: Vec<String> = failed
        .iter()
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    each.join("; ")
}

/// Those of `services` that run or, of [`Which::Replaying`], replay their log.
pub async fn running(system: &System, services: &[String], which: Which) -> Vec<String> {
    let each = services.iter().map(async |service| {
        let is = match which {
            Which::Any => system
                .container(service)
                .await
                .is_ok_and(|c| c.status == Status::Running),
            Which::Replaying => server::replays(system, service).await,
        };
        is.then(|| service.clone())
    });
    join_all(each).await.into_iter().flatten().collect()
}

pub(super) async fn thaw(cx: &ActionContext<'_>, service: &str) -> Result<Outcome, ActionError> {
    let container = cx.system.container(service).await?;
    if container.status == Status::Paused {
        cx.system.docker.unpause(&container.id).await?;
    } else if container.is_running() {
        // Nothing happens to a process that was not stopped.
        cx.system.docker.resume(&container.id).await?;
    }
    until_up(cx, service, &container, Instant::now()).await?;
    Ok(Outcome::new(format!("{service} runs again")))
}

pub(super) async fn restart(cx: &ActionContext<'_>, service: &str) -> Result<Outcome, ActionError> {
    let begun = Instant::now();
    let container = cx.system.container(service).await?;
    if let Some(why) = container.not_alone(service) {
        return Err(ActionError::Other(why));
    }
    if is_postgres(cx, service) {
        // Known before the stop: one that may not be started again is not stopped either.
        let server = cx.system.postgres(service).await?;
        server::must_be_alone(cx, &server, "it is neither stopped nor started").await?;
        server::must_have_data(cx, &server).await?;
    } else if is_redis(cx, service) {
        redis_files::may_start(cx, service, &container, "it is neither stopped nor started").await?;
    }
    stop(cx, service).await?;
    start(cx, service, true).await?;
    Ok(
        Outcome::new(format!("{service} is restarted"))
            .fact("restart-seconds", begun.elapsed().as_secs_f64()),
    )
}

/// How long one start of a container has been seen to hold. Counted here and not from the
/// engine's time of the start: the clocks of two machines differ, and a clock that is ahead would
/// never see a container grow old enough, one that is behind would believe a crash loop.
#[derive(Debug, Default)]
struct Up {
    since: Option<(Timestamp, Instant)>,
}

impl Up {
    /// The age at `now` of the start that is seen; 0 of a new one, or of none.
    fn seen(&mut self, started_at: Option<Timestamp>, now: Instant) -> Duration {
        let Some(start) = started_at else {
            self.since = None;
            return Duration::ZERO;
        };
        match self.since {
            Some((known, first)) if known == start => now.duration_since(first),
            _ => {
                self.since = Some((start, now));
                Duration::ZERO
            }
        }
    }
}

/// Waits until the container stays up and its own health check, where it has one, agrees.
async fn until_up(
    cx: &ActionContext<'_>,
    service: &str,
    before: &ContainerInfo,
    begun: Instant,
) -> Result<(), ActionError> {
    let end = begun + cx.deadline;
    let mut up = Up::default();
    loop {
        let state = again(cx.system, before).await;
        let Some(facts) = state.found() else {
            return Err(ActionError::Other(match state {
                ContainerState::Unknown(cause) => cause,
                _ => format!("service {service} has no container any more"),
            }));
        };
        let now = &facts.info;
        let gave_up = match now.status {
            Status::Exited | Status::Dead => true,
            // A manual start sets the count to 0.
            Status::Restarting => now.restart_count > 2,
            _ => false,
        };
        if gave_up {
            let words: Vec<&str> = facts.last_words.iter().rev().take(5).map(|l| &*l.text).collect();
            return Err(ActionError::Other(format!(
                "{service} does not stay up (exit code {}): {}",
                now.exit_code,
                words.into_iter().rev().collect::<Vec<_>>().join("; ")
            )));
        }
        let age = up.seen(
            now.is_running().then_some(now.started_at).flatten(),
            Instant::now(),
        );
        let settled = before.is_running() || age >= STAYS_UP;
        if now.is_running() && settled && matches!(now.health.as_deref(), None | Some("healthy")) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(ActionError::Other(format!(
                "{service} is {:?}{} after {}",
                now.status,
                now.health
                    .as_ref()
                    .map_or_else(String::new, |h| format!(" and {h}")),
                seconds(cx.deadline)
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_start_is_counted_here_whatever_the_engine_s_clock_says() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        // An hour ahead, and a day behind.
        for clock in ["2100-01-01T00:00:00Z", "2001-01-01T00:00:00Z"] {
            let start: Option<Timestamp> = clock.parse().ok();
            let mut up = Up::default();
            assert_eq!(up.seen(start, at(0)), Duration::ZERO);
            assert!(up.seen(start, at(1400)) < STAYS_UP);
            assert!(up.seen(start, at(1500)) >= STAYS_UP, "{clock}");
        }
    }

    #[test]
    fn one_application_keeps_nobody_else_down_and_a_data_store_does() {
        let ended = |bad: &'static str, all: &[String]| {
            let each = all.iter().map(|s| {
                if s == bad {
                    Err(ActionError::Other("exit code 1: no such file".into()))
                } else {
                    Ok(Outcome::default())
                }
            });
            each.collect::<Vec<_>>()
        };
        let is_store = |name: &str| matches!(name, "postgres" | "redis");
        for (all, bad, goes_on) in [
            (&["api1", "api2"][..], "", true),
            (&["api1", "api2"], "api2", true),
            (&["postgres", "redis"], "redis", false),
            (&["nginx"], "nginx", false),
        ] {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            let (up, failed) = apart(&all, ended(bad, &all));
            assert_eq!(may_go_on(&up, &failed, is_store), goes_on, "{all:?}, {bad}");
            assert_eq!(failed.len(), usize::from(!bad.is_empty()));
            assert!(bad.is_empty() || in_words(&failed) == format!("{bad}: exit code 1: no such file"));
        }
    }

    #[test]
    fn a_crash_loop_never_grows_old() {
        let begun = Instant::now();
        let mut up = Up::default();
        for n in 0..10_u32 {
            let start = Timestamp::from_second(i64::from(n)).ok();
            let now = begun + Duration::from_secs(1) * n;
            assert_eq!(up.seen(start, now), Duration::ZERO);
            assert!(up.seen(start, now + Duration::from_millis(900)) < STAYS_UP);
            // Not every end of it is seen.
            if n % 2 == 0 {
                assert_eq!(up.seen(None, now + Duration::from_millis(950)), Duration::ZERO);
            }
        }
    }
}
