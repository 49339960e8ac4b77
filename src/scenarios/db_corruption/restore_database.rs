//! The steps of restoring one database beside the damaged one: the server and its other
//! databases go on meanwhile, and writers wait only for what is newer than the backup.

use super::diagnose::Class;
use super::plan::{Ground, damaged_database, shared_with_a_copy, wal_is_complete};
use super::steps::{
    Draft, Proof, config, dumped_floors, estimate, expectations, extract_base, salvage_tables, step,
};
use crate::plan::{Action, ClusterAction, PostgresAction, Risk, SalvageTable, Step, Undo};
use crate::probe::relations::{Check, PAGE};

/// How much longer than its dump a database takes to restore: index builds.
const RESTORE_OVER_DUMP: f64 = 4.0;

pub(super) fn restore_database(ground: &Ground<'_>) -> Draft {
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
    let floors = dumped_floors(ground, &database);
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
                "only the side database was written, and it goes with the undo of its own step".into(),
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
    if !can_be_opened(ground, &database) {
        steps.remove(2);
    }
    let drop = |database: &str| {
        sql(PostgresAction::DropDatabase {
            service: service.clone(),
            database: database.to_owned(),
        })
    };
    let mut discard = vec![drop(&kept), drop(&names.undone)];
    if let Some([extract, replay]) = salvage_from_log(ground, &database, &side) {
        let proof = steps.len().saturating_sub(2);
        steps.insert(proof, replay);
        // The copy before the fence: users wait for the replay only. And before the restore, which
        // writes so much log that the server removes what the base backup needs.
        steps.insert(0, extract);
        discard.push(Action::Cluster(ClusterAction::Discard {
            service: service.clone(),
            run: ground.request.run.clone(),
        }));
    }
    let dump_seconds = ground.backup.and_then(|b| b.dump_seconds).unwrap_or(10.0);
    Draft {
        steps,
        expect: expectations(ground, &database, &floors, Proof::OnTheSide),
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
    if shared_with_a_copy(ground.ev).is_some() {
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
        extract_base(ground, false),
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

/// Whether rows can be read from the damaged database at all: a damaged catalogue lets nobody
/// in.
fn can_be_opened(ground: &Ground<'_>, database: &str) -> bool {
    ground
        .ev
        .databases
        .get(database)
        .is_none_or(|d| d.connection.is_open())
}

/// Whether damaged pages may hold rows that the backup lacks. Rows are added at the end of
/// a table that only grows; anywhere in another.
fn may_hide_new_rows(ground: &Ground<'_>, database: &str) -> bool {
    let (Some(evidence), Class::Tables { tables, .. }) = (ground.ev.databases.get(database), ground.class)
    else {
        return false;
    };
    if !evidence.connection.is_open() {
        return true;
    }
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
