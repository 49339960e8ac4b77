//! More room for what has too little, within what the machine has free.

use super::super::{PlanRequest, Refusal, Scenario, ladder, limits};
use super::{
    Evidence, Patient, ServiceOverload, Want, diagnose, in_words, memory_threshold, patients, slow_threshold,
};
use crate::plan::{
    Action, ContainerAction, DataLoss, Expectation, Limits, PLAN_FORMAT, Plan, Remedy, Risk, Step, Undo,
    WorkloadAction,
};
use crate::runbook::{Runbook, ServiceKind};

/// Memory that is left to the machine.
const RESERVE: u64 = 256 << 20;
/// What a processor limit is raised to at least: a start of the program alone takes as much.
const LEAST_CPUS: f64 = 0.5;

pub(super) fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let patients = patients(ev, rb);
    let diagnosis = diagnose(ev, rb);
    let rungs: Vec<ladder::Rung> = ServiceOverload::REMEDIES
        .iter()
        .map(|r| ladder::rung(request, *r, obstacle(*r, ev, rb, &patients)))
        .collect();
    let otherwise = patients
        .iter()
        .map(|p| format!("docker stats --no-stream {}", p.facts.info.name))
        .collect();
    let chosen = ladder::choose(
        ServiceOverload::NAME,
        &rungs,
        request.remedy,
        &diagnosis.reasons,
        otherwise,
    )?;
    let mut steps = Vec::new();
    for p in &patients {
        steps.extend(match chosen {
            Remedy::RaiseLimit => raise(p, ev, rb),
            Remedy::ScaleOut => vec![double(p, rb, &request.run)],
            _ => vec![restart(p, rb)],
        });
    }
    let services: Vec<String> = patients.iter().map(|p| p.service.to_owned()).collect();
    let mut expect = vec![Expectation::ServicesRun {
        services: services.clone(),
    }];
    // A second instance takes work from the first, and leaves it its limits.
    if chosen != Remedy::ScaleOut {
        expect.extend(services.iter().map(|service| Expectation::HasRoom {
            service: service.clone(),
            memory_percent: format!("{:.0}", memory_threshold(rb)),
        }));
    }
    expect.extend([
        Expectation::Endpoints,
        Expectation::Responsive {
            millis: slow_threshold(rb),
        },
        Expectation::WriteCheck,
    ]);
    let doubled = chosen == Remedy::ScaleOut;
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: ServiceOverload::NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: services.first().cloned().unwrap_or_default(),
        diagnosis: diagnosis.summary,
        remedy: chosen,
        alternatives: ladder::alternatives(&rungs, chosen, |_| "it interrupts or costs more than is needed".into()),
        backup: None,
        estimate_seconds: 5 * steps.len() as u64,
        steps,
        expect,
        data_loss: DataLoss {
            summary: "nothing is lost: no data is touched".into(),
            none: true,
            ..DataLoss::default()
        },
        disk_needed: 0,
        disk_free: None,
        kept: match chosen {
            Remedy::ScaleOut => {
                "the second instance, until the incident is closed; to keep it, add it to the compose file".into()
            }
            Remedy::RaiseLimit => {
                "nothing; write the new limit into the compose file, or the next `docker compose up` undoes it".into()
            }
            _ => String::new(),
        },
        discard: patients
            .iter()
            .filter(|_| doubled)
            .map(|p| Action::Container(undouble(p, &request.run)))
            .collect(),
    })
}

/// What stands in the way of a remedy.
fn obstacle(remedy: Remedy, ev: &Evidence, rb: &Runbook, patients: &[Patient<'_>]) -> Option<String> {
    patients.iter().find_map(|p| {
        let service = rb.service(p.service)?;
        match remedy {
            Remedy::RaiseLimit => match (p.want, &ev.host) {
                (_, None) => {
                    Some("the engine is on another machine: it is not known what that has free".into())
                }
                (Want::Processor | Want::Busy, Some(host)) => (p.facts.info.cpu_limit()?
                    >= f64::from(host.cpus))
                .then(|| "its limit is all of the machine's processors".into()),
                (_, Some(host)) => {
                    // All of them are raised: each alone may fit where all together do not.
                    let more: u64 = patients
                        .iter()
                        .filter(|p| !matches!(p.want, Want::Processor | Want::Busy))
                        .map(|p| new_memory(p).saturating_sub(p.facts.info.memory_limit))
                        .sum();
                    (more + RESERVE > host.memory_available).then(|| {
                        format!(
                            "{} MiB more are needed, and the machine has {} MiB left",
                            more >> 20,
                            host.memory_available >> 20
                        )
                    })
                }
            },
            Remedy::Restart => match service.kind {
                ServiceKind::App | ServiceKind::Nginx => None,
                _ => Some(format!("{} is a data store: a restart can cost data", p.service)),
            },
            _ if !service.scale_out => Some(format!(
                "the runbook does not say that {} may have a second instance (scale-out: true)",
                p.service
            )),
            _ if p.want == Want::Killed => {
                Some("a second instance with the same limit would be killed as well".into())
            }
            _ => None,
        }
    })
}

/// Twice what it has or uses, whichever is more.
fn new_memory(p: &Patient<'_>) -> u64 {
    let used = p.usage.map_or(0, |u| u.memory);
    p.facts.info.memory_limit.max(used) * 2
}

fn raise(p: &Patient<'_>, ev: &Evidence, rb: &Runbook) -> Vec<Step> {
    let info = &p.facts.info;
    let (new, old, words, was) = if matches!(p.want, Want::Processor | Want::Busy) {
        let cpus = ev.host.as_ref().map_or(1.0, |h| f64::from(h.cpus));
        let now = info.cpu_limit().unwrap_or(cpus);
        let new = (now * 4.0).max(LEAST_CPUS).min(cpus);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "at most a few thousand processors"
        )]
        let limits = |cpus: f64| {
            if info.nano_cpus > 0 {
                Limits {
                    nano_cpus: Some((cpus * 1e9).round() as i64),
                    ..Limits::default()
                }
            } else {
                Limits {
                    cpu_quota: Some((cpus * info.period() as f64).round() as i64),
                    ..Limits::default()
                }
            }
        };
        (
            limits(new),
            limits(now),
            format!("{new:.2} processors"),
            format!("{now:.2} processors"),
        )
    } else {
        let ((new, words), (old, was)) = limits::memory(info, new_memory(p));
        (new, old, words, was)
    };
    let mut steps = vec![Step {
        title: format!("Give {} {words} instead of {was}", p.service),
        why: in_words(p),
        risk: Risk::Reversible,
        action: limits::set(p.service, new, &words),
        undo: Undo::Action(limits::set(p.service, old, &was)),
        timeout_seconds: 60,
    }];
    if p.want == Want::Killed && !info.is_running() {
        steps.push(Step {
            title: format!("Start {}", p.service),
            why: "it was killed, and has the memory now".into(),
            risk: Risk::Disruptive,
            action: Action::Workload(WorkloadAction::Restart {
                service: p.service.to_owned(),
            }),
            undo: Undo::NotNeeded("it did not stay up before".into()),
            timeout_seconds: rb.deadlines.stop.as_secs() + 60,
        });
    }
    steps
}

fn restart(p: &Patient<'_>, rb: &Runbook) -> Step {
    Step {
        title: format!("Restart {}", p.service),
        why: in_words(p),
        risk: Risk::Disruptive,
        action: Action::Workload(WorkloadAction::Restart {
            service: p.service.to_owned(),
        }),
        undo: Undo::NotNeeded("it runs, as it did before".into()),
        timeout_seconds: rb.deadlines.stop.as_secs() + 60,
    }
}

fn undouble(p: &Patient<'_>, run: &str) -> ContainerAction {
    ContainerAction::Undouble {
        service: p.service.to_owned(),
        container: p.facts.info.name.clone(),
        run: run.to_owned(),
    }
}

fn double(p: &Patient<'_>, rb: &Runbook, run: &str) -> Step {
    Step {
        title: format!("Start a second instance of {}", p.service),
        why: format!("{}; the runbook allows a second instance", in_words(p)),
        risk: Risk::Reversible,
        action: Action::Container(ContainerAction::Double {
            service: p.service.to_owned(),
            container: p.facts.info.name.clone(),
            run: run.to_owned(),
        }),
        undo: Undo::Action(Action::Container(undouble(p, run))),
        timeout_seconds: rb.deadlines.stop.as_secs() + 60,
    }
}
