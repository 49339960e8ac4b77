//! The end of a fault's time. A process of its own waits for it, so that a fault ends also
//! when the drctl that injected it is killed: it puts the fault right by its record, as
//! `drill heal` does, and is gone as soon as somebody else has.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;

use super::{Record, Site};
use crate::error::{Error, Kind, Result};

/// Between two looks at the record.
const LOOK: Duration = Duration::from_secs(2);
/// Between two attempts to heal what would not be healed.
const AGAIN: Duration = Duration::from_secs(15);
/// Attempts before it is left to a person.
const ATTEMPTS: u32 = 20;

/// Starts the process that heals `record` when its time is over. Called before the fault is
/// injected: a kill in between leaves a record without a fault, and that is healed too.
///
/// # Errors
/// [`Kind::Internal`] when it cannot be started; the fault must not follow then.
pub fn start(site: &Site<'_>, record: &Record) -> Result<()> {
    let cannot = |e: &std::io::Error| {
        Error::new(
            Kind::Internal,
            "the process that ends the fault when its time is over cannot be started",
        )
        .because(e)
        .untouched("the deployment: no fault is injected that would not end by itself")
    };
    let program = std::env::current_exe().map_err(|e| cannot(&e))?;
    let mut command = Command::new(program);
    command
        .arg("--runbook")
        .arg(&site.system.runbook.source)
        .arg("--state-dir")
        .arg(site.state.path())
        .args(["drill", "heal", &record.id, "--at-expiry"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // Out of the terminal's group: its Ctrl-C is not for this one.
        .process_group(0);
    // Never waited for: it outlives this process, or is reaped with it.
    command.spawn().map(drop).map_err(|e| cannot(&e))
}

/// Waits until the time of fault `id` is over and heals it. Returns early when it has been
/// healed, or its record is gone.
///
/// # Errors
/// A fault that could not be healed after many attempts.
pub async fn wait_and_heal(site: &Site<'_>, id: &str) -> Result<()> {
    let mut failures = 0;
    loop {
        let records = site.records().unwrap_or_default();
        let Some(record) = records.into_iter().find(|r| r.id == id) else {
            return Ok(());
        };
        let Some(expires) = record.expires_at.filter(|_| record.status.is_open()) else {
            return Ok(());
        };
        if expires > Timestamp::now() {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        match site.heal(record).await {
            Ok(_) => return Ok(()),
            Err(e) if failures >= ATTEMPTS => return Err(e),
            Err(_) => {
                failures += 1;
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}
