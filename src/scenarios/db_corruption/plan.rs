//! The ladder: which remedy, and why not a gentler or a harsher one. Pure.

use std::collections::BTreeSet;

use super::Rung;
use super::diagnose::{Class, classify};
use super::evidence::{BackupEvidence, Connection, Evidence, LogicalEnd};
use super::loss::data_loss;
use super::{NAME, steps};
use crate::event::bytes;
use crate::plan::{PLAN_FORMAT, Plan};
use crate::postgres::{quote_ident, quote_literal, wal_gap};
use crate::runbook::Runbook;
use crate::scenarios::ladder;
use crate::scenarios::{Certainty, PlanRequest, Refusal};
use crate::system;

/// Bytes a restore needs beyond what it restores: WAL, temporary files.
const HEADROOM: u64 = 64 << 20;

/// What every rung's plan is made from.
pub(super) struct Ground<'a> {
    pub ev: &'a Evidence,
    pub rb: &'a Runbook,
    pub request: &'a PlanRequest,
    /// The set that is used, when there is one.
    pub backup: Option<&'a BackupEvidence>,
    pub class: &'a Class,
}

/// The least destructive remedy that is possible and was not tried.
pub(super) fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let finding = classify(ev, rb);
    let ladder: &[Rung] = match &finding.class {
        Class::Indexes { .. } => &[
            Rung::Reindex,
            Rung::RestoreDatabase,
            Rung::RestoreCluster,
            Rung::Salvage,
        ],
        Class::Tables { .. } => &[Rung::RestoreDatabase, Rung::RestoreCluster, Rung::Salvage],
        Class::Cluster { .. } => &[Rung::RestoreCluster, Rung::Salvage],
        Class::LookAlike(_) | Class::Sound | Class::Unknown { .. } => {
            let next = match finding.certainty {
                // What might be damage leads to nothing that users would notice.
                Certainty::Suspected => vec![
                    "drctl diagnose --deep    # reads every row and every index".into(),
                    "drctl backup list    # RESTORE.md in each set: restore beside, and compare".into(),
                ],
                _ => Vec::new(),
            };
            return Err(Refusal {
                message: super::diagnose::diagnose(ev, rb).summary,
                reasons: finding.reasons,
                next,
            });
        }
    };
    let named = named_backup(ev, request)?;
    let on = |remedy| Ground {
        ev,
        rb,
        request,
        backup: backup_for(remedy, ev, named, &finding.class),
        class: &finding.class,
    };
    let rungs: Vec<ladder::Rung> = ladder
        .iter()
        .map(|r| ladder::rung(request, r.remedy(), obstacle(*r, &on(*r))))
        .collect();
    let chosen = ladder::choose(
        NAME,
        &rungs,
        request.remedy,
        &finding.reasons,
        vec![
            "drctl backup list    # is there a set elsewhere that can be copied here?".into(),
            "# make room, or attach a larger volume, and run this again".into(),
        ],
    )?;
    let remedy = Rung::of(chosen).unwrap_or(Rung::Salvage);
    let alternatives = ladder::alternatives(&rungs, chosen, |other| {
        Rung::of(other).map_or_else(String::new, |r| not_chosen(r, remedy, &on(r)))
    });
    let ground = on(remedy);
    let backup = ground.backup;
    let draft = steps::draft(remedy, &ground);
    let diagnosis = super::diagnose::diagnose(ev, rb).summary;
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: ev.service.clone(),
        diagnosis,
        remedy: chosen,
        alternatives,
        backup: (!matches!(remedy, Rung::Reindex | Rung::Salvage))
            .then(|| backup.map(|b| b.label.clone()))
            .flatten(),
        steps: draft.steps,
        expect: draft.expect,
        data_loss: data_loss(remedy, &ground),
        estimate_seconds: draft.estimate_seconds,
        disk_needed: disk_needed(remedy, &ground),
        disk_free: ev.files.as_ref().ok().map(|f| f.disk_free),
        kept: draft.kept,
        discard: draft.discard,
    })
}

/// The newest set that holds what a remedy needs; the newest at all, to say what it lacks,
/// when none does.
fn backup_for<'a>(
    remedy: Rung,
    ev: &'a Evidence,
    named: Option<&'a BackupEvidence>,
    class: &Class,
) -> Option<&'a BackupEvidence> {
    if remedy == Rung::Salvage {
        return None;
    }
    let fits = |b: &&BackupEvidence| match remedy {
        Rung::RestoreCluster => b.base.is_some(),
        _ => damaged_database(class).is_none_or(|d| b.dumps.contains_key(d)),
    };
    named.or_else(|| ev.backups.iter().find(fits).or(ev.backups.first()))
}

/// The set that the operator named.
fn named_backup<'a>(ev: &'a Evidence, request: &PlanRequest) -> Result<Option<&'a BackupEvidence>, Refusal> {
    let Some(label) = request.backup.as_deref().filter(|l| *l != "latest") else {
        return Ok(None);
    };
    match ev.backups.iter().find(|b| b.label == label) {
        Some(backup) => Ok(Some(backup)),
        None => Err(Refusal {
            message: format!("there is no usable backup {label} of {}", ev.service),
            reasons: ev
                .unusable_backups
                .iter()
                .filter(|(l, _)| l == label)
                .map(|(l, why)| format!("{l}: {why}"))
                .collect(),
            next: vec!["drctl backup list".into()],
        }),
    }
}

/// Why a rung cannot be used; `None` when it can.
fn obstacle(remedy: Rung, ground: &Ground<'_>) -> Option<String> {
    let ev = ground.ev;
    let open = matches!(ev.connection, Connection::Open { .. });
    let not_open = || (!open).then(|| "the server takes no connections".to_owned());
    let no_backup = || {
        let bad = ev.unusable_backups.len();
        let and = if bad > 0 {
            format!(" ({bad} unusable)")
        } else {
            String::new()
        };
        format!(
            "there is no usable backup in {}{and}",
            ground.rb.backup.directory.display()
        )
    };
    let obstacle = match remedy {
        Rung::Reindex => not_open(),
        Rung::RestoreDatabase => not_open().or_else(|| match ground.backup {
            None => Some(no_backup()),
            Some(b) => dump_obstacle(b, ground).or_else(|| logical_obstacle(ground)),
        }),
        Rung::RestoreCluster => match ground.backup {
            None => Some(no_backup()),
            Some(b) => base_obstacle(b, ev).or_else(|| shared_with_a_copy(ev)),
        }
        .or_else(|| mount_in_the_way(ev)),
        Rung::Salvage => match &ev.files {
            Err(e) => Some(format!("the data directory cannot be looked at: {e}")),
            // The log's directory is copied whole; what else lies elsewhere is not.
            Ok(files) => files.links.iter().find(|l| *l != "pg_wal").map(|link| {
                format!("{link} leads out of the data directory: a copy would share it with the original")
            }),
        }
        .or_else(|| mount_in_the_way(ev)),
    };
    obstacle.or_else(|| disk_obstacle(remedy, ground))
}

fn dump_obstacle(backup: &BackupEvidence, ground: &Ground<'_>) -> Option<String> {
    if let Class::Indexes { indexes } = ground.class
        && indexes.len() > 1
    {
        let names: Vec<&str> = indexes.keys().map(String::as_str).collect();
        return Some(format!(
            "it restores one database, and indexes of {} are damaged",
            names.join(", ")
        ));
    }
    let database = damaged_database(ground.class)?;
    if !backup.dumps.contains_key(database) {
        return Some(format!("backup {} holds no dump of {database}", backup.label));
    }
    match ground.ev.connection {
        Connection::Open { version, .. } if version / 10_000 < backup.version / 10_000 => Some(format!(
            "backup {} is of PostgreSQL {}, the server is older",
            backup.label,
            backup.version / 10_000
        )),
        _ => None,
    }
}

/// A database that takes part in logical replication: its other end would stay with the damaged
/// one, whatever name that has, and the restored rows would not be what was agreed on.
fn logical_obstacle(ground: &Ground<'_>) -> Option<String> {
    let database = damaged_database(ground.class)?;
    let link = ground.ev.logical.iter().find(|l| l.database == database)?;
    let name = &link.name;
    Some(match link.end {
        LogicalEnd::Subscription => {
            let quoted = quote_ident(name);
            format!(
                "subscription {name} of {database} would stay with the damaged database; take it off, and make it anew \
                 after the restore: alter subscription {quoted} disable; alter subscription {quoted} \
                 set (slot_name = none); drop subscription {quoted}"
            )
        }
        LogicalEnd::Slot => format!(
            "the logical replication slot {name} of {database} would stay with the damaged database; drop it, and have \
             its subscriber copy everything anew after the restore: select pg_drop_replication_slot({})",
            quote_literal(name)
        ),
    })
}

fn base_obstacle(backup: &BackupEvidence, ev: &Evidence) -> Option<String> {
    if backup.base.is_none() {
        return Some(format!("backup {} holds no base backup", backup.label));
    }
    let program = ev.files.as_ref().ok().and_then(|f| f.program_version.clone());
    match program {
        Some(program) if program != (backup.version / 10_000).to_string() => Some(format!(
            "backup {} is of PostgreSQL {}, the image is PostgreSQL {program}",
            backup.label,
            backup.version / 10_000
        )),
        _ => None,
    }
}

/// A tablespace, or a database's directory that lies elsewhere. What a side server replays, a
/// `CREATE TABLESPACE` and all that follows it, it writes to the very directory that the server
/// itself uses.
pub(super) fn shared_with_a_copy(ev: &Evidence) -> Option<String> {
    let files = ev.files.as_ref().ok()?;
    let outside = |l: &&String| l.starts_with("pg_tblspc") || l.starts_with("base");
    files.links.iter().find(outside).map(|link| {
        format!(
            "{link} leads out of the data directory: the replay of the log beside the data would write to it; \
             restore the base backup by hand, on another host (RESTORE.md in the set)"
        )
    })
}

/// The data directory's content is renamed, entry by entry: a mount point inside it would stop
/// that half-way, with the server down.
fn mount_in_the_way(ev: &Evidence) -> Option<String> {
    let data = system::data_dir(&ev.container);
    ev.container.mount_below(data).map(|m| {
        format!(
            "{} is mounted by itself inside the data directory {data}: it cannot be moved aside with the rest",
            m.destination
        )
    })
}

fn disk_obstacle(remedy: Rung, ground: &Ground<'_>) -> Option<String> {
    let free = ground.ev.files.as_ref().ok()?.disk_free;
    let needed = disk_needed(remedy, ground);
    (needed > free).then(|| {
        format!(
            "it needs {} beside the old data and {} are free",
            bytes(needed),
            bytes(free)
        )
    })
}

/// Bytes needed while the old data is still there.
fn disk_needed(remedy: Rung, ground: &Ground<'_>) -> u64 {
    let ev = ground.ev;
    let database_bytes = |name: &str| {
        ev.databases
            .get(name)
            .and_then(|d| d.facts.as_ref())
            .or_else(|| ground.backup.and_then(|b| b.facts.get(name)))
            .map_or(0, |f| f.bytes)
    };
    match remedy {
        Rung::Reindex => index_bytes(ground),
        Rung::RestoreDatabase => damaged_database(ground.class).map_or(0, database_bytes) + HEADROOM,
        Rung::RestoreCluster => {
            let base = ground.backup.and_then(|b| b.base.as_ref()).map_or(0, |b| b.bytes);
            // Salvage works on a copy of the damage, for a while.
            let copy = if steps::salvages_from_copy(ground) {
                data_bytes(ev)
            } else {
                0
            };
            base + copy + HEADROOM
        }
        Rung::Salvage => data_bytes(ev) + HEADROOM,
    }
}

/// Bytes of the damaged indexes.
pub(super) fn index_bytes(ground: &Ground<'_>) -> u64 {
    let Class::Indexes { indexes } = ground.class else {
        return 0;
    };
    let bytes = |(database, names): (&String, &BTreeSet<String>)| -> u64 {
        let facts = ground.ev.databases.get(database).and_then(|d| d.facts.as_ref());
        facts
            .iter()
            .flat_map(|f| &f.relations)
            .filter(|r| names.contains(&r.qualified()))
            .map(|r| r.bytes)
            .sum()
    };
    indexes.iter().map(bytes).sum()
}

pub(super) fn data_bytes(ev: &Evidence) -> u64 {
    ev.files.as_ref().map_or(0, |f| f.data_bytes)
}

/// The one database that is damaged; `None` also where indexes of several are.
pub(super) fn damaged_database(class: &Class) -> Option<&str> {
    match class {
        Class::Indexes { indexes } if indexes.len() == 1 => indexes.keys().next().map(String::as_str),
        Class::Tables { database, .. } => Some(database),
        _ => None,
    }
}

fn not_chosen(other: Rung, chosen: Rung, ground: &Ground<'_>) -> String {
    if other < chosen {
        return "the operator chose a harsher one".into();
    }
    let loss = data_loss(other, ground);
    match other {
        Rung::RestoreDatabase => format!("it replaces the whole database; {}", loss.summary),
        Rung::RestoreCluster => format!(
            "it stops the server and replaces every database; {}",
            loss.summary
        ),
        Rung::Salvage => "it brings damage along; only for want of a backup".into(),
        Rung::Reindex => loss.summary,
    }
}

/// Whether the WAL from the base backup's start up to now is all there.
pub(super) fn wal_is_complete(ground: &Ground<'_>) -> bool {
    let (Some(base), Ok(files)) = (ground.backup.and_then(|b| b.base.as_ref()), &ground.ev.files) else {
        return false;
    };
    let same_cluster = ground.ev.control.as_ref().is_ok_and(|c| {
        ground
            .backup
            .is_some_and(|b| b.system_identifier == c.system_identifier)
    });
    // A control file that is damaged cannot say; the WAL itself does when it is replayed.
    let unreadable = ground.ev.control.as_ref().map_or(true, |c| c.checksum_mismatch);
    (same_cluster || unreadable) && wal_gap(&files.wal, &base.first_segment).is_none()
}

/// Whether a replay of the log on the base backup brings everything back: it is all there, and
/// it is not what is damaged.
pub(super) fn replay_is_whole(ground: &Ground<'_>) -> bool {
    let log_is_damaged =
        matches!(ground.class, Class::Cluster { cause } if cause.contains("write-ahead log"));
    wal_is_complete(ground) && !log_is_damaged
}
