//! Telling somebody. Every way at once, each with a deadline; one that fails is said, kept for the next run, and changes
//! nothing else. Secrets are read when they are needed, and no error repeats one.

mod command;
mod email;
mod web;

use std::collections::BTreeMap;
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
    bound(pending);
}

/// Gives what waits for ways that have left the runbook to new ones: to those of the same kind, as after a correction of
/// an address, else to all new ones. Without a new one it goes with its way, as the others have told it. `ways` are the
/// identities of those in the runbook; a way is new when it has no entry, so each has one afterwards.
pub fn hand_over(pending: &mut BTreeMap<String, Vec<Message>>, ways: &[String]) {
    if ways.is_empty() {
        return;
    }
    let fresh: Vec<&String> = ways.iter().filter(|way| !pending.contains_key(*way)).collect();
    let kind = |id: &str| id.rsplit_once('-').map(|(kind, _)| kind.to_owned());
    let gone: Vec<String> = pending.keys().filter(|id| !ways.contains(id)).cloned().collect();
    for id in gone {
        let waiting = pending.remove(&id).unwrap_or_default();
        let same: Vec<&&String> = fresh.iter().filter(|way| kind(way) == kind(&id)).collect();
        let heirs = if same.is_empty() {
            fresh.iter().collect()
        } else {
            same
        };
        for way in heirs {
            let all = pending.entry((**way).clone()).or_default();
            for message in &waiting {
                if !all.contains(message) {
                    all.push(message.clone());
                }
            }
            all.sort_by_key(|m| m.at);
            bound(all);
        }
    }
    for way in ways {
        pending.entry(way.clone()).or_default();
    }
}

fn bound(pending: &mut Vec<Message>) {
    let surplus = pending.len().saturating_sub(KEPT);
    pending.drain(..surplus);
}

/// Tries every way at once: pings in each run, the others when messages are pending for them.
pub async fn tell(
    ways: &[Notify],
    pending: &BTreeMap<String, Vec<Message>>,
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
    fn what_waits_for_a_corrected_way_is_told_by_the_new_one() {
        let ids = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let after = |ways: &[&str]| {
            let mut pending = BTreeMap::from([
                ("email-1".to_owned(), vec![]),
                ("webhook-1".to_owned(), vec![message("disk")]),
            ]);
            hand_over(&mut pending, &ids(ways));
            pending
                .into_iter()
                .map(|(way, waiting)| format!("{way} {}", waiting.len()))
                .collect::<Vec<_>>()
        };
        assert_eq!(after(&["email-1", "webhook-1"]), ["email-1 0", "webhook-1 1"]);
        assert_eq!(after(&["email-1", "webhook-2"]), ["email-1 0", "webhook-2 1"]);
        // Another kind in its place, and nothing in its place: the mail has told it.
        assert_eq!(after(&["email-1", "command-1"]), ["command-1 1", "email-1 0"]);
        assert_eq!(after(&["email-1"]), ["email-1 0"]);
        // Nobody is there to be told: it waits.
        assert_eq!(after(&[]), ["email-1 0", "webhook-1 1"]);
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
