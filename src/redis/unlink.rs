//! Removing keys without a moment in which the server's other clients wait.

use std::time::Duration;

use ::redis::cmd;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Client, Key, RedisError};

/// Keys of one `UNLINK`: what a client sends in one go the server works off before it serves
/// another. At this many the others wait for less than a tenth of a millisecond.
const UNLINK_BATCH: usize = 40;
/// `COUNT` of a scan that is done for its effect: as many as are removed at once.
const SCAN_COUNT: u32 = 40;

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
            removed += self.ask::<u64>(cmd("UNLINK").arg(part)).await?;
        }
        Ok(removed)
    }

    /// Removes the keys that match a pattern: this connection scans, and the other one removes
    /// what the scan before has found. Two, so that the server need not wait for either while
    /// what each sends stays short for everybody else. Ends at the end of the scan, after about
    /// `at_most` keys, or at the deadline. `progress` is told the number removed so far.
    ///
    /// # Errors
    /// [`RedisError`]; what was removed before is gone.
    pub async fn unlink_matching(
        &self,
        remover: &Self,
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
            if last || enough || Instant::now() >= until {
                done.keys += remover.unlink(&batch.keys).await?;
                progress(done.keys);
                done.complete = last;
                return Ok(done);
            }
            let (next, removed) = tokio::join!(
                self.scan(batch.cursor, Some(pattern), SCAN_COUNT),
                remover.unlink(&batch.keys)
            );
            done.keys += removed?;
            progress(done.keys);
            batch = next?;
        }
    }
}
