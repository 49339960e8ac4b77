//! The proof that a service has room again, and that its users get their answers in time.

use std::time::Duration;

use super::actions::Checked;
use super::settle::{all_settled, settled};
use super::verify::answer;
use crate::event::Verdict;
use crate::probe::{endpoints, usage};
use crate::system::System;

/// Time between two readings of the counters.
const BETWEEN: Duration = Duration::from_millis(300);

/// Whether a service's container is below its limits, while its endpoints are asked.
pub(super) async fn has_room(system: &System, service: &str, percent: f64, what: String) -> Checked {
    settled(what, || async {
        match look(system, service).await {
            Err(e) => (Verdict::CouldNotVerify, e),
            Ok(u) => {
                let memory = u.memory_percent();
                let full = memory.is_some_and(|p| p >= percent);
                let mut words = format!("it keeps {:.2} processors busy", u.cpus);
                if let Some(limit) = u.cpu_limit {
                    words += &format!(
                        " of {limit:.2}, stopped in {} of {} periods",
                        u.throttled, u.periods
                    );
                }
                if let Some(p) = memory {
                    words += &format!(", and {p:.0} % of its memory");
                }
                if full || u.is_held_back() {
                    (Verdict::Fail, words)
                } else {
                    (Verdict::Pass, words)
                }
            }
        }
    })
    .await
}

async fn look(system: &System, service: &str) -> Result<usage::Usage, String> {
    let info = system.container(service).await.map_err(|e| e.to_string())?;
    let before = system
        .docker
        .counters(&info.id)
        .await
        .map_err(|e| e.to_string())?;
    // Its limit shows only while it works.
    endpoints::look(&system.runbook).await;
    tokio::time::sleep(BETWEEN).await;
    let after = system
        .docker
        .counters(&info.id)
        .await
        .map_err(|e| e.to_string())?;
    Ok(usage::between(&before, &after, &info))
}

/// Whether every endpoint answers within the limit at the 95th percentile.
pub(super) async fn responsive(system: &System, millis: u64, what: &str) -> Vec<Checked> {
    all_settled(|| async {
        let answers = endpoints::look(&system.runbook).await;
        if answers.is_empty() {
            return vec![answer(
                what,
                Verdict::NotConfigured,
                "the runbook names no endpoint",
            )];
        }
        let slow = |p95: Option<u64>| p95.is_none_or(|p| p > millis);
        answers
            .iter()
            .map(|(name, a)| {
                let p95 = a.p95();
                let found = p95.map_or_else(
                    || format!("{} of its answers failed", a.failures.len()),
                    |p| format!("{p} ms at the 95th percentile"),
                );
                let verdict = if slow(p95) { Verdict::Fail } else { Verdict::Pass };
                answer(
                    format!("endpoint {name} answers within {millis} ms"),
                    verdict,
                    found,
                )
            })
            .collect()
    })
    .await
}
