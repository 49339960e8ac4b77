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

pub(super) async fn unblock(
    cx: &ActionContext<'_>,
    service: &str,
    session: &SessionRef,
    how: Release,
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let client = way_in(cx, &server).await?;
    let begun = Instant::now();
    let end = begun + GONE;
    let mut how = how;
    let mut told = false;
    loop {
        let facts = read(&client).await.map_err(pg("looking at the sessions"))?;
        let waiting = facts
            .sessions
            .iter()
            .filter(|s| s.waits_for.contains(&session.pid))
            .count();
        let still = facts.sessions.iter().find(|s| s.id == *session);
        let Some(still) = still.filter(|_| waiting > 0) else {
            let what = match (told, how) {
                (false, _) => "nobody waits for it any more; nothing was done",
                (true, Release::Cancel) => "its statement was cancelled, nobody waits for it any more",
                (true, Release::Terminate) => "it was ended, nobody waits for it any more",
            };
            return Ok(Outcome::new(format!("session {}: {what}", session.pid))
                .fact("unblock-seconds", begun.elapsed().as_secs_f64()));
        };
        // What is idle inside a transaction has no statement to cancel, and keeps its locks.
        if still.activity == Activity::InTransaction {
            how = Release::Terminate;
        }
        if Instant::now() >= end {
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
        told = true;
        client
            .rows(&format!(
                "select pg_catalog.{function}(pid) from pg_catalog.pg_stat_activity \
                 where pid = {} and backend_start = {}::timestamptz",
                session.pid,
                quote_literal(&session.started)
            ))
            .await
            .map_err(pg("making the session let go"))?;
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
