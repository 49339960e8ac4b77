//! What a server says when it does not run or turns drctl away: damage, or one of the
//! failures that only look like it. The look-alikes are asked first.

use super::diagnose::{Class, Finding};
use super::evidence::{Evidence, LogPattern};
use crate::postgres::sqlstate;
use crate::scenarios::Certainty;
use crate::scenarios::disk_full::recognise::{self, is_short};
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
