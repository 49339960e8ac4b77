//! The report as Markdown, and the lines that the terminal shares with it.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use super::report::{Report, Rpo, Rto};
use crate::event::{bytes, seconds};

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
            _ if rpo.planned.none => format!("{} ({objective}: met)", rpo.planned.summary),
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
