//! Taking a recovery back, and letting go of what it kept.

use std::collections::BTreeSet;

use super::actions::{self, ActionContext};
use super::interrupt::Interrupts;
use super::proof::{checked, write_report};
use super::resume::{carry_out, memory_of, open_journal_error};
use super::verify;
use crate::error::{Error, Kind, Result};
use crate::event::{Event, SharedReporter, Verdict};
use crate::incident::{Incident, Journal, Log, Record, Report, Stage};
use crate::plan::Expectation;
use crate::system::System;

/// Longest time for dropping one kept thing.
const DISCARD_DEADLINE: std::time::Duration = std::time::Duration::from_secs(15 * 60);

/// Why an incident cannot be taken back, if so. `all` are those that are known.
#[must_use]
pub fn cannot_undo(incident: &Incident, all: &[Incident]) -> Option<Error> {
    let id = incident.id();
    let refused = |text: String| Some(Error::new(Kind::Refused, text).untouched("everything"));
    match incident.progress.stage {
        Stage::Closed if incident.progress.is_given_up() => {
            return refused(format!(
                "incident {id} is closed: what it kept is left to you, drctl takes nothing more of it back"
            ));
        }
        Stage::Closed | Stage::Closing => {
            return refused(format!(
                "incident {id} is closed: what it kept is gone, nothing can bring it back"
            ));
        }
        Stage::Undone if !incident.left_by_choice() => {
            return refused(format!("incident {id} is already taken back"));
        }
        _ => {}
    }
    // A later recovery of a service stands on what this one brought into service. A plan is named
    // after one, and may be about several.
    let services = |i: &Incident| -> BTreeSet<String> {
        let named = i.plan.services().into_iter();
        named
            .chain([i.plan.service.as_str()])
            .map(str::to_owned)
            .collect()
    };
    let ours = services(incident);
    // The latest first: it stands on nothing itself.
    let above = all.iter().rev().find(|l| {
        !services(l).is_disjoint(&ours)
            && l.plan.deployment == incident.plan.deployment
            && l.id() != id
            && l.place() > incident.place()
            && (l.progress.stage != Stage::Undone || l.left_by_choice())
            && l.progress.stage != Stage::Fresh
    });
    let above = above?;
    let later = format!("incident {} came later and stands on this one", above.id());
    if matches!(above.progress.stage, Stage::Closed | Stage::Closing) {
        return refused(format!(
            "{later}; it is closed, so neither can be taken back any more"
        ))
        .map(|e| e.next(format!("drctl incident close {id}    # let go of what it keeps")));
    }
    refused(later).map(|e| e.next(format!("drctl incident undo {}", above.id())))
}

/// Takes back every step that began, then looks whether the service answers as far as it
/// did before.
///
/// # Errors
/// As [`carry_out`].
pub async fn take_back(
    system: &System,
    incident: &mut Incident,
    journal: &mut Journal,
    how: String,
    reporter: &SharedReporter,
    interrupts: &Interrupts,
) -> Result<Report> {
    for record in [
        Record::Approved {
            what: "undo".into(),
            how,
        },
        Record::UndoDecided {},
    ] {
        journal
            .append(record.clone())
            .map_err(|e| open_journal_error(&e))?;
        incident.progress.note(&record);
    }
    let seen = interrupts.seen().0;
    carry_out(system, incident, journal, reporter, interrupts).await?;
    for (step, left) in &incident.progress.left {
        reporter.event(&Event::Warning {
            text: format!("step {step} is not taken back: {left}"),
        });
    }
    // The old data was damaged, so this tells how it is rather than judges.
    let basic: Vec<Expectation> = incident
        .plan
        .expect
        .iter()
        .filter(|e| matches!(e, Expectation::ServerAnswers { .. } | Expectation::Endpoints))
        .cloned()
        .collect();
    // Also one that came during the last step: all is taken back, and they want to go.
    let looked = checked(system, &basic, journal, reporter, interrupts, seen).await;
    let warning = match looked {
        Err(which) => Some(format!(
            "{} came: all is taken back, and whether {} answers was not looked at to the end",
            which.name(),
            incident.plan.deployment
        )),
        Ok(checks) => {
            let checks = checks.map_err(|e| open_journal_error(&e))?;
            (verify::overall(&checks) == Verdict::Fail).then(|| {
                format!(
                    "{} does not answer as it should: it is back in the state from before the recovery",
                    incident.plan.deployment
                )
            })
        }
    };
    if let Some(text) = warning {
        reporter.event(&Event::Warning { text });
    }
    Ok(write_report(system, incident, journal, reporter))
}

/// Why an incident cannot be closed, if so.
#[must_use]
pub fn cannot_close(incident: &Incident, all: &[Incident]) -> Option<Error> {
    let id = incident.id();
    // Its remedy did not hold, and a later one did.
    let superseded = all.iter().any(|i| {
        i.progress.follows.as_deref() == Some(id) && i.progress.stage == Stage::Verified(Verdict::Pass)
    });
    let problem = match incident.progress.stage {
        Stage::Closed => format!("incident {id} is already closed"),
        // It may never succeed, and nothing can be recovered while it is half-way: the operator may
        // end it. What it keeps stays.
        Stage::Undoing if incident.progress.undo_failed.is_some() => return None,
        Stage::Executing | Stage::Undoing => {
            format!("incident {id} is half-way: the old data may be what brings the service back")
        }
        Stage::Executed | Stage::Verified(Verdict::Fail | Verdict::CouldNotVerify) if !superseded => {
            format!("the recovery of incident {id} is not proven: what it keeps may be the only good copy")
        }
        _ => return None,
    };
    let mut error = Error::new(Kind::Refused, problem).untouched("everything");
    for verb in incident.progress.choices() {
        error = error.next(format!("drctl incident {verb} {id}"));
    }
    Some(error)
}

/// What closing an incident did.
#[derive(Debug)]
pub struct Closed {
    /// What was dropped, one line each.
    pub dropped: Vec<String>,
    /// What stays as it is, one line each, where it could not be taken back.
    pub left: Vec<String>,
}

/// Drops what the incident kept, and closes it. Cut off, it is called again. Where it could not be
/// taken back nothing is dropped: what it keeps may be the old data.
///
/// # Errors
/// [`Kind::FailedChanged`] when something could not be dropped.
pub async fn close(
    system: &System,
    incident: &mut Incident,
    journal: &mut Journal,
    how: String,
    reporter: &SharedReporter,
) -> Result<Closed> {
    let id = incident.id().to_owned();
    journal
        .append(Record::Approved {
            what: "close".into(),
            how,
        })
        .map_err(|e| open_journal_error(&e))?;
    let mut dropped = Vec::new();
    let gives_up = incident.progress.stage == Stage::Undoing;
    let left = if gives_up {
        incident.what_stays()
    } else {
        Vec::new()
    };
    // Nothing was begun: there is nothing to drop.
    if !gives_up && !incident.progress.started.is_empty() {
        if !incident.plan.discard.is_empty() {
            journal
                .append(Record::DiscardStarted {})
                .map_err(|e| open_journal_error(&e))?;
        }
        let state = memory_of(incident);
        let context = ActionContext {
            system,
            run: &id,
            state: &state,
            reporter,
            deadline: DISCARD_DEADLINE,
            facts: incident.facts(),
        };
        for action in &incident.plan.discard {
            let limit = tokio::time::timeout(DISCARD_DEADLINE, actions::apply(&context, action));
            let failed = |cause: String| {
                let mut e = Error::new(
                    Kind::FailedChanged,
                    format!("incident {id}: could not {}", action.summary()),
                )
                .untouched("the data in service")
                .next(format!("drctl incident close {id}    # again"));
                e.causes.push(cause);
                e
            };
            match limit.await {
                Ok(Ok(outcome)) => dropped.push(if outcome.text.is_empty() {
                    action.summary()
                } else {
                    outcome.text
                }),
                Ok(Err(e)) => return Err(failed(e.to_string())),
                Err(_) => {
                    return Err(failed(format!(
                        "not done within {}",
                        crate::event::seconds(DISCARD_DEADLINE)
                    )));
                }
            }
        }
    }
    journal
        .append(Record::Closed {
            dropped: dropped.clone(),
            left: left.clone(),
        })
        .map_err(|e| open_journal_error(&e))?;
    write_report(system, incident, journal, reporter);
    Ok(Closed { dropped, left })
}

#[cfg(test)]
mod tests {
    use super::super::model;
    use super::*;
    use crate::incident::{Case, Progress};
    use crate::plan::{Action, Undo, WorkloadAction};

    fn incident(run: &str, records: &[Record]) -> Incident {
        let mut plan = model::plan(2);
        plan.run = run.into();
        let mut progress = Progress {
            steps: 2,
            ..Progress::default()
        };
        for record in records {
            progress.note(record);
        }
        Incident {
            directory: format!("/state/incidents/{run}").into(),
            case: Case {
                format: 1,
                certainty: "confirmed".into(),
                summary: String::new(),
                reasons: Vec::new(),
                evidence: serde_json::Value::Null,
            },
            plan,
            entries: Vec::new(),
            progress,
        }
    }

    #[test]
    fn what_came_later_on_any_of_its_services_is_undone_first() {
        let start = |service: &str| {
            Action::Workload(WorkloadAction::Start {
                service: service.into(),
                wait: true,
            })
        };
        let about = |run: &str, number: u64, services: [&str; 2]| {
            let mut incident = incident(run, &[Record::StepStarted { step: 1 }]);
            incident.progress.number = number;
            incident.plan.service = services[0].into();
            for (step, service) in incident.plan.steps.iter_mut().zip(services) {
                step.action = start(service);
                step.undo = Undo::NotNeeded(String::new());
            }
            incident
        };
        let first = about("first", 1, ["api", "worker"]);
        let refused = |later: &Incident| cannot_undo(&first, &[first.clone(), later.clone()]);
        let error = refused(&about("second", 2, ["worker", "worker"])).unwrap();
        assert_eq!(error.next, ["drctl incident undo second"]);
        assert!(refused(&about("second", 2, ["redis", "redis"])).is_none());
        assert!(refused(&about("earlier", 0, ["worker", "worker"])).is_none());
    }

    #[test]
    fn an_undo_that_failed_can_be_ended_and_one_that_was_cut_off_cannot() {
        let mut records = vec![
            Record::StepStarted { step: 1 },
            Record::StepStarted { step: 2 },
            Record::UndoDecided {},
            Record::UndoStarted { step: 2 },
        ];
        let refused = cannot_close(&incident("r", &records), &[]).unwrap();
        assert_eq!(refused.next, ["drctl incident resume r"]);
        records.push(Record::UndoFailed {
            step: 2,
            cause: "the old container is gone".into(),
        });
        let stuck = incident("r", &records);
        assert!(cannot_close(&stuck, &[]).is_none());
        assert_eq!(
            stuck.what_stays(),
            [
                "step 2 (step 2) is not taken back: the old container is gone",
                "step 1 (step 1) is not taken back",
            ]
        );
        records.push(Record::Closed {
            dropped: Vec::new(),
            left: stuck.what_stays(),
        });
        let refused = cannot_undo(&incident("r", &records), &[]).unwrap();
        assert!(refused.message.contains("left to you"), "{}", refused.message);
    }
}
