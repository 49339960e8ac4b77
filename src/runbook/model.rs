//! The validated runbook: what the rest of drctl works with.
//!
//! A value of these types has passed every check: each name that refers to a service finds it, there is no dependency
//! cycle, and a service has the facts that its kind needs. Defaults are filled in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::docker_host::DockerHost;
use super::raw::{
    self, Backup, Deadlines, Endpoint, Environment, Objectives, PostgresService, RedisService, Thresholds,
    WriteCheck,
};
use super::text::{ServiceName, SystemName};

/// One deployment, as its runbook describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Runbook {
    /// The file it was read from.
    pub source: PathBuf,
    /// The name typed for `--confirm`, and the label of everything that drctl creates.
    pub deployment: SystemName,
    /// How careful drctl must be.
    pub environment: Environment,
    /// Where the services run.
    pub platform: PlatformKind,
    /// What the business was promised.
    pub objectives: Objectives,
    /// The services by name.
    pub services: BTreeMap<ServiceName, Service>,
    /// HTTP addresses by name.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// A write and a read through the application, if one is configured.
    pub write_check: Option<WriteCheck>,
    /// Where backups go and what they hold.
    pub backup: Backup,
    /// Limits beyond which `check` warns.
    pub thresholds: Thresholds,
    /// How long drctl waits for one thing.
    pub deadlines: Deadlines,
}

/// Where the services run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlatformKind {
    /// Containers of a Docker engine.
    Docker(Docker),
}

/// A Docker engine and the compose project on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Docker {
    /// The engine's address. `None` means `$DOCKER_HOST`, else the local socket.
    pub host: Option<DockerHost>,
    /// TLS to a `tcp://` address.
    pub tls: Option<DockerTls>,
    /// The compose project whose containers these are.
    pub compose_project: SystemName,
}

/// PEM files for TLS to a Docker engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerTls {
    /// The only authority that is trusted.
    pub ca: PathBuf,
    /// How drctl identifies itself.
    pub client: Option<ClientCertificate>,
}

/// A certificate with its key, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and those between it and the authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl DockerTls {
    fn from_raw(raw: raw::DockerTls) -> Option<Self> {
        let client = match (raw.cert, raw.key) {
            (Some(cert), Some(key)) => Some(ClientCertificate { cert, key }),
            (None, None) => None,
            _ => return None,
        };
        Some(Self { ca: raw.ca, client })
    }

    /// The three files where Docker's own client keeps them: `ca.pem`, `cert.pem`, `key.pem`.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            ca: directory.join("ca.pem"),
            client: Some(ClientCertificate {
                cert: directory.join("cert.pem"),
                key: directory.join("key.pem"),
            }),
        }
    }
}

/// One service.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// The container's name. `None` means: found by its compose project and service labels.
    pub container: Option<String>,
    /// Services that this one needs.
    pub depends_on: Vec<ServiceName>,
    /// Whether a second instance may be started beside it.
    pub scale_out: bool,
    /// What the service is, with the facts that its kind needs.
    pub kind: ServiceKind,
}

/// What a service is.
#[derive(Debug, Clone, PartialEq)]
pub enum ServiceKind {
    /// A PostgreSQL server.
    Postgres(PostgresService),
    /// A Redis server.
    Redis(RedisService),
    /// An nginx in front of the application.
    Nginx,
    /// A program of the deployment's own.
    App,
}

impl ServiceKind {
    /// The kind as it is written in the runbook.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Redis(_) => "redis",
            Self::Nginx => "nginx",
            Self::App => "app",
        }
    }
}

impl Runbook {
    /// The Docker engine and compose project.
    #[must_use]
    pub fn docker(&self) -> &Docker {
        let PlatformKind::Docker(docker) = &self.platform;
        docker
    }

    /// The service of this name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    /// Every PostgreSQL server.
    pub fn postgres_services(&self) -> impl Iterator<Item = (&ServiceName, &Service, &PostgresService)> {
        self.services
            .iter()
            .filter_map(|(name, service)| match &service.kind {
                ServiceKind::Postgres(postgres) => Some((name, service, postgres)),
                _ => None,
            })
    }

    /// Every Redis server.
    pub fn redis_services(&self) -> impl Iterator<Item = (&ServiceName, &Service, &RedisService)> {
        self.services
            .iter()
            .filter_map(|(name, service)| match &service.kind {
                ServiceKind::Redis(redis) => Some((name, service, redis)),
                _ => None,
            })
    }

    /// The services that need `name`, directly or through others, in the order in which they must be stopped:
    /// a service comes before everything that it depends on. They are started in the reverse order.
    #[must_use]
    pub fn dependents<'a>(&'a self, name: &str) -> Vec<&'a ServiceName> {
        let mut order = Vec::new();
        self.visit_dependents(name, &mut BTreeSet::new(), &mut order);
        order
    }

    /// All services, each after everything that it depends on.
    #[must_use]
    pub fn start_order(&self) -> Vec<&ServiceName> {
        let mut order = Vec::new();
        for name in self.services.keys() {
            self.visit_needed(name, &mut order);
        }
        order
    }

    /// Depth first: what a service needs is listed before it. There is no cycle (checked on load).
    fn visit_needed<'a>(&'a self, name: &'a ServiceName, order: &mut Vec<&'a ServiceName>) {
        if order.contains(&name) {
            return;
        }
        for needed in self.services.get(name).into_iter().flat_map(|s| &s.depends_on) {
            self.visit_needed(needed, order);
        }
        order.push(name);
    }

    /// Depth first: whatever needs a service is listed before the service itself. There is no cycle (checked on load),
    /// and a service is visited once.
    fn visit_dependents<'a>(
        &'a self,
        name: &str,
        seen: &mut BTreeSet<&'a str>,
        order: &mut Vec<&'a ServiceName>,
    ) {
        for (dependent, service) in &self.services {
            if service.depends_on.iter().any(|needed| needed.as_str() == name)
                && seen.insert(dependent.as_str())
            {
                self.visit_dependents(dependent.as_str(), seen, order);
                order.push(dependent);
            }
        }
    }

    /// Fills in the defaults that depend on other values. `None` if a service lacks the facts of its kind, which the
    /// checks before this have excluded.
    pub(super) fn from_raw(mut raw: raw::Runbook, source: PathBuf) -> Option<Self> {
        let probe = raw.deadlines.probe;
        for endpoint in raw
            .endpoints
            .values_mut()
            .chain(raw.write_check.as_mut().map(|check| &mut check.read))
        {
            endpoint.timeout.get_or_insert(probe);
        }
        if let Some(check) = &mut raw.write_check {
            check.write.timeout.get_or_insert(probe);
        }
        let raw::Platform::Docker(docker) = raw.platform;
        let services = raw
            .services
            .into_iter()
            .map(|(name, service)| Some((name, Service::from_raw(service)?)))
            .collect::<Option<_>>()?;
        Some(Self {
            source,
            platform: PlatformKind::Docker(Docker {
                host: docker.host,
                tls: match docker.tls {
                    Some(tls) => Some(DockerTls::from_raw(tls)?),
                    None => None,
                },
                compose_project: docker.compose_project.unwrap_or_else(|| raw.deployment.clone()),
            }),
            deployment: raw.deployment,
            environment: raw.environment,
            objectives: raw.objectives,
            services,
            endpoints: raw.endpoints,
            write_check: raw.write_check,
            backup: raw.backup,
            thresholds: raw.thresholds,
            deadlines: raw.deadlines,
        })
    }

    /// The runbook in the file's shape with every default written out.
    pub(super) fn to_raw(&self) -> raw::Runbook {
        let docker = self.docker();
        raw::Runbook {
            version: 1,
            deployment: self.deployment.clone(),
            environment: self.environment,
            platform: raw::Platform::Docker(raw::Docker {
                host: docker.host.clone(),
                tls: docker.tls.as_ref().map(|tls| raw::DockerTls {
                    ca: tls.ca.clone(),
                    cert: tls.client.as_ref().map(|c| c.cert.clone()),
                    key: tls.client.as_ref().map(|c| c.key.clone()),
                }),
                compose_project: Some(docker.compose_project.clone()),
            }),
            objectives: self.objectives.clone(),
            services: self
                .services
                .iter()
                .map(|(name, service)| (name.clone(), service.to_raw()))
                .collect(),
            endpoints: self.endpoints.clone(),
            write_check: self.write_check.clone(),
            backup: self.backup.clone(),
            thresholds: self.thresholds.clone(),
            deadlines: self.deadlines.clone(),
        }
    }
}

impl Service {
    fn from_raw(raw: raw::Service) -> Option<Self> {
        let kind = match raw.kind {
            raw::ServiceKind::Postgres => ServiceKind::Postgres(raw.postgres?),
            raw::ServiceKind::Redis => ServiceKind::Redis(raw.redis.unwrap_or_default()),
            raw::ServiceKind::Nginx => ServiceKind::Nginx,
            raw::ServiceKind::App => ServiceKind::App,
        };
        Some(Self {
            container: raw.container,
            depends_on: raw.depends_on,
            scale_out: raw.scale_out,
            kind,
        })
    }

    fn to_raw(&self) -> raw::Service {
        let (kind, postgres, redis) = match &self.kind {
            ServiceKind::Postgres(postgres) => (raw::ServiceKind::Postgres, Some(postgres.clone()), None),
            ServiceKind::Redis(redis) => (raw::ServiceKind::Redis, None, Some(redis.clone())),
            ServiceKind::Nginx => (raw::ServiceKind::Nginx, None, None),
            ServiceKind::App => (raw::ServiceKind::App, None, None),
        };
        raw::Service {
            kind,
            container: self.container.clone(),
            depends_on: self.depends_on.clone(),
            scale_out: self.scale_out,
            postgres,
            redis,
        }
    }
}
