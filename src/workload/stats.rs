//! The engine's counters of what a container uses.

use std::time::Duration;

use bollard::models::ContainerStatsResponse;
use bollard::query_parameters as q;
use futures_util::StreamExt;

use super::WorkloadError;
use super::docker::Docker;

/// One reading. Two of them, a moment apart, tell what was used meanwhile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Nanoseconds of processor time that the container has used.
    pub cpu: u64,
    /// Nanoseconds of processor time that the whole machine has had, of all processors.
    pub machine: u64,
    /// Processors of the machine.
    pub cpus: u64,
    /// Scheduler periods in which the container worked under a limit.
    pub periods: u64,
    /// Of those, the ones in which the limit stopped it.
    pub throttled: u64,
    /// Bytes of memory, without what the kernel would give back at once.
    pub memory: u64,
}

impl Docker {
    /// The same from the kernel, at once; `None` where the engine is elsewhere or its control groups are not found.
    #[must_use]
    pub fn counters_here(&self, id: &str) -> Option<Counters> {
        self.is_local().then(|| super::cgroup::read(id)).flatten()
    }

    /// Reads a container's counters once.
    ///
    /// # Errors
    /// The engine's trouble; a container that does not run has none.
    pub async fn counters(&self, container: &str) -> Result<Counters, WorkloadError> {
        let what = format!("the counters of container {container}");
        let options = q::StatsOptionsBuilder::default()
            .stream(false)
            .one_shot(true)
            .build();
        let mut stream = Box::pin(self.api.stats(container, Some(options)));
        // Engines that collect them once a second answer only then.
        let first = self
            .call(&what, self.deadline.max(Duration::from_secs(3)), async {
                stream.next().await.transpose()
            })
            .await?;
        first
            .map(|raw| counters(&raw))
            .ok_or_else(|| WorkloadError::Transport {
                what,
                cause: "the engine gave none".into(),
            })
    }
}

fn counters(raw: &ContainerStatsResponse) -> Counters {
    let cpu = raw.cpu_stats.clone().unwrap_or_default();
    let memory = raw.memory_stats.clone().unwrap_or_default();
    let throttling = cpu.throttling_data.unwrap_or_default();
    // The names of control groups of version 1 and 2.
    let reclaimable = memory
        .stats
        .as_ref()
        .and_then(|s| s.get("total_inactive_file").or_else(|| s.get("inactive_file")))
        .copied()
        .unwrap_or_default();
    Counters {
        cpu: cpu.cpu_usage.and_then(|u| u.total_usage).unwrap_or_default(),
        machine: cpu.system_cpu_usage.unwrap_or_default(),
        cpus: u64::from(cpu.online_cpus.unwrap_or(1)),
        periods: throttling.periods.unwrap_or_default(),
        throttled: throttling.throttled_periods.unwrap_or_default(),
        memory: memory.usage.unwrap_or_default().saturating_sub(reclaimable),
    }
}
