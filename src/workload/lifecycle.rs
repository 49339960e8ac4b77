//! Starting, stopping, freezing and removing containers, and the processes in them.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use bollard::query_parameters as q;

use super::docker::Docker;
use super::{ProcessInfo, Status, WorkloadError};

impl Docker {
    /// Starts a container; already running is fine.
    ///
    /// # Errors
    /// The engine's trouble, with its message.
    pub async fn start(&self, container: &str) -> Result<(), WorkloadError> {
        self.call(
            &format!("start of container {container}"),
            self.deadline.max(Duration::from_secs(60)),
            self.api
                .start_container(container, None::<q::StartContainerOptions>),
        )
        .await
    }

    /// Stops a container with its own stop signal; the engine kills it after `grace`.
    /// Already stopped is fine.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn stop(&self, container: &str, grace: Duration) -> Result<(), WorkloadError> {
        let options = q::StopContainerOptionsBuilder::default()
            .t(i32::try_from(grace.as_secs()).unwrap_or(i32::MAX))
            .build();
        self.call(
            &format!("stop of container {container}"),
            grace + Duration::from_secs(15),
            self.api.stop_container(container, Some(options)),
        )
        .await
    }

    /// Sends a signal to the main process.
    ///
    /// # Errors
    /// The engine's trouble; `Engine` 409 when the container does not run.
    pub async fn kill(&self, container: &str, signal: &str) -> Result<(), WorkloadError> {
        let options = q::KillContainerOptionsBuilder::default().signal(signal).build();
        self.call(
            &format!("signal {signal} to container {container}"),
            self.for_a_change(),
            self.api.kill_container(container, Some(options)),
        )
        .await
    }

    /// State letters of a container's processes, the main process first, as `ps` on the engine's
    /// host prints them (`S`, `R`, `T` …).
    ///
    /// # Errors
    /// The engine's trouble; `Engine` 409 when the container does not run.
    pub async fn process_states(&self, container: &str) -> Result<Vec<String>, WorkloadError> {
        let options = q::TopOptionsBuilder::default()
            .ps_args("-eo pid,ppid,etimes,stat")
            .build();
        let top = self
            .call(
                &format!("the processes of container {container}"),
                self.deadline,
                self.api.top_processes(container, Some(options)),
            )
            .await?;
        Ok(main_first(&top.processes.unwrap_or_default()))
    }

    /// Whether a signal has stopped the main process of a container, which the engine does not know of.
    ///
    /// # Errors
    /// As [`Docker::process_states`].
    pub async fn is_stopped_by_signal(&self, container: &str) -> Result<bool, WorkloadError> {
        let states = self.process_states(container).await?;
        Ok(states.first().is_some_and(|s| s.starts_with('T')))
    }

    /// A container's processes, the oldest first, with their command lines or titles.
    ///
    /// # Errors
    /// The engine's trouble; `Engine` 409 when the container does not run.
    pub async fn processes(&self, container: &str) -> Result<Vec<ProcessInfo>, WorkloadError> {
        let options = q::TopOptionsBuilder::default()
            .ps_args("-eo pid,etimes,stat,args")
            .build();
        let top = self
            .call(
                &format!("the processes of container {container}"),
                self.deadline,
                self.api.top_processes(container, Some(options)),
            )
            .await?;
        let mut all: Vec<ProcessInfo> = top
            .processes
            .unwrap_or_default()
            .into_iter()
            .filter_map(|row| {
                Some(ProcessInfo {
                    seconds: row.get(1)?.parse().ok()?,
                    state: row.get(2)?.clone(),
                    command: row.get(3)?.clone(),
                })
            })
            .collect();
        all.sort_by_key(|p| std::cmp::Reverse(p.seconds));
        Ok(all)
    }

    /// Lets a main process that a signal has stopped run on. From inside the container: a
    /// signal that the engine sends makes it take the container for stopped by hand, and its
    /// restart policy is off until the next start (seen on 20.10).
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn resume(&self, container: &str) -> Result<(), WorkloadError> {
        let inside = self
            .exec(container, Some("0"), &["sh", "-c", "kill -CONT 1"], self.deadline)
            .await;
        match inside {
            Ok(done) if done.exit_code == 0 => Ok(()),
            // No shell in it, or no way in: better running than with its policy.
            _ => self.kill(container, "SIGCONT").await,
        }
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn pause(&self, container: &str) -> Result<(), WorkloadError> {
        self.call(
            &format!("pause of container {container}"),
            self.for_a_change(),
            self.api.pause_container(container),
        )
        .await
    }

    /// Thaws a paused container.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn unpause(&self, container: &str) -> Result<(), WorkloadError> {
        self.call(
            &format!("unpause of container {container}"),
            self.for_a_change(),
            self.api.unpause_container(container),
        )
        .await
    }

    /// Removes a container and its anonymous volumes, running or not; gone is fine.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn remove(&self, container: &str) -> Result<(), WorkloadError> {
        let options = q::RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        let gone = self
            .call(
                &format!("removal of container {container}"),
                self.deadline.max(Duration::from_secs(30)),
                self.api.remove_container(container, Some(options)),
            )
            .await;
        match gone {
            // 409: the engine is already removing it (auto-remove).
            Err(WorkloadError::NotFound { .. } | WorkloadError::Engine { status: 409, .. }) => Ok(()),
            other => other,
        }
    }

    /// Waits until the container's main process has ended; `true` when it has.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn wait_stopped(&self, container: &str, deadline: Duration) -> Result<bool, WorkloadError> {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            match self.inspect(container).await {
                Err(WorkloadError::NotFound { .. }) => return Ok(true),
                Err(e) => return Err(e),
                Ok(info) if matches!(info.status, Status::Exited | Status::Created | Status::Dead) => {
                    return Ok(true);
                }
                Ok(_) if tokio::time::Instant::now() >= end => return Ok(false),
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// States of rows of `pid,ppid,etimes,stat`. The main process is the oldest of those whose parent is outside; so is the
/// parent of what `exec` started. Numbers tell nothing of age: they begin anew at the host's `pid_max`.
fn main_first(rows: &[Vec<String>]) -> Vec<String> {
    let number = |row: &[String], at: usize| row.get(at)?.parse::<u64>().ok();
    let inside: BTreeSet<u64> = rows.iter().filter_map(|row| number(row, 0)).collect();
    let mut all: Vec<(bool, Reverse<u64>, u64, &String)> = rows
        .iter()
        .filter_map(|row| {
            let is_child = inside.contains(&number(row, 1)?);
            Some((is_child, Reverse(number(row, 2)?), number(row, 0)?, row.get(3)?))
        })
        .collect();
    all.sort_unstable();
    all.into_iter().map(|(.., state)| state.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_process_is_first_also_where_numbers_began_anew() {
        let rows = |text: &str| -> Vec<Vec<String>> {
            let words = |line: &str| line.split(' ').map(ToOwned::to_owned).collect();
            text.lines().map(words).collect()
        };
        // Its children have smaller numbers and its own second; a health check runs beside it.
        let seen = main_first(&rows(
            "301 32701 40 Ss\n302 32701 39 S\n450 449 1 R\n32701 32690 40 Ts",
        ));
        assert_eq!(seen, ["Ts", "R", "Ss", "S"]);
        assert_eq!(main_first(&rows("7 1 x S")), [""; 0]);
    }
}
