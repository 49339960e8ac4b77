//! The whole deployment on one screen.

use std::fmt::Write as _;
use std::time::Duration;

use console::{Alignment, measure_text_width, pad_str, style};
use jiff::Timestamp;
use serde_json::Value;

use super::preview::{width, wrap};
use crate::check::{Finding, Level, Memory, trend};
use crate::event::{EVENT_VERSION, bytes, seconds};
use crate::probe::containers::ContainerState;
use crate::probe::overview::{Known, Overview, RedisView};
use crate::probe::vitals::Vitals;
use crate::runbook::Runbook;

/// Columns of the verdict.
const MARK: usize = 9;
/// A name gets no more columns than this, or the rest has no room.
const LONGEST_NAME: usize = 30;

/// All of it as one object.
#[must_use]
pub fn json(seen: &Overview, findings: &[Finding]) -> Value {
    let mut value = serde_json::to_value(seen).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("event".into(), "status".into());
        object.insert("version".into(), EVENT_VERSION.into());
        let all: Vec<Value> = findings.iter().map(super::check::finding).collect();
        object.insert("findings".into(), all.into());
    }
    value
}

/// One row: what it is about, and the words.
struct Row {
    key: String,
    name: String,
    text: String,
}

/// The screen.
#[must_use]
pub fn text(seen: &Overview, findings: &[Finding], memory: &Memory, runbook: &Runbook) -> String {
    let width = width();
    let mut out = String::new();
    headline(&mut out, seen, findings, width);
    if !matches!(seen.engine, Known::Good(_)) {
        section(
            &mut out,
            "ENGINE",
            vec![row("engine", "docker", String::new())],
            findings,
            width,
        );
    }
    services(&mut out, seen, findings, width);
    section(&mut out, "POSTGRESQL", postgres(seen), findings, width);
    section(&mut out, "REDIS", redis(seen), findings, width);
    section(&mut out, "DISK", disks(seen, memory), findings, width);
    section(&mut out, "ENDPOINTS", endpoints(seen), findings, width);
    section(&mut out, "BACKUP", backup(seen, runbook), findings, width);
    if findings.iter().any(|f| f.level != Level::Ok) {
        let _ = writeln!(out, "\nNext: drctl diagnose");
    }
    out
}

/// Puts a screen in place of the one before.
pub fn show(text: &str) {
    let term = console::Term::stdout();
    let rows = usize::from(term.size().0).max(4);
    let text = crate::printable::text(text, console::colors_enabled());
    let lines: Vec<&str> = text.lines().collect();
    let mut screen = String::from("\x1b[H");
    for (i, line) in lines.iter().enumerate() {
        if i + 2 >= rows && lines.len() > rows - 1 {
            let _ = writeln!(screen, "… {} more lines\x1b[K", lines.len() - i);
            break;
        }
        let _ = writeln!(screen, "{line}\x1b[K");
    }
    // What the screen before had below.
    screen.push_str("\x1b[J");
    super::write(std::io::stdout(), &screen);
}

/// Ends a watch below what is shown.
pub fn leave() {
    super::write(std::io::stdout(), "\n");
}

fn headline(out: &mut String, seen: &Overview, findings: &[Finding], width: usize) {
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    let (bad, beyond, unknown) = (
        count(Level::Critical),
        count(Level::Warning),
        count(Level::Unknown),
    );
    let mut words = Vec::new();
    if bad > 0 {
        words.push(style(format!("{bad} failing")).red().bold().to_string());
    }
    if beyond > 0 {
        words.push(style(format!("{beyond} beyond a limit")).yellow().to_string());
    }
    if unknown > 0 {
        words.push(style(format!("{unknown} unknown")).yellow().to_string());
    }
    if words.is_empty() {
        words.push(style("all is well").green().to_string());
    }
    let left = format!("{}  {}", style(&seen.deployment).bold(), words.join(", "));
    let right = format!(
        "{} in {}",
        seen.taken_at.strftime("%Y-%m-%d %H:%M:%S UTC"),
        seconds(Duration::try_from_secs_f64(seen.seconds).unwrap_or_default())
    );
    let room = width.saturating_sub(measure_text_width(&left) + measure_text_width(&right));
    if room >= 2 {
        let _ = writeln!(out, "{left}{}{}", " ".repeat(room), style(right).dim());
    } else {
        let _ = writeln!(out, "{left}\n{}", style(right).dim());
    }
}

fn level_of(findings: &[Finding], key: &str) -> Level {
    findings
        .iter()
        .find(|f| f.key == key)
        .map_or(Level::Unknown, |f| f.level)
}

fn mark(level: Level) -> String {
    let text = match level {
        Level::Ok => style("ok").green(),
        Level::Warning => style("warning").yellow(),
        Level::Critical => style("FAIL").red().bold(),
        Level::Unknown => style("unknown").yellow(),
    };
    pad_str(&text.to_string(), MARK, Alignment::Left, None).into_owned()
}

fn row(key: &str, name: &str, text: String) -> Row {
    Row {
        key: key.to_owned(),
        name: name.to_owned(),
        text,
    }
}

/// Rows of words; what is wrong with one stands before its values.
fn section(out: &mut String, title: &str, rows: Vec<Row>, findings: &[Finding], width: usize) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{}", style(title).bold());
    let names = rows
        .iter()
        .map(|r| measure_text_width(&r.name))
        .max()
        .unwrap_or_default()
        .min(LONGEST_NAME);
    for r in rows {
        let found = findings.iter().find(|f| f.key == r.key);
        let level = found.map_or(Level::Unknown, |f| f.level);
        let said = found.map_or("", |f| f.text.as_str());
        let text = match (level, r.text.is_empty()) {
            (Level::Ok, false) => r.text,
            (_, true) => said.to_owned(),
            (_, false) if r.text.contains(said) => r.text,
            _ => format!("{said}\n{}", r.text),
        };
        let indent = MARK + names + 2;
        let name = pad_str(&r.name, names, Alignment::Left, None).into_owned();
        let mut first = format!("{}{name}  ", mark(level));
        if measure_text_width(&first) > indent {
            // A longer name has a line of its own.
            let _ = writeln!(out, "{}", first.trim_end());
            first = " ".repeat(indent);
        }
        for line in wrap(&text, width.saturating_sub(indent).max(20)) {
            let _ = writeln!(out, "{}", format!("{first}{line}").trim_end());
            first = " ".repeat(indent);
        }
    }
}

fn services(out: &mut String, seen: &Overview, findings: &[Finding], width: usize) {
    if seen.containers.is_empty() {
        return;
    }
    let titles = ["SERVICES", "STATE", "RESTARTS", "CPU", "MEMORY"];
    let mut rows: Vec<(Level, [String; 5], String)> = Vec::new();
    for (name, state) in &seen.containers {
        let key = format!("service/{name}");
        let level = level_of(findings, &key);
        let said = findings
            .iter()
            .find(|f| f.key == key)
            .map_or("", |f| f.text.as_str());
        let usage = seen.usage.get(name);
        let cpu = usage
            .filter(|u| u.cpus.is_finite())
            .map_or_else(String::new, |u| match u.cpu_limit {
                Some(limit) => format!("{:.0} % of {:.0} %", u.cpus * 100.0, limit * 100.0),
                None => format!("{:.0} %", u.cpus * 100.0),
            });
        let memory = usage.map_or_else(String::new, |u| match u.memory_limit {
            Some(limit) => format!("{} of {}", bytes(u.memory), bytes(limit)),
            None => bytes(u.memory),
        });
        let (state, restarts) = match state {
            ContainerState::Found(facts) => (
                state_word(
                    facts.info.status,
                    facts.is_stopped_by_signal(),
                    facts.info.health.as_deref(),
                ),
                facts.info.restart_count.to_string(),
            ),
            ContainerState::Missing => ("missing".to_owned(), String::new()),
            ContainerState::Unknown(_) => (String::new(), String::new()),
        };
        rows.push((
            level,
            [name.clone(), state, restarts, cpu, memory],
            said.to_owned(),
        ));
    }
    let widths: Vec<usize> = (0..5)
        .map(|c| {
            rows.iter()
                .map(|(_, cells, _)| measure_text_width(cells.get(c).map_or("", String::as_str)))
                .chain([measure_text_width(titles.get(c).copied().unwrap_or_default())])
                .max()
                .unwrap_or_default()
        })
        .collect();
    let line = |first: &str, cells: &[&str]| {
        let mut text = first.to_owned();
        for (c, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let side = if c == 2 || c == 3 {
                Alignment::Right
            } else {
                Alignment::Left
            };
            text.push_str(&pad_str(cell, *width, side, None));
            text.push_str("  ");
        }
        text.trim_end().to_owned()
    };
    // The title of the first column stands over the verdicts as well.
    let mut shown: Vec<&str> = titles.to_vec();
    if let Some(first) = shown.first_mut() {
        *first = "";
    }
    let heads = line(&" ".repeat(MARK), &shown);
    let heads = heads.get(titles[0].len()..).unwrap_or_default();
    let _ = writeln!(out, "\n{}", style(format!("{}{heads}", titles[0])).bold());
    for (level, cells, said) in &rows {
        let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
        let _ = writeln!(out, "{}", line(&mark(*level), &cells));
        if *level != Level::Ok {
            for more in wrap(said, width.saturating_sub(MARK + 2).max(20)) {
                let _ = writeln!(out, "{}{more}", " ".repeat(MARK + 2));
            }
        }
    }
}

fn state_word(status: crate::workload::Status, frozen: bool, health: Option<&str>) -> String {
    use crate::workload::Status;
    match status {
        Status::Running if frozen => "frozen".to_owned(),
        Status::Running => health.map_or_else(|| "running".to_owned(), |h| format!("running, {h}")),
        Status::Created => "never started".to_owned(),
        Status::Paused => "paused".to_owned(),
        Status::Restarting => "crash loop".to_owned(),
        Status::Exited | Status::Dead => "stopped".to_owned(),
    }
}

fn postgres(seen: &Overview) -> Vec<Row> {
    let text = |known: &Known<Vitals>| known.good().map_or_else(String::new, vitals);
    seen.postgres
        .iter()
        .map(|(name, known)| row(&format!("postgres/{name}"), name, text(known)))
        .collect()
}

fn vitals(v: &Vitals) -> String {
    let mut parts = vec![
        format!(
            "{}{}",
            v.version.split(' ').next().unwrap_or_default(),
            if v.in_recovery { ", standby" } else { "" }
        ),
        format!("connections {} of {}", v.used(), v.ordinary()),
        match v.oldest_transaction {
            Some(s) => format!("oldest transaction {}", seconds(Duration::from_secs(s))),
            None => "no open transaction".to_owned(),
        },
    ];
    parts.extend(v.size.map(|s| format!("size {}", bytes(s))));
    parts.push(match v.checksum_failures {
        Some(n) => format!("checksum failures {n}"),
        None => "no page checksums".to_owned(),
    });
    parts.push(format!(
        "{} M transactions to wraparound",
        v.transactions_left / 1_000_000
    ));
    parts.extend(v.block_hit_rate.map(|r| format!("{r:.1} % of reads from memory")));
    if v.receivers.is_empty() && !v.in_recovery {
        parts.push("no standby".to_owned());
    }
    parts.extend(
        v.receivers
            .iter()
            .map(|r| format!("standby {} {}, {} behind", r.name, r.state, bytes(r.behind))),
    );
    parts.extend(
        v.replay_age
            .map(|s| format!("replayed up to {} ago", seconds(Duration::from_secs(s)))),
    );
    parts.extend(
        v.idle_slots
            .iter()
            .map(|(n, held)| format!("slot {n} idle, holds {}", bytes(*held))),
    );
    parts.join(" · ")
}

fn redis(seen: &Overview) -> Vec<Row> {
    let text = |known: &Known<RedisView>| {
        known
            .good()
            .map_or_else(String::new, |v| keeper(v, seen.taken_at))
    };
    seen.redis
        .iter()
        .map(|(name, known)| row(&format!("redis/{name}"), name, text(known)))
        .collect()
}

fn keeper(view: &RedisView, now: Timestamp) -> String {
    let info = &view.info;
    let memory = match info.memory.percent() {
        Some(percent) => format!(
            "memory {} of {} ({percent:.0} %)",
            bytes(info.memory.used),
            bytes(info.memory.max)
        ),
        None => format!("memory {}, no limit", bytes(info.memory.used)),
    };
    let mut parts = vec![
        info.version.clone(),
        memory,
        info.memory.policy.clone(),
        format!("evicted {}", info.stats.evicted_keys),
        match info.stats.hit_rate() {
            Some(rate) => format!("hit rate {rate:.0} %"),
            None => "no reads yet".to_owned(),
        },
        format!("keys {}", info.keys()),
    ];
    let disk = &info.persistence;
    let age = disk.last_save.map(|at| ago(at, now));
    parts.push(match (disk.last_save_ok, age) {
        (false, _) => "the last save failed".to_owned(),
        (true, Some(age)) => format!("saved {age} ago, {} changes since", disk.changes_since_save),
        (true, None) => "never saved".to_owned(),
    });
    parts.push(
        if disk.aof_enabled {
            "append-only file on"
        } else {
            "append-only file off"
        }
        .to_owned(),
    );
    parts.extend(view.sessions.map(|n| format!("user sessions {n}")));
    if info.replication.replicas > 0 {
        parts.push(format!("replicas {}", info.replication.replicas));
    }
    parts.join(" · ")
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    seconds(Duration::from_secs(
        u64::try_from(now.duration_since(at).as_secs()).unwrap_or_default(),
    ))
}

fn disks(seen: &Overview, memory: &Memory) -> Vec<Row> {
    let known = seen.file_systems.found.iter().map(|d| {
        let left = memory.disks.get(&d.name).and_then(|h| trend::time_to_full(h));
        let full = match (left, memory.disks.get(&d.name).map_or(0, Vec::len)) {
            (Some(left), _) => format!(" · full in about {}", crate::check::days(left)),
            // This look alone is no trend, and `check` has not run yet.
            (None, 0 | 1) => " · no trend yet: drctl check records it".to_owned(),
            (None, _) => String::new(),
        };
        let of = if d.services.is_empty() {
            String::new()
        } else {
            format!(" · {}", d.services.join(", "))
        };
        row(
            &format!("disk/{}", d.name),
            &d.name,
            format!(
                "{:.0} % of {} used, {} free{full}{of}",
                d.percent(),
                bytes(d.size),
                bytes(d.free)
            ),
        )
    });
    let unknown = seen.file_systems.unknown.iter().map(|why| {
        let (service, why) = why.split_once(": ").unwrap_or((why, ""));
        row(&format!("disk/{service}"), service, why.to_owned())
    });
    let host = seen.host.iter().map(|h| {
        let used = h.memory.saturating_sub(h.memory_available);
        row(
            "host",
            "memory",
            format!(
                "{} of {} used · load {:.2} on {} processors",
                bytes(used),
                bytes(h.memory),
                h.load,
                h.cpus
            ),
        )
    });
    known.chain(unknown).chain(host).collect()
}

fn endpoints(seen: &Overview) -> Vec<Row> {
    seen.endpoints
        .iter()
        .map(|(name, answers)| {
            let all = answers.millis.len() + answers.failures.len();
            let mut text = format!("{} of {all} answers good", answers.millis.len());
            if let Some(slowest) = answers.millis.iter().max() {
                let _ = write!(text, ", slowest {slowest} ms");
            }
            row(&format!("endpoint/{name}"), name, text)
        })
        .collect()
}

fn backup(seen: &Overview, runbook: &Runbook) -> Vec<Row> {
    let text = match &seen.backup {
        Known::Good(view) => format!(
            "{} old, objective {} · {}",
            ago(view.taken_at, seen.taken_at),
            seconds(runbook.objectives.rpo),
            bytes(view.bytes)
        ),
        _ => String::new(),
    };
    let name = seen.backup.good().map_or("none", |v| v.label.as_str());
    vec![row("backup", name, text)]
}
