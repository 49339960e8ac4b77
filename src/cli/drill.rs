//! `drctl drill`: list, inject, heal.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};

use super::{Context, duration};
use crate::error::{Error, Kind, Result};
use crate::event::EVENT_VERSION;
use crate::faults::{Record, Request, Site, catalogue, expiry};
use crate::runbook::Environment;
use crate::runbook::format_duration;
use crate::ui;

/// Arguments of `drctl drill`.
#[derive(Debug, Args)]
#[command(
    after_help = "Faults are real: users of the deployment notice them. They are injected only where the runbook says \
`environment: lab`, or `staging` and the name is given by --confirm. The original is saved before, and every fault is put right \
when its --ttl is over; `heal` does it now.\n\n\
Examples:\n  drctl drill list\n  drctl drill inject db-corruption/heap-page --dry-run\n  drctl drill heal"
)]
pub struct DrillArgs {
    #[command(subcommand)]
    verb: DrillVerb,
}

#[derive(Debug, Subcommand)]
enum DrillVerb {
    /// List the faults that can be injected
    List,
    /// Inject a fault into a deployment whose runbook says `environment: lab` or `staging`
    Inject(InjectArgs),
    /// Put injected faults right; what a recovery has dealt with is left alone
    Heal(HealArgs),
}

#[derive(Debug, Args)]
struct InjectArgs {
    /// The fault, as `drctl drill list` names it
    #[arg(value_name = "SCENARIO/VARIANT")]
    fault: String,
    /// The table to damage. Default: the one with a traffic number, else the largest that the runbook names
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// The database. Default: the first in the runbook
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// The service to hit. Default: the first that the fault fits
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// How long the fault lasts at most: it is put right then, also when drctl is gone
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    ttl: Duration,
}

#[derive(Debug, Args)]
struct HealArgs {
    /// The fault's identity, as `drill inject` printed it. Default: every fault that has not been healed
    id: Option<String>,
    /// Look at faults that were healed or found gone as well
    #[arg(long, conflicts_with = "id")]
    all: bool,
    /// Put nothing right: only remove the saved originals and close the record
    #[arg(long)]
    forget: bool,
    /// Wait until the fault's time to live is over, then heal it
    // How drctl calls itself beside every injection.
    #[arg(long, hide = true, requires = "id", conflicts_with = "forget")]
    at_expiry: bool,
}

/// Runs `drctl drill`.
///
/// # Errors
/// A refused, failed or interrupted injection; a heal that failed.
pub async fn run(cx: &Context, args: DrillArgs) -> Result<ExitCode> {
    match args.verb {
        DrillVerb::List => list(cx),
        DrillVerb::Inject(args) => inject(cx, args).await?,
        DrillVerb::Heal(args) => heal(cx, args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(cx: &Context) {
    if cx.global.json {
        for f in catalogue() {
            ui::json(&serde_json::json!({
                "event": "fault-listed", "version": EVENT_VERSION, "fault": f.name, "summary": f.summary, "leaves": f.leaves, "live": f.live,
            }));
        }
        return;
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["FAULT", "WHAT IS DONE"]);
    for f in catalogue() {
        table.add_row([f.name, f.summary]);
    }
    ui::data(&table.to_string());
}

async fn inject(cx: &Context, args: InjectArgs) -> Result<()> {
    let system = cx.system().await?;
    let site = Site {
        system: &system,
        state: &cx.state,
        reporter: &cx.reporter,
    };
    let request = Request {
        database: args.database,
        table: args.table,
        ttl: args.ttl,
    };
    let service = args.service.as_deref();
    site.fault(&args.fault)?;
    if cx.global.dry_run {
        let target = site.preview(&args.fault, service, &request).await?;
        if cx.global.json {
            ui::json(&serde_json::json!({
                "event": "fault-forecast", "version": EVENT_VERSION, "fault": args.fault, "target": target,
                "dry-run": true,
            }));
        } else {
            ui::line(&format!("{} would hit {target}", args.fault));
        }
        return Ok(());
    }
    let deployment = system.deployment();
    // In a lab that is what it is for. In staging somebody may be at work.
    if system.runbook.environment == Environment::Staging && cx.global.confirm.as_deref() != Some(deployment)
    {
        return Err(Error::new(
            Kind::Refused,
            format!("{deployment} is a staging deployment: injecting a fault needs its name typed"),
        )
        .untouched("everything")
        .next(format!(
            "drctl drill inject {} --confirm {deployment}",
            args.fault
        )));
    }
    let record = site.inject(&args.fault, service, &request).await?;
    if cx.global.json {
        ui::json(&json(&record, record.note.as_deref().unwrap_or_default()));
    } else {
        ui::line(&format!(
            "{} {}: {}; {}{}",
            record.id,
            record.fault,
            record.target,
            record.note.as_deref().unwrap_or("injected"),
            record
                .expires_at
                .map(|_| format!("; it ends by itself after {}", format_duration(request.ttl)))
                .unwrap_or_default(),
        ));
    }
    Ok(())
}

async fn heal(cx: &Context, args: HealArgs) -> Result<()> {
    if let Some(id) = args.id.as_deref().filter(|_| args.at_expiry) {
        let heal = |record| async move {
            let system = cx.system().await?;
            let site = Site {
                system: &system,
                state: &cx.state,
                reporter: &cx.reporter,
            };
            site.heal(record).await
        };
        return expiry::wait_and_heal(&cx.state, id, heal).await;
    }
    let system = cx.system().await?;
    let site = Site {
        system: &system,
        state: &cx.state,
        reporter: &cx.reporter,
    };
    let mut records = site.records()?;
    match &args.id {
        Some(id) => {
            records.retain(|r| r.id == *id);
            if records.is_empty() {
                return Err(Error::new(
                    Kind::Usage,
                    format!("there is no record of a fault {id} in {}", system.deployment()),
                )
                .untouched("everything")
                .next("drctl drill heal    # every fault that has not been healed"));
            }
        }
        None => records.retain(|r| args.all || r.status.is_open()),
    }
    // The last one first: an earlier one may be underneath it.
    records.reverse();
    if records.is_empty() && !cx.global.json {
        ui::line("no fault is open");
    }
    if cx.global.dry_run {
        for record in records {
            if cx.global.json {
                ui::json(&serde_json::json!({
                    "event": "heal-forecast", "version": EVENT_VERSION, "id": record.id, "fault": record.fault,
                    "service": record.service, "target": record.target, "status": record.status,
                }));
            } else {
                ui::line(&format!("{} {}: {}", record.id, record.fault, record.target));
            }
        }
        return Ok(());
    }
    // A fault may not let itself be healed as long as an earlier one is underneath it:
    // once more through those that failed, as long as that helps.
    loop {
        let before = records.len();
        let mut failed: Vec<(Record, Error)> = Vec::new();
        for record in records {
            let done = if args.forget {
                site.forget(record.clone()).await
            } else {
                site.heal(record.clone()).await
            };
            match done {
                Ok(done) => tell(cx, &done.record, &done.outcome),
                Err(e) => failed.push((record, e)),
            }
        }
        if failed.len() == before || failed.is_empty() {
            return match failed.into_iter().next() {
                None => Ok(()),
                Some((record, mut e)) => {
                    e.message = format!("fault {} could not be healed: {}", record.id, e.message);
                    Err(e.next(format!("drctl drill heal {}", record.id)))
                }
            };
        }
        records = failed.into_iter().map(|(record, _)| record).collect();
    }
}

fn tell(cx: &Context, record: &Record, outcome: &str) {
    if cx.global.json {
        ui::json(&json(record, outcome));
    } else {
        ui::line(&format!(
            "{} {} {}: {outcome}",
            record.id, record.fault, record.status
        ));
    }
}

fn json(record: &Record, outcome: &str) -> serde_json::Value {
    serde_json::json!({
        "event": "fault", "version": EVENT_VERSION,
        "at": jiff::Timestamp::now().to_string(),
        "id": record.id, "fault": record.fault, "service": record.service, "target": record.target,
        "status": record.status, "outcome": outcome,
        "expires-at": record.expires_at.map(|t| t.to_string()),
    })
}
