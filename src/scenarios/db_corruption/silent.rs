//! Losses that no server tool reports: a truncated or emptied file, a page of zeros, WAL
//! that was not replayed to its end. Only what was recorded before shows them.

use super::evidence::{BackupEvidence, ControlData, DatabaseEvidence, RelationKind as FoundIn};
use crate::probe::facts::{DatabaseFacts, RelationFact, RelationKind};
use crate::probe::relations::PAGE;
use crate::runbook::{Database, Table};

/// What the comparison of then and now shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loss {
    /// Rows that must be there are gone, and nobody is known to have deleted them.
    #[rustfmt::skip]
    Rows { table: String, then: u64, now: u64, backup: String, weight: Weight, sign: String },
    /// The newest row is older than one that was seen before. By itself that proves nothing:
    /// one row with a wrong time stamp that somebody put right looks the same.
    Newest {
        table: String,
        then: String,
        now: String,
        backup: String,
    },
    /// The log position is behind one that was seen before.
    Lsn {
        then: String,
        now: String,
        backup: String,
    },
    /// Rows are fewer by somebody's order, which is no damage.
    Deleted {
        table: String,
        then: u64,
        now: u64,
        backup: String,
        trace: Trace,
    },
    /// The newest row is older, and the server counted changes: somebody's order too.
    Changed {
        table: String,
        then: String,
        now: String,
        backup: String,
    },
    /// The cluster was restored to a moment before the backup, which a newer timeline shows: what
    /// is missing was given up then, and nothing else can be compared.
    Restored {
        timeline: u32,
        then: String,
        now: String,
        backup: String,
    },
    /// A table that the runbook names is not in the catalogue any more: an order again.
    Dropped {
        table: String,
        rows: Option<u64>,
        backup: String,
    },
}

/// How much a loss of rows proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// No order explains it.
    Sure,
    /// An order that left no trace explains it as well; together with a replay that ended too
    /// early it is a loss.
    WithReplay,
    /// Rows go from such a table at any time.
    Unsure,
}

/// What the order that took rows away has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trace {
    /// The server counted the deletions.
    Counted,
    /// The table has another file: TRUNCATE, VACUUM FULL, CLUSTER and some forms of ALTER TABLE
    /// write a new one, and no damage does.
    Rewritten,
}

impl Loss {
    /// True for what proves damage by itself.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Rows { weight, .. } => *weight == Weight::Sure,
            other => matches!(other, Self::Lsn { .. }),
        }
    }

    /// True for what the server did because it was told to.
    pub(super) fn is_order(&self) -> bool {
        matches!(
            self,
            Self::Deleted { .. } | Self::Changed { .. } | Self::Dropped { .. } | Self::Restored { .. }
        )
    }

    /// True for what a replay that ended too early leaves.
    pub(super) fn fits_replay(&self) -> bool {
        match self {
            Self::Rows { weight, .. } => *weight != Weight::Unsure,
            other => matches!(other, Self::Lsn { .. } | Self::Newest { .. }),
        }
    }

    pub(super) fn table(&self) -> Option<&str> {
        match self {
            Self::Rows { table, .. }
            | Self::Newest { table, .. }
            | Self::Deleted { table, .. }
            | Self::Changed { table, .. }
            | Self::Dropped { table, .. } => Some(table),
            Self::Lsn { .. } | Self::Restored { .. } => None,
        }
    }

    pub(super) fn says(&self) -> String {
        match self {
            Self::Rows {
                table,
                then,
                now,
                backup,
                sign,
                ..
            } => format!(
                "{table} has {now} rows and should have {then} by backup {backup}: {} are gone ({sign})",
                then.saturating_sub(*now)
            ),
            Self::Newest {
                table,
                then,
                now,
                backup,
            } => {
                format!("the newest row of {table} is of {now}; backup {backup} has one of {then}")
            }
            Self::Lsn { then, now, backup } => {
                format!("the write-ahead log stands at {now}, behind {then}, where backup {backup} saw it")
            }
            Self::Deleted {
                table,
                then,
                now,
                backup,
                trace,
            } => format!(
                "{table} has {now} rows and had {then} in backup {backup}; {}",
                match trace {
                    Trace::Counted => "the server counted their deletion",
                    Trace::Rewritten =>
                        "a command wrote its file anew since (TRUNCATE, VACUUM FULL, CLUSTER, ALTER TABLE)",
                }
            ),
            Self::Changed {
                table,
                then,
                now,
                backup,
            } => format!(
                "the newest row of {table} is of {now}; backup {backup} has one of {then}, and the server counted \
                 updates or deletions since"
            ),
            Self::Restored {
                timeline,
                then,
                now,
                backup,
            } => format!(
                "the cluster is on timeline {timeline} and its write-ahead log stands at {now}: it was restored to a \
                 moment before backup {backup} ({then})"
            ),
            Self::Dropped { table, rows, backup } => format!(
                "table {table} is not there any more; backup {backup} has it{}",
                rows.map_or_else(String::new, |n| format!(", with {n} rows"))
            ),
        }
    }
}

/// The backups that are of this very cluster, newest first. Where the identifier could not be
/// read there is none: facts of another cluster say nothing about this one.
pub(super) fn of_this_cluster<'a>(
    backups: &'a [BackupEvidence],
    control: Option<&ControlData>,
) -> impl Iterator<Item = &'a BackupEvidence> {
    let identifier = control
        .map(|c| c.system_identifier.clone())
        .filter(|id| !id.is_empty());
    backups
        .iter()
        .filter(move |b| identifier.as_deref() == Some(b.system_identifier.as_str()))
}

/// Compares a database with what the newest backup of the same cluster recorded.
pub(super) fn losses(
    name: &str,
    evidence: &DatabaseEvidence,
    config: &Database,
    backups: &[BackupEvidence],
    control: Option<&ControlData>,
) -> Vec<Loss> {
    let Some(now) = &evidence.facts else {
        return Vec::new();
    };
    let Some((backup, then)) = of_this_cluster(backups, control).find_map(|b| Some((b, b.facts.get(name)?)))
    else {
        return Vec::new();
    };
    let mut losses = Vec::new();
    // A server that replays after a crash stays on its timeline; one that was restored begins
    // another, and the backup may be of the history that was given up then.
    let forked = control.filter(|c| backup.timeline > 0 && c.timeline > backup.timeline);
    if now.lsn < then.lsn {
        if let Some(control) = forked {
            return vec![Loss::Restored {
                timeline: control.timeline,
                then: then.lsn.to_string(),
                now: now.lsn.to_string(),
                backup: backup.label.clone(),
            }];
        }
        losses.push(Loss::Lsn {
            then: then.lsn.to_string(),
            now: now.lsn.to_string(),
            backup: backup.label.clone(),
        });
    }
    for before in &then.relations {
        let table = config
            .tables
            .iter()
            .find(|(n, _)| n.schema == before.schema && n.table == before.name)
            .map(|(_, t)| t);
        let Some(after) = now.relation(&before.schema, &before.name) else {
            // Any other table may come and go; one that the runbook names is missed.
            if table.is_some() {
                losses.push(Loss::Dropped {
                    table: before.qualified(),
                    rows: before.rows,
                    backup: backup.label.clone(),
                });
            }
            continue;
        };
        // A crash empties what is unlogged: it says nothing about anything else.
        if before.unlogged || after.unlogged {
            continue;
        }
        match before.kind {
            RelationKind::Table => {}
            // Its rows lie in partitions, and what was done to those is not known of it.
            RelationKind::Partitioned if table.is_some_and(|t| t.append_only) && is_quiet(then, now) => {}
            _ => continue,
        }
        losses.extend(of_table(
            before,
            after,
            table,
            (then, now),
            &backup.label,
            evidence,
        ));
    }
    if forked.is_some() {
        for loss in &mut losses {
            if let Loss::Rows { weight, .. } = loss {
                *weight = Weight::Unsure;
            }
        }
    }
    losses
}

/// Whether no order is known that took rows away or changed them anywhere between two looks.
fn is_quiet(then: &DatabaseFacts, now: &DatabaseFacts) -> bool {
    then.relations
        .iter()
        .filter(|before| before.kind == RelationKind::Table)
        .all(|before| {
            let none = |was, is| counted((then, now), was, is) == Some(0);
            now.relation(&before.schema, &before.name).is_some_and(|after| {
                before.path == after.path
                    && none(before.deleted, after.deleted)
                    && none(before.updated, after.updated)
            })
        })
}

/// Whether everything that was done to a table between two looks is in the difference of its
/// counters: a crash and a reset make them begin anew. Facts of an older format cannot tell.
fn counters_hold(
    (then, now): (&DatabaseFacts, &DatabaseFacts),
    before: &RelationFact,
    after: &RelationFact,
) -> bool {
    let grew = |was: Option<u64>, is: Option<u64>| matches!((was, is), (Some(was), Some(is)) if was <= is);
    then.stats_since.is_some()
        && then.stats_since == now.stats_since
        && then.stats_reset == now.stats_reset
        && grew(before.inserted, after.inserted)
        && grew(before.deleted, after.deleted)
}

/// What a counter has counted since: at least this much, where it began anew meanwhile.
fn counted((then, now): (&DatabaseFacts, &DatabaseFacts), was: Option<u64>, is: Option<u64>) -> Option<u64> {
    let is = is?;
    let same = then.stats_reset == now.stats_reset
        && (then.stats_since.is_none() || then.stats_since == now.stats_since);
    Some(match was {
        Some(was) if same => is.checked_sub(was).unwrap_or(is),
        _ => is,
    })
}

/// A table with pages of zeros that lost their rows: a base backup has data in them, or the
/// table has fewer rows than the server counted. The counters also count what was rolled
/// back, so that less than half a page of rows says nothing.
fn emptied(
    before: &RelationFact,
    after: &RelationFact,
    looks: (&DatabaseFacts, &DatabaseFacts),
    backup: &str,
    evidence: &DatabaseEvidence,
) -> Option<Loss> {
    let table = before.qualified();
    let pages = evidence.empty_pages.iter().find(|p| p.table == table)?;
    let (had, has) = (before.rows?, after.rows?);
    let expected = counters_hold(looks, before, after)
        .then(|| {
            let inserted = after.inserted?.checked_sub(before.inserted?)?;
            let deleted = after.deleted?.checked_sub(before.deleted?)?;
            (had + inserted).checked_sub(deleted)
        })
        .flatten();
    let half_a_page = (has / (after.bytes / PAGE).max(1) / 2).max(1);
    let short = expected.map_or(0, |e| e.saturating_sub(has));
    let sign = match &pages.filled_in {
        Some(label) => format!(
            "block {} holds only zeros; backup {label} has data there",
            pages.blocks.first()?
        ),
        None if short >= half_a_page => format!(
            "block {} holds only zeros, and the server counted {short} rows more than there are",
            pages.blocks.first()?
        ),
        None => return None,
    };
    Some(Loss::Rows {
        table,
        then: expected.unwrap_or(had).max(has),
        now: has,
        backup: backup.to_owned(),
        weight: Weight::Sure,
        sign,
    })
}

fn of_table(
    before: &RelationFact,
    after: &RelationFact,
    table: Option<&Table>,
    looks: (&DatabaseFacts, &DatabaseFacts),
    backup: &str,
    evidence: &DatabaseEvidence,
) -> Option<Loss> {
    if let Some(loss) = emptied(before, after, looks, backup, evidence) {
        return Some(loss);
    }
    let append_only = table.is_some_and(|t| t.append_only);
    match (before.rows, after.rows) {
        (Some(had), Some(has)) if has < had => Some(fewer(
            (before, had),
            (after, has),
            append_only,
            looks,
            backup,
            evidence,
        )),
        _ if append_only => older(before, after, looks, backup),
        _ => None,
    }
}

/// Rows are fewer than the backup knew: by an order, by damage, or nobody can tell.
fn fewer(
    (before, had): (&RelationFact, u64),
    (after, has): (&RelationFact, u64),
    append_only: bool,
    looks: (&DatabaseFacts, &DatabaseFacts),
    backup: &str,
    evidence: &DatabaseEvidence,
) -> Loss {
    let table = before.qualified();
    // What an index says of itself is no sign about the rows.
    let found = evidence
        .findings
        .iter()
        .any(|f| f.table == table && matches!(f.kind, FoundIn::Heap | FoundIn::Toast | FoundIn::ToastIndex));
    let deleted = counted(looks, before.deleted, after.deleted);
    let trace = if deleted.is_some_and(|d| d >= had - has) {
        Some(Trace::Counted)
    } else if !found && before.path != after.path {
        // TRUNCATE counts no deletion, and a crash forgets what was counted.
        Some(Trace::Rewritten)
    } else {
        None
    };
    if let Some(trace) = trace {
        return Loss::Deleted {
            table,
            then: had,
            now: has,
            backup: backup.to_owned(),
            trace,
        };
    }
    let shorter = before.path == after.path && after.bytes < before.bytes;
    let pages = before.bytes.saturating_sub(after.bytes) / PAGE;
    // VACUUM writes down the size that it cuts a file to. One that cuts to the same size each
    // time leaves exactly that size; a table that nobody ever vacuumed has none at all.
    let catalogue_unchanged = (before.pages, before.estimated_rows) == (after.pages, after.estimated_rows)
        && (before.pages > 0 || before.estimated_rows.is_none())
        && after.bytes > after.pages * PAGE;
    let (weight, sign) = if found {
        (Weight::Sure, "its structure shows it too".to_owned())
    } else if shorter && catalogue_unchanged {
        (
            Weight::Sure,
            format!("its file is {pages} pages shorter, and no VACUUM has cut it"),
        )
    } else if shorter && counters_hold(looks, before, after) {
        (
            Weight::Sure,
            format!("its file is {pages} pages shorter, and the server counted no deletion of them"),
        )
    } else if shorter {
        (
            Weight::WithReplay,
            format!(
                "its file is {pages} pages shorter; a VACUUM after a deletion does that too, and what the server \
                 counted does not reach back to the backup"
            ),
        )
    } else if append_only {
        (
            Weight::WithReplay,
            "the runbook says that rows are only ever added; whether somebody deleted them all the same is not known"
                .to_owned(),
        )
    } else {
        (
            Weight::Unsure,
            "nothing says whether they were deleted on purpose".to_owned(),
        )
    };
    Loss::Rows {
        table,
        then: had,
        now: has,
        backup: backup.to_owned(),
        weight,
        sign,
    }
}

/// The newest row of a table that only grows is older than it was.
fn older(
    before: &RelationFact,
    after: &RelationFact,
    looks: (&DatabaseFacts, &DatabaseFacts),
    backup: &str,
) -> Option<Loss> {
    let was = before.newest.as_ref()?.at?;
    let is = after.newest.as_ref()?.at?;
    // A row from the future was a mistake, and that it has gone is none.
    if is >= was || was > looks.0.taken_at {
        return None;
    }
    let changed = [(before.deleted, after.deleted), (before.updated, after.updated)]
        .into_iter()
        .any(|(was, is)| was.is_some() && counted(looks, was, is).is_some_and(|n| n > 0));
    let (table, then, now) = (before.qualified(), was.to_string(), is.to_string());
    let backup = backup.to_owned();
    Some(if changed {
        Loss::Changed {
            table,
            then,
            now,
            backup,
        }
    } else {
        Loss::Newest {
            table,
            then,
            now,
            backup,
        }
    })
}
