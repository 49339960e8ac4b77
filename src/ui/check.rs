//! A run of `check` for a monitoring system, and for a person behind it.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{line, talk};
use crate::check::{Finding, Level, Message, message::plain};
use crate::error::Error;
use crate::event::EVENT_VERSION;
use crate::probe::overview::Overview;

/// The status line with all values, then a line for each finding, the worst first.
pub fn text(status_line: &str, findings: &[Finding]) {
    let values: Vec<String> = findings
        .iter()
        .flat_map(|f| &f.measures)
        .map(crate::check::Measure::perfdata)
        .collect();
    let mut out = if values.is_empty() {
        status_line.to_owned()
    } else {
        format!("{status_line} | {}", values.join(" "))
    };
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|f| std::cmp::Reverse(f.level.rank()));
    for f in sorted {
        out.push_str(&format!("\n[{}] {}", f.level.word(), plain(&f.told())));
    }
    line(&out);
}

/// The same as one object.
pub fn json(
    seen: &Overview,
    findings: &[Finding],
    level: Level,
    maintenance: Option<Timestamp>,
    told: Option<&Message>,
    notes: &[String],
) {
    super::json(&json!({
        "event": "check", "version": EVENT_VERSION, "at": seen.taken_at.to_string(),
        "deployment": seen.deployment, "status": level, "exit-code": level.code(), "seconds": seen.seconds,
        "maintenance-until": maintenance.map(|t| t.to_string()),
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
        "told": told, "notes": notes, "timings": seen.timings,
    }));
}

/// One finding as JSON.
#[must_use]
pub fn finding(f: &Finding) -> Value {
    let values: Vec<Value> = f
        .measures
        .iter()
        .map(|m| json!({ "label": m.label, "value": m.value, "unit": m.unit, "max": m.max }))
        .collect();
    json!({ "key": f.key, "level": f.level, "text": f.text, "values": values })
}

/// A run that could not even begin.
pub fn failed(e: &Error, as_json: bool) {
    if as_json {
        super::json(&json!({
            "event": "check", "version": EVENT_VERSION, "at": Timestamp::now().to_string(),
            "status": Level::Unknown, "exit-code": Level::Unknown.code(),
            "message": e.message, "causes": e.causes,
        }));
        return;
    }
    let mut lines = e.message.lines();
    let first = lines.next().unwrap_or_default();
    let mut out = format!("DRCTL {} - {}", Level::Unknown.word(), plain(first));
    let more = lines.map(str::to_owned).chain(e.causes.iter().cloned());
    for text in more.filter(|l| !l.trim().is_empty()) {
        out.push_str(&format!("\n{}", plain(&text)));
    }
    line(&out);
}

/// Something about the run itself, for whoever reads cron's mail.
pub fn note(text: &str) {
    talk(&format!("drctl check: {text}"));
}
