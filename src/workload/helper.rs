//! Helper containers: the service's own image, for work that exec must not do.
//!
//! Every helper holds a lease on its standard input. drctl keeps it open; when drctl
//! ends in any way, SIGKILL and a cut connection included, the engine closes that input
//! and the helper stops its program and itself. The engine removes an ended helper by
//! itself (auto-remove), so nothing that drctl started outlives drctl.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as BollardError;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType, MountVolumeOptions};
use bollard::query_parameters as q;
use futures_util::StreamExt;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::docker::Docker;
use super::{ContainerInfo, LABEL_DEPLOYMENT, LABEL_PURPOSE, LABEL_RUN, WorkloadError};

/// Runs "$@" with an empty input and passes its exit code on. End of file on our own
/// input means that drctl is gone: stop the program, then kill it. Plain POSIX shell:
/// the official images' Alpine variants have only busybox.
const LEASE: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
( while read -r _ <&3; do :; done
  kill -s "$DRCTL_STOP_SIGNAL" "$child"; sleep 20; kill -s KILL "$child" ) >/dev/null 2>&1 &
watch=$!
trap 'kill -s "$DRCTL_STOP_SIGNAL" "$child" 2>/dev/null' TERM INT
while :; do
  wait "$child"; code=$?
  kill -0 "$child" 2>/dev/null || break
done
kill "$watch" 2>/dev/null
exit "$code"
"#;

/// Runs "$@" without a lease, for `$DRCTL_SECONDS` at most. Only for what must outlive
/// drctl by design: the end of it is inside, where a SIGKILL of drctl does not reach.
const LIMITED: &str = r#"
"$@" </dev/null &
child=$!
( sleep "$DRCTL_SECONDS"; kill -s "$DRCTL_STOP_SIGNAL" "$child"; sleep 20; kill -s KILL "$child" ) >/dev/null 2>&1 &
watch=$!
trap 'kill -s "$DRCTL_STOP_SIGNAL" "$child" 2>/dev/null' TERM INT
while :; do
  wait "$child"; code=$?
  kill -0 "$child" 2>/dev/null || break
done
kill "$watch" 2>/dev/null
exit "$code"
"#;

/// Label of a helper: the process that made it, as [`process`] names it.
const LABEL_PROCESS: &str = "drctl.process";
const OUTPUT_LIMIT: usize = 4 << 20;
/// A helper that was created this long ago and never started belongs to no run any more.
const NEVER_STARTED: Duration = Duration::from_secs(90);
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// One mount of a helper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperMount {
    /// Path on the engine's host, or a volume's name; empty for a volume of the helper's
    /// own, which goes when it goes.
    pub source: String,
    /// Path inside the helper.
    pub target: String,
    /// Whether the helper may only read.
    pub read_only: bool,
}

/// Which network a helper sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HelperNetwork {
    /// None at all.
    None,
    /// The engine's default bridge: reachable from the host, unknown to the deployment.
    Bridge,
    /// The network namespace of a running container: its server is 127.0.0.1.
    Container(String),
}

/// What a helper is to do.
#[derive(Debug, Clone)]
pub struct HelperSpec {
    /// The deployment, for the label.
    pub deployment: String,
    /// The run (incident or backup label), for the label.
    pub run: String,
    /// A word or two for the label and the name, as `pg-dump`.
    pub purpose: String,
    /// Image, best by identifier.
    pub image: String,
    /// `uid:gid`, numeric; root when `None`.
    pub user: Option<String>,
    /// Program and arguments. Never a secret.
    pub argv: Vec<String>,
    /// Plain environment.
    pub env: Vec<(String, String)>,
    /// Secret environment, as `PGPASSWORD`.
    pub secrets: Vec<(String, SecretString)>,
    /// Mounts of its own.
    pub mounts: Vec<HelperMount>,
    /// A container whose mounts it gets too, and whether read-only.
    pub volumes_from: Option<(String, bool)>,
    /// Network.
    pub network: HelperNetwork,
    /// `/dev/shm` in bytes: the default 64 MiB breaks parallel plans and looks like a
    /// full disk.
    pub shm_size: u64,
    /// Whether it sees the processes of the engine's host: only for faults, which hit them.
    pub host_processes: bool,
    /// Signal that asks the program to end: `INT` for a PostgreSQL server (fast
    /// shutdown), `TERM` otherwise.
    pub stop_signal: &'static str,
    /// Instead of the lease: how long the helper may run, whatever becomes of drctl.
    /// Such a helper is started with [`Docker::launch_helper`].
    pub detached: Option<Duration>,
}

impl HelperSpec {
    /// A helper with no network, no mounts, as root, 256 MiB of shared memory.
    #[must_use]
    pub fn new(deployment: &str, run: &str, purpose: &str, image: &str, argv: &[&str]) -> Self {
        Self {
            deployment: deployment.to_owned(),
            run: run.to_owned(),
            purpose: purpose.to_owned(),
            image: image.to_owned(),
            user: None,
            argv: argv.iter().map(|s| (*s).to_owned()).collect(),
            env: Vec::new(),
            secrets: Vec::new(),
            mounts: Vec::new(),
            volumes_from: None,
            network: HelperNetwork::None,
            shm_size: 256 << 20,
            host_processes: false,
            stop_signal: "TERM",
            detached: None,
        }
    }
}

/// What a finished helper left behind.
#[derive(Debug, Clone)]
pub struct HelperOutput {
    /// Exit code of the program.
    pub exit_code: i64,
    /// Standard output, at most 4 MiB.
    pub stdout: String,
    /// Standard error, at most 4 MiB.
    pub stderr: String,
}

impl HelperOutput {
    /// The last lines of standard error (or output, when that is empty), for an error.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = if self.stderr.trim().is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        lines
            .get(lines.len().saturating_sub(5)..)
            .unwrap_or_default()
            .join("; ")
    }
}

/// A helper that is running. Dropping it ends it: the lease closes.
pub struct Helper {
    docker: Docker,
    /// Container identifier.
    pub id: String,
    purpose: String,
    // In a mutex only so that a reference to the helper may cross threads.
    lease: Mutex<Option<std::pin::Pin<Box<dyn AsyncWrite + Send>>>>,
    output: JoinHandle<(Vec<u8>, Vec<u8>)>,
    exit: oneshot::Receiver<Result<i64, BollardError>>,
}

impl std::fmt::Debug for Helper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Helper")
            .field("id", &self.id)
            .field("purpose", &self.purpose)
            .finish_non_exhaustive()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Both halves of the attached connection must go for the engine to see its end.
        self.end_lease();
        self.output.abort();
    }
}

impl Docker {
    /// Runs a helper to its end.
    ///
    /// # Errors
    /// [`WorkloadError::HelperDeadline`] when it takes longer than `deadline` (it is
    /// ended then), or the engine's trouble. A non-zero exit code is not an error here.
    pub async fn run_helper(
        &self,
        spec: &HelperSpec,
        deadline: Duration,
    ) -> Result<HelperOutput, WorkloadError> {
        self.spawn_helper(spec).await?.finish(deadline).await
    }

    /// Starts a helper and hands it out running.
    ///
    /// # Errors
    /// The engine's trouble; nothing is left then.
    pub async fn spawn_helper(&self, spec: &HelperSpec) -> Result<Helper, WorkloadError> {
        let (id, what) = self.create_helper(spec).await?;
        match self.attach_and_start(spec, &id, &what).await {
            Ok(helper) => Ok(helper),
            Err(e) => {
                // Created but never started: auto-remove does not see it.
                let _ = self.remove(&id).await;
                Err(e)
            }
        }
    }

    /// Removes helpers that an earlier run created and could not start: drctl was killed
    /// in between, or the engine stopped answering. They never run, so neither a lease nor
    /// auto-remove ends them. Those of a process of this machine that is no more go at once,
    /// others when they are older than any start takes. Best effort: the next run tries again.
    pub async fn remove_never_started(&self, deployment: &str) {
        let filters = HashMap::from([
            (
                "label".to_owned(),
                vec![format!("{}={deployment}", super::LABEL_DEPLOYMENT)],
            ),
            ("status".to_owned(), vec!["created".to_owned()]),
        ]);
        let options = q::ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let listed = self
            .call(
                "the list of containers",
                self.deadline,
                self.api.list_containers(Some(options)),
            )
            .await;
        let before = jiff::Timestamp::now().as_second() - NEVER_STARTED.as_secs().cast_signed();
        for container in listed.unwrap_or_default() {
            let orphan = container
                .labels
                .as_ref()
                .and_then(|l| l.get(LABEL_PROCESS))
                .is_some_and(|p| is_gone(p));
            if let (Some(id), Some(created)) = (container.id, container.created)
                && (created < before || orphan)
            {
                let _ = self.remove(&id).await;
            }
        }
    }

    /// Creates the container; also gives the words that name it in errors.
    async fn create_helper(&self, spec: &HelperSpec) -> Result<(String, String), WorkloadError> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            self.remove_never_started(&spec.deployment).await;
            if !self.is_local() {
                self.remove_abandoned_volumes(&spec.deployment).await;
            }
        }
        let name = format!(
            "drctl-{}-{}-{}-{}",
            spec.deployment,
            spec.purpose,
            std::process::id(),
            number
        );
        let options = q::CreateContainerOptionsBuilder::default().name(&name).build();
        let what = format!("helper container for {}", spec.purpose);
        let id = self
            .call(
                &what,
                self.deadline.max(Duration::from_secs(30)),
                self.api.create_container(Some(options), create_body(spec)),
            )
            .await?
            .id;
        Ok((id, what))
    }

    /// Starts a helper that nothing is read from and that outlives drctl, for as long
    /// as `spec.detached` says (an hour by default). Returns its identifier.
    ///
    /// # Errors
    /// The engine's trouble; nothing is left then.
    pub async fn launch_helper(&self, spec: &HelperSpec) -> Result<String, WorkloadError> {
        let mut spec = spec.clone();
        spec.detached.get_or_insert(Duration::from_secs(3600));
        let (id, what) = self.create_helper(&spec).await?;
        let started = self
            .call(
                &what,
                self.deadline.max(Duration::from_secs(60)),
                self.api.start_container(&id, None::<q::StartContainerOptions>),
            )
            .await;
        if let Err(e) = started {
            let _ = self.remove(&id).await;
            return Err(e);
        }
        Ok(id)
    }

    async fn attach_and_start(
        &self,
        spec: &HelperSpec,
        id: &str,
        what: &str,
    ) -> Result<Helper, WorkloadError> {
        let attach = q::AttachContainerOptionsBuilder::default()
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .stream(true)
            .build();
        let mut attached = self
            .call(what, self.deadline, self.api.attach_container(id, Some(attach)))
            .await?;
        let output = tokio::spawn(async move {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            while let Some(Ok(chunk)) = attached.output.next().await {
                match chunk {
                    LogOutput::StdErr { message } => append(&mut err, &message),
                    other => append(&mut out, &other.into_bytes()),
                }
            }
            (out, err)
        });
        // Asked before the start, so that a program of a millisecond is not missed.
        let (tell, exit) = oneshot::channel();
        let wait = q::WaitContainerOptionsBuilder::default()
            .condition("next-exit")
            .build();
        let mut ended = self.api.wait_container(id, Some(wait));
        tokio::spawn(async move {
            let code = match ended.next().await {
                Some(Ok(r)) => Ok(r.status_code),
                Some(Err(BollardError::DockerContainerWaitError { code, .. })) => Ok(code),
                Some(Err(e)) => Err(e),
                None => Err(BollardError::RequestTimeoutError),
            };
            let _ = tell.send(code);
        });
        // The wait request must have reached the engine before the start does.
        tokio::task::yield_now().await;
        self.call(
            what,
            self.deadline.max(Duration::from_secs(60)),
            self.api.start_container(id, None::<q::StartContainerOptions>),
        )
        .await?;
        Ok(Helper {
            docker: self.clone(),
            id: id.to_owned(),
            purpose: spec.purpose.clone(),
            lease: Mutex::new(Some(attached.input)),
            output,
            exit,
        })
    }
}

impl Helper {
    fn end_lease(&mut self) {
        if let Ok(lease) = self.lease.get_mut() {
            *lease = None;
        }
    }

    /// Waits for the program to end by itself.
    ///
    /// # Errors
    /// [`WorkloadError::HelperDeadline`] after `deadline`; the helper is ended then.
    pub async fn finish(mut self, deadline: Duration) -> Result<HelperOutput, WorkloadError> {
        match tokio::time::timeout(deadline, &mut self.exit).await {
            Ok(Ok(Ok(exit_code))) => {
                self.end_lease();
                let (out, err) = tokio::time::timeout(Duration::from_secs(10), &mut self.output)
                    .await
                    .ok()
                    .and_then(Result::ok)
                    .unwrap_or_default();
                Ok(HelperOutput {
                    exit_code,
                    stdout: String::from_utf8_lossy(&out).into_owned(),
                    stderr: String::from_utf8_lossy(&err).into_owned(),
                })
            }
            Ok(Ok(Err(e))) => {
                let cause = super::docker::chain(&e);
                self.docker.remove(&self.id).await?;
                Err(WorkloadError::Transport {
                    what: format!("helper container for {}", self.purpose),
                    cause,
                })
            }
            Ok(Err(_)) => Err(WorkloadError::Transport {
                what: format!("helper container for {}", self.purpose),
                cause: "its end was not reported".into(),
            }),
            Err(_) => {
                self.docker.remove(&self.id).await?;
                Err(WorkloadError::HelperDeadline {
                    purpose: self.purpose.clone(),
                    deadline,
                })
            }
        }
    }

    /// Asks the program to end (its stop signal) and waits for it.
    ///
    /// # Errors
    /// As [`Helper::finish`].
    pub async fn stop(mut self, deadline: Duration) -> Result<HelperOutput, WorkloadError> {
        self.end_lease();
        let asked = self.docker.kill(&self.id, "SIGTERM").await;
        match asked {
            // Gone or ending already.
            Ok(()) | Err(WorkloadError::NotFound { .. } | WorkloadError::Engine { status: 409, .. }) => {
                self.finish(deadline).await
            }
            Err(e) => Err(e),
        }
    }

    /// `inspect` of the helper; `NotFound` once it has ended.
    ///
    /// # Errors
    /// As [`Docker::inspect`].
    pub async fn inspect(&self) -> Result<ContainerInfo, WorkloadError> {
        self.docker.inspect(&self.id).await
    }
}

/// This machine since its start, and the processes that we see of it: a process number says
/// nothing elsewhere. `None` where the kernel does not tell.
fn machine() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{}/{}", boot.trim(), namespace.display()))
}

/// This process, for everybody on this machine.
fn process() -> Option<String> {
    Some(format!("{}/{}", machine()?, std::process::id()))
}

/// Whether the process of a label was one of this machine and is no more. A number that is in
/// use again is not gone: then time decides.
fn is_gone(label: &str) -> bool {
    let Some((where_, pid)) = label.rsplit_once('/') else {
        return false;
    };
    machine().is_some_and(|m| m == where_)
        && pid.parse::<u32>().is_ok()
        && !std::path::Path::new("/proc").join(pid).exists()
}

fn create_body(spec: &HelperSpec) -> ContainerCreateBody {
    let mut labels: HashMap<String, String> = [
        (LABEL_DEPLOYMENT, &spec.deployment),
        (LABEL_PURPOSE, &spec.purpose),
        (LABEL_RUN, &spec.run),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.clone()))
    .collect();
    labels.extend(process().map(|p| (LABEL_PROCESS.to_owned(), p)));
    let mut env: Vec<String> = spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    env.extend(
        spec.secrets
            .iter()
            .map(|(k, v)| format!("{k}={}", v.expose_secret())),
    );
    env.push(format!("DRCTL_STOP_SIGNAL={}", spec.stop_signal));
    let mounts = spec
        .mounts
        .iter()
        .map(|m| Mount {
            target: Some(m.target.clone()),
            source: (!m.source.is_empty()).then(|| m.source.clone()),
            typ: Some(if m.source.starts_with('/') {
                MountType::BIND
            } else {
                MountType::VOLUME
            }),
            read_only: Some(m.read_only),
            // Only a volume that is made for it gets them.
            volume_options: m.source.is_empty().then(|| MountVolumeOptions {
                labels: Some(labels.clone()),
                ..MountVolumeOptions::default()
            }),
            ..Mount::default()
        })
        .collect();
    let leased = spec.detached.is_none();
    if let Some(limit) = spec.detached {
        env.push(format!("DRCTL_SECONDS={}", limit.as_secs()));
    }
    let wrapper = if leased { LEASE } else { LIMITED };
    let mut command = vec!["-c".to_owned(), wrapper.to_owned(), "drctl".to_owned()];
    command.extend(spec.argv.iter().cloned());
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        user: Some(spec.user.clone().unwrap_or_else(|| "0:0".to_owned())),
        entrypoint: Some(vec!["/bin/sh".to_owned()]),
        cmd: Some(command),
        env: Some(env),
        open_stdin: Some(leased),
        stdin_once: Some(leased),
        attach_stdin: Some(leased),
        attach_stdout: Some(leased),
        attach_stderr: Some(leased),
        tty: Some(false),
        labels: Some(labels),
        host_config: Some(HostConfig {
            auto_remove: Some(true),
            network_mode: Some(match &spec.network {
                HelperNetwork::None => "none".to_owned(),
                HelperNetwork::Bridge => "bridge".to_owned(),
                HelperNetwork::Container(id) => format!("container:{id}"),
            }),
            pid_mode: spec.host_processes.then(|| "host".to_owned()),
            mounts: Some(mounts),
            volumes_from: spec
                .volumes_from
                .as_ref()
                .map(|(id, ro)| vec![format!("{id}:{}", if *ro { "ro" } else { "rw" })]),
            shm_size: Some(i64::try_from(spec.shm_size).unwrap_or(i64::MAX)),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

fn append(to: &mut Vec<u8>, bytes: &[u8]) {
    let room = OUTPUT_LIMIT.saturating_sub(to.len());
    to.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_of_this_machine_can_be_gone() {
        let here = machine().unwrap();
        assert!(!is_gone(&process().unwrap()));
        // More than any Linux counts to.
        assert!(is_gone(&format!("{here}/4194999")));
        assert!(!is_gone("another machine/pid:[1]/4194999"));
        assert!(!is_gone(&format!("{here}/none")));
        assert!(!is_gone(""));
    }
}
