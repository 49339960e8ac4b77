//! What is done about it: just what is missing, in the order in which services need each other.

use std::collections::BTreeSet;

use super::diagnose::{Finding, Lack, diagnose, findings, is_outside, restartable_ports};
use super::{Evidence, NetworkPartition};
use crate::plan::{
    Action, DataLoss, Expectation, NetworkAction, PLAN_FORMAT, Plan, Remedy, Risk, Step, Undo, WorkloadAction,
};
use crate::runbook::{Runbook, ServiceKind};
use crate::scenarios::service_crash::is_finished_job;
use crate::scenarios::{PlanRequest, Refusal, Scenario, ladder};

pub(super) fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let diagnosis = diagnose(ev, rb);
    let (mut findings, ports) = (findings(ev, rb), restartable_ports(ev, rb));
    let order: Vec<&str> = rb.start_order().iter().map(|n| n.as_str()).collect();
    let place = |service: &str| order.iter().position(|n| *n == service);
    findings.sort_by_key(|f| (place(f.service), f.network.clone()));

    let mut rungs = Vec::new();
    if !findings.is_empty() {
        rungs.push(ladder::rung(request, Remedy::Reconnect, None));
    }
    if !ports.is_empty() {
        rungs.push(ladder::rung(request, Remedy::Restart, None));
    }
    let chosen = ladder::choose(
        NetworkPartition::NAME,
        &rungs,
        request.remedy,
        &diagnosis.reasons,
        vec![
            "docker network ls".into(),
            "docker compose up -d    # from the compose file, if the networks were changed on purpose".into(),
        ],
    )?;
    let (steps, services) = if chosen == Remedy::Reconnect {
        let services: Vec<String> = distinct(findings.iter().map(|f| f.service));
        (reconnect(ev, rb, &findings), services)
    } else {
        let services: Vec<String> = distinct(ports.iter().map(|p| p.service.as_str()));
        let steps = services.iter().map(|s| restart(s, rb)).collect();
        (steps, services)
    };
    let edges = rb
        .services
        .iter()
        .flat_map(|(from, s)| {
            s.depends_on
                .iter()
                .map(move |to| (from.to_string(), to.to_string()))
        })
        .filter(|(from, to)| !is_outside(ev, from, to))
        .collect();
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: NetworkPartition::NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: services.first().cloned().unwrap_or_default(),
        diagnosis: diagnosis.summary,
        remedy: chosen,
        alternatives: ladder::alternatives(&rungs, chosen, |_| {
            "it interrupts more than is needed, and can follow".into()
        }),
        backup: None,
        estimate_seconds: 1 + 2 * steps.len() as u64,
        steps,
        expect: vec![
            Expectation::ServicesRun { services },
            Expectation::Reaches { edges },
            Expectation::Endpoints,
            Expectation::WriteCheck,
        ],
        data_loss: DataLoss {
            summary: "nothing is lost: no data is touched".into(),
            none: true,
            ..DataLoss::default()
        },
        disk_needed: 0,
        disk_free: None,
        kept: String::new(),
        discard: Vec::new(),
    })
}

/// Each once, in their order.
fn distinct<'a>(services: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    services.filter(|s| seen.insert(*s)).map(str::to_owned).collect()
}

fn reconnect(ev: &Evidence, rb: &Runbook, findings: &[Finding<'_>]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut created = BTreeSet::new();
    for f in findings {
        if f.lack == (Lack::Gone { same_name: false }) && created.insert(f.network.as_str()) {
            steps.push(create(rb, f));
        }
    }
    steps.extend(findings.iter().map(|f| connect(ev, rb, f)));
    for service in distinct(findings.iter().map(|f| f.service)) {
        let Some(facts) = ev.containers.get(&service).and_then(|c| c.found()) else {
            continue;
        };
        let info = &facts.info;
        let gone = findings
            .iter()
            .any(|f| f.service == service && matches!(f.lack, Lack::Gone { .. }));
        if info.is_running() || !gone || is_finished_job(&service, info, &ev.containers, rb) {
            continue;
        }
        let is_postgres = rb
            .service(&service)
            .is_some_and(|s| matches!(s.kind, ServiceKind::Postgres(_)));
        steps.push(Step {
            title: format!("Start {service}"),
            why: "it could not be started without its network".into(),
            risk: Risk::Reversible,
            action: Action::Workload(WorkloadAction::Start {
                service: service.clone(),
                // The others come up side by side; the proof waits for all of them.
                wait: is_postgres,
            }),
            undo: Undo::Action(Action::Workload(WorkloadAction::Stop { service })),
            timeout_seconds: if is_postgres {
                // It may have to replay its log first.
                rb.deadlines.step.as_secs()
            } else {
                rb.deadlines.stop.as_secs() + 60
            },
        });
    }
    steps
}

fn create(rb: &Runbook, f: &Finding<'_>) -> Step {
    let network = f.network.clone();
    let project = rb.docker().compose_project.as_str();
    let key = network
        .strip_prefix(project)
        .and_then(|rest| rest.strip_prefix('_'))
        .unwrap_or(&network)
        .to_owned();
    Step {
        title: format!("Create network {network}"),
        why: "there is none, and a container is bound to the one that is gone; how that was set up is not recorded \
              anywhere, so it gets an address range of the engine's choice and no options, and is not `internal`: \
              with that in the compose file, give this up and run `docker compose up -d`"
            .into(),
        risk: Risk::Reversible,
        action: Action::Network(NetworkAction::Create {
            network: network.clone(),
            key,
            subnets: Vec::new(),
        }),
        undo: Undo::Action(Action::Network(NetworkAction::Remove { network })),
        timeout_seconds: 60,
    }
}

fn connect(ev: &Evidence, rb: &Runbook, f: &Finding<'_>) -> Step {
    let (service, network) = (f.service.to_owned(), f.network.clone());
    let running = ev
        .containers
        .get(f.service)
        .and_then(|c| c.found())
        .is_some_and(|c| c.info.is_running());
    // The engine cannot change names: the place is taken away and given anew.
    let interrupts = running && f.lack != Lack::Detached;
    let back = match &f.lack {
        Lack::Names(_) => NetworkAction::Connect {
            service: service.clone(),
            network: network.clone(),
            aliases: f.had.clone(),
            addresses: f.addresses.clone(),
        },
        Lack::Detached | Lack::Gone { .. } => NetworkAction::Disconnect {
            service: service.clone(),
            network: network.clone(),
        },
    };
    let mut why = f.in_words();
    if interrupts {
        why.push_str("; its connections break for a moment");
    }
    if !f.lost_addresses.is_empty() {
        why.push_str("; its fixed address ");
        why.push_str(&f.lost_addresses.join(", "));
        why.push_str(" is not of the new network's range, and is not kept");
    }
    Step {
        title: format!("Connect {service} to network {network} as {}", f.names.join(", ")),
        why,
        risk: if interrupts {
            Risk::Disruptive
        } else {
            Risk::Reversible
        },
        action: Action::Network(NetworkAction::Connect {
            service,
            network,
            aliases: f.names.clone(),
            addresses: f.addresses.clone(),
        }),
        undo: Undo::Action(Action::Network(back)),
        timeout_seconds: rb.deadlines.probe.as_secs() + 60,
    }
}

fn restart(service: &str, rb: &Runbook) -> Step {
    Step {
        title: format!("Restart {service}"),
        why: "the engine publishes a container's ports when it starts; what it serves is interrupted for a moment"
            .into(),
        risk: Risk::Disruptive,
        action: Action::Workload(WorkloadAction::Restart {
            service: service.to_owned(),
        }),
        undo: Undo::NotNeeded("it runs, as it did before".into()),
        timeout_seconds: rb.deadlines.stop.as_secs() + 60,
    }
}
