//! One recovery from the first look to the proof: observe, decide, approve, act, prove.
//! The scenario says what is looked at and what is done; this says in which order, what is
//! remembered, and when to stop.

mod later;
mod memory;

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use crate::engine::approve::{approve, check_rules};
use crate::engine::{self, ApprovedPlan, Consent, Interrupts};
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Phase, SharedReporter, Verdict};
use crate::incident::{
    CASE_FORMAT, Case, Incident, Journal, Listing, Log, Record, Report, Stage, StateDir, fresh_id,
    remember_home,
};
use crate::plan::{Plan, Remedy};
use crate::probe::observer::Observer;
use crate::probe::watch::Watch;
use crate::scenarios::{Certainty, DetectOptions, Diagnosis, PlanRequest, Refusal, Scenario};
use crate::system::System;

use memory::Memory;

pub use later::{close, resume, undo};

/// How long a remedy that did not hold is remembered as tried.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// What a recovery works with.
pub struct Recover<'a> {
    /// The deployment.
    pub system: &'a System,
    /// drctl's memory.
    pub state: &'a StateDir,
    /// Where events go.
    pub reporter: &'a SharedReporter,
    /// The operator's agreement.
    pub consent: Consent,
    /// Stop after the plan, and leave no trace.
    pub dry_run: bool,
    /// The remedy that the operator chose.
    pub remedy: Option<Remedy>,
    /// The backup set that the operator chose.
    pub backup: Option<String>,
    /// What to look at.
    pub look: DetectOptions,
    /// Numbers of acknowledged writes, for measuring the loss.
    pub acknowledged: Option<Vec<u64>>,
}

/// How a recovery ended well.
#[derive(Debug)]
pub enum Ended {
    /// There is nothing to recover from; nothing was changed.
    Absent,
    /// The plan was shown; nothing was changed.
    Shown,
    /// Recovered and proven.
    Recovered(Box<Report>),
}

/// Recovers from a scenario. Nothing is changed before the operator agreed to a plan.
///
/// # Errors
/// Every other end of a recovery, by kind: see the exit codes.
pub async fn recover<S: Scenario>(cx: &Recover<'_>) -> Result<Ended> {
    let began = Timestamp::now();
    let runbook = &cx.system.runbook;
    // From the first moment: what users see while drctl looks and asks counts too.
    let watch = Watch::start(runbook);
    let deployment = runbook.deployment.as_str();
    let command = format!("recover {}", S::NAME);
    let mut memory = if cx.dry_run {
        None
    } else {
        Some(Memory::open(cx.state, deployment, &command, cx.reporter)?)
    };
    // Both places are read, whichever this run writes to.
    let before = Listing::read(cx.state);
    half_way(&before, deployment)?;

    let mut past = Past::of(&before, deployment, S::NAME);
    let mut number = before.next_number();
    let mut chosen = cx.remedy;
    loop {
        cx.reporter.event(&Event::Phase {
            phase: Phase::Detect,
            subject: deployment.to_owned(),
        });
        let evidence = S::detect(&Observer::new(cx.system, cx.reporter), &cx.look).await?;
        let diagnosis = S::diagnose(&evidence, runbook);
        let diagnosed = Timestamp::now();
        tell(cx.reporter, &diagnosis);
        if let Some(ended) = nothing_to_do(&diagnosis, S::NAME)? {
            return match past.in_this_run {
                // The proof said no and the diagnosis says nothing is wrong.
                Some(id) => Err(unproven(&id, Verdict::Fail)),
                None => Ok(ended),
            };
        }
        let request = PlanRequest {
            run: fresh_id(diagnosed, S::NAME),
            tried: past.tried.clone(),
            remedy: chosen.take(),
            backup: cx.backup.clone(),
            now: diagnosed,
        };
        let plan = match S::plan(&evidence, runbook, &request) {
            Ok(plan) => alone(cx.system, &plan).await.map(|()| plan),
            Err(refusal) => Err(refusal),
        }
        .map_err(|r| refused(r, &diagnosis, &past))?;
        check_rules(&plan)?;
        cx.reporter.event(&Event::Plan {
            plan: Box::new(plan.clone()),
        });
        let Some(memory) = memory.as_mut() else {
            return Ok(Ended::Shown);
        };
        let approved = past.approve(plan, cx).await?;

        let down_since = down_since(cx.system, &approved.plan().service).await;
        let opened = Record::Opened {
            incident: approved.plan().run.clone(),
            number,
            deployment: deployment.to_owned(),
            scenario: S::NAME.to_owned(),
            service: approved.plan().service.clone(),
            began,
            diagnosed,
            down_since: watch.as_ref().and_then(|w| w.down_since(down_since)),
            follows: past.last.clone(),
            drctl: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let case = Case {
            format: CASE_FORMAT,
            certainty: diagnosis.certainty.name().to_owned(),
            summary: diagnosis.summary.clone(),
            reasons: diagnosis.reasons.clone(),
            evidence: serde_json::to_value(&evidence).unwrap_or_default(),
        };
        let (mut incident, mut journal) = open(&memory.state, &case, &approved, opened, cx.reporter)?;
        if memory.state.path() != cx.state.path()
            && let Err(e) = remember_home(&incident.directory, cx.state)
        {
            cx.reporter.event(&Event::Warning {
                text: format!("the incident will stay where it is: {e}"),
            });
        }
        number += 1;
        memory.lock.progress(&format!("incident {}", incident.id()));
        let interrupts = past.listen()?;
        if let Err(e) =
            engine::carry_out(cx.system, &mut incident, &mut journal, cx.reporter, &interrupts).await
        {
            engine::write_report(cx.system, &mut incident, &mut journal, cx.reporter);
            return Err(e);
        }
        let proof = engine::prove(
            cx.system,
            &mut incident,
            &mut journal,
            cx.reporter,
            &interrupts,
            watch.as_ref(),
            cx.acknowledged.as_deref(),
        )
        .await?;
        publish(cx.reporter, &proof.report);
        // Closed before its directory moves.
        drop(journal);
        let held = (memory.state.path() != cx.state.path()).then_some(deployment);
        memory::bring_home(cx.state, held, cx.reporter);
        if proof.verdict == Verdict::Pass {
            return Ok(Ended::Recovered(Box::new(proof.report)));
        }
        // A person may go on to the next rung at once, unless they have asked to stop. Flags were
        // given for the first plan, and are not taken as agreement to a harsher one.
        let is_stopped = interrupts.seen().0 > 0;
        if proof.verdict != Verdict::Fail || is_stopped || !cx.consent.ask.is_possible() {
            return Err(unproven(incident.id(), proof.verdict));
        }
        cx.reporter.event(&Event::Warning {
            text: format!(
                "{} did not hold; looking again for the next remedy",
                approved.plan().remedy
            ),
        });
        past.failed(&incident);
    }
}

/// What was tried before, in this run and in earlier ones.
#[derive(Default)]
struct Past {
    tried: Vec<Remedy>,
    last: Option<String>,
    in_this_run: Option<String>,
    interrupts: Option<Interrupts>,
}

impl Past {
    /// Remedies that were carried out lately and did not hold.
    fn of(listing: &Listing, deployment: &str, scenario: &str) -> Self {
        let mut past = Self::default();
        let now = Timestamp::now();
        for incident in &listing.incidents {
            let not_held = matches!(
                incident.progress.stage,
                Stage::Executed | Stage::Verified(Verdict::Fail | Verdict::CouldNotVerify)
            );
            let fresh = incident
                .last_at()
                .is_some_and(|at| now.duration_since(at) < REMEMBERED);
            if not_held
                && fresh
                && incident.plan.deployment == deployment
                && incident.plan.scenario == scenario
            {
                past.tried.push(incident.plan.remedy);
                past.last = Some(incident.id().to_owned());
            }
        }
        past
    }

    fn failed(&mut self, incident: &Incident) {
        self.tried.push(incident.plan.remedy);
        self.last = Some(incident.id().to_owned());
        self.in_this_run = self.last.clone();
    }

    /// Signals are taken over only when there is something to bring to a safe end.
    fn listen(&mut self) -> Result<Interrupts> {
        if self.interrupts.is_none() {
            self.interrupts = Some(listen()?);
        }
        Ok(self.interrupts.clone().unwrap_or_else(Interrupts::none))
    }

    async fn approve(&self, plan: Plan, cx: &Recover<'_>) -> Result<ApprovedPlan> {
        let environment = cx.system.runbook.environment;
        let Some(interrupts) = &self.interrupts else {
            return approve(plan, environment, &cx.consent).await;
        };
        let by_person = Consent {
            yes: false,
            confirm: None,
            ask: cx.consent.ask.clone(),
        };
        tokio::select! {
            approved = approve(plan, environment, &by_person) => approved,
            which = interrupts.more_than(interrupts.seen().0) => Err(Error::new(
                which.kind(),
                format!("stopped by {} before the next remedy was begun", which.name()),
            )
            .untouched("what the remedy before has left: its incident can be verified again or taken back")
            .next("drctl incident list")),
        }
    }
}

fn listen() -> Result<Interrupts> {
    Interrupts::listen().map_err(|e| {
        Error::new(
            Kind::Internal,
            "signals cannot be taken over: a Ctrl-C would end drctl in the middle of a step",
        )
        .because(&e)
        .untouched("everything: no step was begun")
    })
}

/// Tells what was found.
pub fn tell(reporter: &SharedReporter, diagnosis: &Diagnosis) {
    reporter.event(&Event::Diagnosis {
        certainty: diagnosis.certainty.name().to_owned(),
        summary: diagnosis.summary.clone(),
        reasons: diagnosis.reasons.clone(),
        look_alike: diagnosis.look_alike.as_ref().map(|l| l.name.clone()),
    });
}

/// Whether the diagnosis ends the recovery before a plan is made.
///
/// # Errors
/// [`Kind::Refused`] for a look-alike, [`Kind::CouldNotVerify`] for an unknown state.
fn nothing_to_do(diagnosis: &Diagnosis, scenario: &str) -> Result<Option<Ended>> {
    if let Some(look_alike) = &diagnosis.look_alike {
        let mut error = Error::new(
            Kind::Refused,
            format!(
                "this is not {scenario} but {}: a recovery would do harm and not help",
                look_alike.name
            ),
        )
        .untouched("everything");
        error.next.clone_from(&look_alike.next);
        return Err(error);
    }
    match diagnosis.certainty {
        Certainty::Absent => Ok(Some(Ended::Absent)),
        Certainty::Unknown => {
            let mut error = Error::new(
                Kind::CouldNotVerify,
                format!(
                    "{scenario} could be neither found nor excluded: {}",
                    diagnosis.summary
                ),
            )
            .untouched("everything")
            .next("docker stats --no-stream    # is something frozen, or the host overloaded?")
            .next(format!("drctl recover {scenario} --dry-run    # look again"));
            error.causes.clone_from(&diagnosis.reasons);
            Err(error)
        }
        Certainty::Confirmed | Certainty::Suspected => Ok(None),
    }
}

/// Refuses a plan that would take one container of a service for all of them.
async fn alone(system: &System, plan: &Plan) -> Result<(), Refusal> {
    let services: BTreeSet<&String> = plan
        .steps
        .iter()
        .flat_map(|s| s.action.changes_the_container_of())
        .collect();
    for service in services {
        // Where it cannot be asked, the step finds out.
        let Ok(container) = system.container(service).await else {
            continue;
        };
        if let Some(message) = container.not_alone(service) {
            return Err(Refusal {
                message,
                reasons: plan
                    .steps
                    .iter()
                    .map(|s| format!("{}: {}", s.title, s.why))
                    .collect(),
                next: vec![
                    format!(
                        "docker logs --tail 50 {}    # the one that is worst off",
                        container.name
                    ),
                    format!("docker restart {}", container.name),
                    format!(
                        "docker compose up -d --force-recreate --no-deps {service}    # makes all of them anew"
                    ),
                ],
            });
        }
    }
    Ok(())
}

fn refused(refusal: Refusal, diagnosis: &Diagnosis, past: &Past) -> Error {
    let kind = if past.in_this_run.is_some() {
        Kind::VerifyFailed
    } else {
        Kind::Refused
    };
    let mut error = Error::new(kind, refusal.message).untouched(match &past.in_this_run {
        None => "everything".to_owned(),
        Some(id) => format!("nothing was begun after incident {id}, which keeps the old data"),
    });
    error.causes = refusal.reasons;
    if error.causes.is_empty() {
        error.causes.clone_from(&diagnosis.reasons);
    }
    error.next = refusal.next;
    if let Some(id) = &past.in_this_run {
        error = error.next(format!("drctl incident undo {id}"));
    }
    error
}

/// The error of a recovery whose proof is not a pass.
#[must_use]
pub fn unproven(id: &str, verdict: Verdict) -> Error {
    let (kind, message) = if verdict == Verdict::Fail {
        (
            Kind::VerifyFailed,
            "the recovery was carried out and does not hold",
        )
    } else {
        (
            Kind::CouldNotVerify,
            "the recovery was carried out and could not be verified",
        )
    };
    let error = Error::new(kind, message).untouched("the old data: it is kept until the incident is closed");
    let error = if verdict == Verdict::Fail {
        error.next("drctl recover with the same arguments    # look again, and plan the next remedy")
    } else {
        error
    };
    error
        .next("drctl diagnose    # what is still wrong, and what helps")
        .next(format!("drctl incident resume {id}    # verify again"))
        .next(format!("drctl incident undo {id}    # bring the old data back"))
}

/// Refuses to begin while an earlier recovery of the deployment is neither done nor undone.
fn half_way(listing: &Listing, deployment: &str) -> Result<()> {
    let found = listing
        .incidents
        .iter()
        .rfind(|i| i.plan.deployment == deployment && i.progress.stage.is_half_way());
    let Some(incident) = found else {
        return known(listing, deployment);
    };
    let mut error = Error::new(
        Kind::Refused,
        format!(
            "incident {} of {deployment} is {}",
            incident.id(),
            incident.progress.stage.words()
        ),
    )
    .untouched("everything: nothing is begun on a deployment that is half-way");
    for verb in incident.progress.choices() {
        error = error.next(format!("drctl incident {verb} {}", incident.id()));
    }
    Err(error)
}

/// Refuses while an incident that may be the deployment's cannot be read: whether it is half-way,
/// and what stands on it, is not known.
fn known(listing: &Listing, deployment: &str) -> Result<()> {
    let Some(found) = listing.unknown(deployment) else {
        return Ok(());
    };
    let mut error = Error::new(
        Kind::Refused,
        format!(
            "{} cannot be read, and may be half-way: {}",
            found.path.display(),
            found.cause
        ),
    )
    .untouched("everything: nothing is begun on a deployment that may be half-way")
    .next("drctl incident list    # what else there is; a newer drctl may be able to read it");
    // Not the list itself, with the incidents of every deployment.
    let incidents = found.path.parent().filter(|p| p.ends_with("incidents"));
    if let Some(parent) = incidents.and_then(std::path::Path::parent) {
        error = error.next(format!(
            "mv {} {}/    # once you know that it has come to its end, or is a copy",
            found.path.display(),
            parent.display()
        ));
    }
    Err(error)
}

/// When the service's container ended, if it does not run: users were turned away since.
async fn down_since(system: &System, service: &str) -> Option<Timestamp> {
    let container = system.container(service).await.ok()?;
    container.finished_at.filter(|_| !container.is_running())
}

/// Opens the incident of an approved plan.
fn open(
    state: &StateDir,
    case: &Case,
    approved: &ApprovedPlan,
    opened: Record,
    reporter: &SharedReporter,
) -> Result<(Incident, Journal)> {
    let cannot = |e: &dyn std::fmt::Display| {
        let mut error = Error::new(Kind::Internal, "the incident cannot be opened")
            .untouched("everything: no step was begun")
            .next("--state-dir DIR    # a directory that can be written, with 1 MiB free");
        error.causes.push(e.to_string());
        error
    };
    let plan = approved.plan();
    let (directory, mut journal) = Incident::create(state, case, plan).map_err(|e| cannot(&e))?;
    for record in [
        opened,
        Record::Planned {
            remedy: plan.remedy,
            steps: plan.steps.len(),
        },
        Record::Approved {
            what: "recover".into(),
            how: approved.how().to_owned(),
        },
    ] {
        journal.append(record).map_err(|e| cannot(&e))?;
    }
    let incident = Incident::load(&directory).map_err(|e| cannot(&e))?;
    reporter.event(&Event::Incident {
        id: incident.id().to_owned(),
        directory: directory.display().to_string(),
    });
    Ok((incident, journal))
}

fn publish(reporter: &SharedReporter, report: &Report) {
    reporter.event(&Event::Report {
        report: serde_json::to_value(report).unwrap_or_default(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::LookAlike;

    fn diagnosis(certainty: Certainty, look_alike: bool) -> Diagnosis {
        Diagnosis {
            certainty,
            summary: "s".into(),
            reasons: vec!["r".into()],
            look_alike: look_alike.then(|| LookAlike {
                name: "permissions".into(),
                explanation: "files belong to root".into(),
                next: vec!["chown".into()],
            }),
        }
    }

    #[test]
    fn only_positive_evidence_leads_to_a_plan() {
        for (certainty, look_alike, expected) in [
            (Certainty::Confirmed, false, Ok(false)),
            (Certainty::Suspected, false, Ok(false)),
            (Certainty::Absent, false, Ok(true)),
            (Certainty::Unknown, false, Err(Kind::CouldNotVerify)),
            (Certainty::Confirmed, true, Err(Kind::Refused)),
            (Certainty::Suspected, true, Err(Kind::Refused)),
            (Certainty::Absent, true, Err(Kind::Refused)),
        ] {
            let ended = nothing_to_do(&diagnosis(certainty, look_alike), "db-corruption");
            assert_eq!(ended.map(|e| e.is_some()).map_err(|e| e.kind), expected);
        }
    }
}
