//! The end of a fault's time. A process of its own waits for it, so that a fault ends also
//! when the drctl that injected it is killed: it puts the fault right by its record, as
//! `drill heal` does, and is gone as soon as somebody else has.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;

use super::record::{self, Record};
use super::{Healed, Site};
use crate::error::{Error, Kind, Result};
use crate::incident::StateDir;

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
    let mut command = watcher(
        &program,
        &site.system.runbook.source,
        site.state.path(),
        &record.id,
    )
    .map_err(|e| cannot(&e))?;
    // Never waited for: it outlives this process, or is reaped with it.
    command.spawn().map(drop).map_err(|e| cannot(&e))
}

fn watcher(program: &Path, runbook: &Path, state: &Path, id: &str) -> io::Result<Command> {
    let mut command = Command::new(program);
    command
        // It works in another directory than we do: a relative path would lead nowhere, and nobody
        // would hear of it.
        .arg("--runbook")
        .arg(std::path::absolute(runbook)?)
        .arg("--state-dir")
        .arg(std::path::absolute(state)?)
        .args(["drill", "heal", id, "--at-expiry"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // Out of the terminal's group: its Ctrl-C is not for this one.
        .process_group(0);
    Ok(command)
}

/// Waits until the time of fault `id` is over and heals it with `heal`, which opens the deployment
/// anew for each attempt: it may be out of reach when one begins. Returns early when the fault has
/// been healed, or its record is gone.
///
/// # Errors
/// A fault that could not be healed, or a record that could not be read, after many attempts.
pub async fn wait_and_heal<F>(state: &StateDir, id: &str, heal: impl Fn(Record) -> F) -> Result<()>
where
    F: Future<Output = Result<Healed>>,
{
    watch(state, id, AGAIN, heal).await
}

async fn watch<F>(state: &StateDir, id: &str, again: Duration, heal: impl Fn(Record) -> F) -> Result<()>
where
    F: Future<Output = Result<Healed>>,
{
    let mut failures = 0;
    loop {
        let attempt = match record::find(state, id) {
            Err(e) => Err(e),
            Ok(None) => return Ok(()),
            Ok(Some(record)) => {
                let Some(expires) = record.expires_at.filter(|_| record.status.is_open()) else {
                    return Ok(());
                };
                if expires > Timestamp::now() {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                heal(record).await
            }
        };
        match attempt {
            Ok(_) => return Ok(()),
            Err(e) if failures >= ATTEMPTS => return Err(e),
            Err(_) => {
                failures += 1;
                tokio::time::sleep(again).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_watcher_is_given_absolute_paths() {
        let command = watcher(
            Path::new("/usr/bin/drctl"),
            Path::new("drctl.yaml"),
            Path::new("state"),
            "f",
        )
        .unwrap();
        assert_eq!(command.get_current_dir(), Some(Path::new("/")));
        let here = std::env::current_dir().unwrap();
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments[1], here.join("drctl.yaml"));
        assert_eq!(arguments[3], here.join("state"));
    }

    #[tokio::test]
    async fn neither_an_unreadable_record_nor_a_failed_attempt_ends_the_watch() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        let text = r#"{"format":1,"id":"f","deployment":"d","fault":"f","service":"s","container":"c","target":"t",
            "heal":"start","status":"injected","note":null,"planned-at":"2026-11-20T18:30:12Z",
            "injected-at":null,"ended-at":null,"expires-at":"2026-11-20T19:30:12Z"}"#;
        let path = state.subdirectory("drills/f").unwrap().join("fault.json");
        let fails = |_| async { Err(Error::new(Kind::Unreachable, "no engine")) };
        std::fs::write(&path, "{").unwrap();
        assert!(watch(&state, "f", Duration::ZERO, fails).await.is_err());
        std::fs::write(&path, text).unwrap();
        let attempts = Cell::new(0);
        let third_time = |record: Record| {
            attempts.set(attempts.get() + 1);
            let reached = attempts.get() == 3;
            async move {
                if !reached {
                    return Err(Error::new(Kind::Unreachable, "no engine"));
                }
                Ok(Healed {
                    record,
                    outcome: String::new(),
                })
            }
        };
        watch(&state, "f", Duration::ZERO, third_time).await.unwrap();
        assert_eq!(attempts.get(), 3);
        // Healed meanwhile, or removed: nothing is left to do.
        std::fs::write(&path, text.replace("injected\"", "healed\"")).unwrap();
        watch(&state, "f", Duration::ZERO, fails).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        watch(&state, "f", Duration::ZERO, fails).await.unwrap();
    }
}
