//! What the faults of running services consist of: small effects, each with its mend. A
//! fault is a list of them, and its record holds the mends before the first effect.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Request;
use super::network_partition::{self, NetworkHarm, NetworkMend};
use crate::error::{Error, Kind, Result};
use crate::system::System;
use crate::workload::{ContainerInfo, Status, WorkloadError};

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
    /// The engine freezes the container.
    Pause {
        /// Container.
        container: String,
    },
    /// Networks.
    Network(NetworkHarm),
}

/// How one effect is put right. Each finds out for itself whether there is anything to do.
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
}

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
pub async fn inject(system: &System, prepared: &Prepared, _request: &Request) -> Result<String> {
    let mut seen = Vec::new();
    for harm in &prepared.harms {
        seen.push(apply(system, harm).await?);
    }
    Ok(seen.join("; "))
}

async fn apply(system: &System, harm: &Harm) -> Result<String> {
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
        Harm::Pause { container } => {
            docker.pause(container).await?;
            Ok(format!("container {container} is paused"))
        }
    }
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

async fn put_right(system: &System, mend: &Mend) -> Result<Option<String>> {
    let docker = &system.docker;
    match mend {
        Mend::Network(mend) => network_partition::put_right(system, mend).await,
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
                Status::Running | Status::Restarting => {
                    let stopped = docker
                        .process_states(container)
                        .await
                        .is_ok_and(|all| all.first().is_some_and(|s| s.starts_with('T')));
                    if !stopped {
                        return Ok(None);
                    }
                    docker.kill(container, "SIGCONT").await?;
                    Ok(Some(format!("SIGCONT was sent to container {container}")))
                }
                Status::Created | Status::Exited | Status::Dead => {
                    docker.start(container).await?;
                    Ok(Some(format!("container {container} was started")))
                }
            }
        }
    }
}
