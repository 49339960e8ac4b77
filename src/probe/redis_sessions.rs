//! Sessions as an application keeps them in Redis: a set of all of them, and a key for each
//! that lives.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::redis::{Client, RedisError};
use crate::runbook::Sessions;
use crate::system::RedisServer;

/// Members looked at in one round trip.
const BATCH: u32 = 500;

/// One batch, without changing anything. KEYS: set. ARGV: cursor, count, prefix. Gives the
/// next cursor, how many were looked at, and how many have no key.
const LOOK: &str = "
local seen = redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local stale = 0
for _, member in ipairs(seen[2]) do
  if redis.call('EXISTS', ARGV[3] .. member) == 0 then stale = stale + 1 end
end
return {seen[1], #seen[2], stale}";

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SessionFacts {
    /// Members of the set (`SCARD`).
    pub members: u64,
    /// Of those, looked at within the deadline.
    pub looked_at: u64,
    /// Of those, without a key of their own.
    pub stale: u64,
}

/// Counts the members of the set, and those without an owner, until the probe's deadline.
///
/// # Errors
/// [`RedisError`] when nothing could be counted.
pub async fn count(server: &RedisServer, sessions: &Sessions) -> Result<SessionFacts, RedisError> {
    let until = Instant::now() + server.spec.deadline;
    let client = Client::connect(&server.spec.to_database(sessions.database)).await?;
    let members: u64 = client.ask(::redis::cmd("SCARD").arg(&sessions.index)).await?;
    let mut facts = SessionFacts {
        members,
        looked_at: 0,
        stale: 0,
    };
    let mut cursor = 0_u64;
    loop {
        let mut command = ::redis::cmd("EVAL");
        command.arg(LOOK).arg(1).arg(&sessions.index);
        command.arg(cursor).arg(BATCH).arg(&sessions.owner_prefix);
        let (next, looked_at, stale): (u64, u64, u64) = client.ask(&command).await?;
        facts.looked_at += looked_at;
        facts.stale += stale;
        cursor = next;
        if cursor == 0 || Instant::now() >= until {
            return Ok(facts);
        }
    }
}
