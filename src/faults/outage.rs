//! Everything down at once, and less than that.

use super::Fault;
use super::harm::{Harm, Prepared, victim};
use super::mend::Mend;
use crate::error::Result;
use crate::runbook::ServiceKind;
use crate::system::System;

/// Every fault of this family.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "outage/all-stopped",
        summary: "every container of the deployment is stopped",
        leaves: "status exited everywhere, no endpoint answers",
        live: false,
    },
    Fault {
        name: "outage/all-killed",
        summary: "the main process of every container is killed",
        leaves: "status exited and exit code 137 everywhere, no endpoint answers",
        live: false,
    },
    Fault {
        name: "outage/frontend-stopped",
        summary: "look-alike: only nginx is stopped",
        leaves: "no endpoint answers, everything behind it runs",
        live: false,
    },
    Fault {
        name: "outage/one-service",
        summary: "look-alike: one application service is stopped",
        leaves: "one container has exited, the endpoints answer",
        live: false,
    },
];

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// A service that does not run: a fault is injected only into a sound deployment.
pub async fn prepare(system: &System, variant: &str, service: Option<&str>) -> Result<Option<Prepared>> {
    let rb = &system.runbook;
    let chosen: Vec<String> = match variant {
        // What is needed last is stopped first, as a clean stop of the whole does.
        "all-stopped" | "all-killed" => rb.start_order().iter().rev().map(ToString::to_string).collect(),
        "frontend-stopped" => vec![
            victim(system, service, |s| matches!(s.kind, ServiceKind::Nginx))
                .await?
                .0,
        ],
        "one-service" => vec![
            victim(system, service, |s| matches!(s.kind, ServiceKind::App))
                .await?
                .0,
        ],
        _ => return Ok(None),
    };
    let (mut harms, mut mends, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for service in &chosen {
        let container = victim(system, Some(service), |_| true).await?.1.name;
        harms.push(if variant == "all-killed" {
            Harm::Signal {
                container: container.clone(),
                signal: "SIGKILL".into(),
            }
        } else {
            Harm::Stop {
                container: container.clone(),
            }
        });
        mends.insert(
            0,
            Mend::Run {
                container: container.clone(),
            },
        );
        names.push(container);
    }
    Ok(Some(Prepared {
        target: format!(
            "container{} {}",
            if names.len() == 1 { "" } else { "s" },
            names.join(", ")
        ),
        service: chosen.first().cloned().unwrap_or_default(),
        container: names.first().cloned().unwrap_or_default(),
        harms,
        mends,
    }))
}
