//! By what a full disk is recognised, and what only says the same words. Shared with
//! `db-corruption`, for which a full disk is a look-alike.

use crate::event::bytes;
use crate::scenarios::LookAlike;

/// A server needs room for a WAL segment to start; four of them are scarce.
pub(in crate::scenarios) const ROOM: u64 = 64 << 20;
/// One segment of the usual size: with less, the server ends at the next one that it begins.
pub(in crate::scenarios) const SEGMENT: u64 = 16 << 20;

/// Whether a server with so much room is at its end. `said`: its log speaks of a full disk; a
/// line may be left from an earlier time, so what is free now must agree. Without a word there
/// must be too little for a segment.
pub(in crate::scenarios) fn is_short(free: u64, said: bool) -> bool {
    free < SEGMENT || (said && free < ROOM)
}

/// What to type.
pub(in crate::scenarios) fn next() -> Vec<String> {
    vec![
        "drctl recover disk-full --dry-run    # what fills it, and what can be freed safely".into(),
        "# never delete anything in pg_wal".into(),
    ]
}

/// Whether a container's `/dev/shm` explains that a segment could not be made: it is nearly full.
pub(in crate::scenarios) fn shared_memory_is_full((used, size): (u64, u64)) -> bool {
    size > 0 && used * 10 > size * 8
}

/// `/dev/shm` is too small: SQLSTATE 53100 and "No space left on device", and no disk is full.
pub(in crate::scenarios) fn shared_memory(container: &str, shm: Option<(u64, u64)>) -> LookAlike {
    let explanation = match shm {
        Some(shm @ (used, size)) if shared_memory_is_full(shm) => format!(
            "/dev/shm of the container is full ({} of {}); the disk is not",
            bytes(used),
            bytes(size)
        ),
        Some((_, size)) => format!(
            "a query needed more shared memory than the {} that /dev/shm of the container has; the disk is not full",
            bytes(size)
        ),
        None => "/dev/shm of the container is too small for a query; the disk is not full".into(),
    };
    LookAlike {
        name: "shm-full".into(),
        explanation,
        next: vec![
            format!("docker exec {container} ls -la /dev/shm    # what is in it?"),
            "alter system set max_parallel_workers_per_gather = 0; select pg_reload_conf();    # until shm_size is raised".into(),
        ],
    }
}
