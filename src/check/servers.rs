//! What is said of PostgreSQL and Redis.

use std::time::Duration;

use super::finding::{Finding, Level, Limit, Measure};
use super::judge::{above, cast, in_seconds, percent};
use super::memory::Memory;
use crate::event::{bytes, seconds};
use crate::probe::overview::{Known, Overview, RedisView};
use crate::probe::vitals::Vitals;
use crate::runbook::Runbook;

/// Transactions left before PostgreSQL refuses to write: it warns at 40 million itself, which is hours on a busy server.
const WRAPAROUND_WARNING: f64 = 500e6;
const WRAPAROUND_CRITICAL: f64 = 100e6;
/// Reads between two runs below which a hit rate says nothing.
const ENOUGH_READS: u64 = 100;
/// Log held back by a slot that nobody reads.
const IDLE_SLOT: u64 = 10 << 30;

/// Every PostgreSQL server.
pub(super) fn postgres(seen: &Overview, runbook: &Runbook, before: &Memory) -> Vec<Finding> {
    seen.postgres
        .iter()
        .map(|(name, known)| {
            let key = format!("postgres/{name}");
            match known {
                Known::Good(v) => one_postgres(key, name, v, runbook, before),
                Known::Failed(why) => Finding::new(key, Level::Critical, why.clone()),
                Known::Unknown(why) => Finding::new(key, Level::Unknown, why.clone()),
                Known::NotConfigured => Finding::new(key, Level::Unknown, "not configured"),
            }
        })
        .collect()
}

fn one_postgres(key: String, name: &str, v: &Vitals, runbook: &Runbook, before: &Memory) -> Finding {
    let limits = &runbook.thresholds;
    let mut level = Level::Ok;
    let mut event = None;
    let mut troubles: Vec<String> = Vec::new();
    let mut measures = Vec::new();
    let mut judge = |measure: Measure, text: String| {
        if measure.level() != Level::Ok {
            level = level.or(measure.level());
            troubles.push(text);
        }
        measures.push(measure);
    };
    let ordinary = f64::from(v.ordinary().max(1));
    let share = |p: f64| ordinary * p / 100.0;
    let (w, c) = above(
        percent(limits.connections).map(share),
        percent(limits.critical.connections).map(share),
    );
    judge(
        Measure::new(format!("connections_{name}"), f64::from(v.used()), "")
            .limits(w, c)
            .max(ordinary),
        format!("{} of {} connections are in use", v.used(), v.ordinary()),
    );
    let (w, c) = above(
        in_seconds(limits.transaction_age),
        in_seconds(limits.critical.transaction_age),
    );
    let oldest = v.oldest_transaction.unwrap_or_default();
    judge(
        Measure::new(format!("transaction_age_{name}"), cast(oldest), "s").limits(w, c),
        format!(
            "a transaction is open for {}",
            seconds(Duration::from_secs(oldest))
        ),
    );
    judge(
        Measure::new(format!("transactions_left_{name}"), cast(v.transactions_left), "").limits(
            Some(Limit::Below(WRAPAROUND_WARNING)),
            Some(Limit::Below(WRAPAROUND_CRITICAL)),
        ),
        format!(
            "{} million transactions are left before it refuses to write: is vacuum held up?",
            v.transactions_left / 1_000_000
        ),
    );
    if let Some(failures) = v.checksum_failures {
        // New ones are critical. Old ones stay counted until somebody resets the statistics: a reminder, no alarm.
        let known = before
            .checksums
            .get(name)
            .copied()
            .filter(|k| *k <= failures)
            .unwrap_or_default();
        // The next run knows them.
        event = (failures > known).then_some(Level::Critical);
        judge(
            Measure::new(format!("checksum_failures_{name}"), cast(failures), "c")
                .limits(Some(Limit::Above(0.0)), Some(Limit::Above(cast(known)))),
            format!(
                "{failures} pages have failed their checksum, {} of them since the last run: drctl diagnose db-corruption",
                failures - known
            ),
        );
    }
    if let Some(size) = v.size {
        judge(
            Measure::new(format!("size_{name}"), cast(size), "B"),
            String::new(),
        );
    }
    for receiver in &v.receivers {
        judge(
            Measure::new(format!("behind_{}", receiver.name), cast(receiver.behind), "B"),
            String::new(),
        );
    }
    for (slot, held) in &v.idle_slots {
        judge(
            Measure::new(format!("held_back_{slot}"), cast(*held), "B")
                .limits(Some(Limit::Above(cast(IDLE_SLOT))), None),
            format!("slot {slot} has no reader and holds back {} of log", bytes(*held)),
        );
    }
    let text = if troubles.is_empty() {
        format!("{} of {} connections", v.used(), v.ordinary())
    } else {
        troubles.join("; ")
    };
    Finding {
        measures,
        event,
        ..Finding::new(key, level, text)
    }
}

/// Every Redis server.
pub(super) fn redis(seen: &Overview, runbook: &Runbook, before: &Memory) -> Vec<Finding> {
    seen.redis
        .iter()
        .map(|(name, known)| {
            let key = format!("redis/{name}");
            match known {
                Known::Good(view) => one_redis(key, name, view, runbook, before),
                Known::Failed(why) => Finding::new(key, Level::Critical, why.clone()),
                Known::Unknown(why) => Finding::new(key, Level::Unknown, why.clone()),
                Known::NotConfigured => Finding::new(key, Level::Unknown, "not configured"),
            }
        })
        .collect()
}

fn one_redis(key: String, name: &str, view: &RedisView, runbook: &Runbook, before: &Memory) -> Finding {
    let info = &view.info;
    let limits = &runbook.thresholds;
    let mut level = Level::Ok;
    let mut troubles: Vec<String> = Vec::new();
    let mut measures = Vec::new();
    let mut say = |of: Level, text: String| {
        level = level.or(of);
        troubles.push(text);
    };
    if let Some(loading) = &info.persistence.loading {
        say(
            Level::Critical,
            format!(
                "it loads its data: {:.0} %, {} s left",
                loading.percent, loading.eta
            ),
        );
    }
    if !info.persistence.last_save_ok || !info.persistence.aof_write_ok {
        say(
            Level::Critical,
            "it cannot save, and refuses writes: is its disk full or not writable?".to_owned(),
        );
    }
    if info.replication.link_up == Some(false) {
        say(Level::Critical, "it has lost its primary".to_owned());
    }
    let mut memory = Measure::new(format!("memory_used_{name}"), cast(info.memory.used), "B");
    if let Some(share) = info.memory.percent() {
        let of_max = |p: f64| cast(info.memory.max) * p / 100.0;
        let (w, c) = above(
            percent(limits.memory).map(of_max),
            percent(limits.critical.memory).map(of_max),
        );
        memory = memory.limits(w, c).max(cast(info.memory.max));
        if info.memory.is_full() && info.memory.policy == "noeviction" {
            say(
                Level::Critical,
                "its memory is full and it refuses writes".to_owned(),
            );
        } else if memory.level() != Level::Ok {
            say(memory.level(), format!("{share:.0} % of its memory is used"));
        }
    }
    measures.push(memory);

    let earlier = before.redis.get(name).filter(|b| b.run_id == info.run_id);
    let evicted = info
        .stats
        .evicted_keys
        .saturating_sub(earlier.map_or(0, |e| e.evicted));
    measures.push(Measure::new(
        format!("evicted_{name}"),
        cast(info.stats.evicted_keys),
        "c",
    ));
    // Since the last run where there were enough reads, else since the start: a cold start must not look bad for ever.
    let hits = info.stats.hits.saturating_sub(earlier.map_or(0, |e| e.hits));
    let reads = hits + info.stats.misses.saturating_sub(earlier.map_or(0, |e| e.misses));
    if reads >= ENOUGH_READS {
        let below = |p| percent(p).map(Limit::Below);
        let rate = Measure::new(format!("hit_rate_{name}"), cast(hits) * 100.0 / cast(reads), "%")
            .limits(
                below(limits.cache_hit_rate),
                below(limits.critical.cache_hit_rate),
            )
            .max(100.0);
        if rate.level() != Level::Ok {
            let removed = if evicted > 0 {
                format!(", {evicted} keys evicted")
            } else {
                String::new()
            };
            say(
                rate.level(),
                format!("{:.0} % of {reads} reads found their key{removed}", rate.value),
            );
        }
        measures.push(rate);
    }
    if let Some(sessions) = view.sessions {
        let (w, c) = above(limits.sessions.map(cast), limits.critical.sessions.map(cast));
        let measure = Measure::new(format!("sessions_{name}"), cast(sessions), "").limits(w, c);
        if measure.level() != Level::Ok {
            say(measure.level(), format!("{sessions} user sessions"));
        }
        measures.push(measure);
    }
    let text = if troubles.is_empty() {
        let of = info
            .memory
            .percent()
            .map(|p| format!(", {p:.0} % of its limit"))
            .unwrap_or_default();
        format!("{} of memory{of}", bytes(info.memory.used))
    } else {
        troubles.join("; ")
    };
    Finding {
        measures,
        ..Finding::new(key, level, text)
    }
}
