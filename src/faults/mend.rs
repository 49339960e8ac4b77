//! How the effects of faults are put right: each finds out for itself whether there is anything
//! to do, so that healing can be repeated, and is safe after a fault that was never finished.

use serde::{Deserialize, Serialize};

use super::db_down::{self, ServerMend};
use super::disk_full::{self, DiskMend};
use super::load;
use super::network_partition::{self, NetworkMend};
use super::redis::{self, RedisMend};
use super::server::{asking, session};
use crate::error::Result;
use crate::plan::Limits;
use crate::postgres::{quote_ident, quote_literal};
use crate::system::System;
use crate::workload::{ContainerInfo, Status, WorkloadError};

/// How one effect is put right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mend {
    /// The container runs and is not frozen, by the engine or by a signal.
    #[serde(rename_all = "kebab-case")]
    Run {
        /// Container.
        container: String,
    },
    /// Networks.
    Network(NetworkMend),
    /// Disks.
    Disk(DiskMend),
    /// An effect on a PostgreSQL server.
    Server(ServerMend),
    /// An effect on a running Redis.
    #[serde(rename_all = "kebab-case")]
    Redis {
        /// Service.
        service: String,
        /// How.
        mend: RedisMend,
    },
    /// The helpers of this fault are gone.
    #[serde(rename_all = "kebab-case")]
    EndHelpers {
        /// The fault's identity.
        fault: String,
    },
    /// The engine does what it did before when the container ends.
    #[serde(rename_all = "kebab-case")]
    RestartPolicy {
        /// Container.
        container: String,
        /// As inspect names it.
        policy: String,
    },
    /// The sessions that a fault holds are ended, and its role is removed.
    #[serde(rename_all = "kebab-case")]
    EndSessions {
        /// Service.
        service: String,
        /// Database.
        database: String,
        /// Role.
        role: String,
        /// The fault, by the label of its helper.
        run: String,
    },
    /// The role's connection limit is what it was, if it still is what the fault made it.
    #[serde(rename_all = "kebab-case")]
    LimitRole {
        /// Service.
        service: String,
        /// Role.
        role: String,
        /// The limit to put back.
        limit: i32,
        /// What the fault made it.
        was: i32,
    },
    /// The limits are as before.
    #[serde(rename_all = "kebab-case")]
    Limits {
        /// Container.
        container: String,
        /// What is set.
        limits: Limits,
    },
    /// The processes that carry the marker are gone.
    #[serde(rename_all = "kebab-case")]
    EndProcesses {
        /// Container.
        container: String,
        /// What they are found by.
        marker: String,
    },
}

/// Puts every effect right, in order. Tells what was done; nothing when all was right.
///
/// # Errors
/// The engine's or a server's trouble.
pub async fn mend(system: &System, mends: &[Mend]) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for mend in mends {
        done.extend(put_right(system, mend).await?);
    }
    Ok(done)
}

/// Whether a fault's limits are still on a container that shall have these.
fn differs(limits: &Limits, info: &ContainerInfo) -> bool {
    let is = |wanted: Option<i64>, now: i64| wanted.is_none_or(|w| w == now);
    let memory = i64::try_from(info.memory_limit).unwrap_or(i64::MAX);
    // No fault takes a limit away. One that was set could not be taken away again.
    let unlimited = memory == 0;
    !((unlimited || is(limits.memory, memory))
        && is(limits.cpu_quota, info.cpu_quota)
        && is(limits.nano_cpus, info.nano_cpus))
}

async fn put_right(system: &System, mend: &Mend) -> Result<Option<String>> {
    let docker = &system.docker;
    match mend {
        Mend::Network(mend) => network_partition::put_right(system, mend).await,
        Mend::Disk(mend) => disk_full::put_right(system, mend).await,
        Mend::Server(mend) => db_down::put_right(system, mend).await,
        Mend::Redis { service, mend } => redis::put_right(system, service, mend).await,
        Mend::EndSessions {
            service,
            database,
            role,
            run,
        } => {
            let server = system.postgres(service).await?;
            let ended = super::sessions::end(system, &server, Some(database), run, role).await?;
            Ok(ended.then(|| "the sessions are ended".to_owned()))
        }
        Mend::LimitRole {
            service,
            role,
            limit,
            was,
        } => unlimit_role(system, service, role, (*limit, *was)).await,
        Mend::Run { container } => {
            let info = match docker.inspect(container).await {
                // Created anew since: the new one is not the fault's.
                Err(WorkloadError::NotFound { .. }) => return Ok(None),
                other => other?,
            };
            match info.status {
                Status::Paused => {
                    docker.unpause(container).await?;
                    Ok(Some(format!("container {container} was thawed")))
                }
                // It would come by itself, a minute later.
                Status::Restarting => {
                    docker.stop(container, system.runbook.deadlines.stop).await?;
                    docker.start(container).await?;
                    Ok(Some(format!("container {container} was started")))
                }
                Status::Running => {
                    if !docker.is_stopped_by_signal(container).await? {
                        return Ok(None);
                    }
                    docker.resume(container).await?;
                    Ok(Some(format!("SIGCONT was sent to container {container}")))
                }
                Status::Created | Status::Exited | Status::Dead => {
                    docker.start(container).await?;
                    Ok(Some(format!("container {container} was started")))
                }
            }
        }
        Mend::EndHelpers { fault } => {
            let helpers = docker.list(&system.labels(fault)).await?;
            for (id, _) in &helpers {
                docker.remove(id).await?;
            }
            Ok((!helpers.is_empty()).then(|| "its helper was removed".to_owned()))
        }
        Mend::Limits { container, limits } => {
            let info = match docker.inspect(container).await {
                Err(WorkloadError::NotFound { .. }) => return Ok(None),
                other => other?,
            };
            if !differs(limits, &info) {
                return Ok(None);
            }
            docker.set_limits(container, limits).await?;
            Ok(Some(format!("container {container} has its limits back")))
        }
        Mend::EndProcesses { container, marker } => {
            match docker.inspect(container).await {
                // They ended with it.
                Ok(info) if !info.is_running() => return Ok(None),
                Err(WorkloadError::NotFound { .. }) => return Ok(None),
                other => other?,
            };
            load::end_processes(system, container, marker).await?;
            Ok(None)
        }
        Mend::RestartPolicy { container, policy } => {
            let info = match docker.inspect(container).await {
                Err(WorkloadError::NotFound { .. }) => return Ok(None),
                other => other?,
            };
            if info.restart_policy == *policy {
                return Ok(None);
            }
            docker.set_restart_policy(container, policy).await?;
            Ok(Some(format!(
                "the restart policy of container {container} is {policy} again"
            )))
        }
    }
}

async fn unlimit_role(
    system: &System,
    service: &str,
    role: &str,
    (limit, was): (i32, i32),
) -> Result<Option<String>> {
    let server = system.postgres(service).await?;
    let client = session(&server, &server.admin.database).await?;
    let asked = client
        .value(&format!(
            "select rolconnlimit from pg_roles where rolname = {}",
            quote_literal(role)
        ))
        .await;
    let now = asked.map_err(asking(&server, "the question for the role's limit"))?;
    if now != Some(was.to_string()) {
        return Ok(None);
    }
    client
        .execute(&format!(
            "alter role {} connection limit {limit}",
            quote_ident(role)
        ))
        .await
        .map_err(asking(&server, "the change of the role's connection limit"))?;
    Ok(Some(format!("role {role} has its connection limit back")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::service_crash::fixtures::container;

    #[test]
    fn a_container_without_a_memory_limit_is_not_given_one_by_healing() {
        let mut info = container("api1").info;
        let limits = Limits {
            memory: Some(8 << 30),
            memory_swap: Some(16 << 30),
            ..Limits::default()
        };
        assert!(!differs(&limits, &info), "the fault was never done");
        info.memory_limit = 100 << 20;
        assert!(differs(&limits, &info));
        info.memory_limit = 8 << 30;
        assert!(!differs(&limits, &info));
        info.cpu_quota = 1000;
        let quota = Limits {
            cpu_quota: Some(-1),
            ..Limits::default()
        };
        assert!(differs(&quota, &info));
    }
}
