//! The report of an incident: what was wrong, what was done, how long users were turned
//! away, what was lost, what is kept. Pure: an incident and the objectives go in.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::journal::Record;
use super::progress::Stage;
use super::store::Incident;
use super::timeline::{Moment, timeline};
use crate::event::Verdict;
use crate::plan::{Alternative, DataLoss, Undo};
use crate::probe::watch::Seen;
use crate::runbook::Objectives;

/// Version of the persisted form.
pub const REPORT_FORMAT: u32 = 1;

/// Everything worth telling of an incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Report {
    /// `REPORT_FORMAT`.
    pub format: u32,
    /// The incident.
    pub incident: String,
    /// The deployment.
    pub deployment: String,
    /// The scenario.
    pub scenario: String,
    /// The service.
    pub service: String,
    /// [`Stage::name`].
    pub outcome: String,
    /// `confirmed` or `suspected`.
    pub certainty: String,
    /// What was wrong.
    pub diagnosis: String,
    /// The facts behind it.
    pub reasons: Vec<String>,
    /// The remedy.
    pub remedy: String,
    /// The backup set it used.
    pub backup: Option<String>,
    /// The remedies that were not chosen.
    pub alternatives: Vec<Alternative>,
    /// What was done.
    pub steps: Vec<StepResult>,
    /// Where the time went.
    pub phases: Phases,
    /// Recovery time.
    pub rto: Rto,
    /// What was lost.
    pub rpo: Rpo,
    /// The last proof.
    pub checks: Vec<Check>,
    /// What steps and checks measured.
    pub facts: BTreeMap<String, serde_json::Value>,
    /// What happened when.
    pub timeline: Vec<Moment>,
    /// What is kept, and how to let go of it.
    pub kept: String,
    /// What to type next.
    pub next: Vec<String>,
}

/// A step and how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StepResult {
    /// Its title.
    pub title: String,
    /// `done`, `failed`, `cut off`, `taken back`, `not begun`.
    pub state: String,
    /// What it found or made, or why it failed.
    pub result: String,
    /// Seconds, when it ended well.
    pub seconds: Option<f64>,
}

/// Seconds per phase; `None` for one that did not end.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Phases {
    /// From the start of drctl to the diagnosis.
    pub detect: Option<f64>,
    /// From the diagnosis to the operator's agreement.
    pub decide: Option<f64>,
    /// From the first step to the last.
    pub restore: Option<f64>,
    /// From there to the last check of the proof.
    pub verify: Option<f64>,
}

/// Recovery time as users saw it, in seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rto {
    /// What was promised.
    pub objective: f64,
    /// From the first failing request to the first of a lasting run of good ones.
    pub measured: Option<f64>,
    /// What was seen at the endpoint, when there is one.
    pub seen: Option<Seen>,
    /// Whether the promise was kept; `None` when it could not be measured.
    pub met: Option<bool>,
}

/// Recovery point: what of the latest work was lost.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rpo {
    /// What was promised, in seconds.
    pub objective: f64,
    /// What the plan expected.
    pub planned: DataLoss,
    /// Seconds of work between the backup and the newest row that was readable: the most
    /// that can be lost. `None` when unknown.
    pub at_most: Option<f64>,
    /// Writes that users have an acknowledgement for.
    pub acknowledged: Option<u64>,
    /// Of those, how many are missing afterwards.
    pub lost_acknowledged: Option<u64>,
    /// Whether the promise was kept; `None` when it could not be told.
    pub met: Option<bool>,
}

/// One check of the proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Check {
    /// What was checked.
    pub what: String,
    /// Whether it held.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
}

impl Report {
    /// Draws the report up.
    #[must_use]
    pub fn of(incident: &Incident, objectives: &Objectives) -> Self {
        let plan = &incident.plan;
        let facts = incident.facts();
        Self {
            format: REPORT_FORMAT,
            incident: incident.id().to_owned(),
            deployment: plan.deployment.clone(),
            scenario: plan.scenario.clone(),
            service: plan.service.clone(),
            outcome: incident.progress.stage.name().to_owned(),
            certainty: incident.case.certainty.clone(),
            diagnosis: incident.case.summary.clone(),
            reasons: incident.case.reasons.clone(),
            remedy: plan.remedy.name().to_owned(),
            backup: plan.backup.clone(),
            alternatives: plan.alternatives.clone(),
            steps: steps(incident),
            phases: phases(incident),
            rto: rto(&facts, objectives),
            rpo: rpo(&plan.data_loss, &facts, objectives),
            checks: checks(incident),
            timeline: timeline(&incident.entries, plan),
            kept: if incident.progress.is_given_up() {
                format!("left as it is: {}", incident.what_stays().join("; "))
            } else if incident.progress.stage == Stage::Closed {
                "nothing: the incident is closed".into()
            } else {
                plan.kept.clone()
            },
            next: next(incident),
            facts,
        }
    }
}

/// What can be done with an incident, as commands.
fn next(incident: &Incident) -> Vec<String> {
    let plan = &incident.plan;
    let can_undo = plan.steps.iter().any(|s| matches!(s.undo, Undo::Action(_)));
    let mut choices = incident.progress.choices().to_vec();
    if incident.progress.stage == Stage::Undone && incident.left_by_choice() {
        choices.push("undo");
    }
    choices
        .iter()
        // A rebuilt index keeps nothing that could be brought back.
        .filter(|verb| **verb != "undo" || can_undo)
        .map(|verb| {
            let what = match (*verb, incident.progress.stage) {
                ("close", Stage::Verified(_)) if plan.discard.is_empty() => "nothing is kept: close it",
                ("close", Stage::Verified(_)) => "let go of the old data",
                ("close", Stage::Undoing) => "end it as it is: nothing more is taken back or dropped",
                ("close", _) => "clear away what is left of it",
                ("undo", Stage::Undone) => incident.undo_again(),
                ("undo", _) if plan.discard.is_empty() => "take it back",
                ("undo", _) => "bring the old data back",
                (_, Stage::Undoing) => "go on taking it back",
                (_, Stage::Executing) => "go on recovering",
                _ => "verify again",
            };
            format!("drctl incident {verb} {}    # {what}", incident.id())
        })
        .collect()
}

fn steps(incident: &Incident) -> Vec<StepResult> {
    let progress = &incident.progress;
    incident
        .plan
        .steps
        .iter()
        .enumerate()
        .map(|(i, step)| {
            let number = i + 1;
            let mut result = (String::new(), None);
            for entry in &incident.entries {
                match &entry.record {
                    Record::StepFinished {
                        step,
                        outcome,
                        seconds,
                        ..
                    } if *step == number => result = (outcome.clone(), Some(*seconds)),
                    Record::StepFailed { step, cause, .. } if *step == number => {
                        result = (cause.clone(), None);
                    }
                    _ => {}
                }
            }
            let state = if progress.left.iter().any(|(step, _)| *step == number) {
                "stays"
            } else if progress.undone.contains(&number) {
                "taken back"
            } else if progress.finished.contains(&number) {
                "done"
            } else if progress.failed.as_ref().is_some_and(|(s, _)| *s == number) {
                "failed"
            } else if progress.started.contains(&number) {
                "cut off"
            } else {
                "not begun"
            };
            StepResult {
                title: step.title.clone(),
                state: state.to_owned(),
                result: result.0,
                seconds: result.1,
            }
        })
        .collect()
}

fn phases(incident: &Incident) -> Phases {
    let first =
        |wanted: fn(&Record) -> bool| incident.entries.iter().find(|e| wanted(&e.record)).map(|e| e.at);
    let last =
        |wanted: fn(&Record) -> bool| incident.entries.iter().rfind(|e| wanted(&e.record)).map(|e| e.at);
    let between = |from: Option<Timestamp>, to: Option<Timestamp>| {
        Some(to?.duration_since(from?).as_secs_f64().max(0.0))
    };
    let opened = incident.entries.iter().find_map(|e| match &e.record {
        Record::Opened { began, diagnosed, .. } => Some((*began, *diagnosed)),
        _ => None,
    });
    let approved = first(|r| matches!(r, Record::Approved { .. }));
    let begun = first(|r| matches!(r, Record::StepStarted { .. }));
    let ended = last(|r| matches!(r, Record::StepFinished { .. }));
    let proven = last(|r| matches!(r, Record::Verified { .. })).and_then(|at| {
        // Measuring what the outage was comes between the last check and the verdict.
        last(|r| matches!(r, Record::Checked { .. })).or(Some(at))
    });
    Phases {
        detect: between(opened.map(|o| o.0), opened.map(|o| o.1)),
        decide: between(opened.map(|o| o.1), approved),
        restore: between(begun, ended).filter(|_| incident.progress.next_step().is_none()),
        verify: between(ended, proven),
    }
}

fn rto(facts: &BTreeMap<String, serde_json::Value>, objectives: &Objectives) -> Rto {
    let seen: Option<Seen> = facts
        .get("watch")
        .and_then(|v| serde_json::from_value(v.clone()).ok());
    let measured = seen.as_ref().and_then(|s| s.rto_measured);
    let objective = objectives.rto.as_secs_f64();
    Rto {
        objective,
        measured,
        met: measured.map(|m| m <= objective),
        seen,
    }
}

fn rpo(planned: &DataLoss, facts: &BTreeMap<String, serde_json::Value>, objectives: &Objectives) -> Rpo {
    let number = |name: &str| facts.get(name).and_then(serde_json::Value::as_u64);
    let lost_acknowledged = number("lost-acknowledged");
    let at_most = match (planned.none, planned.backup_from, planned.newest_now) {
        (true, ..) => Some(0.0),
        (false, Some(from), Some(now)) => Some(now.duration_since(from).as_secs_f64().max(0.0)),
        _ => None,
    };
    let objective = objectives.rpo.as_secs_f64();
    Rpo {
        objective,
        planned: planned.clone(),
        at_most,
        acknowledged: number("acknowledged"),
        lost_acknowledged,
        met: if lost_acknowledged == Some(0) {
            Some(true)
        } else {
            at_most.map(|m| m <= objective)
        },
    }
}

/// The checks of the last round; one that was cut off and made again counts once. The
/// structure of what was brought into service was checked before it was, once.
fn checks(incident: &Incident) -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    let mut proven: Vec<Check> = Vec::new();
    let mut complete = false;
    for entry in &incident.entries {
        match &entry.record {
            Record::StepFinished { facts, .. } => {
                let made = facts
                    .get("checks")
                    .and_then(|v| v.as_array())
                    .into_iter()
                    .flatten();
                let made = made.filter_map(|c| serde_json::from_value::<Check>(c.clone()).ok());
                proven.extend(made.filter(|c| c.what.starts_with("structure of")));
            }
            Record::Checked { what, verdict, found } => {
                if std::mem::take(&mut complete) {
                    checks.clear();
                }
                checks.retain(|c| c.what != *what);
                checks.push(Check {
                    what: what.clone(),
                    verdict: *verdict,
                    found: found.clone(),
                });
            }
            Record::Verified { .. } => complete = true,
            _ => {}
        }
    }
    proven.append(&mut checks);
    proven
}
