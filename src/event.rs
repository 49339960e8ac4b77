//! What happened, as data. Everything that does work emits events; only `ui/` renders
//! them. A [`Reporter`] cannot fail: the journal, which must not lose anything, is not
//! one.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

/// Version of the JSON form of [`Event`]; raised when a field changes its meaning.
pub const EVENT_VERSION: u32 = 1;

/// The five phases of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Reading the world.
    Detect,
    /// Naming the cause, choosing the remedy, asking the operator.
    Decide,
    /// Carrying out the plan.
    Restore,
    /// Proving that it worked.
    Verify,
    /// Taking back what was done.
    Undo,
    /// Making a backup set.
    Backup,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A phase began.
    Phase {
        /// Which.
        phase: Phase,
        /// What it is about: a deployment, a backup label.
        subject: String,
    },
    /// A fact worth telling: a probe's answer, a decision.
    Note {
        /// One sentence.
        text: String,
    },
    /// Something is not as it should be, and the run goes on.
    Warning {
        /// One sentence.
        text: String,
    },
    /// A step began.
    StepStarted {
        /// Position, from 1.
        step: usize,
        /// How many there are.
        of: usize,
        /// The step's title.
        title: String,
    },
    /// A step ended well.
    StepFinished {
        /// Position, from 1.
        step: usize,
        /// The step's title.
        title: String,
        /// What it found or made, one line.
        outcome: String,
        /// How long it took, in seconds.
        seconds: f64,
    },
    /// A step failed.
    StepFailed {
        /// Position, from 1.
        step: usize,
        /// The step's title.
        title: String,
        /// Why.
        cause: String,
    },
    /// How far a long piece of work has come.
    Progress {
        /// What is being done.
        what: String,
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all, when known.
        total: Option<u64>,
    },
    /// What is wrong, and how sure that is.
    Diagnosis {
        /// `confirmed`, `suspected`, `absent` or `unknown`.
        certainty: String,
        /// One sentence.
        summary: String,
        /// The facts behind it.
        reasons: Vec<String>,
        /// The name of what it is instead, when it only looks like the scenario.
        look_alike: Option<String>,
    },
    /// What is to be done about it, in full.
    Plan {
        /// The plan, as it is kept in the incident.
        plan: Box<crate::plan::Plan>,
    },
    /// An incident was opened: from here everything is journalled.
    Incident {
        /// Its identity.
        id: String,
        /// Its directory.
        directory: String,
    },
    /// The report of an incident.
    Report {
        /// The report, as it is kept in the incident.
        report: serde_json::Value,
    },
    /// A step is being taken back.
    UndoStarted {
        /// Position, from 1.
        step: usize,
        /// The step's title.
        title: String,
        /// How.
        how: String,
    },
    /// A step was taken back.
    UndoFinished {
        /// Position, from 1.
        step: usize,
        /// One line.
        outcome: String,
    },
    /// A step could not be taken back.
    UndoFailed {
        /// Position, from 1.
        step: usize,
        /// Why.
        cause: String,
    },
    /// One check of the proof.
    Checked {
        /// What was checked.
        what: String,
        /// Whether it held.
        verdict: Verdict,
        /// What was found.
        found: String,
    },
}

/// The four verdicts. Only `Pass` ever leads to exit code 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Looked at and found good.
    Pass,
    /// Looked at and found bad.
    Fail,
    /// Could not be looked at.
    CouldNotVerify,
    /// Nobody asked for it.
    NotConfigured,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::CouldNotVerify => "could not verify",
            Self::NotConfigured => "not configured",
        })
    }
}

/// Receives events. Must not block for long and cannot fail.
pub trait Reporter: Send + Sync {
    /// One event happened.
    fn event(&self, event: &Event);
}

/// The reporter as it is passed around.
pub type SharedReporter = Arc<dyn Reporter>;

/// Swallows every event.
#[derive(Debug, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn event(&self, _: &Event) {}
}

/// `1.4 s`, `250 ms`, `2 min 5 s`, `1 h 3 min`: a duration for a person.
#[must_use]
pub fn seconds(d: Duration) -> String {
    let s = d.as_secs();
    if d < Duration::from_secs(1) {
        format!("{} ms", d.as_millis())
    } else if s < 60 {
        format!("{:.1} s", d.as_secs_f64())
    } else if s < 3600 {
        format!("{} min {} s", s / 60, s % 60)
    } else {
        format!("{} h {} min", s / 3600, s % 3600 / 60)
    }
}

/// `1.4 GiB`: a size for a person.
#[must_use]
pub fn bytes(n: u64) -> String {
    indicatif::HumanBytes(n).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        for (ms, text) in [
            (250, "250 ms"),
            (1_400, "1.4 s"),
            (125_000, "2 min 5 s"),
            (3_780_000, "1 h 3 min"),
        ] {
            assert_eq!(seconds(Duration::from_millis(ms)), text);
        }
    }
}
