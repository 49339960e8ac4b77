//! More memory for a container, with its way back. Pure.

use crate::plan::{Action, ContainerAction, Limits, Risk, Step, Undo};
use crate::workload::ContainerInfo;

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The engine's own way to say what swap was, when nothing was said: as much again as memory.
fn old_swap(info: &ContainerInfo) -> i64 {
    match info.memory_swap {
        0 => signed(info.memory_limit.saturating_mul(2)),
        other => other,
    }
}

/// The limits that `new` bytes of memory make, and those that are there; each in words.
pub(super) fn memory(info: &ContainerInfo, new: u64) -> ((Limits, String), (Limits, String)) {
    let swap = match info.memory_swap {
        -1 => -1,
        // Without swap before, without it now.
        s if s == signed(info.memory_limit) => signed(new),
        _ => old_swap(info) - signed(info.memory_limit) + signed(new),
    };
    let limits = |memory: u64, swap: i64| {
        let limits = Limits {
            memory: Some(signed(memory)),
            memory_swap: Some(swap),
            ..Limits::default()
        };
        (limits, format!("{} MiB of memory", memory >> 20))
    };
    (limits(new, swap), limits(info.memory_limit, old_swap(info)))
}

/// Sets limits of a service's container, live.
pub(super) fn set(service: &str, limits: Limits, words: &str) -> Action {
    Action::Container(ContainerAction::SetLimits {
        service: service.to_owned(),
        limits,
        words: words.to_owned(),
    })
}

/// Ends for want of memory after which one more start as it is is not tried first.
pub(super) const OFTEN: i64 = 2;

/// What stands in the way of doubling a container's memory, when the engine's machine has so much
/// left.
pub(super) fn obstacle(info: &ContainerInfo, available: Option<u64>) -> Option<String> {
    match (info.memory_limit, available) {
        (0, _) => Some("it has no memory limit: the machine itself ran out".into()),
        (_, None) => Some("how much memory the engine's machine has left is not known".into()),
        (limit, Some(left)) if left < limit => Some(format!(
            "the machine has {} of memory left",
            crate::event::bytes(left)
        )),
        _ => None,
    }
}

/// The step that gives a service `new` bytes of memory.
pub(super) fn raise_memory(service: &str, info: &ContainerInfo, new: u64, why: String) -> Step {
    let ((new, words), (old, was)) = memory(info, new);
    Step {
        title: format!("Give {service} {words} instead of {was}"),
        why,
        risk: Risk::Reversible,
        action: set(service, new, &words),
        undo: Undo::Action(set(service, old, &was)),
        timeout_seconds: 60,
    }
}
