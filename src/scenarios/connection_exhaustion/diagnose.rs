//! What the sessions mean. A queue behind one lock is named before the slots that it fills,
//! and real load is not taken for a leak.

use std::time::Duration;

use super::{Evidence, Prepared};
use crate::event::seconds;
use crate::plan::SessionRules;
use crate::postgres::sqlstate;
use crate::probe::connection::Connection;
use crate::probe::sessions::{Activity, Holder, OwnLimit, Root, Session, SessionFacts};
use crate::runbook::Runbook;
use crate::scenarios::{Certainty, Diagnosis, LookAlike};

/// So many seconds ago somebody was turned away: it is still so.
const LATELY: i64 = 60;
/// Sessions that are no queue yet if fewer.
const FEW: usize = 3;
/// Seconds from which on a wait for a lock is no passing one.
const LONG_WAIT: u64 = 1;
/// Seconds from which on one COMMIT that waits for a standby says that none gets through: they
/// are let go in the order of the log.
const STANDBY_WAIT: u64 = 5;
/// Milliseconds that an answer may take, where the runbook does not say.
const SLOW: u64 = 1000;
/// Holders that are told.
const TOLD: usize = 5;
/// Seconds that a plan waits at most until a session is old enough.
pub(super) const PATIENCE: u64 = 120;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding<'a> {
    /// Many sessions wait behind one.
    PileUp(Root<'a>),
    /// Every COMMIT waits for a synchronous standby.
    Standby,
    /// No ordinary slot is free.
    Full,
    /// No slot at all: nobody could look.
    Locked,
    /// Every slot works.
    Busy,
    /// The server is not reached at all.
    Down,
    /// A role or a database has reached a limit of its own.
    OwnLimit,
    /// There are free slots.
    Free,
    /// It could not be looked at.
    Unknown,
}

pub(super) fn classify<'a>(ev: &'a Evidence, rb: &Runbook) -> Finding<'a> {
    let Some(facts) = &ev.facts else {
        return match &ev.connection {
            Connection::Refused { sqlstate, .. } if sqlstate == sqlstate::TOO_MANY_CONNECTIONS => {
                Finding::Locked
            }
            Connection::Closed { .. } | Connection::Silent => Finding::Down,
            Connection::Refused { sqlstate, .. } if sqlstate == sqlstate::CANNOT_CONNECT_NOW => Finding::Down,
            _ => Finding::Unknown,
        };
    };
    // First: who waits to commit keeps its locks, and others wait for those.
    if commits_wait(facts) {
        return Finding::Standby;
    }
    if let Some(root) = pile_up(ev, facts, rb) {
        return Finding::PileUp(root);
    }
    if !is_full(ev, facts) {
        return if own_limits(facts, ev, rb).is_empty() {
            Finding::Free
        } else {
            Finding::OwnLimit
        };
    }
    let works = |s: &&Session| s.is_client() && s.activity == Activity::Running && s.waits_for.is_empty();
    let working = facts.sessions.iter().filter(works).count();
    if working * 2 > facts.slots.used as usize && !can_be_made_room(facts, &ev.rules(rb)) {
        return Finding::Busy;
    }
    Finding::Full
}

/// Not the moment that each COMMIT waits where a standby is synchronous.
fn commits_wait(facts: &SessionFacts) -> bool {
    let waiting = |over: u64| {
        facts
            .sessions
            .iter()
            .filter(|s| s.sync_rep && s.seconds >= over)
            .count()
    };
    waiting(LONG_WAIT) >= FEW || waiting(STANDBY_WAIT) > 0
}

/// One that a quarter of the slots wait for, or fewer where that is felt all the same: most of
/// the sessions of one role or client, or an endpoint that is slow or down meanwhile. A pool of
/// five that waits stops its application, whatever the server could still take.
fn pile_up<'a>(ev: &Evidence, facts: &'a SessionFacts, rb: &Runbook) -> Option<Root<'a>> {
    let root = facts.roots().into_iter().next()?;
    let counts = match size(facts, &root) {
        Size::Many | Size::Mostly => true,
        Size::Few => users_wait(ev, rb),
        Size::None => false,
    };
    counts.then_some(root)
}

/// How much of the server a queue is.
enum Size {
    /// A quarter of the slots.
    Many,
    /// Most of the sessions of one role or client, for a while.
    Mostly,
    /// Some, for a while.
    Few,
    None,
}

fn size(facts: &SessionFacts, root: &Root<'_>) -> Size {
    if root.blocked.len() < FEW {
        return Size::None;
    }
    if root.blocked.len() * 4 >= facts.ordinary() as usize {
        return Size::Many;
    }
    // Short waits are how locks work.
    let long = |s: &&&Session| s.seconds >= LONG_WAIT && !s.advisory;
    if root.blocked.iter().filter(long).count() < FEW {
        Size::None
    } else if mostly_blocked(facts, root, |s| &s.user) || mostly_blocked(facts, root, |s| &s.client) {
        Size::Mostly
    } else {
        Size::Few
    }
}

/// Whether the endpoints decide if the queue matters.
pub(super) fn is_undecided(facts: &SessionFacts) -> bool {
    facts
        .roots()
        .first()
        .is_some_and(|root| matches!(size(facts, root), Size::Few))
}

/// What holds the lock is a prepared transaction, which has no process. (What has one and is not
/// among the sessions is a process of the server's own.)
pub(super) fn is_prepared(root: &Root<'_>) -> bool {
    root.pid == 0 && root.exclusive.is_none()
}

/// More than half of the sessions that have the same `key` wait for the root, and not just few.
fn mostly_blocked(facts: &SessionFacts, root: &Root<'_>, key: fn(&Session) -> &String) -> bool {
    root.blocked.iter().any(|one| {
        let same = |s: &&Session| s.is_client() && key(s) == key(one);
        let all = facts.sessions.iter().filter(same).count();
        let waiting = root.blocked.iter().copied().filter(same).count();
        waiting >= FEW && waiting * 2 > all
    })
}

/// An endpoint is down, or slower than the runbook wants.
fn users_wait(ev: &Evidence, rb: &Runbook) -> bool {
    let limit = rb
        .thresholds
        .response_time_p95
        .map_or(SLOW, |d| u64::try_from(d.as_millis()).unwrap_or(SLOW));
    ev.endpoints
        .values()
        .any(|a| a.is_down() || a.p95().is_some_and(|p95| p95 > limit))
}

/// No slot is free, or hardly one and somebody was turned away just now: those who wait for a
/// slot take it for a moment and lose it again.
fn is_full(ev: &Evidence, facts: &SessionFacts) -> bool {
    let lately = ev
        .turned_away
        .is_some_and(|at| ev.taken_at.duration_since(at).as_secs() < LATELY);
    facts.free() == 0 || (lately && facts.free() <= (facts.ordinary() / 20).max(1))
}

/// Whether what may be ended soon makes a difference.
fn can_be_made_room(facts: &SessionFacts, rules: &SessionRules) -> bool {
    let soon = facts
        .endable(rules)
        .iter()
        .filter(|(_, left)| *left <= PATIENCE)
        .count();
    soon >= enough(facts) as usize / 2
}

/// How many free slots are enough: a quarter of the ordinary ones.
pub(super) fn enough(facts: &SessionFacts) -> u32 {
    (facts.ordinary() / 4).max(1)
}

/// Limits that concern the roles and databases of the runbook.
fn own_limits<'a>(facts: &'a SessionFacts, ev: &Evidence, rb: &Runbook) -> Vec<&'a OwnLimit> {
    let ours = rb
        .postgres_services()
        .filter(|(name, ..)| name.as_str() == ev.service)
        .flat_map(|(_, _, p)| &p.databases)
        .flat_map(|(name, d)| {
            let role = d.application_user.as_ref().map(|r| format!("role {r}"));
            role.into_iter().chain([format!("database {name}")])
        });
    let ours: Vec<String> = ours.collect();
    facts.limits.iter().filter(|l| ours.contains(&l.what)).collect()
}

fn age(seconds_: u64) -> String {
    seconds(Duration::from_secs(seconds_))
}

/// Who holds the slots, in a line.
fn holder(h: &Holder<'_>) -> String {
    let count = |a: Activity| h.sessions.iter().filter(|s| s.activity == a).count();
    let longest = |a: Activity| {
        let oldest = h
            .sessions
            .iter()
            .filter(|s| s.activity == a)
            .map(|s| s.seconds)
            .max();
        age(oldest.unwrap_or_default())
    };
    let waiting = h.sessions.iter().filter(|s| !s.waits_for.is_empty()).count();
    let mut parts = Vec::new();
    for (activity, name) in [
        (Activity::Idle, "idle"),
        (Activity::InTransaction, "idle in a transaction"),
        (Activity::Running, "running"),
    ] {
        if count(activity) > 0 {
            parts.push(format!(
                "{} {name} (up to {})",
                count(activity),
                longest(activity)
            ));
        }
    }
    if waiting > 0 {
        parts.push(format!("{waiting} of them wait for a lock"));
    }
    let count = h.sessions.len();
    let s = if count == 1 { "" } else { "s" };
    format!("{count} session{s} of {}: {}", h.who, parts.join(", "))
}

fn slots(facts: &SessionFacts) -> String {
    format!(
        "{} of {} connections are taken, {} are reserved for superusers, {} ordinary ones are free",
        facts.slots.used,
        facts.slots.max,
        facts.slots.reserved,
        facts.free()
    )
}

/// A root in words.
pub(super) fn root_in_words(root: &Root<'_>) -> String {
    let session = match root.session {
        Some(session) => session,
        None if root.pid == 0 => return "a prepared transaction, which no session holds".into(),
        None => return format!("a process of the server's own or of drctl (pid {})", root.pid),
    };
    let doing = match session.activity {
        Activity::InTransaction => format!("idle in a transaction for {}", age(session.seconds)),
        Activity::Running => format!("running {} for {}", verb(session), age(session.seconds)),
        _ => "at rest".into(),
    };
    format!("session {} of {}, {doing}", session.id.pid, session.holder())
}

fn prepared_in_words(p: &Prepared) -> String {
    format!(
        "{:?} was prepared by {} in database {} at {}",
        p.gid, p.owner, p.database, p.prepared
    )
}

/// What to type about prepared transactions, with their names where they are known.
pub(super) fn decide(ev: &Evidence) -> Vec<String> {
    let mut next =
        vec!["select gid, prepared, owner, database from pg_prepared_xacts order by prepared;".to_owned()];
    let how = |gid: String, database: &str| {
        format!(
            "rollback prepared {gid};    # or commit prepared, as its coordinator says; in database {database}, as its \
             owner or a superuser"
        )
    };
    if ev.prepared.is_empty() {
        next.push(how("'GID'".into(), "DATABASE"));
    }
    // The oldest are the forgotten ones.
    next.extend(
        ev.prepared
            .iter()
            .take(TOLD)
            .map(|p| how(crate::postgres::quote_literal(&p.gid), &p.database)),
    );
    next
}

/// First word of its statement.
pub(super) fn verb(session: &Session) -> &str {
    if session.verb.is_empty() {
        "a statement"
    } else {
        &session.verb
    }
}

pub(super) fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
    let service = &ev.service;
    let mut reasons = Vec::new();
    if let Some(facts) = &ev.facts {
        reasons.push(slots(facts));
        reasons.extend(facts.holders().iter().take(TOLD).map(holder));
    }
    if let Some(at) = ev.turned_away {
        reasons.push(format!("the server last turned somebody away at {at}"));
    }
    let say = |certainty, summary: String, reasons: Vec<String>| Diagnosis {
        certainty,
        summary,
        reasons,
        look_alike: None,
    };
    match classify(ev, rb) {
        Finding::PileUp(root) if is_prepared(&root) => {
            let explanation = format!(
                "{} sessions of {service} wait for a prepared transaction, which no session holds and no restart ends; \
                 whether it is committed or rolled back its coordinator must say: nothing is ended or decided here",
                root.blocked.len()
            );
            reasons.extend(ev.prepared.iter().map(prepared_in_words));
            look_alike("prepared-transaction", explanation, reasons, decide(ev))
        }
        Finding::PileUp(root) => {
            reasons.insert(0, format!("they wait for {}", root_in_words(&root)));
            if let Some(exclusive) = root.exclusive {
                reasons.insert(
                    1,
                    format!(
                        "session {} of {} waits for a lock that excludes readers ({}), and the others wait behind it",
                        exclusive.id.pid,
                        exclusive.holder(),
                        verb(exclusive)
                    ),
                );
            }
            say(
                Certainty::Confirmed,
                format!("{} sessions of {service} wait behind one", root.blocked.len()),
                reasons,
            )
        }
        Finding::Full => {
            if ev.facts.as_ref().is_some_and(|f| f.free() > 0) {
                reasons.push("what gets free is taken by the next who waits".into());
            }
            say(
                Certainty::Confirmed,
                format!("every connection of {service} that an application may have is taken"),
                reasons,
            )
        }
        Finding::Locked => {
            let idle = ev.backends.iter().filter(|b| b.state == "idle").count();
            reasons.push(format!(
                "{} processes of sessions are there, {idle} of them idle",
                ev.backends.len()
            ));
            say(
                Certainty::Confirmed,
                format!("every connection of {service} is taken, those reserved for superusers too"),
                reasons,
            )
        }
        Finding::Standby => standby(ev, reasons),
        Finding::Busy => busy(ev, reasons),
        Finding::OwnLimit => {
            let limits = ev
                .facts
                .as_ref()
                .map(|f| own_limits(f, ev, rb))
                .unwrap_or_default();
            let words: Vec<String> = limits
                .iter()
                .map(|l| format!("{} has {} sessions and may have {}", l.what, l.used, l.limit))
                .collect();
            let explanation = format!("{service} has free connections; {}", words.join("; "));
            // Not every limit that is reached: a role may be locked out on purpose.
            let next = limits.iter().map(|l| {
                format!(
                    "alter {} connection limit -1;    # or what it should be",
                    quoted(&l.what)
                )
            });
            look_alike("own-limit", explanation, reasons, next.collect())
        }
        Finding::Down => look_alike(
            "db-down",
            format!("{service} takes no connection at all, from nobody"),
            vec![in_words(&ev.connection)],
            vec!["drctl diagnose db-down".into(), "drctl recover db-down".into()],
        ),
        Finding::Unknown => say(
            Certainty::Unknown,
            format!("the sessions of {service} could not be looked at"),
            vec![in_words(&ev.connection)],
        ),
        Finding::Free => say(
            Certainty::Absent,
            ev.facts.as_ref().map_or_else(String::new, |f| {
                format!(
                    "{} of {} ordinary connections of {service} are free",
                    f.free(),
                    f.ordinary()
                )
            }),
            Vec::new(),
        ),
    }
}

fn standby(ev: &Evidence, reasons: Vec<String>) -> Diagnosis {
    let waiting = ev.facts.iter().flat_map(|f| &f.sessions).filter(|s| s.sync_rep);
    look_alike(
        "synchronous-standby",
        format!(
            "{} sessions of {} have committed and wait for a synchronous standby that does not answer; nobody is ended: a COMMIT that \
             is cancelled, or whose session is, is committed here and not replicated",
            waiting.count(),
            ev.service
        ),
        reasons,
        vec![
            "show synchronous_standby_names; select application_name, sync_state from pg_stat_replication;    # who is missing?"
                .into(),
            "alter system set synchronous_standby_names = '';    # only if it does not come back: nothing is replicated before a COMMIT returns"
                .into(),
            "select pg_reload_conf();    # those that wait go on".into(),
        ],
    )
}

fn busy(ev: &Evidence, reasons: Vec<String>) -> Diagnosis {
    let running = ev
        .facts
        .iter()
        .flat_map(|f| &f.sessions)
        .filter(|s| s.activity == Activity::Running);
    let longest = running.map(|s| s.seconds).max().unwrap_or_default();
    look_alike(
        "service-overload",
        format!(
            "the connections of {} are taken by statements that run (up to {}): this is work, not a leak, and nothing of it is ended without being asked",
            ev.service,
            age(longest)
        ),
        reasons,
        vec![
            "drctl diagnose    # what makes the load?".into(),
            "drctl recover connection-exhaustion --running-over 30s --dry-run    # end statements that run for longer"
                .into(),
        ],
    )
}

fn quoted(what: &str) -> String {
    what.split_once(' ').map_or_else(
        || what.to_owned(),
        |(kind, name)| format!("{kind} {}", crate::postgres::quote_ident(name)),
    )
}

fn look_alike(name: &str, explanation: String, reasons: Vec<String>, next: Vec<String>) -> Diagnosis {
    Diagnosis {
        certainty: Certainty::Absent,
        summary: explanation.clone(),
        reasons,
        look_alike: Some(LookAlike {
            name: name.into(),
            explanation,
            next,
        }),
    }
}

/// How an attempt to get in ended.
pub(super) fn in_words(connection: &Connection) -> String {
    match connection {
        Connection::Open { .. } => "a session was had, and its questions failed".into(),
        Connection::Refused { message, .. } => format!("it refuses: {message}"),
        Connection::Closed { cause } => format!("it cannot be connected to: {cause}"),
        Connection::Silent => "it accepts and does not answer".into(),
    }
}
