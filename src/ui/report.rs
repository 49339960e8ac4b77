//! The end of a recovery on a terminal, and the tables of `drctl incident`.

use std::fmt::Write as _;
use std::time::Duration;

use console::style;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::preview::{entry, width};
use crate::event::{EVENT_VERSION, Verdict, seconds};
use crate::incident::{Incident, Moment, Report, Stage, fact_text, is_plain, rpo_line, rto_line};
use crate::plan::{Action, Step};

/// The report in a dozen lines; `drctl incident report` has all of it.
#[must_use]
pub fn summary(r: &Report, width: usize) -> String {
    let mut out = String::from("\n");
    let outcome = match r.outcome.as_str() {
        "verified" => style("recovered and verified").green().bold(),
        "verify-failed" => style("carried out, does not hold").red().bold(),
        "could-not-verify" => style("carried out, could not be verified").yellow().bold(),
        "undone" => style("taken back").yellow().bold(),
        other => style(other).bold(),
    };
    let from = r
        .backup
        .as_ref()
        .map(|b| format!(" from backup {b}"))
        .unwrap_or_default();
    entry(
        &mut out,
        "Result",
        &format!("{}: {outcome} with {}{from}", r.deployment, r.remedy),
        width,
    );
    if r.outcome == "undone" {
        entry(&mut out, "Incident", &r.incident, width);
        return out;
    }
    entry(&mut out, "Time", &rto_line(&r.rto), width);
    let part = |name: &str, value: Option<f64>| {
        value.map(|s| {
            format!(
                "{name} {}",
                seconds(Duration::try_from_secs_f64(s).unwrap_or_default())
            )
        })
    };
    let phases: Vec<String> = [
        part("detect", r.phases.detect),
        part("decide", r.phases.decide),
        part("restore", r.phases.restore),
        part("verify", r.phases.verify),
    ]
    .into_iter()
    .flatten()
    .collect();
    entry(&mut out, "", &phases.join(", "), width);
    entry(&mut out, "Lost", &rpo_line(&r.rpo), width);
    let facts: Vec<String> = r
        .facts
        .iter()
        .filter(|(name, value)| is_plain(name, value))
        .map(|(name, value)| format!("{}: {}", name.replace('-', " "), fact_text(name, value)))
        .collect();
    if !facts.is_empty() {
        entry(&mut out, "Measured", &facts.join("; "), width);
    }
    let count = |v: Verdict| r.checks.iter().filter(|c| c.verdict == v).count();
    let counts: Vec<String> = [
        Verdict::Pass,
        Verdict::Fail,
        Verdict::CouldNotVerify,
        Verdict::NotConfigured,
    ]
    .into_iter()
    .filter(|v| count(*v) > 0)
    .map(|v| format!("{} {v}", count(v)))
    .collect();
    entry(&mut out, "Proof", &counts.join(", "), width);
    for c in &r.checks {
        if c.verdict != Verdict::Pass {
            entry(
                &mut out,
                "",
                &format!("{}: {}: {}", c.verdict, c.what, c.found),
                width,
            );
        }
    }
    entry(&mut out, "Kept", &r.kept, width);
    for (i, command) in r.next.iter().enumerate() {
        let label = if i == 0 { "Next" } else { "" };
        // Commands are not wrapped: they are copied.
        let _ = writeln!(out, "{}{command}", style(format!("{label:12}")).bold());
    }
    let _ = writeln!(
        out,
        "{:12}drctl incident report {}    # all of it",
        "", r.incident
    );
    out
}

/// The incidents, newest first.
#[must_use]
pub fn list(incidents: &[Incident], now: Timestamp) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header([
        "INCIDENT",
        "SCENARIO",
        "SERVICE",
        "REMEDY",
        "STATE",
        "OPENED (UTC)",
        "AGE",
    ]);
    for i in incidents.iter().rev() {
        let opened = i.opened_at();
        table.add_row([
            i.id().to_owned(),
            i.plan.scenario.clone(),
            i.plan.service.clone(),
            i.plan.remedy.to_string(),
            i.progress.stage.words().to_owned(),
            opened
                .map(|at| at.strftime("%Y-%m-%d %H:%M").to_string())
                .unwrap_or_default(),
            opened.map(|at| age(at, now)).unwrap_or_default(),
        ]);
    }
    let mut out = table
        .lines()
        .map(|l| l.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n");
    out.push('\n');
    // What can be done with the newest that is open.
    if let Some(open) = incidents.iter().rev().find(|i| i.is_open()) {
        let verbs = open.progress.choices().join("|");
        let _ = writeln!(out, "\nNext: drctl incident {verbs} {}", open.id());
    }
    out
}

fn age(at: Timestamp, now: Timestamp) -> String {
    let s = now.duration_since(at).as_secs().max(0);
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        3600..172_800 => format!("{} h", s / 3600),
        _ => format!("{} days", s / 86_400),
    }
}

/// One incident: what was wrong, what was planned, what happened.
#[must_use]
pub fn show(incident: &Incident, moments: &[Moment]) -> String {
    let width = width();
    let mut out = String::new();
    entry(
        &mut out,
        "Incident",
        &format!(
            "{} on {}: {}",
            incident.id(),
            incident.plan.deployment,
            incident.progress.stage.words()
        ),
        width,
    );
    let case = &incident.case;
    out.push_str(&super::preview::diagnosis(
        &case.certainty,
        &case.summary,
        &case.reasons,
        None,
        width,
    ));
    out.push_str(&super::preview::plan(&incident.plan, width));
    out.push('\n');
    for (i, m) in moments.iter().enumerate() {
        let label = if i == 0 { "Timeline" } else { "" };
        entry(
            &mut out,
            label,
            &format!("{} {}", m.at.strftime("%H:%M:%S"), m.what),
            width,
        );
    }
    for (i, verb) in incident.progress.choices().iter().enumerate() {
        let label = if i == 0 { "Next" } else { "" };
        let _ = writeln!(
            out,
            "{}drctl incident {verb} {}",
            style(format!("{label:12}")).bold(),
            incident.id()
        );
    }
    out
}

/// What can be done with an incident later, and changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Would {
    /// Go on.
    Resume,
    /// Take it back.
    Undo,
    /// Let go of what it keeps.
    Close,
}

impl Would {
    fn verb(self) -> &'static str {
        match self {
            Self::Resume => "resume",
            Self::Undo => "undo",
            Self::Close => "close",
        }
    }

    /// The steps that it would begin with, and their numbers.
    fn steps(self, incident: &Incident) -> Vec<(usize, &Step)> {
        let numbers = match self {
            Self::Resume => incident.progress.next_step().into_iter().collect(),
            Self::Undo => incident.progress.to_undo(),
            Self::Close => Vec::new(),
        };
        let step = |n: usize| Some((n, incident.plan.steps.get(n.wrapping_sub(1))?));
        numbers.into_iter().filter_map(step).collect()
    }

    /// What it would drop. An incident that cannot be taken back is closed as it is.
    fn drops(self, incident: &Incident) -> Vec<String> {
        match (self, incident.progress.stage) {
            (Self::Resume | Self::Undo, _) | (Self::Close, Stage::Undoing) => Vec::new(),
            (Self::Close, _) => incident.plan.discard.iter().map(Action::summary).collect(),
        }
    }

    /// What it would leave as it is.
    fn leaves(self, incident: &Incident) -> Vec<String> {
        match (self, incident.progress.stage) {
            (Self::Close, Stage::Undoing) => incident.what_stays(),
            _ => Vec::new(),
        }
    }
}

/// What a dry run of a verb shows.
#[must_use]
pub fn would(incident: &Incident, what: Would) -> String {
    let mut out = format!(
        "{} {}: {}\n",
        what.verb(),
        incident.id(),
        incident.progress.stage.words()
    );
    for (number, step) in what.steps(incident) {
        let text = match what {
            Would::Undo => step.undo.to_string(),
            Would::Resume | Would::Close => step.title.clone(),
        };
        let _ = writeln!(out, "  step {number}: {text}");
    }
    for text in what.drops(incident) {
        let _ = writeln!(out, "  would {text}");
    }
    for text in what.leaves(incident) {
        let _ = writeln!(out, "  would leave as it is: {text}");
    }
    out
}

/// The same as one object.
#[must_use]
pub fn forecast(incident: &Incident, what: Would) -> Value {
    let step = |(number, step): (usize, &Step)| match what {
        Would::Undo => json!({ "step": number, "title": step.title, "how": step.undo.to_string() }),
        Would::Resume | Would::Close => json!({ "step": number, "title": step.title }),
    };
    json!({
        "event": "incident-forecast", "version": EVENT_VERSION, "incident": incident.id(), "verb": what.verb(),
        "state": incident.progress.stage.name(),
        "steps": what.steps(incident).into_iter().map(step).collect::<Vec<_>>(),
        "drops": what.drops(incident),
        "leaves": what.leaves(incident),
    })
}
