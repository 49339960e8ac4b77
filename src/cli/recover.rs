//! `drctl recover`: from a failure to a proven recovery.

use std::marker::PhantomData;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};

use super::{Context, duration};
use crate::engine::{Consent, acknowledged};
use crate::error::Result;
use crate::plan::Remedy;
use crate::recover::{Ended, Recover, recover};
use crate::scenarios::connection_exhaustion::ConnectionExhaustion;
use crate::scenarios::db_corruption::DbCorruption;
use crate::scenarios::db_down::DbDown;
use crate::scenarios::disk_full::DiskFull;
use crate::scenarios::network_partition::NetworkPartition;
use crate::scenarios::outage::Outage;
use crate::scenarios::redis_failure::RedisFailing;
use crate::scenarios::redis_oom::RedisOom;
use crate::scenarios::service_crash::ServiceCrash;
use crate::scenarios::service_overload::ServiceOverload;
use crate::scenarios::stuck_sessions::StuckSessions;
use crate::scenarios::{DetectOptions, Scenario};
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
    #[command(name = DbCorruption::NAME, about = DbCorruption::ABOUT, after_help = DB_CORRUPTION)]
    DbCorruption(DbCorruptionArgs),
    #[command(name = DbDown::NAME, about = DbDown::ABOUT, after_help = DB_DOWN)]
    DbDown(ScenarioArgs<DbDown>),
    #[command(name = ConnectionExhaustion::NAME, about = ConnectionExhaustion::ABOUT)]
    ConnectionExhaustion(ConnectionExhaustionArgs),
    #[command(name = NetworkPartition::NAME, about = NetworkPartition::ABOUT)]
    NetworkPartition(ScenarioArgs<NetworkPartition>),
    #[command(name = ServiceCrash::NAME, about = ServiceCrash::ABOUT)]
    ServiceCrash(ScenarioArgs<ServiceCrash>),
    #[command(name = RedisOom::NAME, about = RedisOom::ABOUT)]
    RedisOom(ScenarioArgs<RedisOom>),
    #[command(name = RedisFailing::NAME, about = RedisFailing::ABOUT)]
    RedisFailure(ScenarioArgs<RedisFailing>),
    #[command(name = StuckSessions::NAME, about = StuckSessions::ABOUT)]
    StuckSessions(ScenarioArgs<StuckSessions>),
    #[command(name = DiskFull::NAME, about = DiskFull::ABOUT, after_help = DISK_FULL)]
    DiskFull(DiskFullArgs),
    #[command(name = ServiceOverload::NAME, about = ServiceOverload::ABOUT)]
    ServiceOverload(ScenarioArgs<ServiceOverload>),
    #[command(name = Outage::NAME, about = Outage::ABOUT)]
    Outage(ScenarioArgs<Outage>),
}

const DB_CORRUPTION: &str = "Looks, names the cause, shows a plan of the least destructive remedy, and asks. The damaged \
data is kept until `drctl incident close`; `drctl incident undo` brings it back.\n\n\
Examples:\n  drctl recover db-corruption --dry-run\n  drctl recover db-corruption --yes --confirm simgen --json";

const DISK_FULL: &str = "Frees what is safe, in this order and only until there is enough: backup sets that backup.keep in the \
runbook no longer wants, images of this deployment that nobody uses, logs after they were archived on another disk. Then \
PostgreSQL and Redis are brought back. Volumes, pg_wal and replication slots are never touched.";
const DB_DOWN: &str = "Waits while the server replays its log, thaws or starts it, or sets aside exactly what keeps it from \
running: a setting, an owner or mode, a left-over file. What was there before is kept until `drctl incident close`, and \
`drctl incident undo` brings it back. Damaged data is handed over to db-corruption, a full disk to disk-full.\n\n\
Examples:\n  drctl recover db-down --dry-run\n  drctl recover db-down --yes --json";

/// What every scenario understands.
#[derive(Debug, Args)]
struct ScenarioArgs<S: Scenario + Send + Sync + 'static> {
    /// The service, where several could have the failure
    #[arg(long)]
    service: Option<String>,
    /// Choose the remedy instead of the least destructive one
    #[arg(long, value_name = "REMEDY", value_parser = remedies::<S>())]
    remedy: Option<Remedy>,
    #[arg(skip)]
    of: PhantomData<S>,
}

/// The scenario's ladder as the values of an option.
fn remedies<S: Scenario>() -> impl TypedValueParser<Value = Remedy> {
    let values = S::REMEDIES
        .iter()
        .map(|r| PossibleValue::new(r.name()).help(r.summary()));
    PossibleValuesParser::new(values).try_map(|name| {
        S::REMEDIES
            .iter()
            .find(|r| r.name() == name)
            .copied()
            .ok_or_else(|| format!("{name} is no remedy of {}", S::NAME))
    })
}

#[derive(Debug, Args)]
struct DbCorruptionArgs {
    #[command(flatten)]
    common: ScenarioArgs<DbCorruption>,
    /// Read every row and compare every index with its table before deciding
    #[arg(long)]
    deep: bool,
    /// Restore from this backup set instead of the newest that fits
    #[arg(long, value_name = "LABEL")]
    backup: Option<String>,
    /// Log of a traffic writer, one acknowledged number per line: count afterwards which are lost
    #[arg(long, value_name = "FILE")]
    acknowledged: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct DiskFullArgs {
    #[command(flatten)]
    common: ScenarioArgs<DiskFull>,
    /// Log of a traffic writer, one acknowledged number per line: count afterwards which are lost
    #[arg(long, value_name = "FILE")]
    acknowledged: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ConnectionExhaustionArgs {
    #[command(flatten)]
    common: ScenarioArgs<ConnectionExhaustion>,
    /// End sessions that have been idle for longer, in a transaction or not, instead of what the runbook says
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    idle_over: Option<Duration>,
    /// End statements too that run for longer: their work is rolled back
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    running_over: Option<Duration>,
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
        look: DetectOptions::default(),
        acknowledged: None,
    }
}

/// Runs `drctl recover`.
///
/// # Errors
/// Every end of a recovery but success, by kind.
pub async fn run(cx: &Context, args: RecoverArgs) -> Result<ExitCode> {
    match args.scenario {
        ScenarioVerb::DbCorruption(args) => {
            let numbers = args.acknowledged.as_deref().map(acknowledged::read).transpose()?;
            let system = cx.system().await?;
            let mut request = asked(cx, &system, args.common);
            request.look.deep = args.deep;
            request.backup = args.backup;
            request.acknowledged = numbers;
            carry_out::<DbCorruption>(cx, &request).await
        }
        ScenarioVerb::ConnectionExhaustion(args) => {
            let system = cx.system().await?;
            let mut request = asked(cx, &system, args.common);
            request.look.idle_over = args.idle_over;
            request.look.running_over = args.running_over;
            carry_out::<ConnectionExhaustion>(cx, &request).await
        }
        ScenarioVerb::DiskFull(args) => {
            let numbers = args.acknowledged.as_deref().map(acknowledged::read).transpose()?;
            let system = cx.system().await?;
            let mut request = asked(cx, &system, args.common);
            request.acknowledged = numbers;
            carry_out::<DiskFull>(cx, &request).await
        }
        ScenarioVerb::DbDown(args) => plain(cx, args).await,
        ScenarioVerb::NetworkPartition(args) => plain(cx, args).await,
        ScenarioVerb::ServiceCrash(args) => plain(cx, args).await,
        ScenarioVerb::RedisOom(args) => plain(cx, args).await,
        ScenarioVerb::RedisFailure(args) => plain(cx, args).await,
        ScenarioVerb::StuckSessions(args) => plain(cx, args).await,
        ScenarioVerb::ServiceOverload(args) => plain(cx, args).await,
        ScenarioVerb::Outage(args) => match cx.system_or_outage().await? {
            Ok(system) => carry_out::<Outage>(cx, &asked(cx, &system, args)).await,
            Err(e) => Err(e),
        },
    }
}

/// A scenario without options of its own.
async fn plain<S: Scenario + Send + Sync + 'static>(cx: &Context, args: ScenarioArgs<S>) -> Result<ExitCode> {
    let system = cx.system().await?;
    carry_out::<S>(cx, &asked(cx, &system, args)).await
}

fn asked<'a, S: Scenario + Send + Sync + 'static>(
    cx: &'a Context,
    system: &'a System,
    args: ScenarioArgs<S>,
) -> Recover<'a> {
    Recover {
        remedy: args.remedy,
        look: DetectOptions {
            service: args.service,
            state_dir: Some(cx.state.path().to_owned()),
            ..DetectOptions::default()
        },
        ..recovery(cx, system, consent(cx))
    }
}

async fn carry_out<S: Scenario>(cx: &Context, request: &Recover<'_>) -> Result<ExitCode> {
    // On the heap: it holds a whole recovery.
    let ended = Box::pin(recover::<S>(request)).await?;
    if !cx.global.json && !cx.global.quiet {
        match ended {
            Ended::Absent => ui::line(&format!("no {} found; nothing was changed", S::NAME)),
            Ended::Shown => ui::line("\ndry run: nothing was changed"),
            Ended::Recovered(_) => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}
