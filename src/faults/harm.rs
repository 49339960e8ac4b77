//! What the faults of running services consist of: small effects. A fault is a list of them, and
//! its record holds their [mends](super::mend) before the first effect.

use std::time::Duration;

use super::db_down::{self, ServerHarm};
use super::disk_full::{self, DiskHarm};
use super::mend::Mend;
use super::network_partition::{self, NetworkHarm};
use super::redis::{self, RedisHarm, RedisMend};
use super::server::{asking, session};
use super::sessions::Sessions;
use super::{Request, load};
use crate::error::{Error, Kind, Result};
use crate::plan::Limits;
use crate::postgres::{quote_ident, quote_literal};
use crate::system::System;
use crate::workload::{ContainerInfo, HelperSpec};

/// How long a container may take to come to the state that a fault wants.
const SETTLE: Duration = Duration::from_secs(20);

/// One effect of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Harm {
    /// The container is stopped cleanly.
    Stop {
        /// Container.
        container: String,
    },
    /// The main process gets a signal.
    Signal {
        /// Container.
        container: String,
        /// As `SIGKILL`.
        signal: String,
    },
    /// Sessions hold the connection slots of a PostgreSQL server.
    HoldSessions {
        /// Service.
        service: String,
        /// What they do.
        sessions: Sessions,
        /// The fault, for the label.
        run: String,
    },
    /// A role gets a connection limit, and its sessions are ended.
    LimitRole {
        /// Service.
        service: String,
        /// Role.
        role: String,
        /// Its limit.
        limit: i32,
    },
    /// The engine freezes the container.
    Pause {
        /// Container.
        container: String,
    },
    /// Networks.
    Network(NetworkHarm),
    /// An effect on a running Redis.
    Redis(RedisHarm),
    /// Disks.
    Disk(DiskHarm),
    /// An effect on a PostgreSQL server.
    Server(ServerHarm),
    /// The main process is killed from outside, as soon as the engine has started it again:
    /// what the engine does not take for a stop by hand.
    CrashLoop {
        /// Container.
        container: String,
        /// The fault's identity, which labels the helper.
        fault: String,
    },
    /// The container is stopped and started.
    Restart {
        /// Container.
        container: String,
    },
    /// What the engine does when the container ends.
    RestartPolicy {
        /// Container.
        container: String,
        /// As inspect names it.
        policy: String,
    },
    /// Other limits.
    Limits {
        /// Container.
        container: String,
        /// What is set.
        limits: Limits,
    },
    /// A process inside holds memory, and the limit is just above what is used then.
    HoldMemory {
        /// Container.
        container: String,
        /// What the process is found by.
        marker: String,
        /// For how long.
        seconds: u64,
    },
    /// A process inside keeps a processor busy, with a rest now and then.
    KeepBusy {
        /// Seconds of rest, as `sleep` takes them; `0` for none.
        rest: &'static str,
        /// Container.
        container: String,
        /// What the process is found by.
        marker: String,
        /// For how long.
        seconds: u64,
    },
    /// Sessions of a database run slow statements.
    SlowStatements {
        /// Service.
        service: String,
        /// The fault's identity, which labels the helper.
        fault: String,
    },
}

/// Kills the main process of container $1 whenever it has run for a moment. Main is the one
/// whose own namespace calls it 1; the container is found by its control group. Killed while
/// the engine is still starting it (`runc`), the engine would give it up.
const CRASH_LOOP: &str = r#"
while :; do
  for status in $(grep -ls "$1" /proc/[0-9]*/cgroup); do
    dir=${status%/cgroup}
    if grep -qs "^NSpid:.*[[:space:]]1$" "$dir/status" && ! grep -qs runc "$dir/comm"; then
      sleep 0.7
      kill -s KILL "${dir#/proc/}" 2>/dev/null
    fi
  done
  sleep 0.1
done
"#;

/// A fault of running services that has been worked out and not begun.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The service.
    pub service: String,
    /// Its container.
    pub container: String,
    /// What will be hit, for a person.
    pub target: String,
    /// What is done, in order.
    pub harms: Vec<Harm>,
    /// What puts it right, in order.
    pub mends: Vec<Mend>,
}

impl Prepared {
    /// A fault of a running Redis.
    #[must_use]
    pub fn of_redis(
        service: String,
        container: String,
        harms: Vec<RedisHarm>,
        mends: Vec<RedisMend>,
    ) -> Self {
        Self {
            target: format!("the Redis server {service}"),
            harms: harms.into_iter().map(Harm::Redis).collect(),
            mends: mends
                .into_iter()
                .map(|mend| Mend::Redis {
                    service: service.clone(),
                    mend,
                })
                .collect(),
            service,
            container,
        }
    }
}

/// The container of the service that a fault is meant for: the one that was asked for, or
/// the first of the runbook that `fits`. It must run.
///
/// # Errors
/// [`Kind::Usage`] when nothing fits, [`Kind::Refused`] when it does not run.
pub async fn victim(
    system: &System,
    service: Option<&str>,
    fits: impl Fn(&crate::runbook::Service) -> bool,
) -> Result<(String, ContainerInfo)> {
    let found = system
        .runbook
        .services
        .iter()
        .find(|(name, s)| service.map_or_else(|| fits(s), |wanted| name.as_str() == wanted));
    let Some((name, _)) = found else {
        return Err(Error::new(
            Kind::Usage,
            match service {
                Some(wanted) => format!("the runbook has no service {wanted:?}"),
                None => "the runbook has no service that this fault fits".to_owned(),
            },
        )
        .untouched("everything")
        .next("drctl runbook show"));
    };
    let info = system.container(name.as_str()).await?;
    if !info.is_running() {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "container {} does not run; a fault is injected only into a sound service",
                info.name
            ),
        )
        .untouched("everything")
        .next("drctl drill heal    # is an earlier fault still there?"));
    }
    Ok((name.to_string(), info))
}

/// Does everything of a fault, in order; says what was seen.
///
/// # Errors
/// The first effect that failed; the mends tell how to put right what was begun.
pub async fn inject(system: &System, prepared: &Prepared, request: &Request) -> Result<String> {
    let mut seen = Vec::new();
    for harm in &prepared.harms {
        let applied = apply(system, &prepared.service, harm, request).await;
        seen.push(applied.map_err(|e| after(&seen, e))?);
    }
    Ok(seen.join("; "))
}

/// An effect's refusal speaks for itself only: what was done before it is done.
fn after(seen: &[String], mut e: Error) -> Error {
    if !seen.is_empty() {
        e.kind = Kind::FailedChanged;
        e.untouched = None;
    }
    e
}

async fn apply(system: &System, service: &str, harm: &Harm, request: &Request) -> Result<String> {
    let docker = &system.docker;
    match harm {
        Harm::Stop { container } => {
            docker.stop(container, system.runbook.deadlines.stop).await?;
            Ok(format!("container {container} is stopped"))
        }
        Harm::Signal { container, signal } => {
            docker.kill(container, signal).await?;
            if signal == "SIGKILL" && !docker.wait_stopped(container, SETTLE).await? {
                return Err(Error::new(
                    Kind::FailedChanged,
                    format!("container {container} did not end by SIGKILL"),
                ));
            }
            Ok(format!("{signal} was sent to container {container}"))
        }
        Harm::Network(harm) => network_partition::apply(system, harm).await,
        Harm::Disk(harm) => disk_full::apply(system, service, harm, request).await,
        Harm::Server(harm) => db_down::apply(system, harm).await,
        Harm::Redis(harm) => redis::apply(system, service, harm).await,
        Harm::HoldSessions {
            service,
            sessions,
            run,
        } => {
            let server = system.postgres(service).await?;
            sessions.inject(system, &server, run).await
        }
        Harm::LimitRole { service, role, limit } => {
            limit_role(system, service, role, *limit).await?;
            Ok(format!("role {role} may have {limit} connections"))
        }
        Harm::Pause { container } => {
            docker.pause(container).await?;
            Ok(format!("container {container} is paused"))
        }
        Harm::CrashLoop { container, fault } => crash_loop(system, container, fault, request).await,
        Harm::Limits { container, limits } => {
            docker.set_limits(container, limits).await?;
            Ok(format!("container {container} has other limits"))
        }
        Harm::HoldMemory {
            container,
            marker,
            seconds,
        } => load::hold_memory(system, container, marker, *seconds).await,
        Harm::KeepBusy {
            rest,
            container,
            marker,
            seconds,
        } => load::keep_busy(system, container, marker, *seconds, rest).await,
        Harm::SlowStatements { service, fault } => {
            load::slow_statements(system, service, fault, request).await
        }
        Harm::Restart { container } => {
            docker.stop(container, system.runbook.deadlines.stop).await?;
            docker.start(container).await?;
            Ok(format!("container {container} was restarted"))
        }
        Harm::RestartPolicy { container, policy } => {
            docker.set_restart_policy(container, policy).await?;
            Ok(format!("the restart policy of container {container} is {policy}"))
        }
    }
}

/// Starts the helper that kills, and waits until the engine has restarted its victim twice.
async fn crash_loop(system: &System, container: &str, fault: &str, request: &Request) -> Result<String> {
    let docker = &system.docker;
    let info = docker.inspect(container).await?;
    let argv = ["/bin/sh", "-c", CRASH_LOOP, "crash-loop", &info.id];
    let mut spec = HelperSpec::new(
        system.deployment(),
        fault,
        "fault-crash-loop",
        &info.image_id,
        &argv,
    );
    spec.host_processes = true;
    spec.detached = Some(request.ttl);
    // After any signal that the engine has sent, its restart policy is off until the next start.
    docker.stop(container, system.runbook.deadlines.stop).await?;
    docker.start(container).await?;
    let info = docker.inspect(container).await?;
    docker.launch_helper(&spec).await?;
    let end = tokio::time::Instant::now() + SETTLE;
    loop {
        let now = docker.inspect(container).await?;
        if now.restart_count > info.restart_count + 2 {
            return Ok(format!(
                "container {container} was killed and restarted {} times",
                now.restart_count - info.restart_count
            ));
        }
        if tokio::time::Instant::now() >= end {
            return Err(Error::new(
                Kind::FailedChanged,
                format!(
                    "container {container} did not get into a loop: its restart policy is {}",
                    now.restart_policy
                ),
            ));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sets a role's connection limit and ends the sessions that it has: a limit counts for new
/// ones only.
async fn limit_role(system: &System, service: &str, role: &str, limit: i32) -> Result<()> {
    let server = system.postgres(service).await?;
    let client = session(&server, &server.admin.database).await?;
    let quoted = quote_ident(role);
    for sql in [
        format!("alter role {quoted} connection limit {limit}"),
        format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = {}",
            quote_literal(role)
        ),
    ] {
        client
            .execute(&sql)
            .await
            .map_err(asking(&server, "the change of the role's connection limit"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_after_something_was_done_does_not_say_that_nothing_was() {
        let refusal = || Error::new(Kind::Refused, "too large").untouched("everything");
        let first = after(&[], refusal());
        assert_eq!((first.kind, first.untouched.is_some()), (Kind::Refused, true));
        let later = after(&["a slot is made".into()], refusal());
        assert_eq!(
            (later.kind, later.untouched.is_some()),
            (Kind::FailedChanged, false)
        );
    }
}
