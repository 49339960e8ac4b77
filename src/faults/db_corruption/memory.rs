//! A full `/dev/shm`. It looks like a full disk and is none.
//!
//! The file that fills it is written by exec, because a container's shared memory can
//! be reached from nowhere else. What waits for the end of its time is a loop that
//! always ends with exit code 0: a process inside the container whose parent has gone
//! becomes the postmaster's child, and one that dies by a signal would make it restart
//! every session.

use std::time::Duration;

use super::{Prepared, Request, Work};
use crate::error::{Error, Kind, Result};
use crate::faults::record::Heal;
use crate::system::{PostgresServer, System};

/// Arguments: file, bytes that surely suffice, seconds.
const FILL: &str = r#"
file=$1 bytes=$2 seconds=$3
# "No space left on device" is the aim; the file stays as long as it got.
dd if=/dev/zero of="$file" bs=65536 count=$((bytes / 65536 + 1)) 2>/dev/null || :
[ -s "$file" ] || { echo "nothing could be written to $file" >&2; exit 1; }
end=$(($(date +%s) + seconds))
trap '' HUP INT TERM
( while [ -e "$file" ] && [ "$(date +%s)" -lt "$end" ]; do sleep 2; done
  rm -f "$file"; exit 0 ) </dev/null >/dev/null 2>&1 &
exit 0
"#;

pub(in crate::faults) fn file(id: &str) -> String {
    format!("/dev/shm/drctl-fault-{id}")
}

pub(in crate::faults) fn prepare(server: &PostgresServer, request: &Request, id: &str) -> Result<Prepared> {
    let info = &server.container;
    if !info.is_running() {
        return Err(
            Error::new(Kind::Refused, format!("container {} does not run", info.name))
                .untouched("everything"),
        );
    }
    // Shared memory counts as the container's own: filling it could get the server killed.
    if info.memory_limit != 0 && info.shm_size > info.memory_limit / 2 {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "filling {} of shared memory could exceed the {} that container {} may use",
                crate::event::bytes(info.shm_size),
                crate::event::bytes(info.memory_limit),
                info.name
            ),
        )
        .untouched("everything"));
    }
    Ok(Prepared {
        target: format!(
            "/dev/shm of container {} ({})",
            info.name,
            crate::event::bytes(info.shm_size)
        ),
        heal: Heal::FreeSharedMemory { file: file(id) },
        work: Work::Memory(request.ttl),
    })
}

pub(in crate::faults) async fn inject(
    system: &System,
    server: &PostgresServer,
    id: &str,
    ttl: Duration,
) -> Result<String> {
    let (bytes, seconds) = (server.container.shm_size.to_string(), ttl.as_secs().to_string());
    let out = system
        .docker
        .exec(
            &server.container.id,
            None,
            &["sh", "-c", FILL, "drctl", &file(id), &bytes, &seconds],
            Duration::from_secs(60),
        )
        .await?;
    if out.exit_code != 0 {
        return Err(Error::new(
            Kind::Internal,
            format!(
                "the shared memory of {} could not be filled: {}",
                server.container.name,
                out.stderr.trim()
            ),
        ));
    }
    Ok("the shared memory is full".into())
}

/// Frees the memory; the loop inside sees it and ends. `false` when it was free: the
/// time was over, or the container has been restarted.
///
/// # Errors
/// The engine's trouble.
pub async fn free(system: &System, server: &PostgresServer, file: &str) -> Result<bool> {
    if !server.container.is_running() {
        return Ok(false);
    }
    let out = system
        .docker
        .exec(
            &server.container.id,
            None,
            &["sh", "-c", "[ -e \"$1\" ] && rm -f \"$1\"", "drctl", file],
            Duration::from_secs(20),
        )
        .await?;
    Ok(out.exit_code == 0)
}
