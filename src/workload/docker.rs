//! The Docker engine's API, every call with a deadline and a named object.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as BollardError;
use jiff::Timestamp;
use tokio::sync::OnceCell;

use super::bridge::Bridge;
use super::ssh::Tunnel;
use super::{ContainerInfo, WorkloadError};
use crate::runbook::{DockerHost, DockerTls};

/// How long the engine may take for a small change: a network's interfaces, a container's limits.
const CHANGE: Duration = Duration::from_secs(30);
/// Seconds that bollard allows a whole request, body included. Our own deadlines are
/// shorter; this one only has to stay out of the way of a slow `stop`.
const TRANSPORT_TIMEOUT_SECS: u64 = 3600;

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
    /// Whether the engine runs without root's rights; asked once.
    rootless: Arc<OnceCell<bool>>,
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
                // Not the standard library's: with a full queue of an engine that hangs it waits for ever.
                let opened = tokio::time::timeout(deadline, tokio::net::UnixStream::connect(&path)).await;
                if let Err(e) = opened.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                    return Err(unreachable(match e.kind() {
                        std::io::ErrorKind::NotFound => format!("there is no socket at {path}"),
                        std::io::ErrorKind::PermissionDenied => format!(
                            "permission denied on {path}: run as root or as a member of the group that owns it"
                        ),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                            format!("{path} takes no more connections: the engine hangs")
                        }
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
            rootless: Arc::default(),
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
    /// helper in its network otherwise. The last is labelled as the deployment's. The networks
    /// of a rootless engine are in a namespace to which its host has no route: there it is at
    /// the port that is published on the host, or through a helper.
    ///
    /// # Errors
    /// `NotFound` when there is no way to it; the connection's trouble.
    pub async fn reach(
        &self,
        deployment: &str,
        container: &ContainerInfo,
        port: u16,
    ) -> Result<Reach, WorkloadError> {
        let found = match self.way(container, port).await? {
            Way::Direct(host, port) => match (&self.tunnel, host.parse()) {
                (None, _) => Some(Reach {
                    host,
                    port,
                    socket_dir: None,
                }),
                (Some(tunnel), Ok(address)) => Some(Reach {
                    socket_dir: Some(tunnel.forward(address, port).await?),
                    host: address.to_string(),
                    port,
                }),
                (Some(_), Err(_)) => None,
            },
            Way::Inside(host) => {
                match self.bridge(deployment, container, port).await {
                    Ok(dir) => Some(Reach {
                        host,
                        port,
                        socket_dir: Some(dir),
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
            Way::None => None,
        };
        found.ok_or_else(|| WorkloadError::NotFound {
            what: format!("a way to port {port} of container {}", container.name),
        })
    }

    async fn way(&self, container: &ContainerInfo, port: u16) -> Result<Way, WorkloadError> {
        let place = match &self.address {
            DockerHost::Tcp(_) => Place::Elsewhere,
            // Root's socket is served by root: that needs no question to an engine that may hang.
            DockerHost::Unix(socket) if std::fs::metadata(socket).is_ok_and(|m| m.uid() == 0) => Place::Here,
            _ if self.is_rootless().await? => Place::Rootless,
            DockerHost::Ssh(_) => Place::BySsh,
            DockerHost::Unix(_) => Place::Here,
        };
        Ok(way(place, container, port))
    }

    /// An engine that does not say is no reason to take a server for silent that was asked at an
    /// address without a route: that is an error.
    async fn is_rootless(&self) -> Result<bool, WorkloadError> {
        let ask = async || {
            let info = self
                .call(
                    "the question whether the engine is rootless",
                    self.deadline,
                    self.api.info(),
                )
                .await?;
            Ok(says_rootless(&info.security_options.unwrap_or_default()))
        };
        self.rootless.get_or_try_init(ask).await.copied()
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

    /// Bounds a request that changes something small. The engine does one thing at a time with a
    /// container: a health check that hardly gets a processor holds up all others.
    pub(super) fn for_a_change(&self) -> Duration {
        self.deadline.max(CHANGE)
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
}

/// Where an engine's networks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On this machine.
    Here,
    /// On another one to which ports are forwarded.
    BySsh,
    /// On another one of which only the engine is reached.
    Elsewhere,
    /// On this or another one that has no route to them.
    Rootless,
}

/// The kind of way to a port of a container.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// At this address, as seen from the engine's host.
    Direct(String, u16),
    /// From inside the container's network, where this is its address.
    Inside(String),
    None,
}

fn way(place: Place, container: &ContainerInfo, port: u16) -> Way {
    // A container on the host's own network has no address of its own. Of a rootless engine that
    // is another network than the host's.
    let shares_host = container.networks.contains_key("host");
    let own = container
        .address()
        .or_else(|| shares_host.then_some("127.0.0.1"))
        .map(str::to_owned);
    let published = || {
        let at = container.published.get(&format!("{port}/tcp"))?;
        let (host, port) = at.rsplit_once(':')?;
        Some(Way::Direct(host.to_owned(), port.parse().ok()?))
    };
    let inside = |own: Option<String>| own.filter(|_| container.is_running()).map(Way::Inside);
    let direct = |own: Option<String>| own.map(|address| Way::Direct(address, port));
    let found = match place {
        Place::Here => direct(own).or_else(published),
        Place::BySsh => direct(own),
        Place::Elsewhere => inside(own),
        Place::Rootless => published().or_else(|| inside(own)),
    };
    found.unwrap_or(Way::None)
}

fn says_rootless(options: &[String]) -> bool {
    options
        .iter()
        .flat_map(|o| o.split(','))
        .any(|o| o == "name=rootless")
}

fn over_socket(path: &str) -> Result<bollard::Docker, BollardError> {
    bollard::Docker::connect_with_unix(path, TRANSPORT_TIMEOUT_SECS, bollard::API_DEFAULT_VERSION)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn container(change: &serde_json::Value) -> ContainerInfo {
        let mut info = serde_json::json!({
            "id": "id", "name": "shop-redis-1", "image": "redis:7", "image-id": "sha256:aa", "status": "running",
            "exit-code": 0, "oom-killed": false, "error": "", "health": null, "started-at": null,
            "finished-at": null, "restart-count": 0, "stop-signal": "SIGTERM", "shm-size": 0, "memory-limit": 0,
            "networks": {"shop_default": "172.18.0.2"}, "published": {}, "mounts": [], "labels": {}
        });
        for (key, value) in change.as_object().into_iter().flatten() {
            info[key] = value.clone();
        }
        serde_json::from_value(info).unwrap()
    }

    #[test]
    fn a_rootless_engine_s_containers_are_never_asked_at_their_own_address() {
        let to = |place, change: serde_json::Value| way(place, &container(&change), 6379);
        let direct = |host: &str, port| Way::Direct(host.into(), port);
        let inside = || Way::Inside("172.18.0.2".into());
        let published = || serde_json::json!({"published": {"6379/tcp": "127.0.0.1:16379"}});
        let plain = || serde_json::json!({});
        let ended = || serde_json::json!({"status": "exited", "networks": {"shop_default": ""}});
        let on_host = || serde_json::json!({"networks": {"host": ""}});
        let none = || serde_json::json!({"networks": {}, "published": {"6379/tcp": "127.0.0.1:16379"}});
        for (place, change, expected) in [
            (Place::Here, published(), direct("172.18.0.2", 6379)),
            (Place::Here, on_host(), direct("127.0.0.1", 6379)),
            (Place::Here, none(), direct("127.0.0.1", 16379)),
            (Place::Here, ended(), Way::None),
            (Place::BySsh, published(), direct("172.18.0.2", 6379)),
            (Place::BySsh, none(), Way::None),
            (Place::Elsewhere, published(), inside()),
            (Place::Elsewhere, ended(), Way::None),
            (Place::Rootless, published(), direct("127.0.0.1", 16379)),
            (Place::Rootless, plain(), inside()),
            (Place::Rootless, on_host(), Way::Inside("127.0.0.1".into())),
            (Place::Rootless, ended(), Way::None),
        ] {
            assert_eq!(to(place, change.clone()), expected, "{place:?} {change}");
        }
        let says = |all: &[&str]| says_rootless(&all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(says(&[
            "name=seccomp,profile=builtin",
            "name=rootless",
            "name=cgroupns"
        ]));
        assert!(!says(&["name=seccomp,profile=/etc/name=rootless.json"]) && !says(&[]));
    }
}
