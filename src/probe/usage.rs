//! What containers use of processors and memory, between two readings of the engine's counters.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::containers::ContainerState;
use crate::system::System;
use crate::workload::{ContainerInfo, Counters};

/// A share of throttled periods from which on a container is held back by its limit.
const HELD_BACK: f64 = 0.3;
/// A share from which on it could hardly do less with more.
const EXHAUSTED: f64 = 0.8;
/// Periods in which it worked, below which a share says nothing.
const ENOUGH_PERIODS: u64 = 3;

/// What one container uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Usage {
    /// Processors it kept busy.
    pub cpus: f64,
    /// Processors it may use; `None` without a limit.
    pub cpu_limit: Option<f64>,
    /// Scheduler periods in which it worked.
    pub periods: u64,
    /// Of those, the ones in which its limit stopped it.
    pub throttled: u64,
    /// Bytes of memory, without what the kernel would give back at once.
    pub memory: u64,
    /// Bytes of memory it may use; `None` without a limit.
    pub memory_limit: Option<u64>,
}

impl Usage {
    fn share(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share of a few periods")]
        let share = self.throttled as f64 / self.periods.max(1) as f64;
        if self.cpu_limit.is_some() && self.periods >= ENOUGH_PERIODS {
            share
        } else {
            0.0
        }
    }

    /// Its processor limit stops it in a good part of the time in which it works.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.share() >= HELD_BACK
    }

    /// It uses up what it may, nearly all the time.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.share() >= EXHAUSTED
    }

    /// Percent of its memory limit that it uses; `None` without a limit.
    #[must_use]
    pub fn memory_percent(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "shown as a whole percent")]
        self.memory_limit
            .map(|limit| self.memory as f64 * 100.0 / limit.max(1) as f64)
    }
}

/// What was used between two readings.
#[must_use]
pub fn between(before: &Counters, after: &Counters, info: &ContainerInfo) -> Usage {
    #[expect(clippy::cast_precision_loss, reason = "a ratio of counters")]
    let cpus = after.cpu.saturating_sub(before.cpu) as f64 * after.cpus as f64
        / after.machine.saturating_sub(before.machine).max(1) as f64;
    Usage {
        cpus,
        cpu_limit: info.cpu_limit(),
        periods: after.periods.saturating_sub(before.periods),
        throttled: after.throttled.saturating_sub(before.throttled),
        memory: after.memory,
        memory_limit: (info.memory_limit > 0).then_some(info.memory_limit),
    }
}

/// Reads the counters of all containers that run, by service. One that cannot be read is left
/// out.
pub async fn read_all(
    system: &System,
    containers: &BTreeMap<String, ContainerState>,
) -> BTreeMap<String, Counters> {
    let running = containers.iter().filter_map(|(name, state)| {
        let info = &state.found()?.info;
        info.is_running().then_some((name, &info.id))
    });
    join_all(
        running.map(|(name, id)| async move { Some((name.clone(), system.docker.counters(id).await.ok()?)) }),
    )
    .await
    .into_iter()
    .flatten()
    .collect()
}
