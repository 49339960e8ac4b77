//! Looks at a database server from every side at once and writes down what is there. Nothing
//! is changed, and nothing is concluded: a probe that failed is evidence like any other.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use tokio::time::Instant;

use super::evidence::{
    BackupEvidence, BaseEvidence, Check, Connection, DatabaseEvidence, EVIDENCE_FORMAT, EmptyPages, Evidence,
    LogicalEnd, LogicalLink, RelationFinding, RelationKind, SlotFacts,
};
use super::silent::of_this_cluster;
use crate::backup::{Catalogue, Entry, Manifest};
use crate::error::Error;
use crate::event::{Event, SharedReporter};
use crate::postgres::{self, PgError};
use crate::probe::amcheck::{self, AmcheckOptions};
use crate::probe::facts::DatabaseFacts;
use crate::probe::observer::Observer;
use crate::probe::relations::{PAGE, block_and_path, file_path, is_damage, merge};
use crate::probe::{connection, counts, facts, logs, slots};
use crate::runbook::Database;
use crate::scenarios::DetectOptions;
use crate::system::{PostgresServer, System};

/// Pages in one file of a relation, 1 GiB in the default build.
const SEGMENT_BLOCKS: u64 = 131_072;
/// Sessions that look at one database: two check its structure, one counts.
const SESSIONS_PER_DATABASE: usize = 3;

/// Observes a database server. Read-only, bounded, and complete in the sense that each part of
/// the evidence says what was seen or why nothing was.
///
/// # Errors
/// No such service, an engine that cannot be reached, a service without a container, a secret
/// that cannot be read. A server that is down is not an error.
pub async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence, Error> {
    let (system, reporter) = (world.system, world.reporter);
    let taken_at = Timestamp::now();
    let began = Instant::now();
    let service = system.postgres_service(options.service.as_deref())?.to_string();
    let server = system.postgres(&service).await?;
    let probe = system.runbook.deadlines.probe;
    let deadline = if options.deep {
        system.runbook.deadlines.step
    } else {
        probe
    };
    reporter.event(&Event::Note {
        text: format!("container {} is {}", server.container.name, status_word(&server)),
    });

    let (log, look, seen, (backups, unusable_backups)) = tokio::join!(
        logs::read(&system.docker, &server.container),
        world.files(&server),
        sessions(&server, options.deep, deadline, reporter),
        backups(system, &service),
    );
    let log = log.unwrap_or_else(|e| {
        reporter.event(&Event::Warning {
            text: format!("the server's log was not read: {e}"),
        });
        Vec::new()
    });
    if let Err(e) = &look.files {
        reporter.event(&Event::Warning {
            text: format!("the data directory was not looked at: {e}"),
        });
    }
    let Sessions {
        connection,
        slots,
        present,
        logical,
        mut databases,
    } = seen;
    // A file of another cluster has the same name and other pages.
    let control = look.control.as_ref().ok().filter(|c| !c.checksum_mismatch);
    for pages in databases.values_mut().flat_map(|d| &mut d.empty_pages) {
        pages.filled_in = filled_in(pages, of_this_cluster(&backups, control));
    }
    Ok(Evidence {
        format: EVIDENCE_FORMAT,
        taken_at,
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        deep: options.deep,
        service,
        container: server.container,
        log,
        connection,
        control: look.control,
        files: look.files,
        slots,
        databases,
        present,
        logical,
        backups,
        unusable_backups,
    })
}

/// The newest base backup that has data where the server has pages of zeros. The path
/// carries the file's number, which changes with every rewrite of the table.
fn filled_in<'a>(
    pages: &EmptyPages,
    mut backups: impl Iterator<Item = &'a BackupEvidence>,
) -> Option<String> {
    use std::os::unix::fs::FileExt;
    let (label, base) = backups.find_map(|b| Some((&b.label, b.base.as_ref()?)))?;
    let filled = pages.blocks.iter().any(|block| {
        // A relation is split into files of 1 GiB.
        let (segment, within) = (block / SEGMENT_BLOCKS, block % SEGMENT_BLOCKS);
        let suffix = if segment == 0 {
            String::new()
        } else {
            format!(".{segment}")
        };
        let mut page = vec![0_u8; usize::try_from(PAGE).unwrap_or_default()];
        std::fs::File::open(format!("{}/{}{suffix}", base.path, pages.path))
            .and_then(|f| f.read_exact_at(&mut page, within * PAGE))
            .is_ok_and(|()| page.iter().any(|b| *b != 0))
    });
    filled.then(|| label.clone())
}

fn status_word(server: &PostgresServer) -> String {
    let mut text = serde_json::to_value(server.container.status)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default();
    if let Some(health) = &server.container.health {
        text = format!("{text} ({health})");
    }
    text
}

/// What sessions have shown.
struct Sessions {
    connection: Connection,
    slots: Option<SlotFacts>,
    present: Vec<String>,
    logical: Vec<LogicalLink>,
    databases: BTreeMap<String, DatabaseEvidence>,
}

/// Every database but the templates: which of them is it, when the runbook's is gone?
const DATABASES: &str = "select datname from pg_catalog.pg_database where not datistemplate order by 1";

/// Who fetches from a database, and what a database fetches. A temporary slot is gone with the
/// session that made it.
const LOGICAL: &str = "\
    select d.datname, s.subname, true from pg_catalog.pg_subscription s \
      join pg_catalog.pg_database d on d.oid = s.subdbid \
    union all select database, slot_name, false from pg_catalog.pg_replication_slots \
      where slot_type = 'logical' and not temporary order by 1, 2";

/// Everything that needs a session.
async fn sessions(
    server: &PostgresServer,
    deep: bool,
    deadline: Duration,
    reporter: &SharedReporter,
) -> Sessions {
    let (connection, client) = connection::question(server.connect().await).await;
    let slots = match &client {
        Some(client) => slots::read(client).await.ok(),
        None => None,
    };
    let present = match &client {
        Some(client) => client.rows(DATABASES).await.unwrap_or_default(),
        None => Vec::new(),
    };
    let present = present.iter().map(|r| r.text(0).to_owned()).collect();
    let logical = match &client {
        Some(client) => client.rows(LOGICAL).await.unwrap_or_default(),
        None => Vec::new(),
    };
    let logical = logical.iter().map(|r| LogicalLink {
        database: r.text(0).to_owned(),
        name: r.text(1).to_owned(),
        end: if r.is_true(2) {
            LogicalEnd::Subscription
        } else {
            LogicalEnd::Slot
        },
    });
    let logical = logical.collect();
    drop(client);
    reporter.event(&Event::Note {
        text: match &connection {
            Connection::Open { .. } => format!("{} lets {} in", server.service, server.admin.user),
            Connection::Refused { message, .. } => format!("{} refuses: {message}", server.service),
            Connection::Closed { cause } => format!("{} cannot be connected to: {cause}", server.service),
            Connection::Silent => format!("{} accepts and does not answer", server.service),
        },
    });
    // One database may be lost while the administrator's is well, and the other way round; a
    // server that nobody gets into is not asked again for each.
    let unreachable = matches!(connection, Connection::Closed { .. } | Connection::Silent);
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let at_once = (cores * 2 / SESSIONS_PER_DATABASE).max(1);
    // Boxed: the closure's lifetimes are too general for the compiler otherwise.
    let looks: Vec<BoxFuture<'_, (String, DatabaseEvidence)>> = server
        .config
        .databases
        .iter()
        .map(|(name, config)| {
            let connection = connection.clone();
            async move {
                let found = if unreachable {
                    nothing(connection)
                } else {
                    database(server, name.as_str(), config, deep, deadline).await
                };
                (name.to_string(), found)
            }
            .boxed()
        })
        .collect();
    let databases = futures_util::stream::iter(looks)
        .buffer_unordered(at_once)
        .collect()
        .await;
    Sessions {
        connection,
        slots,
        present,
        logical,
        databases,
    }
}

fn nothing(connection: Connection) -> DatabaseEvidence {
    DatabaseEvidence {
        connection,
        checksum_failures: None,
        examined: 0,
        unfinished: 0,
        not_examined: Vec::new(),
        findings: Vec::new(),
        facts: None,
        empty_pages: Vec::new(),
    }
}

async fn database(
    server: &PostgresServer,
    name: &str,
    config: &Database,
    deep: bool,
    deadline: Duration,
) -> DatabaseEvidence {
    let spec = server.admin.to_database(name);
    let (connection, client) = connection::question(server.connect_to(&spec).await).await;
    let mut found = nothing(connection);
    let Some(client) = client else {
        // No session comes about on a catalogue that cannot be read.
        if let Connection::Refused { sqlstate, message } = &found.connection {
            found.findings.extend(catalogue_damage(sqlstate, message));
        }
        return found;
    };
    let failures = "select checksum_failures from pg_catalog.pg_stat_database \
                    where datname = pg_catalog.current_database()";
    found.checksum_failures = client
        .value(failures)
        .await
        .ok()
        .flatten()
        .and_then(|v| v.parse().ok());
    drop(client);

    // The quick look must be over before the deadline, and not just its last statement.
    let budget = if deep { deadline } else { deadline * 3 / 4 };
    let structure = AmcheckOptions {
        relations: None,
        heap_all_indexed: true,
        parent_check: false,
        borrow_pageinspect: deep,
        deadline: budget,
        workers: 2,
    };
    let rows = async {
        let until = Instant::now() + budget;
        let collected =
            tokio::time::timeout(budget, facts::collect(server, name, &config.tables, deep, budget)).await;
        let collected = collected.unwrap_or_else(|_| {
            Err(PgError::Timeout {
                address: format!("{}:{}", spec.host, spec.port),
                what: "the counting of rows".into(),
                deadline: budget,
            })
        });
        let left = until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(200));
        let compared = counts::compare(&spec, &config.tables, collected.as_ref().ok(), deep, left);
        // A server that stops answering in the middle of it.
        let compared = tokio::time::timeout(left + Duration::from_secs(1), compared).await;
        (collected, compared)
    };
    let (checked, (collected, compared)) =
        tokio::join!(amcheck::check_database(server, name, &structure), rows);

    match checked {
        Ok(report) => {
            found.examined = report.examined;
            found.unfinished = report.unfinished;
            found.findings.extend(report.findings);
            found.not_examined.extend(report.not_examined);
        }
        Err(e) => {
            found.not_examined.push(("every relation".into(), e.to_string()));
            if is_damage(&e) {
                found
                    .findings
                    .extend(catalogue_damage(e.sqlstate().unwrap_or_default(), &e.to_string()));
            }
        }
    }
    match compared {
        Ok(Ok(report)) => {
            found.findings.extend(report.findings);
            found.not_examined.extend(report.not_examined);
            found.empty_pages.extend(report.empty_pages);
        }
        Ok(Err(e)) => found
            .not_examined
            .push(("rows against indexes".into(), e.to_string())),
        Err(_) => found.not_examined.push((
            "rows against indexes".into(),
            "the server stopped answering".into(),
        )),
    }
    match collected {
        Ok(facts) => {
            unreadable(&facts, &mut found);
            found.facts = Some(facts);
        }
        Err(e) => found.not_examined.push(("row counts".into(), e.to_string())),
    }
    found.findings = merge(found.findings);
    found
}

/// The catalogue itself cannot be read. Its relations have fixed numbers, so that a few can be
/// named although they cannot be looked up (`pg_class.h` and its like in the server's sources).
fn catalogue_damage(sqlstate: &str, message: &str) -> Option<RelationFinding> {
    if !postgres::is_damage(sqlstate, message) {
        return None;
    }
    let (block, path) = block_and_path(message)
        .map(|(b, p)| (Some(b), p.to_owned()))
        .or_else(|| Some((None, file_path(message)?.to_owned())))
        .unwrap_or_default();
    let (relation, kind) = match path.rsplit('/').next() {
        Some("1259") => ("pg_catalog.pg_class".to_owned(), RelationKind::Heap),
        Some("1249") => ("pg_catalog.pg_attribute".to_owned(), RelationKind::Heap),
        Some("1255") => ("pg_catalog.pg_proc".to_owned(), RelationKind::Heap),
        Some("1247") => ("pg_catalog.pg_type".to_owned(), RelationKind::Heap),
        Some("2662" | "2663") => ("pg_catalog.pg_class".to_owned(), RelationKind::Index),
        _ => (format!("pg_catalog ({path})"), RelationKind::Heap),
    };
    Some(RelationFinding {
        table: relation.clone(),
        relation,
        kind,
        check: Check::FullRead,
        sqlstate: Some(sqlstate.to_owned()),
        message: message.to_owned(),
        blocks: block.into_iter().collect(),
        rows_missing: None,
    })
}

/// Tables whose rows could not be counted. The structure check has usually said it already,
/// with the blocks.
fn unreadable(facts: &DatabaseFacts, found: &mut DatabaseEvidence) {
    for fact in &facts.relations {
        let Some(problem) = &fact.problem else { continue };
        let table = fact.qualified();
        let sqlstate = problem
            .split_once(' ')
            .and_then(|(_, rest)| rest.split_once(':'))
            .map(|(code, _)| code.to_owned())
            .filter(|code| code.len() == 5);
        let damage = sqlstate
            .as_deref()
            .is_some_and(|c| postgres::is_damage(c, problem));
        if !damage {
            found.not_examined.push((table, problem.clone()));
            continue;
        }
        let place = block_and_path(problem);
        let path = place.map(|(_, path)| path).or_else(|| file_path(problem));
        // A lost index keeps its table from being read at all: the planner opens every index.
        let culprit = facts
            .relations
            .iter()
            .find(|r| r.path.is_some() && r.path.as_deref() == path)
            .unwrap_or(fact);
        let relation = culprit.qualified();
        if found.findings.iter().any(|f| f.relation == relation) {
            continue;
        }
        found.findings.push(RelationFinding {
            relation,
            kind: match culprit.kind {
                facts::RelationKind::Index => RelationKind::Index,
                facts::RelationKind::Toast => RelationKind::Toast,
                _ => RelationKind::Heap,
            },
            table,
            check: Check::FullRead,
            sqlstate,
            message: problem.clone(),
            blocks: place.map(|(block, _)| block).into_iter().collect(),
            rows_missing: None,
        });
    }
}

type Backups = (Vec<BackupEvidence>, Vec<(String, String)>);

/// The sets of the runbook's backup directory, newest first. The files are read on a thread
/// that may block: the directory can be a network file system that does not answer.
async fn backups(system: &System, service: &str) -> Backups {
    let directory = system.runbook.backup.directory.clone();
    let (shown, deployment) = (directory.display().to_string(), system.deployment().to_owned());
    let listing = tokio::task::spawn_blocking(move || Catalogue::open(&directory, &deployment).list());
    let entries = match tokio::time::timeout(system.runbook.deadlines.probe, listing).await {
        Ok(Ok(Ok(entries))) => entries,
        Ok(Ok(Err(e))) => return (Vec::new(), vec![(shown, e.to_string())]),
        Ok(Err(e)) => return (Vec::new(), vec![(shown, e.to_string())]),
        Err(_) => return (Vec::new(), vec![(shown, "the directory does not answer".into())]),
    };
    let (mut usable, mut unusable) = (Vec::new(), Vec::new());
    for entry in entries.into_iter().rev() {
        let label = entry.label().to_string();
        if let Some(why) = entry.unusable() {
            unusable.push((label, why));
        } else if let Entry::Set(set) = entry {
            match backup(&label, &set.path, &set.manifest, service) {
                Some(evidence) => usable.push(evidence),
                None => unusable.push((label, format!("it holds nothing of {service}"))),
            }
        }
    }
    (usable, unusable)
}

fn backup(
    label: &str,
    directory: &std::path::Path,
    manifest: &Manifest,
    service: &str,
) -> Option<BackupEvidence> {
    let part = manifest.postgres.get(service)?;
    let below = |path: &str| directory.join(path).display().to_string();
    Some(BackupEvidence {
        label: label.to_owned(),
        path: directory.display().to_string(),
        taken_at: part
            .logical
            .values()
            .map(|l| l.snapshot_at)
            .min()
            .unwrap_or(manifest.started),
        version: part.server_version_number,
        system_identifier: part.system_identifier.clone(),
        timeline: part.timeline,
        dumps: part
            .logical
            .iter()
            .map(|(db, l)| (db.clone(), (below(&l.path), l.bytes)))
            .collect(),
        base: part.physical.as_ref().map(|p| BaseEvidence {
            path: below(&p.path),
            bytes: p.bytes,
            first_segment: p.start_segment.clone(),
            start: p.start_lsn,
            end: p.end_lsn,
            timeline: p.timeline,
        }),
        facts: part.facts.clone(),
        dump_seconds: Some(part.logical.values().map(|l| l.seconds).sum())
            .filter(|_| !part.logical.is_empty()),
        base_seconds: part.physical.as_ref().map(|p| p.seconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_of_the_catalogue_is_named_by_its_number() {
        let finding = catalogue_damage(
            "XX001",
            "FATAL XX001: invalid page in block 0 of relation base/16396/1259",
        )
        .unwrap();
        assert_eq!(
            (finding.relation.as_str(), finding.blocks),
            ("pg_catalog.pg_class", vec![0])
        );
        assert!(catalogue_damage("57014", "canceling statement due to statement timeout").is_none());
        let library = "FATAL 58P01: could not access file \"nolib\": No such file or directory";
        assert!(catalogue_damage("58P01", library).is_none());
        assert!(
            catalogue_damage(
                "42501",
                "could not access directory \"base/5\": Permission denied"
            )
            .is_none()
        );
    }
}
