//! Webhooks and pings.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::resolve;
use crate::check::{Level, Message};
use crate::probe::http::{Answer, Http, HttpError};
use crate::runbook::WriteMethod;
use crate::runbook::alerting::Address;

/// Bounds one request; the way's own deadline usually ends it before.
const LONGEST: Duration = Duration::from_secs(60);

/// Posts a message in the form that Slack made usual.
pub(super) async fn post(address: &Address, message: &Message) -> Result<(), String> {
    let url = resolve(address).await?;
    let text = format!("{}\n{}", message.subject, message.body);
    let body = serde_json::json!({ "text": text }).to_string();
    let answer = client()?
        .write(WriteMethod::Post, url.expose_secret().trim(), &body, LONGEST)
        .await;
    judge(answer)
}

/// Tells a dead man's switch of a run: the status line is its body.
pub(super) async fn ping(address: &Address, overall: Level, status_line: &str) -> Result<(), String> {
    let url = resolve(address).await?;
    let url = ping_url(url.expose_secret().trim(), overall);
    let answer = client()?.send_text(&url, status_line, LONGEST).await;
    judge(answer)
}

/// `/fail` goes behind the path and before a query.
fn ping_url(url: &str, overall: Level) -> String {
    if overall == Level::Ok {
        return url.to_owned();
    }
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{}/fail{mark}{query}", path.trim_end_matches('/'))
}

fn client() -> Result<Http, String> {
    Http::new().map_err(|e| e.to_string())
}

/// No word of the address: the innermost cause does not repeat it, and what the other side answers is not repeated
/// either, for it may quote what was sent.
fn judge(answer: Result<Answer, HttpError>) -> Result<(), String> {
    match answer {
        Ok(a) if (200..300).contains(&a.status) => Ok(()),
        Ok(a) => Err(format!("it answered with status {}", a.status)),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_behind_the_path() {
        for (url, level, expected) in [
            ("https://hc/ping/1", Level::Ok, "https://hc/ping/1"),
            ("https://hc/ping/1", Level::Warning, "https://hc/ping/1/fail"),
            ("https://hc/ping/1/", Level::Critical, "https://hc/ping/1/fail"),
            (
                "https://hc/ping/1?rid=2",
                Level::Unknown,
                "https://hc/ping/1/fail?rid=2",
            ),
        ] {
            assert_eq!(ping_url(url, level), expected);
        }
    }

    #[tokio::test]
    async fn an_error_does_not_repeat_the_address() {
        let address: Address = serde_yaml::from_str("plain: 'http://127.0.0.1:1/hunter2'").unwrap();
        let message = Message::default();
        let why = post(&address, &message).await.unwrap_err();
        assert!(
            !why.contains("hunter2") && why.to_lowercase().contains("refused"),
            "{why}"
        );
        // Not an address at all.
        let address = Address::Command(vec!["echo".into(), "hunter2 hunter2".into()]);
        let why = post(&address, &message).await.unwrap_err();
        assert!(!why.contains("hunter2"), "{why}");
    }
}
