//! The Docker engine's API, every call with a deadline and a named object.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as BollardError;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, EndpointSettings, PortMap};
use bollard::query_parameters as q;
use futures_util::StreamExt;
use jiff::Timestamp;

use super::bridge::Bridge;
use super::ssh::Tunnel;
use super::{Attachment, ContainerInfo, ExecOutput, LogLine, MountInfo, ProcessInfo, Status, WorkloadError};
use crate::runbook::{DockerHost, DockerTls};

/// Seconds that bollard allows a whole request, body included. Our own deadlines are
/// shorter; this one only has to stay out of the way of a slow `stop`.
const TRANSPORT_TIMEOUT_SECS: u64 = 3600;
const EXEC_OUTPUT_LIMIT: usize = 1 << 20;

/// A connected engine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Docker {
    pub(super) api: bollard::Docker,
    pub(super) host: String,
    address: DockerHost,
    pub(super) deadline: Duration,
    tunnel: Option<Arc<Tunnel>>,
    /// By container and start: another run has another network.
    bridges: Bridges,
}

type Bridges = Arc<tokio::sync::Mutex<BTreeMap<(String, Option<Timestamp>, u16), Bridge>>>;

/// How a port of a container is reached from this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Address or name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Directory with a socket `.s.PGSQL.PORT` that leads there; TCP when `None`.
    pub socket_dir: Option<PathBuf>,
}

impl Docker {
    /// Connects to `host` (`unix://PATH`, `ssh://[USER@]HOST[:PORT]` or `tcp://HOST:PORT`;
    /// the local socket by default), checks that an engine answers within `deadline`, and
    /// agrees on an API version. `deadline` then bounds every small request. `tls` is for a
    /// `tcp://` address.
    ///
    /// # Errors
    /// [`WorkloadError::Unreachable`] when nothing listens or permission is missing,
    /// [`WorkloadError::Timeout`] when something listens and does not answer.
    pub async fn connect(
        host: Option<&str>,
        tls: Option<&DockerTls>,
        deadline: Duration,
    ) -> Result<Self, WorkloadError> {
        let address = match host {
            None => DockerHost::default(),
            Some(text) => text
                .parse()
                .map_err(|e: crate::runbook::BadText| WorkloadError::Unreachable {
                    host: text.to_owned(),
                    cause: e.message,
                })?,
        };
        let host = address.to_string();
        let unreachable = |cause: String| WorkloadError::Unreachable {
            host: host.clone(),
            cause,
        };
        let mut tunnel = None;
        let api = match &address {
            DockerHost::Unix(path) => {
                let path = path.display().to_string();
                // bollard opens the socket late and words its errors vaguely: look first.
                if let Err(e) = std::os::unix::net::UnixStream::connect(&path) {
                    return Err(unreachable(match e.kind() {
                        std::io::ErrorKind::NotFound => format!("there is no socket at {path}"),
                        std::io::ErrorKind::PermissionDenied => format!(
                            "permission denied on {path}: run as root or as a member of the group that owns it"
                        ),
                        std::io::ErrorKind::ConnectionRefused => {
                            format!("nothing listens on {path}: the engine is not running")
                        }
                        _ => e.to_string(),
                    }));
                }
                over_socket(&path)
            }
            DockerHost::Ssh(ssh) => {
                let opened = Tunnel::open(ssh, deadline).await?;
                let socket = opened.socket().display().to_string();
                tunnel = Some(Arc::new(opened));
                over_socket(&socket)
            }
            DockerHost::Tcp(engine) => match tls {
                Some(tls) => {
                    Ok(super::tls::connect(engine, tls, TRANSPORT_TIMEOUT_SECS).map_err(unreachable)?)
                }
                None => bollard::Docker::connect_with_http(
                    &host,
                    TRANSPORT_TIMEOUT_SECS,
                    bollard::API_DEFAULT_VERSION,
                ),
            },
        }
        .map_err(|e| unreachable(chain(&e)))?;
        let negotiated = tokio::time::timeout(deadline, api.negotiate_version())
            .await
            .map_err(|_| WorkloadError::Timeout {
                host: host.clone(),
                what: "the version question".into(),
                deadline,
            })?
            .map_err(|e| match (&tunnel, &address) {
                // What `ssh` says of it: no such socket there, or forwarding not allowed.
                (Some(tunnel), DockerHost::Ssh(ssh)) => unreachable(format!(
                    "{} lets us in, but not to {}: {}",
                    ssh.login(),
                    ssh.socket.display(),
                    Some(tunnel.words())
                        .filter(|w| !w.is_empty())
                        .unwrap_or_else(|| chain(&e))
                )),
                _ => unreachable(chain(&e)),
            })?;
        Ok(Self {
            api: negotiated,
            host,
            address,
            deadline,
            tunnel,
            bridges: Bridges::default(),
        })
    }

    /// The same engine, for a helper that a bridge holds: with the bridges in it, neither
    /// would ever be dropped.
    pub(super) fn without_bridges(&self) -> Self {
        Self {
            bridges: Bridges::default(),
            ..self.clone()
        }
    }

    /// The engine's address as configured.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// True when the engine shares this machine's file system.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.address, DockerHost::Unix(_))
    }

    /// How a port of a running container is reached: at the container's own address where
    /// the engine is local, through the connection where it is reached by SSH, through a
    /// helper in its network otherwise. The last is labelled as the deployment's.
    ///
    /// # Errors
    /// `NotFound` when there is no way to it; the connection's trouble.
    pub async fn reach(
        &self,
        deployment: &str,
        container: &ContainerInfo,
        port: u16,
    ) -> Result<Reach, WorkloadError> {
        // A container on the host's own network has no address of its own.
        let shares_host = container.networks.contains_key("host");
        let own = container.address().or_else(|| shares_host.then_some("127.0.0.1"));
        let reach = |host: &str, port| Reach {
            host: host.to_owned(),
            port,
            socket_dir: None,
        };
        let found = match (&self.address, &self.tunnel, own) {
            (DockerHost::Tcp(_), _, Some(address)) if container.is_running() => {
                match self.bridge(deployment, container, port).await {
                    Ok(dir) => Some(Reach {
                        socket_dir: Some(dir),
                        ..reach(address, port)
                    }),
                    Err(WorkloadError::NotFound { .. }) => None,
                    // One that ended or was started again since it was looked at is nowhere, and
                    // the engine words that in many ways.
                    Err(e @ WorkloadError::Engine { .. }) => {
                        let now = self.inspect(&container.id).await;
                        if now.is_ok_and(|n| n.is_running() && n.started_at == container.started_at) {
                            return Err(e);
                        }
                        None
                    }
                    Err(e) => return Err(e),
                }
            }
            (DockerHost::Tcp(_), ..) => None,
            (_, Some(tunnel), own) => match own.and_then(|a| a.parse().ok()) {
                Some(address) => Some(Reach {
                    socket_dir: Some(tunnel.forward(address, port).await?),
                    ..reach(&address.to_string(), port)
                }),
                None => None,
            },
            (_, None, Some(address)) => Some(reach(address, port)),
            (_, None, None) => container
                .published
                .get(&format!("{port}/tcp"))
                .and_then(|a| a.rsplit_once(':'))
                .and_then(|(host, port)| Some(reach(host, port.parse().ok()?))),
        };
        found.ok_or_else(|| WorkloadError::NotFound {
            what: format!("a way to port {port} of container {}", container.name),
        })
    }

    /// The directory of a socket that leads to a port of a running container. Made once.
    async fn bridge(
        &self,
        deployment: &str,
        container: &ContainerInfo,
        port: u16,
    ) -> Result<PathBuf, WorkloadError> {
        let run = (container.id.clone(), container.started_at, port);
        let mut bridges = self.bridges.lock().await;
        if let Some(bridge) = bridges.get(&run) {
            if bridge.stands().await {
                return Ok(bridge.dir().to_owned());
            }
            bridges.remove(&run);
        }
        let bridge = Bridge::open(&self.without_bridges(), deployment, container, port).await?;
        let dir = bridge.dir().to_owned();
        bridges.insert(run, bridge);
        Ok(dir)
    }

    /// Runs one request under a deadline and names it in every error.
    pub(super) async fn call<T>(
        &self,
        what: &str,
        deadline: Duration,
        request: impl Future<Output = Result<T, BollardError>>,
    ) -> Result<T, WorkloadError> {
        if let Some(tunnel) = &self.tunnel {
            tunnel.ready().await?;
        }
        match tokio::time::timeout(deadline, request).await {
            Err(_) => Err(WorkloadError::Timeout {
                host: self.host.clone(),
                what: what.to_owned(),
                deadline,
            }),
            Ok(Err(e)) => Err(self.classify(what, &e).await),
            Ok(Ok(v)) => Ok(v),
        }
    }

    pub(super) async fn classify(&self, what: &str, e: &BollardError) -> WorkloadError {
        match e {
            BollardError::DockerResponseServerError { status_code: 404, .. } => {
                return WorkloadError::NotFound { what: what.into() };
            }
            BollardError::DockerResponseServerError { status_code, message } => {
                return WorkloadError::Engine {
                    what: what.into(),
                    status: *status_code,
                    message: message.trim().to_owned(),
                };
            }
            _ => {}
        }
        if let Some(tunnel) = &self.tunnel
            && let Some(broken) = tunnel.broken().await
        {
            return broken;
        }
        match e {
            BollardError::SocketNotFoundError(_) | BollardError::HyperLegacyError { .. } => {
                WorkloadError::Unreachable {
                    host: self.host.clone(),
                    cause: chain(e),
                }
            }
            other => WorkloadError::Transport {
                what: what.into(),
                cause: chain(other),
            },
        }
    }

    /// Everything `inspect` says of a container, by name or identifier.
    ///
    /// # Errors
    /// `NotFound`, or the engine's trouble.
    pub async fn inspect(&self, container: &str) -> Result<ContainerInfo, WorkloadError> {
        let what = format!("container {container}");
        let raw = self
            .call(
                &what,
                self.deadline,
                self.api
                    .inspect_container(container, None::<q::InspectContainerOptions>),
            )
            .await?;
        Ok(container_info(raw))
    }

    /// The container of a Compose service: the first by name that carries the project's
    /// and the service's labels. One-off containers (`compose run`) are left out.
    ///
    /// # Errors
    /// `NotFound` when there is none, or the engine's trouble.
    pub async fn find_service(&self, project: &str, service: &str) -> Result<ContainerInfo, WorkloadError> {
        let mut found = self
            .list(&[
                format!("com.docker.compose.project={project}"),
                format!("com.docker.compose.service={service}"),
                "com.docker.compose.oneoff=False".to_owned(),
            ])
            .await?;
        // What a recovery has set aside still has the labels that it was created with.
        found.retain(|(_, name)| !name.contains(crate::plan::SET_ASIDE));
        found.sort_by(|a, b| a.1.cmp(&b.1));
        match found.first() {
            Some((id, _)) => self.inspect(id).await,
            None => Err(WorkloadError::NotFound {
                what: format!("a container of service {service} in Compose project {project}"),
            }),
        }
    }

    /// Identifier and name of every container, running or not, with all of `labels`
    /// (`key=value`).
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn list(&self, labels: &[String]) -> Result<Vec<(String, String)>, WorkloadError> {
        let filters = HashMap::from([("label".to_owned(), labels.to_vec())]);
        let options = q::ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let found = self
            .call(
                "the list of containers",
                self.deadline,
                self.api.list_containers(Some(options)),
            )
            .await?;
        Ok(found
            .into_iter()
            .filter_map(|c| {
                let name = c
                    .names
                    .unwrap_or_default()
                    .first()
                    .map(|n| n.trim_start_matches('/').to_owned())
                    .unwrap_or_default();
                Some((c.id?, name))
            })
            .collect())
    }

    /// The last `tail` log lines that are not older than `since`. Engine options count
    /// whole seconds, which would bring back the previous run's last words; so lines are
    /// filtered here by their own time stamps.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn logs(
        &self,
        container: &str,
        since: Option<Timestamp>,
        tail: usize,
    ) -> Result<Vec<LogLine>, WorkloadError> {
        let options = q::LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .tail(&tail.to_string())
            .build();
        let mut stream = self.api.logs(container, Some(options));
        let what = format!("the log of container {container}");
        let read = async {
            let mut lines = Vec::new();
            while let Some(chunk) = stream.next().await {
                let text = String::from_utf8_lossy(&chunk?.into_bytes()).into_owned();
                for line in text.lines() {
                    let (at, text) = match line.split_once(' ') {
                        Some((stamp, rest)) => match stamp.parse::<Timestamp>() {
                            Ok(at) => (Some(at), rest),
                            Err(_) => (None, line),
                        },
                        None => (None, line),
                    };
                    lines.push(LogLine {
                        at,
                        text: text.to_owned(),
                    });
                }
            }
            Ok(lines)
        };
        let mut lines = self.call(&what, self.deadline, read).await?;
        if let Some(since) = since {
            lines.retain(|l| l.at.is_none_or(|at| at >= since));
        }
        Ok(lines)
    }

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

fn over_socket(path: &str) -> Result<bollard::Docker, BollardError> {
    bollard::Docker::connect_with_unix(path, TRANSPORT_TIMEOUT_SECS, bollard::API_DEFAULT_VERSION)
}

fn append(to: &mut Vec<u8>, bytes: &[u8]) {
    let room = EXEC_OUTPUT_LIMIT.saturating_sub(to.len());
    to.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
}

/// An error and all its causes in one line; bollard hides the telling part in the chain.
pub(super) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let next = s.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = s.source();
    }
    text
}

fn stamp(text: Option<&String>) -> Option<Timestamp> {
    // "0001-01-01T00:00:00Z" is the engine's way to say never.
    let at: Timestamp = text?.parse().ok()?;
    (at > Timestamp::UNIX_EPOCH).then_some(at)
}

/// The first host address and port of each published port.
fn first_bindings(ports: PortMap) -> BTreeMap<String, String> {
    ports
        .into_iter()
        .filter_map(|(port, bindings)| {
            let b = bindings?.into_iter().next()?;
            let ip = match b.host_ip.as_deref() {
                None | Some("" | "0.0.0.0" | "::") => "127.0.0.1".to_owned(),
                Some(ip) => ip.to_owned(),
            };
            Some((port, format!("{ip}:{}", b.host_port?)))
        })
        .collect()
}

fn attachment(e: EndpointSettings) -> Attachment {
    let fixed = e.ipam_config.and_then(|c| c.ipv4_address.or(c.ipv6_address));
    let mut aliases = e.aliases.unwrap_or_default();
    // Newer engines list the names that they made themselves apart.
    aliases.extend(e.dns_names.unwrap_or_default());
    aliases.sort_unstable();
    aliases.dedup();
    Attachment {
        network_id: e.network_id.unwrap_or_default(),
        address: e.ip_address.unwrap_or_default(),
        aliases,
        fixed_address: fixed.filter(|a| !a.is_empty()),
    }
}

fn container_info(raw: ContainerInspectResponse) -> ContainerInfo {
    let state = raw.state.unwrap_or_default();
    let config = raw.config.unwrap_or_default();
    let host = raw.host_config.unwrap_or_default();
    let network = raw.network_settings.unwrap_or_default();
    let status = match state.status {
        _ if state.restarting == Some(true) => Status::Restarting,
        _ if state.paused == Some(true) => Status::Paused,
        Some(ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::STOPPING) => Status::Running,
        Some(ContainerStateStatusEnum::CREATED) => Status::Created,
        Some(ContainerStateStatusEnum::EXITED) => Status::Exited,
        _ => Status::Dead,
    };
    let published = first_bindings(network.ports.unwrap_or_default());
    let to_publish = first_bindings(host.port_bindings.unwrap_or_default());
    let attachments: BTreeMap<String, Attachment> = network
        .networks
        .unwrap_or_default()
        .into_iter()
        .map(|(name, e)| (name, attachment(e)))
        .collect();
    ContainerInfo {
        id: raw.id.unwrap_or_default(),
        name: raw.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image: config.image.unwrap_or_default(),
        image_id: raw.image.unwrap_or_default(),
        status,
        exit_code: state.exit_code.unwrap_or_default(),
        oom_killed: state.oom_killed.unwrap_or_default(),
        error: state.error.unwrap_or_default(),
        health: state
            .health
            .and_then(|h| h.status)
            .map(|s| s.to_string())
            .filter(|s| !s.is_empty() && s != "none"),
        started_at: stamp(state.started_at.as_ref()),
        finished_at: stamp(state.finished_at.as_ref()),
        restart_count: raw.restart_count.unwrap_or_default(),
        restart_policy: host
            .restart_policy
            .and_then(|p| p.name)
            .map(|n| n.to_string())
            .filter(|n| !n.is_empty())
            .unwrap_or_else(|| "no".into()),
        stop_signal: config.stop_signal.unwrap_or_else(|| "SIGTERM".into()),
        shm_size: u64::try_from(host.shm_size.unwrap_or_default()).unwrap_or_default(),
        memory_limit: u64::try_from(host.memory.unwrap_or_default()).unwrap_or_default(),
        memory_swap: host.memory_swap.unwrap_or_default(),
        nano_cpus: host.nano_cpus.unwrap_or_default(),
        cpu_quota: host.cpu_quota.unwrap_or_default(),
        cpu_period: host.cpu_period.unwrap_or_default(),
        networks: attachments
            .iter()
            .map(|(name, a)| (name.clone(), a.address.clone()))
            .collect(),
        attachments,
        network_mode: host.network_mode.unwrap_or_default(),
        published,
        to_publish,
        mounts: raw
            .mounts
            .unwrap_or_default()
            .into_iter()
            .map(|m| MountInfo {
                volume: m.name.filter(|n| !n.is_empty()),
                source: m.source.unwrap_or_default(),
                destination: m.destination.unwrap_or_default(),
                writable: m.rw.unwrap_or(true),
            })
            .collect(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        env: config.env.unwrap_or_default(),
        command: config.cmd.unwrap_or_default(),
        working_dir: config.working_dir.unwrap_or_default(),
    }
}
