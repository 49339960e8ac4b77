//! What the evidence means. Positive evidence for damage comes first; without it, the
//! look-alikes are asked one by one; only then is the server called sound.

use std::collections::{BTreeMap, BTreeSet};

use super::evidence::{Connection, Evidence, LogPattern, RelationFinding, RelationKind};
use super::silent::{self, Loss};
use crate::postgres::sqlstate;
use crate::runbook::Runbook;
use crate::scenarios::{Certainty, Diagnosis, LookAlike};
use crate::workload::Status;

/// What is damaged, as far as remedies differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Class {
    /// Indexes of one database: everything in them can be derived from the tables.
    Indexes {
        database: String,
        indexes: BTreeSet<String>,
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
    fn new(class: Class, certainty: Certainty, reasons: Vec<String>) -> Self {
        Self {
            class,
            certainty,
            reasons,
        }
    }

    fn look_alike(name: &str, explanation: impl Into<String>, reasons: Vec<String>, next: &[String]) -> Self {
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

    fn unknown(why: impl Into<String>, reasons: Vec<String>) -> Self {
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
        Class::Indexes { database, indexes } => format!(
            "damaged indexes in database {database}: {}; the tables themselves are readable",
            list(indexes)
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

fn has(ev: &Evidence, pattern: LogPattern) -> Option<&str> {
    ev.log
        .iter()
        .rev()
        .find(|l| l.pattern == pattern)
        .map(|l| l.line.as_str())
}

/// A container that does not run: its last words decide.
fn down(ev: &Evidence) -> Finding {
    let name = &ev.container.name;
    if ev.container.status == Status::Paused {
        return Finding::look_alike(
            "paused",
            format!("container {name} is paused"),
            vec!["the engine says so".into()],
            &[format!("docker unpause {name}")],
        );
    }
    if let Some(finding) = from_log(ev) {
        return finding;
    }
    if ev.container.oom_killed {
        return Finding::look_alike(
            "out-of-memory",
            format!("container {name} was killed for want of memory"),
            vec![format!("exit code {}, OOMKilled", ev.container.exit_code)],
            &[
                format!("docker start {name}"),
                format!("docker update --memory … {name}"),
            ],
        );
    }
    if let Some(line) = has(ev, LogPattern::OtherFatal) {
        return Finding::unknown(
            "the server ended on something unknown",
            vec![format!("exit code {}", ev.container.exit_code), line.to_owned()],
        );
    }
    let mut reasons = vec![format!("it ended with exit code {}", ev.container.exit_code)];
    if !ev.container.error.is_empty() {
        reasons.push(ev.container.error.clone());
    }
    Finding::look_alike(
        "stopped",
        format!("container {name} is stopped, and nothing in its log speaks of damage"),
        reasons,
        &[
            format!("docker start {name}"),
            "drctl recover db-corruption    # once it runs, to be sure".into(),
        ],
    )
}

/// What the log of the last run says. The look-alikes come first: a file that may not be
/// read is not a damaged file, whatever the server then says about it.
fn from_log(ev: &Evidence) -> Option<Finding> {
    let name = &ev.container.name;
    let volume = ev
        .container
        .mounts
        .iter()
        .find_map(|m| m.volume.clone())
        .unwrap_or_default();
    let image = &ev.container.image;
    let files = ev.files.as_ref().ok();
    if let (Some(data), Some(program)) = (
        files.and_then(|f| f.version.as_deref()),
        files.and_then(|f| f.program_version.as_deref()),
    ) && data != program
    {
        return Some(Finding::look_alike(
            "wrong-major",
            format!("the data is of PostgreSQL {data} and the image is PostgreSQL {program}"),
            has(ev, LogPattern::WrongVersion)
                .map(str::to_owned)
                .into_iter()
                .collect(),
            &[
                format!("# start it with an image of PostgreSQL {data}, if that is what the data is"),
                format!(
                    "# if only the file PG_VERSION is wrong: docker run --rm -v {volume}:/d {image} sh -c 'echo {program} > /d/PG_VERSION'"
                ),
            ],
        ));
    }
    if let Some(line) = has(ev, LogPattern::Permission) {
        let owner = files.map_or("the server's user", |f| f.owner.as_str());
        let mut reasons = vec![line.to_owned()];
        reasons.extend(
            files
                .into_iter()
                .flat_map(|f| f.foreign.iter().take(5).map(|p| format!("not the server's: {p}"))),
        );
        return Some(Finding::look_alike(
            "permissions",
            "files of the data directory belong to the wrong user or have the wrong mode",
            reasons,
            &[
                format!("docker run --rm -v {volume}:/d {image} chown -R {owner} /d"),
                format!("docker start {name}"),
            ],
        ));
    }
    if let Some(line) = has(ev, LogPattern::DiskFull) {
        let free = files.map_or(0, |f| f.disk_free);
        return Some(Finding::look_alike(
            "disk-full",
            format!(
                "the disk is full ({} free); the server stops to protect the data",
                crate::event::bytes(free)
            ),
            vec![line.to_owned()],
            &[
                "df -h; docker system df    # what fills it?".into(),
                "# never delete anything in pg_wal".into(),
            ],
        ));
    }
    let wrong_setting = files.and_then(|f| f.configuration_error.clone());
    if has(ev, LogPattern::Configuration).is_some() {
        let line = has(ev, LogPattern::Configuration).map(str::to_owned);
        return Some(Finding::look_alike(
            "config",
            "the server refuses its configuration",
            line.into_iter().chain(wrong_setting).collect(),
            &[
                format!("docker logs --tail 5 {name}    # names file and line"),
                "# settings made by ALTER SYSTEM are in postgresql.auto.conf, which wins".into(),
            ],
        ));
    }
    let cluster = |cause: &str, pattern| {
        has(ev, pattern).map(|line| {
            let mut reasons = vec![format!(
                "the server does not start, exit code {}: {line}",
                ev.container.exit_code
            )];
            match &ev.control {
                Ok(c) if c.checksum_mismatch => {
                    reasons.push("pg_controldata: the checksum does not match".into())
                }
                Ok(c) => reasons.push(format!("pg_controldata: state {:?}", c.state)),
                Err(e) => reasons.push(format!("pg_controldata: {e}")),
            }
            Finding::new(
                Class::Cluster {
                    cause: cause.to_owned(),
                },
                Certainty::Confirmed,
                reasons,
            )
        })
    };
    cluster(
        "its control file (global/pg_control) is unusable",
        LogPattern::ControlFile,
    )
    .or_else(|| {
        cluster(
            "the write-ahead log that it must replay is gone or unreadable",
            LogPattern::NoCheckpoint,
        )
    })
    .or_else(|| {
        cluster(
            "transaction status (pg_xact) is missing",
            LogPattern::TransactionStatus,
        )
    })
    .or_else(|| {
        cluster(
            "a page that it needs to start is damaged",
            LogPattern::DamagedPage,
        )
    })
    .or_else(|| {
        cluster(
            "a file that it needs to start is missing",
            LogPattern::MissingFile,
        )
    })
    .or_else(|| {
        wrong_setting.map(|error| {
            Finding::look_alike(
                "config",
                "the server refuses its configuration",
                vec![error],
                &[format!("docker logs --tail 5 {name}    # names file and line")],
            )
        })
    })
}

/// The server runs and turned the administrator away.
fn refused(ev: &Evidence, code: &str, message: &str) -> Finding {
    let (name, image) = (&ev.container.name, &ev.container.image);
    let reasons = vec![message.to_owned()];
    match code {
        // Between two crashes it is "starting up" too; then its last words count.
        sqlstate::CANNOT_CONNECT_NOW => from_log(ev).unwrap_or_else(|| {
            Finding::look_alike(
                "starting",
                "the server is starting up, shutting down or replaying its log",
                reasons,
                &[format!(
                    "docker logs --tail 20 {name}    # watch it finish, then run this again"
                )],
            )
        }),
        sqlstate::TOO_MANY_CONNECTIONS => slots(ev, reasons),
        sqlstate::INVALID_PASSWORD | sqlstate::INVALID_AUTHORIZATION => Finding::look_alike(
            "wrong-password",
            "the server runs and refuses drctl's user or password",
            reasons,
            &["drctl runbook show    # which secret is used for the admin user?".into()],
        ),
        _ if message.contains("Permission denied") || message.contains("permission") => {
            let owner = ev.files.as_ref().map_or("OWNER", |f| f.owner.as_str());
            let volume = ev
                .container
                .mounts
                .iter()
                .find_map(|m| m.volume.clone())
                .unwrap_or_default();
            let mut all = reasons;
            if let Ok(files) = &ev.files {
                all.extend(
                    files
                        .foreign
                        .iter()
                        .take(5)
                        .map(|p| format!("not the server's: {p}")),
                );
            }
            Finding::look_alike(
                "permissions",
                "files of the data directory belong to the wrong user or have the wrong mode",
                all,
                &[format!(
                    "docker run --rm -v {volume}:/d {image} chown -R {owner} /d    # heals it live"
                )],
            )
        }
        sqlstate::DISK_FULL => shared_memory_or_disk(ev, reasons),
        sqlstate::DATA_CORRUPTED | sqlstate::INDEX_CORRUPTED | sqlstate::UNDEFINED_FILE => Finding::new(
            Class::Cluster {
                cause: "what a session needs to begin is damaged".into(),
            },
            Certainty::Confirmed,
            reasons,
        ),
        _ => Finding::unknown("the server refuses the session", reasons),
    }
}

fn slots(ev: &Evidence, mut reasons: Vec<String>) -> Finding {
    if let Some(s) = &ev.slots {
        reasons.push(format!(
            "{} of {} connections are taken ({} idle, {} idle in a transaction), {} are reserved",
            s.used, s.max, s.idle, s.idle_in_transaction, s.reserved
        ));
    }
    Finding::look_alike(
        "slots-full",
        "every connection slot that users may have is taken",
        reasons,
        &[
            "select pid, usename, state, state_change from pg_stat_activity order by state_change;".into(),
            "select pg_terminate_backend(pid) from pg_stat_activity where state like 'idle%' and state_change < now() - interval '10 minutes';".into(),
        ],
    )
}

fn shared_memory_or_disk(ev: &Evidence, reasons: Vec<String>) -> Finding {
    let shm = ev.files.as_ref().ok().and_then(|f| f.shm);
    if let Some((used, size)) = shm
        && used * 10 > size * 8
    {
        return Finding::look_alike(
            "shm-full",
            format!(
                "/dev/shm of the container is full ({} of {}); the disk is not",
                crate::event::bytes(used),
                crate::event::bytes(size)
            ),
            reasons,
            &[
                format!("docker exec {} ls -la /dev/shm    # what is in it?", ev.container.name),
                "alter system set max_parallel_workers_per_gather = 0; select pg_reload_conf();    # until shm_size is raised".into(),
            ],
        );
    }
    let free = ev.files.as_ref().map_or(0, |f| f.disk_free);
    Finding::look_alike(
        "disk-full",
        format!("a file system is full ({} free)", crate::event::bytes(free)),
        reasons,
        &["df -h; docker system df".into()],
    )
}

/// A server that takes connections.
fn up(ev: &Evidence, rb: &Runbook) -> Finding {
    let mut damage: BTreeMap<&str, Vec<&RelationFinding>> = BTreeMap::new();
    let mut reasons = Vec::new();
    for (database, evidence) in &ev.databases {
        match &evidence.connection {
            Connection::Refused { sqlstate, message } => match sqlstate.as_str() {
                sqlstate::DATA_CORRUPTED | sqlstate::INDEX_CORRUPTED | sqlstate::UNDEFINED_FILE | "XX000" => {
                    return Finding::new(
                        Class::Tables {
                            database: database.clone(),
                            tables: BTreeSet::from(["its catalogue".to_owned()]),
                        },
                        Certainty::Confirmed,
                        vec![format!("database {database} cannot be opened: {message}")],
                    );
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
    // The log position or the newest row went back: everything since is gone, everywhere.
    let went_back = lost
        .iter()
        .any(|(_, l)| matches!(l, Loss::Lsn { .. } | Loss::Newest { .. }));
    let ended_early = has(ev, LogPattern::ReplayEndedEarly);
    if damage.is_empty() && (went_back || (ended_early.is_some() && !lost.is_empty())) {
        reasons.extend(ended_early.map(str::to_owned));
        return Finding::new(
            Class::Cluster {
                cause: "the replay of the write-ahead log ended too early, committed work is missing".into(),
            },
            Certainty::Confirmed,
            reasons,
        );
    }
    match tables_or_indexes(&damage, &lost) {
        Some(class) => Finding::new(class, Certainty::Confirmed, reasons),
        None => nothing_found(ev, &losses, reasons, ended_early),
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

fn tables_or_indexes(
    damage: &BTreeMap<&str, Vec<&RelationFinding>>,
    lost: &[&(String, Loss)],
) -> Option<Class> {
    let databases: BTreeSet<&str> = damage
        .keys()
        .copied()
        .chain(lost.iter().map(|(d, _)| d.as_str()))
        .collect();
    let mut iter = databases.iter();
    let (Some(database), more) = (iter.next(), iter.next()) else {
        return None;
    };
    let only_index = |f: &&RelationFinding| matches!(f.kind, RelationKind::Index | RelationKind::ToastIndex);
    let findings = damage.get(database).map(Vec::as_slice).unwrap_or_default();
    let tables: BTreeSet<String> = findings
        .iter()
        .filter(|f| !only_index(f))
        .map(|f| f.table.clone())
        .chain(lost.iter().filter_map(|(_, l)| l.table().map(str::to_owned)))
        .collect();
    if more.is_some() {
        return Some(Class::Cluster {
            cause: format!(
                "databases {} are damaged",
                databases.into_iter().collect::<Vec<_>>().join(", ")
            ),
        });
    }
    Some(if tables.is_empty() {
        Class::Indexes {
            database: (*database).to_owned(),
            indexes: findings.iter().map(|f| f.relation.clone()).collect(),
        }
    } else {
        Class::Tables {
            database: (*database).to_owned(),
            tables,
        }
    })
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
    if let Some(s) = &ev.slots
        && s.used + s.reserved >= s.max
    {
        return slots(ev, Vec::new());
    }
    let deleted: Vec<String> = losses
        .iter()
        .filter(|(_, l)| matches!(l, Loss::Deleted { .. }))
        .map(|(_, l)| l.says())
        .collect();
    if !deleted.is_empty() {
        return Finding::look_alike(
            "data-loss",
            "rows are gone because somebody deleted them; the server did what it was told",
            deleted,
            &["drctl backup list    # then restore beside and copy the rows back".into()],
        );
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
    reasons.push(format!("{examined} relations examined, nothing found"));
    reasons.extend(skipped.into_iter().take(10));
    Finding::new(Class::Sound, Certainty::Absent, reasons)
}
