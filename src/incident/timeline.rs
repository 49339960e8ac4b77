//! The journal as a person reads it: when, and what happened.

use jiff::Timestamp;

use super::journal::{Entry, Record};
use crate::event::Verdict;
use crate::plan::Plan;

/// One line of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Moment {
    /// When.
    pub at: Timestamp,
    /// What happened.
    pub what: String,
}

/// What happened, in order. Starts that an end follows, and bookkeeping, are left out.
#[must_use]
pub fn timeline(entries: &[Entry], plan: &Plan) -> Vec<Moment> {
    let title = |step: usize| {
        plan.steps
            .get(step.wrapping_sub(1))
            .map_or_else(|| format!("step {step}"), |s| format!("step {step}, {}", s.title))
    };
    let mut moments = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let next = entries.get(i + 1).map(|e| &e.record);
        let what = match &entry.record {
            Record::Opened {
                began,
                diagnosed,
                down_since,
                ..
            } => {
                if let Some(down) = down_since {
                    moments.push(Moment {
                        at: *down,
                        what: "users are turned away".into(),
                    });
                }
                moments.push(Moment {
                    at: *began,
                    what: "drctl is started".into(),
                });
                moments.push(Moment {
                    at: *diagnosed,
                    what: "the diagnosis is known".into(),
                });
                continue;
            }
            Record::Planned { .. } | Record::Measured { .. } | Record::ReportWritten {} => continue,
            Record::Approved { what, how } => format!("{what} is approved ({how})"),
            Record::StepStarted { step } => match next {
                Some(Record::StepFinished { step: s, .. } | Record::StepFailed { step: s, .. })
                    if s == step =>
                {
                    continue;
                }
                _ => format!("{} begins", title(*step)),
            },
            Record::StepFinished {
                step,
                outcome,
                seconds,
                ..
            } => format!(
                "{}: {outcome} ({})",
                title(*step),
                crate::event::seconds(std::time::Duration::try_from_secs_f64(*seconds).unwrap_or_default())
            ),
            Record::StepFailed { step, cause, .. } => format!("{} failed: {cause}", title(*step)),
            Record::Interrupted { signal } => format!("{signal} asks to stop"),
            Record::UndoDecided {} => "everything is to be taken back".into(),
            Record::UndoStarted { step } => match next {
                Some(Record::UndoFinished { step: s, .. } | Record::UndoFailed { step: s, .. })
                    if s == step =>
                {
                    continue;
                }
                _ => format!("taking back {} begins", title(*step)),
            },
            Record::UndoFinished {
                step,
                outcome,
                left: Some(_),
            } => format!("{} stays: {outcome}", title(*step)),
            Record::UndoFinished { step, outcome, .. } => {
                format!("{} is taken back: {outcome}", title(*step))
            }
            Record::UndoFailed { step, cause } => {
                format!("{} could not be taken back: {cause}", title(*step))
            }
            Record::Undone {} => "everything is taken back".into(),
            Record::Checked { what, verdict, found } => match verdict {
                Verdict::Pass => continue,
                v => format!("{what}: {v}, {found}"),
            },
            Record::Verified { verdict } => format!("verified: {verdict}"),
            Record::Noted { text } => format!("note: {text}"),
            Record::DiscardStarted {} => "dropping what was kept begins".into(),
            Record::Closed { left, .. } if left.is_empty() => "closed".into(),
            Record::Closed { left, .. } => format!("closed, and left as it is: {}", left.join("; ")),
        };
        moments.push(Moment { at: entry.at, what });
    }
    // What happened before drctl came is known only later.
    moments.sort_by_key(|m| m.at);
    moments
}
