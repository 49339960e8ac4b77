//! A Redis that does not serve: stopped, frozen, refusing writes because it cannot save, or
//! unable to load its data.
//!
//! Symptom: the application's cache and sessions fail; PING is refused or not answered. Cause:
//! somebody or the kernel ended it, a save failed, its files are damaged.
//!
//! What drctl does, gentlest first: let a frozen one run again; start a stopped one; have it
//! save once more when a save has failed, and, where that cannot be, let writes through without
//! one; restart it. What it never does: restart one that is loading, stop one that cannot save
//! (what is unsaved would be lost), delete or cut its files, or touch a replica's role.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Certainty, DetectOptions, Diagnosis, LookAlike, PlanRequest, Refusal, Scenario, ladder};
use crate::error::Result;
use crate::plan::{
    Action, DataLoss, Expectation, PLAN_FORMAT, Plan, RedisAction, Remedy, Risk, Step, Undo, WorkloadAction,
};
use crate::probe::containers::{ContainerFacts, ContainerState, end_in_words};
use crate::probe::observer::Observer;
use crate::probe::redis::RedisState;
use crate::redis::ErrorKind;
use crate::runbook::Runbook;
use crate::workload::Status;

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct RedisFailing;

/// What is observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// When.
    pub taken_at: Timestamp,
    /// Per Redis service.
    pub servers: BTreeMap<String, Server>,
}

/// One Redis server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Server {
    /// Its container.
    pub container: ContainerState,
    /// How it answers, or why it could not be asked.
    pub state: Result<RedisState, String>,
}

/// What is wrong with one server.
enum Trouble {
    Frozen,
    Stopped,
    /// It ends as soon as it is started; the line of its log that tells why.
    Damaged(String),
    Loops,
    CannotSave,
    Silent(String),
    Instead(LookAlike),
    Unknown(String),
}

/// Words of a Redis that cannot load its data (redis 7.0, rdb.c and aof.c).
const DAMAGE: [&str; 9] = [
    "Internal error in RDB reading",
    "Short read or OOM loading DB",
    "Wrong RDB checksum",
    "Unexpected EOF reading RDB file",
    "Bad file format reading the append only file",
    "Invalid AOF manifest file format",
    "Unable to obtain the AOF file",
    "Fatal error loading the DB",
    "Wrong signature trying to load DB from file",
];

impl Scenario for RedisFailing {
    const NAME: &'static str = "redis-failure";
    const ABOUT: &'static str = "A Redis that stopped, froze, cannot save or cannot load its data";
    const REMEDIES: &'static [Remedy] = &[
        Remedy::Thaw,
        Remedy::Start,
        Remedy::Save,
        Remedy::Unblock,
        Remedy::Restart,
    ];
    const CAUSES: &'static [&'static str] = &["service-crash", "stuck-sessions"];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
        let (containers, states) = tokio::join!(world.containers(), world.redis());
        Ok(Evidence {
            taken_at: Timestamp::now(),
            servers: states
                .iter()
                .filter(|(name, _)| options.service.as_ref().is_none_or(|s| s == *name))
                .map(|(name, state)| {
                    let container = containers.get(name).cloned().unwrap_or(ContainerState::Missing);
                    let state = state.clone();
                    (name.clone(), Server { container, state })
                })
                .collect(),
        })
    }

    fn diagnose(ev: &Evidence, _: &Runbook) -> Diagnosis {
        diagnose(ev)
    }

    fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
        plan(ev, rb, request)
    }
}

fn telling(facts: &ContainerFacts) -> Option<String> {
    facts
        .last_words
        .iter()
        .rev()
        .find(|l| DAMAGE.iter().any(|d| l.text.contains(d)))
        .map(|l| l.text.clone())
}

fn trouble(server: &Server) -> Option<Trouble> {
    let facts = match &server.container {
        ContainerState::Found(facts) => facts,
        ContainerState::Missing => {
            return Some(Trouble::Instead(LookAlike {
                name: "no-container".into(),
                explanation: "it has no container".into(),
                next: vec!["docker compose up -d    # create it from the compose file".into()],
            }));
        }
        ContainerState::Unknown(cause) => return Some(Trouble::Unknown(cause.clone())),
    };
    match facts.info.status {
        Status::Paused => return Some(Trouble::Frozen),
        Status::Running if facts.is_stopped_by_signal() => return Some(Trouble::Frozen),
        Status::Running => {}
        Status::Restarting => return Some(telling(facts).map_or(Trouble::Loops, Trouble::Damaged)),
        Status::Created | Status::Exited | Status::Dead => {
            let by_itself = facts.info.exit_code == 1;
            return Some(
                telling(facts)
                    .filter(|_| by_itself)
                    .map_or(Trouble::Stopped, Trouble::Damaged),
            );
        }
    }
    match &server.state {
        Err(e) => Some(Trouble::Unknown(e.clone())),
        Ok(state) => refusal(state),
    }
}

/// A server that runs, and what it says.
fn refusal(state: &RedisState) -> Option<Trouble> {
    let name = &state.container.name;
    let instead = |name: &str, explanation: &str, next: Vec<String>| {
        Some(Trouble::Instead(LookAlike {
            name: name.into(),
            explanation: explanation.into(),
            next,
        }))
    };
    if let Some(info) = &state.info {
        if let Some(loading) = &info.persistence.loading {
            return instead(
                "loading",
                &format!(
                    "it is loading its data: {:.0} % done, about {} s left",
                    loading.percent, loading.eta
                ),
                vec!["drctl diagnose redis-failure    # look again; a restart would begin anew".into()],
            );
        }
        if info.replication.replica {
            return instead(
                "replica",
                &format!(
                    "it is a replica of {} and refuses writes",
                    info.replication.primary.as_deref().unwrap_or("another server")
                ),
                vec![format!(
                    "docker exec {name} redis-cli REPLICAOF NO ONE    # if it is to be the primary"
                )],
            );
        }
        if !info.persistence.last_save_ok || !info.persistence.aof_write_ok {
            return Some(Trouble::CannotSave);
        }
    }
    let failure = state.first_failure()?;
    let text = failure.text.clone();
    match failure.kind {
        ErrorKind::CannotPersist => Some(Trouble::CannotSave),
        ErrorKind::Loading => instead(
            "loading",
            &text,
            vec!["drctl diagnose redis-failure    # look again".into()],
        ),
        ErrorKind::PasswordNeeded
        | ErrorKind::WrongPassword
        | ErrorKind::NoPasswordSet
        | ErrorKind::NotPermitted => instead(
            "wrong-password",
            &format!("it runs and refuses drctl's password: {text}"),
            vec!["drctl runbook show    # which secret is used for it?".into()],
        ),
        ErrorKind::OutOfMemory => instead("redis-oom", &text, vec!["drctl recover redis-oom".into()]),
        ErrorKind::ReadOnly | ErrorKind::MasterDown => instead(
            "replica",
            &text,
            vec![format!("docker exec {name} redis-cli INFO replication")],
        ),
        ErrorKind::TooManyClients => instead(
            "clients-full",
            &text,
            vec![format!(
                "docker exec {name} redis-cli CONFIG GET maxclients    # raise it, or find who holds them"
            )],
        ),
        ErrorKind::NoConnection | ErrorKind::Timeout | ErrorKind::Broken | ErrorKind::Busy => {
            Some(Trouble::Silent(text))
        }
        ErrorKind::OtherReply | ErrorKind::Unexpected => Some(Trouble::Unknown(text)),
    }
}

/// The first server in trouble, those that can be helped before the others.
fn first(ev: &Evidence) -> Option<(&str, &Server, Trouble)> {
    let mut all: Vec<_> = ev
        .servers
        .iter()
        .filter_map(|(name, server)| Some((name.as_str(), server, trouble(server)?)))
        .collect();
    let rank = |t: &Trouble| match t {
        Trouble::Unknown(_) => 2,
        Trouble::Instead(_) => 1,
        _ => 0,
    };
    all.sort_by_key(|(.., t)| rank(t));
    all.into_iter().next()
}

fn diagnose(ev: &Evidence) -> Diagnosis {
    let Some((name, server, trouble)) = first(ev) else {
        return Diagnosis {
            certainty: Certainty::Absent,
            summary: "every Redis answers".into(),
            reasons: Vec::new(),
            look_alike: None,
        };
    };
    let facts = server.container.found();
    let ended = facts.map_or_else(String::new, |f| end_in_words(&f.info));
    let (certainty, summary, reasons, look_alike) = match trouble {
        Trouble::Frozen => (Certainty::Confirmed, format!("{name} is frozen"), vec![], None),
        Trouble::Stopped => (
            Certainty::Confirmed,
            format!("{name} does not run"),
            vec![ended],
            None,
        ),
        Trouble::Loops => (
            Certainty::Confirmed,
            format!("{name} ends again and again"),
            last_words(facts, ended),
            None,
        ),
        Trouble::Damaged(line) => (
            Certainty::Confirmed,
            format!("{name} cannot load its data"),
            vec![line, ended],
            None,
        ),
        Trouble::CannotSave => (
            Certainty::Confirmed,
            format!("{name} refuses writes because it could not save its data"),
            save_reasons(server),
            None,
        ),
        Trouble::Silent(text) => (
            Certainty::Confirmed,
            format!("{name} runs and does not answer"),
            vec![text],
            None,
        ),
        Trouble::Instead(other) => (
            Certainty::Absent,
            format!("{name}: {}", other.explanation),
            vec![],
            Some(other),
        ),
        Trouble::Unknown(text) => (
            Certainty::Unknown,
            format!("{name} could not be judged"),
            vec![text],
            None,
        ),
    };
    Diagnosis {
        certainty,
        summary,
        reasons,
        look_alike,
    }
}

fn last_words(facts: Option<&ContainerFacts>, ended: String) -> Vec<String> {
    let mut all = vec![ended];
    all.extend(
        facts
            .into_iter()
            .flat_map(|f| f.last_words.iter().rev().take(3).rev().map(|l| l.text.clone())),
    );
    all
}

fn save_reasons(server: &Server) -> Vec<String> {
    let mut all = Vec::new();
    if let Ok(state) = &server.state {
        all.extend(state.first_failure().map(|f| f.text.clone()));
        if let Some(info) = &state.info {
            all.push(format!(
                "{} changes since the last save that succeeded are in memory only",
                info.persistence.changes_since_save
            ));
        }
    }
    all.extend(server.container.found().and_then(|f| {
        f.last_words
            .iter()
            .rev()
            .find(|l| l.text.contains("rror"))
            .map(|l| l.text.clone())
    }));
    all
}

fn helps(trouble: &Trouble) -> &'static [Remedy] {
    match trouble {
        Trouble::Frozen => &[Remedy::Thaw],
        Trouble::Stopped => &[Remedy::Start],
        Trouble::CannotSave => &[Remedy::Save, Remedy::Unblock],
        Trouble::Loops | Trouble::Silent(_) => &[Remedy::Restart],
        Trouble::Damaged(_) | Trouble::Instead(_) | Trouble::Unknown(_) => &[],
    }
}

fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let diagnosis = diagnose(ev);
    let refuse = |message: String, next| Refusal {
        message,
        reasons: diagnosis.reasons.clone(),
        next,
    };
    let Some((name, server, trouble)) = first(ev) else {
        return Err(refuse(diagnosis.summary.clone(), Vec::new()));
    };
    let container = server.container.found().map_or(name, |f| f.info.name.as_str());
    if let Trouble::Damaged(_) = trouble {
        return Err(refuse(
            format!("{name} cannot load its data: starting it again would fail again"),
            vec![
                format!("docker cp {container}:/data ./{name}-data    # a copy first; never work on the only one"),
                "redis-check-rdb dump.rdb; redis-check-aof appendonlydir/appendonly.aof.manifest    # on the copy: what is damaged".into(),
                "# an append-only file: redis-check-aof --fix on the copy cuts everything behind the damage".into(),
            ],
        ));
    }
    let rungs: Vec<ladder::Rung> = helps(&trouble)
        .iter()
        .map(|r| ladder::rung(request, *r, None))
        .collect();
    let chosen = ladder::choose(
        RedisFailing::NAME,
        &rungs,
        request.remedy,
        &diagnosis.reasons,
        vec![format!("docker logs --tail 50 {container}")],
    )?;
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: RedisFailing::NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: name.to_owned(),
        diagnosis: diagnosis.summary.clone(),
        remedy: chosen,
        alternatives: ladder::alternatives(&rungs, chosen, |r| match r {
            Remedy::Unblock => "what is written from then on is not saved".into(),
            _ => "it interrupts more than is needed".into(),
        }),
        backup: None,
        steps: vec![step(name, chosen, rb)],
        expect: vec![
            Expectation::ServicesRun {
                services: vec![name.to_owned()],
            },
            Expectation::RedisWrites {
                service: name.to_owned(),
            },
            Expectation::Endpoints,
            Expectation::WriteCheck,
        ],
        data_loss: loss(server, chosen),
        estimate_seconds: 5,
        disk_needed: 0,
        disk_free: None,
        kept: String::new(),
        discard: Vec::new(),
    })
}

fn loss(server: &Server, remedy: Remedy) -> DataLoss {
    let unsaved = server
        .state
        .as_ref()
        .ok()
        .and_then(|s| s.info.as_ref())
        .map(|i| i.persistence.changes_since_save);
    match (remedy, unsaved) {
        (Remedy::Restart, Some(0)) | (Remedy::Thaw | Remedy::Start | Remedy::Save | Remedy::Unblock, _) => {
            DataLoss {
                summary: "nothing is lost: no data is touched".into(),
                none: true,
                ..DataLoss::default()
            }
        }
        (_, unsaved) => DataLoss {
            summary: format!(
                "{} changes since its last save, if it cannot save on its way down",
                unsaved.map_or_else(|| "the".to_owned(), |n| n.to_string())
            ),
            ..DataLoss::default()
        },
    }
}

fn step(name: &str, remedy: Remedy, rb: &Runbook) -> Step {
    let service = name.to_owned();
    let timeout_seconds = rb.deadlines.stop.as_secs() + 60;
    let (title, why, risk, action, undo) = match remedy {
        Remedy::Thaw => (
            format!("Let {name} run again"),
            "a frozen process has lost nothing",
            Risk::Reversible,
            Action::Workload(WorkloadAction::Thaw { service }),
            Undo::NotNeeded("a process that runs is what was wanted".into()),
        ),
        Remedy::Start => (
            format!("Start {name}"),
            "it does not run, and its log speaks of no damage",
            Risk::Reversible,
            Action::Workload(WorkloadAction::Start {
                service: service.clone(),
                wait: true,
            }),
            Undo::Action(Action::Workload(WorkloadAction::Stop { service })),
        ),
        Remedy::Save => (
            format!("Have {name} save its data"),
            "a save that succeeds ends the refusal of writes",
            Risk::Reversible,
            Action::Redis(RedisAction::Save { service }),
            Undo::NotNeeded("the data is on disk once more".into()),
        ),
        Remedy::Unblock => {
            let set = |value: &str| {
                Action::Redis(RedisAction::SetConfig {
                    service: service.clone(),
                    name: "stop-writes-on-bgsave-error".into(),
                    value: value.into(),
                })
            };
            (
                format!("Let {name} be written although it cannot save"),
                "users come first; until a save succeeds, what is written is in memory only",
                Risk::Reversible,
                set("no"),
                Undo::Action(set("yes")),
            )
        }
        _ => (
            format!("Restart {name}"),
            "it does not answer, and nothing gentler would make it",
            Risk::Disruptive,
            Action::Workload(WorkloadAction::Restart { service }),
            Undo::NotNeeded("it runs, as it did before".into()),
        ),
    };
    Step {
        title,
        why: why.to_owned(),
        risk,
        action,
        undo,
        timeout_seconds,
    }
}
