//! A Redis that does not serve, and what only looks like it.

use super::harm::{Harm, Prepared, victim};
use super::mend::Mend;
use super::redis::{RedisHarm, RedisMend, data_owner, value_of};
use super::redis_files::files_of;
use super::redis_oom::{evicts_nothing, info};
use super::{Fault, Request, network_partition};
use crate::error::{Error, Kind, Result};
use crate::runbook::ServiceKind;
use crate::system::System;

/// Every fault of this family.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "redis-failure/stopped",
        summary: "the server is stopped",
        leaves: "status exited, exit code 0",
        live: false,
    },
    Fault {
        name: "redis-failure/killed",
        summary: "the server is killed",
        leaves: "status exited, exit code 137 without OOMKilled",
        live: false,
    },
    Fault {
        name: "redis-failure/frozen",
        summary: "the server is stopped by a signal",
        leaves: "status running, process state T, connections hang",
        live: false,
    },
    Fault {
        name: "redis-failure/save-failed",
        summary: "a save has failed, as on a disk that was full for a moment",
        leaves: "MISCONF on writes and on PING, rdb_last_bgsave_status:err",
        live: false,
    },
    Fault {
        name: "redis-failure/rdb-checksum",
        summary: "the checksum of the snapshot is wrong",
        leaves: "exit 1, `Wrong RDB checksum expected`, a crash loop",
        live: false,
    },
    Fault {
        name: "redis-failure/rdb-damaged",
        summary: "the snapshot ends half-way",
        leaves: "exit 1, `Short read or OOM loading DB`, a crash loop",
        live: false,
    },
    Fault {
        name: "redis-failure/aof-damaged",
        summary: "a command of the append-only file cannot be read, and five stand behind it",
        leaves: "exit 1, `Bad file format reading the append only file`, a crash loop",
        live: false,
    },
    Fault {
        name: "redis-failure/aof-base",
        summary: "the base of the append-only file ends half-way",
        leaves: "exit 1, `Short read or OOM loading DB`, a crash loop",
        live: false,
    },
    Fault {
        name: "redis-failure/aof-manifest",
        summary: "the manifest of the append-only file is overwritten",
        leaves: "exit 1, `Invalid AOF manifest file format`, a crash loop",
        live: false,
    },
    Fault {
        name: "redis-failure/busy-script",
        summary: "a script that writes nothing runs and runs",
        leaves: "BUSY on everything after five seconds of silence, one processor at work",
        live: true,
    },
    Fault {
        name: "redis-failure/wrong-version",
        summary: "look-alike: a newer version has written its files",
        leaves: "exit 1, `Can't handle RDB format version 99`, a crash loop",
        live: false,
    },
    Fault {
        name: "redis-failure/detached",
        summary: "look-alike: the container is in no network",
        leaves: "status running and healthy, no address",
        live: false,
    },
    Fault {
        name: "redis-failure/too-few-replicas",
        summary: "look-alike: it wants a replica before it is written, and has none",
        leaves: "NOREPLICAS on writes, PING and reads go on, min_slaves_good_slaves:0",
        live: false,
    },
    Fault {
        name: "redis-failure/replica",
        summary: "look-alike: it was made a replica",
        leaves: "READONLY on writes, role:slave, master_link_status:down",
        live: false,
    },
    Fault {
        name: "redis-failure/memory-full",
        summary: "look-alike: its memory is full",
        leaves: "OOM on writes, PING and reads go on",
        live: false,
    },
];

/// Keys that a server gets before its files are damaged: an empty one has nothing to lose.
const KEYS: u64 = 200;

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// No such service, or one that does not run.
pub async fn prepare(
    system: &System,
    variant: &str,
    service: Option<&str>,
    request: &Request,
    id: &str,
) -> Result<Option<Prepared>> {
    if variant == "detached" {
        return network_partition::prepare_detached(system, service)
            .await
            .map(Some);
    }
    let (service, container) = victim(system, service, |s| matches!(s.kind, ServiceKind::Redis(_))).await?;
    let container = container.name;
    let signal = |signal: &str| Harm::Signal {
        container: container.clone(),
        signal: signal.into(),
    };
    let harm = match variant {
        "stopped" => Harm::Stop {
            container: container.clone(),
        },
        "killed" => signal("SIGKILL"),
        "frozen" => signal("SIGSTOP"),
        "save-failed" => {
            let owner = data_owner(system, &container).await?;
            let harm = RedisHarm::FailingSave {
                container: container.clone(),
            };
            let mend = RedisMend::Save {
                container: container.clone(),
                owner,
            };
            return Ok(Some(Prepared::of_redis(
                service,
                container,
                vec![harm],
                vec![mend],
            )));
        }
        "rdb-checksum" | "rdb-damaged" | "aof-damaged" | "aof-base" | "aof-manifest" | "wrong-version" => {
            return damaged_files(system, variant, service, container, id)
                .await
                .map(Some);
        }
        "replica" => {
            return Ok(Some(Prepared::of_redis(
                service,
                container,
                vec![RedisHarm::Replica],
                vec![RedisMend::Primary],
            )));
        }
        "busy-script" => {
            let seconds = request.ttl.as_secs().max(1);
            return Ok(Some(Prepared::of_redis(
                service,
                container,
                vec![RedisHarm::BusyScript { seconds }],
                vec![RedisMend::EndScript],
            )));
        }
        "too-few-replicas" => {
            let name = "min-replicas-to-write";
            let was = value_of(system, &service, name).await?;
            return Ok(Some(setting(service, container, name, "1".into(), was)));
        }
        "memory-full" => {
            let memory = info(system, &service).await?.memory;
            evicts_nothing(&service, &memory.policy)?;
            let half = (memory.used / 2).max(1).to_string();
            return Ok(Some(setting(
                service,
                container,
                "maxmemory",
                half,
                memory.max.to_string(),
            )));
        }
        _ => return Ok(None),
    };
    Ok(Some(Prepared {
        target: format!("container {container} of service {service}"),
        service,
        harms: vec![harm],
        mends: vec![Mend::Run {
            container: container.clone(),
        }],
        container,
    }))
}

/// A setting is `value`, and `was` again afterwards.
fn setting(service: String, container: String, name: &str, value: String, was: String) -> Prepared {
    let name = name.to_owned();
    Prepared::of_redis(
        service,
        container,
        vec![RedisHarm::Config {
            name: name.clone(),
            value,
        }],
        vec![RedisMend::Config { name, value: was }],
    )
}

async fn damaged_files(
    system: &System,
    variant: &str,
    service: String,
    container: String,
    id: &str,
) -> Result<Prepared> {
    let files = files_of(system, &service, id).await?;
    // What it loads has the version: of an append-only file, the base.
    let kind = match (variant, files.append_only) {
        ("wrong-version", true) => "aof-version",
        ("wrong-version", false) => "rdb-version",
        _ => variant,
    };
    if kind.starts_with("aof") != files.append_only {
        let (has, loads) = if files.append_only {
            ("on", "its snapshot is not what it loads")
        } else {
            ("off", "there is nothing to damage")
        };
        return Err(Error::new(
            Kind::Refused,
            format!("the append-only file of {service} is {has}: {loads}"),
        )
        .untouched("everything"));
    }
    let prefix = format!("drctl:{id}:");
    let harms = vec![
        RedisHarm::Fill {
            prefix: prefix.clone(),
            at_most: KEYS,
            evict_first: None,
        },
        RedisHarm::Files {
            container: container.clone(),
            kind: kind.to_owned(),
            files: files.clone(),
            fault: id.to_owned(),
        },
    ];
    let mut prepared = Prepared::of_redis(service.clone(), container.clone(), harms, Vec::new());
    let of_redis = |mend| Mend::Redis {
        service: service.clone(),
        mend,
    };
    prepared.target = format!("the files of the Redis server {service}");
    prepared.mends = vec![
        of_redis(RedisMend::Files {
            container: container.clone(),
            files,
            fault: id.to_owned(),
        }),
        Mend::Run { container },
        of_redis(RedisMend::Delete {
            database: 0,
            pattern: format!("{prefix}*"),
        }),
    ];
    Ok(prepared)
}
