//! Small questions asked inside a running container.

use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt;

use super::docker::Docker;
use super::{ExecOutput, WorkloadError};

const EXEC_OUTPUT_LIMIT: usize = 1 << 20;

impl Docker {
    /// Asks a small question inside a running container. See the module's warning: never
    /// a program that forks, never bulk data.
    ///
    /// # Errors
    /// `Engine` 409 when the container does not run; the engine's trouble. A deadline
    /// ends only our side: the program inside goes on.
    pub async fn exec(
        &self,
        container: &str,
        user: Option<&str>,
        argv: &[&str],
        deadline: Duration,
    ) -> Result<ExecOutput, WorkloadError> {
        let what = format!(
            "{} in container {container}",
            argv.first().copied().unwrap_or("exec")
        );
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            user: user.map(str::to_owned),
            cmd: Some(argv.iter().map(|s| (*s).to_owned()).collect()),
            ..CreateExecOptions::default()
        };
        self.call(&what, deadline, async {
            let id = self.api.create_exec(container, options).await?.id;
            let mut stdout = Vec::new();
            let mut stderr = Vec::new();
            if let StartExecResults::Attached { mut output, .. } = self.api.start_exec(&id, None).await? {
                while let Some(chunk) = output.next().await {
                    match chunk? {
                        LogOutput::StdErr { message } => append(&mut stderr, &message),
                        other => append(&mut stdout, &other.into_bytes()),
                    }
                }
            }
            let exit_code = self.api.inspect_exec(&id).await?.exit_code.unwrap_or(-1);
            Ok(ExecOutput {
                exit_code,
                stdout: String::from_utf8_lossy(&stdout).into_owned(),
                stderr: String::from_utf8_lossy(&stderr).into_owned(),
            })
        })
        .await
    }

    /// Starts a program inside a running container and does not wait for it. Only for faults:
    /// nothing is known of it afterwards.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub async fn exec_detached(&self, container: &str, argv: &[&str]) -> Result<(), WorkloadError> {
        let what = format!(
            "{} in container {container}",
            argv.first().copied().unwrap_or("exec")
        );
        let options = CreateExecOptions {
            cmd: Some(argv.iter().map(|s| (*s).to_owned()).collect()),
            ..CreateExecOptions::default()
        };
        let detached = StartExecOptions {
            detach: true,
            ..StartExecOptions::default()
        };
        self.call(&what, self.deadline.max(Duration::from_secs(10)), async {
            let id = self.api.create_exec(container, options).await?.id;
            self.api.start_exec(&id, Some(detached)).await.map(drop)
        })
        .await
    }
}

fn append(to: &mut Vec<u8>, bytes: &[u8]) {
    let room = EXEC_OUTPUT_LIMIT.saturating_sub(to.len());
    to.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
}
