//! The run as a text file for Prometheus's node exporter (exposition format 0.0.4): base units, names that begin with
//! `drctl_`, one HELP and one TYPE line each.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::finding::{Finding, Level};
use super::judge::cast;
use super::memory::Memory;
use super::trend;
use crate::probe::containers::ContainerState;
use crate::probe::overview::{Known, Overview};
use crate::runbook::Runbook;

/// A file under construction: samples are brought together by name, as the format wants them.
#[derive(Default)]
struct Page {
    families: BTreeMap<&'static str, (&'static str, &'static str, Vec<String>)>,
    deployment: String,
}

impl Page {
    fn add(
        &mut self,
        name: &'static str,
        kind: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        let mut text = format!("{name}{{deployment=\"{}\"", escape(&self.deployment));
        for (label, of) in labels {
            let _ = write!(text, ",{label}=\"{}\"", escape(of));
        }
        let _ = write!(text, "}} {value}");
        self.families
            .entry(name)
            .or_insert_with(|| (kind, help, Vec::new()))
            .2
            .push(text);
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: f64) {
        self.add(name, "gauge", help, labels, value);
    }

    fn counter(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: f64) {
        self.add(name, "counter", help, labels, value);
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for (name, (kind, help, samples)) in &self.families {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for sample in samples {
                let _ = writeln!(out, "{sample}");
            }
        }
        out
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn yes(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

/// The whole file.
#[must_use]
pub fn text(
    seen: &Overview,
    runbook: &Runbook,
    findings: &[Finding],
    overall: Level,
    memory: &Memory,
) -> String {
    let mut page = Page {
        deployment: seen.deployment.clone(),
        ..Page::default()
    };
    let code = |level: Level| f64::from(level.code());
    page.gauge(
        "drctl_check_status",
        "State of the deployment: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.",
        &[],
        code(overall),
    );
    page.gauge(
        "drctl_check_timestamp_seconds",
        "When the check ran, in seconds since 1970.",
        &[],
        cast(u64::try_from(seen.taken_at.as_second()).unwrap_or_default()),
    );
    page.gauge(
        "drctl_check_duration_seconds",
        "How long the look at the deployment took.",
        &[],
        seen.seconds,
    );
    for f in findings {
        page.gauge(
            "drctl_finding_status",
            "State of one thing: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.",
            &[("subject", &f.key)],
            code(f.level),
        );
    }
    let pending: usize = memory.pending.values().map(Vec::len).sum();
    page.gauge(
        "drctl_messages_pending",
        "Messages that could not be delivered yet.",
        &[],
        cast(u64::try_from(pending).unwrap_or_default()),
    );
    services(&mut page, seen);
    servers(&mut page, seen);
    for disk in &seen.file_systems.found {
        let of = [("name", disk.name.as_str())];
        page.gauge(
            "drctl_filesystem_size_bytes",
            "Size that ordinary programs can use.",
            &of,
            cast(disk.size),
        );
        page.gauge(
            "drctl_filesystem_free_bytes",
            "What ordinary programs may still write.",
            &of,
            cast(disk.free),
        );
        if let Some(left) = memory.disks.get(&disk.name).and_then(|h| trend::time_to_full(h)) {
            page.gauge(
                "drctl_filesystem_full_in_seconds",
                "Time until it is full, if it goes on as in the last days.",
                &of,
                left.as_secs_f64(),
            );
        }
    }
    for (name, now) in &seen.endpoints {
        let of = [("endpoint", name.as_str())];
        page.gauge(
            "drctl_endpoint_up",
            "Whether it gives good answers.",
            &of,
            yes(!now.is_down() && !now.millis.is_empty()),
        );
        let recent = memory.recent(name);
        if let Some(p95) = recent.p95() {
            page.gauge(
                "drctl_endpoint_response_p95_seconds",
                "95th percentile of the last requests.",
                &of,
                cast(p95) / 1000.0,
            );
        }
        let failed = u64::try_from(recent.failures.len()).unwrap_or_default();
        let all = failed + u64::try_from(recent.millis.len()).unwrap_or_default();
        page.gauge(
            "drctl_endpoint_error_ratio",
            "Share of the last requests that failed, 0 to 1.",
            &of,
            cast(failed) / cast(all.max(1)),
        );
    }
    page.gauge(
        "drctl_backup_objective_seconds",
        "How old the last good backup may be.",
        &[],
        runbook.objectives.rpo.as_secs_f64(),
    );
    if let Known::Good(view) = &seen.backup {
        page.gauge(
            "drctl_backup_timestamp_seconds",
            "The moment whose data the last good backup holds, in seconds since 1970.",
            &[],
            cast(u64::try_from(view.taken_at.as_second()).unwrap_or_default()),
        );
        page.gauge(
            "drctl_backup_size_bytes",
            "Size of the last good backup.",
            &[],
            cast(view.bytes),
        );
    }
    page.text()
}

fn services(page: &mut Page, seen: &Overview) {
    page.gauge(
        "drctl_engine_up",
        "Whether the container engine answers.",
        &[],
        yes(seen.engine.good().is_some()),
    );
    for (name, state) in &seen.containers {
        let of = [("service", name.as_str())];
        let well = state
            .found()
            .is_some_and(super::super::probe::containers::ContainerFacts::is_well);
        if !matches!(state, ContainerState::Unknown(_)) {
            page.gauge(
                "drctl_service_up",
                "Whether it runs, is not frozen, and its health check does not fail.",
                &of,
                yes(well),
            );
        }
        if let Some(facts) = state.found() {
            let restarts = u64::try_from(facts.info.restart_count).unwrap_or_default();
            page.counter(
                "drctl_service_restarts_total",
                "Restarts by the engine since the container was started by hand.",
                &of,
                cast(restarts),
            );
        }
        if let Some(usage) = seen.usage.get(name) {
            page.gauge(
                "drctl_service_memory_bytes",
                "Memory in use, without what the kernel would give back at once.",
                &of,
                cast(usage.memory),
            );
            if let Some(limit) = usage.memory_limit {
                page.gauge(
                    "drctl_service_memory_limit_bytes",
                    "Memory that it may use.",
                    &of,
                    cast(limit),
                );
            }
        }
    }
}

fn servers(page: &mut Page, seen: &Overview) {
    for (name, known) in &seen.postgres {
        let of = [("service", name.as_str())];
        match known {
            Known::Good(_) => page.gauge(
                "drctl_postgres_up",
                "Whether it lets somebody in and answers.",
                &of,
                1.0,
            ),
            Known::Failed(_) => page.gauge(
                "drctl_postgres_up",
                "Whether it lets somebody in and answers.",
                &of,
                0.0,
            ),
            Known::Unknown(_) | Known::NotConfigured => {}
        }
        let Known::Good(v) = known else { continue };
        page.gauge(
            "drctl_postgres_connections",
            "Sessions of clients.",
            &of,
            f64::from(v.used()),
        );
        page.gauge(
            "drctl_postgres_connections_limit",
            "Sessions that ordinary roles can have.",
            &of,
            f64::from(v.ordinary()),
        );
        page.gauge(
            "drctl_postgres_oldest_transaction_seconds",
            "Age of the oldest open transaction.",
            &of,
            cast(v.oldest_transaction.unwrap_or_default()),
        );
        page.gauge(
            "drctl_postgres_transactions_left",
            "Transactions until it refuses to write to prevent a wraparound.",
            &of,
            cast(v.transactions_left),
        );
        if let Some(failures) = v.checksum_failures {
            page.counter(
                "drctl_postgres_checksum_failures_total",
                "Pages that have failed their checksum.",
                &of,
                cast(failures),
            );
        }
        if let Some(size) = v.size {
            page.gauge(
                "drctl_postgres_size_bytes",
                "Size of all databases.",
                &of,
                cast(size),
            );
        }
        for receiver in &v.receivers {
            page.gauge(
                "drctl_postgres_receiver_behind_bytes",
                "Log that a receiver has not replayed.",
                &[("service", name), ("receiver", &receiver.name)],
                cast(receiver.behind),
            );
        }
    }
    for (name, known) in &seen.redis {
        let of = [("service", name.as_str())];
        match known {
            Known::Good(_) => page.gauge(
                "drctl_redis_up",
                "Whether it lets somebody in and answers.",
                &of,
                1.0,
            ),
            Known::Failed(_) => page.gauge(
                "drctl_redis_up",
                "Whether it lets somebody in and answers.",
                &of,
                0.0,
            ),
            Known::Unknown(_) | Known::NotConfigured => {}
        }
        let Known::Good(view) = known else { continue };
        let info = &view.info;
        page.gauge(
            "drctl_redis_memory_bytes",
            "Memory in use.",
            &of,
            cast(info.memory.used),
        );
        if info.memory.max > 0 {
            page.gauge(
                "drctl_redis_memory_limit_bytes",
                "Memory that it may use.",
                &of,
                cast(info.memory.max),
            );
        }
        page.counter(
            "drctl_redis_evicted_keys_total",
            "Keys removed for want of memory.",
            &of,
            cast(info.stats.evicted_keys),
        );
        page.counter(
            "drctl_redis_hits_total",
            "Reads that found their key.",
            &of,
            cast(info.stats.hits),
        );
        page.counter(
            "drctl_redis_misses_total",
            "Reads that did not.",
            &of,
            cast(info.stats.misses),
        );
        page.gauge(
            "drctl_redis_saves_ok",
            "Whether it can write its data to disk.",
            &of,
            yes(info.persistence.last_save_ok && info.persistence.aof_write_ok),
        );
        if let Some(sessions) = view.sessions {
            page.gauge("drctl_redis_user_sessions", "User sessions.", &of, cast(sessions));
        }
    }
}
