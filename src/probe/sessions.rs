//! The sessions of a server: who holds the connection slots, who waits for whom, and who may
//! be ended. Reading is one statement; all that is concluded from it is pure.
//!
//! No statement is kept, only its first word: statements hold user data.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::slots::{self, SlotFacts};
use crate::plan::{SessionRef, SessionRules};
use crate::postgres::{Client, PgError, Row};

/// drctl's own sessions, which end when it has looked.
const OWN: &str = "drctl";
/// Programs whose sessions look idle while they work: a parallel dump holds its snapshot in
/// a session that is idle in a transaction, a physical backup is begun in one that is idle
/// until it is over. By how their names begin, in lower case.
const TOOLS: [&str; 6] = [
    "pg_dump",
    "pg_restore",
    "pg_basebackup",
    "pgbackrest",
    "barman",
    "wal-g",
];

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// A statement runs or waits.
    Running,
    /// Nothing, and no transaction is open.
    Idle,
    /// Nothing, inside a transaction.
    InTransaction,
    /// The server does not say.
    Unknown,
}

/// One session, or a process of the server that can hold a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Session {
    /// Which.
    pub id: SessionRef,
    /// Role.
    pub user: String,
    /// Whether the role is a superuser.
    pub superuser: bool,
    /// `application_name`.
    pub application: String,
    /// Address of the client; empty for the local socket.
    pub client: String,
    /// Database.
    pub database: String,
    /// What it does.
    pub activity: Activity,
    /// Seconds since it does that.
    pub seconds: u64,
    /// Seconds since its transaction began.
    pub transaction_seconds: Option<u64>,
    /// When that was, as the server writes it: tells one transaction of a session from the next.
    #[serde(default)]
    pub transaction: Option<String>,
    /// First word of its present or last statement.
    pub verb: String,
    /// `client backend`, `autovacuum worker` …
    pub kind: String,
    /// Sessions that it waits for: holders of the lock, and those before it in the queue. 0 is
    /// a prepared transaction. Empty when it does not wait.
    pub waits_for: Vec<i32>,
    /// It waits for a lock that excludes even readers.
    pub wants_exclusive: bool,
    /// It waits for an advisory lock. Those who stand by for a leader do that all day.
    #[serde(default)]
    pub advisory: bool,
    /// Its COMMIT is done here and waits for a synchronous standby.
    #[serde(default)]
    pub sync_rep: bool,
}

/// A role or a database that has a limit of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OwnLimit {
    /// As `role simgen_app`.
    pub what: String,
    /// Its connection limit.
    pub limit: u32,
    /// Sessions now.
    pub used: u32,
}

/// What is known of the sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SessionFacts {
    /// The slots; drctl's own sessions are not counted.
    pub slots: SlotFacts,
    /// Everybody but drctl itself.
    pub sessions: Vec<Session>,
    /// Roles and databases with a limit that is reached.
    pub limits: Vec<OwnLimit>,
}

const SESSIONS: &str = r"
select a.pid, a.backend_start::text, coalesce(a.usename, ''), coalesce(r.rolsuper, false),
  coalesce(a.application_name, ''), coalesce(pg_catalog.host(a.client_addr), ''), coalesce(a.datname, ''),
  coalesce(a.state, ''), greatest(extract(epoch from pg_catalog.clock_timestamp() - a.state_change), 0)::bigint,
  greatest(extract(epoch from pg_catalog.clock_timestamp() - a.xact_start), 0)::bigint,
  upper(coalesce(substring(a.query from '^\s*([A-Za-z]+)'), '')), a.backend_type,
  case when a.wait_event_type = 'Lock' then pg_catalog.array_to_string(pg_catalog.pg_blocking_pids(a.pid), ',') end,
  e.pid is not null, a.wait_event_type = 'Lock' and a.wait_event = 'advisory', a.xact_start::text,
  a.wait_event = 'SyncRep'
from pg_catalog.pg_stat_activity a left join pg_catalog.pg_roles r on r.oid = a.usesysid
  left join (select distinct pid from pg_catalog.pg_locks where not granted and mode = 'AccessExclusiveLock') e
    on e.pid = a.pid
where a.pid <> pg_catalog.pg_backend_pid() and (a.backend_type in ('client backend', 'autovacuum worker') or a.wait_event_type = 'Lock')";

const LIMITS: &str = "
select 'role ' || r.rolname, r.rolconnlimit, (select count(*) from pg_catalog.pg_stat_activity a where a.usesysid = r.oid)
from pg_catalog.pg_roles r where r.rolcanlogin and r.rolconnlimit >= 0 and not r.rolsuper
union all
select 'database ' || d.datname, d.datconnlimit, (select count(*) from pg_catalog.pg_stat_activity a where a.datid = d.oid)
from pg_catalog.pg_database d where d.datallowconn and d.datconnlimit >= 0";

/// Reads all of it.
///
/// # Errors
/// [`PgError`].
pub async fn read(client: &Client) -> Result<SessionFacts, PgError> {
    let mut slots = slots::read(client).await?;
    let sessions: Vec<Session> = client
        .rows(SESSIONS)
        .await?
        .iter()
        .map(session)
        .filter(|s| s.application != OWN)
        .collect();
    slots.used = u32::try_from(sessions.iter().filter(|s| s.is_client()).count()).unwrap_or(u32::MAX);
    let limits = client.rows(LIMITS).await?;
    let limits = limits
        .iter()
        .map(|r| OwnLimit {
            what: r.text(0).to_owned(),
            limit: r.number(1).unwrap_or_default(),
            used: r.number(2).unwrap_or_default(),
        })
        .filter(|l| l.used >= l.limit)
        .collect();
    Ok(SessionFacts {
        slots,
        sessions,
        limits,
    })
}

fn session(row: &Row) -> Session {
    let state = row.text(7);
    Session {
        id: SessionRef {
            pid: row.number(0).unwrap_or_default(),
            started: row.text(1).to_owned(),
        },
        user: row.text(2).to_owned(),
        superuser: row.is_true(3),
        application: row.text(4).to_owned(),
        client: row.text(5).to_owned(),
        database: row.text(6).to_owned(),
        activity: match state {
            "active" | "fastpath function call" => Activity::Running,
            "idle" => Activity::Idle,
            s if s.starts_with("idle in transaction") => Activity::InTransaction,
            _ => Activity::Unknown,
        },
        seconds: row.number(8).unwrap_or_default(),
        transaction_seconds: row.number(9),
        transaction: row.opt(15).map(ToOwned::to_owned),
        verb: row.text(10).to_owned(),
        kind: row.text(11).to_owned(),
        waits_for: row.text(12).split(',').filter_map(|p| p.parse().ok()).collect(),
        wants_exclusive: row.is_true(13),
        advisory: row.is_true(14),
        sync_rep: row.is_true(16),
    }
}

impl Session {
    /// A session of a client, not a process of the server's own.
    #[must_use]
    pub fn is_client(&self) -> bool {
        self.kind == "client backend"
    }

    /// A session of a backup, a dump or its restore, which fails when it is ended.
    #[must_use]
    pub fn is_tool(&self) -> bool {
        let name = self.application.to_ascii_lowercase();
        TOOLS.iter().any(|tool| name.starts_with(tool))
    }

    /// Who it is, in words.
    #[must_use]
    pub fn holder(&self) -> String {
        let mut text = if self.user.is_empty() {
            self.kind.clone()
        } else {
            self.user.clone()
        };
        if !self.application.is_empty() {
            text = format!("{text} ({})", self.application);
        }
        if !self.client.is_empty() {
            text = format!("{text} from {}", self.client);
        }
        text
    }
}

/// Sessions of one role, program and client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder<'a> {
    /// In words.
    pub who: String,
    /// Its sessions.
    pub sessions: Vec<&'a Session>,
}

/// A session that others wait for and that waits for nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root<'a> {
    /// Its process number; 0 is a prepared transaction.
    pub pid: i32,
    /// The session; `None` is a prepared transaction, or a process that is not among the
    /// sessions.
    pub session: Option<&'a Session>,
    /// Everybody who waits for it, directly or through others.
    pub blocked: Vec<&'a Session>,
    /// A waiting request for an exclusive lock that holds up most of them: without it they
    /// would not have to wait for the root.
    pub exclusive: Option<&'a Session>,
}

impl SessionFacts {
    /// Slots that an ordinary role may have.
    #[must_use]
    pub fn ordinary(&self) -> u32 {
        self.slots.max.saturating_sub(self.slots.reserved)
    }

    /// Ordinary slots that are free.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.ordinary().saturating_sub(self.slots.used)
    }

    /// Client sessions by who holds them, the most first.
    #[must_use]
    pub fn holders(&self) -> Vec<Holder<'_>> {
        let mut by: BTreeMap<String, Vec<&Session>> = BTreeMap::new();
        for session in self.sessions.iter().filter(|s| s.is_client()) {
            by.entry(session.holder()).or_default().push(session);
        }
        let mut all: Vec<Holder<'_>> = by
            .into_iter()
            .map(|(who, sessions)| Holder { who, sessions })
            .collect();
        all.sort_by_key(|h| std::cmp::Reverse(h.sessions.len()));
        all
    }

    /// The roots of the lock chains, the one that most wait for first.
    #[must_use]
    pub fn roots(&self) -> Vec<Root<'_>> {
        let by_pid: BTreeMap<i32, &Session> = self.sessions.iter().map(|s| (s.id.pid, s)).collect();
        let waits = |pid: i32| by_pid.get(&pid).is_some_and(|s| !s.waits_for.is_empty());
        let roots: BTreeSet<i32> = self
            .sessions
            .iter()
            .flat_map(|s| s.waits_for.iter().copied())
            .filter(|pid| !waits(*pid))
            .collect();
        let mut all: Vec<Root<'_>> = roots
            .into_iter()
            .map(|pid| {
                let blocked = self.behind(pid);
                let exclusive = blocked
                    .iter()
                    .copied()
                    .filter(|s| s.wants_exclusive && s.is_client())
                    .map(|s| (s, self.behind(s.id.pid).len()))
                    .filter(|(_, count)| count * 2 >= blocked.len() && *count > 0)
                    .max_by_key(|(_, count)| *count)
                    .map(|(s, _)| s);
                Root {
                    pid,
                    session: by_pid.get(&pid).copied(),
                    blocked,
                    exclusive,
                }
            })
            .collect();
        all.sort_by_key(|r| std::cmp::Reverse(r.blocked.len()));
        all
    }

    /// Everybody who waits for `pid`, directly or through others.
    fn behind(&self, pid: i32) -> Vec<&Session> {
        let mut reached = BTreeSet::from([pid]);
        loop {
            let more: Vec<i32> = self
                .sessions
                .iter()
                .filter(|s| !reached.contains(&s.id.pid) && s.waits_for.iter().any(|p| reached.contains(p)))
                .map(|s| s.id.pid)
                .collect();
            if more.is_empty() {
                break;
            }
            reached.extend(more);
        }
        reached.remove(&pid);
        self.sessions
            .iter()
            .filter(|s| reached.contains(&s.id.pid))
            .collect()
    }

    /// Sessions that may be ended, in the order in which they should be: ordinary roles first;
    /// idle in a transaction before idle before running; the longest first. With each, how
    /// many seconds are left until its age allows it.
    #[must_use]
    pub fn endable(&self, rules: &SessionRules) -> Vec<(&Session, u64)> {
        let hoarder = self.hoarder();
        let mut all: Vec<(&Session, u64)> = self
            .sessions
            .iter()
            .filter(|s| s.is_client() && !s.is_tool())
            .filter_map(|s| {
                let left = |after: u64| after.saturating_sub(s.seconds);
                match s.activity {
                    Activity::InTransaction => Some((s, left(rules.idle_in_transaction_after))),
                    // One that holds most of the slots and does nothing with them has lost
                    // them: there is no transaction to wait for.
                    Activity::Idle if hoarder.as_deref() == Some(&s.holder()) => Some((s, 0)),
                    Activity::Idle => Some((s, left(rules.idle_after))),
                    Activity::Running => Some((s, left(rules.running_over?))),
                    Activity::Unknown => None,
                }
            })
            .collect();
        all.sort_by_key(|(s, left)| {
            let class = match s.activity {
                Activity::InTransaction => 0,
                Activity::Idle => 1,
                _ => 2,
            };
            (
                *left > 0,
                s.superuser,
                class,
                std::cmp::Reverse(s.seconds),
                s.id.pid,
            )
        });
        all
    }

    /// The holder whose idle sessions are more than half of all ordinary slots.
    fn hoarder(&self) -> Option<String> {
        let ordinary = usize::try_from(self.ordinary()).unwrap_or(usize::MAX);
        self.holders()
            .into_iter()
            .find(|h| h.sessions.iter().filter(|s| s.activity == Activity::Idle).count() * 2 > ordinary)
            .map(|h| h.who)
    }
}
