//! Waiting for the world to be as it should: look, and look again, for a bounded time.

use std::time::Duration;

use tokio::time::Instant;

use super::actions::Checked;
use super::verify::answer;
use crate::event::Verdict;

/// How long a service may take to be well again: connection pools of the application notice a
/// new server only when they try.
pub(super) const SETTLE: Duration = Duration::from_secs(15);
/// Time between two attempts.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// What was seen when it was settled, or last when `limit` was over. There is one look at
/// least, and none is cut off: each has to be bounded by itself.
// Not `AsyncFnMut`: that its futures are `Send` cannot be said.
pub(super) async fn until<T, F: Future<Output = T>>(
    limit: Duration,
    pause: Duration,
    mut is_settled: impl FnMut(&T) -> bool,
    mut look: impl FnMut() -> F,
) -> T {
    let end = Instant::now() + limit;
    loop {
        let seen = look().await;
        if is_settled(&seen) || Instant::now() >= end {
            return seen;
        }
        tokio::time::sleep(pause).await;
    }
}

/// The answer to one question of the proof, given when it is good or time is over.
pub(super) async fn settled<F: Future<Output = (Verdict, String)>>(
    what: impl Into<String>,
    ask: impl FnMut() -> F,
) -> Checked {
    let (verdict, found) = until(SETTLE, RETRY, |(verdict, _)| *verdict == Verdict::Pass, ask).await;
    answer(what, verdict, found)
}

/// The answers to several, given when all are good or time is over.
pub(super) async fn all_settled<F: Future<Output = Vec<Checked>>>(ask: impl FnMut() -> F) -> Vec<Checked> {
    // What nobody asked for does not come by waiting.
    let is_good = |c: &Checked| matches!(c.verdict, Verdict::Pass | Verdict::NotConfigured);
    until(
        SETTLE,
        RETRY,
        |checks: &Vec<Checked>| checks.iter().all(is_good),
        ask,
    )
    .await
}

/// What came of an attempt that is made again while it `Err`s with a reason to; the last reason
/// when time is over.
pub(super) async fn retried<T, F: Future<Output = Result<T, Again>>>(
    attempt: impl FnMut() -> F,
) -> Result<T, String> {
    let is_settled = |made: &Result<T, Again>| !matches!(made, Err(Again::Yes(_)));
    until(SETTLE, RETRY, is_settled, attempt)
        .await
        .map_err(|(Again::Yes(why) | Again::No(why))| why)
}

/// Why an attempt came to nothing, and whether another may do better.
pub(super) enum Again {
    /// It may.
    Yes(String),
    /// It will not.
    No(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(50);
    const PAUSE: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn the_first_good_look_ends_it() {
        let mut looks = 0;
        let seen = until(
            LIMIT,
            PAUSE,
            |n| *n == 3,
            || {
                looks += 1;
                std::future::ready(looks)
            },
        )
        .await;
        assert_eq!((seen, looks), (3, 3));
    }

    #[tokio::test]
    async fn when_time_is_over_the_last_look_counts() {
        let mut looks = 0;
        let begun = Instant::now();
        let seen = until(
            LIMIT,
            PAUSE,
            |_| false,
            || {
                looks += 1;
                std::future::ready(looks)
            },
        )
        .await;
        assert!(begun.elapsed() >= LIMIT);
        assert!(looks > 1);
        assert_eq!(seen, looks);
        // Without any time there is still a look.
        assert_eq!(
            until(Duration::ZERO, PAUSE, |_| false, || std::future::ready(1)).await,
            1
        );
    }

    #[tokio::test]
    async fn what_does_not_get_better_is_not_tried_again() {
        let mut attempts = 0;
        let made = retried(|| {
            attempts += 1;
            std::future::ready(Err::<(), _>(Again::No("refused".into())))
        })
        .await;
        assert_eq!((made, attempts), (Err("refused".into()), 1));
    }
}
