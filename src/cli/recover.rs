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
    #[command(name = ConnectionExhaustion::NAME, about = ConnectionExhaustion::ABOUT, after_help = CONNECTION_EXHAUSTION)]
    ConnectionExhaustion(ConnectionExhaustionArgs),
    #[command(name = NetworkPartition::NAME, about = NetworkPartition::ABOUT, after_help = NETWORK_PARTITION)]
    NetworkPartition(ScenarioArgs<NetworkPartition>),
    #[command(name = ServiceCrash::NAME, about = ServiceCrash::ABOUT, after_help = SERVICE_CRASH)]
    ServiceCrash(ScenarioArgs<ServiceCrash>),
    #[command(name = RedisOom::NAME, about = RedisOom::ABOUT, after_help = REDIS_OOM)]
    RedisOom(ScenarioArgs<RedisOom>),
    #[command(name = RedisFailing::NAME, about = RedisFailing::ABOUT, after_help = REDIS_FAILURE)]
    RedisFailure(ScenarioArgs<RedisFailing>),
    #[command(name = StuckSessions::NAME, about = StuckSessions::ABOUT, after_help = STUCK_SESSIONS)]
    StuckSessions(ScenarioArgs<StuckSessions>),
    #[command(name = DiskFull::NAME, about = DiskFull::ABOUT, after_help = DISK_FULL)]
    DiskFull(DiskFullArgs),
    #[command(name = ServiceOverload::NAME, about = ServiceOverload::ABOUT, after_help = SERVICE_OVERLOAD)]
    ServiceOverload(ScenarioArgs<ServiceOverload>),
    #[command(name = Outage::NAME, about = Outage::ABOUT, after_help = OUTAGE)]
    Outage(ScenarioArgs<Outage>),
}

// After the help of each scenario: what it does, at worst; what is lost; whether it can be taken back; an example.

const DB_CORRUPTION: &str = "Looks, names the cause, shows a plan of the least destructive remedy, and asks. At \
worst the whole server is restored from a backup, or a copy of the damaged data is made to start; what is lost then \
is what neither the backup, nor the log since, nor the damaged tables show, and the plan says it before. The \
damaged data is kept until `drctl incident close`; `drctl incident undo` brings it back.\n\n\
Examples:\n  drctl recover db-corruption --dry-run\n  drctl recover db-corruption --yes --confirm simgen --json";

const DB_DOWN: &str = "Waits while the server replays its log, thaws or starts it, or sets aside exactly what keeps \
it from running: a setting, an owner or mode, a left-over file. At worst it is restarted, and transactions that \
were open are rolled back; nothing that was committed is lost. What was there before is kept until `drctl incident \
close`, and `drctl incident undo` brings it back. Damaged data is handed over to db-corruption, a full disk to \
disk-full.\n\n\
Examples:\n  drctl recover db-down --dry-run\n  drctl recover db-down --yes --json";

const CONNECTION_EXHAUSTION: &str = "Ends the one session that all others wait for, or sessions that hold \
connections without working, the oldest first; at worst restarts the application's services, one by one. Lost is \
the work of transactions that were left open, and with --running-over of long statements; what was committed stays. \
An ended session cannot be brought back, so there is no undo.\n\n\
Example:\n  drctl recover connection-exhaustion --dry-run    # who holds what, who waits for whom";

const NETWORK_PARTITION: &str = "Connects containers to the networks and names that they have lost. At worst a \
container's connections break for a moment, a network that is gone is created with a range of the engine's choice, \
or a service whose port the host does not pass on is restarted; never PostgreSQL or Redis. No data is touched. \
`drctl incident undo` puts the networks back as they were found.\n\n\
Example:\n  drctl recover network-partition --dry-run";

const SERVICE_CRASH: &str = "Thaws, starts or restarts a service of the application; at worst creates its container \
anew from the same image. What the service wrote outside its volumes is then missing in the new container; the old \
one is kept, stopped, until `drctl incident close`, and `drctl incident undo` brings it back. A service that was \
started is stopped again.\n\n\
Example:\n  drctl recover service-crash --service api1";

const REDIS_OOM: &str = "Raises the memory limit within what the container and the machine have, until the next \
start of the server; `drctl incident undo` lowers it again, unless keys would be evicted by that. At worst deletes \
the keys that the runbook calls disposable, in small batches: they are lost, and that cannot be undone. No other \
key is deleted.\n\n\
Example:\n  drctl recover redis-oom --dry-run    # what fills it, by pattern";

const REDIS_FAILURE: &str = "Thaws, starts or restarts it, ends a script that has written nothing, saves once more, or \
mends files that it cannot load, on a copy. At worst it is started empty, and every key is lost, or restarted, and what \
was not saved is lost; the plan says before what it costs. Files that were replaced are kept until `drctl incident close`, \
and `drctl incident undo` brings them back.\n\n\
Example:\n  drctl recover redis-failure --dry-run    # what would be lost, if anything";

const STUCK_SESSIONS: &str = "Removes from the set that counts sessions those members whose session does not exist, \
and no others: nobody is logged out. They are kept in a set of their own for a day; until then `drctl incident \
undo` puts them back.\n\n\
Example:\n  drctl recover stuck-sessions --dry-run";

const DISK_FULL: &str = "Frees what is safe, in this order and only until there is enough: backup sets that \
backup.keep in the runbook no longer wants, images of this deployment that nobody uses, logs after they were \
archived on another disk. Then PostgreSQL and Redis are brought back. Removed sets and images do not come back, so \
those need the deployment's name; a log is in its archive. Volumes, pg_wal and replication slots are never touched.\n\n\
Example:\n  drctl recover disk-full --yes --confirm simgen";

const SERVICE_OVERLOAD: &str = "Gives a service more memory or processor time, live and within what the machine has \
free, or starts a second instance where the runbook allows that; `drctl incident undo` takes both back. At worst \
restarts the service, and requests that it was serving fail. No data is touched.\n\n\
Example:\n  drctl recover service-overload --remedy scale-out --dry-run";

const OUTAGE: &str = "Starts everything that is stopped, each service after what it needs and only when that \
answers, and checks all of it. Nothing is removed or created anew, and nothing is lost. At worst a service that \
crashes again and again is restarted. `drctl incident undo` stops what was started. Where the engine itself does \
not answer, it tells what is known without it and what to type.\n\n\
Example:\n  drctl recover outage --dry-run";

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
