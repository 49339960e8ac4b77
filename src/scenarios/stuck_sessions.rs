//! Sessions that nobody holds any more and that still count.
//!
//! Symptom: "session limit reached" although hardly anybody is connected. Cause: a session
//! that ended by its lifetime stays a member of the set that is counted.
//!
//! What drctl does: remove the members whose session does not exist, and no others, and keep
//! them aside for a day. What it never does: delete the whole set, which would forget everybody
//! who is connected; that includes a set of which every member looks stale because the sessions'
//! keys have another name than the runbook says.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Certainty, DetectOptions, Diagnosis, LookAlike, PlanRequest, Refusal, Scenario, ladder};
use crate::error::Result;
use crate::plan::{Action, DataLoss, Expectation, PLAN_FORMAT, Plan, RedisAction, Remedy, Risk, Step, Undo};
use crate::probe::observer::Observer;
use crate::probe::redis_sessions::{SessionFacts, count};
use crate::runbook::{Runbook, UserSessions};

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct StuckSessions;

/// What is observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// When.
    pub taken_at: Timestamp,
    /// Per Redis service whose sessions the runbook describes.
    pub servers: Vec<Server>,
}

/// The sessions of one server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Server {
    /// The service.
    pub service: String,
    /// What the runbook says.
    pub sessions: UserSessions,
    /// What was counted, or why not.
    pub counted: Result<SessionFacts, String>,
}

/// Percent of the limit from which on stale members are in the way.
const NEARLY_FULL: u64 = 90;
/// Percent of the members: fewer that are stale are not what fills it.
const REAL_SHARE: u64 = 10;

impl Scenario for StuckSessions {
    const NAME: &'static str = "stuck-sessions";
    const ABOUT: &'static str = "Sessions that nobody holds any more and that still count against the limit";
    const REMEDIES: &'static [Remedy] = &[Remedy::ClearStale];
    const CAUSES: &'static [&'static str] = &[];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
        let mut servers = Vec::new();
        for (name, _, config) in world.system.runbook.redis_services() {
            let asked = options.service.as_ref().is_none_or(|s| s == name.as_str());
            let Some(sessions) = config.sessions.clone().filter(|_| asked) else {
                continue;
            };
            let counted = match world.system.redis(name.as_str()).await {
                Ok(server) => count(&server, &sessions).await.map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            };
            servers.push(Server {
                service: name.to_string(),
                sessions,
                counted,
            });
        }
        Ok(Evidence {
            taken_at: Timestamp::now(),
            servers,
        })
    }

    fn diagnose(ev: &Evidence, _: &Runbook) -> Diagnosis {
        diagnose(ev)
    }

    fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
        plan(ev, rb, request)
    }
}

/// The first server that is near its limit because of members without an owner.
fn stuck(ev: &Evidence) -> Option<(&Server, &SessionFacts)> {
    ev.servers.iter().find_map(|s| {
        let facts = s.counted.as_ref().ok()?;
        let limit = s.sessions.limit;
        let near = facts.members * 100 >= limit * NEARLY_FULL;
        let makes_room = facts.members >= limit && facts.members.saturating_sub(facts.stale) < limit;
        let share = facts.stale * 100 >= facts.looked_at * REAL_SHARE;
        (near && facts.stale > 0 && (makes_room || share)).then_some((s, facts))
    })
}

/// Every member looks stale and nothing shows that the owners' keys are called as the runbook
/// says: a release may have renamed them, or they are in another database.
fn is_doubtful(facts: &SessionFacts) -> bool {
    facts.stale == facts.looked_at && !facts.prefix_seen
}

fn doubtful(server: &Server, facts: &SessionFacts) -> Diagnosis {
    let sessions = &server.sessions;
    let (index, prefix, database) = (&sessions.index, &sessions.owner_prefix, sessions.database);
    let explanation = format!(
        "no member of {index} has a key, and no key {prefix}… was found in database {database} of {}: the sessions may live under \
         another name, and to clear the set would forget everybody; nothing is removed",
        server.service
    );
    Diagnosis {
        certainty: Certainty::Absent,
        summary: explanation.clone(),
        reasons: vec![words(server, facts)],
        look_alike: Some(LookAlike {
            name: "session-prefix".into(),
            explanation,
            next: vec![
                format!(
                    "redis-cli -n {database} srandmember {index} 3    # then find a key that belongs to one:"
                ),
                format!(
                    "redis-cli -n {database} --scan --pattern '*MEMBER*'    # in other databases, too; redis.sessions in the runbook says what it is called"
                ),
                format!(
                    "redis-cli -n {database} rename {index} {index}.old    # only if really nobody is connected"
                ),
            ],
        }),
    }
}

fn words(server: &Server, facts: &SessionFacts) -> String {
    format!(
        "{} counts {} sessions of {} allowed; {} of {} looked at have no key {}…",
        server.sessions.index,
        facts.members,
        server.sessions.limit,
        facts.stale,
        facts.looked_at,
        server.sessions.owner_prefix
    )
}

fn diagnose(ev: &Evidence) -> Diagnosis {
    let said = |certainty, summary: String, reasons, look_alike| Diagnosis {
        certainty,
        summary,
        reasons,
        look_alike,
    };
    if let Some((server, facts)) = stuck(ev) {
        if is_doubtful(facts) {
            return doubtful(server, facts);
        }
        return said(
            Certainty::Confirmed,
            format!("sessions of {} that nobody holds fill the limit", server.service),
            vec![words(server, facts)],
            None,
        );
    }
    for server in &ev.servers {
        match &server.counted {
            Err(e) => {
                return said(
                    Certainty::Unknown,
                    format!("the sessions of {} could not be counted", server.service),
                    vec![e.clone()],
                    None,
                );
            }
            // Full of living sessions: a limit that works, or too small a one.
            Ok(facts) if facts.members >= server.sessions.limit => {
                let explanation = format!(
                    "the limit of {} sessions is reached by sessions that are alive",
                    server.sessions.limit
                );
                return said(
                    Certainty::Absent,
                    explanation.clone(),
                    vec![words(server, facts)],
                    Some(LookAlike {
                        name: "session-limit".into(),
                        explanation,
                        next: vec!["# raise the application's limit, or start another instance of it".into()],
                    }),
                );
            }
            Ok(_) => {}
        }
    }
    said(
        Certainty::Absent,
        if ev.servers.is_empty() {
            "the runbook does not say how sessions are kept".into()
        } else {
            "sessions are below their limit".into()
        },
        Vec::new(),
        None,
    )
}

fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let diagnosis = diagnose(ev);
    let Some((server, facts)) = stuck(ev).filter(|(_, facts)| !is_doubtful(facts)) else {
        return Err(Refusal {
            message: diagnosis.summary,
            reasons: diagnosis.reasons,
            next: diagnosis.look_alike.map(|l| l.next).unwrap_or_default(),
        });
    };
    let rungs = [ladder::rung(request, Remedy::ClearStale, None)];
    let chosen = ladder::choose(
        StuckSessions::NAME,
        &rungs,
        request.remedy,
        &diagnosis.reasons,
        vec!["drctl diagnose    # is something else wrong?".into()],
    )?;
    let sessions = &server.sessions;
    let kept = format!("drctl:stale-members:{}", request.run);
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: StuckSessions::NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: server.service.clone(),
        diagnosis: diagnosis.summary,
        remedy: chosen,
        alternatives: Vec::new(),
        backup: None,
        steps: vec![Step {
            title: format!("Remove members of {} that have no owner", sessions.index),
            why: words(server, facts),
            risk: Risk::Reversible,
            action: Action::Redis(RedisAction::ClearStaleMembers {
                service: server.service.clone(),
                database: sessions.database,
                index: sessions.index.clone(),
                owner_prefix: sessions.owner_prefix.clone(),
                kept: kept.clone(),
            }),
            undo: Undo::Action(Action::Redis(RedisAction::PutMembersBack {
                service: server.service.clone(),
                database: sessions.database,
                index: sessions.index.clone(),
                kept: kept.clone(),
            })),
            timeout_seconds: rb.deadlines.step.as_secs(),
        }],
        expect: vec![
            Expectation::RoomForSessions {
                service: server.service.clone(),
                index: sessions.index.clone(),
                database: sessions.database,
                limit: sessions.limit,
            },
            Expectation::RedisWrites {
                service: server.service.clone(),
            },
            Expectation::Endpoints,
        ],
        data_loss: DataLoss {
            summary: "nothing is lost: only entries of sessions that have ended go".into(),
            none: true,
            ..DataLoss::default()
        },
        estimate_seconds: 2,
        disk_needed: 0,
        disk_free: None,
        kept: format!(
            "the removed members, in the set {kept} of database {}, which ends by itself after a day",
            sessions.database
        ),
        discard: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::lint;

    fn evidence(members: u64, stale: u64, prefix_seen: bool) -> Evidence {
        serde_json::from_value(serde_json::json!({
            "taken-at": "2026-11-20T19:45:00Z",
            "servers": [{
                "service": "redis",
                "sessions": {"index": "sessions:all", "owner-prefix": "session:", "limit": 1000, "database": 0},
                "counted": {"Ok": {"members": members, "looked-at": members, "stale": stale, "prefix-seen": prefix_seen}}
            }]
        }))
        .unwrap()
    }

    fn plan_of(ev: &Evidence) -> Result<Plan, Refusal> {
        let text = include_str!("../../runbooks/simgen.yaml");
        let runbook = crate::runbook::parse(std::path::Path::new("simgen.yaml"), text).unwrap();
        let request = PlanRequest {
            run: "20261120T194500Z-stuck-sessions-1f3a".into(),
            tried: Vec::new(),
            remedy: None,
            backup: None,
            now: "2026-11-20T19:45:00Z".parse().unwrap(),
        };
        let plan = plan(ev, &runbook, &request);
        if let Ok(plan) = &plan {
            lint(plan).unwrap();
        }
        plan
    }

    #[test]
    fn a_set_whose_owners_have_another_name_is_not_emptied() {
        let ev = evidence(1000, 1000, false);
        let diagnosis = diagnose(&ev);
        assert_eq!(diagnosis.certainty, Certainty::Absent);
        assert_eq!(
            diagnosis.look_alike.map(|l| l.name).as_deref(),
            Some("session-prefix")
        );
        assert!(!plan_of(&ev).unwrap_err().next.is_empty());
        // Somebody else's session is there: the name is right.
        let plan = plan_of(&evidence(1000, 1000, true)).unwrap();
        assert!(matches!(
            &plan.steps[0].undo,
            Undo::Action(Action::Redis(RedisAction::PutMembersBack { kept, .. })) if plan.kept.contains(kept.as_str())
        ));
    }

    #[test]
    fn a_few_stale_members_are_not_what_fills_the_set() {
        for (members, stale, expected) in [
            (1000, 50, Certainty::Confirmed),
            (950, 50, Certainty::Absent),
            (950, 95, Certainty::Confirmed),
            (1100, 50, Certainty::Absent),
            (1100, 110, Certainty::Confirmed),
            (800, 700, Certainty::Absent),
        ] {
            let ev = evidence(members, stale, true);
            assert_eq!(diagnose(&ev).certainty, expected, "{members} {stale}");
        }
    }
}
