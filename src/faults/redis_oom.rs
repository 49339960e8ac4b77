//! A Redis whose memory is full, and what only looks like it.

use super::harm::{Harm, Mend, Prepared, victim};
use super::redis::{RedisHarm, RedisMend};
use super::{Fault, Request};
use crate::error::{Error, Kind, Result};
use crate::redis::RedisInfo;
use crate::runbook::ServiceKind;
use crate::system::System;

/// Every fault of this family.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "redis-oom/cache-full",
        summary: "keys of a disposable pattern fill the memory",
        leaves: "OOM on every write, PING and reads go on, the container stays healthy",
        live: false,
    },
    Fault {
        name: "redis-oom/limit-low",
        summary: "the memory limit is below what is used",
        leaves: "OOM on every write although nothing was added",
        live: false,
    },
    Fault {
        name: "redis-oom/evicting",
        summary: "look-alike: a cache at its limit that evicts, as it is meant to",
        leaves: "memory at its limit, evicted_keys grows, writes go on",
        live: false,
    },
    Fault {
        name: "redis-oom/stopped",
        summary: "look-alike: the server is stopped, so that writes fail as well",
        leaves: "status exited, the application's cache fails",
        live: false,
    },
];

/// Keys that are written at most: far more than any laboratory's limit.
const MOST: u64 = 100_000;

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// No such service, or one that does not run or answer.
pub async fn prepare(
    system: &System,
    variant: &str,
    service: Option<&str>,
    _request: &Request,
    id: &str,
) -> Result<Option<Prepared>> {
    let (service, container) = victim(system, service, |s| matches!(s.kind, ServiceKind::Redis(_))).await?;
    let container = container.name;
    if variant == "stopped" {
        return Ok(Some(Prepared {
            target: format!("container {container} of service {service}"),
            harms: vec![Harm::Stop {
                container: container.clone(),
            }],
            mends: vec![Mend::Run {
                container: container.clone(),
            }],
            service,
            container,
        }));
    }
    let info = info(system, &service).await?;
    let set = |name: &str, value: String| {
        (
            RedisHarm::Config {
                name: name.into(),
                value,
            },
            RedisMend::Config {
                name: name.into(),
                value: match name {
                    "maxmemory" => info.memory.max.to_string(),
                    _ => info.memory.policy.clone(),
                },
            },
        )
    };
    // A pattern that the runbook calls disposable, so that clearing it is a remedy.
    let prefix = format!("cv:drctl-fault:{id}:");
    let delete = RedisMend::Delete {
        database: 0,
        pattern: format!("{prefix}*"),
    };
    let fill = RedisHarm::Fill {
        prefix,
        at_most: MOST,
    };
    let (harms, mends) = match variant {
        "cache-full" if info.memory.max == 0 => {
            return Err(Error::new(
                Kind::Refused,
                format!("{service} has no memory limit: filling it would fill the host"),
            )
            .untouched("everything"));
        }
        "cache-full" => (vec![fill], vec![delete]),
        "limit-low" => {
            let (harm, mend) = set("maxmemory", (info.memory.used / 2).max(1).to_string());
            (vec![harm], vec![mend])
        }
        "evicting" => {
            let (policy, policy_back) = set("maxmemory-policy", "allkeys-lru".into());
            let (limit, limit_back) = set("maxmemory", (info.memory.used + (4 << 20)).to_string());
            let fill = match fill {
                RedisHarm::Fill { prefix, .. } => RedisHarm::Fill {
                    prefix,
                    at_most: 1_000,
                },
                other => other,
            };
            (vec![policy, limit, fill], vec![delete, limit_back, policy_back])
        }
        _ => return Ok(None),
    };
    Ok(Some(Prepared::of_redis(service, container, harms, mends)))
}

/// What a server says of itself.
///
/// # Errors
/// [`Kind::Refused`] when it does not answer: a fault needs a sound server.
pub async fn info(system: &System, service: &str) -> Result<RedisInfo> {
    let server = system.redis(service).await?;
    let answer = async { server.connect().await?.info().await };
    answer.await.map_err(|e| {
        Error::new(
            Kind::Refused,
            format!("{service} does not answer; a fault is injected only into a sound server"),
        )
        .because(&e)
        .untouched("everything")
    })
}
