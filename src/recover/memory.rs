//! drctl's memory during a recovery: at home, or in memory where home cannot be written.

use crate::engine;
use crate::error::{Error, Kind, Result};
use crate::event::{Event, SharedReporter};
use crate::incident::{self, Lock, StateDir, writable};

/// drctl's memory for one run: where it is, and the lock.
pub(super) struct Memory {
    /// Where it is.
    pub state: StateDir,
    /// Keeps a second recovery of the deployment away.
    pub lock: Lock,
    /// The lock at home, where the memory is elsewhere: whoever finds home writable again must
    /// not begin beside this run.
    _home: Option<Lock>,
}

impl Memory {
    /// Opens it at home, or in memory where home cannot be written, and takes the lock.
    ///
    /// # Errors
    /// [`Kind::Refused`] where neither can be written, [`Kind::Locked`].
    pub fn open(home: &StateDir, deployment: &str, command: &str, reporter: &SharedReporter) -> Result<Self> {
        let (state, problem) = writable(home).map_err(|e| {
            Error::new(
                Kind::Refused,
                "drctl cannot remember what it does: no step would be safe to interrupt",
            )
            .because(&e)
            .untouched("everything: no step was begun")
            .next("--state-dir DIR    # a directory that can be written, with 1 MiB free")
        })?;
        let mut at_home = None;
        if let Some(problem) = problem {
            reporter.event(&Event::Warning {
                text: format!(
                    "{problem}; this run is remembered in {}, which a reboot empties, and brought home when there is room",
                    state.path().display()
                ),
            });
            // It needs no room when the file is there; when it cannot be made, nobody else makes
            // it either.
            at_home = lock_if_writable(home, deployment, command)?;
        }
        let memory = Self {
            lock: engine::lock(&state, deployment, command)?,
            _home: at_home,
            state,
        };
        if memory.state.path() == home.path() {
            bring_home(home, None, reporter);
        }
        Ok(memory)
    }
}

/// The lock of a state directory that may not be writable: then nobody else takes it either.
///
/// # Errors
/// [`Kind::Locked`].
pub(super) fn lock_if_writable(state: &StateDir, deployment: &str, command: &str) -> Result<Option<Lock>> {
    match engine::lock(state, deployment, command) {
        Err(e) if e.kind == Kind::Locked => Err(e),
        other => Ok(other.ok()),
    }
}

/// Moves what was remembered elsewhere to where it belongs, as far as it can be written now.
/// `holding`: the deployment whose lock in memory this run holds.
pub(super) fn bring_home(home: &StateDir, holding: Option<&str>, reporter: &SharedReporter) {
    let (moved, problem) = incident::bring_home(home, holding);
    for id in moved {
        reporter.event(&Event::Note {
            text: format!("incident {id} is remembered in {} now", home.path().display()),
        });
    }
    if let Some(e) = problem {
        reporter.event(&Event::Warning {
            text: format!("an incident stays where it is for now: {e}"),
        });
    }
}
