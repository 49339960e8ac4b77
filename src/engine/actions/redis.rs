//! Work on a running Redis server.

use std::time::Duration;

use tokio::time::Instant;

use super::{ActionContext, ActionError, Outcome};
use crate::engine::settle::until;
use crate::event::{bytes, seconds};
use crate::redis::{Client, ErrorKind, MemoryInfo, RedisError, RedisInfo, unlink_matching};

/// Members of a set that are looked at in one step of the server: at 200 its other clients
/// wait for less than a millisecond.
const BATCH: u32 = 200;
/// How long a script may take to end, or its clients to send no other one.
const SCRIPT_LIMIT: Duration = Duration::from_secs(15);
/// How often a background save is asked about.
const POLL: Duration = Duration::from_millis(100);

/// One batch of a set: whose owner's key does not exist goes. In one step inside the server,
/// so that a session which is opened meanwhile is not taken for one without an owner.
/// `SMOVE` is taken where the memory is full, too. KEYS: set, and the one that keeps them.
/// ARGV: cursor, count, prefix, seconds that they are kept. Gives the next cursor, and how many
/// went.
const CLEAR_STALE: &str = "
local seen = redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local gone = 0
for _, member in ipairs(seen[2]) do
  if redis.call('EXISTS', ARGV[3] .. member) == 0 then
    if KEYS[2] == '' then
      gone = gone + redis.call('SREM', KEYS[1], member)
    else
      gone = gone + redis.call('SMOVE', KEYS[1], KEYS[2], member)
    end
  end
end
if gone > 0 and KEYS[2] ~= '' then redis.call('EXPIRE', KEYS[2], ARGV[4]) end
return {seen[1], gone}";

/// One batch of what was kept goes back. KEYS: set, and the one that keeps them. ARGV: count.
const PUT_BACK: &str = "
local back = 0
for _, member in ipairs(redis.call('SRANDMEMBER', KEYS[2], ARGV[1])) do
  back = back + redis.call('SMOVE', KEYS[2], KEYS[1], member)
end
return back";

/// How long removed members are kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);

fn failed(what: impl Into<String>) -> impl FnOnce(RedisError) -> ActionError {
    let what = what.into();
    move |e| ActionError::Other(format!("{what}: {e}"))
}

async fn client(cx: &ActionContext<'_>, service: &str, database: u32) -> Result<Client, ActionError> {
    let server = cx.system.redis(service).await?;
    Client::connect(&server.spec.to_database(database))
        .await
        .map_err(failed(format!("connecting to {service}")))
}

pub(super) async fn set_config(
    cx: &ActionContext<'_>,
    service: &str,
    name: &str,
    value: &str,
) -> Result<Outcome, ActionError> {
    let client = client(cx, service, 0).await?;
    if name == "maxmemory" {
        let info = client.info().await.map_err(failed(format!("asking {service}")))?;
        if let Some(why) = would_evict(&info.memory, value) {
            return Err(ActionError::Other(format!(
                "maxmemory of {service} is left as it is: {why}"
            )));
        }
    }
    client
        .config_set(name, value)
        .await
        .map_err(failed(format!("setting {name} of {service}")))?;
    Ok(Outcome::new(format!(
        "{name} of {service} is {value}, until its next start"
    )))
}

/// Why a limit cannot be set without losing keys: a server whose policy evicts does so at once,
/// thousands in a moment.
fn would_evict(memory: &MemoryInfo, limit: &str) -> Option<String> {
    let limit = limit.parse::<u64>().ok().filter(|l| *l > 0)?;
    let used = memory.used.saturating_sub(memory.not_counted);
    (memory.policy != "noeviction" && used > limit).then(|| {
        format!(
            "it uses {} by now, and with {} it would evict keys at once to get below {}; make room first, or keep the limit",
            bytes(used),
            memory.policy,
            bytes(limit)
        )
    })
}

pub(super) async fn clear_patterns(
    cx: &ActionContext<'_>,
    service: &str,
    patterns: &[String],
) -> Result<Outcome, ActionError> {
    let begun = Instant::now();
    let server = cx.system.redis(service).await?;
    let first = client(cx, service, 0).await?;
    let info = first.info().await.map_err(failed(format!("asking {service}")))?;
    let mut removed = 0;
    for &database in info.keyspace.keys() {
        let spec = server.spec.to_database(database);
        for pattern in patterns {
            let left = cx.deadline.saturating_sub(begun.elapsed());
            let done = unlink_matching(&spec, pattern, left)
                .await
                .map_err(failed(format!("deleting keys like {pattern}")))?;
            removed += done.keys;
            if !done.complete {
                return Err(ActionError::Other(format!(
                    "{removed} keys are deleted, and {} was not enough for all",
                    seconds(cx.deadline)
                )));
            }
        }
    }
    Ok(Outcome::new(format!("{removed} keys are deleted"))
        .fact("keys-deleted", removed)
        .fact("clear-seconds", begun.elapsed().as_secs_f64()))
}

pub(super) async fn clear_stale_members(
    cx: &ActionContext<'_>,
    service: &str,
    database: u32,
    (index, kept): (&str, &str),
    owner_prefix: &str,
) -> Result<Outcome, ActionError> {
    let client = client(cx, service, database).await?;
    let end = Instant::now() + cx.deadline;
    let (mut cursor, mut removed) = (0_u64, 0_u64);
    loop {
        let mut command = ::redis::cmd("EVAL");
        command.arg(CLEAR_STALE).arg(2).arg(index).arg(kept);
        command
            .arg(cursor)
            .arg(BATCH)
            .arg(owner_prefix)
            .arg(KEPT.as_secs());
        let (next, gone): (u64, u64) = client
            .ask(&command)
            .await
            .map_err(failed(format!("cleaning {index}")))?;
        removed += gone;
        cursor = next;
        if cursor == 0 {
            break;
        }
        if Instant::now() >= end {
            return Err(ActionError::Other(format!(
                "{removed} members of {index} are removed, and {} was not enough for all",
                seconds(cx.deadline)
            )));
        }
    }
    Ok(Outcome::new(format!(
        "{removed} members of {index} without an owner are removed"
    ))
    .fact("stale-removed", removed))
}

pub(super) async fn put_members_back(
    cx: &ActionContext<'_>,
    service: &str,
    database: u32,
    index: &str,
    kept: &str,
) -> Result<Outcome, ActionError> {
    let client = client(cx, service, database).await?;
    let end = Instant::now() + cx.deadline;
    let mut total = 0_u64;
    loop {
        let mut command = ::redis::cmd("EVAL");
        command.arg(PUT_BACK).arg(2).arg(index).arg(kept).arg(BATCH);
        let back: u64 = client
            .ask(&command)
            .await
            .map_err(failed(format!("putting members of {index} back")))?;
        total += back;
        if back == 0 {
            return Ok(Outcome::new(format!(
                "{total} members of {index} are back; none is left in {kept}, which keeps them for a day"
            )));
        }
        if Instant::now() >= end {
            return Err(ActionError::Other(format!(
                "{total} members of {index} are back, and {} was not enough for all; the rest is in {kept}",
                seconds(cx.deadline)
            )));
        }
    }
}

pub(super) async fn kill_script(cx: &ActionContext<'_>, service: &str) -> Result<Outcome, ActionError> {
    let end = Instant::now() + cx.deadline.min(SCRIPT_LIMIT);
    let mut ended = 0_u64;
    loop {
        let attempt = async {
            let client = Client::connect(&cx.system.redis(service).await?.spec)
                .await
                .map_err(failed(format!("connecting to {service}")))?;
            Ok::<_, ActionError>((client.kill_script().await, client.ping().await))
        };
        let last = match attempt.await {
            Ok((Err(e), _)) if e.is(ErrorKind::Unkillable) => {
                return Err(ActionError::Other(format!(
                    "the script that {service} runs has written already, and Redis does not end such a one: {e}; \
                     nothing was changed"
                )));
            }
            // No script could be ended and it serves again, or one was: whatever begins anew is seen afterwards.
            Ok((Ok(found), Ok(()))) => {
                ended += u64::from(found);
                let done = match ended {
                    0 => format!("{service} runs no script any more"),
                    _ => format!("the script that {service} ran is ended; it had written nothing"),
                };
                return Ok(Outcome::new(done).fact("scripts-ended", ended));
            }
            Ok((Ok(found), Err(e))) => {
                ended += u64::from(found);
                e.to_string()
            }
            Ok((Err(e), _)) => e.to_string(),
            Err(e) => e.to_string(),
        };
        if Instant::now() >= end {
            return Err(ActionError::Other(format!(
                "{service} is as busy after {} as before: {last}; its data was not touched",
                seconds(SCRIPT_LIMIT)
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

pub(super) async fn save(cx: &ActionContext<'_>, service: &str) -> Result<Outcome, ActionError> {
    let client = client(cx, service, 0).await?;
    let what = || failed(format!("saving the data of {service}"));
    let before = client.lastsave().await.map_err(what())?;
    client.bgsave().await.map_err(what())?;
    let is_over =
        |info: &Result<RedisInfo, RedisError>| info.as_ref().map_or(true, |i| !i.persistence.saving);
    let info = until(cx.deadline, POLL, is_over, || client.info());
    let saved = info.await.map_err(what())?.persistence;
    if saved.saving {
        return Err(ActionError::Other(format!(
            "{service} is still saving after {}",
            seconds(cx.deadline)
        )));
    }
    if saved.last_save_ok && saved.last_save.is_some_and(|at| at >= before) {
        return Ok(Outcome::new(format!("the data of {service} is saved")));
    }
    Err(ActionError::Other(format!(
        "{service} cannot save its data; its log says why"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_not_lowered_where_keys_would_be_evicted() {
        let memory = |policy: &str| MemoryInfo {
            used: 150 << 20,
            not_counted: 10 << 20,
            policy: policy.into(),
            ..MemoryInfo::default()
        };
        let limit = |mib: u64| (mib << 20).to_string();
        for policy in ["allkeys-lru", "volatile-ttl"] {
            assert!(would_evict(&memory(policy), &limit(100)).is_some());
            // What is not counted does not have to go.
            for fits in [limit(145), limit(200), limit(0)] {
                assert_eq!(would_evict(&memory(policy), &fits), None);
            }
        }
        assert_eq!(would_evict(&memory("noeviction"), &limit(100)), None);
    }
}
