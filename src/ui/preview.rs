//! A diagnosis and a plan, for the person who decides at 3 a.m.: what is wrong, what would
//! be lost, what is done, and the way back of every step.

use std::fmt::Write as _;
use std::time::Duration;

use console::{measure_text_width, style};

use crate::engine::verify::describe;
use crate::event::{bytes, seconds};
use crate::plan::{Plan, Risk, Undo};

/// Column in which texts begin.
const INDENT: usize = 12;

/// Columns to use: the terminal's, between 60 and 110, else 100.
#[must_use]
pub fn width() -> usize {
    let term = console::Term::stdout();
    if term.is_term() {
        usize::from(term.size().1).clamp(60, 110)
    } else {
        100
    }
}

/// Breaks a text at blanks so that each line fits; a longer word stays whole.
#[must_use]
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && measure_text_width(&line) + 1 + measure_text_width(word) > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

/// `Label       text`, wrapped, the label bold.
pub(super) fn entry(out: &mut String, label: &str, text: &str, width: usize) {
    for (i, line) in wrap(text, width.saturating_sub(INDENT).max(20))
        .iter()
        .enumerate()
    {
        let label = if i == 0 { label } else { "" };
        let _ = writeln!(out, "{}{line}", style(format!("{label:INDENT$}")).bold());
    }
}

/// What is wrong.
#[must_use]
pub fn diagnosis(
    certainty: &str,
    summary: &str,
    reasons: &[String],
    look_alike: Option<&str>,
    width: usize,
) -> String {
    let mut out = String::new();
    let word = match certainty {
        "confirmed" => style(certainty).red(),
        "suspected" | "unknown" => style(certainty).yellow(),
        _ => style(certainty).green(),
    };
    entry(&mut out, "Diagnosis", &format!("{word}: {summary}"), width);
    for reason in reasons {
        for (i, line) in wrap(reason, width.saturating_sub(INDENT + 2).max(20))
            .iter()
            .enumerate()
        {
            let _ = writeln!(out, "{:INDENT$}{} {line}", "", if i == 0 { "·" } else { " " });
        }
    }
    if let Some(text) = look_alike {
        entry(&mut out, "Instead", text, width);
    }
    out
}

/// What is to be done.
#[must_use]
pub fn plan(plan: &Plan, width: usize) -> String {
    let mut out = String::new();
    let from = plan
        .backup
        .as_ref()
        .map(|b| format!(", from backup {b}"))
        .unwrap_or_default();
    entry(
        &mut out,
        "Remedy",
        &format!(
            "{}: {}{from}",
            style(plan.remedy.name()).bold(),
            plan.remedy.summary()
        ),
        width,
    );
    entry(&mut out, "Loses", &loss(plan), width);
    let mut takes = format!("about {}", seconds(Duration::from_secs(plan.estimate_seconds)));
    if plan.disk_needed > 0 {
        let free = plan.disk_free.map_or_else(
            || "free space unknown".to_owned(),
            |f| format!("{} free", bytes(f)),
        );
        let _ = write!(takes, ", {} of disk ({free})", bytes(plan.disk_needed));
    }
    entry(&mut out, "Takes", &takes, width);
    for (i, a) in plan.alternatives.iter().enumerate() {
        let label = if i == 0 { "Not chosen" } else { "" };
        let how = if a.possible {
            format!("{} (--remedy {} chooses it)", a.remedy, a.remedy)
        } else {
            format!("{} (not possible)", a.remedy)
        };
        entry(&mut out, label, &format!("{how}: {}", a.why_not), width);
    }
    out.push('\n');
    for (i, step) in plan.steps.iter().enumerate() {
        let risk = match step.risk {
            Risk::ReadOnly => style("read-only").dim(),
            Risk::Reversible => style("reversible").green(),
            Risk::Disruptive => style("disruptive").yellow(),
            Risk::Destructive => style("destructive").red().bold(),
        };
        let lines = wrap(
            &format!("{} [{risk}]", step.title),
            width.saturating_sub(5).max(20),
        );
        for (j, line) in lines.iter().enumerate() {
            if j == 0 {
                let _ = writeln!(out, "{}  {line}", style(format!("{:3}", i + 1)).bold());
            } else {
                let _ = writeln!(out, "     {line}");
            }
        }
        detail(&mut out, "why", &step.why, width);
        let undo = match &step.undo {
            Undo::Impossible(_) | Undo::Manual(_) => style(step.undo.to_string()).yellow().to_string(),
            _ => step.undo.to_string(),
        };
        detail(&mut out, "undo", &undo, width);
    }
    out.push('\n');
    let expected: Vec<String> = plan.expect.iter().map(describe).collect();
    entry(&mut out, "Proves", &expected.join("; "), width);
    entry(&mut out, "Keeps", &plan.kept, width);
    out
}

fn detail(out: &mut String, label: &str, text: &str, width: usize) {
    for (i, line) in wrap(text, width.saturating_sub(11).max(20)).iter().enumerate() {
        let label = if i == 0 { label } else { "" };
        let _ = writeln!(out, "     {} {line}", style(format!("{label:5}")).dim());
    }
}

fn loss(plan: &Plan) -> String {
    let loss = &plan.data_loss;
    let mut text = if loss.none {
        style(&loss.summary).green().to_string()
    } else {
        style(&loss.summary).yellow().to_string()
    };
    if !loss.none
        && let (Some(from), Some(now)) = (loss.backup_from, loss.newest_now)
    {
        let _ = write!(
            text,
            "; the backup is from {}, the newest row from {}",
            short(from),
            short(now)
        );
    }
    text
}

fn short(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{
        Action, Alternative, DataLoss, Expectation, PLAN_FORMAT, PostgresAction, Remedy, Step, WorkloadAction,
    };

    /// A plan of every kind of line, with names as long as they get.
    pub(crate) fn example() -> Plan {
        let service = || "postgres".to_owned();
        let swap = |back: bool| {
            let (service, database) = (service(), "simgen".to_owned());
            let (side, kept) = (
                "simgen_drctl_new_1f3a".to_owned(),
                "simgen_drctl_old_1f3a".to_owned(),
            );
            Action::Postgres(if back {
                PostgresAction::SwapBack {
                    service,
                    database,
                    side,
                    kept,
                    undone: "simgen_drctl_undone_1f3a".to_owned(),
                }
            } else {
                PostgresAction::SwapDatabases {
                    service,
                    database,
                    side,
                    kept,
                }
            })
        };
        let drop_side = || {
            Action::Postgres(PostgresAction::DropDatabase {
                service: service(),
                database: "simgen_drctl_new_1f3a".into(),
            })
        };
        let step = |title: &str, why: &str, risk, action, undo| Step {
            title: title.into(),
            why: why.into(),
            risk,
            action,
            undo,
            timeout_seconds: 600,
        };
        Plan {
            format: PLAN_FORMAT,
            scenario: "db-corruption".into(),
            deployment: "simgen".into(),
            run: "20261120T183012Z-db-corruption-1f3a".into(),
            service: service(),
            diagnosis: "page 7 of table public.orders in database simgen is damaged".into(),
            remedy: Remedy::RestoreDatabase,
            alternatives: vec![
                Alternative {
                    remedy: Remedy::Reindex,
                    possible: false,
                    why_not: "the damage is in a table, and an index cannot give its rows back".into(),
                },
                Alternative {
                    remedy: Remedy::RestoreCluster,
                    possible: true,
                    why_not: "it stops the whole server, and only one database is damaged".into(),
                },
            ],
            backup: Some("20261120T020000Z".into()),
            steps: vec![
                step(
                    "restore simgen from backup 20261120T020000Z into simgen_drctl_new_1f3a",
                    "the damaged database stays in service, readable as far as it is, while the new one is built beside it",
                    Risk::ReadOnly,
                    Action::Postgres(PostgresAction::RestoreSide {
                        service: service(),
                        database: "simgen".into(),
                        side: "simgen_drctl_new_1f3a".into(),
                        dump: "/b".into(),
                        jobs: 2,
                    }),
                    Undo::Action(drop_side()),
                ),
                step(
                    "check simgen_drctl_new_1f3a",
                    "nothing unproven is brought into service",
                    Risk::ReadOnly,
                    Action::Postgres(PostgresAction::ProveSide {
                        service: service(),
                        database: "simgen".into(),
                        side: "simgen_drctl_new_1f3a".into(),
                        floors: vec![],
                    }),
                    Undo::NotNeeded("it only reads".into()),
                ),
                step(
                    "swap names: simgen becomes simgen_drctl_old_1f3a, simgen_drctl_new_1f3a becomes simgen",
                    "one transaction brings the new database into service",
                    Risk::Disruptive,
                    swap(false),
                    Undo::Action(swap(true)),
                ),
                step(
                    "restart api1",
                    "its pool holds sessions of the old database",
                    Risk::Disruptive,
                    Action::Workload(WorkloadAction::Start {
                        service: "api1".into(),
                        wait: true,
                    }),
                    Undo::Impossible("a restart cannot be taken back, and harms nothing".into()),
                ),
            ],
            expect: vec![
                Expectation::ServerAnswers { service: service() },
                Expectation::Sound {
                    service: service(),
                    database: "simgen".into(),
                    relations: vec![],
                },
                Expectation::Endpoints,
                Expectation::WriteCheck,
            ],
            data_loss: DataLoss {
                summary: "rows written since the backup that cannot be read from the damaged table".into(),
                none: false,
                rows_since_backup: Some(412),
                newest_now: "2026-11-20T18:29:50Z".parse().ok(),
                backup_from: "2026-11-20T02:00:01Z".parse().ok(),
            },
            estimate_seconds: 95,
            disk_needed: 1_400_000_000,
            disk_free: Some(40_000_000_000),
            kept: "the damaged database as simgen_drctl_old_1f3a, until drctl incident close".into(),
            discard: vec![],
        }
    }

    #[test]
    fn a_plan_reads_well_at_80_columns() {
        console::set_colors_enabled(false);
        let text = plan(&example(), 80);
        assert!(text.lines().all(|l| measure_text_width(l) <= 80), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_diagnosis_reads_well() {
        console::set_colors_enabled(false);
        let reasons = [
            "SQLSTATE XX001 while reading public.orders: invalid page in block 7 of relation base/16385/16412".to_owned(),
            "checksums are on and 3 failures were counted".to_owned(),
        ];
        insta::assert_snapshot!(diagnosis(
            "confirmed",
            "page 7 of table public.orders in database simgen is damaged",
            &reasons,
            None,
            80
        ));
    }

    #[test]
    fn long_words_stay_whole() {
        assert_eq!(
            wrap("a bb ccc dddddddddd e", 6),
            ["a bb", "ccc", "dddddddddd", "e"]
        );
    }
}
