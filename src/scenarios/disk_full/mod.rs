//! A full disk. What must grow fails: PostgreSQL ends itself when its log cannot grow and
//! cannot start again (`No space left on device`, seen with 6 MB free, because a segment takes
//! 16), Redis refuses writes because it cannot save, backups fail, containers do not start.
//!
//! What fills it is told with sizes, and what can be freed without losing anything is freed,
//! in this order and only until there is enough: backup sets that the runbook's own rules no
//! longer want, images of this deployment that nobody uses, logs after they were archived on
//! another disk. Then the servers are brought back, and both prove it by a write.
//!
//! Never freed: a volume, anything in `pg_wal`, a replication slot, anything of another
//! deployment. Where the safe things do not suffice nothing is begun: the largest ones are named
//! with the command that a person may decide on.
//!
//! None of it needs room: no container is created, and where the state directory is on the full
//! disk the journal is kept in memory and brought home later.

mod diagnose;
mod plan;
pub(super) mod recognise;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DetectOptions, Diagnosis, PlanRequest, Refusal, Scenario, known_service};
use crate::backup::{self, Catalogue};
use crate::error::Result;
use crate::incident::{Listing, StateDir};
use crate::plan::{Plan, Remedy};
use crate::private_dir::is_private;
use crate::probe::containers::ContainerState;
use crate::probe::disk::{self, Disks, FileSystem, Use};
use crate::probe::fills::{self, ContainerLog, Database, OldImage};
use crate::probe::observer::Observer;
use crate::probe::redis::RedisState;
use crate::runbook::Runbook;

/// Version of the persisted form.
pub const EVIDENCE_FORMAT: u32 = 1;

/// What walking through all backup sets may take beyond one question.
const WALK: Duration = Duration::from_secs(5);

/// What was observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// [`EVIDENCE_FORMAT`].
    pub format: u32,
    /// When.
    pub taken_at: Timestamp,
    /// The file systems.
    pub disks: Disks,
    /// The services' containers.
    pub containers: BTreeMap<String, ContainerState>,
    /// The PostgreSQL servers, or why one could not be looked at.
    pub databases: BTreeMap<String, std::result::Result<Database, String>>,
    /// The Redis servers, or why one could not be asked.
    pub caches: BTreeMap<String, std::result::Result<RedisState, String>>,
    /// The containers' logs, the largest first.
    pub logs: Vec<ContainerLog>,
    /// Images of the deployment without a name and a use.
    pub images: Vec<OldImage>,
    /// Its backups.
    pub backups: Backups,
    /// What recoveries keep until they are closed: incident, and what.
    pub kept: Vec<(String, String)>,
    /// Where a log could be archived: directories, the likeliest first.
    pub archives: Vec<Archive>,
}

/// The backups on a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Backups {
    /// The runbook has rules for what is kept.
    pub rules: bool,
    /// What they let go, the oldest first: label and bytes.
    pub old: Vec<(String, u64)>,
    /// Bytes of the sets that stay.
    pub kept_bytes: u64,
    /// How many those are.
    pub kept: usize,
    /// Bytes of the newest set.
    pub newest_bytes: u64,
    /// Why they could not be looked at.
    pub unreadable: Option<String>,
}

/// A directory on some disk of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Archive {
    /// The directory.
    pub path: String,
    /// Its file system.
    pub file_system: String,
    /// Bytes free there.
    pub free: u64,
}

/// A disk without room.
#[derive(Debug)]
pub struct DiskFull;

impl Scenario for DiskFull {
    const NAME: &'static str = "disk-full";
    const ABOUT: &'static str = "A disk of the deployment, of its backups or of drctl is full";
    const REMEDIES: &'static [Remedy] = &[Remedy::FreeSpace];
    const CAUSES: &'static [&'static str] = &[
        "db-down",
        "redis-failure",
        "service-crash",
        "outage",
        "network-partition",
        "connection-exhaustion",
        "service-overload",
        "stuck-sessions",
    ];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
        known_service(&world.system.runbook, options)?;
        let state = StateDir::resolve(options.state_dir.as_deref())?;
        Ok(observe(world, &state).await)
    }

    fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
        diagnose::diagnose(ev, rb)
    }

    fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> std::result::Result<Plan, Refusal> {
        plan::plan(ev, rb, request)
    }
}

async fn observe(world: &Observer<'_>, state: &StateDir) -> Evidence {
    let system = world.system;
    let (containers, caches) = tokio::join!(world.containers(), world.redis());
    let names = system.runbook.postgres_services().map(|(n, ..)| n.to_string());
    let databases = join_all(names.map(|name| async move {
        let looked = match system.postgres(&name).await {
            Ok(server) => Ok(fills::database(system, &server).await),
            Err(e) => Err(e.message),
        };
        (name, looked)
    }));
    let project = system.runbook.docker().compose_project.to_string();
    let (disks, databases, logs, images) = tokio::join!(
        disk::look(system, containers, Some(state.path())),
        databases,
        fills::logs_of(system, containers),
        system.docker.nameless_images(&project),
    );
    let (runbook, memory) = (system.runbook.clone(), state.clone());
    // Sets are walked through: a network file system may not answer.
    let reading = tokio::task::spawn_blocking(move || (backups(&runbook, &memory), kept(&runbook, &memory)));
    let deadline = system.runbook.deadlines.probe + WALK;
    let (backups, kept) = match tokio::time::timeout(deadline, reading).await {
        Ok(Ok(read)) => read,
        _ => (
            Backups {
                unreadable: Some("the directory does not answer".into()),
                ..Backups::default()
            },
            Vec::new(),
        ),
    };
    Evidence {
        format: EVIDENCE_FORMAT,
        taken_at: Timestamp::now(),
        disks,
        containers: containers.clone(),
        databases: databases.into_iter().collect(),
        caches: caches.clone(),
        logs,
        images: images
            .unwrap_or_default()
            .into_iter()
            .map(|i| OldImage {
                id: i.id,
                bytes: i.bytes,
                own_bytes: i.own_bytes,
            })
            .collect(),
        backups,
        kept,
        archives: archives(&system.runbook, state),
    }
}

fn backups(runbook: &Runbook, state: &StateDir) -> Backups {
    let looked = match backup::look(runbook, state, None) {
        Ok(looked) => looked,
        Err(e) => {
            return Backups {
                unreadable: Some(e.message),
                ..Backups::default()
            };
        }
    };
    let newest_bytes = Catalogue::open(&looked.directory, runbook.deployment.as_str())
        .sets()
        .ok()
        .and_then(|mut sets| sets.pop())
        .map_or(0, |s| s.manifest.bytes);
    let stays = || looked.sets.iter().filter(|d| !d.goes());
    Backups {
        rules: runbook.backup.keep.is_some(),
        old: looked
            .goes()
            .into_iter()
            .map(|g| (g.label.to_string(), g.bytes))
            .collect(),
        kept_bytes: stays().map(|d| d.bytes).sum(),
        kept: stays().count(),
        newest_bytes,
        unreadable: None,
    }
}

fn kept(runbook: &Runbook, state: &StateDir) -> Vec<(String, String)> {
    Listing::read(state)
        .incidents
        .into_iter()
        .filter(|i| i.plan.deployment == runbook.deployment.as_str() && i.is_open())
        .filter(|i| !i.plan.kept.is_empty() && !i.plan.discard.is_empty())
        .map(|i| (i.id().to_owned(), i.plan.kept.clone()))
        .collect()
}

/// Directories that survive a reboot; which of them is on a disk with room the plan decides.
fn archives(runbook: &Runbook, state: &StateDir) -> Vec<Archive> {
    let deployment = runbook.deployment.as_str();
    [
        state.path().join("logs"),
        runbook.backup.directory.join("logs"),
        PathBuf::from(format!("/var/tmp/drctl-{deployment}-logs")),
    ]
    .into_iter()
    // Everybody can make a directory in /var/tmp: one that is not ours alone is not used.
    .filter(|path| is_private(path).map_or_else(|e| e.kind() == std::io::ErrorKind::NotFound, |()| true))
    .filter_map(|path| {
        let room = disk::room(&path).ok().filter(|r| !r.read_only)?;
        Some(Archive {
            path: path.display().to_string(),
            file_system: room.device.to_string(),
            free: room.free,
        })
    })
    .collect()
}

impl Evidence {
    /// The PostgreSQL servers whose files lie on a file system.
    fn servers_on<'a>(&'a self, fs: &'a FileSystem) -> impl Iterator<Item = (&'a str, &'a Database)> {
        self.databases.iter().filter_map(|(name, looked)| {
            let looked = looked.as_ref().ok()?;
            fs.holds_data_of(name).then_some((name.as_str(), looked))
        })
    }

    /// The Redis servers whose files lie on a file system.
    fn caches_on<'a>(
        &'a self,
        fs: &'a FileSystem,
    ) -> impl Iterator<Item = (&'a str, Option<&'a RedisState>)> {
        self.caches
            .iter()
            .filter(|(name, _)| fs.holds_data_of(name))
            .map(|(name, state)| (name.as_str(), state.as_ref().ok()))
    }
}

impl FileSystem {
    fn holds_data_of(&self, name: &str) -> bool {
        self.places
            .iter()
            .any(|p| matches!(&p.what, Use::Volume { service, .. } if service == name))
    }

    fn holds(&self, wanted: &Use) -> bool {
        self.places.iter().any(|p| &p.what == wanted)
    }
}
