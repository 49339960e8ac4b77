//! How far an incident has come: a pure fold of its journal. Whatever continues a run
//! asks this, never its own memory.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::journal::{Entry, Record};
use crate::event::Verdict;

/// Where an incident stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// Nothing was done yet.
    #[default]
    Fresh,
    /// Steps are being carried out.
    Executing,
    /// Every step is done; nothing is proven.
    Executed,
    /// The proof was made.
    Verified(Verdict),
    /// Steps are being taken back: a step failed, a signal came, the operator said so.
    Undoing,
    /// Everything is taken back.
    Undone,
    /// Kept data is being dropped.
    Closing,
    /// Over.
    Closed,
}

impl Stage {
    /// Words for a table.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Fresh => "not begun",
            Self::Executing => "cut off while recovering",
            Self::Executed => "recovered, not verified",
            Self::Verified(Verdict::Pass) => "recovered and verified",
            Self::Verified(Verdict::Fail) => "recovered, does not hold",
            Self::Verified(_) => "recovered, could not verify",
            Self::Undoing => "partly taken back",
            Self::Undone => "taken back",
            Self::Closing => "partly discarded",
            Self::Closed => "closed",
        }
    }

    /// The word for the JSON form.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Executing => "executing",
            Self::Executed => "executed",
            Self::Verified(Verdict::Pass) => "verified",
            Self::Verified(Verdict::Fail) => "verify-failed",
            Self::Verified(_) => "could-not-verify",
            Self::Undoing => "undoing",
            Self::Undone => "undone",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }

    /// True when the deployment is neither as it was nor as it should be.
    #[must_use]
    pub fn is_half_way(self) -> bool {
        matches!(self, Self::Executing | Self::Undoing)
    }
}

/// What a journal says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Progress {
    /// Where it stands.
    pub stage: Stage,
    /// Steps of the plan.
    pub steps: usize,
    /// Steps that began.
    pub started: BTreeSet<usize>,
    /// Steps that ended well.
    pub finished: BTreeSet<usize>,
    /// Steps that were taken back.
    pub undone: BTreeSet<usize>,
    /// The step that failed, and why.
    pub failed: Option<(usize, String)>,
    /// The step that could not be taken back at the last attempt, and why.
    pub undo_failed: Option<(usize, String)>,
    /// What drctl could not take back, or did not by itself.
    pub left: Vec<(usize, String)>,
    /// The operator said that it is to be taken back.
    pub undo_decided: bool,
    /// Its place among the incidents; 0 where it was not counted.
    pub number: u64,
    /// The incident before this one, whose remedy did not hold.
    pub follows: Option<String>,
    /// When drctl was started.
    pub began: Option<Timestamp>,
    /// When users were first turned away.
    pub down_since: Option<Timestamp>,
}

impl Progress {
    /// Folds a journal.
    #[must_use]
    pub fn of(entries: &[Entry]) -> Self {
        let mut progress = Self::default();
        for entry in entries {
            progress.note(&entry.record);
        }
        progress
    }

    /// Takes one more record into account.
    pub fn note(&mut self, record: &Record) {
        match record {
            Record::Opened {
                number,
                began,
                down_since,
                follows,
                ..
            } => {
                self.number = *number;
                self.began = Some(*began);
                self.down_since = *down_since;
                self.follows.clone_from(follows);
            }
            Record::Planned { steps, .. } => self.steps = *steps,
            Record::StepStarted { step } => {
                self.started.insert(*step);
                self.stage = Stage::Executing;
            }
            Record::StepFinished { step, .. } => {
                self.finished.insert(*step);
                if self.next_step().is_none() {
                    self.stage = Stage::Executed;
                }
            }
            Record::StepFailed {
                step,
                cause,
                untouched,
            } => {
                if *untouched {
                    self.started.remove(step);
                }
                self.failed = Some((*step, cause.clone()));
                self.stage = Stage::Undoing;
            }
            // Once every step is done a signal only puts the proof off.
            Record::Interrupted { .. } if matches!(self.stage, Stage::Fresh | Stage::Executing) => {
                self.stage = Stage::Undoing;
            }
            Record::UndoDecided {} => {
                self.stage = Stage::Undoing;
                self.undo_decided = true;
                // What was left as it is, is looked at once more.
                for (step, _) in self.left.drain(..) {
                    self.undone.remove(&step);
                }
            }
            Record::UndoStarted { .. } => self.undo_failed = None,
            Record::UndoFinished { step, left, .. } => {
                self.undone.insert(*step);
                if let Some(left) = left {
                    self.left.push((*step, left.clone()));
                }
            }
            Record::UndoFailed { step, cause } => self.undo_failed = Some((*step, cause.clone())),
            Record::Undone {} => self.stage = Stage::Undone,
            Record::Verified { verdict } if matches!(self.stage, Stage::Executed | Stage::Verified(_)) => {
                self.stage = Stage::Verified(*verdict);
            }
            Record::DiscardStarted {} => self.stage = Stage::Closing,
            Record::Closed { .. } => self.stage = Stage::Closed,
            Record::Approved { .. }
            | Record::Interrupted { .. }
            | Record::Checked { .. }
            | Record::Measured { .. }
            | Record::Verified { .. }
            | Record::ReportWritten {}
            | Record::Noted { .. } => {}
        }
    }

    /// The step to carry out next: the one that began and did not end, else the first
    /// that has not begun.
    #[must_use]
    pub fn next_step(&self) -> Option<usize> {
        (1..=self.steps).find(|n| !self.finished.contains(n))
    }

    /// Steps to take back, in order. One that only began is among them: its effect may
    /// be there.
    #[must_use]
    pub fn to_undo(&self) -> Vec<usize> {
        self.started
            .iter()
            .rev()
            .filter(|n| !self.undone.contains(n))
            .copied()
            .collect()
    }

    /// Whether it was closed although it could not be taken back: nothing of it was dropped.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.stage == Stage::Closed && self.undo_failed.is_some()
    }

    /// What the operator can do with it, as arguments of `drctl incident`.
    #[must_use]
    pub fn choices(&self) -> &'static [&'static str] {
        match self.stage {
            Stage::Fresh | Stage::Undone | Stage::Closing => &["close"],
            Stage::Executing | Stage::Executed | Stage::Verified(Verdict::Fail | Verdict::CouldNotVerify) => {
                &["resume", "undo"]
            }
            Stage::Verified(_) => &["close", "undo"],
            // It may fail each time: what it needs can be gone for good.
            Stage::Undoing if self.undo_failed.is_some() => &["resume", "close"],
            Stage::Undoing => &["resume"],
            Stage::Closed => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(records: &[Record]) -> Progress {
        let mut p = Progress::default();
        p.note(&Record::Planned {
            remedy: crate::plan::Remedy::Reindex,
            steps: 2,
        });
        for r in records {
            p.note(r);
        }
        p
    }

    fn start(step: usize) -> Record {
        Record::StepStarted { step }
    }

    fn finish(step: usize) -> Record {
        Record::StepFinished {
            step,
            outcome: String::new(),
            facts: std::collections::BTreeMap::new(),
            seconds: 0.0,
        }
    }

    fn undone(step: usize) -> Record {
        Record::UndoFinished {
            step,
            outcome: String::new(),
            left: None,
        }
    }

    #[test]
    fn a_journal_says_what_is_next() {
        let fail = Record::StepFailed {
            step: 2,
            cause: "no".into(),
            untouched: false,
        };
        let pass = Record::Verified {
            verdict: Verdict::Pass,
        };
        let signal = Record::Interrupted {
            signal: "SIGINT".into(),
        };
        let cases: Vec<(Vec<Record>, Stage, Option<usize>, Vec<usize>)> = vec![
            (vec![], Stage::Fresh, Some(1), vec![]),
            (vec![start(1)], Stage::Executing, Some(1), vec![1]),
            (vec![start(1), finish(1)], Stage::Executing, Some(2), vec![1]),
            (
                vec![start(1), finish(1), start(2)],
                Stage::Executing,
                Some(2),
                vec![2, 1],
            ),
            (
                vec![start(1), finish(1), start(2), fail.clone()],
                Stage::Undoing,
                Some(2),
                vec![2, 1],
            ),
            (vec![start(1), signal.clone()], Stage::Undoing, Some(1), vec![1]),
            (
                vec![
                    start(1),
                    finish(1),
                    start(2),
                    fail,
                    Record::UndoStarted { step: 2 },
                    undone(2),
                ],
                Stage::Undoing,
                Some(2),
                vec![1],
            ),
            (
                vec![start(1), finish(1), start(2), finish(2)],
                Stage::Executed,
                None,
                vec![2, 1],
            ),
            (
                vec![start(1), finish(1), start(2), finish(2), signal.clone()],
                Stage::Executed,
                None,
                vec![2, 1],
            ),
            (
                vec![start(1), finish(1), start(2), finish(2), pass.clone()],
                Stage::Verified(Verdict::Pass),
                None,
                vec![2, 1],
            ),
            (
                vec![
                    start(1),
                    finish(1),
                    start(2),
                    finish(2),
                    pass,
                    Record::UndoDecided {},
                ],
                Stage::Undoing,
                None,
                vec![2, 1],
            ),
            // What was left running by itself is stopped when the operator says so.
            (
                vec![
                    start(1),
                    signal,
                    Record::UndoFinished {
                        step: 1,
                        outcome: String::new(),
                        left: Some("it runs".into()),
                    },
                    Record::Undone {},
                    Record::UndoDecided {},
                ],
                Stage::Undoing,
                Some(1),
                vec![1],
            ),
            (
                vec![Record::UndoDecided {}, Record::Undone {}],
                Stage::Undone,
                Some(1),
                vec![],
            ),
            (
                vec![
                    Record::Undone {},
                    Record::Closed {
                        dropped: vec![],
                        left: vec![],
                    },
                ],
                Stage::Closed,
                Some(1),
                vec![],
            ),
        ];
        for (records, stage, next, undo) in cases {
            let p = fold(&records);
            assert_eq!(
                (p.stage, p.next_step(), p.to_undo()),
                (stage, next, undo),
                "{records:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_taken_back_can_be_ended() {
        let failed = || Record::UndoFailed {
            step: 1,
            cause: "gone".into(),
        };
        let begun = || vec![start(1), Record::UndoDecided {}, Record::UndoStarted { step: 1 }];
        let with = |more: Vec<Record>| fold(&[begun(), more].concat());
        assert_eq!(with(vec![]).choices(), ["resume"]);
        assert_eq!(with(vec![failed()]).choices(), ["resume", "close"]);
        // Tried once more, and cut off: how that ends is not known.
        assert_eq!(
            with(vec![failed(), Record::UndoStarted { step: 1 }]).choices(),
            ["resume"]
        );
        let closed = || Record::Closed {
            dropped: vec![],
            left: vec![],
        };
        assert!(with(vec![failed(), closed()]).is_given_up());
        assert!(!with(vec![undone(1), Record::Undone {}, closed()]).is_given_up());
    }
}
