//! How long until a file system is full, from what it held in the last days.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Samples are kept this long.
const KEEP: Duration = Duration::from_hours(7 * 24);
/// The youngest are all kept, older ones one an hour: about 200 in all.
const ALL_OF: Duration = Duration::from_hours(2);
const SPARSE: Duration = Duration::from_hours(1);
/// Never two closer than this, however often somebody runs a check.
const CLOSEST: Duration = Duration::from_secs(30);
/// A shorter time is no trend.
const SHORTEST: Duration = Duration::from_hours(1);
/// Nor are fewer samples.
const FEWEST: usize = 6;
/// What is further away is as good as never.
const FURTHEST: Duration = Duration::from_hours(365 * 24);

/// What a file system held at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Sample {
    /// When, in seconds since 1970.
    pub at: i64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes that could be used.
    pub size: u64,
}

/// Adds a sample to a history, oldest first, and lets go of what is too old or too dense. What a clock that was set back
/// has left in the future is dropped.
pub fn record(history: &mut Vec<Sample>, now: Timestamp, used: u64, size: u64) {
    let at = now.as_second();
    history.retain(|s| s.at <= at && seconds_between(s.at, at) <= KEEP);
    if history
        .last()
        .is_none_or(|s| seconds_between(s.at, at) >= CLOSEST || differ(s.size, size))
    {
        history.push(Sample { at, used, size });
    }
    let mut kept: Option<i64> = None;
    history.retain(|s| {
        let keep = seconds_between(s.at, at) <= ALL_OF
            || kept.is_none_or(|last| seconds_between(last, s.at) >= SPARSE);
        if keep {
            kept = Some(s.at);
        }
        keep
    });
}

fn seconds_between(from: i64, to: i64) -> Duration {
    Duration::from_secs(u64::try_from(to.saturating_sub(from)).unwrap_or_default())
}

/// Time until nothing is left, if it goes on like that; `None` when it does not grow, or too little is known.
///
/// The slope is the median of the slopes between all pairs (Theil–Sen): a backup that was written and deleted, or one
/// that a big file was copied for, does not move it, as it would a least-squares line.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a forecast")]
pub fn time_to_full(history: &[Sample]) -> Option<Duration> {
    let last = history.last()?;
    // A file system that was grown begins a new history.
    let start = history
        .iter()
        .rposition(|s| differ(s.size, last.size))
        .map_or(0, |i| i + 1);
    let recent = history.get(start..)?;
    let first = recent.first()?;
    if recent.len() < FEWEST || seconds_between(first.at, last.at) < SHORTEST {
        return None;
    }
    let mut slopes: Vec<f64> = recent
        .iter()
        .enumerate()
        .flat_map(|(i, a)| recent.iter().skip(i + 1).map(move |b| (a, b)))
        .filter(|(a, b)| b.at > a.at)
        .map(|(a, b)| (b.used as f64 - a.used as f64) / (b.at - a.at) as f64)
        .collect();
    let middle = slopes.len() / 2;
    let (_, slope, _) = slopes.select_nth_unstable_by(middle, f64::total_cmp);
    if *slope <= 0.0 {
        return None;
    }
    let free = last.size.saturating_sub(last.used) as f64;
    Duration::try_from_secs_f64(free / *slope)
        .ok()
        .filter(|d| *d <= FURTHEST)
}

/// More than one part in a hundred: a file system that was grown or shrunk. What it can hold also moves a little by
/// itself, with what only root may use.
fn differ(a: u64, b: u64) -> bool {
    a.abs_diff(b) > a.max(b) / 100
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: i64 = 3600;
    const GIB: u64 = 1 << 30;

    fn grow(hours: i64, per_hour: u64, size: u64) -> Vec<Sample> {
        (0..=hours)
            .map(|h| Sample {
                at: h * HOUR,
                used: 10 * GIB + u64::try_from(h).unwrap() * per_hour,
                size,
            })
            .collect()
    }

    fn hours(history: &[Sample]) -> Option<u64> {
        time_to_full(history).map(|d| (d.as_secs() + 1800) / 3600)
    }

    #[test]
    fn a_steady_growth_is_seen() {
        assert_eq!(hours(&grow(24, GIB, 100 * GIB)), Some(66));
        assert_eq!(hours(&grow(24, 0, 100 * GIB)), None);
        // More than a year away.
        assert_eq!(hours(&grow(24, 1 << 20, 100 * GIB)), None);
        // Too little is known.
        assert_eq!(hours(&[]), None);
        assert_eq!(hours(&grow(4, GIB, 100 * GIB)), None);
        let dense: Vec<_> = grow(30, GIB, 100 * GIB)
            .iter()
            .map(|s| Sample { at: s.at / 60, ..*s })
            .collect();
        assert_eq!(hours(&dense), None);
    }

    #[test]
    fn a_file_that_came_and_went_does_not_count() {
        let mut history = grow(24, GIB, 100 * GIB);
        for i in [5, 6, 7, 20] {
            history[i].used += 50 * GIB;
        }
        assert_eq!(hours(&history), Some(66));
    }

    #[test]
    fn a_grown_file_system_begins_anew() {
        let mut history = grow(24, GIB, 40 * GIB);
        for s in &mut history[20..] {
            s.size = 400 * GIB;
        }
        assert_eq!(hours(&history), None);
        let mut history = grow(48, GIB, 400 * GIB);
        for s in &mut history[..20] {
            s.size = 80 * GIB;
        }
        assert_eq!(hours(&history), Some(400 - 58));
    }

    #[test]
    fn a_week_of_runs_is_a_short_history() {
        let mut history = Vec::new();
        for run in 0..(10 * 24 * 12) {
            let now = Timestamp::from_second(run * 300).unwrap();
            record(&mut history, now, u64::try_from(run).unwrap(), GIB);
        }
        assert!((150..220).contains(&history.len()), "{}", history.len());
        let age = history.last().unwrap().at - history[0].at;
        assert!(age > 6 * 24 * HOUR && age <= 7 * 24 * HOUR, "{age}");
        // The clock is set back by a day.
        let now = Timestamp::from_second(history.last().unwrap().at - 24 * HOUR).unwrap();
        record(&mut history, now, 1, GIB);
        assert_eq!(history.last().unwrap().at, now.as_second());
    }

    proptest! {
        #[test]
        fn no_history_upsets_it(raw in proptest::collection::vec((0_i64..1_000_000, any::<u64>(), any::<u64>()), 0..60)) {
            let mut history = Vec::new();
            for (at, used, size) in raw {
                record(&mut history, Timestamp::from_second(at).unwrap(), used, size);
                let _ = time_to_full(&history);
                prop_assert!(history.windows(2).all(|w| w[0].at <= w[1].at));
            }
        }
    }
}
