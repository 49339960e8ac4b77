//! Where services run. Only Docker so far: one `bollard` client type covers a
//! local and a remote engine, so there is one implementation and no trait. A remote one is
//! reached by SSH (`ssh`), or by TCP with TLS (`tls`, `bridge`).
//!
//! Two ways to run a program beside a service, and the choice matters:
//!
//! - [`Docker::exec`] is for small single-process questions only. A tool started by
//!   exec whose child dies badly is reaped by the postmaster as PID 1, which then
//!   believes that one of its backends crashed and restarts everything.
//! - [`Docker::run_helper`] starts a container of the service's own image (tool and
//!   server versions always match). It holds a lease: when drctl dies, for whatever
//!   reason, the helper ends and the engine removes it.

mod bridge;
mod cgroup;
mod create;
mod docker;
mod exec;
mod files;
mod helper;
mod inspect;
mod lifecycle;
mod mounts;
mod network;
mod space;
mod ssh;
mod staging;
mod stats;
mod tls;
mod transfer;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::runbook::{DockerHost, SshAddress};

pub use create::{Like, Role};
pub use docker::{Docker, Reach};
pub use helper::{Helper, HelperMount, HelperNetwork, HelperOutput, HelperSpec};
pub use mounts::{POSTGRES, REDIS};
pub use network::NetworkInfo;
pub use space::NamelessImage;
pub use staging::{Meter, Staging, StagingSpec, metered};

pub use stats::Counters;

/// Label on everything that drctl creates: the deployment it was made for.
pub const LABEL_DEPLOYMENT: &str = "drctl.deployment";
/// Label on everything that drctl creates: what it is for.
pub const LABEL_PURPOSE: &str = "drctl.purpose";
/// Label on what belongs to one incident, drill or backup run: its identity.
pub const LABEL_RUN: &str = "drctl.run";

/// What went wrong in talking to the engine, with the object it was about.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// No engine behind the address: absent socket, refused, no permission.
    #[error("the Docker engine at {host} cannot be reached: {cause}")]
    Unreachable {
        /// The address as configured.
        host: String,
        /// The transport's own words.
        cause: String,
    },
    /// The engine accepted the request and did not answer in time.
    #[error("the Docker engine at {host} did not answer {what} within {}", crate::event::seconds(*deadline))]
    Timeout {
        /// The address as configured.
        host: String,
        /// The request.
        what: String,
        /// How long we waited.
        deadline: Duration,
    },
    /// No such container, image, volume or network.
    #[error("{what}: not found")]
    NotFound {
        /// The object.
        what: String,
    },
    /// The engine refused or failed the request.
    #[error("{what}: the engine answered {status}: {message}")]
    Engine {
        /// The request.
        what: String,
        /// HTTP status.
        status: u16,
        /// The engine's message.
        message: String,
    },
    /// A transport or protocol failure in the middle of a request.
    #[error("{what}: {cause}")]
    Transport {
        /// The request.
        what: String,
        /// The chain of causes.
        cause: String,
    },
    /// Files could not be brought to or from the engine's host.
    #[error("{what}: {cause}")]
    Transfer {
        /// Which files, and where to.
        what: String,
        /// Why.
        cause: String,
    },
    /// A helper did not finish within its deadline and was ended.
    #[error("the helper container for {purpose} did not finish within {} and was ended", crate::event::seconds(*deadline))]
    HelperDeadline {
        /// What the helper was for.
        purpose: String,
        /// How long it was given.
        deadline: Duration,
    },
}

impl WorkloadError {
    /// True when the engine itself is the problem rather than the object asked for.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. })
    }

    /// Where the engine was looked for, when that is another host reached by SSH.
    #[must_use]
    pub fn ssh(&self) -> Option<SshAddress> {
        match self {
            Self::Unreachable { host, .. } | Self::Timeout { host, .. } => match host.parse() {
                Ok(DockerHost::Ssh(address)) => Some(address),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Life-cycle state of a container, as the engine reports it.
///
/// `Restarting` is separate although the engine then also says `Running=true`
/// (seen on 20.10 during crash-loop back-off).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Created, never started (or its start failed: see `ContainerInfo::error`).
    Created,
    /// Its main process runs.
    Running,
    /// Frozen by the engine.
    Paused,
    /// Between two starts of a crash loop.
    Restarting,
    /// Its main process ended.
    Exited,
    /// Being removed, or broken beyond use.
    Dead,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MountInfo {
    /// The volume's name; `None` for a bind mount.
    pub volume: Option<String>,
    /// Path on the engine's host.
    pub source: String,
    /// Path inside the container.
    pub destination: String,
    /// Whether the container may write.
    pub writable: bool,
}

/// A container's place in one network. It is bound by the network's identifier: a new network
/// of the same name is another one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Attachment {
    /// Identifier of the network.
    pub network_id: String,
    /// Address; empty when not running.
    pub address: String,
    /// Names, besides the container's own, by which its neighbours find it there.
    pub aliases: Vec<String>,
    /// Address that was asked for, rather than given by the engine.
    pub fixed_address: Option<String>,
    /// The same of IPv6, where both were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed_address_v6: Option<String>,
}

impl Attachment {
    /// The addresses that were asked for: at most one of a kind.
    #[must_use]
    pub fn fixed_addresses(&self) -> Vec<String> {
        [&self.fixed_address, &self.fixed_address_v6]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }
}

/// What `inspect` tells of a container, reduced to what decisions rest on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ContainerInfo {
    /// Full identifier.
    pub id: String,
    /// Name without the leading slash.
    pub name: String,
    /// The image as it was asked for (`Config.Image`): a tag may have moved since.
    pub image: String,
    /// The image that really runs (`sha256:…`).
    pub image_id: String,
    /// Life-cycle state.
    pub status: Status,
    /// Exit code of the last end; meaningless while running.
    pub exit_code: i64,
    /// The engine's flag. Sticky: stays true after a later successful start.
    pub oom_killed: bool,
    /// The engine's error text of a failed start.
    pub error: String,
    /// `healthy`, `unhealthy`, `starting`, or `None` without a health check.
    pub health: Option<String>,
    /// Last start.
    pub started_at: Option<Timestamp>,
    /// Last end.
    pub finished_at: Option<Timestamp>,
    /// Engine restarts since the last manual start.
    pub restart_count: i64,
    /// What the engine does when it ends: `no`, `always`, `unless-stopped`, `on-failure`, or
    /// `on-failure:5` where it gives up after so many starts.
    #[serde(default)]
    pub restart_policy: String,
    /// Signal that asks the main process to end; `SIGTERM` when not set.
    pub stop_signal: String,
    /// Shared memory size in bytes (`/dev/shm`), 64 MiB by default.
    pub shm_size: u64,
    /// Memory limit in bytes, 0 for none.
    pub memory_limit: u64,
    /// Limit of memory and swap together in bytes; 0 when not said, -1 for none.
    #[serde(default)]
    pub memory_swap: i64,
    /// Processors in billionths (`--cpus`), 0 for no limit.
    #[serde(default)]
    pub nano_cpus: i64,
    /// Microseconds of processor time per period; 0 or -1 for no limit.
    #[serde(default)]
    pub cpu_quota: i64,
    /// Microseconds of a period; 0 for the kernel's own.
    #[serde(default)]
    pub cpu_period: i64,
    /// Network name → address (empty when not running).
    pub networks: BTreeMap<String, String>,
    /// Network name → its place there, running or not.
    #[serde(default)]
    pub attachments: BTreeMap<String, Attachment>,
    /// The network that it was created in (`HostConfig.NetworkMode`): stays when it is taken
    /// out of it.
    #[serde(default)]
    pub network_mode: String,
    /// Published ports: container port (`5432/tcp`) → host address and port.
    pub published: BTreeMap<String, String>,
    /// Ports that it was created to publish, in the same form.
    #[serde(default)]
    pub to_publish: BTreeMap<String, String>,
    /// Volumes and bind mounts.
    pub mounts: Vec<MountInfo>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Environment, `NAME=value`. Holds secrets: never serialised.
    #[serde(skip)]
    pub env: Vec<String>,
    /// Program and arguments. May hold secrets: never serialised.
    #[serde(skip)]
    pub command: Vec<String>,
    /// Directory that the program starts in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Names of all containers of its service, where that has several: this is the one that is
    /// worst off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<String>,
}

impl ContainerInfo {
    /// Which of its service's containers it is, as ` (web-2, the worst of 3 containers)`; nothing
    /// where it is the only one.
    #[must_use]
    pub fn among(&self) -> String {
        match self.replicas.len() {
            0 | 1 => String::new(),
            count => format!(" ({}, the worst of {count} containers)", self.name),
        }
    }

    /// Why nothing is done to its service that would stop, replace or limit a container, where the
    /// service has several: drctl knows only one of them at a time.
    #[must_use]
    pub fn not_alone(&self, service: &str) -> Option<String> {
        (self.replicas.len() > 1).then(|| {
            format!(
                "{service} has {} containers ({}), and drctl does not stop, restart, replace or limit the containers \
                 of such a service",
                self.replicas.len(),
                self.replicas.join(", ")
            )
        })
    }

    /// True when its main process runs and is not between two crashes.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status == Status::Running
    }

    /// True when it was created to have no place of its own in any network: it uses the host's,
    /// none, or another container's, and the engine refuses to connect it.
    #[must_use]
    pub fn has_no_own_network(&self) -> bool {
        ["host", "none"].contains(&self.network_mode.as_str()) || self.network_mode.starts_with("container:")
    }

    /// Processors that it may use; `None` without a limit.
    #[must_use]
    pub fn cpu_limit(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a ratio of small numbers")]
        match (self.nano_cpus, self.cpu_quota) {
            (nano, _) if nano > 0 => Some(nano as f64 / 1e9),
            (_, quota) if quota > 0 => Some(quota as f64 / self.period() as f64),
            _ => None,
        }
    }

    /// Length of a scheduler period in microseconds, the kernel's own where none is set.
    #[must_use]
    pub fn period(&self) -> i64 {
        if self.cpu_period > 0 {
            self.cpu_period
        } else {
            100_000
        }
    }

    /// Value of an environment variable of the container.
    #[must_use]
    pub fn env_var(&self, name: &str) -> Option<&str> {
        self.env
            .iter()
            .find_map(|e| e.strip_prefix(name)?.strip_prefix('='))
    }

    /// First address on any of its networks.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.networks.values().map(String::as_str).find(|a| !a.is_empty())
    }

    /// The mount that holds `path`: the longest destination that is a prefix of it.
    #[must_use]
    pub fn mount_of(&self, path: &str) -> Option<&MountInfo> {
        self.mounts
            .iter()
            .filter(|m| {
                path == m.destination
                    || path
                        .strip_prefix(m.destination.trim_end_matches('/'))
                        .is_some_and(|rest| rest.starts_with('/'))
            })
            .max_by_key(|m| m.destination.len())
    }

    /// The first mount that lies strictly below `directory`, single files included. Nothing
    /// renames such a path, and nothing replaces it by a rename: the kernel answers EBUSY.
    #[must_use]
    pub fn mount_below(&self, directory: &str) -> Option<&MountInfo> {
        let directory = directory.trim_end_matches('/');
        self.mounts.iter().find(|m| {
            m.destination
                .trim_end_matches('/')
                .strip_prefix(directory)
                .is_some_and(|rest| rest.starts_with('/'))
        })
    }
}

/// One log line of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LogLine {
    /// When the engine received it.
    pub at: Option<Timestamp>,
    /// The text, without the line end.
    pub text: String,
}

/// One process of a container, as the engine's host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Seconds since it began.
    pub seconds: u64,
    /// State letters, as `ps` prints them.
    pub state: String,
    /// Command line, or the title that it has given itself.
    pub command: String,
}

/// Output of a small program run by exec.
#[derive(Debug, Clone)]
pub struct ExecOutput {
    /// Exit code; 126 or 127 when the program could not be started.
    pub exit_code: i64,
    /// Standard output, at most 1 MiB of it.
    pub stdout: String,
    /// Standard error, at most 1 MiB of it.
    pub stderr: String,
}
