//! Telling somebody. Every way at once, each with a deadline; one that fails is said, kept for the next run, and changes
//! nothing else. Secrets are read when they are needed, and no error repeats one.

mod command;
mod email;
mod web;

use std::time::Duration;

use futures_util::future::join_all;
use sha2::{Digest, Sha256};

use crate::check::{Level, Message};
use crate::runbook::alerting::{Address, Notify};

/// Messages that are kept for a way that does not work; older ones are dropped first.
const KEPT: usize = 20;

/// One way, and what came of it.
#[derive(Debug)]
pub struct Told {
    /// Identity of the way.
    pub way: String,
    /// How it is called in words.
    pub name: String,
    /// Why it failed; never with a secret in it.
    pub failed: Option<String>,
    /// Messages that arrived: that many of those that were pending, oldest first.
    pub delivered: usize,
}

/// The identity under which a way's messages wait: another one when the runbook says something else of it. It is made
/// of the runbook's text, which holds no secret.
#[must_use]
pub fn identity(way: &Notify) -> String {
    let text = serde_json::to_string(way).unwrap_or_default();
    let digest = Sha256::digest(text.as_bytes());
    let short = digest
        .iter()
        .take(6)
        .fold(0_u64, |all, byte| (all << 8) | u64::from(*byte));
    format!("{}-{short:012x}", kind(way))
}

fn kind(way: &Notify) -> &'static str {
    match way {
        Notify::Webhook(_) => "webhook",
        Notify::Email(_) => "email",
        Notify::Ping(_) => "ping",
        Notify::Command(_) => "command",
    }
}

/// What a person calls a way: its kind and what is no secret of it.
#[must_use]
pub fn name(way: &Notify) -> String {
    let address = |a: &Address| match a.secret() {
        Ok(reference) => format!(" ({reference})"),
        // Its host only: the rest may be as good as a password, whatever the runbook thinks.
        Err(url) => reqwest::Url::parse(url.as_str())
            .ok()
            .and_then(|u| u.host_str().map(|h| format!(" to {h}")))
            .unwrap_or_default(),
    };
    let more = match way {
        Notify::Webhook(w) => address(&w.url),
        Notify::Ping(p) => address(&p.url),
        Notify::Email(e) => format!(" by {}", e.host),
        Notify::Command(c) => format!(" {}", c.argv.first().map_or("", String::as_str)),
    };
    format!("{}{more}", kind(way))
}

/// Adds a message to what is pending for a way.
pub fn enqueue(pending: &mut Vec<Message>, message: &Message) {
    pending.push(message.clone());
    let surplus = pending.len().saturating_sub(KEPT);
    pending.drain(..surplus);
}

/// Tries every way at once: pings in each run, the others when messages are pending for them.
pub async fn tell(
    ways: &[Notify],
    pending: &std::collections::BTreeMap<String, Vec<Message>>,
    deployment: &str,
    overall: Level,
    status_line: &str,
    deadline: Duration,
) -> Vec<Told> {
    let all = ways.iter().map(|way| async move {
        let id = identity(way);
        let messages = pending.get(&id).map(Vec::as_slice).unwrap_or_default();
        let mut delivered = 0;
        let work = async {
            match way {
                Notify::Ping(ping) => return web::ping(&ping.url, overall, status_line).await,
                _ if messages.is_empty() => return Ok(()),
                // A way that has been out of order gets one message with all that it has missed.
                Notify::Webhook(hook) => web::post(&hook.url, &joined(messages)).await?,
                Notify::Email(mail) => email::send(mail, &joined(messages), deadline).await?,
                Notify::Command(program) => {
                    command::run(program, deployment, &joined(messages), deadline).await?;
                }
            }
            delivered = messages.len();
            Ok(())
        };
        let result = tokio::time::timeout(deadline, work)
            .await
            .unwrap_or_else(|_| Err(format!("not done within {}", crate::event::seconds(deadline))));
        Told {
            name: name(way),
            failed: result.err(),
            delivered,
            way: id,
        }
    });
    join_all(all).await
}

/// Several messages as one, the latest first: its subject is the present state.
fn joined(messages: &[Message]) -> Message {
    let mut all = messages.iter().rev();
    let Some(latest) = all.next() else {
        return Message::default();
    };
    let mut message = latest.clone();
    for earlier in all {
        message.body = format!(
            "{}\n\nEarlier, at {}, not delivered then:\n{}\n{}",
            message.body, earlier.at, earlier.subject, earlier.body
        );
    }
    message
}

/// The secret behind an address, or the address itself.
async fn resolve(address: &Address) -> Result<secrecy::SecretString, String> {
    match address.secret() {
        Err(url) => Ok(url.as_str().to_owned().into()),
        Ok(reference) => reference.resolve(&[]).await.map_err(|e| e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(yaml: &str) -> Vec<Notify> {
        serde_yaml::from_str(yaml).unwrap()
    }

    fn message(subject: &str) -> Message {
        Message {
            subject: subject.into(),
            body: "body".into(),
            ..Message::default()
        }
    }

    #[test]
    fn names_hold_no_secret_and_identities_change_with_the_runbook() {
        let ways = ways(
            "- webhook: { url: { plain: 'https://hooks.example.com/services/T0/hunter2' } }\n\
             - webhook: { url: { env: SLACK_URL } }\n\
             - ping: { url: { command: [pass, show, hunter2] } }\n\
             - email: { host: mail.example.com, from: a@example.com, to: [b@example.com], user: u, password: { file: /run/hunter2 } }\n\
             - command: { argv: [notify, hunter2] }\n",
        );
        let names: Vec<_> = ways.iter().map(name).collect();
        assert_eq!(
            names,
            [
                "webhook to hooks.example.com",
                "webhook (env SLACK_URL)",
                "ping (command pass)",
                "email by mail.example.com",
                "command notify"
            ]
        );
        let identities: std::collections::BTreeSet<_> = ways.iter().map(identity).collect();
        assert_eq!(identities.len(), ways.len());
        assert!(identities.iter().all(|i| !i.contains("hunter2")));
    }

    #[test]
    fn what_waits_is_bounded_and_comes_as_one_message() {
        let mut pending = Vec::new();
        for n in 0..30 {
            enqueue(&mut pending, &message(&n.to_string()));
        }
        assert_eq!(pending.len(), KEPT);
        let one = joined(&pending);
        assert_eq!(one.subject, "29");
        assert!(
            one.body.contains("\n10\n") && !one.body.contains("\n9\n"),
            "{}",
            one.body
        );
    }
}
