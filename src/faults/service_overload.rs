//! Services with too little, and some that only look so.

use super::harm::{Harm, Prepared, victim};
use super::mend::Mend;
use super::{Fault, Request};
use crate::error::Result;
use crate::plan::Limits;
use crate::runbook::ServiceKind;
use crate::system::System;
use crate::workload::ContainerInfo;

/// Every fault of this family.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "service-overload/cpu-limit",
        summary: "an application has a little work, and may use a hundredth of a processor",
        leaves: "a tiny CpuQuota, most periods throttled, slow answers, health checks that time out",
        live: false,
    },
    Fault {
        name: "service-overload/memory-limit",
        summary: "an application's memory limit is just above what it uses",
        leaves: "a process that holds memory inside the container, usage at 95 % of the limit",
        live: false,
    },
    Fault {
        name: "service-overload/slow-database",
        summary: "look-alike: the database is busy with slow statements",
        leaves: "statements that run for seconds in pg_stat_activity, no service at its limits",
        live: true,
    },
    Fault {
        name: "service-overload/busy-but-fine",
        summary: "look-alike: an application keeps a processor busy, and answers quickly",
        leaves: "high processor use without a limit",
        live: false,
    },
];

/// Longest that an application is kept busy for nothing, in seconds.
const BUSY: u64 = 120;

/// What puts a container's limits back. The engine can lower and raise a memory limit of a
/// running container, and cannot take it away: then it becomes the memory of the engine's host.
async fn old_limits(system: &System, info: &ContainerInfo) -> Result<Limits> {
    let whole = if info.memory_limit > 0 {
        0
    } else {
        system.docker.host_memory().await?
    };
    Ok(limits_as(info, whole))
}

fn limits_as(info: &ContainerInfo, whole: u64) -> Limits {
    let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let memory = if info.memory_limit > 0 {
        info.memory_limit
    } else {
        whole
    };
    Limits {
        memory: Some(bytes(memory)),
        memory_swap: Some(match info.memory_swap {
            0 => bytes(memory.saturating_mul(2)),
            other => other.max(-1),
        }),
        ..Limits::default()
    }
}

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// No such service, or one that does not run.
pub async fn prepare(
    system: &System,
    variant: &str,
    service: Option<&str>,
    request: &Request,
    id: &str,
) -> Result<Option<Prepared>> {
    let database = variant == "slow-database";
    let (service, info) = victim(system, service, |s| {
        if database {
            matches!(s.kind, ServiceKind::Postgres(_))
        } else {
            matches!(s.kind, ServiceKind::App)
        }
    })
    .await?;
    let container = info.name.clone();
    let seconds = request.ttl.as_secs();
    let (harms, mends) = match variant {
        "cpu-limit" => {
            // With `--cpus` set at create the engine takes nothing else.
            let (tiny, old) = if info.nano_cpus > 0 {
                let of = |n| Limits {
                    nano_cpus: Some(n),
                    ..Limits::default()
                };
                (of(10_000_000), of(info.nano_cpus))
            } else {
                let of = |n| Limits {
                    cpu_quota: Some(n),
                    ..Limits::default()
                };
                (of(1000), of(if info.cpu_quota > 0 { info.cpu_quota } else { -1 }))
            };
            (
                vec![
                    // Somewhat more work than the limit allows, and less than what is free.
                    Harm::KeepBusy {
                        container: container.clone(),
                        marker: id.to_owned(),
                        seconds,
                        rest: "0.05",
                    },
                    Harm::Limits {
                        container: container.clone(),
                        limits: tiny,
                    },
                ],
                vec![
                    Mend::Limits {
                        container: container.clone(),
                        limits: old,
                    },
                    Mend::EndProcesses {
                        container: container.clone(),
                        marker: id.to_owned(),
                    },
                ],
            )
        }
        "memory-limit" => (
            vec![Harm::HoldMemory {
                container: container.clone(),
                marker: id.to_owned(),
                seconds,
            }],
            vec![
                Mend::Limits {
                    container: container.clone(),
                    limits: old_limits(system, &info).await?,
                },
                Mend::EndProcesses {
                    container: container.clone(),
                    marker: id.to_owned(),
                },
            ],
        ),
        "busy-but-fine" => (
            vec![Harm::KeepBusy {
                container: container.clone(),
                marker: id.to_owned(),
                seconds: seconds.min(BUSY),
                rest: "0",
            }],
            vec![Mend::EndProcesses {
                container: container.clone(),
                marker: id.to_owned(),
            }],
        ),
        "slow-database" => (
            vec![Harm::SlowStatements {
                service: service.clone(),
                fault: id.to_owned(),
            }],
            vec![Mend::EndHelpers { fault: id.to_owned() }],
        ),
        _ => return Ok(None),
    };
    Ok(Some(Prepared {
        target: format!("container {container} of service {service}"),
        service,
        harms,
        mends,
        container,
    }))
}
