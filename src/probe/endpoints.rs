//! How the runbook's endpoints answer, asked a few times each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::http::{Answer, Http, HttpError};
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

/// The same with a few requests in quick succession. One that is not answered at half of its deadline is joined by
/// another: a dead endpoint costs its deadline once, and one slow answer does not make it a dead one.
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
    let timeout = endpoint.timeout.unwrap_or(probe);
    for _ in 0..requests {
        let (first, second) = if hurry {
            get_twice_if_slow(http, endpoint.url.as_str(), timeout).await
        } else {
            (http.get(endpoint.url.as_str(), timeout).await, None)
        };
        let mut timeouts = 0;
        for answer in std::iter::once(first).chain(second) {
            match answer {
                Ok(a) if a.status == endpoint.expect_status => answers
                    .millis
                    .push(u64::try_from(a.took.as_millis()).unwrap_or(u64::MAX)),
                Ok(a) => answers.failures.push(format!("status {}", a.status)),
                Err(e) => {
                    timeouts += usize::from(matches!(e, HttpError::Timeout(_)));
                    answers.failures.push(e.to_string());
                }
            }
        }
        if timeouts == 2 {
            break;
        }
        if began.elapsed() >= LONGEST {
            break;
        }
        tokio::time::sleep(pause).await;
    }
    answers
}

/// A second answer only where the first one did not come in time: the second request has half of the time.
async fn get_twice_if_slow(
    http: &Http,
    url: &str,
    timeout: Duration,
) -> (Result<Answer, HttpError>, Option<Result<Answer, HttpError>>) {
    let mut first = std::pin::pin!(http.get(url, timeout));
    let half = timeout / 2;
    if let Ok(answer) = tokio::time::timeout(half, first.as_mut()).await {
        return (answer, None);
    }
    let (first, second) = tokio::join!(first, http.get(url, half));
    let second = matches!(first, Err(HttpError::Timeout(_))).then_some(second);
    (first, second)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers `answered` of its first connections, in their order, and all that follow if `then`.
    async fn glance_at(answered: &'static [bool], then: bool) -> Answers {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if *answered.get(open.len()).unwrap_or(&then) {
                    let _ = stream.read(&mut [0; 1024]).await;
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                        .await;
                }
                open.push(stream);
            }
        });
        let endpoint: Endpoint = serde_yaml::from_str(&format!("url: {url}")).unwrap();
        ask(
            &Http::new().unwrap(),
            &endpoint,
            Duration::from_millis(500),
            5,
            Duration::ZERO,
            true,
        )
        .await
    }

    #[tokio::test]
    async fn one_slow_answer_is_no_dead_endpoint_and_a_dead_one_costs_its_deadline_once() {
        let slow = glance_at(&[false], true).await;
        assert_eq!((slow.failures.len(), slow.millis.len()), (1, 5), "{slow:?}");
        let began = Instant::now();
        let dead = glance_at(&[], false).await;
        assert!(dead.is_down() && dead.failures.len() == 2, "{dead:?}");
        assert!(began.elapsed() < Duration::from_millis(900));
    }

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
