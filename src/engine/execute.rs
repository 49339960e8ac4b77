//! Carries out a plan, forwards and backwards. Each effect stands between two records of
//! the journal; what to do next is always read off the fold of the journal, so a first
//! run, a resumed run and an undo are the same code.

use std::future::Future;
use std::time::{Duration, Instant};

use super::actions::{ActionError, Outcome};
use super::interrupt::{Interrupts, Signal};
use crate::event::{Event, SharedReporter};
use crate::incident::{JournalError, Log, Progress, Record, Stage};
use crate::plan::{Action, Plan, Risk, Step, Undo, WorkloadAction};

/// What carries out actions. A trait so that the order of records and effects can be
/// tested at every point where a run can be cut off.
pub trait Hands: Sync {
    /// Carries out one action. Applying it again, after any interruption, is safe.
    fn apply(
        &self,
        action: &Action,
        deadline: Duration,
    ) -> impl Future<Output = Result<Outcome, ActionError>> + Send;

    /// Those of `services` that run or, of `Which::Replaying`, replay their log.
    fn running(&self, services: &[String], which: Which) -> impl Future<Output = Vec<String>> + Send;
}

/// What is asked of services before they are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Any that runs.
    Any,
    /// A PostgreSQL server that takes no connections yet: stopped, its replay begins anew.
    Replaying,
}

/// How long an action may outlive its own deadline before it is dropped.
const GRACE: Duration = Duration::from_secs(15);
/// Shortest time an undo gets: a step may have a short limit and a slow way back.
const SHORTEST_UNDO: Duration = Duration::from_secs(120);

/// Why carrying out ended early.
#[derive(Debug)]
pub enum Stop {
    /// The journal cannot be written: nothing further was begun.
    Journal(JournalError),
    /// A step failed.
    Step {
        /// Which, from 1.
        step: usize,
        /// Why.
        cause: String,
    },
    /// A step could not be taken back.
    Undo {
        /// Which, from 1.
        step: usize,
        /// Why.
        cause: String,
    },
    /// The first signal: the current step has ended, forwards or backwards.
    Interrupted(Signal),
    /// The second signal: stopped where it stood.
    Now(Signal),
}

impl From<JournalError> for Stop {
    fn from(e: JournalError) -> Self {
        Self::Journal(e)
    }
}

/// A plan in progress.
pub struct Run<'a, H, L> {
    /// The plan. Approval was got before a `Run` is made.
    pub plan: &'a Plan,
    /// What acts.
    pub hands: &'a H,
    /// The journal.
    pub log: &'a mut L,
    /// The fold of the journal.
    pub progress: Progress,
    /// Where events go.
    pub reporter: &'a SharedReporter,
    /// Signals.
    pub interrupts: Interrupts,
}

enum Applied {
    Done(Result<Outcome, Failed>, Duration),
    Cut(Signal),
}

/// Why an action failed.
struct Failed {
    cause: String,
    /// It says that it had not changed anything.
    untouched: bool,
}

impl<H: Hands, L: Log> Run<'_, H, L> {
    /// Makes a record durable and takes it into account.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn record(&mut self, record: Record) -> Result<(), JournalError> {
        self.log.append(record.clone())?;
        self.progress.note(&record);
        Ok(())
    }

    fn step(&self, number: usize) -> Option<&Step> {
        self.plan.steps.get(number.wrapping_sub(1))
    }

    /// Carries out the steps that are not finished, in order.
    ///
    /// # Errors
    /// [`Stop`].
    pub async fn forward(&mut self) -> Result<(), Stop> {
        while let Some(number) = self.progress.next_step() {
            let (count, which) = self.interrupts.seen();
            if count > 0 {
                return self.interrupted(which);
            }
            let Some(step) = self.step(number).cloned() else {
                return Err(Stop::Step {
                    step: number,
                    cause: "the plan has no such step".into(),
                });
            };
            // What an earlier run of it has changed, this one cannot know.
            let first = !self.progress.started.contains(&number);
            self.record(Record::StepStarted { step: number })?;
            self.reporter.event(&Event::StepStarted {
                step: number,
                of: self.plan.steps.len(),
                title: step.title.clone(),
            });
            // What only works on a side copy can be dropped at any moment. What users
            // notice is short, and is let finish: cut off, it would be harder to take back. What
            // drctl does not take back is let finish too, so that its outcome is written down.
            let may_cut =
                step.risk <= Risk::Reversible && matches!(step.undo, Undo::NotNeeded(_) | Undo::Action(_));
            let applied = self
                .apply(&step.action, step.timeout(), u32::from(!may_cut))
                .await;
            match applied {
                Applied::Cut(which) if may_cut => return self.interrupted(which),
                Applied::Cut(which) => return Err(Stop::Now(which)),
                Applied::Done(Ok(outcome), took) => {
                    self.record(Record::StepFinished {
                        step: number,
                        outcome: outcome.text.clone(),
                        facts: outcome.facts,
                        seconds: took.as_secs_f64(),
                    })?;
                    self.reporter.event(&Event::StepFinished {
                        step: number,
                        title: step.title,
                        outcome: outcome.text,
                        seconds: took.as_secs_f64(),
                    });
                }
                Applied::Done(Err(Failed { cause, untouched }), _) => {
                    self.record(Record::StepFailed {
                        step: number,
                        cause: cause.clone(),
                        untouched: untouched && first,
                    })?;
                    self.reporter.event(&Event::StepFailed {
                        step: number,
                        title: step.title,
                        cause: cause.clone(),
                    });
                    return Err(Stop::Step { step: number, cause });
                }
            }
        }
        Ok(())
    }

    /// Takes back every step that began, in reverse order, and stops at the first that
    /// cannot be taken back: the earlier ones rest on it. Unless the operator said so, no
    /// service is stopped that was down before and runs now. A first signal lets the current one
    /// end and stops before the next; a second, also where the first has begun the way back, stops
    /// where it stands.
    ///
    /// # Errors
    /// [`Stop`].
    pub async fn backward(&mut self) -> Result<(), Stop> {
        if self.progress.stage == Stage::Undone {
            return Ok(());
        }
        let seen = self.interrupts.seen().0;
        // Cut off in its middle, a step back is as hard to continue as one forward.
        let patience = seen.max(1);
        for number in self.progress.to_undo() {
            let (count, which) = self.interrupts.seen();
            if count > patience {
                return Err(Stop::Now(which));
            }
            if count > seen {
                return self.interrupted(which);
            }
            let Some(step) = self.step(number).cloned() else {
                return Err(Stop::Undo {
                    step: number,
                    cause: "the plan has no such step".into(),
                });
            };
            self.record(Record::UndoStarted { step: number })?;
            let (outcome, left) = match &step.undo {
                Undo::NotNeeded(why) => (format!("nothing to take back: {why}"), None),
                Undo::Manual(what) => (format!("left to you: {what}"), Some(what.clone())),
                Undo::Impossible(why) => (format!("stays: {why}"), Some(why.clone())),
                Undo::Action(action) => {
                    let (action, left) = self.unless_it_runs(number, action).await;
                    let Some(action) = action else {
                        let left = left.unwrap_or_default();
                        self.finish_undo(number, left.clone(), Some(left))?;
                        continue;
                    };
                    self.reporter.event(&Event::UndoStarted {
                        step: number,
                        title: step.title.clone(),
                        how: action.summary(),
                    });
                    match self
                        .apply(&action, step.timeout().max(SHORTEST_UNDO), patience)
                        .await
                    {
                        Applied::Cut(which) => return Err(Stop::Now(which)),
                        Applied::Done(Ok(outcome), _) => (outcome.text, left.or(outcome.left)),
                        Applied::Done(Err(Failed { cause, .. }), _) => {
                            return self.undo_failed(number, cause);
                        }
                    }
                }
            };
            self.finish_undo(number, outcome, left)?;
        }
        self.record(Record::Undone {})?;
        Ok(())
    }

    fn finish_undo(
        &mut self,
        step: usize,
        outcome: String,
        left: Option<String>,
    ) -> Result<(), JournalError> {
        self.record(Record::UndoFinished {
            step,
            outcome: outcome.clone(),
            left,
        })?;
        self.reporter.event(&Event::UndoFinished { step, outcome });
        Ok(())
    }

    fn undo_failed(&mut self, step: usize, cause: String) -> Result<(), Stop> {
        self.record(Record::UndoFailed {
            step,
            cause: cause.clone(),
        })?;
        self.reporter.event(&Event::UndoFailed {
            step,
            cause: cause.clone(),
        });
        Err(Stop::Undo { step, cause })
    }

    /// What of an undo is done when the operator has not asked for it, and what is left as it is.
    async fn unless_it_runs(&self, number: usize, undo: &Action) -> (Option<Action>, Option<String>) {
        let whole = (Some(undo.clone()), None);
        if self.progress.undo_decided {
            return whole;
        }
        let left = &self.progress.left;
        let is_kept = left.iter().any(|(n, _)| !self.plan.only_started(*n).is_empty());
        if is_kept && matches!(undo, Action::Network(_)) {
            return (None, Some("it stays: what was left running needs it".into()));
        }
        let started = self.plan.only_started(number);
        let which = if self.progress.failed.is_some() {
            Which::Any
        } else {
            Which::Replaying
        };
        let running = self.hands.running(started, which).await;
        if running.is_empty() {
            return whole;
        }
        let rest: Vec<String> = started.iter().filter(|s| !running.contains(s)).cloned().collect();
        let stop = |services| Action::Workload(WorkloadAction::StopTogether { services });
        let why = match which {
            Which::Any => "it was down before",
            Which::Replaying => "stopped, it would replay its log from the beginning",
        };
        (
            (!rest.is_empty()).then(|| stop(rest)),
            Some(format!("{} left running: {why}", running.join(", "))),
        )
    }

    fn interrupted(&mut self, which: Signal) -> Result<(), Stop> {
        self.record(Record::Interrupted {
            signal: which.name().into(),
        })?;
        Err(Stop::Interrupted(which))
    }

    /// Applies an action until it ends, its time is over, or more than `patience` signals
    /// have come.
    async fn apply(&self, action: &Action, deadline: Duration, patience: u32) -> Applied {
        let began = Instant::now();
        let work = tokio::time::timeout(deadline + GRACE, self.hands.apply(action, deadline));
        tokio::select! {
            // An effect that is there counts even when the signal comes at the same moment.
            biased;
            result = work => {
                let took = began.elapsed();
                Applied::Done(
                    match result {
                        Ok(Ok(outcome)) => Ok(outcome),
                        Ok(Err(e)) => Err(Failed {
                            cause: e.to_string(),
                            untouched: matches!(e, ActionError::Untouched(_)),
                        }),
                        Err(_) => Err(Failed {
                            cause: format!("not done within {}", crate::event::seconds(deadline)),
                            untouched: false,
                        }),
                    },
                    took,
                )
            }
            which = self.interrupts.more_than(patience) => Applied::Cut(which),
        }
    }
}
