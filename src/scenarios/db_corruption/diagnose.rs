//! What the evidence means. Positive evidence for damage comes first; without it, the
//! look-alikes are asked one by one; only then is the server called sound.

use std::collections::{BTreeMap, BTreeSet};

use super::evidence::{Connection, Evidence, LogPattern, RelationFinding, RelationKind};
use super::look_alike::{
    closed_database, down, from_log, has, library, missing_database, no_room, other_cluster, refused,
    shared_memory_or_disk, slots,
};
use super::silent::{self, Loss};
use crate::postgres::{is_damage, missing_library, sqlstate};
use crate::runbook::Runbook;
use crate::scenarios::{Certainty, Diagnosis, LookAlike};
use crate::workload::Status;

/// What is damaged, as far as remedies differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Class {
    /// Nothing but indexes, by database: everything in them can be derived from the tables.
    Indexes {
        indexes: BTreeMap<String, BTreeSet<String>>,
    },
    /// Tables of one database.
    Tables {
        database: String,
        tables: BTreeSet<String>,
    },
    /// What the whole cluster rests on, or more than one database.
    Cluster { cause: String },
    /// Not corruption.
    LookAlike(LookAlike),
    /// Looked at and found good.
    Sound,
    /// Could not be looked at.
    Unknown { why: String },
}

/// The class with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub class: Class,
    pub certainty: Certainty,
    pub reasons: Vec<String>,
}

impl Finding {
    pub(super) fn new(class: Class, certainty: Certainty, reasons: Vec<String>) -> Self {
        Self {
            class,
            certainty,
            reasons,
        }
    }

    pub(super) fn look_alike(
        name: &str,
        explanation: impl Into<String>,
        reasons: Vec<String>,
        next: &[String],
    ) -> Self {
        Self::new(
            Class::LookAlike(LookAlike {
                name: name.to_owned(),
                explanation: explanation.into(),
                next: next.to_vec(),
            }),
            Certainty::Absent,
            reasons,
        )
    }

    pub(super) fn unknown(why: impl Into<String>, reasons: Vec<String>) -> Self {
        Self::new(Class::Unknown { why: why.into() }, Certainty::Unknown, reasons)
    }
}

/// The diagnosis as the operator reads it.
pub(super) fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
    let finding = classify(ev, rb);
    let list = |names: &BTreeSet<String>| {
        let mut shown: Vec<&str> = names.iter().take(5).map(String::as_str).collect();
        let more = format!("{} more", names.len().saturating_sub(5));
        if names.len() > 5 {
            shown.push(&more);
        }
        shown.join(", ")
    };
    let summary = match &finding.class {
        Class::Indexes { indexes } => format!(
            "{}; the tables themselves are readable",
            indexes
                .iter()
                .map(|(database, names)| format!("damaged indexes in database {database}: {}", list(names)))
                .collect::<Vec<_>>()
                .join("; ")
        ),
        Class::Tables { database, tables } => {
            format!("damaged tables in database {database}: {}", list(tables))
        }
        Class::Cluster { cause } => format!("{} is damaged as a whole: {cause}", ev.service),
        Class::LookAlike(l) => format!("no corruption of {}: {}", ev.service, l.explanation),
        Class::Sound => format!("no corruption found in {}", ev.service),
        Class::Unknown { why } => format!("{} could not be judged: {why}", ev.service),
    };
    Diagnosis {
        certainty: finding.certainty,
        summary,
        reasons: finding.reasons,
        look_alike: match finding.class {
            Class::LookAlike(l) => Some(l),
            _ => None,
        },
    }
}

/// Names the damage, or what only looks like it.
pub(super) fn classify(ev: &Evidence, rb: &Runbook) -> Finding {
    if !matches!(ev.container.status, Status::Running | Status::Restarting) {
        return down(ev);
    }
    if ev.container.status == Status::Restarting {
        return down(ev);
    }
    match &ev.connection {
        Connection::Open {
            in_recovery: true, ..
        } => Finding::look_alike(
            "in-recovery",
            "the server is replaying its log (crash recovery, or it is a standby); that is not damage",
            vec!["pg_is_in_recovery() says true".into()],
            &[format!(
                "docker logs --tail 20 {}    # watch it finish",
                ev.container.name
            )],
        ),
        Connection::Open { .. } => up(ev, rb),
        Connection::Refused { sqlstate, message } => refused(ev, sqlstate, message),
        Connection::Silent => Finding::unknown(
            "the server accepts connections and answers nothing",
            vec!["a frozen process or an overloaded host looks like this; damage does not".into()],
        ),
        Connection::Closed { cause } => match from_log(ev) {
            Some(finding) => finding,
            None => Finding::unknown(
                format!("nothing accepts connections ({cause})"),
                vec![format!("container {} is running", ev.container.name)],
            ),
        },
    }
}

/// A server that takes connections.
fn up(ev: &Evidence, rb: &Runbook) -> Finding {
    let mut damage: BTreeMap<&str, Vec<&RelationFinding>> = BTreeMap::new();
    let mut reasons = Vec::new();
    // Why a database gives no session without being damaged.
    let mut no_session = None;
    for (database, evidence) in &ev.databases {
        match &evidence.connection {
            Connection::Refused { sqlstate, message } => match sqlstate.as_str() {
                code if is_damage(code, message) => {
                    return Finding::new(
                        Class::Tables {
                            database: database.clone(),
                            tables: BTreeSet::from(["its catalogue".to_owned()]),
                        },
                        Certainty::Confirmed,
                        vec![format!("database {database} cannot be opened: {message}")],
                    );
                }
                // Damage elsewhere is told first, and so is a volume that is another's.
                sqlstate::INVALID_CATALOG => {
                    no_session.get_or_insert_with(|| missing_database(ev, database, message));
                    continue;
                }
                sqlstate::OBJECT_NOT_IN_STATE => {
                    no_session.get_or_insert_with(|| closed_database(ev, database, message));
                    continue;
                }
                _ if missing_library(message).is_some() => {
                    no_session.get_or_insert_with(|| library(ev, Some(database), message));
                    continue;
                }
                _ => return refused(ev, sqlstate, message),
            },
            Connection::Silent | Connection::Closed { .. } => {
                return Finding::unknown(
                    format!("database {database} gives no session"),
                    vec!["the administration database does".into()],
                );
            }
            Connection::Open { .. } => {}
        }
        for finding in &evidence.findings {
            let denied = finding.message.contains("Permission denied");
            if denied {
                return refused(ev, "42501", &finding.message);
            }
            if finding.sqlstate.as_deref() == Some(sqlstate::DISK_FULL) {
                return shared_memory_or_disk(ev, vec![finding.message.clone()]);
            }
            damage.entry(database).or_default().push(finding);
            reasons.push(format!("{}: {}", finding.relation, finding.message));
        }
    }
    let losses = losses(ev, rb);
    reasons.extend(losses.iter().map(|(_, l)| l.says()));
    let lost: Vec<&(String, Loss)> = losses.iter().filter(|(_, l)| l.is_damage()).collect();
    // The log position went back: everything since is gone, everywhere. A newest row that went
    // back says it only where the server itself says that its replay ended too early.
    let went_back = lost.iter().any(|(_, l)| matches!(l, Loss::Lsn { .. }));
    let ended_early = has(ev, LogPattern::ReplayEndedEarly);
    let fits = losses.iter().any(|(_, l)| l.fits_replay());
    if damage.is_empty() && (went_back || (ended_early.is_some() && fits)) {
        reasons.extend(ended_early.map(str::to_owned));
        return Finding::new(
            Class::Cluster {
                cause: "the replay of the write-ahead log ended too early, committed work is missing".into(),
            },
            Certainty::Confirmed,
            reasons,
        );
    }
    let other = other_cluster(ev);
    match tables_or_indexes(&damage, &lost) {
        Some(class) => {
            // Whoever restores here must know whose data that brings.
            reasons.extend(other.into_iter().flat_map(|f| f.reasons));
            Finding::new(class, Certainty::Confirmed, reasons)
        }
        None => other
            .or(no_session)
            .unwrap_or_else(|| nothing_found(ev, &losses, reasons, ended_early)),
    }
}

fn losses(ev: &Evidence, rb: &Runbook) -> Vec<(String, Loss)> {
    let mut all = Vec::new();
    for (name, config) in rb
        .postgres_services()
        .filter(|(service, ..)| service.as_str() == ev.service)
        .flat_map(|(_, _, p)| &p.databases)
    {
        if let Some(evidence) = ev.databases.get(name.as_str()) {
            // A control file that fails its checksum says nothing true.
            let control = ev.control.as_ref().ok().filter(|c| !c.checksum_mismatch);
            all.extend(
                silent::losses(name.as_str(), evidence, config, &ev.backups, control)
                    .into_iter()
                    .map(|l| (name.to_string(), l)),
            );
        }
    }
    all
}

/// Catalogues that all databases have in common (manual, 53.1): what is damaged in one of them is
/// found from every database.
const SHARED: [&str; 11] = [
    "pg_auth_members",
    "pg_authid",
    "pg_database",
    "pg_db_role_setting",
    "pg_parameter_acl",
    "pg_replication_origin",
    "pg_shdepend",
    "pg_shdescription",
    "pg_shseclabel",
    "pg_subscription",
    "pg_tablespace",
];

fn is_shared(table: &str) -> bool {
    table
        .strip_prefix("pg_catalog.")
        .is_some_and(|name| SHARED.contains(&name))
}

fn tables_or_indexes(
    damage: &BTreeMap<&str, Vec<&RelationFinding>>,
    lost: &[&(String, Loss)],
) -> Option<Class> {
    let mut indexes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut tables: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut once = BTreeSet::new();
    for (database, finding) in damage
        .iter()
        .flat_map(|(d, all)| all.iter().map(move |f| (*d, *f)))
    {
        let shared = is_shared(&finding.table);
        if matches!(finding.kind, RelationKind::Index | RelationKind::ToastIndex) {
            // One rebuilding is enough, from any database.
            if !shared || once.insert(&finding.relation) {
                let of_database = indexes.entry(database.to_owned()).or_default();
                of_database.insert(finding.relation.clone());
            }
        } else if shared {
            // No restore of one database brings it back.
            return Some(Class::Cluster {
                cause: format!("{}, which all databases share, is damaged", finding.table),
            });
        } else {
            tables.entry(database).or_default().insert(finding.table.clone());
        }
    }
    for (database, loss) in lost {
        let of_database = tables.entry(database).or_default();
        of_database.extend(loss.table().map(str::to_owned));
    }
    // However many databases: rebuilding loses nothing and stops nothing.
    if tables.is_empty() {
        return (!indexes.is_empty()).then_some(Class::Indexes { indexes });
    }
    let databases: BTreeSet<&str> = tables
        .keys()
        .copied()
        .chain(indexes.keys().map(String::as_str))
        .collect();
    if databases.len() > 1 {
        return Some(Class::Cluster {
            cause: format!(
                "databases {} are damaged",
                databases.into_iter().collect::<Vec<_>>().join(", ")
            ),
        });
    }
    let (database, tables) = tables.pop_first()?;
    Some(if tables.is_empty() {
        Class::Indexes { indexes }
    } else {
        Class::Tables {
            database: database.to_owned(),
            tables,
        }
    })
}

/// Rows or tables are gone by somebody's order.
fn ordered(losses: &[(String, Loss)]) -> Finding {
    let dropped = losses
        .iter()
        .filter(|(_, l)| matches!(l, Loss::Dropped { .. }))
        .count();
    let restored = losses.iter().any(|(_, l)| matches!(l, Loss::Restored { .. }));
    let what = match dropped {
        _ if restored => "what came after a moment in the past is gone because somebody restored that moment",
        0 => "rows are gone or were changed because somebody gave the order",
        n if n == losses.len() => "tables are gone because somebody dropped or renamed them",
        _ => "tables and rows are gone because somebody gave the order",
    };
    Finding::look_alike(
        "data-loss",
        format!("{what}; the server did what it was told"),
        losses.iter().map(|(_, l)| l.says()).collect(),
        &[
            "drctl backup list    # RESTORE.md in each set: restore the database beside this one, copy the rows back"
                .into(),
        ],
    )
}

/// No damage: is it a look-alike, is it sound, or could it not be looked at?
fn nothing_found(
    ev: &Evidence,
    losses: &[(String, Loss)],
    mut reasons: Vec<String>,
    ended_early: Option<&str>,
) -> Finding {
    if let Some(line) = has(ev, LogPattern::SharedMemory) {
        let finding = shared_memory_or_disk(ev, vec![line.to_owned()]);
        if matches!(&finding.class, Class::LookAlike(l) if l.name == "shm-full") {
            return finding;
        }
    }
    if let Some((used, size)) = ev.files.as_ref().ok().and_then(|f| f.shm)
        && size > 0
        && used * 10 > size * 9
    {
        return shared_memory_or_disk(ev, vec!["/dev/shm of the container is nearly full".into()]);
    }
    if let Some(finding) = no_room(ev) {
        return finding;
    }
    if let Some(s) = &ev.slots
        && s.used + s.reserved >= s.max
    {
        return slots(ev, Vec::new());
    }
    // One loss that no order explains is told before those that one does.
    if ended_early.is_none() && !losses.is_empty() && losses.iter().all(|(_, l)| l.is_order()) {
        return ordered(losses);
    }
    if !losses.is_empty() || ended_early.is_some() {
        reasons.extend(ended_early.map(str::to_owned));
        return Finding::new(
            Class::Unknown {
                why: "some signs of a loss, none of them sure".into(),
            },
            Certainty::Suspected,
            reasons,
        );
    }
    // What needs the library could not be looked at; nothing else spoke of damage.
    if let Some((database, message)) = ev
        .databases
        .iter()
        .flat_map(|(d, e)| e.not_examined.iter().map(move |(_, why)| (d, why)))
        .find(|(_, why)| missing_library(why).is_some())
    {
        return library(ev, Some(database), message);
    }
    let examined: u32 = ev.databases.values().map(|d| d.examined).sum();
    let skipped: Vec<String> = ev
        .databases
        .iter()
        .flat_map(|(d, e)| {
            e.not_examined
                .iter()
                .map(move |(r, why)| format!("not examined: {d}.{r}: {why}"))
        })
        .collect();
    if examined == 0 {
        return Finding::unknown("no relation could be examined", skipped);
    }
    if let Err(e) = &ev.files {
        reasons.push(format!("{examined} relations examined, nothing found"));
        return Finding::unknown(format!("its files could not be looked at: {e}"), reasons);
    }
    // Whose facts the backups hold is not known then, and none of them was compared.
    let identified = ev.control.as_ref().is_ok_and(|c| !c.checksum_mismatch);
    if !identified && ev.backups.iter().any(|b| !b.facts.is_empty()) {
        reasons.push(format!("{examined} relations examined, nothing found"));
        return Finding::unknown(
            "its control file could not be read: nothing was compared with the backups",
            reasons,
        );
    }
    // Damage may sit in what was not read: sound is said only of a whole look.
    let unfinished: u32 = ev.databases.values().map(|d| d.unfinished).sum();
    if unfinished > 0 {
        reasons.push(format!("{examined} relations examined, nothing found"));
        reasons.extend(skipped.into_iter().take(10));
        let hint = if ev.deep { "" } else { "; look again with --deep" };
        return Finding::unknown(
            format!("{unfinished} of its relations could not be examined{hint}"),
            reasons,
        );
    }
    reasons.push(format!("{examined} relations examined, nothing found"));
    reasons.extend(skipped.into_iter().take(10));
    Finding::new(Class::Sound, Certainty::Absent, reasons)
}
