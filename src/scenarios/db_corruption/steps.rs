//! The steps of each remedy, in order. Each list reads like the page of a guide.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;

use super::Rung;
use super::diagnose::Class;
use super::plan::{Ground, data_bytes, index_bytes, replay_is_whole};
use super::restore_database::restore_database;
use crate::plan::{
    Action, ClusterAction, Expectation, PostgresAction, Risk, RowFloor, SalvageTable, Step, Undo,
    WorkloadAction,
};
use crate::probe::facts::{DatabaseFacts, RelationFact};
use crate::runbook::{Database, Salvage};

/// Rows written while the backup ran may carry an earlier time stamp than its snapshot: a
/// transaction stamps at its start and commits later.
const MARGIN: SignedDuration = SignedDuration::from_hours(1);
/// Bytes per second that a restore reads or writes at least; measured values were higher.
const COPY_SPEED: u64 = 200 << 20;

/// What is specific to one remedy.
pub(super) struct Draft {
    pub steps: Vec<Step>,
    pub expect: Vec<Expectation>,
    pub estimate_seconds: u64,
    pub kept: String,
    pub discard: Vec<Action>,
}

pub(super) fn draft(remedy: Rung, ground: &Ground<'_>) -> Draft {
    match remedy {
        Rung::Reindex => reindex(ground),
        Rung::RestoreDatabase => restore_database(ground),
        Rung::RestoreCluster => restore_cluster(ground),
        Rung::Salvage => salvage(ground),
    }
}

fn reindex(ground: &Ground<'_>) -> Draft {
    let service = ground.ev.service.clone();
    let damaged = match ground.class {
        Class::Indexes { indexes } => indexes.clone(),
        _ => BTreeMap::default(),
    };
    let steps = damaged
        .iter()
        .flat_map(|(database, indexes)| indexes.iter().map(move |index| (database, index)))
        .map(|(database, index)| {
            // The server rebuilds those of its catalogues with the table locked only (manual, REINDEX).
            let (why, risk) = if index.starts_with("pg_catalog.") {
                (
                    "the catalogue is readable and holds everything that the index must say; who needs it waits meanwhile",
                    Risk::Disruptive,
                )
            } else {
                (
                    "the table is readable and holds everything that the index must say; readers and writers go on \
                     meanwhile (with an exclusion constraint they wait)",
                    Risk::Reversible,
                )
            };
            step(
                ground,
                format!("Rebuild index {index} of {database}"),
                why,
                risk,
                Action::Postgres(PostgresAction::Reindex {
                    service: service.clone(),
                    database: database.clone(),
                    index: index.clone(),
                }),
                Undo::NotNeeded("an index is derived from its table; a rebuilt one replaces only the damage".into()),
            )
        })
        .collect();
    Draft {
        steps,
        expect: expectations_of_all(
            ground,
            damaged.keys().map(String::as_str),
            present_floors,
            Proof::Missing,
        ),
        estimate_seconds: 2 + index_bytes(ground) / (COPY_SPEED / 10),
        kept: "nothing: a rebuilt index replaces the damaged one".into(),
        discard: Vec::new(),
    }
}

fn restore_cluster(ground: &Ground<'_>) -> Draft {
    let service = ground.ev.service.clone();
    let run = ground.request.run.clone();
    let base = ground.backup.and_then(|b| b.base.clone());
    let (size, first_segment) = base.map(|b| (b.bytes, b.first_segment)).unwrap_or_default();
    let files = |a| Action::Cluster(a);
    let whole = replay_is_whole(ground);
    let mut steps = vec![
        extract_base(ground, whole),
        stop(ground),
        step(
            ground,
            "Keep the write-ahead log since the backup".to_owned(),
            "replayed on the backup it brings back what was committed since",
            Risk::Reversible,
            files(ClusterAction::KeepWal {
                service: service.clone(),
                run: run.clone(),
                first_segment,
                whole,
            }),
            Undo::NotNeeded("copies beside the data, gone with the first step's undo".into()),
        ),
    ];
    if salvages_from_copy(ground) {
        steps.push(step(
            ground,
            "Bring rows over that only the damage still shows".to_owned(),
            "the write-ahead log may not reach to the end; a copy of the damage is made to start and read",
            Risk::Reversible,
            files(ClusterAction::SalvageRows {
                service: service.clone(),
                run: run.clone(),
                tables: databases(ground)
                    .map(|(n, _)| (n.to_owned(), salvage_tables(ground, n)))
                    .collect(),
            }),
            Undo::NotNeeded("works on copies only".into()),
        ));
    }
    steps.extend(prove_switch_start(ground));
    let copies = size / COPY_SPEED
        + if salvages_from_copy(ground) {
            data_bytes(ground.ev) / COPY_SPEED + 5
        } else {
            0
        };
    Draft {
        steps,
        expect: cluster_expectations(ground),
        estimate_seconds: 8 + 2 * copies,
        kept: kept_directory(&run),
        discard: discard_directories(&service, &run),
    }
}

fn salvage(ground: &Ground<'_>) -> Draft {
    let service = ground.ev.service.clone();
    let run = ground.request.run.clone();
    let files = |a| Action::Cluster(a);
    let mut steps = vec![
        stop(ground),
        step(
            ground,
            format!("Copy the damaged data of {service}, make the copy start and mend it"),
            "there is no usable backup; what cannot be read is only ever taken out of a copy",
            Risk::Reversible,
            files(ClusterAction::CopyDamaged {
                service: service.clone(),
                run: run.clone(),
                tables: damaged_tables(ground),
            }),
            Undo::Action(files(ClusterAction::Discard {
                service: service.clone(),
                run: run.clone(),
            })),
        ),
    ];
    steps.extend(prove_switch_start(ground));
    for step in &mut steps {
        // What comes into service was never whole: the name must be typed.
        if matches!(step.action, Action::Cluster(ClusterAction::Switch { .. })) {
            step.risk = Risk::Destructive;
        }
    }
    Draft {
        steps,
        expect: cluster_expectations(ground),
        estimate_seconds: 10 + 2 * data_bytes(ground.ev) / COPY_SPEED,
        kept: kept_directory(&run),
        discard: discard_directories(&service, &run),
    }
}

/// What is known to be damaged, per database. Some of it no check finds again.
fn damaged_tables(ground: &Ground<'_>) -> Vec<(String, Vec<String>)> {
    match ground.class {
        Class::Tables { database, tables } => vec![(
            database.clone(),
            // The catalogue is no table that could be written anew.
            tables.iter().filter(|t| t.contains('.')).cloned().collect(),
        )],
        _ => Vec::new(),
    }
}

/// `whole`: the step fails when the log since the backup is no longer complete.
pub(super) fn extract_base(ground: &Ground<'_>, whole: bool) -> Step {
    let service = ground.ev.service.clone();
    let run = ground.request.run.clone();
    let label = ground.backup.map_or("", |b| b.label.as_str());
    let base = ground.backup.and_then(|b| b.base.clone());
    let (base, first_segment) = base.map(|b| (b.path, b.first_segment)).unwrap_or_default();
    step(
        ground,
        format!("Copy the base backup of {label} beside the data of {service}"),
        "the old data stays where it is until its replacement is proven",
        Risk::Reversible,
        Action::Cluster(ClusterAction::ExtractBase {
            service: service.clone(),
            run: run.clone(),
            base,
            first_segment,
            whole,
        }),
        Undo::Action(Action::Cluster(ClusterAction::Discard { service, run })),
    )
}

fn stop(ground: &Ground<'_>) -> Step {
    let service = ground.ev.service.clone();
    step(
        ground,
        format!("Stop {service}"),
        "files of a running server are not touched, and a crash loop must not start in the middle",
        Risk::Disruptive,
        Action::Workload(WorkloadAction::Stop {
            service: service.clone(),
        }),
        Undo::Action(Action::Workload(WorkloadAction::Start { service, wait: false })),
    )
}

fn prove_switch_start(ground: &Ground<'_>) -> Vec<Step> {
    let service = ground.ev.service.clone();
    let run = ground.request.run.clone();
    let start = WorkloadAction::Start {
        service: service.clone(),
        wait: true,
    };
    vec![
        step(
            ground,
            "Start the new data as a side server, replay and prove it".to_owned(),
            "nothing is brought into service that has not been checked: structure, rows, the runbook's questions",
            Risk::ReadOnly,
            Action::Cluster(ClusterAction::ProveSide {
                service: service.clone(),
                run: run.clone(),
                floors: databases(ground)
                    .map(|(n, _)| (n.to_owned(), cluster_floors(ground, n)))
                    .collect(),
            }),
            Undo::NotNeeded("the side server is gone when its step ends".into()),
        ),
        step(
            ground,
            "Move the old data aside and the new data in".to_owned(),
            "renames inside the volume: the next `compose up` finds the same volume",
            Risk::Disruptive,
            Action::Cluster(ClusterAction::Switch {
                service: service.clone(),
                run: run.clone(),
            }),
            Undo::Action(Action::Cluster(ClusterAction::SwitchBack {
                service: service.clone(),
                run,
            })),
        ),
        step(
            ground,
            format!("Start {service}"),
            "users get their service back",
            Risk::Reversible,
            Action::Workload(start),
            Undo::Action(Action::Workload(WorkloadAction::Stop { service })),
        ),
    ]
}

/// The work directory, and what an undo left beside it.
fn discard_directories(service: &str, run: &str) -> Vec<Action> {
    [run.to_owned(), format!("{run}-undone")]
        .into_iter()
        .map(|run| {
            Action::Cluster(ClusterAction::Discard {
                service: service.to_owned(),
                run,
            })
        })
        .collect()
}

fn kept_directory(run: &str) -> String {
    format!(
        "the old data, in .drctl/{run}/old of the data volume; an undo puts it back and keeps what was written after the switch in .drctl/{run}-undone"
    )
}

pub(super) fn step(
    ground: &Ground<'_>,
    title: String,
    why: &str,
    risk: Risk,
    action: Action,
    undo: Undo,
) -> Step {
    Step {
        title,
        why: why.to_owned(),
        risk,
        action,
        undo,
        timeout_seconds: ground.rb.deadlines.step.as_secs(),
    }
}

/// The databases of this service in the runbook.
fn databases<'a>(ground: &'a Ground<'_>) -> impl Iterator<Item = (&'a str, &'a Database)> {
    ground
        .rb
        .postgres_services()
        .filter(|(service, ..)| service.as_str() == ground.ev.service)
        .flat_map(|(_, _, p)| &p.databases)
        .map(|(n, d)| (n.as_str(), d))
}

pub(super) fn config<'a>(ground: &'a Ground<'_>, database: &str) -> Option<&'a Database> {
    databases(ground).find(|(n, _)| *n == database).map(|(_, d)| d)
}

/// Whether rows are to be read from a copy of the damage: the log alone does not bring
/// everything back, and some table takes rows.
pub(super) fn salvages_from_copy(ground: &Ground<'_>) -> bool {
    !replay_is_whole(ground)
        && databases(ground).any(|(_, d)| d.tables.values().any(|t| t.salvage == Salvage::InsertMissing))
}

pub(super) fn salvage_tables(ground: &Ground<'_>, database: &str) -> Vec<SalvageTable> {
    let since = ground
        .backup
        .and_then(|b| b.taken_at.checked_sub(MARGIN).ok())
        .map(|at| at.to_string());
    config(ground, database)
        .into_iter()
        .flat_map(|d| &d.tables)
        .map(|(name, table)| SalvageTable {
            table: format!("{}.{}", name.schema, name.table),
            newest: table.newest.as_ref().map(ToString::to_string),
            since: since.clone(),
            merge: table.salvage == Salvage::InsertMissing,
        })
        .collect()
}

/// Rows that a database of this cluster's files must have: see [`dumped_floors`]. None of an
/// unlogged table: a crash empties it, and a base backup leaves its rows out.
pub(super) fn floors(ground: &Ground<'_>, database: &str) -> Vec<RowFloor> {
    let relations = |facts: Option<&DatabaseFacts>| -> BTreeSet<String> {
        facts
            .into_iter()
            .flat_map(|f| &f.relations)
            .filter(|r| r.unlogged)
            .map(RelationFact::qualified)
            .collect()
    };
    let then = relations(ground.backup.and_then(|b| b.facts.get(database)));
    // Facts of an older format do not say; the server does, while it runs.
    let now = relations(ground.ev.databases.get(database).and_then(|d| d.facts.as_ref()));
    let mut floors = dumped_floors(ground, database);
    floors.retain(|f| !then.contains(&f.table) && !now.contains(&f.table));
    floors
}

/// Rows that a database must have in which everything stays, or is replayed, up to the present:
/// what a backup recorded says little of it, since a queue may have been drained and a table
/// dropped or renamed. Left are the tables of which the runbook says that they only grow, with no
/// more rows than are there now where that is known.
pub(super) fn present_floors(ground: &Ground<'_>, database: &str) -> Vec<RowFloor> {
    let config = config(ground, database);
    let now = ground.ev.databases.get(database).and_then(|d| d.facts.as_ref());
    let grows = |table: &str| {
        config.is_some_and(|c| {
            c.tables
                .iter()
                .any(|(n, t)| t.append_only && format!("{}.{}", n.schema, n.table) == table)
        })
    };
    let mut floors = floors(ground, database);
    floors.retain_mut(|floor| {
        let there = now.map(|f| f.relations.iter().find(|r| r.qualified() == floor.table));
        if let Some(rows) = there.flatten().and_then(|r| r.rows) {
            floor.at_least = floor.at_least.min(rows);
        }
        // Facts that do not know the table: it is gone. No facts at all say nothing of it.
        grows(&floor.table) && there != Some(None)
    });
    floors
}

/// Rows that a database of the cluster must have after its files were replaced.
fn cluster_floors(ground: &Ground<'_>, database: &str) -> Vec<RowFloor> {
    if replay_is_whole(ground) {
        present_floors(ground, database)
    } else {
        floors(ground, database)
    }
}

/// Rows that a database restored from its dump must have: all that the backup recorded for
/// tables that only grow; nine tenths of the others, from which rows may go at any time.
pub(super) fn dumped_floors(ground: &Ground<'_>, database: &str) -> Vec<RowFloor> {
    let Some(then) = ground.backup.and_then(|b| b.facts.get(database)) else {
        return Vec::new();
    };
    let config = config(ground, database);
    then.relations
        .iter()
        .filter_map(|r| {
            let rows = r.rows?;
            let append_only = config.is_some_and(|c| {
                c.tables
                    .iter()
                    .any(|(n, t)| n.schema == r.schema && n.table == r.name && t.append_only)
            });
            Some(RowFloor {
                table: r.qualified(),
                at_least: if append_only { rows } else { rows / 10 * 9 },
            })
        })
        .collect()
}

/// Whether a step of the plan has looked at every page of what comes into service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// A side server or side database was proven in full; the same files serve afterwards, by
    /// renames. To read them all once more would only delay the verdict.
    OnTheSide,
    Missing,
}

pub(super) fn expectations(
    ground: &Ground<'_>,
    database: &str,
    floors: &[RowFloor],
    proof: Proof,
) -> Vec<Expectation> {
    let service = ground.ev.service.clone();
    let database = database.to_owned();
    let mut expect = vec![Expectation::ServerAnswers {
        service: service.clone(),
    }];
    if proof == Proof::Missing {
        expect.push(Expectation::Sound {
            service: service.clone(),
            database: database.clone(),
            relations: Vec::new(),
        });
    }
    if !floors.is_empty() {
        expect.push(Expectation::Rows {
            service: service.clone(),
            database: database.clone(),
            floors: floors.to_vec(),
        });
    }
    if let Some(config) = config(ground, &database) {
        if !config.validation.is_empty() {
            expect.push(Expectation::Validations {
                service: service.clone(),
                database: database.clone(),
            });
        }
        if let Some(role) = &config.application_user {
            expect.push(Expectation::ApplicationRole {
                service,
                database,
                role: role.to_string(),
            });
        }
    }
    expect.push(Expectation::Endpoints);
    expect.push(Expectation::WriteCheck);
    expect
}

/// The side server was proven in full a moment before: what is left is that the same files
/// serve under the service's own name.
fn cluster_expectations(ground: &Ground<'_>) -> Vec<Expectation> {
    let all = databases(ground).map(|(name, _)| name);
    expectations_of_all(ground, all, cluster_floors, Proof::OnTheSide)
}

/// The expectations of several databases, each once.
fn expectations_of_all<'a>(
    ground: &Ground<'_>,
    databases: impl Iterator<Item = &'a str>,
    floors: fn(&Ground<'_>, &str) -> Vec<RowFloor>,
    proof: Proof,
) -> Vec<Expectation> {
    let mut expect = Vec::new();
    for database in databases {
        for e in expectations(ground, database, &floors(ground, database), proof) {
            if !expect.contains(&e) {
                expect.push(e);
            }
        }
    }
    expect
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds of a restore, clamped"
)]
pub(super) fn estimate(seconds: f64, more: u64) -> u64 {
    seconds.clamp(1.0, 1e7) as u64 + more
}
