//! Damaged databases, and the look-alikes that must never be taken for damage.
//!
//! Each fault leaves exactly the evidence that the real accident leaves. File damage is
//! done to a server that was stopped cleanly, so that neither its memory nor its replay
//! covers it up, except where the accident is a crash. No table is vacuumed or
//! analysed: visibility, statistics and sizes stay what they were.

mod damage;
mod entries;
mod files;
pub(super) mod memory;
mod target;
mod unlogged;

use std::time::Duration;

pub use files::{Action, Damage, Found, forget, run as run_files, saved_dir};

use super::record::{Heal, TableRef};
use super::sessions::{self, How, Sessions};
use super::{Fault, server};
use crate::error::Result;
use crate::system::{PostgresServer, System};

/// Every fault of this family. Names after the scenario that recovers from them.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "db-corruption/heap-page",
        summary: "random bytes in one block of a table",
        leaves: "XX001 `invalid page in block N` with checksums, 58P01 or garbage without; the server runs",
        live: false,
    },
    Fault {
        name: "db-corruption/zero-page",
        summary: "one block of a table is all zeros",
        leaves: "no error anywhere: rows are gone, the indexes still count them",
        live: false,
    },
    Fault {
        name: "db-corruption/index-page",
        summary: "random bytes in one leaf block of an index",
        leaves: "XX001 through the index; sequential reads and dumps are fine",
        live: false,
    },
    Fault {
        name: "db-corruption/index-entries",
        summary: "an index has lost the entries of some rows",
        leaves: "no error: counts through the index are smaller; only amcheck with heapallindexed tells",
        live: false,
    },
    Fault {
        name: "db-corruption/toast",
        summary: "random bytes in one block of a table's out-of-line values",
        leaves: "XX001 where those values are read; other columns are fine",
        live: false,
    },
    Fault {
        name: "db-corruption/missing-segment",
        summary: "a table's file is gone",
        leaves: "58P01 `could not open file` on every access; the server runs, a base backup succeeds",
        live: false,
    },
    Fault {
        name: "db-corruption/truncated-segment",
        summary: "a table's file ends in its middle",
        leaves: "sequential reads, dumps and amcheck say nothing; an index fetch of a lost row is XX001",
        live: false,
    },
    Fault {
        name: "db-corruption/pg-control",
        summary: "the control file is damaged after a crash, so that its WAL is still needed",
        leaves: "FATAL `incorrect checksum in control file`, exit 1, a crash loop",
        live: false,
    },
    Fault {
        name: "db-corruption/wal",
        summary: "the checkpoint record in the WAL is damaged after a crash",
        leaves: "PANIC `could not locate a valid checkpoint record`, exit 1, a crash loop",
        live: false,
    },
    Fault {
        name: "db-corruption/pg-xact",
        summary: "the commit log's newest segment is gone",
        leaves: "FATAL `could not access status of transaction` near the next one, exit 1, a crash loop",
        live: false,
    },
    Fault {
        name: "db-corruption/permissions",
        summary: "look-alike: the databases' directory belongs to root",
        leaves: "pg_isready accepts, every connection is FATAL `Permission denied`; a restart may heal it",
        live: false,
    },
    Fault {
        name: "db-corruption/config",
        summary: "look-alike: a parameter that does not exist in postgresql.auto.conf",
        leaves: "FATAL `configuration file contains errors`, exit 1, a crash loop",
        live: false,
    },
    Fault {
        name: "db-corruption/wrong-major",
        summary: "look-alike: the data directory claims another major version",
        leaves: "FATAL `database files are incompatible with server`, exit 1, a crash loop",
        live: false,
    },
    Fault {
        name: "db-corruption/stopped",
        summary: "look-alike: the container is stopped",
        leaves: "status exited, exit code 0",
        live: false,
    },
    Fault {
        name: "db-corruption/shm-full",
        summary: "look-alike: the container's shared memory is full",
        leaves: "53100 `could not resize shared memory segment` in parallel queries; the disk is fine",
        live: true,
    },
    Fault {
        name: "db-corruption/unlogged-crash",
        summary: "look-alike: a crash has emptied an unlogged table, as every crash does",
        leaves: "a file of 0 blocks where the catalogue says many; the server runs, all other rows are there",
        live: false,
    },
    Fault {
        name: "db-corruption/slots-full",
        summary: "look-alike: an ordinary role holds every connection slot",
        leaves: "53300 for the application; pg_isready accepts, the administrator gets in",
        live: true,
    },
];

/// What the operator asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Database; the runbook's first by default.
    pub database: Option<String>,
    /// Table.
    pub table: Option<String>,
    /// How long a live fault lasts at most.
    pub ttl: Duration,
}

/// A fault that has been worked out and not begun.
pub struct Prepared {
    /// What will be hit, for a person.
    pub target: String,
    /// How it will be put right.
    pub heal: Heal,
    work: Work,
}

enum Work {
    Files { halt: Halt, after: After },
    Entries(Box<entries::Entries>),
    Stop,
    Memory(Duration),
    Unlogged(TableRef),
    Sessions(Sessions),
}

/// In which state the server is when its files are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// It runs.
    Running,
    /// Stopped cleanly.
    Clean,
    /// Killed.
    Crash,
}

/// What is to come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It is started, and answers.
    Serves,
    /// It is started, and ends.
    Fails,
    /// Running, and nobody can get in.
    Stays,
    /// It is started, is ready, and is not reached.
    Deaf,
}

/// Works out what `variant` would hit, without changing anything.
///
/// # Errors
/// [`Kind::Refused`](crate::error::Kind::Refused) when the server is not sound or has
/// nothing to damage.
pub async fn prepare(
    server: &PostgresServer,
    variant: &str,
    request: &Request,
    id: &str,
) -> Result<Option<Prepared>> {
    match variant {
        "index-entries" => entries::prepare(server, request).await.map(Some),
        "stopped" => damage::stopped(server).map(Some),
        "shm-full" => memory::prepare(server, request, id).map(Some),
        "slots-full" => slots_full(server, request, id).await.map(Some),
        "unlogged-crash" => unlogged::prepare(server, request, id).await.map(Some),
        _ => damage::prepare(server, variant, request, id).await,
    }
}

async fn slots_full(server: &PostgresServer, request: &Request, id: &str) -> Result<Prepared> {
    let database = request.database.as_deref().unwrap_or(&server.admin.database);
    let sessions = sessions::prepare(server, database, How::Again, request.ttl, id).await?;
    Ok(Prepared {
        target: format!("every ordinary connection slot of {}", server.service),
        heal: Heal::EndSessions {
            role: sessions.role.clone(),
        },
        work: Work::Sessions(sessions),
    })
}

impl Prepared {
    /// Damage to files that another family has worked out.
    #[must_use]
    pub fn of_files(
        server: &PostgresServer,
        target: &str,
        damage: Damage,
        (halt, after): (Halt, After),
        id: &str,
    ) -> Self {
        Self {
            target: target.to_owned(),
            heal: Heal::Files {
                damage,
                saved: saved_dir(server, id),
                offline: halt != Halt::Running,
                reindex: None,
            },
            work: Work::Files { halt, after },
        }
    }

    /// Injects the fault and waits until the world is as the fault says. Returns what
    /// was seen.
    ///
    /// # Errors
    /// Where it could not be injected; the fault's record tells how to heal what was
    /// begun.
    pub async fn inject(&self, system: &System, server: &PostgresServer, id: &str) -> Result<String> {
        match &self.work {
            Work::Files { halt, after } => {
                let Heal::Files { damage, .. } = &self.heal else {
                    return Ok(String::new());
                };
                match halt {
                    Halt::Running => {}
                    Halt::Clean => server::stop_cleanly(system, server).await?,
                    Halt::Crash => server::crash(system, server).await?,
                }
                files::run(system, server, id, Action::Damage, damage).await?;
                match after {
                    After::Serves => {
                        server::start_and_serve(system, server).await?;
                        Ok("the server runs again".into())
                    }
                    After::Fails => server::start_and_fail(system, server).await,
                    After::Stays => Ok("the server runs".into()),
                    After::Deaf => server::start_deaf(system, server).await,
                }
            }
            Work::Entries(entries) => entries.inject(server).await,
            Work::Stop => {
                server::stop_cleanly(system, server).await?;
                Ok("the container is stopped".into())
            }
            Work::Memory(ttl) => memory::inject(system, server, id, *ttl).await,
            Work::Sessions(sessions) => sessions.inject(system, server, id).await,
            Work::Unlogged(table) => unlogged::inject(system, server, table).await,
        }
    }
}

pub use entries::{reindex, reindex_table};
pub use memory::free;
pub use unlogged::drop_table;
