//! The steps of each remedy, in order. Each list reads like the page of a guide.

use std::collections::BTreeSet;

use jiff::SignedDuration;

use super::diagnose::Class;
use super::plan::{Ground, damaged_database, wal_is_complete};
use crate::plan::{
    Action, ClusterAction, Expectation, PostgresAction, Remedy, Risk, RowFloor, SalvageTable, Step, Undo,
    WorkloadAction,
};
use crate::probe::relations::{Check, PAGE};
use crate::runbook::{Database, Salvage};

/// Rows written while the backup ran may carry an earlier time stamp than its snapshot: a
/// transaction stamps at its start and commits later.
const MARGIN: SignedDuration = SignedDuration::from_hours(1);
/// Bytes per second that a restore reads or writes at least; measured values were higher.
const COPY_SPEED: u64 = 200 << 20;
/// How much longer than its dump a database takes to restore: index builds.
const RESTORE_OVER_DUMP: f64 = 4.0;

/// What is specific to one remedy.
pub(super) struct Draft {
    pub steps: Vec<Step>,
    pub expect: Vec<Expectation>,
    pub estimate_seconds: u64,
    pub kept: String,
    pub discard: Vec<Action>,
}

pub(super) fn draft(remedy: Remedy, ground: &Ground<'_>) -> Draft {
    match remedy {
        Remedy::Reindex => reindex(ground),
        Remedy::RestoreDatabase => restore_database(ground),
        Remedy::RestoreCluster => restore_cluster(ground),
        Remedy::Salvage => salvage(ground),
    }
}

fn reindex(ground: &Ground<'_>) -> Draft {
    let service = ground.ev.service.clone();
    let (database, indexes) = match ground.class {
        Class::Indexes { database, indexes } => (database.clone(), indexes.clone()),
        _ => (String::new(), BTreeSet::default()),
    };
    let size: u64 = ground
        .ev
        .databases
        .get(&database)
        .and_then(|d| d.facts.as_ref())
        .map_or(0, |f| {
            f.relations
                .iter()
                .filter(|r| indexes.contains(&r.qualified()))
                .map(|r| r.bytes)
                .sum()
        });
    let steps = indexes
        .iter()
        .map(|index| {
            step(
                ground,
                format!("Rebuild index {index} of {database}"),
                "the table is readable and holds everything that the index must say; readers and writers go on meanwhile",
                Risk::Reversible,
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
        expect: expectations(ground, &database, &floors(ground, &database)),
        estimate_seconds: 2 + size / (COPY_SPEED / 10),
        kept: "nothing: a rebuilt index replaces the damaged one".into(),
        discard: Vec::new(),
    }
}

fn restore_database(ground: &Ground<'_>) -> Draft {
    let service = ground.ev.service.clone();
    let database = damaged_database(ground.class).unwrap_or_default().to_owned();
    let names = SideNames::new(&database, &ground.request.run);
    let (side, kept) = (names.side.clone(), names.kept.clone());
    let dump = ground
        .backup
        .and_then(|b| b.dumps.get(&database))
        .cloned()
        .unwrap_or_default();
    let label = ground.backup.map_or("", |b| b.label.as_str());
    let floors = floors(ground, &database);
    let sql = |a| Action::Postgres(a);
    let mut steps = vec![
        step(
            ground,
            format!("Restore backup {label} into side database {side}"),
            "the damaged database stays in service and untouched until its replacement is proven",
            Risk::Reversible,
            sql(PostgresAction::RestoreSide {
                service: service.clone(),
                database: database.clone(),
                side: side.clone(),
                dump: dump.0,
                jobs: ground.rb.backup.postgres.jobs,
            }),
            Undo::Action(sql(PostgresAction::DropDatabase {
                service: service.clone(),
                database: side.clone(),
            })),
        ),
        step(
            ground,
            format!("Make {database} read-only"),
            "what is written from now on would be lost with the swap; readers go on",
            Risk::Disruptive,
            sql(PostgresAction::FenceWriters {
                service: service.clone(),
                database: database.clone(),
            }),
            Undo::Action(sql(PostgresAction::UnfenceWriters {
                service: service.clone(),
                database: database.clone(),
            })),
        ),
        step(
            ground,
            format!("Bring rows newer than the backup from {database} to {side}"),
            "they are readable in the damaged database and missing in the backup; the runbook says which tables take them",
            Risk::Reversible,
            sql(PostgresAction::SalvageRows {
                service: service.clone(),
                from: database.clone(),
                into: side.clone(),
                tables: salvage_tables(ground, &database),
            }),
            Undo::NotNeeded(
                "only the side database was written, and it goes with the first step's undo".into(),
            ),
        ),
        step(
            ground,
            format!("Prove {side}"),
            "nothing is brought into service that has not been checked: structure, rows, the runbook's questions",
            Risk::ReadOnly,
            sql(PostgresAction::ProveSide {
                service: service.clone(),
                database: database.clone(),
                side: side.clone(),
                floors: floors.clone(),
            }),
            Undo::NotNeeded("it only reads".into()),
        ),
        step(
            ground,
            format!("Swap names: {side} becomes {database}"),
            "two renames in one transaction, a fraction of a second without connections",
            Risk::Disruptive,
            sql(PostgresAction::SwapDatabases {
                service: service.clone(),
                database: database.clone(),
                side: side.clone(),
                kept: kept.clone(),
            }),
            Undo::Action(sql(PostgresAction::SwapBack {
                service: service.clone(),
                database: database.clone(),
                side: side.clone(),
                kept: kept.clone(),
                undone: names.undone.clone(),
            })),
        ),
    ];
    let drop = |database: &str| {
        sql(PostgresAction::DropDatabase {
            service: service.clone(),
            database: database.to_owned(),
        })
    };
    let mut discard = vec![drop(&kept), drop(&names.undone)];
    if let Some([extract, replay]) = salvage_from_log(ground, &database, &side) {
        // The copy before the fence: users wait for the replay only.
        steps.insert(3, replay);
        steps.insert(1, extract);
        discard.push(Action::Cluster(ClusterAction::Discard {
            service: service.clone(),
            run: ground.request.run.clone(),
        }));
    }
    let dump_seconds = ground.backup.and_then(|b| b.dump_seconds).unwrap_or(10.0);
    Draft {
        steps,
        expect: expectations(ground, &database, &floors),
        estimate_seconds: estimate(dump_seconds * RESTORE_OVER_DUMP, 5),
        kept: format!(
            "the damaged database, as {kept}, with connections refused; an undo swaps it back and keeps what was written after the swap as {}",
            names.undone
        ),
        discard,
    }
}

/// Rows that were written since the backup and that the damage hides are still in the
/// write-ahead log. Worth a copy of the server only where there may be such rows.
fn salvage_from_log(ground: &Ground<'_>, database: &str, side: &str) -> Option<[Step; 2]> {
    if !may_hide_new_rows(ground, database) || !wal_is_complete(ground) {
        return None;
    }
    let base = ground.backup.and_then(|b| b.base.clone())?;
    let free = ground.ev.files.as_ref().ok()?.disk_free;
    if base.bytes * 2 > free {
        return None;
    }
    let service = ground.ev.service.clone();
    let run = ground.request.run.clone();
    let tables: Vec<SalvageTable> = salvage_tables(ground, database)
        .into_iter()
        .filter(|t| t.merge)
        .collect();
    if tables.is_empty() {
        return None;
    }
    Some([
        extract_base(ground),
        step(
            ground,
            "Bring rows over that the damage hides, from the write-ahead log".to_owned(),
            "the log since the backup is complete: replayed on the copy of the base backup it shows every committed row",
            Risk::Reversible,
            Action::Cluster(ClusterAction::SalvageFromLog {
                service,
                run,
                first_segment: base.first_segment,
                from: database.to_owned(),
                into: side.to_owned(),
                tables,
            }),
            Undo::NotNeeded(
                "only side copies were written, and they go with the undo of their own steps".into(),
            ),
        ),
    ])
}

/// Whether damaged pages may hold rows that the backup lacks. Rows are added at the end of
/// a table that only grows; anywhere in another.
fn may_hide_new_rows(ground: &Ground<'_>, database: &str) -> bool {
    let (Some(evidence), Class::Tables { tables, .. }) = (ground.ev.databases.get(database), ground.class)
    else {
        return false;
    };
    let then = ground.backup.and_then(|b| b.facts.get(database));
    tables.iter().any(|table| {
        let Some(before) = then.and_then(|f| f.relations.iter().find(|r| &r.qualified() == table)) else {
            return true;
        };
        let append_only = config(ground, database).is_some_and(|c| {
            c.tables
                .iter()
                .any(|(n, t)| n.schema == before.schema && n.table == before.name && t.append_only)
        });
        let old_pages = (before.bytes / PAGE).saturating_sub(1);
        let of_table: Vec<_> = evidence.findings.iter().filter(|f| &f.table == table).collect();
        !append_only
            || of_table.is_empty()
            || of_table.iter().any(|f| {
                f.check == Check::FileSize || f.blocks.is_empty() || f.blocks.iter().any(|b| *b >= old_pages)
            })
    })
}

fn restore_cluster(ground: &Ground<'_>) -> Draft {
    let service = ground.ev.service.clone();
    let run = ground.request.run.clone();
    let base = ground.backup.and_then(|b| b.base.clone());
    let (size, first_segment) = base.map(|b| (b.bytes, b.first_segment)).unwrap_or_default();
    let files = |a| Action::Cluster(a);
    let mut steps = vec![
        extract_base(ground),
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
            data_bytes(ground) / COPY_SPEED + 5
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
            format!("Copy the damaged data of {service} and make the copy start"),
            "there is no usable backup; pg_resetwal and the like only ever touch a copy",
            Risk::Reversible,
            files(ClusterAction::CopyDamaged {
                service: service.clone(),
                run: run.clone(),
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
        estimate_seconds: 10 + 2 * data_bytes(ground) / COPY_SPEED,
        kept: kept_directory(&run),
        discard: discard_directories(&service, &run),
    }
}

fn extract_base(ground: &Ground<'_>) -> Step {
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
                    .map(|(n, _)| (n.to_owned(), floors(ground, n)))
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

fn step(ground: &Ground<'_>, title: String, why: &str, risk: Risk, action: Action, undo: Undo) -> Step {
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

fn config<'a>(ground: &'a Ground<'_>, database: &str) -> Option<&'a Database> {
    databases(ground).find(|(n, _)| *n == database).map(|(_, d)| d)
}

fn data_bytes(ground: &Ground<'_>) -> u64 {
    ground.ev.files.as_ref().map_or(0, |f| f.data_bytes)
}

/// Whether rows are to be read from a copy of the damage: the log alone does not bring
/// everything back, and some table takes rows.
pub(super) fn salvages_from_copy(ground: &Ground<'_>) -> bool {
    let log_is_damaged =
        matches!(ground.class, Class::Cluster { cause } if cause.contains("write-ahead log"));
    (!wal_is_complete(ground) || log_is_damaged)
        && databases(ground).any(|(_, d)| d.tables.values().any(|t| t.salvage == Salvage::InsertMissing))
}

fn salvage_tables(ground: &Ground<'_>, database: &str) -> Vec<SalvageTable> {
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

/// Rows that a restored database must have: all that the backup recorded for tables that
/// only grow; nine tenths of the others, from which rows may go at any time.
fn floors(ground: &Ground<'_>, database: &str) -> Vec<RowFloor> {
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

fn expectations(ground: &Ground<'_>, database: &str, floors: &[RowFloor]) -> Vec<Expectation> {
    let service = ground.ev.service.clone();
    let database = database.to_owned();
    let mut expect = vec![
        Expectation::ServerAnswers {
            service: service.clone(),
        },
        Expectation::Sound {
            service: service.clone(),
            database: database.clone(),
            relations: Vec::new(),
        },
    ];
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
    let mut expect = Vec::new();
    for (database, _) in databases(ground) {
        for e in expectations(ground, database, &floors(ground, database)) {
            if !expect.contains(&e) {
                expect.push(e);
            }
        }
    }
    expect
}

/// Names of databases that a restore makes; at most 63 bytes, the longest identifier that
/// PostgreSQL stores.
struct SideNames {
    /// The restored one, before the swap.
    side: String,
    /// The damaged one, after the swap.
    kept: String,
    /// The restored one, after an undo.
    undone: String,
}

impl SideNames {
    fn new(database: &str, run: &str) -> Self {
        let mut end = database.len().min(28);
        while !database.is_char_boundary(end) {
            end -= 1;
        }
        let base = database.get(..end).unwrap_or_default();
        let time: String = run.chars().take(16).collect::<String>().to_lowercase();
        let salt = run.rsplit('-').next().unwrap_or_default();
        let name = |word: &str| format!("{base}_drctl_{word}_{time}_{salt}");
        Self {
            side: name("new"),
            kept: name("old"),
            undone: name("undone"),
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds of a restore, clamped"
)]
fn estimate(seconds: f64, more: u64) -> u64 {
    seconds.clamp(1.0, 1e7) as u64 + more
}
