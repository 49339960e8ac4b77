//! The report of an incident: what was wrong, what was done, how long users were turned
//! away, what was lost, what is kept. Pure: an incident and the objectives go in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::journal::Record;
use super::progress::Stage;
use super::store::Incident;
use super::timeline::{Moment, timeline};
use crate::event::{Verdict, bytes, seconds};
use crate::plan::{Alternative, DataLoss};
use crate::probe::watch::Seen;
use crate::runbook::Objectives;

/// Version of the persisted form.
pub const REPORT_FORMAT: u32 = 1;

/// Everything worth telling of an incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Report {
    /// [`REPORT_FORMAT`].
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
    /// From there to the proof.
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
            kept: if incident.progress.stage == Stage::Closed {
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
    incident
        .progress
        .choices()
        .iter()
        .map(|verb| {
            let what = match (*verb, incident.progress.stage) {
                ("close", Stage::Verified(_)) => "let go of the old data",
                ("close", _) => "clear away what is left of it",
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
                    Record::StepFailed { step, cause } if *step == number => result = (cause.clone(), None),
                    _ => {}
                }
            }
            let state = if progress.undone.contains(&number) {
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
    let verified = last(|r| matches!(r, Record::Verified { .. }));
    Phases {
        detect: between(opened.map(|o| o.0), opened.map(|o| o.1)),
        decide: between(opened.map(|o| o.1), approved),
        restore: between(begun, ended).filter(|_| incident.progress.next_step().is_none()),
        verify: between(ended, verified),
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

/// The checks of the last round; one that was cut off and made again counts once.
fn checks(incident: &Incident) -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    let mut complete = false;
    for entry in &incident.entries {
        match &entry.record {
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
    checks
}

/// `1.4 s`, from seconds.
fn took(s: f64) -> String {
    seconds(Duration::try_from_secs_f64(s).unwrap_or_default())
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// One line on the recovery time.
#[must_use]
pub fn rto_line(rto: &Rto) -> String {
    let objective = format!("objective {}", took(rto.objective));
    match (&rto.seen, rto.measured) {
        (None, _) => format!("not measured: the runbook names no endpoint ({objective})"),
        (Some(seen), Some(m)) if seen.outages.is_empty() => {
            format!(
                "no request failed at endpoint {} in {} samples, {} measured ({objective})",
                seen.endpoint,
                seen.samples,
                took(m)
            )
        }
        (Some(seen), Some(m)) => format!(
            "{} as users of endpoint {} saw it, {} of it failing ({objective}: {})",
            took(m),
            seen.endpoint,
            took(seen.failing_seconds),
            if rto.met == Some(true) { "met" } else { "missed" }
        ),
        (Some(seen), None) if seen.samples == 0 => format!("not measured yet ({objective})"),
        (Some(seen), None) => format!("endpoint {} does not answer yet ({objective})", seen.endpoint),
    }
}

/// One line on what was lost.
#[must_use]
pub fn rpo_line(rpo: &Rpo) -> String {
    let objective = format!("objective {}", took(rpo.objective));
    match (rpo.lost_acknowledged, rpo.acknowledged) {
        (Some(0), Some(all)) => format!("none of {all} acknowledged writes is missing ({objective}: met)"),
        (Some(lost), Some(all)) => format!("{lost} of {all} acknowledged writes are missing ({objective})"),
        _ => match rpo.at_most {
            _ if rpo.planned.none => format!("nothing: {} ({objective}: met)", rpo.planned.summary),
            Some(0.0) => format!(
                "nothing that was readable: {} ({objective}: met)",
                rpo.planned.summary
            ),
            Some(m) => format!(
                "at most {} of work before salvage: {} ({objective}: {})",
                took(m),
                rpo.planned.summary,
                if rpo.met == Some(true) { "met" } else { "missed" }
            ),
            None => format!("{} ({objective}: not measurable)", rpo.planned.summary),
        },
    }
}

/// A fact's value for a person.
#[must_use]
pub fn fact_text(name: &str, value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(s) => s.clone(),
        serde_json::Value::Number(n) if name.ends_with("seconds") => {
            n.as_f64().map_or_else(|| n.to_string(), took)
        }
        serde_json::Value::Number(n) if name.ends_with("bytes") => {
            n.as_u64().map_or_else(|| n.to_string(), bytes)
        }
        serde_json::Value::Object(map) => map
            .iter()
            .map(|(k, v)| format!("{k} {}", fact_text(k, v)))
            .collect::<Vec<_>>()
            .join(", "),
        serde_json::Value::Array(all) => all
            .iter()
            .map(|v| fact_text("", v))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    }
}

/// The report as Markdown, readable on a terminal too.
#[must_use]
pub fn markdown(r: &Report) -> String {
    let mut t = String::new();
    // Writing to a string cannot fail.
    let _ = write_markdown(&mut t, r);
    t
}

/// Whether a fact is one value, and not told elsewhere in the report.
#[must_use]
pub fn is_plain(name: &str, value: &serde_json::Value) -> bool {
    !matches!(name, "acknowledged" | "lost-acknowledged")
        && (value.is_string() || value.is_number() || value.is_boolean())
}

/// A list of objects as a table; its columns are the fields of the first.
fn write_rows(t: &mut String, rows: &[serde_json::Value]) -> std::fmt::Result {
    let Some(columns) = rows.first().and_then(serde_json::Value::as_object) else {
        return Ok(());
    };
    let names: Vec<&String> = columns.keys().collect();
    let head: Vec<String> = names.iter().map(|n| n.replace('-', " ")).collect();
    writeln!(t, "\n| {} |\n|{}", head.join(" | "), "---|".repeat(names.len()))?;
    for row in rows {
        let cells: Vec<String> = names
            .iter()
            .map(|n| match row.get(*n) {
                None | Some(serde_json::Value::Null) => String::new(),
                Some(value) => cell(&fact_text(n, value)),
            })
            .collect();
        writeln!(t, "| {} |", cells.join(" | "))?;
    }
    Ok(())
}

fn write_markdown(t: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(t, "# {} on {}: {}\n", r.scenario, r.deployment, r.outcome)?;
    writeln!(t, "Incident `{}`, service {}.\n", r.incident, r.service)?;
    writeln!(t, "## What was wrong\n\n{} ({})\n", r.diagnosis, r.certainty)?;
    for reason in &r.reasons {
        writeln!(t, "- {reason}")?;
    }
    writeln!(t, "\n## What was done\n")?;
    let backup = r
        .backup
        .as_ref()
        .map(|b| format!(", from backup {b}"))
        .unwrap_or_default();
    writeln!(t, "Remedy: **{}**{backup}.\n", r.remedy)?;
    writeln!(t, "| # | Step | State | Result | Took |\n|--:|---|---|---|--:|")?;
    for (i, s) in r.steps.iter().enumerate() {
        let time = s.seconds.map(took).unwrap_or_default();
        writeln!(
            t,
            "| {} | {} | {} | {} | {time} |",
            i + 1,
            cell(&s.title),
            s.state,
            cell(&s.result)
        )?;
    }
    writeln!(
        t,
        "\n## How long it took\n\n- Recovery time: {}",
        rto_line(&r.rto)
    )?;
    for (name, value) in [
        ("detect", r.phases.detect),
        ("decide", r.phases.decide),
        ("restore", r.phases.restore),
        ("verify", r.phases.verify),
    ] {
        writeln!(
            t,
            "- {name}: {}",
            value.map_or_else(|| "did not end".into(), took)
        )?;
    }
    for outage in r.rto.seen.iter().flat_map(|s| &s.outages) {
        let to = outage.to.map_or_else(|| "now".into(), |t| clock(t, true));
        writeln!(
            t,
            "- users were turned away from {} to {to}",
            clock(outage.from, true)
        )?;
    }
    writeln!(t, "\n## What was lost\n\n{}\n", rpo_line(&r.rpo))?;
    let facts: Vec<_> = r
        .facts
        .iter()
        .filter(|(name, value)| is_plain(name, value))
        .collect();
    if !facts.is_empty() {
        writeln!(t, "| Measured | |\n|---|---|")?;
        for (name, value) in facts {
            writeln!(
                t,
                "| {} | {} |",
                name.replace('-', " "),
                cell(&fact_text(name, value))
            )?;
        }
    }
    if let Some(newest) = r
        .facts
        .get("newest-rows-after")
        .and_then(serde_json::Value::as_object)
    {
        writeln!(t, "\n| Table | Newest row afterwards |\n|---|---|")?;
        for (table, at) in newest {
            writeln!(t, "| {} | {} |", cell(table), fact_text("", at))?;
        }
    }
    if let Some(tables) = r.facts.get("tables").and_then(serde_json::Value::as_array) {
        write_rows(t, tables)?;
    }
    writeln!(t, "\n## Proof\n")?;
    if r.checks.is_empty() {
        writeln!(t, "Not made.")?;
    } else {
        writeln!(t, "| Check | Verdict | Found |\n|---|---|---|")?;
        for c in &r.checks {
            writeln!(t, "| {} | {} | {} |", cell(&c.what), c.verdict, cell(&c.found))?;
        }
    }
    writeln!(t, "\n## What is kept\n\n{}\n", r.kept)?;
    if !r.next.is_empty() {
        writeln!(t, "```sh")?;
        for command in &r.next {
            writeln!(t, "{command}")?;
        }
        writeln!(t, "```")?;
    }
    if !r.alternatives.is_empty() {
        writeln!(t, "\n## Remedies not chosen\n")?;
        for a in &r.alternatives {
            let possible = if a.possible { "possible" } else { "not possible" };
            writeln!(t, "- {} ({possible}): {}", a.remedy, a.why_not)?;
        }
    }
    writeln!(t, "\n## Timeline (UTC)\n")?;
    for m in &r.timeline {
        writeln!(t, "- {} {}", clock(m.at, true), m.what)?;
    }
    Ok(())
}

/// `18:30:12.5` or `2026-11-20 18:30:12`: UTC.
#[must_use]
pub fn clock(at: Timestamp, with_date: bool) -> String {
    if with_date {
        at.strftime("%Y-%m-%d %H:%M:%S").to_string()
    } else {
        at.strftime("%H:%M:%S").to_string()
    }
}
