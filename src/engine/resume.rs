//! From an approved plan, or from wherever a journal ends, to the last step forward or back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::actions::{self, ActionContext, ActionError, Outcome};
use super::execute::{Hands, Run, Stop, Which};
use super::interrupt::Interrupts;
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Phase, SharedReporter};
use crate::incident::{
    Incident, Journal, JournalError, Lock, LockError, Stage, StateDir, StateError, recovery_lock,
};
use crate::plan::{Action, Undo};
use crate::system::System;

/// Carries out actions on the deployment itself.
pub struct Live<'a> {
    /// The deployment.
    pub system: &'a System,
    /// The incident.
    pub run: &'a str,
    /// Where it is remembered.
    pub state: &'a StateDir,
    /// Where progress goes.
    pub reporter: &'a SharedReporter,
    /// What the steps so far found out, those of an earlier run of this incident too.
    pub facts: Mutex<BTreeMap<String, Value>>,
}

impl Live<'_> {
    fn facts(&self) -> MutexGuard<'_, BTreeMap<String, Value>> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hands for Live<'_> {
    async fn apply(&self, action: &Action, deadline: Duration) -> Result<Outcome, ActionError> {
        let context = ActionContext {
            system: self.system,
            run: self.run,
            state: self.state,
            reporter: self.reporter,
            deadline,
            facts: self.facts().clone(),
        };
        let outcome = actions::apply(&context, action).await?;
        self.facts().extend(outcome.facts.clone());
        Ok(outcome)
    }

    async fn running(&self, services: &[String], which: Which) -> Vec<String> {
        actions::running(self.system, services, which).await
    }
}

/// The directory in which an incident is remembered beside the others: it is continued there.
#[must_use]
pub fn memory_of(incident: &Incident) -> StateDir {
    // STATE/incidents/ID
    StateDir::at(incident.directory.ancestors().nth(2).unwrap_or(Path::new("/")))
}

/// Takes the lock that keeps two recoveries of a deployment apart.
///
/// # Errors
/// [`Kind::Locked`] with the holder, [`Kind::Internal`] when it cannot be made.
pub fn lock(state: &StateDir, deployment: &str, command: &str) -> Result<Lock> {
    Lock::acquire(state, &recovery_lock(deployment), command).map_err(|e| match e {
        LockError::State(e) => Error::new(Kind::Internal, "the lock of this deployment cannot be taken")
            .because(&e)
            .untouched("everything")
            .next("--state-dir DIR    # a directory that can be written"),
        held => Error::new(
            Kind::Locked,
            format!("{deployment} is being recovered by another run: {held}"),
        )
        .untouched("everything")
        .next("drctl incident list    # how far it has come"),
    })
}

/// A journal that cannot be used before anything was done.
#[must_use]
pub fn open_journal_error(e: &JournalError) -> Error {
    let error = Error::new(Kind::Internal, "the incident's journal cannot be used")
        .because(e)
        .untouched("everything: no step was begun");
    match room_for(e) {
        Some(next) => error.next(next),
        None => {
            error.next("drctl incident list    # what else there is; a newer drctl may be able to read it")
        }
    }
}

/// What to type when a journal cannot be written. An incident is continued where it is: another
/// state directory would not know of it.
fn room_for(e: &JournalError) -> Option<String> {
    let JournalError::Write(StateError { path, .. }) = e else {
        return None;
    };
    let directory = path.parent().unwrap_or(path);
    Some(format!(
        "df -h {}    # free some room on this disk, then the same command again",
        directory.display()
    ))
}

/// Continues a plan in the direction that its journal says, and takes it back when a step
/// fails or the first signal comes.
///
/// # Errors
/// [`Kind::FailedUndone`], [`Kind::FailedChanged`], [`Kind::Interrupted`] or
/// [`Kind::Terminated`]; the message says what to type.
pub async fn carry_out(
    system: &System,
    incident: &mut Incident,
    journal: &mut Journal,
    reporter: &SharedReporter,
    interrupts: &Interrupts,
) -> Result<()> {
    let (plan, id) = (incident.plan.clone(), incident.id().to_owned());
    // A run that was killed may have left one behind.
    system.docker.remove_never_started(system.deployment()).await;
    let state = memory_of(incident);
    let live = Live {
        system,
        run: &id,
        state: &state,
        reporter,
        facts: Mutex::new(incident.facts()),
    };
    let mut run = Run {
        plan: &plan,
        hands: &live,
        log: journal,
        progress: incident.progress.clone(),
        reporter,
        interrupts: interrupts.clone(),
    };
    let subject = plan.deployment.clone();
    let ended = match run.progress.stage {
        Stage::Undoing => {
            reporter.event(&Event::Phase {
                phase: Phase::Undo,
                subject,
            });
            run.backward().await.map_err(|stop| (None, Some(stop)))
        }
        Stage::Fresh | Stage::Executing => {
            reporter.event(&Event::Phase {
                phase: Phase::Restore,
                subject: subject.clone(),
            });
            match run.forward().await {
                Ok(()) => Ok(()),
                Err(first @ (Stop::Step { .. } | Stop::Interrupted(_))) => {
                    reporter.event(&Event::Phase {
                        phase: Phase::Undo,
                        subject,
                    });
                    let second = run.backward().await.err();
                    Err((Some(first), second))
                }
                Err(other) => Err((None, Some(other))),
            }
        }
        _ => Ok(()),
    };
    incident.progress = run.progress;
    ended.map_err(|(first, second)| explain(incident, first.as_ref(), second.as_ref()))
}

/// The error of an undo that came to its end and left the deployment changed. What the plan says
/// cannot be taken back is none where the operator decided on the undo, knowing that.
#[must_use]
pub fn left_changed(incident: &Incident) -> Option<Error> {
    let progress = &incident.progress;
    let unforeseen = incident.left_by_choice() || (!progress.undo_decided && !progress.left.is_empty());
    (progress.stage == Stage::Undone && unforeseen).then(|| explain(incident, None, None))
}

/// What the operator reads when a run ended early. `first` made it turn back, `second`
/// stopped it on the way.
fn explain(incident: &Incident, first: Option<&Stop>, second: Option<&Stop>) -> Error {
    let id = incident.id();
    let title = |step: usize| {
        incident.plan.steps.get(step.wrapping_sub(1)).map_or_else(
            || format!("step {step}"),
            |s| format!("step {step} ({})", s.title),
        )
    };
    let mut causes = Vec::new();
    let mut message = match first {
        Some(Stop::Step { step, cause }) => {
            causes.push(cause.clone());
            format!("{} failed", title(*step))
        }
        Some(Stop::Interrupted(signal)) => format!("stopped by {}", signal.name()),
        _ if incident.progress.stage == Stage::Undone => format!("the undo of incident {id} has ended"),
        _ => format!("incident {id} is not finished"),
    };
    let changed = !incident.progress.to_undo().is_empty();
    let kind = match (first, second) {
        (_, Some(Stop::Journal(e))) => {
            causes.push(e.to_string());
            message.push_str(", and the journal cannot be written, so nothing more was begun");
            if changed {
                Kind::FailedChanged
            } else {
                Kind::Internal
            }
        }
        (_, Some(Stop::Undo { step, cause })) => {
            causes.push(cause.clone());
            message += &format!(", and {} could not be taken back", title(*step));
            Kind::FailedChanged
        }
        (_, Some(Stop::Now(signal))) => {
            message += &format!(", and a second signal ({}) stopped it half-way", signal.name());
            Kind::FailedChanged
        }
        (_, Some(Stop::Step { step, cause })) => {
            causes.push(cause.clone());
            message += &format!(": {} failed", title(*step));
            Kind::FailedChanged
        }
        (None, Some(Stop::Interrupted(signal))) => {
            message = format!(
                "stopped by {} before all of incident {id} was taken back",
                signal.name()
            );
            signal.kind()
        }
        (_, Some(Stop::Interrupted(signal))) => {
            message += &format!(", and {} came before all was taken back", signal.name());
            Kind::FailedChanged
        }
        (_, None) if !incident.progress.left.is_empty() => {
            message.push_str(if incident.progress.undone.len() > incident.progress.left.len() {
                "; the other steps were taken back, this stays:"
            } else {
                "; nothing was taken back, this stays:"
            });
            causes.extend(
                incident
                    .progress
                    .left
                    .iter()
                    .map(|(s, l)| format!("{}: {l}", title(*s))),
            );
            Kind::FailedChanged
        }
        (Some(Stop::Interrupted(signal)), _) => {
            message.push_str("; every step was taken back");
            signal.kind()
        }
        _ => {
            message.push_str("; every step was taken back");
            Kind::FailedUndone
        }
    };
    let mut error = Error::new(kind, message);
    error.causes = causes;
    if let Some(Stop::Journal(e)) = second {
        error.next.extend(room_for(e));
    }
    if kind == Kind::FailedChanged || matches!(second, Some(Stop::Interrupted(_))) {
        if incident.left_by_choice() {
            error = error
                .next("drctl diagnose    # what is still wrong, and what helps")
                .next(format!("drctl incident undo {id}    # {}", incident.undo_again()));
        }
        for verb in incident.progress.choices() {
            let what = if matches!(second, Some(Stop::Undo { .. })) && *verb == "close" {
                "    # end it as it is: nothing more is taken back or dropped"
            } else {
                ""
            };
            error = error.next(format!("drctl incident {verb} {id}{what}"));
        }
        if incident.progress.choices().is_empty() || incident.progress.stage == Stage::Undone {
            error = error.next(format!("drctl incident show {id}"));
        }
        return error.untouched(what_stands(incident));
    }
    error
        .untouched(format!("{} is as it was before", incident.plan.deployment))
        .next(format!("drctl incident show {id}    # what happened"))
}

/// What a run that leaves the deployment changed has not touched. Where a step that cannot be
/// taken back has begun, it is not said that nothing was removed.
fn what_stands(incident: &Incident) -> &'static str {
    let removes = |n: &usize| {
        incident
            .plan
            .steps
            .get(n.wrapping_sub(1))
            .is_some_and(|s| matches!(s.undo, Undo::Impossible(_)))
    };
    if incident.progress.started.iter().any(removes) {
        "the application's data: only what these steps name was removed"
    } else {
        "the old data: nothing of it was removed"
    }
}

#[cfg(test)]
mod tests {
    use super::super::model;
    use super::*;
    use crate::engine::Signal;
    use crate::incident::{Case, Progress, Record};

    fn incident(undo: Option<Undo>, records: &[Record]) -> Incident {
        let mut plan = model::plan(2);
        if let Some(undo) = undo {
            plan.steps[0].undo = undo;
        }
        let mut progress = Progress {
            steps: 2,
            ..Progress::default()
        };
        for record in records {
            progress.note(record);
        }
        Incident {
            directory: "/state/incidents/r".into(),
            case: Case {
                format: 1,
                certainty: "confirmed".into(),
                summary: String::new(),
                reasons: Vec::new(),
                evidence: Value::Null,
            },
            plan,
            entries: Vec::new(),
            progress,
        }
    }

    fn undone(left: Option<&str>) -> Vec<Record> {
        vec![
            Record::StepStarted { step: 1 },
            Record::UndoFinished {
                step: 1,
                outcome: String::new(),
                left: left.map(str::to_owned),
            },
            Record::Undone {},
        ]
    }

    #[test]
    fn what_was_removed_is_never_said_to_be_taken_back() {
        let failed = Stop::Step {
            step: 2,
            cause: "it does not start".into(),
        };
        let gone = "the sets that were removed are gone";
        let incident = incident(Some(Undo::Impossible(gone.into())), &undone(Some(gone)));
        for first in [failed, Stop::Interrupted(Signal::Interrupt)] {
            let error = explain(&incident, Some(&first), None);
            assert_eq!(error.kind, Kind::FailedChanged);
            assert!(
                error.causes.iter().any(|c| c.contains(gone)),
                "{:?}",
                error.causes
            );
            assert!(!error.message.contains("every step"), "{}", error.message);
            let untouched = error.untouched.unwrap();
            assert!(
                untouched.contains("only what these steps name was removed"),
                "{untouched}"
            );
            assert!(!untouched.contains("as it was before"));
        }
    }

    #[test]
    fn an_undo_that_a_signal_stopped_is_resumed() {
        let begun = [
            Record::StepStarted { step: 1 },
            Record::StepStarted { step: 2 },
            Record::UndoDecided {},
            Record::UndoFinished {
                step: 2,
                outcome: String::new(),
                left: None,
            },
        ];
        let incident = incident(None, &begun);
        let failed = Stop::Step {
            step: 2,
            cause: "no".into(),
        };
        for (first, signal, kind) in [
            (None, Signal::Interrupt, Kind::Interrupted),
            (None, Signal::Terminate, Kind::Terminated),
            (Some(&failed), Signal::Interrupt, Kind::FailedChanged),
        ] {
            let error = explain(&incident, first, Some(&Stop::Interrupted(signal)));
            assert_eq!(error.kind, kind);
            assert!(!error.message.contains("second"), "{}", error.message);
            assert!(!error.untouched.unwrap().contains("as it was before"));
            assert_eq!(error.next, ["drctl incident resume r"]);
        }
    }

    #[test]
    fn an_undo_that_leaves_more_than_the_plan_said_has_failed() {
        let kind = |undo: Option<Undo>, decided: bool, left: Option<&str>| {
            let mut records = undone(left);
            if decided {
                records.insert(1, Record::UndoDecided {});
            }
            left_changed(&incident(undo, &records)).map(|e| e.kind)
        };
        let gone = || Some(Undo::Impossible("gone".into()));
        // Resumed after a step had failed: as the first process would have ended.
        assert_eq!(
            kind(None, false, Some("it was down before")),
            Some(Kind::FailedChanged)
        );
        assert_eq!(kind(gone(), false, Some("gone")), Some(Kind::FailedChanged));
        assert_eq!(kind(None, false, None), None);
        // The operator's own.
        assert_eq!(
            kind(None, true, Some("somebody else's container")),
            Some(Kind::FailedChanged)
        );
        assert_eq!(kind(gone(), true, Some("gone")), None);
        assert_eq!(kind(None, true, None), None);
    }

    #[test]
    fn what_was_taken_back_is_said_so() {
        let failed = Stop::Step {
            step: 2,
            cause: "no".into(),
        };
        let error = explain(&incident(None, &undone(None)), Some(&failed), None);
        assert_eq!(error.kind, Kind::FailedUndone);
        assert!(error.untouched.unwrap().contains("as it was before"));
    }

    #[test]
    fn a_journal_without_room_is_not_looked_for_elsewhere() {
        let full = JournalError::Write(StateError {
            path: "/state/incidents/r/journal.jsonl".into(),
            source: std::io::ErrorKind::StorageFull.into(),
        });
        let error = open_journal_error(&full).to_string();
        assert!(error.contains("df -h /state/incidents/r "), "{error}");
        assert!(!error.contains("--state-dir"), "{error}");
    }

    #[test]
    fn an_incident_is_remembered_beside_the_others() {
        assert_eq!(
            memory_of(&incident(None, &[])).path(),
            std::path::Path::new("/state")
        );
    }
}
