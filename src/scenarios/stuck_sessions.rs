//! Sessions that nobody holds any more and that still count.
//!
//! Symptom: "session limit reached" although hardly anybody is connected. Cause: a session
//! that ended by its lifetime stays a member of the set that is counted.
//!
//! What drctl does: remove the members whose session does not exist, and no others. What it
//! never does: delete the whole set, which would forget everybody who is connected.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Certainty, DetectOptions, Diagnosis, LookAlike, PlanRequest, Refusal, Scenario, ladder};
use crate::error::Result;
use crate::plan::{Action, DataLoss, Expectation, PLAN_FORMAT, Plan, RedisAction, Remedy, Risk, Step, Undo};
use crate::probe::observer::Observer;
use crate::probe::redis_sessions::{SessionFacts, count};
use crate::runbook::{Runbook, Sessions};

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
    pub sessions: Sessions,
    /// What was counted, or why not.
    pub counted: Result<SessionFacts, String>,
}

/// Percent of the limit from which on stale members are in the way.
const NEARLY_FULL: u64 = 90;

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
        let near = facts.members * 100 >= s.sessions.limit * NEARLY_FULL;
        (near && facts.stale > 0).then_some((s, facts))
    })
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
    let Some((server, facts)) = stuck(ev) else {
        return Err(Refusal {
            message: diagnosis.summary,
            reasons: diagnosis.reasons,
            next: Vec::new(),
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
            }),
            undo: Undo::NotNeeded(
                "they belong to sessions that have ended; living ones are not touched".into(),
            ),
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
        kept: String::new(),
        discard: Vec::new(),
    })
}
