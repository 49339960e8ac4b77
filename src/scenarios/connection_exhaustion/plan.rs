//! What is done about it: let go, end, and only then restart.

use super::diagnose::{
    Finding, PATIENCE, classify, decide, diagnose, enough, is_prepared, root_in_words, verb,
};
use super::{ConnectionExhaustion, Evidence};
use crate::plan::{
    Action, DataLoss, Expectation, PLAN_FORMAT, Plan, Release, Remedy, Risk, SessionAction, SessionRules,
    Step, Undo, WorkloadAction,
};
use crate::probe::backends::Backend;
use crate::probe::sessions::{Activity, Root, Session, SessionFacts};
use crate::runbook::{Runbook, ServiceKind};
use crate::scenarios::{PlanRequest, Refusal, Scenario, ladder};

/// What is free when nobody could count: the slots of a few requests.
const ENOUGH_UNSEEN: u32 = 5;

fn ended() -> Undo {
    Undo::Impossible("a session that was ended cannot come back; its application connects again".into())
}

/// What ends sessions to make room, and how many it would end.
struct Room<'a> {
    /// In order, with the seconds until each may be ended.
    chosen: Vec<(&'a Session, u64)>,
    wanted: u32,
    /// So many are free already.
    enough: bool,
    rules: SessionRules,
}

impl<'a> Room<'a> {
    fn of(facts: &'a SessionFacts, rules: SessionRules) -> Self {
        let wanted = enough(facts);
        let needed = wanted.saturating_sub(facts.free()) as usize;
        let chosen = facts
            .endable(&rules)
            .into_iter()
            .filter(|(_, left)| *left <= PATIENCE)
            .take(needed)
            .collect();
        Self {
            chosen,
            wanted,
            enough: needed == 0,
            rules,
        }
    }

    fn of_activity(&self, activity: Activity) -> usize {
        self.chosen.iter().filter(|(s, _)| s.activity == activity).count()
    }

    /// Seconds until the last of them may be ended.
    fn wait(&self) -> u64 {
        self.chosen
            .iter()
            .map(|(_, left)| *left)
            .max()
            .unwrap_or_default()
    }

    fn in_words(&self) -> String {
        let all = [
            (Activity::InTransaction, "idle in a transaction"),
            (Activity::Idle, "idle"),
            (Activity::Running, "running"),
        ];
        let parts: Vec<String> = all
            .into_iter()
            .filter(|(a, _)| self.of_activity(*a) > 0)
            .map(|(a, name)| format!("{} {name}", self.of_activity(a)))
            .collect();
        parts.join(", ")
    }
}

pub(super) fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let diagnosis = diagnose(ev, rb);
    let finding = classify(ev, rb);
    let rules = ev.rules(rb);
    let room = ev.facts.as_ref().map(|f| Room::of(f, rules.clone()));
    let root = match &finding {
        Finding::PileUp(root) => Some(root),
        _ => None,
    };
    // Neither sessions that end nor services that start again let go of its locks.
    if root.is_some_and(is_prepared) {
        return Err(Refusal {
            message: "the sessions wait for a prepared transaction, and no tool may decide whether it is committed or rolled back: \
                      no session is ended and nothing restarted, which would not let go of its locks"
                .into(),
            reasons: diagnosis.reasons,
            next: decide(ev),
        });
    }
    // Nor does a standby come back by it.
    if finding == Finding::Standby {
        return Err(Refusal {
            message: diagnosis.summary,
            reasons: diagnosis.reasons,
            next: diagnosis.look_alike.map(|l| l.next).unwrap_or_default(),
        });
    }
    let way_in = way_in(ev, rb);
    let applications = applications(rb, &ev.service);

    let mut rungs: Vec<ladder::Rung> = Vec::new();
    if let Some(root) = root {
        rungs.push(ladder::rung(
            request,
            Remedy::UnblockSessions,
            target(root, &rules).err(),
        ));
    }
    let no_room = match (&room, &finding) {
        (Some(room), Finding::PileUp(_)) if room.enough => Some(
            "connections are free: who waits for a lock is not helped by ending those who do nothing".to_owned(),
        ),
        (Some(room), _) if room.chosen.is_empty() => Some(too_young(ev, rb)),
        (None, Finding::Locked) if way_in.is_none() => Some(
            "nobody gets in, and no process's title shows an idle session of a superuser that could be asked to end"
                .to_owned(),
        ),
        _ => None,
    };
    rungs.push(ladder::rung(request, Remedy::EndSessions, no_room));
    let too_early = request.tried.is_empty() && request.remedy != Some(Remedy::Restart);
    let no_restart = if applications.is_empty() {
        Some(format!(
            "the runbook names no service of the application that depends on {}",
            ev.service
        ))
    } else if too_early {
        Some("pools come back by themselves; this is for when the other remedies did not hold".to_owned())
    } else {
        None
    };
    rungs.push(ladder::rung(request, Remedy::Restart, no_restart));
    let chosen = ladder::choose(
        ConnectionExhaustion::NAME,
        &rungs,
        request.remedy,
        &diagnosis.reasons,
        otherwise(ev),
    )?;

    let mut steps = Vec::new();
    match (chosen, root.map(|r| (r, target(r, &rules)))) {
        (Remedy::UnblockSessions, Some((root, Ok((session, how))))) => {
            steps.push(unblock(ev, root, session, how));
        }
        (Remedy::Restart, _) => {
            steps.extend(applications.iter().map(|service| restart(service, rb)));
        }
        _ => {
            steps.extend(way_in.map(|backend| free_slot(ev, backend)));
            steps.push(end(ev, rb, room.as_ref()));
        }
    }
    if chosen != Remedy::Restart && !applications.is_empty() {
        steps.push(restart_pools(ev, rb, &applications));
    }
    let wait = room
        .as_ref()
        .filter(|_| chosen == Remedy::EndSessions)
        .map_or(0, Room::wait);
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: ConnectionExhaustion::NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: ev.service.clone(),
        diagnosis: diagnosis.summary,
        remedy: chosen,
        alternatives: ladder::alternatives(&rungs, chosen, |_| "it ends more than is needed".into()),
        backup: None,
        estimate_seconds: wait + if chosen == Remedy::Restart { 10 } else { 2 },
        steps,
        expect: vec![
            Expectation::FreeSlots {
                service: ev.service.clone(),
                at_least: 1,
            },
            Expectation::Endpoints,
            Expectation::WriteCheck,
        ],
        data_loss: loss(chosen, room.as_ref(), root),
        disk_needed: 0,
        disk_free: None,
        kept: String::new(),
        discard: Vec::new(),
    })
}

/// Services of the application that use the server, in the order in which they start.
fn applications(rb: &Runbook, service: &str) -> Vec<String> {
    let dependents = rb.dependents(service);
    rb.start_order()
        .into_iter()
        .filter(|n| dependents.contains(n))
        .filter(|n| {
            rb.service(n.as_str())
                .is_some_and(|s| matches!(s.kind, ServiceKind::App))
        })
        .map(ToString::to_string)
        .collect()
}

/// The session to end when nobody gets in: of those that are idle and belong to the
/// administrator's role the oldest. Other roles' sessions give no slot that a superuser would
/// not share with everybody who waits.
fn way_in<'a>(ev: &'a Evidence, rb: &Runbook) -> Option<&'a Backend> {
    let (_, _, postgres) = rb.postgres_services().find(|(n, ..)| n.as_str() == ev.service)?;
    ev.backends
        .iter()
        .filter(|b| b.state == "idle" && b.user == postgres.admin_user.as_str())
        .max_by_key(|b| b.seconds)
}

/// Whom to make let go, and how; or why nobody can be. A waiting request for an exclusive lock
/// is given up before anybody's work is.
fn target<'a>(root: &Root<'a>, rules: &SessionRules) -> Result<(&'a Session, Release), String> {
    match (root.exclusive, root.session) {
        (Some(tool), _) | (None, Some(tool)) if tool.is_tool() => Err(format!(
            "they wait for session {pid} of {}, which would fail as a whole; if it must, \
             `select pg_terminate_backend({pid});` ends it",
            tool.holder(),
            pid = tool.id.pid,
        )),
        (Some(waiting), _) => Ok((waiting, Release::Cancel)),
        (None, None) if is_prepared(root) => Err("they wait for a prepared transaction".into()),
        (None, None) => Err(format!(
            "they wait for {}; `select backend_type, application_name, wait_event from pg_stat_activity where pid = {};` tells what it is",
            root_in_words(root),
            root.pid
        )),
        (None, Some(s)) if !s.is_client() => Err(format!(
            "they wait for the server's own {}, which ends by itself",
            s.kind
        )),
        (None, Some(s)) if s.activity == Activity::Running => {
            if rules.running_over.is_some_and(|over| s.seconds >= over) {
                return Ok((s, Release::Cancel));
            }
            Err(format!(
                "they wait for {}, and a running statement is not ended without being asked: --running-over {}s asks",
                root_in_words(root),
                s.seconds.max(1)
            ))
        }
        (None, Some(s)) => Ok((s, Release::Terminate)),
    }
}

fn too_young(ev: &Evidence, rb: &Runbook) -> String {
    let rules = ev.rules(rb);
    format!(
        "no session has been idle for {} s, or idle in a transaction for {} s, as the runbook asks",
        rules.idle_after, rules.idle_in_transaction_after
    )
}

fn otherwise(ev: &Evidence) -> Vec<String> {
    vec![
        "drctl recover connection-exhaustion --idle-over 10s --dry-run    # end younger idle sessions".into(),
        "drctl recover connection-exhaustion --running-over 30s --dry-run    # end long statements too"
            .into(),
        format!(
            "docker top {} -eo pid,etimes,args    # who is connected?",
            ev.container
        ),
    ]
}

fn unblock(ev: &Evidence, root: &Root<'_>, session: &Session, how: Release) -> Step {
    let pid = session.id.pid;
    let (title, why) = if root.exclusive.is_some() {
        (
            format!("Cancel the waiting {} of session {pid}", verb(session)),
            format!(
                "it waits for a lock that excludes readers, and {} sessions wait behind it; it has changed nothing yet, and can be run again",
                root.blocked.len() - 1
            ),
        )
    } else {
        let what = match how {
            Release::Cancel => "Cancel the statement of",
            Release::Terminate => "End",
        };
        (
            format!("{what} session {pid}"),
            format!(
                "{} sessions wait for {}; only this one is touched",
                root.blocked.len(),
                root_in_words(root)
            ),
        )
    };
    Step {
        title,
        why,
        risk: Risk::Disruptive,
        action: Action::Sessions(SessionAction::Unblock {
            service: ev.service.clone(),
            session: session.id.clone(),
            transaction: session.transaction.clone(),
            waiting: root.exclusive.is_some(),
            how,
        }),
        undo: match how {
            Release::Cancel => {
                Undo::Impossible("a cancelled statement is rolled back; who sent it can send it again".into())
            }
            Release::Terminate => ended(),
        },
        timeout_seconds: 30,
    }
}

fn free_slot(ev: &Evidence, backend: &Backend) -> Step {
    Step {
        title: format!("Ask one idle session of {} from {} to end", backend.user, backend.client),
        why: "not even a superuser gets in: this is the only way to free a slot; it is the oldest idle one, and it is looked at again right before".into(),
        risk: Risk::Disruptive,
        action: Action::Sessions(SessionAction::FreeSlot {
            service: ev.service.clone(),
            title: backend.title.clone(),
        }),
        undo: ended(),
        timeout_seconds: 30,
    }
}

fn end(ev: &Evidence, rb: &Runbook, room: Option<&Room<'_>>) -> Step {
    match room {
        Some(room) => {
            let wait = room.wait();
            let later = if wait > 0 {
                format!("; the last of them are old enough in {wait} s")
            } else {
                String::new()
            };
            end_step(
                ev,
                format!(
                    "End {} sessions of {}: {}",
                    room.chosen.len(),
                    ev.service,
                    room.in_words()
                ),
                format!(
                    "they hold slots and do not work; the oldest first, until {} are free{later}",
                    room.wanted
                ),
                room.chosen.iter().map(|(s, _)| s.id.clone()).collect(),
                room.rules.clone(),
                room.wanted,
                wait,
            )
        }
        None => end_step(
            ev,
            format!("End sessions of {} that have done nothing for long", ev.service),
            format!(
                "nobody could look at them before; the oldest idle ones first, until {ENOUGH_UNSEEN} slots are free"
            ),
            Vec::new(),
            ev.rules(rb),
            ENOUGH_UNSEEN,
            PATIENCE,
        ),
    }
}

fn end_step(
    ev: &Evidence,
    title: String,
    why: String,
    sessions: Vec<crate::plan::SessionRef>,
    rules: SessionRules,
    free: u32,
    wait: u64,
) -> Step {
    Step {
        title,
        why,
        risk: Risk::Disruptive,
        action: Action::Sessions(SessionAction::End {
            service: ev.service.clone(),
            sessions,
            rules,
            free,
        }),
        undo: ended(),
        timeout_seconds: wait + 60,
    }
}

fn restart_pools(ev: &Evidence, rb: &Runbook, applications: &[String]) -> Step {
    let count = applications.len() as u64;
    Step {
        title: format!("Restart {}, only if they do not come back by themselves", applications.join(", ")),
        why: "a pool connects again when it is used; one that does not needs its service restarted, one after the other".into(),
        risk: Risk::Disruptive,
        action: Action::Sessions(SessionAction::RestartPools {
            service: ev.service.clone(),
            applications: applications.to_vec(),
        }),
        undo: Undo::NotNeeded("they run, as they did before".into()),
        timeout_seconds: count * (rb.deadlines.stop.as_secs() + 60) + 60,
    }
}

fn restart(service: &str, rb: &Runbook) -> Step {
    Step {
        title: format!("Restart {service}"),
        why: "its pool gives its connections back and opens new ones".into(),
        risk: Risk::Disruptive,
        action: Action::Workload(WorkloadAction::Restart {
            service: service.to_owned(),
        }),
        undo: Undo::NotNeeded("it runs, as it did before".into()),
        timeout_seconds: rb.deadlines.stop.as_secs() + 60,
    }
}

fn loss(chosen: Remedy, room: Option<&Room<'_>>, root: Option<&Root<'_>>) -> DataLoss {
    let transactions = match (chosen, room, root) {
        (Remedy::Restart, ..) => 0,
        (Remedy::UnblockSessions, _, Some(root)) => usize::from(root.exclusive.is_none()),
        (_, Some(room), _) => room.of_activity(Activity::InTransaction) + room.of_activity(Activity::Running),
        _ => {
            return DataLoss {
                summary: "what transactions that are open and forgotten have not committed is rolled back"
                    .into(),
                ..DataLoss::default()
            };
        }
    };
    match transactions {
        0 => DataLoss {
            summary: "nothing is lost: no open transaction is ended".into(),
            none: true,
            ..DataLoss::default()
        },
        n => DataLoss {
            summary: format!(
                "nothing that was committed; the uncommitted work of {n} open transactions is rolled back"
            ),
            ..DataLoss::default()
        },
    }
}
