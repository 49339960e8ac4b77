//! The service as its users see it: endpoints, and a write and a read through the
//! application.

use std::time::Duration;

use super::actions::Checked;
use super::settle::{Again, retried, settled};
use super::verify::answer;
use crate::event::Verdict;
use crate::probe::http::Http;
use crate::runbook::{Endpoint, Runbook};

pub(super) async fn endpoints(runbook: &Runbook, what: &str) -> Vec<Checked> {
    if runbook.endpoints.is_empty() {
        return vec![answer(
            what,
            Verdict::NotConfigured,
            "the runbook names no endpoint",
        )];
    }
    let http = match Http::new() {
        Ok(http) => http,
        Err(e) => return vec![answer(what, Verdict::CouldNotVerify, e.to_string())],
    };
    // Together: each may have to wait for a pool to notice.
    let asked = runbook.endpoints.iter().map(|(name, e)| endpoint(&http, name, e));
    futures_util::future::join_all(asked).await
}

async fn endpoint(http: &Http, name: &str, endpoint: &Endpoint) -> Checked {
    let what = format!("endpoint {name} answers {}", endpoint.expect_status);
    let mut tries = 0;
    settled(what, || {
        tries += 1;
        let attempt = attempts(tries);
        async move {
            let (verdict, found) = match http.get(endpoint.url.as_str(), timeout(endpoint.timeout)).await {
                Ok(a) if a.status == endpoint.expect_status => {
                    let took = crate::event::seconds(a.took);
                    (Verdict::Pass, format!("{} in {took}", a.status))
                }
                Ok(a) => (Verdict::Fail, format!("{} {}", a.status, first_words(&a.body))),
                Err(e) => (Verdict::Fail, e.to_string()),
            };
            (verdict, format!("{found}{attempt}"))
        }
    })
    .await
}

fn timeout(configured: Option<Duration>) -> Duration {
    configured.unwrap_or(Duration::from_secs(3))
}

fn attempts(tries: u32) -> String {
    if tries > 1 {
        format!(", attempt {tries}")
    } else {
        String::new()
    }
}

fn first_words(body: &str) -> String {
    body.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(80)
        .collect()
}

/// Makes a write as a user would and reads it back.
pub(super) async fn write_check(runbook: &Runbook, what: String) -> Checked {
    let Some(config) = &runbook.write_check else {
        return answer(what, Verdict::NotConfigured, "the runbook has no write-check");
    };
    let http = match Http::new() {
        Ok(http) => http,
        Err(e) => return answer(what, Verdict::CouldNotVerify, e.to_string()),
    };
    let body = config.write.body.as_deref().unwrap_or_default();
    let written = retried(|| async {
        let sent = http
            .write(
                config.write.method,
                config.write.url.as_str(),
                body,
                timeout(config.write.timeout),
            )
            .await;
        match sent {
            Ok(a) if a.status == config.write.expect_status => Ok(a),
            Ok(a) => {
                let problem = format!("the write got {} {}", a.status, first_words(&a.body));
                // A refusal by the client's fault does not get better.
                Err(if (400..500).contains(&a.status) {
                    Again::No(problem)
                } else {
                    Again::Yes(problem)
                })
            }
            Err(e) => Err(Again::Yes(format!("the write: {e}"))),
        }
    });
    let written = match written.await {
        Ok(written) => written,
        Err(problem) => return answer(what, Verdict::Fail, problem),
    };
    let Some(id) = identity(&written.body, &config.id_field) else {
        return answer(
            what,
            Verdict::CouldNotVerify,
            format!("the write's answer has no field {:?}", config.id_field),
        );
    };
    let url = config
        .read
        .url
        .as_str()
        .replace("{id}", &id)
        .replace("%7Bid%7D", &id);
    match http.get(&url, timeout(config.read.timeout)).await {
        Ok(a) if a.status == config.read.expect_status => answer(
            what,
            Verdict::Pass,
            format!("written as {} {id}, and read back", config.id_field),
        ),
        Ok(a) => answer(
            what,
            Verdict::Fail,
            format!(
                "written as {id}, reading it got {} {}",
                a.status,
                first_words(&a.body)
            ),
        ),
        Err(e) => answer(what, Verdict::Fail, format!("written as {id}, reading it: {e}")),
    }
}

/// A field of a JSON object, for use in a URL: only what cannot change its meaning.
fn identity(body: &str, field: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(body).ok()?;
    let text = match value.get(field)? {
        serde_json::Value::String(s) => s.clone(),
        serde_json::Value::Number(n) => n.to_string(),
        _ => return None,
    };
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (!text.is_empty() && text.chars().all(safe)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_cannot_change_the_address() {
        for (body, id) in [
            (r#"{"id": 42}"#, Some("42")),
            (r#"{"id": "a-1_b.c"}"#, Some("a-1_b.c")),
            (r#"{"id": "../admin"}"#, None),
            (r#"{"id": "1?x=2"}"#, None),
            (r#"{"id": ""}"#, None),
            (r#"{"id": null}"#, None),
            (r#"{"other": 1}"#, None),
            ("oops", None),
        ] {
            assert_eq!(identity(body, "id").as_deref(), id, "{body}");
        }
    }
}
