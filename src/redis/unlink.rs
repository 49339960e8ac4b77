//! Removing keys without a moment in which the server's other clients wait.

use std::time::Duration;

use ::redis::{Pipeline, pipe};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::client::scan_command;
use super::{Client, Key, RedisError, ScanBatch};

/// Keys of one `UNLINK`, and of a round trip: what a client sends in one go the server works off
/// before it serves another. At this many the others wait for about a tenth of a millisecond.
const UNLINK_BATCH: usize = 100;
/// `COUNT` of a scan that is done for its effect: as many as are removed in a round trip.
const SCAN_COUNT: u32 = 100;

/// What [`Client::unlink_matching`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Unlinked {
    /// Keys removed.
    pub keys: u64,
    /// The whole keyspace was looked through.
    pub complete: bool,
}

impl Client {
    /// Removes keys and has their memory freed in the background. In batches, so that other
    /// clients are served in between. Returns how many there were.
    ///
    /// # Errors
    /// [`RedisError`]; keys before the one that failed are gone.
    pub async fn unlink(&self, keys: &[Key]) -> Result<u64, RedisError> {
        let mut removed = 0;
        for part in keys.chunks(UNLINK_BATCH) {
            let mut commands = pipe();
            add_unlinks(&mut commands, part);
            for answer in self.ask_all(self.deadline, "UNLINK", &mut commands).await? {
                removed += self.read::<u64>("UNLINK", answer?)?;
            }
        }
        Ok(removed)
    }

    /// Removes the keys that match a pattern, by scanning: each round trip removes what the one
    /// before has found. Ends at the end of the scan, after about `at_most` keys, or at the
    /// deadline. `progress` is told the number removed so far.
    ///
    /// # Errors
    /// [`RedisError`]; what was removed before is gone.
    pub async fn unlink_matching(
        &self,
        pattern: &str,
        at_most: Option<u64>,
        deadline: Duration,
        mut progress: impl FnMut(u64),
    ) -> Result<Unlinked, RedisError> {
        let until = Instant::now() + deadline;
        let mut done = Unlinked {
            keys: 0,
            complete: false,
        };
        let mut batch = self.scan(0, Some(pattern), SCAN_COUNT).await?;
        loop {
            if let Some(most) = at_most {
                let left = usize::try_from(most.saturating_sub(done.keys)).unwrap_or(usize::MAX);
                batch.keys.truncate(left);
            }
            let enough = at_most.is_some_and(|most| done.keys + batch.keys.len() as u64 >= most);
            let last = batch.cursor == 0;
            let ending = last || enough || Instant::now() >= until;
            let mut commands = pipe();
            add_unlinks(&mut commands, &batch.keys);
            if !ending {
                commands.add_command(scan_command(batch.cursor, Some(pattern), SCAN_COUNT));
            }
            let mut answers = self.ask_all(self.deadline, "UNLINK", &mut commands).await?;
            let next = if ending { None } else { answers.pop() };
            for answer in answers {
                done.keys += self.read::<u64>("UNLINK", answer?)?;
            }
            progress(done.keys);
            let Some(next) = next else {
                done.complete = last;
                return Ok(done);
            };
            let (cursor, keys) = self.read("SCAN", next?)?;
            batch = ScanBatch { cursor, keys };
        }
    }
}

fn add_unlinks(commands: &mut Pipeline, keys: &[Key]) {
    for batch in keys.chunks(UNLINK_BATCH) {
        commands.cmd("UNLINK").arg(batch);
    }
}
