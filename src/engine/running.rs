//! The proof that containers run and stay up.

use tokio::time::Instant;

use super::actions::Checked;
use super::endpoints::{RETRY, SETTLE};
use super::verify::answer;
use crate::event::Verdict;
use crate::probe::containers::{ContainerState, one};
use crate::system::System;

/// Whether a service's container runs, is not frozen, and has not restarted between two
/// looks. A health check that has not answered yet is waited for.
pub(super) async fn service_runs(system: &System, service: &str) -> Checked {
    let what = format!("{service} runs and stays up");
    let began = Instant::now();
    let mut last_start = None;
    loop {
        let (verdict, found) = match one(system, service).await {
            ContainerState::Missing => (Verdict::Fail, format!("{service} has no container")),
            ContainerState::Unknown(cause) => (Verdict::CouldNotVerify, cause),
            ContainerState::Found(facts) => {
                let info = &facts.info;
                let health = info.health.as_deref().unwrap_or("no health check");
                // The same start seen twice: it is not between two crashes.
                let stayed = last_start.replace(info.started_at) == Some(info.started_at);
                if facts.is_well() && health != "starting" && stayed {
                    return answer(what, Verdict::Pass, format!("running ({health})"));
                }
                let frozen = if facts.is_stopped_by_signal() {
                    ", its main process is stopped by a signal"
                } else {
                    ""
                };
                (
                    Verdict::Fail,
                    format!("{:?} ({health}){frozen}", info.status).to_lowercase(),
                )
            }
        };
        if began.elapsed() > SETTLE {
            return answer(what, verdict, found);
        }
        tokio::time::sleep(RETRY).await;
    }
}
