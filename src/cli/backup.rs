//! `drctl backup`: create, list, show, verify. Pruning is in `prune`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde_json::json;

use super::{Context, telling};
use crate::backup::{self, Catalogue, Entry, Options, Set, catalogue_error};
use crate::engine::Interrupts;
use crate::error::{Error, Kind, Result};
use crate::event::{self, EVENT_VERSION, Event, Phase, Verdict};
use crate::runbook::Runbook;
use crate::system::System;
use crate::ui;

/// After the help of `drctl backup`.
const HELP: &str = "The server goes on serving. Older sets are not touched before the new one is complete; with `backup.keep` in the \
runbook the new one is then verified, and old ones go by its rules, which cannot be undone. A run that fails or is cut off \
leaves nothing that could be taken for a set. Where the runbook has `notify`, somebody is told of a run that fails, once, \
and of the next good one.\n\n\
Examples:\n  drctl backup --dry-run    # what would be written, how much it needs\n  drctl backup\n  drctl backup verify";

/// After the help of `drctl backup verify`.
const VERIFY_HELP: &str = "Every byte is read, and nothing is restored: it shows that the files are those that were written and can be \
read to their end, not that a server starts from them. What a restore brings is proven by the recovery or the drill that does \
it. What was found is written to `proof.json` in the set; a set that failed is not restored from.\n\n\
Examples:\n  drctl backup verify\n  drctl backup verify --all";

/// Arguments of `drctl backup`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = HELP)]
pub struct BackupArgs {
    #[command(subcommand)]
    verb: Option<BackupVerb>,
    #[command(flatten)]
    create: CreateArgs,
}

#[derive(Debug, Subcommand)]
enum BackupVerb {
    /// Make a backup set: a dump of each database and a copy of each server (the default)
    #[command(after_help = HELP)]
    Create(CreateArgs),
    /// List the backup sets
    List,
    /// Show what one backup set holds
    Show {
        /// The set's label, or latest
        #[arg(default_value = "latest")]
        label: String,
    },
    /// Check a backup set: digests, the base backup's own manifest, a full read of the dumps
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Remove the backup sets that `backup.keep` in the runbook no longer wants
    #[command(after_help = super::prune::HELP)]
    Prune,
}

/// Arguments of `drctl backup create`.
#[derive(Debug, Args)]
struct CreateArgs {
    /// Only the dumps
    #[arg(long, conflicts_with = "physical_only")]
    logical_only: bool,
    /// Only the copies of the servers
    #[arg(long)]
    physical_only: bool,
    /// Believe the new set although it is much smaller than the one before
    #[arg(long)]
    accept_shrink: bool,
}

/// Arguments of `drctl backup verify`.
#[derive(Debug, Args)]
struct VerifyArgs {
    /// The set's label, or latest
    #[arg(default_value = "latest", conflicts_with = "all")]
    label: String,
    /// Every set
    #[arg(long)]
    all: bool,
}

/// Runs `drctl backup`.
///
/// # Errors
/// Those of the verb.
pub async fn run(cx: &Context, args: BackupArgs) -> Result<ExitCode> {
    match args.verb {
        None => Box::pin(create(cx, &args.create)).await,
        Some(BackupVerb::Create(args)) => Box::pin(create(cx, &args)).await,
        Some(BackupVerb::List) => list(cx),
        Some(BackupVerb::Show { label }) => show(cx, &label),
        Some(BackupVerb::Verify(args)) => verify(cx, &args).await,
        Some(BackupVerb::Prune) => super::prune::run(cx).await,
    }
}

async fn create(cx: &Context, args: &CreateArgs) -> Result<ExitCode> {
    let runbook = cx.runbook()?;
    let code = Arc::new(AtomicU8::new(Kind::Interrupted.exit_code()));
    let ended = Box::pin(attempt(cx, args, &runbook, &code)).await;
    let failed = match &ended {
        // A person knows how it ended, and a dry run tells nobody.
        _ if cx.global.dry_run => return ended,
        Ok(code) if *code != ExitCode::SUCCESS => return ended,
        Ok(_) => None,
        Err(e) => Some(e),
    };
    // Telling has deadlines, and whoever types Ctrl-C does not wait for them: it was written down before.
    tokio::select! {
        () = telling::of_backup(cx, &runbook, failed) => {}
        () = interrupt(code) => {}
    }
    ended
}

/// One run. Interrupted, it has said so, and gives the exit code that belongs to the signal.
async fn attempt(
    cx: &Context,
    args: &CreateArgs,
    runbook: &Runbook,
    code: &Arc<AtomicU8>,
) -> Result<ExitCode> {
    let system = System::open(runbook.clone()).await?;
    let configured = &system.runbook.backup.postgres;
    let options = Options {
        logical: args.logical_only || (configured.logical && !args.physical_only),
        physical: args.physical_only || (configured.physical && !args.logical_only),
        accept_shrink: args.accept_shrink,
    };
    if cx.global.dry_run {
        return dry_run(cx, &system, options).await;
    }
    let began = Instant::now();
    let work = backup::create(&system, &cx.state, options, &cx.reporter, interrupt(code.clone()));
    let made = Box::pin(work).await;
    let set = match made {
        Err(e) if e.kind == Kind::Interrupted => {
            let _ = ui::error(&e, cx.global.json);
            return Ok(ExitCode::from(code.load(Ordering::Relaxed)));
        }
        other => other?,
    };
    let took = began.elapsed();
    if cx.global.json {
        ui::json(&json!({
            "event": "backup", "version": EVENT_VERSION, "label": set.label, "path": set.path,
            "bytes": set.manifest.bytes, "logical-bytes": set.manifest.logical_bytes(),
            "physical-bytes": set.manifest.physical_bytes(), "skew-seconds": set.manifest.skew_seconds,
            "seconds": took.as_secs_f64(),
        }));
    } else {
        ui::line(&summary(&set, took));
    }
    if system.runbook.backup.keep.is_some() {
        // The handlers of the backup stay: without this a signal would do nothing from here on.
        tokio::select! {
            pruned = Box::pin(super::prune::after_backup(cx, &system, &set)) => pruned?,
            () = interrupt(code.clone()) => {
                let error = Error::new(Kind::Interrupted, format!("stopped after backup {} was complete", set.label))
                    .untouched("the new set: it is complete; older sets were not looked at to their end")
                    .next(format!("drctl backup verify {}", set.label))
                    .next("drctl backup prune");
                let _ = ui::error(&error, cx.global.json);
                return Ok(ExitCode::from(code.load(Ordering::Relaxed)));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn dry_run(cx: &Context, system: &System, options: Options) -> Result<ExitCode> {
    let plan = backup::forecast(system, options).await?;
    if cx.global.json {
        ui::json(&json!({
            "event": "backup-forecast", "version": EVENT_VERSION, "directory": plan.directory, "parts": plan.parts,
            "physical-bytes": plan.room.physical, "logical-bytes": plan.room.logical, "free-bytes": plan.room.free,
        }));
        return Ok(ExitCode::SUCCESS);
    }
    ui::line(&format!(
        "A backup of {} would be written to {}:",
        system.deployment(),
        plan.directory.display()
    ));
    for part in &plan.parts {
        ui::line(&format!("  {part}"));
    }
    ui::line(&format!(
        "It needs about {}; {} are free. Nothing was written.",
        event::bytes(plan.room.physical + plan.room.logical),
        event::bytes(plan.room.free)
    ));
    Ok(ExitCode::SUCCESS)
}

/// Completes at the first signal that ends a run and leaves the exit code that belongs to it.
async fn interrupt(code: Arc<AtomicU8>) {
    let Ok(interrupts) = Interrupts::listen() else {
        // No handler: the default action ends the process, and the leases the helpers.
        return std::future::pending().await;
    };
    let which = interrupts.more_than(0).await;
    code.store(which.kind().exit_code(), Ordering::Relaxed);
}

/// The line that cron mails.
fn summary(set: &Set, took: Duration) -> String {
    let m = &set.manifest;
    let mut parts = Vec::new();
    let seconds = |s: f64| event::seconds(Duration::try_from_secs_f64(s).unwrap_or_default());
    for (_, database, dump) in m.dumps() {
        parts.push(format!(
            "dump of {database} {} in {}",
            event::bytes(dump.bytes),
            seconds(dump.seconds)
        ));
    }
    for (service, part) in &m.postgres {
        if let Some(base) = &part.physical {
            parts.push(format!(
                "base of {service} {} in {}",
                event::bytes(base.bytes),
                seconds(base.seconds)
            ));
        }
    }
    format!(
        "backup {} of {}: {}; {} in {} at {}",
        m.label,
        m.deployment,
        parts.join(", "),
        event::bytes(m.bytes),
        event::seconds(took),
        set.path.display()
    )
}

pub(super) fn age(now: Timestamp, at: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs();
    match seconds {
        s if s < 0 => "in the future".to_owned(),
        s if s < 3600 => format!("{} min", s / 60),
        s if s < 48 * 3600 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86400),
    }
}

fn list(cx: &Context) -> Result<ExitCode> {
    let runbook = cx.runbook()?;
    let catalogue = Catalogue::open(&runbook.backup.directory, runbook.deployment.as_str());
    let entries = catalogue.list().map_err(catalogue_error)?;
    if cx.global.json {
        let backups: Vec<_> = entries.iter().map(entry_json).collect();
        ui::json(&json!({
            "event": "backups", "version": EVENT_VERSION, "directory": catalogue.directory(), "backups": backups,
        }));
        return Ok(ExitCode::SUCCESS);
    }
    if entries.is_empty() {
        ui::line(&format!(
            "There is no backup in {}.",
            catalogue.directory().display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now();
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["LABEL", "AGE", "PARTS", "DUMP", "BASE", "TOTAL", "STATE"]);
    for entry in &entries {
        let started = entry.label().at().map_or_else(String::new, |at| age(now, at));
        let row = match entry {
            Entry::Set(set) | Entry::Failed(set) => [
                set.label.to_string(),
                started,
                set.manifest.parts(),
                event::bytes(set.manifest.logical_bytes()),
                event::bytes(set.manifest.physical_bytes()),
                event::bytes(set.manifest.bytes),
                state(entry),
            ],
            other => [
                other.label().to_string(),
                started,
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                state(other),
            ],
        };
        table.add_row(row);
    }
    for column in [1, 3, 4, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
    ui::data(&text.join("\n"));
    Ok(ExitCode::SUCCESS)
}

/// The last column of the list.
fn state(entry: &Entry) -> String {
    match (entry, entry.unusable()) {
        // These say all of it in one word, and how they came about is in the README.
        (Entry::Partial { .. } | Entry::Pruned { .. } | Entry::Suspect { .. }, _) | (_, None) => {
            entry.state().to_owned()
        }
        (_, Some(why)) => format!("{}: {why}", entry.state()),
    }
}

fn entry_json(entry: &Entry) -> serde_json::Value {
    match entry {
        Entry::Failed(set) => json!({
            "label": set.label, "state": entry.state(), "path": set.path, "started": set.manifest.started,
            "finished": set.manifest.finished, "parts": set.manifest.parts(), "bytes": set.manifest.bytes,
            "logical-bytes": set.manifest.logical_bytes(), "physical-bytes": set.manifest.physical_bytes(),
            "why": entry.unusable(),
        }),
        Entry::Foreign {
            label,
            path,
            deployment,
        } => {
            json!({ "label": label, "state": entry.state(), "path": path, "deployment": deployment })
        }
        Entry::Set(set) => json!({
            "label": set.label, "state": entry.state(), "path": set.path, "started": set.manifest.started,
            "finished": set.manifest.finished, "parts": set.manifest.parts(), "bytes": set.manifest.bytes,
            "logical-bytes": set.manifest.logical_bytes(), "physical-bytes": set.manifest.physical_bytes(),
        }),
        Entry::Damaged { label, path, why } => {
            json!({ "label": label, "state": entry.state(), "path": path, "why": why })
        }
        Entry::Partial { label, path } | Entry::Pruned { label, path } | Entry::Suspect { label, path } => {
            json!({ "label": label, "state": entry.state(), "path": path })
        }
    }
}

fn show(cx: &Context, label: &str) -> Result<ExitCode> {
    let runbook = cx.runbook()?;
    let set = Catalogue::open(&runbook.backup.directory, runbook.deployment.as_str())
        .find(label)
        .map_err(catalogue_error)?;
    let m = &set.manifest;
    if let Some(proof) = set.failure() {
        cx.reporter.event(&Event::Warning {
            text: format!(
                "its verification failed at {}: no recovery restores from it until drctl backup verify {} passes",
                proof.at, set.label
            ),
        });
    }
    if cx.global.json {
        ui::json(
            &json!({ "event": "backup-manifest", "version": EVENT_VERSION, "path": set.path, "manifest": m }),
        );
        return Ok(ExitCode::SUCCESS);
    }
    ui::line(&format!(
        "Backup {} of {} at {}",
        m.label,
        m.deployment,
        set.path.display()
    ));
    ui::line(&format!(
        "  made {} to {} by drctl {}, {}, parts {:.1} s apart",
        m.started,
        m.finished,
        m.drctl_version,
        event::bytes(m.bytes),
        m.skew_seconds
    ));
    for (service, part) in &m.postgres {
        ui::line(&format!(
            "  {service}: PostgreSQL {}, system {}, timeline {}, checksums {}",
            part.server_version,
            part.system_identifier,
            part.timeline,
            if part.data_checksums { "on" } else { "off" }
        ));
        for (database, dump) in &part.logical {
            ui::line(&format!(
                "    dump of {database}: {} tables, {} in {} files, shows {}",
                dump.tables,
                event::bytes(dump.bytes),
                dump.files,
                dump.snapshot_at
            ));
            for (table, rows) in &dump.table_rows {
                ui::line(&format!("      {table}: {rows} rows"));
            }
        }
        if let Some(base) = &part.physical {
            ui::line(&format!(
                "    base backup: {} in {} files, WAL {} to {} on timeline {}",
                event::bytes(base.bytes),
                base.files,
                base.start_lsn,
                base.end_lsn,
                base.timeline
            ));
        }
    }
    ui::line(&format!("  by hand: {}", set.path.join("RESTORE.md").display()));
    Ok(ExitCode::SUCCESS)
}

async fn verify(cx: &Context, args: &VerifyArgs) -> Result<ExitCode> {
    let runbook = cx.runbook()?;
    let catalogue = Catalogue::open(&runbook.backup.directory, runbook.deployment.as_str());
    let entries: Vec<Entry> = catalogue
        .list()
        .map_err(catalogue_error)?
        .into_iter()
        .filter(|e| matches!(e, Entry::Set(_) | Entry::Failed(_) | Entry::Damaged { .. }))
        .collect();
    let chosen: Vec<Entry> = if args.all {
        entries
    } else if args.label == "latest" {
        // Not the newest good one: when the newest is damaged, that is the answer.
        entries.into_iter().next_back().into_iter().collect()
    } else {
        vec![Entry::Set(Box::new(
            catalogue.find(&args.label).map_err(catalogue_error)?,
        ))]
    };
    if chosen.is_empty() {
        return Err(catalogue_error(backup::CatalogueError::Empty {
            path: catalogue.directory().to_owned(),
        }));
    }
    let system = System::open(runbook.clone()).await;
    let why = system
        .as_ref()
        .err()
        .map(|e| e.message.clone())
        .unwrap_or_default();
    let mut worst = Verdict::Pass;
    for entry in &chosen {
        cx.reporter.event(&Event::Phase {
            phase: Phase::Verify,
            subject: format!("backup {}", entry.label()),
        });
        let verdict = match entry {
            Entry::Set(set) | Entry::Failed(set) => {
                let dumps = set.manifest.dumps().next().is_some();
                let previous = catalogue
                    .baseline(&set.label, dumps)
                    .map_err(catalogue_error)?
                    .map(|s| s.manifest);
                let engine = system.as_ref().map_err(|_| why.as_str());
                let found = backup::verify(&runbook, engine, set, previous.as_ref(), &cx.reporter).await;
                if !cx.global.dry_run {
                    note_proof(cx, set, found.of_files());
                }
                result_line(cx, &found.label, found.verdict(), &json!(found.checks));
                found.verdict()
            }
            other => {
                let why = match other {
                    Entry::Damaged { why, .. } => why.as_str(),
                    _ => "it is not a finished set",
                };
                cx.reporter.event(&Event::Checked {
                    what: "manifest".into(),
                    verdict: Verdict::Fail,
                    found: why.to_owned(),
                });
                result_line(cx, &other.label().to_string(), Verdict::Fail, &json!([]));
                Verdict::Fail
            }
        };
        worst = match (worst, verdict) {
            (Verdict::Fail, _) | (_, Verdict::Fail) => Verdict::Fail,
            (Verdict::Pass, v) => v,
            (w, _) => w,
        };
    }
    let kind = match worst {
        Verdict::Pass => return Ok(ExitCode::SUCCESS),
        Verdict::Fail => Kind::BackupDamaged,
        Verdict::CouldNotVerify | Verdict::NotConfigured => Kind::CouldNotVerify,
    };
    let error = if kind == Kind::BackupDamaged {
        Error::new(kind, "a backup is damaged: it would not restore as it should")
            .next("drctl backup    # make a good one now, while the server still runs")
            .next("drctl backup verify --all    # which older one is good?")
    } else {
        Error::new(kind, format!("not everything could be verified: {why}")).next("docker version")
    };
    Err(error.untouched("everything: a verification reads, and writes down what it found"))
}

/// Writes down what a verification found; one that cannot be written down is still one.
pub(super) fn note_proof(cx: &Context, set: &Set, verdict: Verdict) {
    if let Err(e) = backup::record(set, verdict) {
        cx.reporter.event(&Event::Warning {
            text: format!(
                "what was found could not be written down in {}: {e}",
                set.path.display()
            ),
        });
    }
}

fn result_line(cx: &Context, label: &str, verdict: Verdict, checks: &serde_json::Value) {
    if cx.global.json {
        ui::json(&json!({
            "event": "backup-verified", "version": EVENT_VERSION, "label": label, "verdict": verdict, "checks": checks,
        }));
    } else {
        ui::line(&format!("backup {label}: {verdict}"));
    }
}
