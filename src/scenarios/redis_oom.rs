//! A Redis whose memory is full: reads go on, writes are refused.
//!
//! Symptom: `OOM command not allowed when used memory > 'maxmemory'`, the application's cache
//! and sessions fail, PING and health checks stay green. Cause: the limit is too low, or keys
//! that never end fill it.
//!
//! What drctl does, gentlest first: raise `maxmemory` where the container and the host have
//! room, which loses nothing; delete the keys that the runbook calls disposable, in small
//! batches. What it never does: flush a database, delete a key that the runbook does not call
//! disposable, or change the policy so that sessions are evicted.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Certainty, DetectOptions, Diagnosis, LookAlike, PlanRequest, Refusal, Scenario, ladder};
use crate::error::Result;
use crate::event::bytes;
use crate::plan::{Action, DataLoss, Expectation, PLAN_FORMAT, Plan, RedisAction, Remedy, Risk, Step, Undo};
use crate::probe::observer::Observer;
use crate::probe::redis::RedisState;
use crate::probe::redis_keys::{KeySample, SampleLimits, sample};
use crate::redis::ErrorKind;
use crate::runbook::Runbook;

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct RedisOom;

/// What is observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// When.
    pub taken_at: Timestamp,
    /// Memory that the engine's host has to spare, when it could be told.
    pub host_free: Option<u64>,
    /// Per Redis service.
    pub servers: BTreeMap<String, Server>,
}

/// One Redis server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Server {
    /// How it answers, or why it could not be asked.
    pub state: Result<RedisState, String>,
    /// What fills it, where it is nearly full.
    pub keys: Option<KeySample>,
}

/// Percent of its limit from which on a server is looked into.
const NEARLY_FULL: f64 = 90.0;
/// The part of the container's limit that the data may take: a fork for a save copies pages,
/// and Redis needs buffers beside its data.
const SHARE_OF_CONTAINER: u64 = 65;
/// The part of the host's free memory that a raise may take.
const SHARE_OF_HOST: u64 = 50;
/// A raise by less than this is not worth it.
const LEAST_RAISE: u64 = 16 << 20;

impl Scenario for RedisOom {
    const NAME: &'static str = "redis-oom";
    const ABOUT: &'static str = "A Redis whose memory is full: reads go on, writes are refused";
    const REMEDIES: &'static [Remedy] = &[Remedy::RaiseLimit, Remedy::ClearCache];
    const CAUSES: &'static [&'static str] = &["redis-failure", "service-crash", "stuck-sessions"];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
        let mut servers = BTreeMap::new();
        for (name, state) in world.redis().await {
            if options.service.as_ref().is_some_and(|s| s != name) {
                continue;
            }
            let nearly_full = state
                .as_ref()
                .ok()
                .and_then(|s| s.info.as_ref())
                .filter(|i| i.memory.percent().is_some_and(|p| p >= NEARLY_FULL));
            let keys = match nearly_full {
                None => None,
                Some(info) => match world.system.redis(name).await {
                    Ok(server) => sample(
                        &server.spec,
                        &info.keyspace,
                        &server.config.disposable_patterns,
                        SampleLimits::default(),
                    )
                    .await
                    .ok(),
                    Err(_) => None,
                },
            };
            servers.insert(
                name.clone(),
                Server {
                    state: state.clone(),
                    keys,
                },
            );
        }
        Ok(Evidence {
            taken_at: Timestamp::now(),
            host_free: world.host().await.as_ref().map(|h| h.memory_available),
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

/// The first server whose memory is full.
fn full(ev: &Evidence) -> Option<(&str, &RedisState, &Server)> {
    ev.servers.iter().find_map(|(name, server)| {
        let state = server.state.as_ref().ok()?;
        let info = state.info.as_ref()?;
        // A server that evicts is full by design, as long as it finds something to evict.
        let refuses = info.memory.policy == "noeviction"
            || (info.memory.policy.starts_with("volatile") && info.keys() == info.keys_without_ttl());
        (info.memory.is_full() && refuses || state.failed_with(ErrorKind::OutOfMemory)).then_some((
            name.as_str(),
            state,
            server,
        ))
    })
}

fn diagnose(ev: &Evidence) -> Diagnosis {
    if let Some((name, state, server)) = full(ev) {
        return Diagnosis {
            certainty: Certainty::Confirmed,
            summary: format!("the memory of {name} is full, and it refuses writes"),
            reasons: reasons(state, server.keys.as_ref()),
            look_alike: None,
        };
    }
    let unknown: Vec<String> = ev
        .servers
        .iter()
        .filter_map(|(name, s)| match &s.state {
            Err(e) => Some(format!("{name}: {e}")),
            Ok(state) if state.info.is_none() => state.first_failure().map(|f| format!("{name}: {}", f.text)),
            Ok(_) => None,
        })
        .collect();
    let near = ev.servers.iter().find_map(|(name, s)| {
        let info = s.state.as_ref().ok()?.info.as_ref()?;
        let percent = info.memory.percent().filter(|p| *p >= NEARLY_FULL)?;
        Some((name, percent, info))
    });
    match near {
        // It evicts what it may: a cache at its limit does its work.
        Some((name, percent, info)) => Diagnosis {
            certainty: Certainty::Absent,
            summary: format!(
                "{name} uses {percent:.0} % of its memory and still takes writes ({}, {} keys evicted)",
                info.memory.policy, info.stats.evicted_keys
            ),
            reasons: Vec::new(),
            look_alike: None,
        },
        None if unknown.is_empty() => Diagnosis {
            certainty: Certainty::Absent,
            summary: "no Redis is at its memory limit".into(),
            reasons: Vec::new(),
            look_alike: None,
        },
        // A server that does not answer refuses more than writes.
        None => Diagnosis {
            certainty: Certainty::Absent,
            summary: "not a question of memory: it does not answer at all".into(),
            reasons: unknown.clone(),
            look_alike: Some(LookAlike {
                name: "redis-failure".into(),
                explanation: unknown.join("; "),
                next: vec!["drctl diagnose redis-failure".into()],
            }),
        },
    }
}

fn reasons(state: &RedisState, keys: Option<&KeySample>) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(info) = &state.info {
        all.push(format!(
            "{} of {} are used, the policy is {}, {} writes were refused with OOM",
            bytes(info.memory.used),
            bytes(info.memory.max),
            info.memory.policy,
            info.errors_of("OOM")
        ));
        all.push(format!(
            "{} keys, {} of them never end by themselves",
            info.keys(),
            info.keys_without_ttl()
        ));
    }
    for group in keys.iter().flat_map(|k| &k.groups).take(4) {
        all.push(format!(
            "about {} in {} keys like {} ({}{})",
            bytes(group.bytes),
            group.keys,
            group.pattern,
            group.kind,
            if group.is_disposable() { ", disposable" } else { "" }
        ));
    }
    all
}

/// What `maxmemory` could be raised to, or why not.
fn raise(ev: &Evidence, state: &RedisState) -> Result<u64, String> {
    let info = state.info.as_ref().ok_or("it does not tell how much it uses")?;
    let max = info.memory.max;
    let limit = state.container.memory_limit;
    let by_container = if limit == 0 {
        u64::MAX
    } else {
        limit / 100 * SHARE_OF_CONTAINER
    };
    let by_host = match ev.host_free {
        Some(free) => max.saturating_add(free / 100 * SHARE_OF_HOST),
        None if limit == 0 => return Err("how much memory the host has free could not be told".into()),
        None => u64::MAX,
    };
    let wanted = max.saturating_mul(2).max(max.saturating_add(4 * LEAST_RAISE));
    let to = wanted.min(by_container).min(by_host) >> 20 << 20;
    if to < max.saturating_add(LEAST_RAISE) {
        return Err(if by_container < by_host {
            format!(
                "the container's limit of {} leaves no room for more than {} of data",
                bytes(limit),
                bytes(by_container)
            )
        } else {
            "the host has no memory to spare".into()
        });
    }
    Ok(to)
}

fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let diagnosis = diagnose(ev);
    let Some((name, state, server)) = full(ev) else {
        return Err(Refusal {
            message: diagnosis.summary,
            reasons: diagnosis.reasons,
            next: Vec::new(),
        });
    };
    let patterns = rb
        .redis_services()
        .find(|(n, ..)| n.as_str() == name)
        .map(|(_, _, r)| r.disposable_patterns.clone())
        .unwrap_or_default();
    let raised = raise(ev, state);
    let disposable = server.keys.as_ref().map_or(0, KeySample::disposable_bytes);
    let rungs = [
        ladder::rung(request, Remedy::RaiseLimit, raised.as_ref().err().cloned()),
        ladder::rung(
            request,
            Remedy::ClearCache,
            if patterns.is_empty() {
                Some("the runbook calls no keys disposable".into())
            } else if disposable == 0 {
                Some(format!("no keys like {} were seen", patterns.join(", ")))
            } else {
                None
            },
        ),
    ];
    let chosen = ladder::choose(
        RedisOom::NAME,
        &rungs,
        request.remedy,
        &diagnosis.reasons,
        vec![
            format!(
                "docker update --memory … --memory-swap … {}    # more for the container",
                state.container.name
            ),
            "# or name keys that may be deleted in the runbook: disposable-patterns".into(),
        ],
    )?;
    let max = state.info.as_ref().map_or(0, |i| i.memory.max);
    let (step, loss) = match (chosen, raised) {
        (Remedy::RaiseLimit, Ok(to)) => (
            raise_step(name, max, to),
            "nothing is lost: no key is touched".to_owned(),
        ),
        _ => (
            clear_step(name, &patterns, rb),
            format!(
                "about {} of keys like {}, which the runbook calls disposable",
                bytes(disposable),
                patterns.join(", ")
            ),
        ),
    };
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: RedisOom::NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: name.to_owned(),
        diagnosis: diagnosis.summary,
        remedy: chosen,
        alternatives: ladder::alternatives(&rungs, chosen, |r| match r {
            Remedy::ClearCache => format!("it deletes about {} of cache", bytes(disposable)),
            _ => "it takes memory of the host".into(),
        }),
        backup: None,
        steps: vec![step],
        expect: vec![
            Expectation::RedisWrites {
                service: name.to_owned(),
            },
            Expectation::Endpoints,
            Expectation::WriteCheck,
        ],
        data_loss: DataLoss {
            none: chosen == Remedy::RaiseLimit,
            summary: loss,
            ..DataLoss::default()
        },
        estimate_seconds: 3,
        disk_needed: 0,
        disk_free: None,
        kept: String::new(),
        discard: Vec::new(),
    })
}

fn raise_step(service: &str, from: u64, to: u64) -> Step {
    let set = |value: u64| {
        Action::Redis(RedisAction::SetConfig {
            service: service.to_owned(),
            name: "maxmemory".into(),
            value: value.to_string(),
        })
    };
    Step {
        title: format!("Raise maxmemory of {service} from {} to {}", bytes(from), bytes(to)),
        why: "writes are taken again at once; it lasts until the server's next start, so raise it in the compose file as well".into(),
        risk: Risk::Reversible,
        action: set(to),
        undo: Undo::Action(set(from)),
        timeout_seconds: 30,
    }
}

fn clear_step(service: &str, patterns: &[String], rb: &Runbook) -> Step {
    Step {
        title: format!("Delete keys like {} of {service}", patterns.join(", ")),
        why: "they can be computed again, the runbook says; other clients hardly wait meanwhile".into(),
        // Nothing brings a deleted key back, and a pattern may match more than was meant.
        risk: Risk::Destructive,
        action: Action::Redis(RedisAction::ClearPatterns {
            service: service.to_owned(),
            patterns: patterns.to_vec(),
        }),
        undo: Undo::Impossible("a deleted cache entry is computed again when it is asked for".into()),
        timeout_seconds: rb.deadlines.step.as_secs(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No undo brings a key back: the step is one that the deployment's name is typed for.
    #[test]
    fn deleted_keys_are_gone() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml");
        let runbook = crate::runbook::load(std::path::Path::new(path)).unwrap();
        let step = clear_step("redis", &["cv:*".to_owned()], &runbook);
        assert!(matches!(step.undo, Undo::Impossible(_)));
        assert_eq!(step.risk, Risk::Destructive);
    }
}
