//! `drctl backup`: the procedure, one call per stage.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;

use super::catalogue::{Catalogue, CatalogueError, Entry, PARTIAL, Set};
use super::manifest::{self, Manifest, PhysicalPart, PostgresPart};
use super::preflight::{self, Surveyed, server_error};
use super::run::Run;
use super::seal::{digests, seal};
use super::steps::Steps;
use super::{files, logical, physical, restore_text, shape};
use crate::error::{Error, Kind, Result};
use crate::event::{self, Event, Phase, SharedReporter};
use crate::incident::{Lock, LockError, StateDir, backup_lock};
use crate::postgres::Lsn;
use crate::probe::facts::{self, DatabaseFacts};
use crate::system::System;
use crate::workload::LABEL_DEPLOYMENT;

/// What a run is to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Dump each database.
    pub logical: bool,
    /// Copy each server.
    pub physical: bool,
    /// Believe a set although it shrank: the operator says that the data did.
    pub accept_shrink: bool,
}

/// What a run would make, and what it would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// Where the set would go.
    pub directory: PathBuf,
    /// The parts in words.
    pub parts: Vec<String>,
    /// Bytes needed and free.
    pub room: preflight::Room,
}

/// Says what [`create`] would do; writes nothing.
///
/// # Errors
/// What [`create`] would refuse.
pub async fn forecast(system: &System, options: Options) -> Result<Forecast> {
    let directory = &system.runbook.backup.directory;
    let previous = Catalogue::open(directory, system.deployment())
        .sets()
        .map_err(catalogue_error)?
        .pop();
    let servers = survey(system, options).await?;
    preflight::far_room(system, &servers, options).await?;
    let room = preflight::room(
        directory,
        &servers,
        previous.as_ref().map(|s| &s.manifest),
        options,
    )?;
    let mut parts = Vec::new();
    for s in &servers {
        for (database, size) in s.databases.iter().filter(|_| options.logical) {
            parts.push(format!("dump of database {database} ({})", event::bytes(*size)));
        }
        if options.physical {
            parts.push(format!(
                "base backup of {} ({})",
                s.server.service,
                event::bytes(s.cluster_bytes)
            ));
        }
    }
    Ok(Forecast {
        directory: directory.clone(),
        parts,
        room,
    })
}

/// Makes a backup set. Whatever happens, helpers and unfinished files are gone when this
/// returns, and no older set was touched. When `interrupt` completes first, the run ends
/// with [`Kind::Interrupted`].
///
/// # Errors
/// `Locked`, `Refused` before anything is written; `Unreachable`, `FailedUndone` with
/// everything removed; `BackupDamaged` with the set kept aside when it was complete and
/// not to be believed.
pub async fn create(
    system: &System,
    state: &StateDir,
    options: Options,
    reporter: &SharedReporter,
    interrupt: impl Future<Output = ()>,
) -> Result<Set> {
    let lock = Lock::acquire(state, &backup_lock(system.deployment()), "backup").map_err(|e| locked(&e))?;
    let directory = &system.runbook.backup.directory;
    let servers = survey(system, options).await?;
    preflight::far_room(system, &servers, options).await?;
    let catalogue = Catalogue::open(directory, system.deployment());
    let room = {
        let previous = catalogue.sets().map_err(catalogue_error)?.pop();
        preflight::room(
            directory,
            &servers,
            previous.as_ref().map(|s| &s.manifest),
            options,
        )?
    };
    files::make_private_dir(directory).map_err(|e| unwritable(directory, &e))?;
    // A run with another state directory would not see our lock, and would take our
    // unfinished set for remains.
    let _directory_lock = lock_directory(directory)?;
    sweep(system, &catalogue, reporter).await?;

    let label = catalogue.fresh_label(Timestamp::now()).map_err(catalogue_error)?;
    let run = Run {
        system,
        staging: directory.join(format!("{label}{PARTIAL}")),
        label,
        reporter: reporter.clone(),
        lock: Arc::new(Mutex::new(lock)),
    };
    run.tell(&Event::Phase {
        phase: Phase::Backup,
        subject: format!("{} as {}", system.deployment(), run.label),
    });
    run.tell(&Event::Note {
        text: format!(
            "about {} needed, {} free in {}",
            event::bytes(room.physical + room.logical),
            event::bytes(room.free),
            directory.display()
        ),
    });
    files::make_private_dir(&run.staging).map_err(|e| unwritable(&run.staging, &e))?;
    // Dropping the work half-way ends its helpers: their leases close.
    let made = tokio::select! {
        made = make(&run, &catalogue, &servers, options) => made,
        () = interrupt => Err(interrupted(&run)),
    };
    if made.is_err() {
        discard(&run).await;
    }
    made
}

fn interrupted(run: &Run<'_>) -> Error {
    Error::new(Kind::Interrupted, format!("backup {} was interrupted", run.label))
        .untouched("the server and every older backup; what this run had written was removed")
        .next("drctl backup")
}

/// Removes what a failed or interrupted run has started and written. What cannot be
/// removed is said, and the next run tries again.
async fn discard(run: &Run<'_>) {
    if let Err(e) = remove_helpers(run.system).await {
        run.warn(format!("helpers of this run may still be there: {e}"));
    }
    let staging = run.staging.clone();
    let removed = tokio::task::spawn_blocking(move || files::remove_tree(&staging)).await;
    if !matches!(removed, Ok(Ok(()))) {
        run.warn(format!(
            "{} could not be removed; the next backup will try again",
            run.staging.display()
        ));
    }
}

async fn survey(system: &System, options: Options) -> Result<Vec<Surveyed>> {
    let names: Vec<String> = system
        .runbook
        .postgres_services()
        .map(|(n, ..)| n.to_string())
        .collect();
    let mut servers = Vec::new();
    for name in &names {
        // The contract's path is for the one server that most deployments have.
        let directory = if names.len() == 1 {
            "postgres".to_owned()
        } else {
            format!("postgres-{}", files::component(name))
        };
        servers.push(preflight::survey(system, name, directory, options).await?);
    }
    if servers.is_empty() {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "the runbook of {} names nothing that can be backed up",
                system.deployment()
            ),
        )
        .untouched("everything"));
    }
    if !options.physical && (!options.logical || servers.iter().all(|s| s.databases.is_empty())) {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "the set would hold neither a dump nor a base backup of {}",
                system.deployment()
            ),
        )
        .untouched("everything: no set is written that could not be restored from")
        .next("drctl backup --physical-only    # or turn `logical` or `physical` on in the runbook"));
    }
    Ok(servers)
}

/// We hold the lock: every unfinished set and every backup helper of this deployment is
/// what a killed run left.
async fn sweep(system: &System, catalogue: &Catalogue, reporter: &SharedReporter) -> Result<()> {
    remove_helpers(system).await?;
    for entry in catalogue.list().map_err(catalogue_error)? {
        if let Entry::Partial { path, .. } = entry {
            reporter.event(&Event::Note {
                text: format!("removing {}, which a run before left unfinished", path.display()),
            });
            let target = path.clone();
            tokio::task::spawn_blocking(move || files::remove_tree(&target))
                .await
                .unwrap_or(Ok(()))
                .map_err(|e| unwritable(&path, &e))?;
        }
    }
    Ok(())
}

async fn remove_helpers(system: &System) -> Result<()> {
    let mine = format!("{LABEL_DEPLOYMENT}={}", system.deployment());
    let prefix = format!("drctl-{}-backup-", system.deployment());
    for (id, name) in system.docker.list(&[mine]).await? {
        // `spawn_helper` names a helper after its deployment and its purpose.
        if name.starts_with(&prefix) {
            system.docker.remove(&id).await?;
            system
                .docker
                .wait_stopped(&id, std::time::Duration::from_secs(10))
                .await?;
        }
    }
    Ok(())
}

/// From the empty staging directory to the set.
async fn make(run: &Run<'_>, catalogue: &Catalogue, servers: &[Surveyed], options: Options) -> Result<Set> {
    let previous = catalogue
        .baseline(&run.label, options.logical)
        .map_err(catalogue_error)?
        .map(|s| s.manifest);
    let started = Timestamp::now();
    let mut postgres = BTreeMap::new();
    let mut steps = Steps::new(run, servers, options);
    for surveyed in servers {
        let part = Box::pin(save_server(run, surveyed, previous.as_ref(), options, &mut steps)).await?;
        postgres.insert(surveyed.server.service.clone(), part);
    }
    let mut manifest = Manifest {
        format: manifest::FORMAT,
        deployment: run.system.deployment().to_owned(),
        label: run.label.clone(),
        started,
        finished: Timestamp::now(),
        drctl_version: env!("CARGO_PKG_VERSION").to_owned(),
        bytes: 0,
        skew_seconds: skew(&postgres),
        postgres,
        files: Vec::new(),
    };
    steps.start("digests and manifest");
    let text = restore_text::render(&manifest, servers);
    let path = run.staging.join("RESTORE.md");
    files::write_private(&path, text.as_bytes()).map_err(|e| run.io(&path, &e))?;
    manifest.files = digests(run, &manifest).await?;
    // The same once more in the form that `sha256sum --check` reads.
    let sums: Vec<String> = manifest
        .files
        .iter()
        .map(|f| format!("{}  {}", f.sha256, f.path))
        .collect();
    let path = run.staging.join("SHA256SUMS");
    files::write_private(&path, (sums.join("\n") + "\n").as_bytes()).map_err(|e| run.io(&path, &e))?;
    manifest.bytes = files::measure(&run.staging).0;
    let problems = shape::problems(&manifest, previous.as_ref(), &run.system.runbook);
    let believed = problems.is_empty() || options.accept_shrink;
    let set = seal(run, catalogue.directory(), manifest, believed)?;
    steps.finish(&format!(
        "{} in {}",
        event::bytes(set.manifest.bytes),
        set.path.display()
    ));
    if problems.is_empty() {
        return Ok(set);
    }
    if believed {
        for problem in problems {
            run.warn(format!("{problem} (accepted by --accept-shrink)"));
        }
        return Ok(set);
    }
    Err(Error::new(
        Kind::BackupDamaged,
        format!("this backup is not to be believed: {}", problems.join("; ")),
    )
    .untouched(format!(
        "every older backup; this one was kept aside as {}, and is not used for restores",
        set.path.display()
    ))
    .next("drctl diagnose    # did the data go, or was it never there?")
    .next("drctl backup --accept-shrink    # only when the data is smaller on purpose"))
}

async fn save_server(
    run: &Run<'_>,
    surveyed: &Surveyed,
    previous: Option<&Manifest>,
    options: Options,
    steps: &mut Steps<'_, '_>,
) -> Result<PostgresPart> {
    let server = &surveyed.server;
    if surveyed.has_work_dir && options.physical {
        run.warn(format!(
            "{} of {} holds the files of an incident or of a drill: they are copied too (drctl incident list; drctl drill heal)",
            server.work_dir(""),
            server.container.name
        ));
    }
    let directory = run.staging.join(&surveyed.directory);
    files::make_private_dir(&directory).map_err(|e| run.io(&directory, &e))?;
    let mut logical = BTreeMap::new();
    let mut facts: BTreeMap<String, DatabaseFacts> = BTreeMap::new();
    let mut globals = None;
    if options.logical {
        for (database, size) in &surveyed.databases {
            steps.start(&format!("dump of database {database}"));
            let dump = Box::pin(logical::dump(run, surveyed, database, *size, previous));
            let dumped = if options.physical || globals.is_some() {
                dump.await?
            } else {
                // Roles take a moment and no throughput: beside the dump they cost nothing.
                let (dumped, roles) = tokio::try_join!(dump, logical::globals(run, surveyed))?;
                globals = Some(roles);
                dumped
            };
            steps.finish(&logical::summary(&dumped.part));
            logical.insert(database.clone(), dumped.part);
            facts.insert(database.clone(), dumped.facts);
        }
    }
    if options.logical && !options.physical && globals.is_none() {
        globals = Some(logical::globals(run, surveyed).await?);
    }
    let mut base: Option<PhysicalPart> = None;
    if options.physical {
        steps.start(&format!("base backup of {}", server.service));
        // Roles take a moment and no throughput: beside the copy they cost nothing.
        let (copied, roles) = tokio::join!(physical::copy(run, surveyed), logical::globals(run, surveyed));
        let copied = copied?;
        globals = Some(roles?);
        steps.finish(&format!(
            "{} in {} files, verified, WAL {} to {}",
            event::bytes(copied.bytes),
            copied.files,
            copied.start_lsn,
            copied.end_lsn
        ));
        base = Some(copied);
    }
    if !options.logical {
        for (database, config) in &server.config.databases {
            let found = facts::collect(
                server,
                database.as_str(),
                &config.tables,
                false,
                run.system.runbook.deadlines.step,
            )
            .await
            .map_err(|e| server_error(&server.service, "the facts for the manifest", &e))?;
            facts.insert(database.to_string(), found);
        }
    }
    let end_lsn = current_lsn(surveyed).await?;
    Ok(PostgresPart {
        server_version: surveyed.version.clone(),
        server_version_number: surveyed.version_number,
        system_identifier: surveyed.system_identifier.clone(),
        timeline: surveyed.timeline,
        wal_segment_size: surveyed.wal_segment_size,
        data_checksums: surveyed.data_checksums,
        image: server.container.image.clone(),
        image_id: server.container.image_id.clone(),
        data_dir: server.data_dir.clone(),
        owner: surveyed.owner.clone(),
        start_lsn: surveyed.lsn,
        end_lsn,
        globals,
        logical,
        physical: base,
        facts,
    })
}

async fn current_lsn(surveyed: &Surveyed) -> Result<Lsn> {
    let fail = |e| server_error(&surveyed.server.service, "the last look after the backup", &e);
    let client = surveyed.server.connect().await.map_err(fail)?;
    let rows = client
        .rows("select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end")
        .await
        .map_err(fail)?;
    Ok(rows.first().and_then(|r| r.number(0)).unwrap_or_default())
}

/// Seconds between the earliest and the latest moment that the parts show.
fn skew(postgres: &BTreeMap<String, PostgresPart>) -> f64 {
    let moments: Vec<Timestamp> = postgres
        .values()
        .flat_map(|p| {
            p.logical
                .values()
                .map(|l| l.snapshot_at)
                .chain(p.physical.as_ref().map(|b| b.finished))
        })
        .collect();
    match (moments.iter().min(), moments.iter().max()) {
        (Some(first), Some(last)) => last.duration_since(*first).as_secs_f64(),
        _ => 0.0,
    }
}

pub(super) fn lock_directory(directory: &Path) -> Result<File> {
    let file = File::open(directory).map_err(|e| unwritable(directory, &e))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::new(
            Kind::Locked,
            format!(
                "another run, with another state directory, is writing to {}",
                directory.display()
            ),
        )
        .untouched("everything")),
        // A network file system without locks: the state directory's lock has to do.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

pub(super) fn locked(e: &LockError) -> Error {
    match e {
        LockError::State(_) => Error::new(Kind::Internal, e.to_string())
            .untouched("everything: nothing was written")
            .next("drctl --state-dir DIR backup    # a directory that can be written"),
        _ => Error::new(Kind::Locked, e.to_string())
            .untouched("everything: the other run goes on")
            .next("drctl backup list    # when it has ended"),
    }
}

pub(super) fn unwritable(path: &Path, e: &std::io::Error) -> Error {
    Error::new(
        Kind::Refused,
        format!("{} cannot be written: {e}", path.display()),
    )
    .untouched("the server and every older backup")
    .next(format!("ls -ld {}", path.parent().unwrap_or(path).display()))
}

/// A catalogue's error at the boundary.
#[must_use]
#[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
pub fn catalogue_error(e: CatalogueError) -> Error {
    let kind = match &e {
        CatalogueError::NotALabel(_) | CatalogueError::Absent { .. } => Kind::Usage,
        CatalogueError::Unusable { .. } => Kind::BackupDamaged,
        CatalogueError::Empty { .. } => Kind::CouldNotVerify,
        CatalogueError::Unreadable { .. } | CatalogueError::Foreign { .. } => Kind::Refused,
    };
    Error::new(kind, e.to_string())
        .untouched("everything: nothing was written")
        .next("drctl backup list")
}
