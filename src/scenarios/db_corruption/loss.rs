//! What a remedy loses, in words for the person who decides, and in figures where the
//! evidence has them. Pure.

use jiff::SignedDuration;

use super::Rung;
use super::diagnose::Class;
use super::evidence::{Check, Evidence, LogicalEnd, RelationFinding, RelationKind};
use super::plan::{Ground, replay_is_whole, wal_is_complete};
use crate::plan::DataLoss;

/// What a remedy loses, from the data.
pub(super) fn data_loss(remedy: Rung, ground: &Ground<'_>) -> DataLoss {
    let backup_from = ground.backup.map(|b| b.taken_at);
    let age = backup_from.map(|at| {
        let seconds = ground
            .request
            .now
            .duration_since(at)
            .max(SignedDuration::ZERO)
            .unsigned_abs();
        crate::event::seconds(seconds)
    });
    let relations = || {
        let facts = ground.ev.databases.values().filter_map(|d| d.facts.as_ref());
        facts.flat_map(|f| &f.relations)
    };
    // The newest row may be in the very table that cannot be read.
    let newest_now = if relations().any(|r| r.problem.is_some()) {
        None
    } else {
        relations().filter_map(|r| r.newest.as_ref()?.at).max()
    };
    let rows = rows_since_backup(ground);
    let mut loss = DataLoss {
        rows_since_backup: rows.map(|(n, _)| n),
        newest_now,
        backup_from,
        ..DataLoss::default()
    };
    match remedy {
        Rung::Reindex => {
            loss.none = true;
            loss.summary = "nothing is lost: an index is derived from its table".into();
        }
        Rung::RestoreDatabase => {
            let rows = match rows {
                Some((n, true)) => format!("{n} rows"),
                Some((n, false)) => format!("at least {n} rows"),
                None => "rows that cannot be counted".to_owned(),
            };
            loss.summary = format!(
                "the backup is {} old, {rows} are newer; what is readable of them is brought over where the runbook says so",
                age.unwrap_or_default()
            );
        }
        Rung::RestoreCluster if wal_is_complete(ground) => {
            loss.none = replay_is_whole(ground);
            loss.summary = if loss.none {
                "nothing is lost: all of the write-ahead log since the backup is there and is replayed".into()
            } else {
                "what the write-ahead log still shows is replayed; what is behind its damage is salvaged where readable".into()
            };
        }
        Rung::RestoreCluster => {
            loss.summary = format!(
                "the backup is {} old and the write-ahead log since then is not complete; later work is lost unless it can be salvaged",
                age.unwrap_or_default()
            );
        }
        Rung::Salvage => loss.summary = lost_for_ever(ground),
    }
    if remedy == Rung::RestoreCluster {
        loss.summary.push_str(&slots_lost(ground.ev));
    }
    loss
}

/// A base backup has no replication slots: `pg_replslot` is copied empty (PostgreSQL manual, 55.4, `BASE_BACKUP`).
fn slots_lost(ev: &Evidence) -> String {
    let slots = ev.logical.iter().filter(|l| l.end == LogicalEnd::Slot);
    let names: Vec<&str> = slots.map(|l| l.name.as_str()).collect();
    match names.as_slice() {
        [] => String::new(),
        [one] => {
            format!("; the replication slot {one} is gone, and its subscriber must copy everything anew")
        }
        all => format!(
            "; the replication slots {} are gone, and their subscribers must copy everything anew",
            all.join(", ")
        ),
    }
}

/// What nothing brings back when there is no backup.
fn lost_for_ever(ground: &Ground<'_>) -> String {
    const AND: &str =
        "rows that refer to lost ones are set aside; damage that no check finds stays in what is kept";
    match ground.class {
        Class::Tables { database, tables } => {
            let lost: Vec<String> = tables
                .iter()
                .map(|t| lost_of_table(ground.ev, database, t))
                .collect();
            format!("{}; {AND}", lost.join(", "))
        }
        Class::Cluster { cause } if cause.contains("pg_control") => format!(
            "nothing where the write-ahead log can still be replayed from its last checkpoint; otherwise what only \
             the log holds, and then {AND}"
        ),
        Class::Cluster { cause } if cause.contains("pg_xact") => format!(
            "which transactions were rolled back is lost: their rows may show again; what only the write-ahead log \
             holds is lost; {AND}"
        ),
        _ => format!("what only the write-ahead log holds, and what cannot be read; {AND}"),
    }
}

/// What cannot be read of one table, as far as it was seen.
fn lost_of_table(ev: &Evidence, database: &str, table: &str) -> String {
    let evidence = ev.databases.get(database);
    let findings = || {
        evidence
            .into_iter()
            .flat_map(|e| &e.findings)
            .filter(|f| f.table == table)
    };
    let gone = |f: &RelationFinding| f.check == Check::FileSize && f.sqlstate.as_deref() == Some("58P01");
    if findings().any(|f| f.kind == RelationKind::Heap && gone(f)) {
        return format!("every row of {table}, whose file is gone");
    }
    if let Some(rows) = findings().filter_map(|f| f.rows_missing).max() {
        return format!("{rows} rows of {table}");
    }
    let mut pages: Vec<u64> = findings()
        .filter(|f| f.kind == RelationKind::Heap)
        .flat_map(|f| f.blocks.iter().copied())
        .collect();
    pages.sort_unstable();
    pages.dedup();
    if findings().any(|f| matches!(f.kind, RelationKind::Toast | RelationKind::ToastIndex))
        && pages.is_empty()
    {
        return format!("long values of {table} that cannot be read");
    }
    let Some(count) = u64::try_from(pages.len()).ok().filter(|n| *n > 0) else {
        return format!("the rows of {table} that cannot be read");
    };
    let fact = evidence.and_then(|e| e.facts.as_ref()).and_then(|f| {
        f.relations
            .iter()
            .find(|r| r.qualified() == table && r.pages > 0 && r.estimated_rows.is_some())
    });
    let about = fact.map_or(String::new(), |r| {
        let rows = r.estimated_rows.unwrap_or_default().saturating_mul(count) / r.pages;
        format!(" (about {rows} rows)")
    });
    let s = if count == 1 { "" } else { "s" };
    format!("at least {count} page{s} of {table}{about}")
}

/// Rows written since the backup: a number, and whether every table could be counted. A
/// damaged table shows fewer rows than it has; the server's own counters tell then, as
/// long as no crash has set them back.
fn rows_since_backup(ground: &Ground<'_>) -> Option<(u64, bool)> {
    let backup = ground.backup?;
    let (mut sum, mut all) = (None, true);
    for (name, evidence) in &ground.ev.databases {
        let (Some(then), Some(now)) = (backup.facts.get(name), &evidence.facts) else {
            all = false;
            continue;
        };
        for before in then.relations.iter().filter(|r| r.rows.is_some()) {
            let Some(after) = now.relation(&before.schema, &before.name) else {
                continue;
            };
            let counted = match (before.rows, after.rows) {
                (Some(had), Some(has)) if has >= had => Some(has - had),
                _ if (then.stats_reset, then.stats_since) == (now.stats_reset, now.stats_since) => before
                    .inserted
                    .zip(after.inserted)
                    .and_then(|(had, has)| has.checked_sub(had)),
                _ => None,
            };
            match counted {
                Some(n) => *sum.get_or_insert(0) += n,
                // Not read in this look, and nothing speaks against it.
                None if after.rows.is_none() && after.problem.is_none() => {}
                None => all = false,
            }
        }
    }
    sum.map(|n| (n, all))
}
