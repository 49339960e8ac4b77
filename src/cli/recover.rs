//! `drctl recover`: from a failure to a proven recovery.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};

use super::Context;
use crate::engine::{Consent, acknowledged};
use crate::error::Result;
use crate::plan::Remedy;
use crate::recover::{Ended, Recover, recover};
use crate::scenarios::db_corruption::{self, DbCorruption, DetectOptions};
use crate::system::System;
use crate::ui;

/// Arguments of `drctl recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    #[command(subcommand)]
    scenario: ScenarioVerb,
}

#[derive(Debug, Subcommand)]
enum ScenarioVerb {
    /// A damaged PostgreSQL database: pages, indexes, files, control data, WAL
    #[command(name = db_corruption::NAME)]
    DbCorruption(DbCorruptionArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Looks, names the cause, shows a plan of the least destructive remedy, and asks. The damaged \
data is kept until `drctl incident close`; `drctl incident undo` brings it back.\n\n\
Examples:\n  drctl recover db-corruption --dry-run\n  drctl recover db-corruption --yes --confirm simgen --json"
)]
struct DbCorruptionArgs {
    /// The PostgreSQL service; needed only where the runbook has several
    #[arg(long)]
    service: Option<String>,
    /// Read every row and compare every index with its table before deciding
    #[arg(long)]
    deep: bool,
    /// Choose the remedy instead of the least destructive one
    #[arg(long, value_name = "REMEDY")]
    remedy: Option<RemedyName>,
    /// Restore from this backup set instead of the newest that fits
    #[arg(long, value_name = "LABEL")]
    backup: Option<String>,
    /// Log of a traffic writer, one acknowledged number per line: count afterwards which are lost
    #[arg(long, value_name = "FILE")]
    acknowledged: Option<PathBuf>,
}

/// Remedies as they are typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RemedyName {
    /// Build damaged indexes anew from their tables
    Reindex,
    /// Restore one database beside the damaged one and swap names
    RestoreDatabase,
    /// Restore the whole server beside the old data, replay its WAL and switch
    RestoreCluster,
    /// Make a copy of the damaged data start and switch to it
    Salvage,
}

impl From<RemedyName> for Remedy {
    fn from(name: RemedyName) -> Self {
        match name {
            RemedyName::Reindex => Self::Reindex,
            RemedyName::RestoreDatabase => Self::RestoreDatabase,
            RemedyName::RestoreCluster => Self::RestoreCluster,
            RemedyName::Salvage => Self::Salvage,
        }
    }
}

/// The operator's agreement, as the command line gives it.
pub(super) fn consent(cx: &Context) -> Consent {
    Consent {
        yes: cx.global.yes,
        confirm: cx.global.confirm.clone(),
        ask: Arc::new(ui::prompt::Terminal),
    }
}

/// What a recovery works with, without the choices of `recover`.
pub(super) fn recovery<'a>(cx: &'a Context, system: &'a System, consent: Consent) -> Recover<'a> {
    Recover {
        system,
        state: &cx.state,
        reporter: &cx.reporter,
        consent,
        dry_run: cx.global.dry_run,
        remedy: None,
        backup: None,
        acknowledged: None,
    }
}

/// Runs `drctl recover`.
///
/// # Errors
/// Every end of a recovery but success, by kind.
pub async fn run(cx: &Context, args: RecoverArgs) -> Result<ExitCode> {
    let ScenarioVerb::DbCorruption(args) = args.scenario;
    let numbers = args.acknowledged.as_deref().map(acknowledged::read).transpose()?;
    let system = cx.system().await?;
    let options = DetectOptions {
        service: args.service,
        deep: args.deep,
    };
    let request = Recover {
        remedy: args.remedy.map(Remedy::from),
        backup: args.backup,
        acknowledged: numbers,
        ..recovery(cx, &system, consent(cx))
    };
    // On the heap: it holds a whole recovery.
    let ended = Box::pin(recover::<DbCorruption, _>(&request, async || {
        db_corruption::detect(&system, &options, &cx.reporter).await
    }))
    .await?;
    if !cx.global.json && !cx.global.quiet {
        match ended {
            Ended::Absent => ui::line("no corruption found; nothing was changed"),
            Ended::Shown => ui::line("\ndry run: nothing was changed"),
            Ended::Recovered(_) => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}
