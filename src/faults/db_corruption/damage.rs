//! The faults that are damage to files, each worked out to one [`Damage`].

use super::files::{Damage, saved_dir};
use super::target::{self, Chosen, Place};
use super::{After, Halt, Prepared, Request, Work};
use crate::error::{Error, Kind, Result};
use crate::faults::record::{Heal, TableRef};
use crate::faults::server::{asking, session};
use crate::system::PostgresServer;

/// The middle of a block: behind the header and the line pointers, in the rows of any
/// page that is not almost empty, so that a server without checksums stumbles too.
const MIDDLE: (u32, u32) = (2048, 4096);
/// The checkpoint's position in the control file. Not the version, which would look
/// like a wrong image (`ControlFileData` in the server's sources).
const CONTROL_CHECKPOINT: (u32, u32) = (40, 16);
/// Transactions in one segment of the commit log (`clog.c`: 32 pages of 32768).
const XACTS_PER_SEGMENT: u64 = 1 << 20;

struct Worked {
    target: String,
    damage: Damage,
    halt: Halt,
    after: After,
    reindex: Option<TableRef>,
}

/// Works out one of the faults of this file; `None` for a name that is none of them.
pub(super) async fn prepare(
    server: &PostgresServer,
    variant: &str,
    request: &Request,
    id: &str,
) -> Result<Option<Prepared>> {
    // Of a server that is down already nobody knows what else is wrong with it.
    if !server.container.is_running() {
        return Err(not_running(server));
    }
    drop(session(server, &server.admin.database).await?);
    let worked = match variant {
        "heap-page" => {
            let chosen = choose(server, request, false).await?;
            let place = chosen.live_block(server, &chosen.quoted).await?;
            Worked {
                reindex: Some(chosen.reference()),
                ..scramble(&format!("table {}", chosen.table), &place)
            }
        }
        "zero-page" => {
            let chosen = choose(server, request, false).await?;
            let place = chosen.live_block(server, &chosen.quoted).await?;
            Worked {
                target: format!(
                    "block {} of table {} ({})",
                    place.number, chosen.table, place.path
                ),
                damage: Damage::Zero {
                    path: place.path,
                    block: place.block,
                },
                halt: Halt::Clean,
                after: After::Serves,
                reindex: Some(chosen.reference()),
            }
        }
        "index-page" => {
            let chosen = choose(server, request, false).await?;
            let index = chosen.index(server).await?;
            let place = chosen.index_block(server, &index).await?;
            scramble(&format!("index {index} of table {}", chosen.table), &place)
        }
        "toast" => {
            let chosen = choose(server, request, true).await?;
            let toast = chosen.toast(server).await?;
            let place = chosen.live_block(server, &toast).await?;
            scramble(&format!("{toast} of table {}", chosen.table), &place)
        }
        "missing-segment" | "truncated-segment" => segment(server, variant, request).await?,
        "pg-control" => Worked {
            target: "global/pg_control, after a crash".into(),
            damage: Damage::Scramble {
                path: "global/pg_control".into(),
                block: 0,
                offset: CONTROL_CHECKPOINT.0,
                length: CONTROL_CHECKPOINT.1,
            },
            halt: Halt::Crash,
            after: After::Fails,
            reindex: None,
        },
        "wal" => Worked {
            target: "the checkpoint record in pg_wal, after a crash".into(),
            damage: Damage::Checkpoint,
            halt: Halt::Crash,
            after: After::Fails,
            reindex: None,
        },
        "pg-xact" => commit_log(server).await?,
        "permissions" => plain(
            "the directory base",
            Damage::Owner { path: "base".into() },
            Halt::Running,
            After::Stays,
        ),
        "config" => plain(
            "postgresql.auto.conf",
            Damage::Config {
                path: "postgresql.auto.conf".into(),
                line: "max_conections = '200'".into(),
            },
            Halt::Clean,
            After::Fails,
        ),
        "wrong-major" => wrong_major(server).await?,
        _ => return Ok(None),
    };
    Ok(Some(Prepared {
        target: worked.target,
        heal: Heal::Files {
            damage: worked.damage,
            saved: saved_dir(server, id),
            offline: worked.halt != Halt::Running,
            reindex: worked.reindex,
        },
        work: Work::Files {
            halt: worked.halt,
            after: worked.after,
        },
    }))
}

/// The container is stopped, nothing else.
pub(super) fn stopped(server: &PostgresServer) -> Result<Prepared> {
    if !server.container.is_running() {
        return Err(not_running(server));
    }
    Ok(Prepared {
        target: format!("container {}", server.container.name),
        heal: Heal::Start,
        work: Work::Stop,
    })
}

async fn choose(server: &PostgresServer, request: &Request, with_toast: bool) -> Result<Chosen> {
    target::table(
        server,
        request.database.as_deref(),
        request.table.as_deref(),
        with_toast,
    )
    .await
}

fn scramble(what: &str, place: &Place) -> Worked {
    Worked {
        target: format!("block {} of {what} ({})", place.number, place.path),
        damage: Damage::Scramble {
            path: place.path.clone(),
            block: place.block,
            offset: MIDDLE.0,
            length: MIDDLE.1,
        },
        halt: Halt::Clean,
        after: After::Serves,
        reindex: None,
    }
}

async fn segment(server: &PostgresServer, variant: &str, request: &Request) -> Result<Worked> {
    let chosen = choose(server, request, false).await?;
    let (path, blocks) = chosen.file(server, &target::regclass(&chosen.quoted)).await?;
    if blocks < 2 {
        return Err(chosen.nothing("has fewer than two blocks"));
    }
    let (target, damage) = if variant == "missing-segment" {
        (
            format!("the file {path} of table {}", chosen.table),
            Damage::Remove { path },
        )
    } else {
        // A relation of several files keeps all but the last half of its first: the
        // server stops looking at the first file that is not full.
        let keep = blocks.min(1 << 17) / 2;
        (
            format!(
                "the file {path} of table {}, {keep} of {blocks} blocks stay",
                chosen.table
            ),
            Damage::Truncate { path, blocks: keep },
        )
    };
    Ok(Worked {
        target,
        damage,
        halt: Halt::Clean,
        after: After::Serves,
        reindex: None,
    })
}

/// The commit log is read when the server starts, unless replay has just written to
/// it: replay makes a missing segment of zeros and goes on (`SlruPhysicalReadPage`).
/// So the server is stopped cleanly here, and there is nothing to replay.
async fn commit_log(server: &PostgresServer) -> Result<Worked> {
    let client = session(server, server.admin.database.as_str()).await?;
    let next: u64 = client
        .value("select txid_snapshot_xmax(txid_current_snapshot())")
        .await
        .map_err(asking(server, "the question for the next transaction"))?
        .and_then(|t| t.parse().ok())
        .unwrap_or_default();
    let path = format!("pg_xact/{:04X}", (next & 0xffff_ffff) / XACTS_PER_SEGMENT);
    Ok(Worked {
        target: format!("{path} (next transaction {next})"),
        damage: Damage::Remove { path },
        halt: Halt::Clean,
        after: After::Fails,
        reindex: None,
    })
}

async fn wrong_major(server: &PostgresServer) -> Result<Worked> {
    let client = session(server, server.admin.database.as_str()).await?;
    let number: u32 = client
        .value("show server_version_num")
        .await
        .map_err(asking(server, "the question for the version"))?
        .and_then(|t| t.parse().ok())
        .unwrap_or_default();
    let major = (number / 10_000).saturating_sub(1).to_string();
    Ok(plain(
        &format!("PG_VERSION says {major}"),
        Damage::Version {
            path: "PG_VERSION".into(),
            major,
        },
        Halt::Clean,
        After::Fails,
    ))
}

fn plain(target: &str, damage: Damage, halt: Halt, after: After) -> Worked {
    Worked {
        target: target.to_owned(),
        damage,
        halt,
        after,
        reindex: None,
    }
}

fn not_running(server: &PostgresServer) -> Error {
    Error::new(
        Kind::Refused,
        format!(
            "container {} of {} does not run; a fault is injected only into a sound server",
            server.container.name, server.service
        ),
    )
    .untouched("everything")
    .next("drctl drill heal    # is an earlier fault still there?")
}
