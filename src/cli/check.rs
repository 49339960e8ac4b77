//! `drctl check`: what cron and a monitoring system run every five minutes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::Context;
use super::telling::{arrived, enqueue, save};
use crate::check::alerts::{self, Policy};
use crate::check::memory::{self, Opened};
use crate::check::{self, Level, message, metrics, windows};
use crate::error::{Error, Result};
use crate::notify;
use crate::probe::overview::{self, LookOptions};
use crate::runbook::Notify;
use crate::ui;

/// Requests to each endpoint in a run; those of the runs before count as well.
const REQUESTS: usize = 5;

/// Arguments of `drctl check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Looks only, except for its own memory in the state directory. The first line on standard output is that of a \
monitoring plugin, values included; a line for each thing follows. Who is told, and when, is said in the runbook: \
`thresholds`, `alerts` and `notify`.\n\n\
Exit codes, of this command alone: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (also when the runbook is invalid, or the engine \
does not answer and nothing that can be seen without it is critical). Whether somebody could be told does not change them.\n\n\
Examples:\n  drctl check\n  drctl check --dry-run    # look, remember nothing, tell nobody\n  \
drctl check --textfile /var/lib/prometheus/node-exporter/drctl.prom"
)]
pub struct CheckArgs {
    /// Also write the values to this file, for Prometheus's node exporter
    #[arg(long, value_name = "PATH")]
    textfile: Option<PathBuf>,
    /// Tell nobody in this run; what would have been told is told by the next
    #[arg(long)]
    no_notify: bool,
}

/// Runs `drctl check`. Whatever happens, there is a status line, and the exit code is one of four.
pub async fn run(cx: &Context, args: CheckArgs) -> ExitCode {
    match check(cx, &args).await {
        Ok(level) => ExitCode::from(level.code()),
        Err(e) => failed(&e, cx.global.json),
    }
}

/// A check that could not be made.
pub(super) fn failed(e: &Error, as_json: bool) -> ExitCode {
    ui::check::failed(e, as_json);
    ExitCode::from(Level::Unknown.code())
}

async fn check(cx: &Context, args: &CheckArgs) -> Result<Level> {
    let runbook = cx.runbook()?;
    let deployment = runbook.deployment.to_string();
    let mut opened = if cx.global.dry_run {
        Opened {
            store: None,
            memory: memory::peek(&cx.state, &deployment),
            notes: Vec::new(),
            busy: true,
        }
    } else {
        memory::open(&cx.state, &deployment)
    };
    let options = LookOptions {
        processors: false,
        requests: REQUESTS,
    };
    let seen = overview::look(&runbook, options).await;

    let now = seen.taken_at;
    let remembers = opened.memory.is_some();
    let before = opened.memory.take().unwrap_or_default();
    let mut with_this = before.clone();
    check::remember(&mut with_this, &seen, now);
    let findings = check::judge(&seen, &runbook, &before, &with_this, now);
    let level = check::overall(&findings);
    let maintenance = windows::until(&runbook.alerts.maintenance, now);
    let status_line = message::status_line(&deployment, level, &findings, maintenance);

    // With --no-notify the message is made, and waits for the next run.
    let silent = maintenance.is_some() || opened.busy;
    let mut policy = Policy {
        // Who remembers nothing cannot count: better told at once than never.
        runs: if remembers {
            runbook.alerts.failures_in_a_row
        } else {
            1
        },
        reminder: runbook.alerts.reminder,
        silent,
    };
    let decide = |policy: &Policy| {
        let mut after = with_this.clone();
        let news = alerts::step(&mut after.tracks, &findings, policy, now);
        let told = message::compose(&deployment, level, &findings, &news, "drctl diagnose", now);
        enqueue(&mut after, &runbook, told.as_ref());
        (after, told)
    };
    let (mut after, mut told) = decide(&policy);
    // Before anybody is told: killed in between, the next run tells it (again), and nothing is lost.
    if !save(&mut opened, &after) {
        // The next run will not know of this one.
        policy.runs = 1;
        (after, told) = decide(&policy);
    }
    if cx.global.json {
        ui::check::json(&seen, &findings, level, maintenance, told.as_ref(), &opened.notes);
    } else {
        ui::check::text(&status_line, &findings);
    }

    if !opened.busy && !args.no_notify {
        let to_ping = if maintenance.is_some() { Level::Ok } else { level };
        let ways: Vec<Notify> = runbook
            .notify
            .iter()
            // A dead man's switch wants to hear of every run, in a window as well.
            .filter(|way| maintenance.is_none() || matches!(way, Notify::Ping(_)))
            .cloned()
            .collect();
        let told = notify::tell(
            &ways,
            &after.pending,
            &deployment,
            to_ping,
            &status_line,
            runbook.alerts.deadline,
        )
        .await;
        arrived(&mut after, told, &mut opened.notes);
        save(&mut opened, &after);
    }
    if let Some(path) = args.textfile.as_deref().filter(|_| !cx.global.dry_run)
        && let Err(e) = write_textfile(path, &metrics::text(&seen, &runbook, &findings, level, &after))
    {
        opened
            .notes
            .push(format!("{} was not written: {e}", path.display()));
    }
    for note in &opened.notes {
        ui::check::note(note);
    }
    Ok(level)
}

/// As the node exporter wants it: it must never see half a file. Readable for everybody, as it runs as another user.
fn write_textfile(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    crate::incident::write_atomically(path, text.as_bytes())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

/// A command line that makes no sense, for a monitoring system that knows four exit codes.
#[must_use]
pub fn usage(e: &clap::Error, as_json: bool) -> ExitCode {
    ui::check::failed(&super::usage_error(e), as_json);
    ui::talk(e.to_string().trim_end());
    ExitCode::from(Level::Unknown.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_textfile_is_for_everybody_and_replaced_at_once() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drctl.prom");
        write_textfile(&path, "one").unwrap();
        write_textfile(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_textfile(&dir.path().join("absent/drctl.prom"), "x").is_err());
    }
}
