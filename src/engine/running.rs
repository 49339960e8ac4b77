//! The proof that containers run and stay up.

use super::actions::Checked;
use super::settle::{RETRY, SETTLE, until};
use super::verify::answer;
use crate::event::Verdict;
use crate::probe::containers::{ContainerState, one};
use crate::system::System;

/// Whether a service's container runs, is not frozen, and has not restarted between two
/// looks. A health check that has not answered yet is waited for.
pub(super) async fn service_runs(system: &System, service: &str) -> Checked {
    let what = format!("{service} runs and stays up");
    let (mut last_start, mut is_well) = (None, false);
    let is_settled = |state: &ContainerState| {
        is_well = state.found().is_some_and(|facts| {
            // The same start seen twice: it is not between two crashes.
            let start = facts.info.started_at;
            let stayed = last_start.replace(start) == Some(start);
            facts.is_well() && facts.info.health.as_deref() != Some("starting") && stayed
        });
        is_well
    };
    let state = until(SETTLE, RETRY, is_settled, || one(system, service)).await;
    match state {
        ContainerState::Missing => answer(what, Verdict::Fail, format!("{service} has no container")),
        ContainerState::Unknown(cause) => answer(what, Verdict::CouldNotVerify, cause),
        ContainerState::Found(facts) => {
            let info = &facts.info;
            let health = info.health.as_deref().unwrap_or("no health check");
            if is_well {
                return answer(what, Verdict::Pass, format!("running ({health})"));
            }
            let frozen = if facts.is_stopped_by_signal() {
                ", its main process is stopped by a signal"
            } else {
                ""
            };
            let found = format!("{:?} ({health}){frozen}", info.status).to_lowercase();
            answer(what, Verdict::Fail, found)
        }
    }
}
