//! The proof that a disk has room and that a server can use it.

use std::path::Path;
use std::time::Instant;

use super::actions::Checked;
use super::endpoints::{RETRY, SETTLE};
use super::verify::answer;
use crate::event::{Verdict, bytes};
use crate::postgres::PgError;
use crate::probe::disk;
use crate::system::{PostgresServer, System};

/// Whether so much is free at a path of this machine.
pub(super) fn room(path: &str, at_least: u64, what: String) -> Checked {
    match disk::room(Path::new(path)) {
        Ok(room) => {
            let verdict = if room.free >= at_least && !room.read_only {
                Verdict::Pass
            } else {
                Verdict::Fail
            };
            answer(
                what,
                verdict,
                format!("{} of {} are free", bytes(room.free), bytes(room.size)),
            )
        }
        Err(e) => answer(what, Verdict::CouldNotVerify, e.to_string()),
    }
}

/// A table grows and goes again with its transaction; the log is flushed to the disk; and a
/// checkpoint, at which a server on a full disk ends, comes through.
const WRITES: [&str; 6] = [
    "begin",
    "create table pg_temp_drctl_write_check as select repeat('x', 1000) as t from generate_series(1, 2000)",
    "rollback",
    "set synchronous_commit = on",
    "select pg_logical_emit_message(true, 'drctl', 'write check')",
    "checkpoint",
];

/// Whether a PostgreSQL server can write.
pub(super) async fn server_writes(system: &System, service: &str, what: String) -> Checked {
    let began = Instant::now();
    loop {
        let found = match system.postgres(service).await {
            Ok(server) => match write(system, &server).await {
                Ok(()) => {
                    return answer(
                        what,
                        Verdict::Pass,
                        "a table, the log and a checkpoint were written",
                    );
                }
                Err(e @ PgError::Server { .. }) => (Verdict::Fail, e.to_string()),
                Err(e) => (Verdict::CouldNotVerify, e.to_string()),
            },
            Err(e) => (Verdict::CouldNotVerify, e.to_string()),
        };
        if began.elapsed() > SETTLE {
            return answer(what, found.0, found.1);
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn write(system: &System, server: &PostgresServer) -> Result<(), PgError> {
    // Not the application's: nothing of it is touched.
    let client = server.connect_to(&server.admin.writable()).await?;
    for sql in WRITES {
        client.within(system.runbook.deadlines.step, sql).await?;
    }
    Ok(())
}
