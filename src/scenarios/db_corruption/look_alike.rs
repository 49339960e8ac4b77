//! What a server says when it does not run or turns drctl away: damage, or one of the
//! failures that only look like it. The look-alikes are asked first.

use super::diagnose::{Class, Finding};
use super::evidence::{Evidence, FileFacts, LogPattern};
use crate::postgres::sqlstate;
use crate::scenarios::Certainty;
use crate::scenarios::disk_full::recognise::{self, is_short};
use crate::workload::Status;

pub(super) fn has(ev: &Evidence, pattern: LogPattern) -> Option<&str> {
    ev.log
        .iter()
        .rev()
        .find(|l| l.pattern == pattern)
        .map(|l| l.line.as_str())
}

/// A container that does not run: its last words decide.
pub(super) fn down(ev: &Evidence) -> Finding {
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

/// Patterns that name a cause of not starting, rather than a consequence.
fn is_cause(pattern: LogPattern) -> bool {
    use LogPattern as P;
    matches!(
        pattern,
        P::DamagedPage
            | P::ControlFile
            | P::NoCheckpoint
            | P::TransactionStatus
            | P::MissingFile
            | P::Configuration
            | P::Permission
            | P::WrongVersion
            | P::DiskFull
    )
}

/// What the log of the last run says. The look-alikes come first: a file that may not be
/// read is not a damaged file, whatever the server then says about it.
pub(super) fn from_log(ev: &Evidence) -> Option<Finding> {
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
    // A line may be left from an earlier start; what is on the disk now, or the last word,
    // decides.
    let last_word = ev.log.iter().rev().map(|l| l.pattern).find(|p| is_cause(*p));
    let foreign = files.is_some_and(|f| !f.foreign.is_empty());
    if let Some(line) =
        has(ev, LogPattern::Permission).filter(|_| foreign || last_word == Some(LogPattern::Permission))
    {
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
    let no_room = files.is_some_and(|f| is_short(f.least_free(), true));
    if let Some(line) =
        has(ev, LogPattern::DiskFull).filter(|_| no_room || last_word == Some(LogPattern::DiskFull))
    {
        return Some(disk_full(
            ev,
            "the server stops to protect the data",
            vec![line.to_owned()],
        ));
    }
    let wrong_setting = files.and_then(|f| f.configuration_error.clone());
    if has(ev, LogPattern::Configuration).is_some()
        && (wrong_setting.is_some() || last_word == Some(LogPattern::Configuration))
    {
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
                    reasons.push("pg_controldata: the checksum does not match".into());
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
pub(super) fn refused(ev: &Evidence, code: &str, message: &str) -> Finding {
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
    let free = ev.files.as_ref().map_or(0, FileFacts::least_free);
    let of_log = ev.files.as_ref().is_ok_and(|f| f.least_free() < f.disk_free);
    let disk = if of_log {
        "the disk of the write-ahead log"
    } else {
        "the disk"
    };
    Finding::look_alike(
        "disk-full",
        format!(
            "{disk} is full ({} free); {consequence}",
            crate::event::bytes(free)
        ),
        reasons,
        &recognise::next(),
    )
}
