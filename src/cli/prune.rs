//! `drctl backup prune`, and what `drctl backup` does once a new set is proven.

use std::process::ExitCode;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde_json::json;

use super::Context;
use super::backup::{age, note_proof};
use super::recover::consent;
use crate::backup::{self, Catalogue, Label, Prune, Pruned, Set, catalogue_error};
use crate::engine::Needs;
use crate::engine::approve::agree;
use crate::error::{Error, Kind, Result};
use crate::event::{self, EVENT_VERSION, Event, Phase, Verdict};
use crate::runbook::Runbook;
use crate::system::System;
use crate::ui;

/// After the help of `drctl backup prune`.
pub(super) const HELP: &str = "The rules are those of restic: `last`, and `hourly`, `daily`, `weekly`, `monthly` and `yearly`, each of which \
wants the newest set of so many hours, days … that have one. A set stays when any of them wants it, and while one has room \
left the oldest set stays too. Whatever they say, the newest set, the last verified ones and one that a recovery needs stay; \
sets of other deployments are never touched.\n\n\
Examples:\n  drctl backup prune --dry-run\n  drctl backup prune --yes";

/// Runs `drctl backup prune`.
///
/// # Errors
/// `Locked` while a backup or a recovery runs, `Declined`, a set that cannot be removed.
pub(super) async fn run(cx: &Context) -> Result<ExitCode> {
    let runbook = cx.runbook()?;
    // Looked at under the locks, so that what is agreed to is what is removed.
    let hold = if cx.global.dry_run || !runbook.backup.directory.exists() {
        None
    } else {
        Some(backup::hold(&runbook, &cx.state)?)
    };
    let found = backup::look(&runbook, &cx.state, hold.as_ref())?;
    show(cx, &runbook, &found);
    let goes = found.goes();
    let Some(hold) = hold.filter(|_| !goes.is_empty()) else {
        if cx.global.dry_run && !cx.global.json && !cx.global.quiet {
            ui::line("\ndry run: nothing was removed");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let bytes: u64 = goes.iter().map(|g| g.bytes).sum();
    let question = format!(
        "Remove {} of {}, {}?",
        sets(goes.len()),
        runbook.deployment,
        event::bytes(bytes)
    );
    agree(
        Needs::Yes,
        runbook.deployment.as_str(),
        &question,
        "every backup",
        &consent(cx),
    )
    .await?;
    let labels: Vec<Label> = goes.into_iter().map(|g| g.label).collect();
    let done = backup::prune_labels(&runbook, &hold, &labels, &cx.reporter)?;
    removed(cx, &done);
    Ok(ExitCode::SUCCESS)
}

fn sets(n: usize) -> String {
    format!("{n} backup set{}", if n == 1 { "" } else { "s" })
}

fn removed(cx: &Context, done: &Pruned) {
    if cx.global.json {
        ui::json(&json!({
            "event": "backup-pruned", "version": EVENT_VERSION, "labels": done.labels, "bytes": done.bytes,
        }));
    } else if !done.labels.is_empty() {
        ui::line(&format!(
            "{} removed, {}",
            sets(done.labels.len()),
            event::bytes(done.bytes)
        ));
    }
}

fn show(cx: &Context, runbook: &Runbook, found: &Prune) {
    let goes = found.goes();
    if cx.global.json {
        let kept: Vec<_> = found.sets.iter().filter(|d| !d.goes()).collect();
        ui::json(&json!({
            "event": "backup-prune", "version": EVENT_VERSION, "directory": found.directory, "foreign": found.foreign,
            "keep": kept.iter().map(|d| json!({
                "label": d.label, "bytes": d.bytes,
                "why": d.why.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "remove": goes.iter().map(|g| json!({ "label": g.label, "bytes": g.bytes })).collect::<Vec<_>>(),
        }));
        return;
    }
    if runbook.backup.keep.is_none() {
        ui::line(&format!(
            "The runbook of {} has no backup.keep: every set is kept.",
            runbook.deployment
        ));
    }
    let now = Timestamp::now();
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["LABEL", "AGE", "BYTES", "", "WHY"]);
    let mut row = |label: &Label, bytes: u64, what: &str, why: String| {
        let old = label.at().map_or_else(String::new, |at| age(now, at));
        table.add_row([label.to_string(), old, event::bytes(bytes), what.to_owned(), why]);
    };
    for decision in &found.sets {
        if decision.goes() {
            let why = "no rule wants it".to_owned();
            row(&decision.label, decision.bytes, "remove", why);
        } else {
            row(&decision.label, decision.bytes, "keep", decision.reasons());
        }
    }
    for (label, bytes, what) in &found.remains {
        row(
            label,
            *bytes,
            "remove",
            format!("{what} by a run that was cut off"),
        );
    }
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    if !found.sets.is_empty() || !found.remains.is_empty() {
        let text: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
        ui::data(&text.join("\n"));
    }
    if found.foreign > 0 {
        ui::line(&format!(
            "{} of other deployments: not looked at",
            sets(found.foreign)
        ));
    }
    if goes.is_empty() {
        ui::line("There is nothing to remove.");
    }
}

/// Verifies a set that was just made and, only when it would restore, removes what the
/// runbook's rules no longer want. A recovery at work is not waited for: the next run prunes.
///
/// # Errors
/// `BackupDamaged` and `CouldNotVerify` with no set removed; a set that cannot be removed.
pub(super) async fn after_backup(cx: &Context, system: &System, set: &Set) -> Result<()> {
    let runbook = &system.runbook;
    cx.reporter.event(&Event::Phase {
        phase: Phase::Verify,
        subject: format!("backup {}", set.label),
    });
    let dumps = set.manifest.dumps().next().is_some();
    let previous = Catalogue::open(&runbook.backup.directory, runbook.deployment.as_str())
        .baseline(&set.label, dumps)
        .map_err(catalogue_error)?
        .map(|s| s.manifest);
    let found = backup::verify(runbook, Ok(system), set, previous.as_ref(), &cx.reporter).await;
    let problem = |kind, message: String| {
        Err(Error::new(kind, message)
            .untouched("every older backup: none was removed")
            .next(format!("drctl backup verify {}", set.label)))
    };
    match found.of_files() {
        Verdict::Pass => note_proof(cx, set, Verdict::Pass),
        Verdict::Fail => {
            note_proof(cx, set, Verdict::Fail);
            return problem(
                Kind::BackupDamaged,
                format!("backup {} was made, and its verification failed", set.label),
            );
        }
        Verdict::CouldNotVerify | Verdict::NotConfigured => {
            return problem(
                Kind::CouldNotVerify,
                format!("backup {} was made, and could not be verified", set.label),
            );
        }
    }
    let hold = match backup::hold(runbook, &cx.state) {
        Ok(hold) => hold,
        Err(e) if e.kind == Kind::Locked => {
            cx.reporter.event(&Event::Warning {
                text: format!("no old backup is removed this time: {}", e.message),
            });
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let goes: Vec<Label> = backup::look(runbook, &cx.state, Some(&hold))?
        .goes()
        .into_iter()
        .map(|g| g.label)
        .collect();
    let done = backup::prune_labels(runbook, &hold, &goes, &cx.reporter)?;
    if !done.labels.is_empty() {
        removed(cx, &done);
    }
    Ok(())
}
