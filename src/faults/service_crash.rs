//! Services that stopped, were killed, or are frozen.

use super::harm::{Harm, Mend, Prepared, victim};
use super::{Fault, Request};
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
];

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// No such service, or one that does not run.
pub async fn prepare(
    system: &System,
    variant: &str,
    service: Option<&str>,
    _request: &Request,
) -> Result<Option<Prepared>> {
    let (service, info) = victim(system, service, |s| matches!(s.kind, ServiceKind::App)).await?;
    let container = info.name;
    let harm = match variant {
        "stopped" => Harm::Stop {
            container: container.clone(),
        },
        "killed" => Harm::Signal {
            container: container.clone(),
            signal: "SIGKILL".into(),
        },
        "frozen" => Harm::Signal {
            container: container.clone(),
            signal: "SIGSTOP".into(),
        },
        "paused" => Harm::Pause {
            container: container.clone(),
        },
        _ => return Ok(None),
    };
    Ok(Some(Prepared {
        target: format!("container {container} of service {service}"),
        service,
        harms: vec![harm],
        mends: vec![Mend::Run {
            container: container.clone(),
        }],
        container,
    }))
}
