//! The opinions of all scenarios: what is wrong first, what was excluded in one line.

use std::fmt::Write as _;

use console::style;
use serde_json::{Value, json};

use super::preview::{self, entry};
use crate::diagnose::{General, Opinion};
use crate::event::{EVENT_VERSION, seconds};
use crate::scenarios::Certainty;

/// One opinion as a JSON object; `in_full` with all evidence.
#[must_use]
pub fn json(opinion: &Opinion, in_full: bool) -> Value {
    let diagnosis = opinion.diagnosis();
    let mut value = json!({
        "event": "opinion",
        "version": EVENT_VERSION,
        "at": jiff::Timestamp::now().to_string(),
        "scenario": opinion.scenario.name,
        "certainty": opinion.certainty().name(),
        "summary": diagnosis.map(|d| &d.summary),
        "reasons": diagnosis.map(|d| &d.reasons),
        "look-alike": diagnosis.and_then(|d| d.look_alike.as_ref()),
        "consequence-of": opinion.consequence_of,
        "seconds": opinion.took.as_secs_f64(),
    });
    if let Some(object) = value.as_object_mut() {
        if let Err(e) = &opinion.looked {
            object.insert("error".into(), e.to_string().into());
        }
        if in_full && let Ok(looked) = &opinion.looked {
            object.insert("evidence".into(), looked.evidence.clone());
        }
    }
    value
}

/// What no scenario is about, as a JSON object.
#[must_use]
pub fn general_json(finding: &General) -> Value {
    json!({
        "event": "finding",
        "version": EVENT_VERSION,
        "at": jiff::Timestamp::now().to_string(),
        "name": finding.name,
        "certainty": certainty(finding).name(),
        "summary": finding.summary,
        "reasons": finding.reasons,
        "next": finding.next,
    })
}

fn certainty(finding: &General) -> Certainty {
    if finding.explained {
        Certainty::Confirmed
    } else {
        Certainty::Unknown
    }
}

/// The opinions for a person; `in_full` also what was excluded, and the evidence.
#[must_use]
pub fn text(deployment: &str, opinions: &[Opinion], general: &[General], in_full: bool) -> String {
    let width = preview::width();
    let mut out = String::new();
    for opinion in opinions {
        match (&opinion.looked, opinion.diagnosis()) {
            (_, Some(d)) if opinion.is_finding() => finding(&mut out, opinion, &d.summary, &d.reasons, width),
            (_, Some(d)) if d.look_alike.is_some() || in_full || d.certainty == Certainty::Unknown => {
                let _ = writeln!(out, "{}", style(opinion.scenario.name).bold());
                let instead = d
                    .look_alike
                    .as_ref()
                    .map(|l| format!("{}: {}", l.name, l.explanation));
                out += &preview::diagnosis(
                    d.certainty.name(),
                    &d.summary,
                    &d.reasons,
                    instead.as_deref(),
                    width,
                );
                for command in d.look_alike.iter().flat_map(|l| &l.next) {
                    entry(&mut out, "Type", command, width);
                }
            }
            (Err(e), _) => {
                let _ = writeln!(out, "{}", style(opinion.scenario.name).bold());
                out += &preview::diagnosis("unknown", &e.message, &e.causes, None, width);
            }
            _ => {}
        }
    }
    for finding in general {
        let _ = writeln!(out, "{}", style(finding.name).bold().red());
        out += &preview::diagnosis(
            certainty(finding).name(),
            &finding.summary,
            &finding.reasons,
            None,
            width,
        );
        for command in &finding.next {
            entry(&mut out, "Type", command, width);
        }
    }
    let excluded: Vec<&str> = opinions
        .iter()
        .filter(|o| {
            o.certainty() == Certainty::Absent && o.diagnosis().is_some_and(|d| d.look_alike.is_none())
        })
        .map(|o| o.scenario.name)
        .collect();
    if out.is_empty() {
        let _ = writeln!(out, "{} nothing is wrong with {deployment}", style("ok").green());
    }
    if !in_full && !excluded.is_empty() {
        let took = opinions.iter().map(|o| o.took).max().unwrap_or_default();
        entry(
            &mut out,
            "Excluded",
            &format!("{} (in {})", excluded.join(", "), seconds(took)),
            width,
        );
    }
    if in_full
        && let Some(looked) = opinions.first().and_then(|o| o.looked.as_ref().ok())
        && let Ok(evidence) = serde_yaml::to_string(&looked.evidence)
    {
        let _ = writeln!(out, "{}", style("Evidence").bold());
        for line in evidence.lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    out
}

/// The opinion on an engine that does not answer. What to type comes with the error.
#[must_use]
pub fn without_engine(opinion: &Opinion) -> String {
    let mut out = format!("{}\n", style(opinion.scenario.name).bold());
    if let Some(d) = opinion.diagnosis() {
        out += &preview::diagnosis(d.certainty.name(), &d.summary, &d.reasons, None, preview::width());
    }
    out
}

fn finding(out: &mut String, opinion: &Opinion, summary: &str, reasons: &[String], width: usize) {
    let name = opinion.scenario.name;
    if let Some(cause) = opinion.consequence_of {
        let _ = writeln!(out, "{}", style(name).bold());
        entry(
            out,
            "Follows",
            &format!("from {cause}: {summary}; recover that first"),
            width,
        );
        return;
    }
    let _ = writeln!(out, "{}", style(name).bold().red());
    *out += &preview::diagnosis(opinion.certainty().name(), summary, reasons, None, width);
    entry(out, "Type", &format!("drctl recover {name}"), width);
}
