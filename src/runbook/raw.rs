//! The runbook exactly as it stands in the YAML file.
//!
//! These structs are the file format: the JSON Schema is generated from them, so every doc comment here is what an
//! editor shows to the person who writes a runbook. Parts that need no further decision (a table's policy, an
//! endpoint, the thresholds) are used unchanged by the validated [`Runbook`](super::Runbook); the others are turned
//! into it by `build`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::alerting::{Alerts, Notify, Thresholds};
use super::docker_host::DockerHost;
use super::duration;
use super::sessions::Sessions;
use super::text::{
    self, ColumnName, DatabaseName, HttpUrl, Percent, RoleName, ServiceName, SystemName, TableName,
};

/// A drctl runbook: the names, objectives and thresholds of one deployment. The procedures are in drctl.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "drctl runbook")]
pub struct Runbook {
    /// Version of this format. Always 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// The deployment's name. It is what the operator types for `--confirm`, and it labels everything that drctl creates.
    pub deployment: SystemName,
    /// How careful drctl must be. With `production` a plan that users notice wants the deployment's name typed, not only a yes. Faults are injected only where this says `lab` or `staging`.
    pub environment: Environment,
    /// Where the services run.
    pub platform: Platform,
    /// What the business was promised.
    pub objectives: Objectives,
    /// The services, by the name they have in the compose file.
    #[schemars(extend("minProperties" = 1))]
    pub services: BTreeMap<ServiceName, Service>,
    /// HTTP addresses probed as users see them, by a name of your choice.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, Endpoint>,
    /// A write and a read through the application, which prove the service after a recovery. Without it that proof is "not configured".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_check: Option<WriteCheck>,
    /// Where backups go and what they hold.
    pub backup: Backup,
    /// Limits beyond which `drctl check` warns. A limit that is not given is not checked.
    #[serde(default)]
    pub thresholds: Thresholds,
    /// When somebody is told of what `drctl check` finds, or of a `drctl backup` that fails.
    #[serde(default)]
    pub alerts: Alerts,
    /// How somebody is told of what `drctl check` finds, and of a `drctl backup` that fails and of the next good one. Each way is tried by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<Notify>,
    /// How long drctl waits before it gives up on one thing.
    #[serde(default)]
    pub deadlines: Deadlines,
}

/// How careful drctl must be with a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Environment {
    /// Real users. No fault is ever injected here. A plan that users notice, by a restart or a pause of writes, needs the deployment's name typed (`--confirm NAME`): `--yes` is not enough.
    Production,
    /// Nobody is hurt by an outage. Faults may be injected.
    Staging,
    /// Made to be broken. Faults may be injected.
    Lab,
}

impl Environment {
    /// Whether a fault may be injected into the deployment itself.
    #[must_use]
    pub fn allows_faults(self) -> bool {
        !matches!(self, Self::Production)
    }
}

/// Where the services run.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// Containers of a Docker engine.
    Docker(Docker),
}

/// A Docker engine and the compose project on it.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Docker {
    /// The engine's address: `unix:///path`, `ssh://[user@]host[:port]` or `tcp://host:port`. Default: `$DOCKER_HOST`, else the local socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<DockerHost>,
    /// TLS to a `tcp://` address. Without it the connection is neither encrypted nor is anybody's identity checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<DockerTls>,
    /// The compose project whose containers these are. Default: the deployment's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compose_project: Option<SystemName>,
}

/// PEM files for TLS to a Docker engine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DockerTls {
    /// Certificate of the authority that vouches for the engine; no other is trusted.
    #[schemars(with = "text::AbsolutePath", extend("examples" = ["/etc/drctl/docker/ca.pem"]))]
    pub ca: PathBuf,
    /// drctl's own certificate, where the engine asks for one. Needs `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<text::AbsolutePath>", extend("examples" = ["/etc/drctl/docker/cert.pem"]))]
    pub cert: Option<PathBuf>,
    /// The key to `cert`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<text::AbsolutePath>", extend("examples" = ["/etc/drctl/docker/key.pem"]))]
    pub key: Option<PathBuf>,
}

/// What the business was promised. Reports compare what was measured with these.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Objectives {
    /// Recovery time objective: how long an outage may last.
    #[serde(with = "duration::required")]
    #[schemars(with = "duration::DurationText")]
    pub rto: Duration,
    /// Recovery point objective: how much of the latest work may be lost.
    #[serde(with = "duration::required")]
    #[schemars(with = "duration::DurationText")]
    pub rpo: Duration,
    /// Availability in percent of the month, for example 99.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability: Option<Percent>,
}

/// One service of the deployment.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// What the service is, and with it which procedures apply.
    pub kind: ServiceKind,
    /// The container's name. Default: found by its compose project and service labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub container: Option<String>,
    /// Services that this one needs. They are started before it and stopped after it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<ServiceName>,
    /// Whether a second instance may be started beside it when one is not enough: it keeps no data of its own, and
    /// whoever sends it work finds it by its network name. Only for `kind: app`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scale_out: bool,
    /// Facts about the PostgreSQL server. Required for `kind: postgres`, refused otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresService>,
    /// Facts about the Redis server. Only for `kind: redis`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisService>,
}

/// What a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceKind {
    /// A PostgreSQL server.
    Postgres,
    /// A Redis server.
    Redis,
    /// An nginx in front of the application.
    Nginx,
    /// A program of your own.
    App,
}

/// Facts about a PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PostgresService {
    /// A superuser, as which drctl looks and recovers.
    pub admin_user: RoleName,
    /// The database to connect to for work on other databases.
    #[serde(default = "default_admin_database")]
    pub admin_database: DatabaseName,
    /// Where the superuser's password is found. Default: no password is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// The port the server listens on.
    #[serde(default = "default_postgres_port")]
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Host name or address. Default: the container's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub host: Option<String>,
    /// When a session that does nothing may be ended to free its connection slot.
    #[serde(default)]
    pub sessions: Sessions,
    /// The databases of the application. Databases that are not listed are backed up by a physical backup only.
    #[schemars(extend("minProperties" = 1))]
    pub databases: BTreeMap<DatabaseName, Database>,
}

/// One database of the application.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Database {
    /// The role as which the application connects. After a recovery drctl proves that this role can still connect and read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_user: Option<RoleName>,
    /// Tables about which drctl should know more than the catalogue tells, as `table` (schema public) or `schema.table`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<TableName, Table>,
    /// Questions whose answers show that the data makes sense. They are asked of a restored database before it is put into service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<Validation>,
}

/// What drctl should know about one table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Table {
    /// The timestamp column that tells the newest row. It shows a loss that no server tool sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<ColumnName>,
    /// Whether rows are only ever added. If so, fewer rows than before are evidence of a loss.
    #[serde(default)]
    pub append_only: bool,
    /// What happens to readable rows that are newer than the backup when the table is restored.
    #[serde(default)]
    pub salvage: Salvage,
    /// A column that holds the numbers a traffic writer was given an acknowledgement for. Only used to measure a drill's loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_number: Option<ColumnName>,
}

/// What happens to readable rows that are newer than the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Salvage {
    /// They are written to a file and counted, nothing is merged.
    #[default]
    Report,
    /// Rows whose primary key is missing in the restored table are inserted. Existing rows are never changed.
    InsertMissing,
}

/// A question to the database and the answer that a sound database gives.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Validation {
    /// What is claimed, in words: it is printed when the claim does not hold.
    #[schemars(length(min = 1))]
    pub name: String,
    /// One read-only query (`select` or `with`) that gives one row with one number.
    #[schemars(length(min = 1))]
    pub sql: String,
    /// The answer of a sound database.
    pub expect: Expect,
}

/// The expected answer of a validation query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// Exactly this number.
    Equals(i64),
    /// This number or more.
    AtLeast(i64),
    /// This number or less.
    AtMost(i64),
}

impl Expect {
    /// Whether an answer is the one of a sound database.
    #[must_use]
    pub fn holds(self, answer: i64) -> bool {
        match self {
            Self::Equals(n) => answer == n,
            Self::AtLeast(n) => answer >= n,
            Self::AtMost(n) => answer <= n,
        }
    }
}

/// Facts about a Redis server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RedisService {
    /// The port the server listens on.
    #[serde(default = "default_redis_port")]
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Where the password is found. Default: `REDIS_PASSWORD` in the environment of the service's container, if there is one; else no password is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// Key patterns (as in `SCAN MATCH`) of pure cache entries, which may be deleted to free memory. Without any, nothing is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 1)))]
    pub disposable_patterns: Vec<String>,
    /// How the application keeps its sessions. Without it, stuck sessions are not looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<UserSessions>,
    /// An address of the application that fills the cache when it gets a `POST`: asked after a recovery that had to start Redis empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_url: Option<HttpUrl>,
}

/// How the application keeps its sessions in Redis: a set of all of them that is counted against a limit, and one key for each.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct UserSessions {
    /// The set whose members are counted against the limit, for example `sessions:all`.
    #[schemars(length(min = 1))]
    pub index: String,
    /// What stands before a member's name in the key that exists as long as the session lives, for example `session:`.
    #[schemars(length(min = 1))]
    pub owner_prefix: String,
    /// How many sessions the application admits.
    #[schemars(range(min = 1))]
    pub limit: u64,
    /// The database that holds them.
    #[serde(default)]
    pub database: u32,
}

impl Default for RedisService {
    fn default() -> Self {
        Self {
            port: default_redis_port(),
            password: None,
            disposable_patterns: Vec::new(),
            sessions: None,
            warm_url: None,
        }
    }
}

/// Where a secret is found. The runbook never holds the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecretRef {
    /// The name of an environment variable of drctl itself.
    Env(#[schemars(with = "text::VariableName")] String),
    /// The absolute path of a file whose content, without the trailing newline, is the secret.
    File(#[schemars(with = "text::AbsolutePath", extend("examples" = ["/etc/drctl/password"]))] PathBuf),
    /// A program and its arguments, run without a shell, whose output without the trailing newline is the secret.
    Command(
        #[schemars(length(min = 1), inner(length(min = 1)), extend("examples" = [["pass", "show", "shop/db"]]))]
         Vec<String>,
    ),
    /// The name of a variable in the environment of the service's own container.
    ContainerEnv(#[schemars(with = "text::ContainerVariableName")] String),
}

/// An HTTP address and the answer of a sound service.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Endpoint {
    /// The address, as a user reaches it.
    pub url: HttpUrl,
    /// The status code of a sound service.
    #[serde(default = "default_status")]
    #[schemars(range(min = 100, max = 599))]
    pub expect_status: u16,
    /// How long to wait for the answer. Default: `deadlines.probe`, filled in when the runbook is loaded.
    #[serde(
        default,
        with = "duration::optional_deadline",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<duration::DeadlineText>")]
    pub timeout: Option<Duration>,
}

/// A write and a read through the application.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WriteCheck {
    /// The request that writes. Its answer is a JSON object.
    pub write: WriteRequest,
    /// The request that reads back what was written. `{id}` in its URL stands for the value of `id-field` in the write's answer.
    pub read: Endpoint,
    /// The field of the write's JSON answer that identifies what was written.
    #[serde(default = "default_id_field")]
    #[schemars(length(min = 1))]
    pub id_field: String,
}

/// The request that writes.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WriteRequest {
    /// The address, as a user reaches it.
    pub url: HttpUrl,
    /// The HTTP method.
    #[serde(default)]
    pub method: WriteMethod,
    /// The JSON text that is sent. Default: an empty body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The status code of a sound service.
    #[serde(default = "default_write_status")]
    #[schemars(range(min = 100, max = 599))]
    pub expect_status: u16,
    /// How long to wait for the answer. Default: `deadlines.probe`, filled in when the runbook is loaded.
    #[serde(
        default,
        with = "duration::optional_deadline",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<duration::DeadlineText>")]
    pub timeout: Option<Duration>,
}

/// The HTTP method of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum WriteMethod {
    /// POST
    #[default]
    Post,
    /// PUT
    Put,
    /// PATCH
    Patch,
}

/// Where backups go and what they hold.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Backup {
    /// An absolute path on the host. Each backup is a directory of its own below it.
    #[schemars(with = "text::BackupDirectory")]
    pub directory: PathBuf,
    /// How PostgreSQL is backed up.
    #[serde(default)]
    pub postgres: PostgresBackup,
    /// Percent by which a dump or a table may shrink against the previous backup. More is a failure: an empty dump is not a backup.
    #[serde(default = "default_verify_shrink")]
    pub verify_shrink: Percent,
    /// Which sets are kept when a new one has been made and verified, and by `drctl backup prune`. Without it none is ever removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

/// Which backup sets are kept. A set is kept when any of the rules wants it; hours, days, weeks (from Monday), months and years are those of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Keep {
    /// The newest sets, so many.
    pub last: u32,
    /// The newest set of an hour, for so many hours that have one.
    pub hourly: u32,
    /// The newest set of a day, for so many days that have one.
    pub daily: u32,
    /// The newest set of a week, for so many weeks that have one.
    pub weekly: u32,
    /// The newest set of a month, for so many months that have one.
    pub monthly: u32,
    /// The newest set of a year, for so many years that have one.
    pub yearly: u32,
}

/// How PostgreSQL is backed up.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PostgresBackup {
    /// Whether each listed database is dumped with pg_dump. Needed to restore one database or one table.
    #[serde(default = "yes")]
    pub logical: bool,
    /// Whether the whole server is copied with pg_basebackup. Needed to restore a server that no longer starts.
    #[serde(default = "yes")]
    pub physical: bool,
    /// How many tables are dumped or restored at once.
    #[serde(default = "default_jobs")]
    #[schemars(range(min = 1, max = 64))]
    pub jobs: u32,
}

impl Default for PostgresBackup {
    fn default() -> Self {
        Self {
            logical: true,
            physical: true,
            jobs: default_jobs(),
        }
    }
}

/// How long drctl waits before it gives up on one thing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Deadlines {
    /// One question to a service or to the engine.
    #[serde(default = "default_probe", with = "duration::deadline")]
    #[schemars(with = "duration::DeadlineText")]
    pub probe: Duration,
    /// One step of a plan, such as a restore.
    #[serde(default = "default_step", with = "duration::deadline")]
    #[schemars(with = "duration::DeadlineText")]
    pub step: Duration,
    /// Stopping a service cleanly before it is killed.
    #[serde(default = "default_stop", with = "duration::deadline")]
    #[schemars(with = "duration::DeadlineText")]
    pub stop: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            probe: default_probe(),
            step: default_step(),
            stop: default_stop(),
        }
    }
}

fn default_admin_database() -> DatabaseName {
    DatabaseName::postgres()
}

fn default_postgres_port() -> u16 {
    5432
}

fn default_redis_port() -> u16 {
    6379
}

fn default_status() -> u16 {
    200
}

fn default_write_status() -> u16 {
    201
}

fn default_id_field() -> String {
    "id".to_owned()
}

fn default_verify_shrink() -> Percent {
    Percent::HALF
}

fn yes() -> bool {
    true
}

fn default_jobs() -> u32 {
    2
}

fn default_probe() -> Duration {
    Duration::from_secs(3)
}

fn default_step() -> Duration {
    Duration::from_secs(30 * 60)
}

fn default_stop() -> Duration {
    Duration::from_secs(60)
}
