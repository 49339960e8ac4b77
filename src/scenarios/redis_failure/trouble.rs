//! What is wrong with one server, told from what was observed of it. Pure.

use super::super::LookAlike;
use super::Server;
use crate::probe::containers::{ContainerFacts, ContainerState};
use crate::probe::redis::{RedisState, WritesHeld};
use crate::probe::redis_files::{AppendState, OTHER_FORMAT, RedisFileFacts, SnapshotState};
use crate::redis::ErrorKind;
use crate::workload::{ContainerInfo, Status};

/// What is wrong with one server.
pub(super) enum Trouble {
    Frozen,
    Stopped,
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// It ends as soon as it is started; the line of its log that tells why.
    Damaged(String),
    /// It runs and is empty, and beside it lies a snapshot that it did not load.
    Ignored,
    Loops,
    CannotSave,
    /// A script runs in it, and nothing else does.
    Busy(String),
    Silent(String),
    Instead(LookAlike),
    Unknown(String),
}

/// Words of a Redis that cannot load its data (redis 7.0, rdb.c and aof.c).
const DAMAGE: [&str; 11] = [
    "Internal error in RDB reading",
    "Short read or OOM loading DB",
    "Wrong RDB checksum",
    "Unexpected EOF reading RDB file",
    "Bad file format reading the append only file",
    "Invalid AOF manifest file format",
    "Unable to obtain the AOF file",
    "Fatal error loading the DB",
    "Wrong signature trying to load DB from file",
    // Another version's as well as a flipped byte's: the look at the files tells.
    "reading the append only file",
    "no matching module",
];

/// With this line a server begins to tell of a start (redis 7.0, server.c).
const BEGINNING: &str = "Redis is starting";

/// The last line that tells of files that cannot be loaded.
fn telling(facts: &ContainerFacts) -> Option<&str> {
    let mut words = facts.last_words.iter().rev();
    words
        .find(|l| DAMAGE.iter().any(|d| l.text.contains(d)))
        .map(|l| l.text.as_str())
}

/// The line of the last start that failed in which it says that a newer version has written its
/// data. The line behind it reads like damage: "Fatal error loading the DB".
fn of_another_version(facts: &ContainerFacts) -> Option<&str> {
    let mut words = facts.last_words.iter().rev().map(|l| l.text.as_str());
    // The newest start may not have come that far yet.
    let is_telling = |l: &&str| names_another_version(l) || DAMAGE.iter().any(|d| l.contains(d));
    let last = words.find(is_telling)?;
    std::iter::once(last)
        .chain(words.take_while(|l| !l.contains(BEGINNING)))
        .find(|l| names_another_version(l))
}

fn names_another_version(line: &str) -> bool {
    // Number 0 is what it makes of letters: a beginning that is overwritten, which is damage.
    let format = line.split_once(OTHER_FORMAT).map(|(_, n)| n.trim());
    format.is_some_and(|n| n != "0")
}

/// Data that is whole, and that this image cannot read: giving it up would lose all of it for a
/// wrong tag.
fn wrong_version(facts: &ContainerFacts, files: Option<&RedisFileFacts>, line: Option<&str>) -> Trouble {
    let name = &facts.info.name;
    let data = files
        .and_then(RedisFileFacts::other_version)
        .or(line)
        .unwrap_or("another version");
    Trouble::Instead(LookAlike {
        name: "wrong-version".into(),
        explanation: format!(
            "its data is of a version of Redis that its image does not read, and is not damaged by that: {data}; \
             nothing was touched"
        ),
        next: vec![
            format!(
                "docker inspect -f '{{{{.Config.Image}}}} {{{{.Image}}}}' {name}    # the image that it runs now"
            ),
            "docker images --digests    # is the one that wrote the data still here?".into(),
            "# start it with that image, on the same volume; keep the files as they are until it runs".into(),
        ],
    })
}

/// What is wrong with a server; `None` where it serves.
pub(super) fn trouble(server: &Server) -> Option<Trouble> {
    let facts = match &server.container {
        ContainerState::Found(facts) => facts,
        ContainerState::Missing => {
            return Some(Trouble::Instead(LookAlike {
                name: "no-container".into(),
                explanation: "it has no container".into(),
                next: vec!["docker compose up -d    # create it from the compose file".into()],
            }));
        }
        ContainerState::Unknown(cause) => return Some(Trouble::Unknown(cause.clone())),
    };
    // Before a start, which would write over them.
    if !facts.info.is_running()
        && let Some(Ok(files)) = &server.files
        && files.would_be_overwritten()
    {
        return Some(Trouble::Damaged(
            "without the manifest it would start empty, and write over the files of its append-only file"
                .into(),
        ));
    }
    match facts.info.status {
        Status::Paused => return Some(Trouble::Frozen),
        Status::Running if facts.is_stopped_by_signal() => return Some(Trouble::Frozen),
        Status::Running => {}
        // The flag of the last end; it stays up after a start that went well.
        Status::Restarting | Status::Exited if facts.info.oom_killed && facts.info.exit_code == 137 => {
            return Some(Trouble::OutOfMemory);
        }
        Status::Restarting => return Some(unloadable(server, facts).unwrap_or(Trouble::Loops)),
        Status::Created | Status::Exited | Status::Dead => {
            let by_itself = facts.info.exit_code == 1;
            return Some(
                by_itself
                    .then(|| unloadable(server, facts))
                    .flatten()
                    .unwrap_or(Trouble::Stopped),
            );
        }
    }
    match &server.state {
        Err(e) => Some(Trouble::Unknown(e.clone())),
        Ok(state) => refusal(state).or_else(|| ignored(server)),
    }
}

/// A server that ends by itself, where its log or the look at its files tells why. That another
/// version wrote them goes before damage: the log's last line is the same.
fn unloadable(server: &Server, facts: &ContainerFacts) -> Option<Trouble> {
    let files = server.files.as_ref().and_then(|f| f.as_ref().ok());
    // A command or a module that it does not know, in files without damage, is a newer version's.
    let unknown =
        telling(facts).filter(|l| l.contains("Unknown command") || l.contains("no matching module"));
    let sound = files.is_some_and(|f| match &f.append {
        Some(append) if f.files.append_only => append.state == AppendState::Sound,
        _ => f
            .snapshot
            .as_ref()
            .is_some_and(|s| s.state == SnapshotState::Sound),
    });
    let line = of_another_version(facts).or(unknown.filter(|_| sound));
    if line.is_some() || files.is_some_and(|f| f.other_version().is_some()) {
        return Some(wrong_version(facts, files, line));
    }
    telling(facts).map(|line| Trouble::Damaged(line.to_owned()))
}

/// Nobody reaches it, and nothing is wrong with it: it has lost its networks.
fn is_in_no_network(info: &ContainerInfo) -> bool {
    info.attachments.is_empty() && info.networks.is_empty() && !info.has_no_own_network()
}

/// With an append-only file Redis never looks at a snapshot (redis 7.0, `loadDataFromDisk`):
/// who has put one back and started the server finds it empty.
fn ignored(server: &Server) -> Option<Trouble> {
    let files = server.files.as_ref()?.as_ref().ok()?;
    let snapshot = files.snapshot.as_ref()?;
    let loadable = snapshot.state == SnapshotState::Sound && snapshot.keys.lasting() > 0;
    (files.files.append_only && loadable).then_some(Trouble::Ignored)
}

/// A server that runs, and what it says.
fn refusal(state: &RedisState) -> Option<Trouble> {
    let name = &state.container.name;
    let instead = |name: &str, explanation: &str, next: Vec<String>| {
        Some(Trouble::Instead(LookAlike {
            name: name.into(),
            explanation: explanation.into(),
            next,
        }))
    };
    if let Some(info) = &state.info {
        if let Some(loading) = &info.persistence.loading {
            return instead(
                "loading",
                &format!(
                    "it is loading its data: {:.0} % done, about {} s left",
                    loading.percent, loading.eta
                ),
                vec!["drctl diagnose redis-failure    # look again; a restart would begin anew".into()],
            );
        }
        if info.replication.replica {
            return instead(
                "replica",
                &format!(
                    "it is a replica of {} and refuses writes",
                    info.replication.primary.as_deref().unwrap_or("another server")
                ),
                vec![format!(
                    "docker exec {name} redis-cli REPLICAOF NO ONE    # if it is to be the primary"
                )],
            );
        }
        if !info.persistence.last_save_ok || !info.persistence.aof_write_ok {
            return Some(Trouble::CannotSave);
        }
    }
    let Some(failure) = state.first_failure() else {
        return state
            .writes_held
            .as_ref()
            .map(|held| Trouble::Instead(held_writes(name, held)));
    };
    let text = failure.text.clone();
    match failure.kind {
        ErrorKind::NoConnection if is_in_no_network(&state.container) => instead(
            "network-partition",
            "it runs, and is in no network: a restart would not bring it back into one",
            vec!["drctl recover network-partition".into()],
        ),
        ErrorKind::Busy => Some(Trouble::Busy(text)),
        ErrorKind::CannotPersist => Some(Trouble::CannotSave),
        ErrorKind::Loading => instead(
            "loading",
            &text,
            vec!["drctl diagnose redis-failure    # look again".into()],
        ),
        ErrorKind::PasswordNeeded
        | ErrorKind::WrongPassword
        | ErrorKind::NoPasswordSet
        | ErrorKind::NotPermitted => instead(
            "wrong-password",
            &format!("it runs and refuses drctl's password: {text}"),
            vec!["drctl runbook show    # which secret is used for it?".into()],
        ),
        ErrorKind::OutOfMemory => instead("redis-oom", &text, vec!["drctl recover redis-oom".into()]),
        ErrorKind::ReadOnly | ErrorKind::MasterDown => instead(
            "replica",
            &text,
            vec![format!("docker exec {name} redis-cli INFO replication")],
        ),
        ErrorKind::TooManyClients => instead(
            "clients-full",
            &text,
            vec![format!(
                "docker exec {name} redis-cli CONFIG GET maxclients    # raise it, or find who holds them"
            )],
        ),
        ErrorKind::NoConnection | ErrorKind::Timeout | ErrorKind::Broken => Some(Trouble::Silent(text)),
        ErrorKind::NotBusy | ErrorKind::Unkillable | ErrorKind::OtherReply | ErrorKind::Unexpected => {
            Some(Trouble::Unknown(text))
        }
    }
}

/// It answers, and no write gets through, as somebody has asked of it.
fn held_writes(name: &str, held: &WritesHeld) -> LookAlike {
    match held {
        WritesHeld::TooFewReplicas { needed, good } => LookAlike {
            name: "too-few-replicas".into(),
            explanation: format!(
                "it answers and refuses every write (NOREPLICAS): min-replicas-to-write is {needed}, and {good} replicas \
                 follow it; nothing was changed"
            ),
            next: vec![
                format!(
                    "docker exec {name} redis-cli INFO replication    # which replica is missing? bring it back"
                ),
                format!(
                    "docker exec {name} redis-cli CONFIG SET min-replicas-to-write 0    # or take writes without a second copy"
                ),
            ],
        },
        WritesHeld::Paused { sign } => LookAlike {
            name: "paused".into(),
            explanation: format!(
                "it answers and holds writes back (CLIENT PAUSE, or a FAILOVER): {sign}; nothing was changed"
            ),
            next: vec![
                format!(
                    "docker exec {name} redis-cli INFO replication    # master_failover_state: is a failover under way?"
                ),
                format!("docker exec {name} redis-cli CLIENT UNPAUSE    # if not; it also ends by itself"),
            ],
        },
    }
}
