//! The service as users see it, sampled from the first moment of a recovery to its end.
//! Recovery time is measured here and nowhere else: what drctl believes of its own steps
//! is not what users notice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::http::Http;
use crate::runbook::{Endpoint, Runbook};

/// Time between two samples.
const INTERVAL: Duration = Duration::from_millis(150);
/// Longest wait for one sample.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an answer must stay good to end an outage: one lucky request does not.
pub const LASTING: Duration = Duration::from_secs(1);

/// A time in which users were turned away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Outage {
    /// The first failure.
    pub from: Timestamp,
    /// The first success that lasted; `None` when it had not come yet.
    pub to: Option<Timestamp>,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Seen {
    /// The endpoint's name in the runbook.
    pub endpoint: String,
    /// Samples taken.
    pub samples: u64,
    /// Times in which users were turned away, merged where a success did not last.
    pub outages: Vec<Outage>,
    /// Seconds in which requests really failed.
    pub failing_seconds: f64,
    /// Seconds from the first failure to the last lasting success; `None` while down. Zero
    /// when nothing failed.
    pub rto_measured: Option<f64>,
}

/// Collects samples; keeps only the changes, so that hours of watching cost nothing.
#[derive(Debug, Clone, Default)]
struct Tracker {
    /// State from this moment on.
    changes: Vec<(Timestamp, bool)>,
    last: Option<Timestamp>,
    samples: u64,
}

impl Tracker {
    fn push(&mut self, at: Timestamp, good: bool) {
        self.samples += 1;
        self.last = Some(self.last.map_or(at, |l| l.max(at)));
        if self.changes.last().is_none_or(|(_, state)| *state != good) {
            self.changes.push((at, good));
        }
    }
}

/// Outages and seconds of failing, from state changes up to `end`.
fn outages(changes: &[(Timestamp, bool)], end: Timestamp, lasting: Duration) -> (Vec<Outage>, f64) {
    let lasting = SignedDuration::try_from(lasting).unwrap_or(SignedDuration::MAX);
    let mut found: Vec<Outage> = Vec::new();
    let mut failing = SignedDuration::ZERO;
    for (i, (at, good)) in changes.iter().enumerate() {
        let until = changes.get(i + 1).map_or(end, |(next, _)| *next).max(*at);
        let open = found.last_mut().filter(|o| o.to.is_none());
        if *good {
            if let Some(outage) = open
                && until.duration_since(*at) >= lasting
            {
                outage.to = Some(*at);
            }
        } else {
            failing = failing.saturating_add(until.duration_since(*at));
            if open.is_none() {
                found.push(Outage { from: *at, to: None });
            }
        }
    }
    (found, failing.as_secs_f64())
}

/// Sums up; `down_since` is when it went down, known from elsewhere, if it was already down
/// at the first sample.
fn sum_up(endpoint: &str, tracker: &Tracker, down_since: Option<Timestamp>, end: Timestamp) -> Seen {
    let mut changes = tracker.changes.clone();
    if let (Some((first, false)), Some(since)) = (changes.first_mut(), down_since) {
        *first = since.min(*first);
    }
    let (outages, failing_seconds) = outages(&changes, end, LASTING);
    let rto_measured = match (outages.first(), outages.last()) {
        (Some(first), Some(last)) => last.to.map(|to| to.duration_since(first.from).as_secs_f64()),
        _ => (tracker.samples > 0).then_some(0.0),
    };
    Seen {
        endpoint: endpoint.to_owned(),
        samples: tracker.samples,
        outages,
        failing_seconds,
        rto_measured,
    }
}

/// A running watch. Ends when dropped.
#[derive(Debug)]
pub struct Watch {
    endpoint: String,
    tracker: Arc<Mutex<Tracker>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Begins to watch the runbook's endpoint for users: the one called `health`, else the
    /// first. `None` when there is none.
    #[must_use]
    pub fn start(runbook: &Runbook) -> Option<Self> {
        let (name, endpoint) = runbook
            .endpoints
            .get_key_value("health")
            .or_else(|| runbook.endpoints.first_key_value())?;
        let http = Http::new().ok()?;
        let tracker = Arc::new(Mutex::new(Tracker::default()));
        let task = tokio::spawn(sample(http, endpoint.clone(), Arc::clone(&tracker)));
        Some(Self {
            endpoint: name.clone(),
            tracker,
            task,
        })
    }

    /// When users were first turned away in this watch, or before it as `down_since` tells.
    #[must_use]
    pub fn down_since(&self, down_since: Option<Timestamp>) -> Option<Timestamp> {
        self.seen(down_since).outages.first().map(|o| o.from)
    }

    /// What was seen up to now.
    #[must_use]
    pub fn seen(&self, down_since: Option<Timestamp>) -> Seen {
        // A poisoned lock still holds whole samples.
        let tracker = self.tracker.lock().unwrap_or_else(PoisonError::into_inner);
        sum_up(
            &self.endpoint,
            &tracker,
            down_since,
            tracker.last.unwrap_or_else(Timestamp::now),
        )
    }

    /// Waits until users are served lastingly, or `patience` is over.
    pub async fn until_up(&self, patience: Duration) {
        let waited = tokio::time::timeout(patience, async {
            while self.seen(None).rto_measured.is_none() {
                tokio::time::sleep(INTERVAL).await;
            }
        });
        let _ = waited.await;
    }
}

async fn sample(http: Http, endpoint: Endpoint, tracker: Arc<Mutex<Tracker>>) {
    let mut clock = tokio::time::interval(INTERVAL);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let asked = Timestamp::now();
        let good = http
            .get(endpoint.url.as_str(), SAMPLE_TIMEOUT)
            .await
            .is_ok_and(|a| a.status == endpoint.expect_status);
        // A failure began when the user asked; a success counts when they have it.
        let at = if good { Timestamp::now() } else { asked };
        tracker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(at, good);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
    }

    fn tracker(samples: &[(i64, bool)]) -> Tracker {
        let mut t = Tracker::default();
        for (ms, good) in samples {
            t.push(at(*ms), *good);
        }
        t
    }

    fn seen(samples: &[(i64, bool)], down_since: Option<i64>, end: i64) -> Seen {
        sum_up("health", &tracker(samples), down_since.map(at), at(end))
    }

    #[test]
    fn outages_as_users_saw_them() {
        // samples, down since, end → outages, failing, measured
        type Case<'a> = (
            &'a [(i64, bool)],
            Option<i64>,
            i64,
            &'a [(i64, Option<i64>)],
            f64,
            Option<f64>,
        );
        let cases: [Case; 8] = [
            (&[], None, 0, &[], 0.0, None),
            (&[(0, true), (500, true)], None, 500, &[], 0.0, Some(0.0)),
            (
                &[(0, true), (100, false), (3100, true)],
                None,
                5000,
                &[(100, Some(3100))],
                3.0,
                Some(3.0),
            ),
            // Still down.
            (&[(0, false), (4000, false)], None, 4000, &[(0, None)], 4.0, None),
            // Up for too short a time to tell.
            (&[(0, false), (4000, true)], None, 4500, &[(0, None)], 4.0, None),
            // One lucky request does not end it.
            (
                &[(0, false), (1000, true), (1150, false), (3000, true)],
                None,
                9000,
                &[(0, Some(3000))],
                2.85,
                Some(3.0),
            ),
            // Two outages: from the first failure to the last recovery.
            (
                &[(0, false), (1000, true), (5000, false), (6000, true)],
                None,
                9000,
                &[(0, Some(1000)), (5000, Some(6000))],
                2.0,
                Some(6.0),
            ),
            // Already down before drctl came.
            (
                &[(0, false), (1000, true)],
                Some(-60_000),
                9000,
                &[(-60_000, Some(1000))],
                61.0,
                Some(61.0),
            ),
        ];
        for (samples, since, end, outages, failing, measured) in cases {
            let s = seen(samples, since, end);
            let found: Vec<_> = s.outages.iter().map(|o| (o.from, o.to)).collect();
            let expected: Vec<_> = outages.iter().map(|(f, t)| (at(*f), t.map(at))).collect();
            assert_eq!(found, expected, "{samples:?}");
            assert!(
                (s.failing_seconds - failing).abs() < 1e-6,
                "{samples:?}: {}",
                s.failing_seconds
            );
            assert_eq!(s.rto_measured, measured, "{samples:?}");
        }
    }

    #[test]
    fn a_service_that_is_up_was_not_down_before() {
        let s = seen(&[(0, true), (2000, true)], Some(-60_000), 2000);
        assert_eq!(s.rto_measured, Some(0.0));
    }

    #[test]
    fn only_changes_are_kept() {
        let many: Vec<(i64, bool)> = (0..10_000).map(|i| (i * 100, true)).collect();
        let t = tracker(&many);
        assert_eq!(t.changes.len(), 1);
        assert_eq!(t.samples, 10_000);
    }
}
