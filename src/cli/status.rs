//! `drctl status`: one screen that tells what is up, what is not, and how old the last good backup is.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use super::Context;
use crate::check::{self, Finding, Level, Memory, memory};
use crate::error::{Error, Kind, Result};
use crate::probe::overview::{self, Known, LookOptions, Overview};
use crate::runbook::Runbook;
use crate::ui;

/// Requests to each endpoint: one can be unlucky.
const REQUESTS: usize = 3;

/// Arguments of `drctl status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Looks only; nothing is changed. Everything is asked at the same time, each with its own deadline \
(`deadlines.probe`). What could not be asked is shown as `unknown`, which is not `ok`.\n\n\
Exit code 0: all is well; 10: something is not, or is beyond a limit of the runbook; 12: something could not be looked at; \
7: the engine does not answer (what is known without it is shown); 130: a watch was ended by Ctrl-C.\n\n\
Examples:\n  drctl status\n  drctl status --watch     # again and again, until Ctrl-C\n  drctl status --json"
)]
pub struct StatusArgs {
    /// Look again every so often, every 2 seconds when nothing is said; Ctrl-C ends it. Needs a terminal, or --json
    #[arg(long, value_name = "EVERY", num_args = 0..=1, default_missing_value = "2s", value_parser = super::duration)]
    watch: Option<Duration>,
}

/// Runs `drctl status`.
///
/// # Errors
/// A runbook that cannot be used; a watch without a terminal.
pub async fn run(cx: &Context, args: StatusArgs) -> Result<ExitCode> {
    let runbook = cx.runbook()?;
    let Some(every) = args.watch else {
        let (seen, findings, memory) = look(cx, &runbook).await;
        if cx.global.json {
            ui::json(&ui::status::json(&seen, &findings));
        } else {
            ui::data(&ui::status::text(&seen, &findings, &memory, &runbook));
        }
        return Ok(verdict(&seen, &findings));
    };
    if !cx.global.json && !std::io::stdout().is_terminal() {
        return Err(Error::new(Kind::Usage, "--watch needs a terminal, or --json")
            .untouched("everything")
            .next("drctl status"));
    }
    tokio::select! {
        // Only looking: it can end at any moment.
        ended = tokio::signal::ctrl_c() => {
            if !cx.global.json {
                ui::status::leave();
            }
            match ended {
                Ok(()) => Ok(ExitCode::from(Kind::Interrupted.exit_code())),
                Err(e) => Err(Error::new(Kind::Internal, "Ctrl-C cannot be waited for").because(&e)),
            }
        }
        never = watch(cx, &runbook, every.max(Duration::from_millis(200))) => never,
    }
}

async fn watch(cx: &Context, runbook: &Runbook, every: Duration) -> Result<ExitCode> {
    let mut clock = tokio::time::interval(every);
    // A look that takes longer is followed by a pause, not by two at once.
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let (seen, findings, memory) = look(cx, runbook).await;
        if cx.global.json {
            ui::json(&ui::status::json(&seen, &findings));
        } else {
            ui::status::show(&ui::status::text(&seen, &findings, &memory, runbook));
        }
    }
}

async fn look(cx: &Context, runbook: &Runbook) -> (Overview, Vec<Finding>, Memory) {
    let options = LookOptions {
        processors: true,
        requests: REQUESTS,
    };
    let seen = overview::look(runbook, options).await;
    let before = memory::peek(&cx.state, runbook.deployment.as_str()).unwrap_or_default();
    let mut after = before.clone();
    // The requests of earlier runs are check's: here the present counts.
    after.requests.clear();
    check::remember(&mut after, &seen, Timestamp::now());
    let findings = check::judge(&seen, runbook, &before, &after, seen.taken_at);
    (seen, findings, after)
}

fn verdict(seen: &Overview, findings: &[Finding]) -> ExitCode {
    let any = |level| findings.iter().any(|f| f.level == level);
    if !matches!(seen.engine, Known::Good(_)) {
        ExitCode::from(Kind::Unreachable.exit_code())
    } else if any(Level::Critical) || any(Level::Warning) {
        ExitCode::from(Kind::VerifyFailed.exit_code())
    } else if any(Level::Unknown) {
        ExitCode::from(Kind::CouldNotVerify.exit_code())
    } else {
        ExitCode::SUCCESS
    }
}
