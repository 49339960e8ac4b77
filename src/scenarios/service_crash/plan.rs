//! Which remedy each service in trouble gets, and the steps of it.

use super::super::{PlanRequest, Refusal, Scenario, ladder};
use super::{Evidence, Patient, ServiceCrash, Trouble, diagnose, in_words, patients};
use crate::plan::{
    Action, ContainerAction, DataLoss, Expectation, PLAN_FORMAT, Plan, Remedy, Risk, Step, Undo,
    WorkloadAction, kept_name,
};
use crate::runbook::Runbook;
use crate::workload::Status;

/// Restarts by the engine after which one more is not tried.
const RESTARTS_ENOUGH: i64 = 3;

/// Which remedies could help a patient, gentlest first.
fn helps(p: &Patient<'_>) -> &'static [Remedy] {
    match p.trouble {
        Trouble::Frozen => &[Remedy::Thaw, Remedy::Restart],
        Trouble::Stopped => &[Remedy::Start],
        // The engine has restarted it already, again and again.
        Trouble::Loops if p.facts.info.restart_count >= RESTARTS_ENOUGH => &[Remedy::Recreate],
        Trouble::Loops | Trouble::Unhealthy => &[Remedy::Restart, Remedy::Recreate],
        // Its own layer is not what the image is.
        Trouble::Broken if !p.changed.is_empty() => &[Remedy::Recreate],
        Trouble::Broken | Trouble::Migration => &[],
    }
}

pub(super) fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let mut all = patients(ev, rb);
    let order: Vec<&str> = rb.start_order().iter().map(|n| n.as_str()).collect();
    // What others depend on comes first.
    all.sort_by_key(|p| order.iter().position(|n| *n == p.service));
    let diagnosis = diagnose(ev, rb);
    let treatable: Vec<&Patient<'_>> = all.iter().filter(|p| !helps(p).is_empty()).collect();
    if treatable.is_empty() {
        return Err(Refusal {
            message: "no remedy is possible as things are: starting it again would fail again".into(),
            reasons: diagnosis.reasons,
            next: all
                .iter()
                .map(|p| format!("docker logs --tail 50 {}", p.facts.info.name))
                .collect(),
        });
    }
    let rungs: Vec<ladder::Rung> = ServiceCrash::REMEDIES
        .iter()
        .filter(|r| treatable.iter().any(|p| helps(p).contains(r)))
        .map(|r| ladder::rung(request, *r, None))
        .collect();
    let chosen = ladder::choose(
        ServiceCrash::NAME,
        &rungs,
        request.remedy,
        &diagnosis.reasons,
        treatable
            .iter()
            .map(|p| format!("docker logs --tail 50 {}", p.facts.info.name))
            .collect(),
    )?;
    // Each gets the gentlest that helps it, from the chosen rung on.
    let treated: Vec<(&Patient<'_>, Remedy)> = treatable
        .iter()
        .filter_map(|p| {
            let remedy = helps(p)
                .iter()
                .copied()
                .find(|r| *r >= chosen && !request.tried.contains(r))?;
            Some((*p, remedy))
        })
        .collect();
    let steps: Vec<Step> = treated
        .iter()
        .map(|(p, r)| step(p, *r, rb, &request.run))
        .collect();
    let services: Vec<String> = treated.iter().map(|(p, _)| p.service.to_owned()).collect();
    let (kept, discard) = kept(&treated, &request.run);
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: ServiceCrash::NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: services.first().cloned().unwrap_or_default(),
        diagnosis: diagnosis.summary,
        remedy: chosen,
        alternatives: ladder::alternatives(&rungs, chosen, |_| "it interrupts more than is needed".into()),
        backup: None,
        estimate_seconds: 5 * steps.len() as u64,
        steps,
        expect: vec![
            Expectation::ServicesRun { services },
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
        kept,
        discard,
    })
}

/// What a recreation keeps, in words and as what lets go of it.
fn kept(treated: &[(&Patient<'_>, Remedy)], run: &str) -> (String, Vec<Action>) {
    let recreated = || {
        treated
            .iter()
            .filter(|(_, r)| *r == Remedy::Recreate)
            .map(|(p, _)| p)
    };
    let names: Vec<String> = recreated().map(|p| kept_name(&p.facts.info.name, run)).collect();
    let words = match names.as_slice() {
        [] => String::new(),
        names => format!(
            "the old container, stopped, as {}, and the name of its image; until the incident is closed \
             `docker compose up` may take it for the service's own",
            names.join(", ")
        ),
    };
    let discard = recreated().map(|p| {
        Action::Container(ContainerAction::LetGo {
            service: p.service.to_owned(),
            container: p.facts.info.name.clone(),
            run: run.to_owned(),
        })
    });
    (words, discard.collect())
}

fn step(p: &Patient<'_>, remedy: Remedy, rb: &Runbook, run: &str) -> Step {
    let service = p.service.to_owned();
    let timeout_seconds = rb.deadlines.stop.as_secs() + 60;
    let why = in_words(p);
    match remedy {
        Remedy::Thaw => Step {
            title: format!("Let {service} run again"),
            why,
            risk: Risk::Reversible,
            action: Action::Workload(WorkloadAction::Thaw { service }),
            undo: Undo::NotNeeded("a process that runs is what was wanted".into()),
            timeout_seconds,
        },
        Remedy::Start => Step {
            title: format!("Start {service}"),
            why,
            risk: Risk::Reversible,
            action: Action::Workload(WorkloadAction::Start {
                service: service.clone(),
                wait: true,
            }),
            undo: if p.facts.info.replicas.len() > 1 {
                // The others served before.
                Undo::Manual(format!("docker stop {}", p.facts.info.name))
            } else {
                Undo::Action(Action::Workload(WorkloadAction::Stop { service }))
            },
            timeout_seconds,
        },
        Remedy::Recreate => recreation(p, why, timeout_seconds, run),
        _ => Step {
            title: format!("Restart {service}"),
            why,
            risk: Risk::Disruptive,
            action: Action::Workload(WorkloadAction::Restart { service }),
            undo: Undo::NotNeeded("it runs, as it did before".into()),
            timeout_seconds,
        },
    }
}

fn recreation(p: &Patient<'_>, why: String, timeout_seconds: u64, run: &str) -> Step {
    let info = &p.facts.info;
    let (service, container, run) = (p.service.to_owned(), info.name.clone(), run.to_owned());
    Step {
        title: format!("Create the container of {service} anew"),
        why: match p.trouble {
            Trouble::Loops if info.restart_count >= RESTARTS_ENOUGH => format!(
                "{why}; the engine has restarted it {} times, which did not help",
                info.restart_count
            ),
            _ => why,
        },
        risk: Risk::Disruptive,
        undo: Undo::Action(Action::Container(ContainerAction::PutBack {
            service: service.clone(),
            container: container.clone(),
            run: run.clone(),
            running: !matches!(info.status, Status::Created | Status::Exited | Status::Dead),
            restart_policy: info.restart_policy.clone(),
        })),
        action: Action::Container(ContainerAction::Recreate {
            service,
            container,
            run,
        }),
        timeout_seconds,
    }
}
