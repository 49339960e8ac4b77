//! The containers of a deployment's services, as the engine sees them, and what the ones
//! in trouble said last.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::system::System;
use crate::workload::{ContainerInfo, LogLine, Status, WorkloadError};

/// Log lines that are kept of a container in trouble.
const LAST_WORDS: usize = 20;

/// One service's container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerState {
    /// It exists.
    Found(Box<ContainerFacts>),
    /// No container carries the service's name or labels.
    Missing,
    /// The engine did not say.
    Unknown(String),
}

/// What is known of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ContainerFacts {
    /// What `inspect` tells.
    pub info: ContainerInfo,
    /// The end of its log, when it is not running well.
    pub last_words: Vec<LogLine>,
    /// State letters of its processes, main process first, as `ps` prints them: `T` is
    /// stopped by a signal. Empty when it does not run or the engine could not tell.
    pub processes: Vec<String>,
}

impl ContainerState {
    /// The container, when there is one.
    #[must_use]
    pub fn found(&self) -> Option<&ContainerFacts> {
        match self {
            Self::Found(facts) => Some(facts),
            Self::Missing | Self::Unknown(_) => None,
        }
    }
}

impl ContainerFacts {
    /// The main process is stopped by a signal (SIGSTOP), which the engine does not know of.
    #[must_use]
    pub fn is_stopped_by_signal(&self) -> bool {
        self.info.is_running() && self.processes.first().is_some_and(|s| s.starts_with('T'))
    }

    /// It runs, is not frozen, and its own health check does not say otherwise.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.info.is_running()
            && !self.is_stopped_by_signal()
            && self.info.health.as_deref() != Some("unhealthy")
    }
}

/// Looks at the containers of all services of the runbook at once.
pub async fn look(system: &System) -> BTreeMap<String, ContainerState> {
    let services = system.runbook.services.keys().map(ToString::to_string);
    join_all(services.map(|name| async move {
        let state = one(system, &name).await;
        (name, state)
    }))
    .await
    .into_iter()
    .collect()
}

/// Looks at one.
pub async fn one(system: &System, service: &str) -> ContainerState {
    state(system, system.container(service).await).await
}

/// Looks again at the same container, whichever of its service's is worst off by now.
pub async fn again(system: &System, before: &ContainerInfo) -> ContainerState {
    let info = system.docker.inspect(&before.id).await.map(|now| ContainerInfo {
        replicas: before.replicas.clone(),
        ..now
    });
    state(system, info).await
}

async fn state(system: &System, found: Result<ContainerInfo, WorkloadError>) -> ContainerState {
    let info = match found {
        Ok(info) => info,
        Err(WorkloadError::NotFound { .. }) => return ContainerState::Missing,
        Err(e) => return ContainerState::Unknown(e.to_string()),
    };
    let well = info.is_running() && !matches!(info.health.as_deref(), Some("unhealthy"));
    let words = async {
        if well && info.restart_count == 0 {
            return Vec::new();
        }
        system
            .docker
            .logs(&info.id, None, LAST_WORDS)
            .await
            .unwrap_or_default()
    };
    let processes = async {
        if info.status == Status::Running {
            system.docker.process_states(&info.id).await.unwrap_or_default()
        } else {
            Vec::new()
        }
    };
    let (last_words, processes) = tokio::join!(words, processes);
    ContainerState::Found(Box::new(ContainerFacts {
        info,
        last_words,
        processes,
    }))
}

/// What the end of a container means, in words.
#[must_use]
pub fn end_in_words(info: &ContainerInfo) -> String {
    let code = info.exit_code;
    let why = match code {
        0 => "it ended by itself, without an error",
        126 => "its program cannot be executed",
        127 => "its program does not exist in the image",
        128 if !info.error.is_empty() => "the engine could not start it",
        // The flag is sticky: it may be about a child, or an earlier run.
        137 if info.oom_killed => "killed, and the engine has seen it run out of memory",
        137 => "killed (SIGKILL): by hand, or because it did not act on its stop signal in time",
        134 => "it aborted itself (SIGABRT)",
        139 => "it crashed (SIGSEGV)",
        143 => "ended by SIGTERM, as a stop does",
        130 => "ended by SIGINT, as a stop does",
        c if c > 128 => "ended by a signal",
        _ => "it ended with an error",
    };
    let error = if info.error.is_empty() {
        String::new()
    } else {
        format!(": {}", info.error)
    };
    format!("exit code {code}, {why}{error}")
}
