//! A Redis whose memory is full, and what only looks like it.

use super::harm::{Harm, Prepared, victim};
use super::mend::Mend;
use super::redis::{RedisHarm, RedisMend, VALUE, value_of};
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
        leaves: "memory at its limit, evicted_keys grows by the fault's own keys, writes go on",
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
/// Memory that a server that evicts has to spare before it begins: the fault's own keys fill it.
const SPARE: u64 = 16 << 20;
/// Keys that are written where it evicts: half as many again as there is room for.
const EVICTED: u64 = SPARE / VALUE * 3 / 2;
/// Keys that are compared before one is evicted; what it takes is the longest unused of them.
const SAMPLES: &str = "64";
/// Other keys with a lifetime, so that each sample holds one of the fault's own.
const OTHERS: u64 = SPARE / VALUE / 4;

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// No such service, or one that does not run or answer.
pub async fn prepare(
    system: &System,
    variant: &str,
    service: Option<&str>,
    request: &Request,
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
    evicts_nothing(&service, &info.memory.policy)?;
    let set = |name: &str, value: String, was: String| {
        let name = || name.to_owned();
        let harm = RedisHarm::Config { name: name(), value };
        (
            harm,
            RedisMend::Config {
                name: name(),
                value: was,
            },
        )
    };
    let max = || info.memory.max.to_string();
    // A pattern that the runbook calls disposable, so that clearing it is a remedy.
    let prefix = format!("cv:drctl-fault:{id}:");
    let delete = RedisMend::Delete {
        database: 0,
        pattern: format!("{prefix}*"),
    };
    let fill = |at_most, evict_first| RedisHarm::Fill {
        prefix,
        at_most,
        evict_first,
    };
    let (harms, mends) = match variant {
        "cache-full" if info.memory.max == 0 => {
            return Err(Error::new(
                Kind::Refused,
                format!("{service} has no memory limit: filling it would fill the host"),
            )
            .untouched("everything"));
        }
        "cache-full" => (vec![fill(MOST, None)], vec![delete]),
        "limit-low" => {
            let low = (info.memory.used / 2).max(1).to_string();
            let (harm, mend) = set("maxmemory", low, max());
            (vec![harm], vec![mend])
        }
        "evicting" => {
            few_others(&service, &info)?;
            let room = (info.memory.used + SPARE).to_string();
            let (limit, limit_back) = set("maxmemory", room, max());
            let name = "maxmemory-samples";
            let was = value_of(system, &service, name).await?;
            let (samples, samples_back) = set(name, SAMPLES.into(), was);
            // It evicts no key without a lifetime, and of the others the longest unused: the fault's own.
            let policy = info.memory.policy.clone();
            let (policy, policy_back) = set("maxmemory-policy", "volatile-lru".into(), policy);
            let fill = fill(EVICTED, Some(request.ttl));
            // Nothing is evicted before the fault's keys are there, nor after they are gone.
            (
                vec![limit, samples, policy, fill],
                vec![policy_back, delete, limit_back, samples_back],
            )
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

/// Only a server that refuses writes when it is full keeps what it has. What another would evict nobody can bring back.
///
/// # Errors
/// [`Kind::Refused`] for every other policy.
pub fn evicts_nothing(service: &str, policy: &str) -> Result<()> {
    if policy == "noeviction" {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!("{service} evicts when it is full ({policy}): it would evict the deployment's own keys"),
    )
    .untouched("everything"))
}

fn few_others(service: &str, info: &RedisInfo) -> Result<()> {
    let others = info.keys() - info.keys_without_ttl();
    if others <= OTHERS {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!(
            "{service} holds {others} keys with a lifetime, more than {OTHERS}: some of them might be evicted with the fault's own"
        ),
    )
    .untouched("everything"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::Keyspace;

    #[test]
    fn a_server_that_evicts_is_not_filled() {
        assert!(evicts_nothing("redis", "noeviction").is_ok());
        for policy in ["allkeys-lru", "volatile-ttl", ""] {
            let e = evicts_nothing("redis", policy).unwrap_err();
            assert_eq!(e.kind, Kind::Refused);
            assert!(e.message.contains("the deployment's own keys"), "{}", e.message);
        }
    }

    #[test]
    fn eviction_is_refused_where_it_could_take_other_keys() {
        let with = |expires| {
            let keyspace = Keyspace {
                keys: 10_000,
                expires,
                average_ttl: 1,
            };
            RedisInfo {
                keyspace: [(0, keyspace)].into(),
                ..RedisInfo::default()
            }
        };
        assert!(few_others("redis", &with(OTHERS)).is_ok());
        assert!(few_others("redis", &with(OTHERS + 1)).is_err());
    }
}
