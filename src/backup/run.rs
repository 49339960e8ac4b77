//! One running backup: what every stage needs, and how far it has come.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Label, files};
use crate::error::{Error, Kind};
use crate::event::{self, Event, SharedReporter};
use crate::incident::Lock;
use crate::postgres::is_damage_in_words;
use crate::system::{PostgresServer, System};
use crate::workload::{HelperOutput, HelperSpec, Meter, Staging, StagingSpec, WorkloadError, metered};

/// How often the staging directory is measured.
const MEASURE_EVERY: Duration = Duration::from_millis(500);

/// What every stage of a run needs.
pub struct Run<'a> {
    /// The deployment.
    pub system: &'a System,
    /// The set's name.
    pub label: Label,
    /// Where it is written: `LABEL.partial`.
    pub staging: PathBuf,
    /// Who is told.
    pub reporter: SharedReporter,
    /// Tells a second run how far this one has come.
    pub lock: Arc<Mutex<Lock>>,
}

impl Run<'_> {
    /// Emits an event.
    pub fn tell(&self, event: &Event) {
        self.reporter.event(event);
    }

    /// Something that the operator should know and that does not stop the run.
    pub fn warn(&self, text: impl Into<String>) {
        self.tell(&Event::Warning { text: text.into() });
    }

    /// Runs a helper; meanwhile reports how the bytes that `written` tells approach `expected`.
    ///
    /// # Errors
    /// The engine's trouble; [`Kind::FailedUndone`] for the deadline's. A non-zero exit code is not
    /// an error here.
    pub async fn helper(
        &self,
        spec: &HelperSpec,
        what: &str,
        written: impl Fn() -> u64 + Clone + Send + 'static,
        expected: u64,
    ) -> Result<HelperOutput, Error> {
        let deadline = self.system.runbook.deadlines.step;
        let helper = self.system.docker.run_helper(spec, deadline);
        match self.watched(what, written, expected, helper).await {
            Err(e @ WorkloadError::HelperDeadline { .. }) => Err(Error::new(
                Kind::FailedUndone,
                format!("the {what} takes longer than `deadlines.step` allows: {e}"),
            )
            .untouched("the server and every older backup; what this run had written was removed")
            .next("drctl runbook show    # `deadlines.step`; a larger one in the runbook gives it time")),
            other => Ok(other?),
        }
    }

    /// Where a helper of the server's image writes what is to end up in `directory`.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn area(
        &self,
        server: &PostgresServer,
        purpose: &str,
        directory: &Path,
        owner: &str,
    ) -> Result<Staging, WorkloadError> {
        let spec = StagingSpec {
            deployment: self.system.deployment(),
            run: &self.label.to_string(),
            purpose,
            image: &server.container.image_id,
        };
        Staging::empty(&self.system.docker, spec, directory, owner).await
    }

    /// Brings what the helper wrote from the engine's host, where that is another one.
    ///
    /// # Errors
    /// The engine's trouble, the transfer's, or the deadline's.
    pub async fn fetch(&self, staging: &Staging, what: &str, expected: u64) -> Result<(), WorkloadError> {
        if staging.is_local() {
            return Ok(());
        }
        let received = Meter::default();
        let meter = received.clone();
        let fetch = staging.fetch(self.system.runbook.deadlines.step, &received);
        let what = format!("{what}, from {}", self.system.docker.host());
        self.watched(&what, move || metered(&meter), expected, fetch)
            .await
    }

    async fn watched<T>(
        &self,
        what: &str,
        written: impl Fn() -> u64 + Clone + Send + 'static,
        expected: u64,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(MEASURE_EVERY) => {
                    let Ok(bytes) = tokio::task::spawn_blocking(written.clone()).await else {
                        continue;
                    };
                    self.tell(&Event::Progress { what: what.to_owned(), bytes, total: Some(expected.max(bytes)) });
                    if let Ok(mut lock) = self.lock.lock() {
                        lock.progress(&format!(
                            "{what}: {} of about {}", event::bytes(bytes), event::bytes(expected.max(bytes))
                        ));
                    }
                }
            }
        }
    }

    /// The error for a tool that ended badly. A full disk and damage are told apart from
    /// other causes by the tool's own words.
    #[must_use]
    pub fn tool_failed(&self, tool: &str, subject: &str, output: &HelperOutput) -> Error {
        let words = output.last_words();
        if is_full(&words) && !self.system.docker.is_local() {
            return Error::new(
                Kind::FailedUndone,
                format!(
                    "a disk of the host behind {} filled up during {tool} of {subject}: {words}",
                    self.system.docker.host()
                ),
            )
            .untouched("the server and every older backup; what this run had written was removed")
            .next("drctl backup --logical-only    # needs the least space");
        }
        if is_full(&words) {
            return self.full(&format!("{tool} of {subject}"), &words);
        }
        let mut error = Error::new(
            Kind::FailedUndone,
            format!(
                "{tool} of {subject} ended with exit code {}: {words}",
                output.exit_code
            ),
        )
        .untouched("the server and every older backup; what this run had written was removed");
        if is_damage_in_words(&words) {
            error =
                error.next("drctl recover db-corruption    # the server's own words speak of damaged data");
        }
        error.next("drctl backup    # again, when the cause is gone")
    }

    /// The error for a disk that filled up during the run.
    #[must_use]
    pub fn full(&self, doing: &str, words: &str) -> Error {
        let written = files::allocated(&self.staging);
        let free = files::free_space(&self.staging).unwrap_or_default();
        let directory = self
            .staging
            .parent()
            .unwrap_or(&self.staging)
            .display()
            .to_string();
        Error::new(
            Kind::FailedUndone,
            format!(
                "the disk of {directory} filled up during {doing}: {} were written, {} were left ({words})",
                event::bytes(written),
                event::bytes(free),
            ),
        )
        .untouched("the server and every older backup; what this run had written was removed")
        .next(format!("df -h {directory}"))
        .next("drctl backup --logical-only    # needs the least space")
    }

    /// The error for a file of ours that could not be written or read.
    #[must_use]
    pub fn io(&self, path: &Path, e: &std::io::Error) -> Error {
        if e.kind() == std::io::ErrorKind::StorageFull {
            return self.full(&format!("the writing of {}", path.display()), &e.to_string());
        }
        Error::new(Kind::FailedUndone, format!("{}: {e}", path.display()))
            .untouched("the server and every older backup; what this run had written was removed")
    }
}

fn is_full(words: &str) -> bool {
    // /dev/shm too small says the same; then the text names a shared memory segment.
    words.contains("No space left on device") && !words.contains("shared memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart() {
        assert!(is_full("could not write to file: No space left on device"));
        assert!(!is_full(
            "could not resize shared memory segment \"/PostgreSQL.1\" to 8 bytes: No space left on device"
        ));
    }
}
