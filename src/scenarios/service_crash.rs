//! A service of the application that does not run: stopped, killed, frozen, or in a loop of
//! crashes.
//!
//! Symptom: a part of the application does not answer, requests hang or end in 502 and 504.
//! Cause: somebody stopped it, the kernel or a person killed it, a signal or the engine froze
//! it, or it ends as soon as it is started.
//!
//! What drctl does, gentlest first: let a frozen one run again; start a stopped one; restart
//! one that says itself that it is unwell or that goes round in circles. What it never does:
//! restart what works, touch PostgreSQL or Redis (they have scenarios of their own, which know
//! what a careless restart can cost), or start a job that has done its work.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Certainty, DetectOptions, Diagnosis, LookAlike, PlanRequest, Refusal, Scenario, known_service, ladder,
};
use crate::error::Result;
use crate::plan::{
    Action, DataLoss, Expectation, PLAN_FORMAT, Plan, Remedy, Risk, Step, Undo, WorkloadAction,
};
use crate::probe::containers::{ContainerFacts, ContainerState, end_in_words};
use crate::probe::observer::Observer;
use crate::runbook::{Runbook, ServiceKind};
use crate::workload::Status;

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct ServiceCrash;

/// What is observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// When.
    pub taken_at: Timestamp,
    /// The service that was asked about, if one was.
    pub service: Option<String>,
    /// Every service's container.
    pub containers: BTreeMap<String, ContainerState>,
}

/// What is wrong with one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Frozen,
    Stopped,
    /// It cannot be started as it is: its program or its files are missing.
    Broken,
    Loops,
    Unhealthy,
}

/// One service in trouble.
struct Patient<'a> {
    service: &'a str,
    facts: &'a ContainerFacts,
    trouble: Trouble,
}

impl Scenario for ServiceCrash {
    const NAME: &'static str = "service-crash";
    const ABOUT: &'static str = "An application service that stopped, froze, or crashes again and again";
    const REMEDIES: &'static [Remedy] = &[Remedy::Thaw, Remedy::Start, Remedy::Restart];
    const CAUSES: &'static [&'static str] = &[];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
        known_service(&world.system.runbook, options)?;
        Ok(Evidence {
            taken_at: Timestamp::now(),
            service: options.service.clone(),
            containers: world.containers().await.clone(),
        })
    }

    fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
        diagnose(ev, rb)
    }

    fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
        plan(ev, rb, request)
    }
}

/// The services that this scenario looks after, of those that were asked about.
fn concerned<'a>(ev: &'a Evidence, rb: &'a Runbook) -> impl Iterator<Item = (&'a str, &'a ContainerState)> {
    ev.containers.iter().filter_map(|(name, state)| {
        let ours = rb
            .service(name)
            .is_some_and(|s| matches!(s.kind, ServiceKind::App | ServiceKind::Nginx));
        let asked = ev.service.as_ref().is_none_or(|s| s == name);
        (ours && asked).then_some((name.as_str(), state))
    })
}

fn trouble(facts: &ContainerFacts) -> Option<Trouble> {
    let info = &facts.info;
    match info.status {
        Status::Paused => Some(Trouble::Frozen),
        Status::Running if facts.is_stopped_by_signal() => Some(Trouble::Frozen),
        Status::Running if info.health.as_deref() == Some("unhealthy") => Some(Trouble::Unhealthy),
        Status::Running => None,
        Status::Restarting => Some(Trouble::Loops),
        Status::Created | Status::Exited | Status::Dead => match info.exit_code {
            126 | 127 => Some(Trouble::Broken),
            _ if info.status == Status::Created && !info.error.is_empty() => Some(Trouble::Broken),
            // A job that the engine was told not to start again has done its work.
            0 if info.restart_policy == "no" => None,
            _ => Some(Trouble::Stopped),
        },
    }
}

fn patients<'a>(ev: &'a Evidence, rb: &'a Runbook) -> Vec<Patient<'a>> {
    concerned(ev, rb)
        .filter_map(|(service, state)| {
            let facts = state.found()?;
            Some(Patient {
                service,
                facts,
                trouble: trouble(facts)?,
            })
        })
        .collect()
}

fn in_words(p: &Patient<'_>) -> String {
    let (service, info) = (p.service, &p.facts.info);
    match p.trouble {
        Trouble::Frozen if info.status == Status::Paused => format!("{service} is paused by the engine"),
        Trouble::Frozen => format!("{service} is stopped by a signal (its main process is in state T)"),
        Trouble::Stopped => format!("{service} does not run: {}", end_in_words(info)),
        Trouble::Broken => format!("{service} cannot be started: {}", end_in_words(info)),
        Trouble::Loops => format!(
            "{service} crashes again and again ({} restarts): {}",
            info.restart_count,
            end_in_words(info)
        ),
        Trouble::Unhealthy => format!("{service} runs, and its own health check fails"),
    }
}

/// The line of a log that most likely tells why: the last that speaks of an error.
fn telling_line(facts: &ContainerFacts) -> Option<&str> {
    let speaks = |text: &str| {
        let text = text.to_lowercase();
        [
            "error",
            "fatal",
            "panic",
            "exception",
            "traceback",
            "cannot",
            "failed",
            "refused",
        ]
        .iter()
        .any(|word| text.contains(word))
    };
    let lines = || facts.last_words.iter().rev().map(|l| l.text.as_str());
    lines()
        .find(|t| speaks(t))
        .or_else(|| lines().find(|t| !t.trim().is_empty()))
}

fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
    let patients = patients(ev, rb);
    let mut reasons = Vec::new();
    for p in &patients {
        reasons.push(in_words(p));
        if let Some(line) = telling_line(p.facts).filter(|_| p.trouble != Trouble::Frozen) {
            reasons.push(format!("{} said last: {line}", p.service));
        }
    }
    let names: Vec<&str> = patients.iter().map(|p| p.service).collect();
    let missing: Vec<&str> = concerned(ev, rb)
        .filter(|(_, s)| matches!(s, ContainerState::Missing))
        .map(|(n, _)| n)
        .collect();
    let unknown: Vec<String> = concerned(ev, rb)
        .filter_map(|(n, s)| match s {
            ContainerState::Unknown(cause) => Some(format!("{n}: {cause}")),
            _ => None,
        })
        .collect();
    let said = |certainty, summary: String, reasons, look_alike| Diagnosis {
        certainty,
        summary,
        reasons,
        look_alike,
    };
    if !patients.is_empty() {
        return said(
            Certainty::Confirmed,
            format!(
                "{} of the application: {}",
                if names.len() == 1 { "a service" } else { "services" },
                names.join(", ")
            ),
            reasons,
            None,
        );
    }
    if !missing.is_empty() {
        let explanation = format!("there is no container of {}", missing.join(", "));
        return said(
            Certainty::Confirmed,
            explanation.clone(),
            vec!["the engine has none with its Compose labels or its name".into()],
            Some(LookAlike {
                name: "no-container".into(),
                explanation,
                next: vec![format!(
                    "docker compose up -d {}    # create it from the compose file",
                    missing.join(" ")
                )],
            }),
        );
    }
    if let Some(other) = asked_elsewhere(ev, rb) {
        return other;
    }
    if !unknown.is_empty() {
        return said(
            Certainty::Unknown,
            "the engine does not tell how the services are".into(),
            unknown,
            None,
        );
    }
    let count = concerned(ev, rb).count();
    said(
        Certainty::Absent,
        format!("all {count} services of the application run"),
        Vec::new(),
        None,
    )
}

/// The operator asked about a database: it has scenarios of its own.
fn asked_elsewhere(ev: &Evidence, rb: &Runbook) -> Option<Diagnosis> {
    let name = ev.service.as_deref()?;
    let (kind, scenario) = match &rb.service(name)?.kind {
        ServiceKind::Postgres(_) => ("a PostgreSQL server", "db-down"),
        ServiceKind::Redis(_) => ("a Redis server", "redis-failure"),
        ServiceKind::App | ServiceKind::Nginx => return None,
    };
    let explanation = format!("{name} is {kind}: a restart can cost data, so it has a scenario of its own");
    Some(Diagnosis {
        certainty: Certainty::Absent,
        summary: explanation.clone(),
        reasons: Vec::new(),
        look_alike: Some(LookAlike {
            name: scenario.into(),
            explanation,
            next: vec![
                format!("drctl diagnose {scenario}"),
                format!("drctl recover {scenario}"),
            ],
        }),
    })
}

/// Which remedies could help against a trouble, gentlest first.
fn helps(trouble: Trouble) -> &'static [Remedy] {
    match trouble {
        Trouble::Frozen => &[Remedy::Thaw, Remedy::Restart],
        Trouble::Stopped => &[Remedy::Start],
        Trouble::Loops | Trouble::Unhealthy => &[Remedy::Restart],
        Trouble::Broken => &[],
    }
}

fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let mut all = patients(ev, rb);
    let order: Vec<&str> = rb.start_order().iter().map(|n| n.as_str()).collect();
    // What others depend on comes first.
    all.sort_by_key(|p| order.iter().position(|n| *n == p.service));
    let diagnosis = diagnose(ev, rb);
    let treatable: Vec<&Patient<'_>> = all.iter().filter(|p| !helps(p.trouble).is_empty()).collect();
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
        .filter(|r| treatable.iter().any(|p| helps(p.trouble).contains(r)))
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
    let steps: Vec<Step> = treatable
        .iter()
        .filter_map(|p| {
            let remedy = helps(p.trouble)
                .iter()
                .copied()
                .find(|r| *r >= chosen && !request.tried.contains(r))?;
            Some(step(p, remedy, rb))
        })
        .collect();
    let services: Vec<String> = treatable.iter().map(|p| p.service.to_owned()).collect();
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
        kept: String::new(),
        discard: Vec::new(),
    })
}

fn step(p: &Patient<'_>, remedy: Remedy, rb: &Runbook) -> Step {
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
            undo: Undo::Action(Action::Workload(WorkloadAction::Stop { service })),
            timeout_seconds,
        },
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
