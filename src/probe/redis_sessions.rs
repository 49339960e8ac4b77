//! Sessions as an application keeps them in Redis: a set of all of them, and a key for each
//! that lives.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::redis::{Client, RedisError};
use crate::runbook::UserSessions;
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
    /// Whether any key has the owners' prefix: one of theirs, or, where all are stale and the set is
    /// not far below its limit, any other. `false` too where the deadline was not enough to look.
    #[serde(default)]
    pub prefix_seen: bool,
}

/// Counts the members of the set, and those without an owner, until the probe's deadline.
///
/// # Errors
/// [`RedisError`] when nothing could be counted.
pub async fn count(server: &RedisServer, sessions: &UserSessions) -> Result<SessionFacts, RedisError> {
    let until = Instant::now() + server.spec.deadline;
    let client = Client::connect(&server.spec.to_database(sessions.database)).await?;
    let members: u64 = client.ask(::redis::cmd("SCARD").arg(&sessions.index)).await?;
    let mut facts = SessionFacts {
        members,
        looked_at: 0,
        stale: 0,
        prefix_seen: false,
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
            break;
        }
    }
    facts.prefix_seen = facts.stale < facts.looked_at;
    if !facts.prefix_seen && members * 2 > sessions.limit {
        let until = Instant::now() + server.spec.deadline;
        facts.prefix_seen = prefix_seen(&client, sessions, until).await?;
    }
    Ok(facts)
}

/// Whether any key but the set itself begins as the owners' keys do.
async fn prefix_seen(client: &Client, sessions: &UserSessions, until: Instant) -> Result<bool, RedisError> {
    let pattern = format!("{}*", literally(&sessions.owner_prefix));
    let mut cursor = 0_u64;
    loop {
        let mut command = ::redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(&pattern);
        command.arg("COUNT").arg(BATCH);
        let (next, keys): (u64, Vec<Vec<u8>>) = client.ask(&command).await?;
        if keys.iter().any(|k| k != sessions.index.as_bytes()) {
            return Ok(true);
        }
        cursor = next;
        if cursor == 0 || Instant::now() >= until {
            return Ok(false);
        }
    }
}

/// A pattern that only `text` matches.
fn literally(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(literally("session:"), "session:");
        assert_eq!(literally("{a}[1]*\\"), "{a}\\[1\\]\\*\\\\");
    }
}
