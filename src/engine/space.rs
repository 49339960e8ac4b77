//! The proof that a disk has room and that a server can use it.

use std::fmt::Write as _;
use std::path::Path;

use super::actions::Checked;
use super::settle::settled;
use super::verify::answer;
use crate::event::{Verdict, bytes};
use crate::postgres::PgError;
use crate::probe::disk::{self, Room};
use crate::system::{PostgresServer, System};

/// Whether so much is free at a path of this machine, and so many files can still be made.
pub(super) fn room(path: &str, at_least: u64, files: u64, what: String) -> Checked {
    match disk::room(Path::new(path)) {
        Ok(room) => {
            let (verdict, seen) = judge(&room, at_least, files);
            answer(what, verdict, seen)
        }
        Err(e) => answer(what, Verdict::CouldNotVerify, e.to_string()),
    }
}

fn judge(room: &Room, at_least: u64, files: u64) -> (Verdict, String) {
    // A file system without such a limit says 0.
    let enough_files = room.inodes == 0 || room.free_inodes >= files;
    let verdict = if room.free >= at_least && enough_files && !room.read_only {
        Verdict::Pass
    } else {
        Verdict::Fail
    };
    let mut seen = format!("{} of {} are free", bytes(room.free), bytes(room.size));
    if files > 0 && room.inodes > 0 {
        let _ = write!(seen, ", and {} of {} files", room.free_inodes, room.inodes);
    }
    (verdict, seen)
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
    settled(what, || async {
        match system.postgres(service).await {
            Ok(server) => match write(system, &server).await {
                Ok(()) => (
                    Verdict::Pass,
                    "a table, the log and a checkpoint were written".to_owned(),
                ),
                Err(e @ PgError::Server { .. }) => (Verdict::Fail, e.to_string()),
                Err(e) => (Verdict::CouldNotVerify, e.to_string()),
            },
            Err(e) => (Verdict::CouldNotVerify, e.to_string()),
        }
    })
    .await
}

async fn write(system: &System, server: &PostgresServer) -> Result<(), PgError> {
    // Not the application's: nothing of it is touched.
    let client = server.connect_to(&server.admin.writable()).await?;
    for sql in WRITES {
        client.within(system.runbook.deadlines.step, sql).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_no_room_where_no_file_can_be_made() {
        let room = |inodes, free_inodes| Room {
            device: 1,
            size: 1000,
            free: 500,
            inodes,
            free_inodes,
            read_only: false,
        };
        assert_eq!(judge(&room(100, 0), 100, 16).0, Verdict::Fail);
        assert_eq!(judge(&room(100, 16), 100, 16).0, Verdict::Pass);
        assert_eq!(
            judge(&room(100, 0), 100, 0).0,
            Verdict::Pass,
            "bytes were lacking"
        );
        assert_eq!(judge(&room(0, 0), 100, 16).0, Verdict::Pass, "no limit");
        assert_eq!(judge(&room(100, 16), 501, 16).0, Verdict::Fail);
    }
}
