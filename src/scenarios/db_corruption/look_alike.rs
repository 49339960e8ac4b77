//! What a server says when it does not run or turns drctl away: damage, or one of the
//! failures that only look like it. The look-alikes are asked first.

use super::diagnose::{Class, Finding};
use super::evidence::{Evidence, LogPattern};
use crate::postgres::{self, is_damage, sqlstate};
use crate::scenarios::Certainty;
use crate::scenarios::disk_full::recognise::{self, is_short};
use crate::scenarios::missing_library;
use crate::scenarios::server_trouble::{self, Kind, Traces, Trouble};
use crate::workload::Status;

pub(super) fn has(ev: &Evidence, pattern: LogPattern) -> Option<&str> {
    traces(ev).has(pattern)
}

/// A container that does not run: its last words decide.
pub(super) fn down(ev: &Evidence) -> Finding {
    let name = &ev.container.name;
    if ev.container.status == Status::Paused {
        return Finding::look_alike(
            "paused",
            format!("container {name} is paused"),
            vec!["the engine says so".into()],
            &db_down(),
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
            &db_down(),
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
            "drctl recover db-down".into(),
            "drctl recover db-corruption    # once it runs, to be sure".into(),
        ],
    )
}

/// What the log of the last run says, as this scenario sees it.
pub(super) fn from_log(ev: &Evidence) -> Option<Finding> {
    let traces = traces(ev);
    let Trouble { kind, reasons } = server_trouble::of(traces)?;
    let down = |name: &str, explanation: String, reasons| {
        Some(Finding::look_alike(name, explanation, reasons, &db_down()))
    };
    match kind {
        Kind::Empty => down(
            "empty-directory",
            "the data directory is empty: another disk or volume than before, or none, is mounted there"
                .into(),
            reasons,
        ),
        Kind::WrongMajor => {
            let (data, program) = traces.majors()?;
            let explanation =
                format!("the data is of PostgreSQL {data} and the image is PostgreSQL {program}");
            down("wrong-major", explanation, reasons)
        }
        Kind::Lost => down(
            "missing-directory",
            "a directory that the server needs, and that holds nothing, is gone".into(),
            reasons,
        ),
        Kind::Permissions => down("permissions", PERMISSIONS.into(), reasons),
        Kind::DiskFull => Some(disk_full(ev, "the server stops to protect the data", reasons)),
        Kind::Configuration => down("config", "the server refuses its configuration".into(), reasons),
        Kind::LockFile => down(
            "lock-file",
            "a lock file is left in the data directory".into(),
            reasons,
        ),
        Kind::PortTaken => down("port-taken", "the server's port is another's".into(), reasons),
        Kind::RecoverySource => down(
            "recovery-source",
            "the server is told to recover from somewhere, and not from where".into(),
            reasons,
        ),
        Kind::Damage(cause) => Some(Finding::new(
            Class::Cluster {
                cause: cause.to_owned(),
            },
            Certainty::Confirmed,
            reasons,
        )),
    }
}

fn traces(ev: &Evidence) -> Traces<'_> {
    Traces {
        container: &ev.container,
        log: &ev.log,
        control: &ev.control,
        files: &ev.files,
    }
}

const PERMISSIONS: &str = "files of the data directory belong to the wrong user or have the wrong mode";

/// What to type where the server is down and sound.
fn db_down() -> [String; 2] {
    [
        "drctl recover db-down --dry-run    # what would be done".into(),
        "drctl recover db-down".into(),
    ]
}

/// The server runs and turned the administrator away.
pub(super) fn refused(ev: &Evidence, code: &str, message: &str) -> Finding {
    let reasons = vec![message.to_owned()];
    match code {
        // Between two crashes it is "starting up" too; then its last words count.
        sqlstate::CANNOT_CONNECT_NOW => from_log(ev).unwrap_or_else(|| {
            Finding::look_alike(
                "starting",
                "the server is starting up, shutting down or replaying its log",
                reasons,
                &["drctl recover db-down    # waits until it is done, and shows how far it is".into()],
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
            let mut all = reasons;
            all.extend(traces(ev).foreign());
            Finding::look_alike("permissions", PERMISSIONS, all, &db_down())
        }
        sqlstate::DISK_FULL => shared_memory_or_disk(ev, reasons),
        // The administrator's own database: nothing else could be asked.
        sqlstate::INVALID_CATALOG => missing_database(ev, &quoted_name(message), message),
        sqlstate::OBJECT_NOT_IN_STATE => closed_database(ev, &quoted_name(message), message),
        // An extension's code that runs as a session begins says XX000 too: not enough for the
        // restore of a whole cluster.
        code if is_damage(code, message) && code != sqlstate::INTERNAL_ERROR => Finding::new(
            Class::Cluster {
                cause: "what a session needs to begin is damaged".into(),
            },
            Certainty::Confirmed,
            reasons,
        ),
        _ if postgres::missing_library(message).is_some() => library(ev, None, message),
        _ => Finding::unknown("the server refuses the session", reasons),
    }
}

/// A shared library that the server cannot load, as an error about it says.
pub(super) fn library(ev: &Evidence, database: Option<&str>, message: &str) -> Finding {
    let reasons = vec![message.to_owned()];
    match missing_library::of(message, database, &ev.container.name) {
        Some(missing) => Finding::look_alike("library-missing", missing.explanation, reasons, &missing.next),
        None => Finding::unknown("the server refuses the session", reasons),
    }
}

/// The database that a message names in quotes.
fn quoted_name(message: &str) -> String {
    message.split('"').nth(1).unwrap_or_default().to_owned()
}

/// A database that is not in the catalogue: somebody dropped or renamed it, or it never was on
/// this server.
pub(super) fn missing_database(ev: &Evidence, database: &str, message: &str) -> Finding {
    let kept = |name: &&String| name.contains("_drctl_old_");
    let by_hand = |name: &&String| **name == format!("{database}_before_restore");
    let mut reasons = vec![message.to_owned()];
    if !ev.present.is_empty() {
        reasons.push(format!("the server has these: {}", ev.present.join(", ")));
    }
    let mut next = Vec::new();
    if let Some(old) = ev.present.iter().find(kept) {
        reasons.push(format!("{old} is what a recovery has kept of a database"));
        next.push("drctl incident list    # a recovery that was cut off is resumed or undone".to_owned());
    }
    if let Some(old) = ev.present.iter().find(by_hand) {
        reasons.push(format!("{old} is what a restore by hand has kept"));
    }
    let holds = ev.backups.iter().find(|b| b.dumps.contains_key(database));
    let newest = match holds {
        Some(b) => {
            reasons.push(format!(
                "backup {} of {:.0} holds {database}",
                b.label, b.taken_at
            ));
            next.push(format!(
                "less {}/RESTORE.md    # its steps 1 to 3 restore {database} with pg_restore",
                b.path
            ));
            next.push(format!(
                "alter database \"{0}_restored\" rename to \"{0}\";    -- instead of step 4, after a look at it",
                database.replace('"', "\"\"")
            ));
            "a backup holds it"
        }
        None => "no usable backup holds it",
    };
    next.push("drctl backup list".to_owned());
    Finding::look_alike(
        "database-missing",
        format!(
            "there is no database {database}: it was dropped or renamed, or this is another server; {newest}"
        ),
        reasons,
        &next,
    )
}

/// A database that is there and lets nobody in.
pub(super) fn closed_database(ev: &Evidence, database: &str, message: &str) -> Finding {
    let reasons = vec![message.to_owned()];
    // A DROP DATABASE that was broken off leaves the name, and perhaps not the files.
    if message.contains("invalid database") {
        let mut finding = missing_database(ev, database, message);
        if let Class::LookAlike(found) = &mut finding.class {
            found.explanation = format!(
                "a DROP DATABASE of {database} was begun and broken off; what is left of it cannot be used"
            );
            found.next.insert(
                0,
                format!(
                    "drop database \"{}\";    -- the server allows nothing else with it; a restore needs the name",
                    database.replace('"', "\"\"")
                ),
            );
        }
        return finding;
    }
    Finding::look_alike(
        "database-closed",
        format!("database {database} is there and accepts no connections (allow_connections is false)"),
        reasons,
        &[
            "drctl incident list    # was a recovery cut off in the middle of a swap of names?".into(),
            format!(
                "alter database \"{}\" with allow_connections true;    -- unless somebody closed it for a reason",
                database.replace('"', "\"\"")
            ),
        ],
    )
}

/// A server that none of this deployment's backups is of: most often an empty volume that the
/// entrypoint has made a new cluster in, or another deployment's.
pub(super) fn other_cluster(ev: &Evidence) -> Option<Finding> {
    let control = ev.control.as_ref().ok().filter(|c| !c.checksum_mismatch)?;
    let here = Some(control.system_identifier.as_str()).filter(|id| !id.is_empty())?;
    let mut known = ev.backups.iter().filter(|b| !b.system_identifier.is_empty());
    let newest = known.next()?;
    if newest.system_identifier == here || known.any(|b| b.system_identifier == here) {
        return None;
    }
    let mut reasons = vec![format!(
        "this cluster's system identifier is {here}, which no backup has; the newest, {} of {:.0}, is of {}",
        newest.label, newest.taken_at, newest.system_identifier
    )];
    reasons.extend(
        ev.container
            .mounts
            .iter()
            .map(|m| format!("{} is {}", m.destination, m.volume.as_ref().unwrap_or(&m.source))),
    );
    Some(Finding::look_alike(
        "wrong-volume",
        format!(
            "the server runs on another cluster (system identifier {here}) than the one that was backed up \
             ({}, last on {:.0}); is the wrong volume mounted?",
            newest.system_identifier, newest.taken_at
        ),
        reasons,
        &[
            format!(
                "docker inspect --format '{{{{json .Mounts}}}}' {}",
                ev.container.name
            ),
            "docker volume ls    # where is the volume that was backed up?".into(),
            "drctl backup    # only when this is the right data: a cluster made anew, or an upgraded one"
                .into(),
        ],
    ))
}

pub(super) fn slots(ev: &Evidence, mut reasons: Vec<String>) -> Finding {
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
        &["drctl recover connection-exhaustion".into()],
    )
}

pub(super) fn shared_memory_or_disk(ev: &Evidence, reasons: Vec<String>) -> Finding {
    let shm = ev.files.as_ref().ok().and_then(|f| f.shm);
    if shm.is_some_and(recognise::shared_memory_is_full) {
        let found = recognise::shared_memory(&ev.container.name, shm);
        return Finding::new(Class::LookAlike(found), Certainty::Absent, reasons);
    }
    disk_full(ev, "nothing can grow", reasons)
}

/// A server that runs on a full disk: reads go on, and whatever must grow fails. With less
/// than a segment of room that is so although nobody has met it yet.
pub(super) fn no_room(ev: &Evidence) -> Option<Finding> {
    let free = ev.files.as_ref().ok()?.least_free();
    let said = has(ev, LogPattern::DiskFull).filter(|_| is_short(free, true));
    if !is_short(free, said.is_some()) {
        return None;
    }
    let reasons = said.map(str::to_owned).into_iter().collect();
    Some(disk_full(
        ev,
        "what must grow fails, and the server ends when its log must",
        reasons,
    ))
}

fn disk_full(ev: &Evidence, consequence: &str, reasons: Vec<String>) -> Finding {
    Finding::look_alike(
        "disk-full",
        format!("{}; {consequence}", traces(ev).disk_in_words()),
        reasons,
        &recognise::next(),
    )
}
