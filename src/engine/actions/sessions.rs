//! Ending sessions: the ones that hold slots without working, the one that others wait for,
//! and, when even a superuser is turned away, one idle superuser's.

use std::time::Duration;

use tokio::time::Instant;

use super::{ActionContext, ActionError, Outcome, container, pg, server};
use crate::engine::endpoints::endpoints;
use crate::event::{Verdict, seconds};
use crate::plan::{Release, SessionRef, SessionRules};
use crate::postgres::{Client, quote_literal, sqlstate};
use crate::probe::sessions::{Activity, Session, SessionFacts, read};
use crate::system::PostgresServer;

/// Between two looks at what has ended.
const POLL: Duration = Duration::from_millis(20);
/// How long an ended session may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// How long one that is told to end has to let a superuser in.
const WAY_IN: Duration = Duration::from_secs(10);

/// Asks the one process whose title is "$1" to end. Only what the shell does by itself: a
/// child that ended badly here would be taken for a crashed session (see `workload`). The
/// title is compared once more right before.
const TERMINATE: &str = r#"
for p in /proc/[0-9]*; do
  title=''
  { IFS= read -r title || :; } 2>/dev/null < "$p/cmdline"
  # The server fills its title up with blanks.
  while [ "$title" != "${title% }" ]; do title=${title% }; done
  if [ "$title" = "$1" ] && [ "$p" != /proc/1 ]; then kill -TERM "${p#/proc/}" && echo "ended ${p#/proc/}"; exit 0; fi
done
echo gone
"#;

pub(super) async fn free_slot(
    cx: &ActionContext<'_>,
    service: &str,
    title: &str,
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    if server.connect().await.is_ok() {
        return Ok(Outcome::new("a superuser gets in by now; no session was ended"));
    }
    let argv = ["/bin/sh", "-c", TERMINATE, "drctl", title];
    let told = cx
        .system
        .docker
        .exec(
            &server.container.id,
            None,
            &argv,
            cx.system.runbook.deadlines.probe,
        )
        .await?;
    if told.exit_code != 0 {
        return Err(ActionError::Other(format!(
            "the session could not be asked to end: {}",
            told.stderr.trim()
        )));
    }
    let end = Instant::now() + WAY_IN;
    loop {
        let Err(cause) = server.connect().await else {
            let how = told.stdout.trim();
            return Ok(Outcome::new(format!("a superuser gets in again ({how})")));
        };
        if Instant::now() >= end {
            return Err(pg("connecting after one session was asked to end")(cause));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A session for work on a server whose last slots come and go.
async fn way_in(cx: &ActionContext<'_>, server: &PostgresServer) -> Result<Client, ActionError> {
    let end = Instant::now() + WAY_IN;
    loop {
        match server::session(cx, server, &server.admin.database).await {
            Err(ActionError::Postgres { source, .. })
                if source.is(sqlstate::TOO_MANY_CONNECTIONS) && Instant::now() < end =>
            {
                tokio::time::sleep(POLL).await;
            }
            other => return other,
        }
    }
}

pub(super) async fn end(
    cx: &ActionContext<'_>,
    service: &str,
    chosen: &[SessionRef],
    rules: &SessionRules,
    free: u32,
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let client = way_in(cx, &server).await?;
    let begun = Instant::now();
    let (mut ended, mut in_transaction, mut told) = (0_u32, 0_u32, false);
    loop {
        let facts = read(&client).await.map_err(pg("looking at the sessions"))?;
        if facts.free() >= free {
            break;
        }
        let (now, next) = due(&facts, chosen, rules, free - facts.free());
        if now.is_empty() {
            let Some(next) = next else { break };
            if begun.elapsed() + Duration::from_secs(next) > cx.deadline {
                break;
            }
            if !std::mem::replace(&mut told, true) {
                cx.note(format!(
                    "the next session may be ended in {}",
                    seconds(Duration::from_secs(next))
                ));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        }
        in_transaction += count(
            now.iter()
                .filter(|s| s.activity == Activity::InTransaction)
                .count(),
        );
        ended += terminate(&client, &now).await?;
        wait_gone(&client, &now).await?;
    }
    let facts = read(&client).await.map_err(pg("looking at the sessions"))?;
    Ok(Outcome::new(format!(
        "{ended} sessions ended, {} of {} ordinary slots are free",
        facts.free(),
        facts.ordinary()
    ))
    .fact("sessions-ended", ended)
    .fact("transactions-rolled-back", in_transaction)
    .fact("end-seconds", begun.elapsed().as_secs_f64()))
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Who may be ended now, at most so many; and in how many seconds the next may, if none.
fn due<'a>(
    facts: &'a SessionFacts,
    chosen: &[SessionRef],
    rules: &SessionRules,
    wanted: u32,
) -> (Vec<&'a Session>, Option<u64>) {
    let mut endable = facts.endable(rules);
    if !chosen.is_empty() {
        // What the operator agreed to, and nobody else.
        endable.retain(|(s, _)| chosen.contains(&s.id));
    }
    let next = endable.iter().map(|(_, left)| *left).min();
    let now = endable
        .into_iter()
        .filter(|(_, left)| *left == 0)
        .map(|(s, _)| s)
        .take(usize::try_from(wanted).unwrap_or(usize::MAX))
        .collect();
    (now, next.filter(|left| *left > 0))
}

/// Ends them in one statement and without waiting for each in turn: with a time limit of its
/// own `pg_terminate_backend` waits for one after the other. One that has begun to work since
/// it was looked at is left alone.
async fn terminate(client: &Client, sessions: &[&Session]) -> Result<u32, ActionError> {
    let list: Vec<String> = sessions
        .iter()
        .map(|s| {
            let state = match s.activity {
                Activity::InTransaction => "idle in transaction%",
                Activity::Idle => "idle",
                _ => "%",
            };
            format!(
                "({}, {}::timestamptz, {})",
                s.id.pid,
                quote_literal(&s.id.started),
                quote_literal(state)
            )
        })
        .collect();
    let rows = client
        .rows(&format!(
            "select count(*) filter (where pg_catalog.pg_terminate_backend(a.pid)) \
             from pg_catalog.pg_stat_activity a join (values {}) v (pid, started, state) \
             on v.pid = a.pid and v.started = a.backend_start and a.state like v.state",
            list.join(", ")
        ))
        .await
        .map_err(pg("ending sessions"))?;
    Ok(rows.first().and_then(|r| r.number(0)).unwrap_or_default())
}

/// Waits until they are gone. One that was left alone stays; it does not hold anybody up.
async fn wait_gone(client: &Client, sessions: &[&Session]) -> Result<(), ActionError> {
    let list: Vec<String> = sessions
        .iter()
        .map(|s| format!("({}, {}::timestamptz)", s.id.pid, quote_literal(&s.id.started)))
        .collect();
    let sql = format!(
        "select count(*) from pg_catalog.pg_stat_activity where (pid, backend_start) in ({})",
        list.join(", ")
    );
    let end = Instant::now() + GONE;
    let mut last = String::new();
    let mut same_since = Instant::now();
    loop {
        let left = client
            .value(&sql)
            .await
            .map_err(pg("counting sessions"))?
            .unwrap_or_default();
        if left == "0" || Instant::now() >= end {
            return Ok(());
        }
        if left != last {
            last = left;
            same_since = Instant::now();
        } else if same_since.elapsed() > Duration::from_secs(1) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What the operator agreed to make let go.
pub(super) struct Agreed<'a> {
    pub(super) session: &'a SessionRef,
    /// The start of its transaction.
    pub(super) transaction: Option<&'a str>,
    /// Only while it waits for a lock that excludes readers.
    pub(super) waiting: bool,
}

impl Agreed<'_> {
    /// The session, if it still is what was agreed to; otherwise why it is left alone.
    fn still<'a>(&self, facts: &'a SessionFacts) -> Result<&'a Session, &'static str> {
        let pid = self.session.pid;
        let now = facts.sessions.iter().find(|s| s.id == *self.session);
        let waited_for = facts.sessions.iter().any(|s| s.waits_for.contains(&pid));
        let Some(now) = now.filter(|_| waited_for) else {
            return Err("nobody waits for it any more");
        };
        if now.transaction.as_deref() != self.transaction {
            return Err("it has begun another transaction meanwhile");
        }
        if self.waiting && (!now.wants_exclusive || now.waits_for.is_empty()) {
            return Err("it has its lock by now and works");
        }
        Ok(now)
    }

    /// How it is made to let go. What is idle inside a transaction has no statement to cancel,
    /// and keeps its locks. A change that waits is only ever given up: the session stays.
    fn how(&self, now: &Session, how: Release) -> Release {
        if now.activity == Activity::InTransaction && !self.waiting {
            Release::Terminate
        } else {
            how
        }
    }

    /// It is looked at once more in the statement that tells it: it may go on in between.
    fn sql(&self, function: &str) -> String {
        let transaction = self.transaction.map_or_else(|| "null".to_owned(), quote_literal);
        let waiting = if self.waiting {
            " and exists (select from pg_catalog.pg_locks l \
             where l.pid = a.pid and not l.granted and l.mode = 'AccessExclusiveLock')"
        } else {
            ""
        };
        format!(
            "select pg_catalog.{function}(a.pid) from pg_catalog.pg_stat_activity a \
             where a.pid = {} and a.backend_start = {}::timestamptz \
             and a.xact_start is not distinct from {transaction}::timestamptz{waiting}",
            self.session.pid,
            quote_literal(&self.session.started)
        )
    }
}

pub(super) async fn unblock(
    cx: &ActionContext<'_>,
    service: &str,
    agreed: &Agreed<'_>,
    how: Release,
) -> Result<Outcome, ActionError> {
    let session = agreed.session;
    let server = cx.system.postgres(service).await?;
    let client = way_in(cx, &server).await?;
    let begun = Instant::now();
    let end = begun + GONE;
    let mut how = how;
    let mut told = false;
    loop {
        let facts = read(&client).await.map_err(pg("looking at the sessions"))?;
        let still = match agreed.still(&facts) {
            Ok(still) => still,
            Err(why) => {
                let what = match (told, how) {
                    (false, _) => format!("{why}; nothing was done"),
                    (true, Release::Cancel) => format!("its statement was told to end, {why}"),
                    (true, Release::Terminate) => format!("it was told to end, {why}"),
                };
                return Ok(Outcome::new(format!("session {}: {what}", session.pid))
                    .fact("unblock-seconds", begun.elapsed().as_secs_f64()));
            }
        };
        how = agreed.how(still, how);
        if Instant::now() >= end {
            let waiting = facts
                .sessions
                .iter()
                .filter(|s| s.waits_for.contains(&session.pid))
                .count();
            return Err(ActionError::Other(format!(
                "{waiting} sessions still wait for session {} of {}",
                session.pid,
                still.holder()
            )));
        }
        let function = match how {
            Release::Cancel => "pg_cancel_backend",
            Release::Terminate => "pg_terminate_backend",
        };
        let rows = client
            .rows(&agreed.sql(function))
            .await
            .map_err(pg("making the session let go"))?;
        told |= !rows.is_empty();
        tokio::time::sleep(POLL * 2).await;
    }
}

pub(super) async fn restart_pools(
    cx: &ActionContext<'_>,
    service: &str,
    applications: &[String],
) -> Result<Outcome, ActionError> {
    let runbook = &cx.system.runbook;
    if runbook.endpoints.is_empty() {
        return Ok(Outcome::new(
            "the runbook names no endpoint: whether the pools came back cannot be seen, nothing was restarted",
        ));
    }
    let mut restarted = Vec::new();
    for application in applications {
        let failing: Vec<String> = endpoints(runbook, "endpoints")
            .await
            .into_iter()
            .filter(|c| c.verdict != Verdict::Pass)
            .map(|c| format!("{}: {}", c.what, c.found))
            .collect();
        if failing.is_empty() {
            break;
        }
        let container = cx.system.container(application).await?;
        if let Some(why) = container.not_alone(application) {
            cx.warn(format!(
                "{application} does not come back by itself, and is not restarted: {why}; \
                 `docker restart {}` does that",
                container.replicas.join(" ")
            ));
            continue;
        }
        if has_sessions(cx, service, application).await? {
            cx.note(format!(
                "{application} has sessions on {service}: it is not restarted"
            ));
            continue;
        }
        cx.warn(format!(
            "{application} does not come back by itself ({})",
            failing.join("; ")
        ));
        container::restart(cx, application).await?;
        restarted.push(application.clone());
    }
    Ok(if restarted.is_empty() {
        Outcome::new("the pools came back by themselves; nothing was restarted")
    } else {
        Outcome::new(format!("restarted: {}", restarted.join(", ")))
    })
}

/// Whether a service's containers hold a session on the server.
async fn has_sessions(cx: &ActionContext<'_>, service: &str, application: &str) -> Result<bool, ActionError> {
    let addresses = cx.system.container(application).await?.networks;
    let server = cx.system.postgres(service).await?;
    let client = way_in(cx, &server).await?;
    let facts = read(&client).await.map_err(pg("looking at the sessions"))?;
    Ok(facts
        .sessions
        .iter()
        .any(|s| !s.client.is_empty() && addresses.values().any(|a| *a == s.client)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(change: &serde_json::Value) -> SessionFacts {
        let mut one = serde_json::json!({
            "id": {"pid": 1, "started": "2026-11-20 19:00:00+00"}, "user": "app", "superuser": false,
            "application": "", "client": "", "database": "app", "activity": "running", "seconds": 60,
            "transaction-seconds": 60, "transaction": "2026-11-20 19:44:00+00", "verb": "ALTER",
            "kind": "client backend", "waits-for": [9], "wants-exclusive": true
        });
        for (key, value) in change.as_object().into_iter().flatten() {
            one[key] = value.clone();
        }
        let mut other = one.clone();
        other["id"]["pid"] = 2.into();
        other["waits-for"] = serde_json::json!([1]);
        serde_json::from_value(serde_json::json!({
            "slots": {"max": 50, "reserved": 3, "used": 2, "idle": 0, "idle-in-transaction": 0},
            "sessions": [one, other], "limits": []
        }))
        .unwrap()
    }

    #[test]
    fn a_session_that_went_on_since_the_preview_is_left_alone() {
        let session = SessionRef {
            pid: 1,
            started: "2026-11-20 19:00:00+00".into(),
        };
        let agreed = |waiting| Agreed {
            session: &session,
            transaction: Some("2026-11-20 19:44:00+00"),
            waiting,
        };
        let same = facts(&serde_json::json!({}));
        assert!(agreed(true).still(&same).is_ok());
        // The pool runs another, healthy transaction in the same session.
        let next = facts(&serde_json::json!({"transaction": "2026-11-20 19:45:00+00"}));
        assert!(agreed(false).still(&next).is_err());
        assert!(agreed(true).still(&next).is_err());
        // The change of the table has its lock, and rewrites it.
        let works = facts(&serde_json::json!({"waits-for": [], "wants-exclusive": false}));
        assert!(agreed(true).still(&works).is_err());
        assert!(agreed(false).still(&works).is_ok());
    }

    #[test]
    fn only_a_transaction_that_holds_the_lock_is_ended_where_a_cancel_does_nothing() {
        let session = SessionRef {
            pid: 1,
            started: String::new(),
        };
        let idle = facts(&serde_json::json!({"activity": "in-transaction"}));
        for (waiting, how) in [(true, Release::Cancel), (false, Release::Terminate)] {
            let agreed = Agreed {
                session: &session,
                transaction: None,
                waiting,
            };
            assert_eq!(agreed.how(&idle.sessions[0], Release::Cancel), how);
        }
    }
}
