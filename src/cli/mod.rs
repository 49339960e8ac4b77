//! The command tree: one file per verb with its arguments and its `run`. The doc
//! comments of the arguments are the help texts.

mod backup;
pub mod check;
mod completions;
mod diagnose;
mod drill;
mod incident;
mod man;
mod prune;
mod recover;
mod runbook;
mod status;
mod telling;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::error::{Error, Kind, Result};
use crate::event::SharedReporter;
use crate::incident::StateDir;
use crate::runbook::{Runbook, parse_duration};
use crate::system::System;
use crate::ui;

/// Diagnose a failing deployment, plan the least destructive recovery, run it, prove it.
#[derive(Debug, Parser)]
#[command(
    name = "drctl",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Exit codes: 0 pass, 1 internal error, 2 usage, 3 runbook invalid, 4 refused (nothing changed), 5 declined, \
6 locked, 7 unreachable, 8 failed and undone, 9 failed and left changed (resume or undo), 10 verification failed \
(status, diagnose: something is wrong), 11 backup damaged, 12 could not verify, 130 and 143 interrupted, state safe. \
`drctl check` has four of its own."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options that every verb understands.
#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The runbook. Default: $DRCTL_RUNBOOK, else the first that exists of ./drctl.yaml, $XDG_CONFIG_HOME/drctl/runbook.yaml and /etc/drctl/runbook.yaml
    // The variable is read where the file is looked for, so that an error names what has named it.
    #[arg(short, long, global = true, value_name = "PATH")]
    pub runbook: Option<PathBuf>,
    /// Where drctl keeps incidents and locks. Default: $XDG_STATE_HOME/drctl, /var/lib/drctl for root
    #[arg(
        long,
        global = true,
        env = "DRCTL_STATE_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub state_dir: Option<PathBuf>,
    /// Print JSON lines on standard output instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Show what would be done and stop; nothing is changed, nothing is written
    #[arg(short = 'n', long, global = true)]
    pub dry_run: bool,
    /// Answer yes to every question, except where the name must be typed: see --confirm
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// The deployment's name, the agreement that --yes is not: to what cannot be undone, to a fault in `staging`, and in `production` to whatever users notice (a restart, a pause of writes)
    #[arg(long, global = true, value_name = "NAME")]
    pub confirm: Option<String>,
    /// Only errors and the result
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Colours in the output: auto (on a terminal, unless NO_COLOR is set), always or never
    // With the values listed below it, the help of every command would take twice the lines.
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true
    )]
    pub color: Color,
    /// No progress bars
    #[arg(long, global = true)]
    pub no_progress: bool,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// What is up, what is not, and how old the last good backup is
    Status(status::StatusArgs),
    /// Is everything well? For cron and monitoring: limits, values, and telling somebody
    Check(check::CheckArgs),
    /// Look for every failure at once, and name the cause before its consequences
    Diagnose(diagnose::DiagnoseArgs),
    /// Recover from a failure: look, decide, ask, act, prove
    Recover(recover::RecoverArgs),
    /// Past and unfinished recoveries: list, show, resume, undo, close
    Incident(incident::IncidentArgs),
    /// Make, list, verify and prune backup sets
    Backup(backup::BackupArgs),
    /// Rehearse: inject real faults and put them right
    Drill(drill::DrillArgs),
    /// Check, print or describe runbooks
    Runbook(runbook::RunbookArgs),
    /// Print the script that makes a shell complete drctl's commands
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write those of all commands into a directory
    Man(man::ManArgs),
}

/// What a verb gets: the global options, resolved.
pub struct Context {
    /// The options as given.
    pub global: Global,
    /// Where events go.
    pub reporter: SharedReporter,
    /// drctl's own memory.
    pub state: StateDir,
}

impl Context {
    fn new(global: Global) -> Result<Self> {
        ui::set_color(global.color);
        let reporter: SharedReporter = if global.json {
            Arc::new(ui::JsonLines)
        } else {
            ui::terminal(
                global.quiet,
                global.verbose,
                !global.no_progress && std::io::stderr().is_terminal(),
            )
        };
        let state = StateDir::resolve(global.state_dir.as_deref())?;
        Ok(Self {
            global,
            reporter,
            state,
        })
    }

    /// The runbook that the lookup order finds, checked.
    ///
    /// # Errors
    /// [`Kind::Runbook`] with every problem in it.
    pub fn runbook(&self) -> Result<Runbook> {
        let path = crate::runbook::locate(self.global.runbook.as_deref(), |name: &str| {
            std::env::var_os(name)
        })
        .map_err(|e| Error::new(Kind::Runbook, e.to_string()))?;
        crate::runbook::load(&path).map_err(|e| {
            Error::new(Kind::Runbook, e.to_string())
                .untouched("everything: no engine and no server was contacted")
        })
    }

    /// The runbook and a connection to its engine.
    ///
    /// # Errors
    /// As [`Self::runbook`], and [`Kind::Unreachable`].
    pub async fn system(&self) -> Result<System> {
        System::open(self.runbook()?).await
    }

    /// The same; where the engine does not answer, what is known without it is printed, and
    /// the inner error is what is left to say.
    ///
    /// # Errors
    /// As [`Self::runbook`].
    pub async fn system_or_outage(&self) -> Result<Result<System>> {
        let runbook = self.runbook()?;
        match System::open(runbook.clone()).await {
            Err(e) if e.kind == Kind::Unreachable => {
                Ok(Err(diagnose::without_engine(self, &runbook, e).await))
            }
            other => other.map(Ok),
        }
    }
}

/// Runs a parsed command line as [`run`] does; a bug that ends it in the middle is an error like any other.
pub fn run_to_the_end(runtime: &tokio::runtime::Runtime, cli: Cli) -> ExitCode {
    let (as_json, is_check) = (cli.global.json, matches!(cli.verb, Verb::Check(_)));
    caught(as_json, is_check, || runtime.block_on(run(cli)))
}

/// Monitoring systems know no exit code but those of a plugin: what was not checked is not a broken deployment.
fn caught(as_json: bool, is_check: bool, work: impl FnOnce() -> ExitCode) -> ExitCode {
    let panic = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(code) => return code,
        Err(panic) => panic,
    };
    let what = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    // Every effect is written down before it begins, so the journal knows of whatever was under way.
    let e = Error::new(
        Kind::Internal,
        format!("this is a bug of drctl, please report it: {what}"),
    )
    .untouched("the journal: it is intact, and holds whatever was begun")
    .next("drctl incident list    # was something under way? `resume` or `undo` ends it");
    if is_check {
        ui::check::failed(&e, as_json);
        ExitCode::from(crate::check::Level::Unknown.code())
    } else {
        ui::error(&e, as_json)
    }
}

/// Runs a parsed command line; prints the error, if any, and returns the exit code.
pub async fn run(cli: Cli) -> ExitCode {
    let as_json = cli.global.json;
    let cx = match (Context::new(cli.global), &cli.verb) {
        (Ok(cx), _) => cx,
        (Err(e), Verb::Check(_)) => return check::failed(&e, as_json),
        (Err(e), _) => return ui::error(&e, as_json),
    };
    let result = match cli.verb {
        Verb::Status(args) => status::run(&cx, args).await,
        Verb::Check(args) => Ok(check::run(&cx, args).await),
        Verb::Diagnose(args) => diagnose::run(&cx, args).await,
        Verb::Recover(args) => recover::run(&cx, args).await,
        Verb::Incident(args) => incident::run(&cx, args).await,
        Verb::Backup(args) => backup::run(&cx, args).await,
        Verb::Drill(args) => drill::run(&cx, args).await,
        Verb::Runbook(args) => runbook::run(&cx, args),
        Verb::Completions(args) => completions::run(&args),
        Verb::Man(args) => man::run(&args, cx.global.dry_run),
    };
    match result {
        Ok(code) => code,
        Err(e) => ui::error(&e, cx.global.json),
    }
}

/// A command line that makes no sense, for who reads events: the usage is for the person behind it.
#[must_use]
pub fn usage(e: &clap::Error) -> ExitCode {
    ui::talk(e.to_string().trim_end());
    ui::error(&usage_error(e), true)
}

fn usage_error(e: &clap::Error) -> Error {
    let message = if e.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Its text is that of --help.
        "a command is missing".to_owned()
    } else {
        let text = e.to_string();
        // What is wrong, before hints and usage.
        let wrong: Vec<&str> = text
            .lines()
            .map(str::trim)
            .take_while(|l| !l.is_empty())
            .collect();
        wrong.join(" ").trim_start_matches("error: ").to_owned()
    };
    Error::new(Kind::Usage, message)
        .untouched("everything")
        .next("drctl --help")
}

/// A duration as a person types it.
fn duration(text: &str) -> std::result::Result<Duration, String> {
    parse_duration(text).map_err(|e| e.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_with_the_exit_code_of_a_bug() {
        let same = |code: ExitCode, number: u8| {
            assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(number)));
        };
        same(caught(false, false, || ExitCode::from(9)), 9);
        same(caught(false, false, || panic!("overflow")), 1);
        same(caught(true, true, || panic!("{}", 1)), 3);
    }
}
