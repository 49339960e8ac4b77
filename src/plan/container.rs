//! Effects on containers that go beyond stopping and starting them.

use serde::{Deserialize, Serialize};

/// What stands in the names of containers that drctl has set aside or made beside a service's
/// own. They are never taken for the service.
pub const SET_ASIDE: &str = "_drctl_";

/// Limits of a container. What is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<i64>,
    /// Bytes of memory and swap together; -1 for no limit.
    pub memory_swap: Option<i64>,
    /// Processors, in billionths (`--cpus`).
    pub nano_cpus: Option<i64>,
    /// Microseconds of processor time per period; -1 for no limit.
    pub cpu_quota: Option<i64>,
}

/// Containers as objects: made anew, doubled, given other limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerAction {
    /// Creates a service's container anew, like the old one, from the image that ran last. The
    /// old one is stopped and keeps existing under another name, and its image gets a name that
    /// keeps it. Again: what exists under the run's names is gone on with; a container that was
    /// created and not yet brought into service is made again.
    #[serde(rename_all = "kebab-case")]
    Recreate {
        /// Service.
        service: String,
        /// Its container's name.
        container: String,
        /// Run.
        run: String,
    },
    /// Removes the new container and gives the old one its name and, where it ran, its work
    /// back. Again: nothing is left to put back.
    #[serde(rename_all = "kebab-case")]
    PutBack {
        /// Service.
        service: String,
        /// Its container's name.
        container: String,
        /// Run.
        run: String,
        /// Whether the old one is started.
        running: bool,
        /// What the engine does when the old one ends, as it was: `always`, `on-failure:5`.
        restart_policy: String,
    },
    /// Removes the old container that a `Recreate` has kept. Its volumes stay. Again: gone is
    /// gone.
    #[serde(rename_all = "kebab-case")]
    LetGo {
        /// Service.
        service: String,
        /// The service's container's name.
        container: String,
        /// Run.
        run: String,
    },
    /// Starts a second instance of a service, under the same network names. Again: it runs.
    #[serde(rename_all = "kebab-case")]
    Double {
        /// Service.
        service: String,
        /// Its container's name.
        container: String,
        /// Run.
        run: String,
    },
    /// Stops and removes the second instance. Again: gone is gone.
    #[serde(rename_all = "kebab-case")]
    Undouble {
        /// Service.
        service: String,
        /// The first instance's name.
        container: String,
        /// Run.
        run: String,
    },
    /// Sets limits of a container, live. Again: says the same.
    #[serde(rename_all = "kebab-case")]
    SetLimits {
        /// Service.
        service: String,
        /// What is set.
        limits: Limits,
        /// The same in words, as `512 MiB of memory`.
        words: String,
    },
}

impl ContainerAction {
    /// What it does, in words.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::Recreate { container, .. } => format!("create container {container} anew"),
            Self::PutBack { container, .. } => {
                format!("remove the new container and put the old {container} back")
            }
            Self::LetGo { container, run, .. } => {
                format!("remove the old container {}", kept_name(container, run))
            }
            Self::Double { service, .. } => format!("start a second instance of {service}"),
            Self::Undouble { service, .. } => format!("remove the second instance of {service}"),
            Self::SetLimits { service, words, .. } => format!("give {service} {words}"),
        }
    }
}

/// The name under which a replaced container is kept.
#[must_use]
pub fn kept_name(container: &str, run: &str) -> String {
    format!("{container}{SET_ASIDE}{run}")
}
