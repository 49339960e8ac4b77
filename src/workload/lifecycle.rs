//! Starting, stopping, freezing and removing containers, and the processes in them.

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
            self.deadline,
            self.api.kill_container(container, Some(options)),
        )
        .await
    }

    /// State letters of a container's processes, the oldest first, as `ps` on the engine's
    /// host prints them (`S`, `R`, `T` …).
    ///
    /// # Errors
    /// The engine's trouble; `Engine` 409 when the container does not run.
    pub async fn process_states(&self, container: &str) -> Result<Vec<String>, WorkloadError> {
        let options = q::TopOptionsBuilder::default().ps_args("-eo pid,stat").build();
        let top = self
            .call(
                &format!("the processes of container {container}"),
                self.deadline,
                self.api.top_processes(container, Some(options)),
            )
            .await?;
        let mut rows: Vec<(u64, String)> = top
            .processes
            .unwrap_or_default()
            .into_iter()
            .filter_map(|row| Some((row.first()?.parse().ok()?, row.get(1)?.clone())))
            .collect();
        rows.sort_unstable_by_key(|(pid, _)| *pid);
        Ok(rows.into_iter().map(|(_, state)| state).collect())
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
            self.deadline,
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
            self.deadline,
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
