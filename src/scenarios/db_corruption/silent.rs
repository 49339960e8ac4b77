//! Losses that no server tool reports: a truncated or emptied file, a page of zeros, WAL
//! that was not replayed to its end. Only what was recorded before shows them.

use super::evidence::{BackupEvidence, ControlData, DatabaseEvidence};
use crate::probe::facts::{DatabaseFacts, RelationFact, RelationKind};
use crate::probe::relations::PAGE;
use crate::runbook::{Database, Table};

/// What the comparison of then and now shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loss {
    /// Rows that must be there are gone, and nobody deleted them.
    #[rustfmt::skip]
    Rows { table: String, then: u64, now: u64, backup: String, confirmed: bool, sign: String },
    /// The newest row is older than one that was seen before.
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
    /// Rows are fewer and the server counted their deletion: somebody's order, not damage.
    Deleted {
        table: String,
        then: u64,
        now: u64,
        backup: String,
    },
}

impl Loss {
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Rows { confirmed, .. } => *confirmed,
            Self::Newest { .. } | Self::Lsn { .. } => true,
            Self::Deleted { .. } => false,
        }
    }

    pub(super) fn table(&self) -> Option<&str> {
        match self {
            Self::Rows { table, .. } | Self::Newest { table, .. } | Self::Deleted { table, .. } => {
                Some(table)
            }
            Self::Lsn { .. } => None,
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
            } => format!(
                "{table} has {now} rows and had {then} in backup {backup}; the server counted their deletion"
            ),
        }
    }
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
    let same_cluster = |b: &&BackupEvidence| {
        control.is_none_or(|c| c.system_identifier.is_empty() || c.system_identifier == b.system_identifier)
    };
    let Some((backup, then)) = backups
        .iter()
        .filter(same_cluster)
        .find_map(|b| Some((b, b.facts.get(name)?)))
    else {
        return Vec::new();
    };
    let mut losses = Vec::new();
    if now.lsn < then.lsn {
        losses.push(Loss::Lsn {
            then: then.lsn.to_string(),
            now: now.lsn.to_string(),
            backup: backup.label.clone(),
        });
    }
    for before in then.relations.iter().filter(|r| r.kind == RelationKind::Table) {
        // A table that is gone was dropped: that is an order, and another scenario.
        let Some(after) = now.relation(&before.schema, &before.name) else {
            continue;
        };
        let table = config
            .tables
            .iter()
            .find(|(n, _)| n.schema == before.schema && n.table == before.name)
            .map(|(_, t)| t);
        losses.extend(of_table(
            before,
            after,
            table,
            (then, now),
            &backup.label,
            evidence,
        ));
    }
    losses
}

/// A table with pages of zeros that lost their rows: a base backup has data in them, or the
/// table has fewer rows than the server counted. The counters also count what was rolled
/// back, so that less than half a page of rows says nothing.
fn emptied(
    before: &RelationFact,
    after: &RelationFact,
    (then, now): (&DatabaseFacts, &DatabaseFacts),
    backup: &str,
    evidence: &DatabaseEvidence,
) -> Option<Loss> {
    let table = before.qualified();
    let pages = evidence.empty_pages.iter().find(|p| p.table == table)?;
    let (had, has) = (before.rows?, after.rows?);
    let expected = (then.stats_reset == now.stats_reset)
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
        confirmed: true,
        sign,
    })
}

fn of_table(
    before: &RelationFact,
    after: &RelationFact,
    table: Option<&Table>,
    (then, now): (&DatabaseFacts, &DatabaseFacts),
    backup: &str,
    evidence: &DatabaseEvidence,
) -> Vec<Loss> {
    let mut losses = Vec::new();
    let name = before.qualified();
    let append_only = table.is_some_and(|t| t.append_only);
    if let Some(loss) = emptied(before, after, (then, now), backup, evidence) {
        losses.push(loss);
    } else if let (Some(had), Some(has)) = (before.rows, after.rows)
        && has < had
    {
        let deleted = (then.stats_reset == now.stats_reset)
            .then(|| {
                after
                    .deleted
                    .unwrap_or_default()
                    .checked_sub(before.deleted.unwrap_or_default())
            })
            .flatten();
        if deleted.is_some_and(|d| d >= had - has) {
            losses.push(Loss::Deleted {
                table: name,
                then: had,
                now: has,
                backup: backup.to_owned(),
            });
            return losses;
        }
        let shorter = before.path == after.path && after.bytes < before.bytes;
        let found = evidence.findings.iter().any(|f| f.table == name);
        let (confirmed, sign) = if found {
            (true, "its structure shows it too".to_owned())
        } else if shorter {
            (
                true,
                format!(
                    "its file is {} pages shorter",
                    (before.bytes - after.bytes) / PAGE
                ),
            )
        } else if append_only {
            (true, "the runbook says that rows are only ever added".to_owned())
        } else {
            (
                false,
                "nothing says whether they were deleted on purpose".to_owned(),
            )
        };
        losses.push(Loss::Rows {
            table: name,
            then: had,
            now: has,
            backup: backup.to_owned(),
            confirmed,
            sign,
        });
    } else if append_only
        && let (Some(had), Some(has)) = (&before.newest, &after.newest)
        && let (Some(was), Some(is)) = (had.at, has.at)
        && is < was
    {
        losses.push(Loss::Newest {
            table: name,
            then: was.to_string(),
            now: is.to_string(),
            backup: backup.to_owned(),
        });
    }
    losses
}
