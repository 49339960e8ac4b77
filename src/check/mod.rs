//! Is everything well? Limits over one look at a deployment, with what earlier runs have left. Deciding is pure: an
//! [`Overview`], a runbook and a [`Memory`] go in, findings come out; telling somebody is [`crate::notify`]'s.

pub mod alerts;
pub mod backup_run;
pub mod finding;
mod judge;
pub mod memory;
pub mod message;
pub mod metrics;
mod servers;
pub mod trend;
pub mod windows;

pub use finding::{Finding, Level, Limit, Measure, subject};
pub(crate) use judge::days;
pub use judge::{judge, overall};
pub use memory::{Memory, Message};

use jiff::Timestamp;

use crate::probe::overview::{Known, Overview};

/// Takes what a run has seen into the memory. Called before [`judge()`], which finds the values of the run before where
/// it compares: those are given to it as they were.
pub fn remember(memory: &mut Memory, seen: &Overview, now: Timestamp) {
    memory.at = now;
    for disk in &seen.file_systems.found {
        let history = memory.disks.entry(disk.name.clone()).or_default();
        trend::record(history, now, disk.used(), disk.size);
    }
    // What is not mounted any more has no future.
    let oldest = now.as_second() - 8 * 86_400;
    memory
        .disks
        .retain(|_, h| h.last().is_some_and(|s| s.at > oldest));
    for (name, answers) in &seen.endpoints {
        memory.record_requests(name, answers);
    }
    memory
        .requests
        .retain(|name, _| seen.endpoints.contains_key(name));
    for (name, known) in &seen.redis {
        if let Known::Good(view) = known {
            memory.redis.insert(
                name.clone(),
                memory::RedisCounters {
                    run_id: view.info.run_id.clone(),
                    hits: view.info.stats.hits,
                    misses: view.info.stats.misses,
                    evicted: view.info.stats.evicted_keys,
                },
            );
        }
    }
    for (name, state) in &seen.containers {
        if let Some(facts) = state.found() {
            let restarts = (facts.info.id.clone(), facts.info.restart_count);
            memory.restarts.insert(name.clone(), restarts);
        }
    }
    for (name, known) in &seen.postgres {
        if let Some(failures) = known.good().and_then(|v| v.checksum_failures) {
            memory.checksums.insert(name.clone(), failures);
        }
    }
}
