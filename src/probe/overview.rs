//! One look at a whole deployment: everything at the same time, each thing with a deadline of its own, so that what is
//! dead costs its own time and nobody else's.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::containers::{self, ContainerState};
use super::endpoints::{self, Answers};
use super::filesystems::{self, FileSystems};
use super::host::{self, Host};
use super::redis::observe;
use super::usage::{self, Usage};
use super::vitals::{self, Vitals};
use crate::backup::{Catalogue, Entry};
use crate::postgres::PgError;
use crate::redis::{ErrorKind, RedisInfo};
use crate::runbook::secret::DEADLINE as SECRET_DEADLINE;
use crate::runbook::{PostgresService, RedisService, Runbook, SecretRef};
use crate::system::{PostgresServer, RedisServer, System};

/// Between two readings of the processor counters: shorter says little, longer is waited for.
const CPU_WINDOW: Duration = Duration::from_millis(200);

/// A probe that runs into its own deadline says what it was waiting for; this one only ends it.
const SLACK: Duration = Duration::from_millis(250);

/// What came of one probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Known<T> {
    /// It answered.
    Good(T),
    /// It is certain that it does not work, and how.
    Failed(String),
    /// It could not be asked, which says nothing about it.
    Unknown(String),
    /// The runbook has nothing of the kind.
    NotConfigured,
}

impl<T> Known<T> {
    /// The answer, if there is one.
    pub fn good(&self) -> Option<&T> {
        match self {
            Self::Good(answer) => Some(answer),
            _ => None,
        }
    }
}

/// What a Redis server says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedisView {
    /// `INFO`.
    pub info: RedisInfo,
    /// User sessions, where the runbook says how they are kept.
    pub sessions: Option<u64>,
}

/// What the backup directory holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BackupView {
    /// The newest good set.
    pub label: String,
    /// The moment whose data it holds: when it was begun.
    pub taken_at: Timestamp,
    /// Its size.
    pub bytes: u64,
    /// Newer ones that are no good: `LABEL is damaged`.
    pub newer: Vec<String>,
}

/// All of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Overview {
    /// The deployment.
    pub deployment: String,
    /// When it was looked at.
    pub taken_at: Timestamp,
    /// Seconds that it took.
    pub seconds: f64,
    /// The engine: `Good` with its address, or why nothing is known of containers.
    pub engine: Known<String>,
    /// Containers by service; empty without an engine.
    pub containers: BTreeMap<String, ContainerState>,
    /// What running containers use, by service.
    pub usage: BTreeMap<String, Usage>,
    /// PostgreSQL servers by service.
    pub postgres: BTreeMap<String, Known<Vitals>>,
    /// Redis servers by service.
    pub redis: BTreeMap<String, Known<RedisView>>,
    /// File systems.
    pub file_systems: FileSystems,
    /// Endpoints by name.
    pub endpoints: BTreeMap<String, Answers>,
    /// This machine, where the engine is on it.
    pub host: Option<Host>,
    /// The last good backup.
    pub backup: Known<BackupView>,
    /// Seconds that each probe took, the slowest first.
    pub timings: Vec<(String, f64)>,
}

/// What to look at more closely.
#[derive(Debug, Clone, Copy)]
pub struct LookOptions {
    /// Measure what containers use of processors, which takes two readings.
    pub processors: bool,
    /// Requests to each endpoint.
    pub requests: usize,
}

/// What is known through the engine.
#[derive(Default)]
struct Inside {
    containers: BTreeMap<String, ContainerState>,
    usage: BTreeMap<String, Usage>,
    postgres: BTreeMap<String, Known<Vitals>>,
    redis: BTreeMap<String, Known<RedisView>>,
    file_systems: FileSystems,
    host: Option<Host>,
    timings: Vec<(String, f64)>,
}

/// Looks at everything at once. It never fails: what cannot be looked at says why.
pub async fn look(runbook: &Runbook, options: LookOptions) -> Overview {
    let began = Instant::now();
    let taken_at = Timestamp::now();
    let outside = timed("endpoints", endpoints::glance(runbook, options.requests));
    let directory = runbook.backup.directory.clone();
    let deployment = runbook.deployment.to_string();
    let backup = timed("backup", backup(directory, deployment, runbook.deadlines.probe));
    let engine = timed("engine", System::open(runbook.clone()));
    let inside = async {
        let (system, timing) = engine.await;
        match system {
            Ok(system) => {
                let mut inside = look_inside(&system, options).await;
                inside.timings.push(timing);
                (Known::Good(system.docker.host().to_owned()), inside)
            }
            Err(e) => {
                let mut inside = Inside {
                    host: host::look().await.filter(|_| is_here(runbook)),
                    ..Inside::default()
                };
                inside.timings.push(timing);
                let why = e.causes.first().map(|c| format!(": {c}")).unwrap_or_default();
                (Known::Unknown(format!("{}{why}", e.message)), inside)
            }
        }
    };
    let ((engine, mut inside), (endpoints, of_endpoints), (backup, of_backup)) =
        tokio::join!(inside, outside, backup);
    inside.timings.extend([of_endpoints, of_backup]);
    inside.timings.sort_by(|a, b| b.1.total_cmp(&a.1));
    Overview {
        deployment: runbook.deployment.to_string(),
        taken_at,
        seconds: began.elapsed().as_secs_f64(),
        engine,
        containers: inside.containers,
        usage: inside.usage,
        postgres: inside.postgres,
        redis: inside.redis,
        file_systems: inside.file_systems,
        endpoints,
        host: inside.host,
        backup,
        timings: inside.timings,
    }
}

/// Whether the engine would be on this machine.
fn is_here(runbook: &Runbook) -> bool {
    match &runbook.docker().host {
        Some(host) => matches!(host, crate::runbook::DockerHost::Unix(_)),
        None => std::env::var("DOCKER_HOST").map_or(true, |h| h.is_empty() || h.starts_with("unix://")),
    }
}

async fn timed<T>(name: &str, work: impl Future<Output = T>) -> (T, (String, f64)) {
    let began = Instant::now();
    let done = work.await;
    (done, (name.to_owned(), began.elapsed().as_secs_f64()))
}

/// Ends a probe after its deadline, whatever it is waiting for by then.
async fn bounded<T>(deadline: Duration, probe: impl Future<Output = Known<T>>) -> Known<T> {
    tokio::time::timeout(deadline + SLACK, probe)
        .await
        .unwrap_or_else(|_| Known::Failed(format!("no answer within {}", crate::event::seconds(deadline))))
}

async fn look_inside(system: &System, options: LookOptions) -> Inside {
    let deadline = system.runbook.deadlines.probe;
    let containers = async {
        let (containers, first) = timed("containers", look_at_containers(system, deadline)).await;
        let (used, disks) = tokio::join!(
            timed(
                "usage",
                usage_of(system, &containers, options.processors, deadline)
            ),
            timed("file systems", filesystems::look(system, &containers, deadline)),
        );
        (containers, used, disks, first)
    };
    let postgres = join_all(
        system
            .runbook
            .postgres_services()
            .map(|(name, _, config)| timed(name.as_str(), postgres(system, name.as_str(), config))),
    );
    let redis = join_all(
        system
            .runbook
            .redis_services()
            .map(|(name, _, config)| timed(name.as_str(), redis(system, name.as_str(), config))),
    );
    let host = async {
        if system.docker.is_local() {
            host::look().await
        } else {
            None
        }
    };
    let ((containers, used, disks, first), postgres, redis, host) =
        tokio::join!(containers, postgres, redis, host);
    let mut timings = vec![first, used.1, disks.1];
    let mut by_name = |all: Vec<(Known<Vitals>, (String, f64))>| {
        all.into_iter()
            .map(|(known, timing)| {
                timings.push(timing.clone());
                (timing.0, known)
            })
            .collect::<BTreeMap<_, _>>()
    };
    let postgres = by_name(postgres);
    let redis = redis
        .into_iter()
        .map(|(known, timing)| {
            timings.push(timing.clone());
            (timing.0, known)
        })
        .collect();
    Inside {
        containers,
        usage: used.0,
        postgres,
        redis,
        file_systems: disks.0,
        host,
        timings,
    }
}

async fn look_at_containers(system: &System, deadline: Duration) -> BTreeMap<String, ContainerState> {
    let services = system.runbook.services.keys().map(ToString::to_string);
    join_all(services.map(|name| async move {
        let looked = tokio::time::timeout(deadline, containers::one(system, &name)).await;
        let state = looked.unwrap_or_else(|_| {
            ContainerState::Unknown(format!(
                "the engine did not answer within {}",
                crate::event::seconds(deadline)
            ))
        });
        (name, state)
    }))
    .await
    .into_iter()
    .collect()
}

/// Memory from one reading of the counters, processors from two; not a number where there was only one.
async fn usage_of(
    system: &System,
    containers: &BTreeMap<String, ContainerState>,
    processors: bool,
    deadline: Duration,
) -> BTreeMap<String, Usage> {
    let running = containers.iter().filter_map(|(name, state)| {
        let info = &state.found()?.info;
        info.is_running().then_some((name, info))
    });
    join_all(running.map(|(name, info)| async move {
        let reading = async {
            let here = || system.docker.counters_here(&info.id);
            if let Some(before) = here() {
                if processors {
                    tokio::time::sleep(CPU_WINDOW).await;
                }
                return Some(usage::between(&before, &here()?, info));
            }
            // The engine takes a second for one reading. A second one is not worth the wait.
            let only = system.docker.counters(&info.id).await.ok()?;
            Some(Usage {
                cpus: f64::NAN,
                ..usage::between(&only, &only, info)
            })
        };
        let usage = tokio::time::timeout(deadline, reading).await.ok()??;
        Some((name.clone(), usage))
    }))
    .await
    .into_iter()
    .flatten()
    .collect()
}

/// The way in to a server. It has a time of its own, with that of a password that has to be fetched: as long as it is
/// not known the server was not asked, and nothing is known of it.
async fn way_in<S>(
    password: Option<&SecretRef>,
    probe: Duration,
    work: impl Future<Output = crate::error::Result<S>>,
) -> Result<S, String> {
    let deadline = match password {
        Some(SecretRef::Command(_) | SecretRef::File(_)) => probe + SECRET_DEADLINE,
        _ => probe,
    };
    match tokio::time::timeout(deadline + SLACK, work).await {
        Ok(done) => done.map_err(|e| one_line(&e)),
        Err(_) => Err(format!(
            "it was not asked: the way in was not known within {}",
            crate::event::seconds(deadline)
        )),
    }
}

async fn postgres(system: &System, service: &str, config: &PostgresService) -> Known<Vitals> {
    let probe = system.runbook.deadlines.probe;
    match way_in(config.password.as_ref(), probe, system.postgres(service)).await {
        Ok(server) => bounded(probe, ask_postgres(&server)).await,
        Err(why) => Known::Unknown(why),
    }
}

async fn ask_postgres(server: &PostgresServer) -> Known<Vitals> {
    let looked = match server.connect().await {
        Ok(client) => vitals::read(&client).await,
        Err(e) => Err(e),
    };
    match looked {
        Ok(vitals) => Known::Good(vitals),
        // We are not let in, which says nothing about others: class 28 is a refused login.
        Err(PgError::Server {
            sqlstate, message, ..
        }) if sqlstate.starts_with("28") || sqlstate == "42501" => {
            Known::Unknown(format!("drctl is not let in: {message} ({sqlstate})"))
        }
        Err(e) => Known::Failed(e.to_string()),
    }
}

async fn redis(system: &System, service: &str, config: &RedisService) -> Known<RedisView> {
    let probe = system.runbook.deadlines.probe;
    match way_in(config.password.as_ref(), probe, system.redis(service)).await {
        Ok(server) => bounded(probe, ask_redis(&server)).await,
        Err(why) => Known::Unknown(why),
    }
}

async fn ask_redis(server: &RedisServer) -> Known<RedisView> {
    let state = observe(server, false).await;
    if let Some(failure) = state.first_failure() {
        // A server that is full, loads or cannot save answers INFO all the same, and that says more.
        let says_more = state.info.is_some();
        let is_ours = [
            ErrorKind::WrongPassword,
            ErrorKind::PasswordNeeded,
            ErrorKind::NoPasswordSet,
            ErrorKind::NotPermitted,
        ]
        .contains(&failure.kind);
        if is_ours {
            return Known::Unknown(format!("drctl is not let in: {}", failure.text));
        }
        if !says_more {
            return Known::Failed(failure.text.clone());
        }
    }
    let Some(info) = state.info else {
        return Known::Unknown("it does not answer INFO".to_owned());
    };
    let sessions = match &server.config.sessions {
        None => None,
        Some(kept) => {
            let counted = async {
                let client = server.connect_to(&server.spec.to_database(kept.database)).await?;
                client.ask::<u64>(::redis::cmd("SCARD").arg(&kept.index)).await
            };
            counted.await.ok()
        }
    };
    Known::Good(RedisView { info, sessions })
}

fn one_line(e: &crate::error::Error) -> String {
    std::iter::once(&e.message)
        .chain(&e.causes)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(": ")
}

/// The directory may be on a file system that does not answer.
async fn backup(directory: PathBuf, deployment: String, deadline: Duration) -> Known<BackupView> {
    let shown = directory.display().to_string();
    let reading = tokio::task::spawn_blocking(move || Catalogue::open(&directory, &deployment).newest());
    match tokio::time::timeout(deadline, reading).await {
        Err(_) => Known::Unknown(format!(
            "the backup directory {shown} did not answer within {}",
            crate::event::seconds(deadline)
        )),
        Ok(Err(e)) => Known::Unknown(e.to_string()),
        Ok(Ok(Err(e))) => Known::Unknown(e.to_string()),
        Ok(Ok(Ok((None, newer)))) => Known::Failed(match newer.as_slice() {
            [] => format!("there is no backup in {shown}"),
            some => format!(
                "there is no good backup in {shown}: {}",
                in_words(some).join(", ")
            ),
        }),
        Ok(Ok(Ok((Some(set), newer)))) => Known::Good(BackupView {
            label: set.label.to_string(),
            taken_at: set.manifest.started,
            bytes: set.manifest.bytes,
            newer: in_words(&newer),
        }),
    }
}

/// What is newer than the last good set and no good; one that is being written just now looks the same as one that was
/// left, and is named as such.
fn in_words(entries: &[Entry]) -> Vec<String> {
    entries
        .iter()
        .map(|e| match e {
            Entry::Failed(set) => format!("{} failed its verification", set.label),
            other => format!("{} is {}", other.label(), other.state()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_password_is_waited_for_and_says_nothing_of_the_server() {
        let probe = Duration::from_millis(10);
        let command = SecretRef::Command(vec!["vault".into()]);
        let slow = || async {
            tokio::time::sleep(probe + SLACK * 2).await;
            Ok(())
        };
        assert_eq!(way_in(Some(&command), probe, slow()).await, Ok(()));
        let late = way_in(None, probe, slow()).await.unwrap_err();
        assert!(late.contains("was not asked"), "{late}");
    }
}
