//! Services that stopped, were killed, or are frozen.

use super::Fault;
use super::harm::{Harm, Prepared, victim};
use super::mend::Mend;
use crate::error::Result;
use crate::runbook::ServiceKind;
use crate::system::System;

/// Every fault of this family.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "service-crash/stopped",
        summary: "an application's container is stopped",
        leaves: "status exited, exit code 0 or 143; nginx answers by the others or with 502 and 504",
        live: false,
    },
    Fault {
        name: "service-crash/killed",
        summary: "an application's main process is killed",
        leaves: "status exited, exit code 137 without OOMKilled",
        live: false,
    },
    Fault {
        name: "service-crash/frozen",
        summary: "an application's main process is stopped by a signal",
        leaves: "status running, process state T, requests to it hang, health flips after some checks",
        live: false,
    },
    Fault {
        name: "service-crash/paused",
        summary: "an application's container is paused",
        leaves: "status paused, requests to it hang",
        live: false,
    },
    Fault {
        name: "service-crash/crash-loop",
        summary: "an application's main process is killed again and again",
        leaves: "status restarting or just started, a growing number of restarts, exit code 137",
        live: true,
    },
    Fault {
        name: "service-crash/starting",
        summary: "look-alike: an application is restarted, and its health check has not answered yet",
        leaves: "status running, health starting",
        live: false,
    },
    Fault {
        name: "service-crash/clean-exit",
        summary: "an application that the engine was told not to start again is stopped, as if its work were done",
        leaves: "status exited, exit code 0, restart policy no; others depend on it and its health was checked",
        live: false,
    },
];

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// No such service, or one that does not run.
pub async fn prepare(
    system: &System,
    variant: &str,
    service: Option<&str>,
    id: &str,
) -> Result<Option<Prepared>> {
    let (service, info) = victim(system, service, |s| matches!(s.kind, ServiceKind::App)).await?;
    let container = info.name;
    let mut mends = vec![Mend::Run {
        container: container.clone(),
    }];
    let harms = match variant {
        "stopped" => vec![Harm::Stop {
            container: container.clone(),
        }],
        "killed" => vec![Harm::Signal {
            container: container.clone(),
            signal: "SIGKILL".into(),
        }],
        "frozen" => vec![Harm::Signal {
            container: container.clone(),
            signal: "SIGSTOP".into(),
        }],
        "paused" => vec![Harm::Pause {
            container: container.clone(),
        }],
        "crash-loop" => {
            mends.insert(0, Mend::EndHelpers { fault: id.to_owned() });
            vec![Harm::CrashLoop {
                container: container.clone(),
                fault: id.to_owned(),
            }]
        }
        "starting" => vec![Harm::Restart {
            container: container.clone(),
        }],
        "clean-exit" => {
            mends.insert(
                0,
                Mend::RestartPolicy {
                    container: container.clone(),
                    policy: info.restart_policy,
                },
            );
            vec![
                Harm::RestartPolicy {
                    container: container.clone(),
                    policy: "no".into(),
                },
                Harm::Stop {
                    container: container.clone(),
                },
            ]
        }
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
