//! Everything is down.
//!
//! Symptom: nothing answers. Cause: the engine or the machine was stopped or restarted, somebody
//! stopped the whole deployment, or the kernel killed most of it.
//!
//! What drctl does: it starts what does not run, each service after those that it depends on and
//! only when they answer, then checks all of it. What it never does: take containers away and
//! create them anew (`compose down` and `up`), or prune anything: what a stopped container and
//! its volumes hold is what is needed now. Without an engine it tells what is still known.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::disk_full::recognise::ROOM;
use super::service_crash::{is_finished_job, job_in_words};
use super::{Certainty, DetectOptions, Diagnosis, LookAlike, PlanRequest, Refusal, Scenario, ladder};
use crate::error::Result;
use crate::plan::{
    Action, DataLoss, Expectation, PLAN_FORMAT, Plan, Remedy, Risk, Step, Undo, WorkloadAction,
};
use crate::probe::containers::{ContainerFacts, ContainerState, end_in_words};
use crate::probe::endpoints;
use crate::probe::endpoints::Answers;
use crate::probe::engine::{self, Unreachable};
use crate::probe::host::{self, Host};
use crate::probe::observer::Observer;
use crate::runbook::{Runbook, ServiceKind, ServiceName};
use crate::workload::{ContainerInfo, Status};

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct Outage;

/// What is observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// When.
    pub taken_at: Timestamp,
    /// What is known of an engine that does not answer.
    pub engine: Option<Unreachable>,
    /// Every service's container; none where the engine does not answer.
    pub containers: BTreeMap<String, ContainerState>,
    /// How the endpoints answer.
    pub endpoints: BTreeMap<String, Answers>,
    /// The machine, where the engine is on it.
    pub host: Option<Host>,
}

impl Scenario for Outage {
    const NAME: &'static str = "outage";
    const ABOUT: &'static str =
        "Everything is down: the engine, or most services and a data store among them";
    const REMEDIES: &'static [Remedy] = &[Remedy::StartAll];
    const CAUSES: &'static [&'static str] = &[
        "db-down",
        "redis-failure",
        "service-crash",
        "service-overload",
        "monitoring-down",
    ];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, _: &DetectOptions) -> Result<Evidence> {
        let (containers, endpoints, host) = tokio::join!(world.containers(), world.endpoints(), world.host());
        Ok(Evidence {
            taken_at: Timestamp::now(),
            engine: None,
            containers: containers.clone(),
            endpoints: endpoints.clone(),
            host: host.clone(),
        })
    }

    fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
        match &ev.engine {
            Some(engine) => without(engine, ev),
            None => diagnose(ev, rb),
        }
    }

    fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
        plan(ev, rb, request)
    }
}

/// Looks at what can be looked at when the engine does not answer.
pub async fn without_engine(runbook: &Runbook, cause: String) -> Evidence {
    let local = runbook
        .docker()
        .host
        .as_ref()
        .map(ToString::to_string)
        .or_else(|| std::env::var("DOCKER_HOST").ok())
        .is_none_or(|h| h.is_empty() || h.starts_with("unix://"));
    let here = async { if local { host::look().await } else { None } };
    let (engine, endpoints, host) = tokio::join!(engine::look(cause, local), endpoints::look(runbook), here);
    Evidence {
        taken_at: Timestamp::now(),
        engine: Some(engine),
        containers: BTreeMap::new(),
        endpoints,
        host,
    }
}

/// What to type when the engine does not answer, likeliest first.
#[must_use]
pub fn what_to_type(ev: &Evidence) -> Vec<String> {
    let Some(engine) = &ev.engine else {
        return Vec::new();
    };
    let mut next = Vec::new();
    if engine.cause.contains("permission denied") {
        next.push("sudo drctl diagnose    # or as a member of the group that owns the socket".into());
        return next;
    }
    if ev.host.as_ref().is_some_and(|h| !h.exhausted().is_empty()) {
        next.push("df -h; free -m    # an engine cannot start on a full machine".into());
    }
    if !engine.local {
        next.push("ssh HOST systemctl status docker    # on the machine that runs the engine".into());
    } else if engine.systemd.is_some() {
        next.push("systemctl status docker".into());
        next.push("journalctl -u docker -n 50    # why it stopped".into());
        next.push("sudo systemctl restart docker    # also restarts its containers".into());
    } else if engine.process {
        next.push("docker context show    # the engine runs: is it asked at its own address?".into());
    } else {
        next.push("start the Docker engine as this machine starts it".into());
    }
    next.push("drctl recover outage    # when the engine answers again".into());
    next
}

fn without(engine: &Unreachable, ev: &Evidence) -> Diagnosis {
    let mut reasons = vec![engine.cause.clone()];
    if engine.local {
        if let Some(state) = &engine.systemd {
            reasons.push(format!("systemd says of docker: {state}"));
        }
        reasons.push(
            if engine.process {
                "a process of the engine runs on this machine"
            } else {
                "no process of the engine runs on this machine"
            }
            .into(),
        );
    }
    reasons.extend(endpoints_in_words(ev));
    reasons.extend(ev.host.iter().flat_map(Host::exhausted));
    let served = !ev.endpoints.is_empty() && !ev.endpoints.values().any(Answers::is_down);
    let denied = engine.cause.contains("permission denied");
    Diagnosis {
        certainty: if served || denied {
            Certainty::Unknown
        } else {
            Certainty::Confirmed
        },
        summary: if served {
            "the Docker engine cannot be reached; users are still served".into()
        } else {
            "the Docker engine cannot be reached, and nothing can be said of its containers".into()
        },
        reasons,
        look_alike: None,
    }
}

fn endpoints_in_words(ev: &Evidence) -> Vec<String> {
    ev.endpoints
        .iter()
        .map(|(name, a)| match (a.millis.first(), a.failures.first()) {
            (_, Some(why)) if a.is_down() => format!("endpoint {name} does not answer: {why}"),
            (Some(_), Some(why)) => format!("endpoint {name} answers at times: {why}"),
            (Some(millis), None) => format!("endpoint {name} answers, in {millis} ms"),
            _ => format!("endpoint {name} was not asked"),
        })
        .collect()
}

/// A container that works is none of these.
fn is_down(facts: &ContainerFacts) -> bool {
    facts.info.status != Status::Running || facts.is_stopped_by_signal()
}

fn in_words(service: &str, facts: &ContainerFacts) -> String {
    match facts.info.status {
        Status::Paused => format!("{service} is paused by the engine"),
        Status::Running => format!("{service} is stopped by a signal"),
        Status::Restarting => format!("{service} crashes again and again: {}", end_in_words(&facts.info)),
        _ => format!("{service} does not run: {}", end_in_words(&facts.info)),
    }
}

/// The services that do not work, what others depend on first.
fn down<'a>(ev: &'a Evidence, rb: &'a Runbook) -> Vec<(&'a str, Option<&'a ContainerFacts>)> {
    rb.start_order()
        .into_iter()
        .filter_map(|name| {
            let name = name.as_str();
            match ev.containers.get(name)? {
                ContainerState::Found(facts) if is_finished_job(name, &facts.info, &ev.containers, rb) => {
                    None
                }
                ContainerState::Found(facts) if is_down(facts) => Some((name, Some(&**facts))),
                ContainerState::Missing => Some((name, None)),
                ContainerState::Found(_) | ContainerState::Unknown(_) => None,
            }
        })
        .collect()
}

/// Jobs that have done their work: they are not started again, which would do it twice, and the
/// proof would find them down.
fn finished<'a>(ev: &'a Evidence, rb: &Runbook) -> BTreeMap<&'a str, &'a ContainerInfo> {
    ev.containers
        .iter()
        .filter_map(|(name, state)| Some((name.as_str(), &state.found()?.info)))
        .filter(|(name, info)| is_finished_job(name, info, &ev.containers, rb))
        .collect()
}

fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
    let down = down(ev, rb);
    let finished = finished(ev, rb);
    let total = ev.containers.len() - finished.len();
    let store = down.iter().any(|(name, _)| {
        rb.service(name)
            .is_some_and(|s| matches!(s.kind, ServiceKind::Postgres(_) | ServiceKind::Redis(_)))
    });
    let mut reasons: Vec<String> = down
        .iter()
        .map(|(name, facts)| match facts {
            Some(facts) => in_words(name, facts),
            None => format!("{name} has no container"),
        })
        .collect();
    reasons.extend(finished.iter().map(|(name, info)| job_in_words(name, info)));
    let said = |certainty, summary: String, reasons, look_alike| Diagnosis {
        certainty,
        summary,
        reasons,
        look_alike,
    };
    let unknown: Vec<String> = ev
        .containers
        .iter()
        .filter_map(|(n, s)| match s {
            ContainerState::Unknown(cause) => Some(format!("{n}: {cause}")),
            _ => None,
        })
        .collect();
    if unknown.len() * 2 > total {
        let summary = "the engine does not tell how the services are".into();
        return said(Certainty::Unknown, summary, unknown, None);
    }
    if down.is_empty() {
        return said(
            Certainty::Absent,
            format!("all {total} services run"),
            reasons,
            None,
        );
    }
    // One that fails takes down what depends on it, and has a scenario of its own.
    if down.len() * 2 <= total || !store {
        let summary = format!(
            "{} of {total} services do not run: that is no outage, `drctl diagnose` names what it is",
            down.len()
        );
        return said(Certainty::Absent, summary, reasons, None);
    }
    if down.iter().all(|(_, facts)| facts.is_none()) {
        let explanation = format!("{} of {total} services have no container", down.len());
        return said(
            Certainty::Confirmed,
            explanation.clone(),
            reasons,
            Some(LookAlike {
                name: "no-container".into(),
                explanation,
                next: vec![
                    "docker compose up -d    # create them from the compose file; named volumes are used again".into(),
                    "drctl runbook show      # is the Compose project's name right?".into(),
                ],
            }),
        );
    }
    reasons.extend(
        endpoints_in_words(ev)
            .into_iter()
            .filter(|w| !w.contains("answers, in")),
    );
    reasons.extend(ev.host.iter().flat_map(Host::exhausted));
    let all = down.len() == total;
    let summary = if all {
        format!("none of the {total} services runs")
    } else {
        format!(
            "{} of {total} services do not run, a data store among them",
            down.len()
        )
    };
    said(Certainty::Confirmed, summary, reasons, None)
}

fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let diagnosis = Outage::diagnose(ev, rb);
    let down = down(ev, rb);
    let missing: Vec<&str> = down
        .iter()
        .filter(|(_, f)| f.is_none())
        .map(|(n, _)| *n)
        .collect();
    let treatable: Vec<(&str, &ContainerFacts)> = down
        .iter()
        .filter_map(|(name, facts)| Some((*name, (*facts)?)))
        .collect();
    // Not a share of the disk: two percent of a large one are plenty.
    let mut disks = ev.host.iter().flat_map(|h| &h.disks);
    let full = disks.find(|d| d.free < ROOM);
    let obstacle = if ev.engine.is_some() {
        Some("the engine does not answer".to_owned())
    } else if !missing.is_empty() {
        Some(format!("there is no container of {}", missing.join(", ")))
    } else {
        // A database that starts on a full disk ends again, and may be the worse for it.
        full.map(|d| d.in_words("full"))
    };
    let mut otherwise = what_to_type(ev);
    if !missing.is_empty() {
        otherwise.push(format!("docker compose up -d {}", missing.join(" ")));
    }
    otherwise.push("drctl diagnose".into());
    let rungs = [ladder::rung(request, Remedy::StartAll, obstacle)];
    let chosen = ladder::choose(
        Outage::NAME,
        &rungs,
        request.remedy,
        &diagnosis.reasons,
        otherwise,
    )?;
    let steps = steps(&treatable, rb);
    let finished = finished(ev, rb);
    let mut expect = vec![Expectation::ServicesRun {
        services: rb
            .start_order()
            .iter()
            .filter(|n| !finished.contains_key(n.as_str()))
            .map(ToString::to_string)
            .collect(),
    }];
    expect.extend(
        rb.postgres_services()
            .map(|(name, ..)| Expectation::ServerAnswers {
                service: name.to_string(),
            }),
    );
    expect.extend([Expectation::Endpoints, Expectation::WriteCheck]);
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: Outage::NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: treatable
            .first()
            .map(|(n, _)| (*n).to_owned())
            .unwrap_or_default(),
        diagnosis: diagnosis.summary,
        remedy: chosen,
        alternatives: ladder::alternatives(&rungs, chosen, |_| String::new()),
        backup: None,
        estimate_seconds: 6 * steps.len() as u64,
        steps,
        expect,
        data_loss: DataLoss {
            summary: "nothing is lost by it: what each server had made durable is there".into(),
            none: true,
            ..DataLoss::default()
        },
        disk_needed: 0,
        disk_free: None,
        kept: String::new(),
        discard: Vec::new(),
    })
}

/// The steps: frozen and looping ones first, each in the order of need, then what is stopped,
/// as many at once as do not need each other.
fn steps(treatable: &[(&str, &ContainerFacts)], rb: &Runbook) -> Vec<Step> {
    let stopped =
        |facts: &ContainerFacts| matches!(facts.info.status, Status::Created | Status::Exited | Status::Dead);
    // A restart of one of several containers is refused, and with it everything that is down. The
    // engine goes on starting them, and they come up when what they need does.
    let left =
        |facts: &ContainerFacts| facts.info.status == Status::Restarting && facts.info.replicas.len() > 1;
    let others = treatable.iter().any(|(_, facts)| !left(facts));
    let mut steps: Vec<Step> = treatable
        .iter()
        .filter(|(_, facts)| !(stopped(facts) || others && left(facts)))
        .map(|(name, facts)| single(name, facts, rb))
        .collect();
    let mut waiting: Vec<&str> = treatable
        .iter()
        .filter(|(_, facts)| stopped(facts))
        .map(|(name, _)| *name)
        .collect();
    while !waiting.is_empty() {
        let ready: Vec<&str> = waiting
            .iter()
            .copied()
            .filter(|name| !waiting.iter().any(|other| needs(rb, name, other)))
            .collect();
        // The runbook has no cycle, so one is always ready.
        if ready.is_empty() {
            break;
        }
        waiting.retain(|name| !ready.contains(name));
        steps.push(start_together(&ready, treatable, rb));
    }
    steps
}

/// Whether `name` needs `other`, directly or through others.
fn needs(rb: &Runbook, name: &str, other: &str) -> bool {
    rb.dependents(other).iter().any(|d| d.as_str() == name)
}

fn timeout(rb: &Runbook, services: &[&str]) -> u64 {
    let is_postgres = |name: &&str| {
        rb.service(name)
            .is_some_and(|s| matches!(s.kind, ServiceKind::Postgres(_)))
    };
    if services.iter().any(is_postgres) {
        // It may have to replay its log first.
        return rb.deadlines.step.as_secs();
    }
    rb.deadlines.stop.as_secs() + 120
}

fn start_together(names: &[&str], treatable: &[(&str, &ContainerFacts)], rb: &Runbook) -> Step {
    let services: Vec<String> = names.iter().map(ToString::to_string).collect();
    let first: Vec<&str> = rb
        .start_order()
        .into_iter()
        .map(ServiceName::as_str)
        .filter(|n| !names.contains(n) && names.iter().any(|name| needs(rb, name, n)))
        .collect();
    let order = if first.is_empty() {
        "no other service is needed for it".to_owned()
    } else {
        format!("after what is needed for it: {}", first.join(", "))
    };
    let ended: Vec<String> = treatable
        .iter()
        .filter(|(name, _)| names.contains(name))
        .map(|(name, facts)| format!("{name} ended with exit code {}", facts.info.exit_code))
        .collect();
    Step {
        title: format!("Start {}", names.join(", ")),
        why: format!("{}; {order}", ended.join(", ")),
        risk: Risk::Reversible,
        action: Action::Workload(WorkloadAction::StartTogether {
            services: services.clone(),
        }),
        undo: Undo::Action(Action::Workload(WorkloadAction::StopTogether { services })),
        timeout_seconds: timeout(rb, names),
    }
}

fn single(name: &str, facts: &ContainerFacts, rb: &Runbook) -> Step {
    let service = name.to_owned();
    let (title, risk, action, undo) = if facts.info.status == Status::Restarting {
        (
            format!("Restart {name}"),
            Risk::Disruptive,
            WorkloadAction::Restart { service },
            "the engine was starting it all the time",
        )
    } else {
        (
            format!("Let {name} run again"),
            Risk::Reversible,
            WorkloadAction::Thaw { service },
            "a process that runs is what was wanted",
        )
    };
    Step {
        title,
        why: in_words(name, facts),
        risk,
        action: Action::Workload(action),
        undo: Undo::NotNeeded(undo.into()),
        timeout_seconds: timeout(rb, &[name]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::lint;
    use crate::scenarios::service_crash::fixtures::container;

    const NOW: &str = "2026-11-20T21:00:00Z";

    fn runbook() -> Runbook {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml");
        crate::runbook::load(std::path::Path::new(path)).unwrap()
    }

    fn evidence(stopped: &[&str]) -> Evidence {
        let containers = ["api1", "api2", "cv_service", "nginx", "postgres", "redis"]
            .into_iter()
            .map(|s| {
                let mut facts = container(s);
                if stopped.contains(&s) {
                    facts.info.status = Status::Exited;
                    facts.info.exit_code = 137;
                }
                (s.to_owned(), ContainerState::Found(Box::new(facts)))
            });
        Evidence {
            taken_at: NOW.parse().unwrap(),
            engine: None,
            containers: containers.collect(),
            endpoints: BTreeMap::new(),
            host: None,
        }
    }

    fn request() -> PlanRequest {
        PlanRequest {
            run: "r".into(),
            tried: vec![],
            remedy: None,
            backup: None,
            now: NOW.parse().unwrap(),
        }
    }

    #[test]
    fn it_takes_a_majority_and_a_data_store() {
        for (stopped, certainty) in [
            (&[][..], Certainty::Absent),
            (&["nginx"], Certainty::Absent),
            (&["postgres"], Certainty::Absent),
            (&["api1", "api2", "postgres"], Certainty::Absent),
            (&["api1", "api2", "cv_service", "nginx"], Certainty::Absent),
            (&["api1", "api2", "nginx", "redis"], Certainty::Confirmed),
            (
                &["api1", "api2", "cv_service", "nginx", "postgres", "redis"],
                Certainty::Confirmed,
            ),
        ] {
            assert_eq!(
                diagnose(&evidence(stopped), &runbook()).certainty,
                certainty,
                "{stopped:?}"
            );
        }
    }

    #[test]
    fn what_is_needed_is_started_before_what_needs_it() {
        let all = ["api1", "api2", "cv_service", "nginx", "postgres", "redis"];
        let plan = plan(&evidence(&all), &runbook(), &request()).unwrap();
        lint(&plan).unwrap();
        let titles: Vec<&str> = plan.steps.iter().map(|s| s.title.as_str()).collect();
        assert_eq!(
            titles,
            [
                "Start postgres, redis",
                "Start api1, api2, cv_service",
                "Start nginx"
            ]
        );
        assert!(
            plan.steps[2].why.contains("api1, api2, cv_service"),
            "{}",
            plan.steps[2].why
        );
        assert!(plan.steps.iter().all(|s| matches!(s.undo, Undo::Action(_))));
        assert_eq!(plan.risk(), Risk::Reversible);
        // A server may have to replay its log; an application has nothing of the kind to do.
        let deadlines = &runbook().deadlines;
        assert_eq!(plan.steps[0].timeout(), deadlines.step);
        assert!(plan.steps[1].timeout() < deadlines.step);
    }

    #[test]
    fn a_finished_job_is_not_started_and_not_waited_for() {
        let all = ["api1", "api2", "cv_service", "nginx", "postgres", "redis"];
        let mut ev = evidence(&all);
        let job = |ev: &mut Evidence, health: Option<&str>| {
            let mut facts = container("cv_service");
            facts.info.status = Status::Exited;
            facts.info.restart_policy = "no".into();
            facts.info.health = health.map(str::to_owned);
            ev.containers
                .insert("cv_service".into(), ContainerState::Found(Box::new(facts)));
        };
        job(&mut ev, None);
        let mut rb = runbook();
        for service in rb.services.values_mut() {
            service.depends_on.retain(|n| n.as_str() != "cv_service");
        }
        let d = diagnose(&ev, &rb);
        assert_eq!(d.summary, "none of the 5 services runs");
        assert!(
            d.reasons
                .iter()
                .any(|r| r.contains("docker start simgen_cv_service_1")),
            "{d:?}"
        );
        let waits_for = |plan: &Plan| match &plan.expect[0] {
            Expectation::ServicesRun { services } => services.clone(),
            other => panic!("{other:?}"),
        };
        let plan_ = plan(&ev, &rb, &request()).unwrap();
        assert!(
            plan_.steps.iter().all(|s| !s.title.contains("cv_service")),
            "{plan_:?}"
        );
        assert!(!waits_for(&plan_).contains(&"cv_service".to_owned()));
        // With a health check it is a service, whatever its policy and its exit code.
        job(&mut ev, Some("unhealthy"));
        let plan_ = plan(&ev, &rb, &request()).unwrap();
        assert!(
            plan_.steps.iter().any(|s| s.title.contains("cv_service")),
            "{plan_:?}"
        );
        assert!(waits_for(&plan_).contains(&"cv_service".to_owned()));
    }

    #[test]
    fn a_service_whose_several_containers_crash_does_not_keep_all_the_others_down() {
        let mut ev = evidence(&["postgres", "redis", "nginx"]);
        let mut facts = container("api1");
        facts.info.status = Status::Restarting;
        let titles = |ev: &Evidence| {
            let plan = plan(ev, &runbook(), &request()).unwrap();
            plan.steps
                .iter()
                .map(|s| s.title.clone())
                .collect::<Vec<_>>()
                .join("; ")
        };
        ev.containers
            .insert("api1".into(), ContainerState::Found(Box::new(facts.clone())));
        assert!(titles(&ev).contains("Restart api1"));
        facts.info.replicas = ["simgen_api1_1", "simgen_api1_2"].map(str::to_owned).into();
        ev.containers
            .insert("api1".into(), ContainerState::Found(Box::new(facts)));
        assert!(!titles(&ev).contains("api1"), "{}", titles(&ev));
        assert!(titles(&ev).contains("postgres"));
    }

    #[test]
    fn what_has_no_container_or_no_disk_is_not_started() {
        let mut ev = evidence(&["api1", "api2", "nginx", "redis"]);
        ev.containers.insert("cv_service".into(), ContainerState::Missing);
        let refusal = plan(&ev, &runbook(), &request()).unwrap_err();
        assert!(
            refusal
                .next
                .iter()
                .any(|n| n.contains("compose up -d cv_service")),
            "{refusal:?}"
        );
        let mut ev = evidence(&["api1", "api2", "nginx", "redis"]);
        ev.host = Some(Host {
            memory: 1 << 34,
            memory_available: 1 << 33,
            cpus: 2,
            load: 0.1,
            disks: vec![host::Disk {
                path: "/".into(),
                size: 1 << 40,
                free: 0,
            }],
        });
        assert!(plan(&ev, &runbook(), &request()).is_err());
        // Little of a large disk is much: a remark.
        let disk = &mut ev.host.as_mut().unwrap().disks[0];
        (disk.size, disk.free) = (10 << 40, 190 << 30);
        assert!(plan(&ev, &runbook(), &request()).is_ok());
        let reasons = diagnose(&ev, &runbook()).reasons;
        assert!(reasons.iter().any(|r| r.contains("nearly full")), "{reasons:?}");
    }

    #[test]
    fn without_an_engine_it_tells_whether_users_are_served() {
        let engine = Unreachable {
            cause: "the Docker engine at unix:///x cannot be reached: there is no socket at /x".into(),
            local: true,
            systemd: Some("inactive (dead), result success".into()),
            process: false,
        };
        let mut ev = evidence(&[]);
        ev.containers.clear();
        ev.engine = Some(engine);
        let good = Answers {
            millis: vec![3],
            failures: vec![],
        };
        let bad = Answers {
            millis: vec![],
            failures: vec!["Connection refused".into()],
        };
        ev.endpoints.insert("health".into(), good);
        let d = Outage::diagnose(&ev, &runbook());
        assert_eq!(d.certainty, Certainty::Unknown);
        assert!(d.summary.contains("still served"));
        ev.endpoints.insert("health".into(), bad);
        let d = Outage::diagnose(&ev, &runbook());
        assert_eq!(d.certainty, Certainty::Confirmed);
        assert!(what_to_type(&ev)[0].starts_with("systemctl status docker"));
        assert!(plan(&ev, &runbook(), &request()).is_err());
    }
}
