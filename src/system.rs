//! A runbook and the services it names, resolved to what can be talked to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;

use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, ConnectSpec, PgError};
use crate::redis::{Client as RedisClient, ConnectSpec as RedisSpec, RedisError};
use crate::runbook::{DockerTls, PostgresService, RedisService, Runbook, SecretRef, ServiceName};
use crate::workload::{ContainerInfo, Docker, HelperNetwork, HelperSpec, Reach, WorkloadError};

/// Where PostgreSQL keeps its data when the container does not say otherwise.
const DEFAULT_PGDATA: &str = "/var/lib/postgresql/data";
/// Directory beside the data in which drctl prepares a new cluster and keeps an old one.
/// Inside the data directory when that is itself a mount point: the only place from
/// which a rename, rather than a copy, brings it into service.
pub const WORK_DIR: &str = ".drctl";

/// A deployment that can be talked to.
#[derive(Debug, Clone)]
pub struct System {
    /// The runbook.
    pub runbook: Arc<Runbook>,
    /// Its engine.
    pub docker: Docker,
}

/// A PostgreSQL service, resolved: its container as it is now, and how to get in.
#[derive(Debug, Clone)]
pub struct PostgresServer {
    /// The service's name in the runbook.
    pub service: String,
    /// What the runbook says of it.
    pub config: PostgresService,
    /// Its container.
    pub container: ContainerInfo,
    /// Data directory as the container sees it.
    pub data_dir: String,
    /// As the administrator, to the administration database, read-only.
    pub admin: ConnectSpec,
}

/// A Redis service, resolved: its container as it is now, and how to get in.
#[derive(Debug, Clone)]
pub struct RedisServer {
    /// The service's name in the runbook.
    pub service: String,
    /// What the runbook says of it.
    pub config: RedisService,
    /// Its container when this was made: after a stop, start or re-creation make another one.
    pub container: ContainerInfo,
    /// Address, password and deadline, to database 0.
    pub spec: RedisSpec,
}

impl System {
    /// Connects to the runbook's engine.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] within the probe deadline.
    pub async fn open(runbook: Runbook) -> Result<Self> {
        let configured = runbook.docker().host.as_ref().map(ToString::to_string);
        let host = configured.or_else(|| std::env::var("DOCKER_HOST").ok().filter(|h| !h.is_empty()));
        let tls = match runbook.docker().host {
            Some(_) => runbook.docker().tls.clone(),
            None => runbook.docker().tls.clone().or_else(tls_of_environment),
        };
        let docker = Docker::connect(host.as_deref(), tls.as_ref(), runbook.deadlines.probe).await?;
        Ok(Self {
            runbook: Arc::new(runbook),
            docker,
        })
    }

    /// The deployment's name, as it labels what drctl creates.
    #[must_use]
    pub fn deployment(&self) -> &str {
        self.runbook.deployment.as_str()
    }

    /// The container of a service of the runbook.
    ///
    /// # Errors
    /// `NotFound`, or the engine's trouble.
    pub async fn container(&self, service: &str) -> Result<ContainerInfo, WorkloadError> {
        match self.runbook.service(service).and_then(|s| s.container.as_deref()) {
            Some(name) => self.docker.inspect(name).await,
            None => {
                self.docker
                    .find_service(self.runbook.docker().compose_project.as_str(), service)
                    .await
            }
        }
    }

    /// The PostgreSQL service called `name`, or the only one.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there is none of that name, or several and no name.
    pub fn postgres_service(&self, name: Option<&str>) -> Result<&ServiceName> {
        let all = self.runbook.postgres_services().map(|(n, ..)| n).collect();
        self.choose("PostgreSQL", all, name)
    }

    /// A PostgreSQL service with its container and its way in.
    ///
    /// # Errors
    /// The engine's trouble, a container that does not exist, a secret that cannot be
    /// read. A server that does not run is not an error here.
    pub async fn postgres(&self, service: &str) -> Result<PostgresServer> {
        let config = self
            .runbook
            .postgres_services()
            .find(|(n, ..)| n.as_str() == service)
            .map(|(_, _, p)| p.clone())
            .ok_or_else(|| Error::new(Kind::Usage, format!("{service} is not a PostgreSQL service")))?;
        let container = self.existing_container(service).await?;
        let password = match &config.password {
            Some(reference) => {
                let whose = format!("{} on {service}", config.admin_user);
                Some(resolve(reference, &container, &whose).await?)
            }
            None => container.env_var("POSTGRES_PASSWORD").map(SecretString::from),
        };
        let Reach {
            host,
            port,
            socket_dir,
        } = self
            .reach(config.host.as_deref(), config.port, &container)
            .await?;
        let data_dir = data_dir(&container).to_owned();
        Ok(PostgresServer {
            service: service.to_owned(),
            admin: ConnectSpec {
                host,
                port,
                socket_dir,
                user: config.admin_user.to_string(),
                password,
                database: config.admin_database.to_string(),
                read_only: true,
                deadline: self.runbook.deadlines.probe,
            },
            config,
            container,
            data_dir,
        })
    }

    /// The Redis service called `name`, or the only one.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there is none of that name, or several and no name.
    pub fn redis_service(&self, name: Option<&str>) -> Result<&ServiceName> {
        self.choose(
            "Redis",
            self.runbook.redis_services().map(|(n, ..)| n).collect(),
            name,
        )
    }

    /// A Redis service with its container and its way in. When the runbook names no password
    /// and the container's environment has a `REDIS_PASSWORD`, that is tried.
    ///
    /// # Errors
    /// As [`Self::postgres`].
    pub async fn redis(&self, service: &str) -> Result<RedisServer> {
        let config = self
            .runbook
            .redis_services()
            .find(|(n, ..)| n.as_str() == service)
            .map(|(_, _, r)| r.clone())
            .ok_or_else(|| Error::new(Kind::Usage, format!("{service} is not a Redis service")))?;
        let container = self.existing_container(service).await?;
        let password = match &config.password {
            Some(reference) => Some(resolve(reference, &container, service).await?),
            None => container
                .env_var("REDIS_PASSWORD")
                .filter(|p| !p.is_empty())
                .map(SecretString::from),
        };
        let Reach {
            host,
            port,
            socket_dir,
        } = self.reach(None, config.port, &container).await?;
        Ok(RedisServer {
            service: service.to_owned(),
            spec: RedisSpec {
                host,
                port,
                socket_dir,
                password,
                password_optional: config.password.is_none(),
                database: 0,
                deadline: self.runbook.deadlines.probe,
            },
            config,
            container,
        })
    }

    /// The service called `name` of those there are, or the only one.
    fn choose<'a>(
        &self,
        kind: &str,
        all: Vec<&'a ServiceName>,
        name: Option<&str>,
    ) -> Result<&'a ServiceName> {
        let listed = || all.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
        let message = match (name, all.as_slice()) {
            (Some(wanted), _) => match all.iter().find(|n| n.as_str() == wanted) {
                Some(found) => return Ok(found),
                None => format!(
                    "the runbook has no {kind} service {wanted:?} (it has: {})",
                    listed()
                ),
            },
            (None, [only]) => return Ok(only),
            (None, []) => format!("the runbook of {} names no {kind} service", self.deployment()),
            (None, _) => format!(
                "the runbook has several {kind} services: choose one of {} with --service",
                listed()
            ),
        };
        Err(Error::new(Kind::Usage, message))
    }

    /// The container of a service; that there is none is an error with a way out.
    async fn existing_container(&self, service: &str) -> Result<ContainerInfo> {
        match self.container(service).await {
            Err(e @ WorkloadError::NotFound { .. }) => Err(Error::new(
                Kind::Unreachable,
                format!("service {service} has no container: {e}"),
            )
            .untouched("everything")
            .next("docker compose up -d    # create the deployment's containers")
            .next("drctl runbook show      # is the Compose project's name right?")),
            other => Ok(other?),
        }
    }

    /// Where a server is reached from here: as configured, or as its engine is reached. One
    /// that does not run, or is cut off, is nowhere, which is no error.
    async fn reach(
        &self,
        configured: Option<&str>,
        port: u16,
        container: &ContainerInfo,
    ) -> Result<Reach, WorkloadError> {
        let at = |host: &str| Reach {
            host: host.to_owned(),
            port,
            socket_dir: None,
        };
        if let Some(host) = configured {
            return Ok(at(host));
        }
        match self.docker.reach(self.deployment(), container, port).await {
            Err(WorkloadError::NotFound { .. }) => Ok(at("")),
            other => other,
        }
    }

    /// Labels that find everything drctl created for one run of this deployment.
    #[must_use]
    pub fn labels(&self, run: &str) -> Vec<String> {
        vec![
            format!("{}={}", crate::workload::LABEL_DEPLOYMENT, self.deployment()),
            format!("{}={run}", crate::workload::LABEL_RUN),
        ]
    }
}

/// The data directory of a PostgreSQL container, as it sees it itself.
#[must_use]
pub fn data_dir(container: &ContainerInfo) -> &str {
    container
        .env_var("PGDATA")
        .unwrap_or(DEFAULT_PGDATA)
        .trim_end_matches('/')
}

/// As Docker's own client: `$DOCKER_TLS_VERIFY` asks for TLS, with the files in
/// `$DOCKER_CERT_PATH`, else in `~/.docker`.
fn tls_of_environment() -> Option<DockerTls> {
    std::env::var_os("DOCKER_TLS_VERIFY").filter(|v| !v.is_empty())?;
    let directory = std::env::var_os("DOCKER_CERT_PATH")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    Some(DockerTls::in_directory(&directory))
}

/// The secret behind a reference; `whose` it is, for the error.
async fn resolve(reference: &SecretRef, container: &ContainerInfo, whose: &str) -> Result<SecretString> {
    reference.resolve(&container.env).await.map_err(|e| {
        Error::new(Kind::Runbook, format!("the password of {whose} cannot be read"))
            .because(&e)
            .untouched("everything")
    })
}

impl RedisServer {
    /// Connects to database 0.
    ///
    /// # Errors
    /// [`RedisError`]; a container that does not run is `NoConnection`.
    pub async fn connect(&self) -> Result<RedisClient, RedisError> {
        self.connect_to(&self.spec).await
    }

    /// Connects with a spec derived from [`Self::spec`].
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_to(&self, spec: &RedisSpec) -> Result<RedisClient, RedisError> {
        if !self.container.is_running() {
            return Err(RedisError::NoConnection {
                address: spec.address(),
                cause: format!("container {} is not running", self.container.name),
            });
        }
        RedisClient::connect(spec).await
    }
}

impl PostgresServer {
    /// Connects as the administrator, read-only, to the administration database.
    ///
    /// # Errors
    /// [`PgError`]; a container that does not run is `NoConnection`.
    pub async fn connect(&self) -> Result<Client, PgError> {
        self.connect_to(&self.admin).await
    }

    /// Connects with a spec derived from [`Self::admin`].
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_to(&self, spec: &ConnectSpec) -> Result<Client, PgError> {
        if !self.container.is_running() {
            return Err(PgError::NoConnection {
                address: format!("{}:{}", spec.host, spec.port),
                cause: format!("container {} is not running", self.container.name),
            });
        }
        Client::connect(spec).await
    }

    /// A helper of the server's own image that shares its network: the server is
    /// 127.0.0.1 there, and `PGPASSWORD`, `PGUSER`, `PGHOST`, `PGPORT` are set.
    #[must_use]
    pub fn client_helper(&self, deployment: &str, run: &str, purpose: &str, argv: &[&str]) -> HelperSpec {
        let mut spec = HelperSpec::new(deployment, run, purpose, &self.container.image_id, argv);
        spec.network = HelperNetwork::Container(self.container.id.clone());
        spec.env = vec![
            ("PGHOST".into(), "127.0.0.1".into()),
            ("PGPORT".into(), self.config.port.to_string()),
            ("PGUSER".into(), self.config.admin_user.to_string()),
            ("PGCONNECT_TIMEOUT".into(), "10".into()),
        ];
        if let Some(password) = &self.admin.password {
            spec.secrets.push(("PGPASSWORD".into(), password.clone()));
        }
        spec
    }

    /// A helper of the server's own image with the server's mounts and no network: for
    /// work on the files.
    #[must_use]
    pub fn files_helper(
        &self,
        deployment: &str,
        run: &str,
        purpose: &str,
        read_only: bool,
        argv: &[&str],
    ) -> HelperSpec {
        let mut spec = HelperSpec::new(deployment, run, purpose, &self.container.image_id, argv);
        spec.volumes_from = Some((self.container.id.clone(), read_only));
        spec.env = vec![("PGDATA".into(), self.data_dir.clone())];
        spec
    }

    /// Where the files of one run live beside the data.
    #[must_use]
    pub fn work_dir(&self, run: &str) -> String {
        format!("{}/{WORK_DIR}/{run}", self.data_dir)
    }

    /// How long the server may take to stop cleanly: never less than a minute.
    #[must_use]
    pub fn stop_grace(&self, configured: Duration) -> Duration {
        configured.max(Duration::from_secs(10))
    }
}
