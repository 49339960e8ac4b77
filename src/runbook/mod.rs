//! The runbook: a deployment's names, objectives and thresholds, read from YAML and checked as a whole.
//!
//! This is the only module that knows YAML. A file goes through four stages: bounded reading, a tree of values with
//! their positions, the JSON Schema that is generated from [`raw`], and the checks that a schema cannot express. Every
//! problem found on the way is collected, so that one run shows the operator all of them.

pub mod alerting;
mod check;
mod docker_host;
pub mod duration;
mod load;
mod locate;
mod mask;
pub mod model;
mod node;
mod problem;
pub mod raw;
mod schema;
pub mod secret;
mod semantic;
mod sessions;
mod show;
mod suggest;
pub mod text;

pub use alerting::{Alerts, CriticalThresholds, Maintenance, Notify, Thresholds};
pub use docker_host::{DockerHost, SshAddress};
pub use duration::{format_duration, parse_duration};
pub use load::{MAX_BYTES, load, parse};
pub use locate::{LookedAt, NotFound, locate};
pub use model::{ClientCertificate, Docker, DockerTls, PlatformKind, Runbook, Service, ServiceKind};
pub use problem::{Invalid, Problem, ProblemKind};
pub use raw::{
    Backup, Database, Deadlines, Endpoint, Environment, Expect, Keep, Objectives, PostgresBackup,
    PostgresService, RedisService, Salvage, SecretRef, Table, UserSessions, Validation, WriteCheck,
    WriteMethod, WriteRequest,
};
pub use schema::schema;
pub use secret::{SecretError, SecretFailure};
pub use sessions::Sessions;
pub use show::{render, to_json};
pub use text::{
    BadText, ColumnName, DatabaseName, HttpUrl, Percent, RoleName, ServiceName, SystemName, TableName, WebUrl,
};

#[cfg(test)]
mod tests;
