//! How the runbook's endpoints answer, asked a few times each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::http::{Http, HttpError};
use crate::runbook::{Endpoint, Runbook};

/// Requests to one endpoint in one look.
const SAMPLES: usize = 10;
/// A look at one endpoint takes no longer than this, one request aside.
const LONGEST: Duration = Duration::from_secs(2);
/// Between two requests to one endpoint.
const PAUSE: Duration = Duration::from_millis(40);

/// How one endpoint answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Answers {
    /// Milliseconds that each good answer took, in the order in which they came.
    pub millis: Vec<u64>,
    /// Why the others were none, one entry for each.
    pub failures: Vec<String>,
}

impl Answers {
    /// It was asked, and no answer was good.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.millis.is_empty() && !self.failures.is_empty()
    }

    /// The 95th percentile of what a user waits, in milliseconds: a rank among all requests, of
    /// which the failed ones took longest. `None` where that rank is a failure, or nothing was
    /// asked.
    #[must_use]
    pub fn p95(&self) -> Option<u64> {
        let mut sorted = self.millis.clone();
        sorted.sort_unstable();
        let all = sorted.len() + self.failures.len();
        sorted.get((all * 95).div_ceil(100).checked_sub(1)?).copied()
    }
}

/// Asks all endpoints at once, each several times in turn.
pub async fn look(runbook: &Runbook) -> BTreeMap<String, Answers> {
    ask_all(runbook, SAMPLES, PAUSE, false).await
}

/// The same with a few requests in quick succession. One that is not answered in time is the last to its endpoint: a
/// dead endpoint costs its deadline once.
pub async fn glance(runbook: &Runbook, requests: usize) -> BTreeMap<String, Answers> {
    ask_all(runbook, requests, Duration::ZERO, true).await
}

async fn ask_all(
    runbook: &Runbook,
    requests: usize,
    pause: Duration,
    hurry: bool,
) -> BTreeMap<String, Answers> {
    let http = Http::new();
    join_all(runbook.endpoints.iter().map(|(name, e)| {
        let http = &http;
        async move {
            let answers = match http {
                Ok(http) => ask(http, e, runbook.deadlines.probe, requests, pause, hurry).await,
                Err(cause) => Answers {
                    millis: Vec::new(),
                    failures: vec![cause.to_string()],
                },
            };
            (name.clone(), answers)
        }
    }))
    .await
    .into_iter()
    .collect()
}

async fn ask(
    http: &Http,
    endpoint: &Endpoint,
    probe: Duration,
    requests: usize,
    pause: Duration,
    hurry: bool,
) -> Answers {
    let began = Instant::now();
    let mut answers = Answers {
        millis: Vec::new(),
        failures: Vec::new(),
    };
    for _ in 0..requests {
        match http
            .get(endpoint.url.as_str(), endpoint.timeout.unwrap_or(probe))
            .await
        {
            Ok(a) if a.status == endpoint.expect_status => answers
                .millis
                .push(u64::try_from(a.took.as_millis()).unwrap_or(u64::MAX)),
            Ok(a) => answers.failures.push(format!("status {}", a.status)),
            Err(e) => {
                answers.failures.push(e.to_string());
                if hurry && matches!(e, HttpError::Timeout(_)) {
                    break;
                }
            }
        }
        if began.elapsed() >= LONGEST {
            break;
        }
        tokio::time::sleep(pause).await;
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_request_is_the_slowest_of_all() {
        let of = |good: std::ops::Range<u64>, bad: usize| Answers {
            millis: good.rev().collect(),
            failures: vec!["x".into(); bad],
        };
        assert_eq!(of(0..0, 0).p95(), None);
        assert_eq!(of(1..11, 0).p95(), Some(10));
        assert_eq!(of(1..21, 0).p95(), Some(19));
        assert_eq!(of(1..20, 1).p95(), Some(19));
        assert_eq!(of(1..10, 1).p95(), None);
        assert!(of(0..0, 1).is_down() && !of(0..1, 1).is_down() && !of(0..0, 0).is_down());
    }
}
