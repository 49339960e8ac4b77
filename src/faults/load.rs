//! Load that faults put on running services: processes inside a container, sessions of a
//! database. Each ends by itself when its time is over.

use std::time::Duration;

use super::Request;
use crate::error::{Error, Kind, Result};
use crate::plan::Limits;
use crate::system::System;

/// Holds $1 bytes in a variable for $2 seconds. $3 marks it. In short sleeps: a killed shell
/// leaves one second of them behind.
const HOLD: &str = r#"
x=$(head -c "$1" /dev/zero | tr '\0' x)
i=0; while [ "$i" -lt "$2" ]; do sleep 1; i=$((i + 1)); done
"#;
/// Counts for $1 seconds, with a rest of $2 seconds now and then. $3 marks it.
const COUNT: &str = r#"
end=$(( $(date +%s) + $1 ))
while [ "$(date +%s)" -lt "$end" ]; do
  i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done
  [ "$2" = 0 ] || sleep "$2"
done
"#;
/// Ends every process whose arguments hold $1, itself left out.
const END: &str = r#"
for dir in /proc/[0-9]*; do
  pid=${dir#/proc/}
  if [ "$pid" != $$ ] && grep -qsF -- "$1" "$dir/cmdline"; then kill -s KILL "$pid" 2>/dev/null; fi
done
exit 0
"#;
/// Three sessions that ask for a slow statement, again and again; a cut one ends within seconds.
const SLOW: &str = r#"
for i in 1 2 3; do
  while :; do psql -XqAt -d "$1" -c 'select pg_sleep(3)' >/dev/null 2>&1 || sleep 1; done &
done
wait
"#;
/// Bytes that are held.
const HELD: u64 = 48 << 20;
/// The engine takes no smaller memory limit than this.
const SMALLEST_LIMIT: u64 = 8 << 20;
const SETTLE: Duration = Duration::from_secs(20);

/// Holds memory in a container and sets its limit just above what it then uses.
pub(super) async fn hold_memory(
    system: &System,
    container: &str,
    marker: &str,
    seconds: u64,
) -> Result<String> {
    let docker = &system.docker;
    let before = docker.counters(container).await?.memory;
    let (bytes, time) = (HELD.to_string(), seconds.to_string());
    docker
        .exec_detached(container, &["/bin/sh", "-c", HOLD, "hold", &bytes, &time, marker])
        .await?;
    let end = tokio::time::Instant::now() + SETTLE;
    loop {
        let used = docker.counters(container).await?.memory;
        if used >= before + HELD {
            // What it needed to fill the variable is given back by now.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let used = docker.counters(container).await?.memory;
            let limit = i64::try_from((used + used / 20).max(SMALLEST_LIMIT)).unwrap_or(i64::MAX);
            let limits = Limits {
                memory: Some(limit),
                memory_swap: Some(limit),
                ..Limits::default()
            };
            docker.set_limits(container, &limits).await?;
            return Ok(format!(
                "container {container} uses {} MiB and may use {} MiB",
                used >> 20,
                limit >> 20
            ));
        }
        if tokio::time::Instant::now() >= end {
            return Err(Error::new(
                Kind::FailedChanged,
                format!(
                    "container {container} does not hold the memory: it uses {} MiB",
                    used >> 20
                ),
            ));
        }
    }
}

/// Gives a container work, with a rest (as `sleep` takes it) now and then.
pub(super) async fn keep_busy(
    system: &System,
    container: &str,
    marker: &str,
    seconds: u64,
    rest: &str,
) -> Result<String> {
    system
        .docker
        .exec_detached(
            container,
            &[
                "/bin/sh",
                "-c",
                COUNT,
                "count",
                &seconds.to_string(),
                rest,
                marker,
            ],
        )
        .await?;
    Ok(format!("container {container} is kept busy for {seconds} s"))
}

/// Ends the processes that carry the marker; tells whether there were any to ask for.
pub(super) async fn end_processes(system: &System, container: &str, marker: &str) -> Result<()> {
    let argv = ["/bin/sh", "-c", END, "end", marker];
    system
        .docker
        .exec(container, None, &argv, Duration::from_secs(10))
        .await?;
    Ok(())
}

/// Starts sessions with slow statements, in a helper of the server's own image.
pub(super) async fn slow_statements(
    system: &System,
    service: &str,
    fault: &str,
    request: &Request,
) -> Result<String> {
    let server = system.postgres(service).await?;
    let database = server
        .config
        .databases
        .keys()
        .next()
        .map_or_else(|| server.config.admin_database.to_string(), ToString::to_string);
    let argv = ["/bin/sh", "-c", SLOW, "slow", &database];
    let mut spec = server.client_helper(system.deployment(), fault, "fault-slow-database", &argv);
    spec.detached = Some(request.ttl);
    system.docker.launch_helper(&spec).await?;
    let end = tokio::time::Instant::now() + SETTLE;
    loop {
        let queries = crate::probe::queries::read(&server)
            .await
            .map_err(|e| Error::new(Kind::Unreachable, e.to_string()))?;
        if queries.running.len() >= 3 {
            return Ok(format!(
                "{} slow statements run in {service}",
                queries.running.len()
            ));
        }
        if tokio::time::Instant::now() >= end {
            return Err(Error::new(
                Kind::FailedChanged,
                format!("no slow statement runs in {service}"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
