//! What the faults of a running Redis consist of, and how each is put right.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::{Error, Kind, Result};
use crate::plan::RedisFiles;
use crate::probe::redis_files;
use crate::redis::{Client, ErrorKind, RedisError};
use crate::system::System;
use crate::workload::{HelperSpec, WorkloadError};

const FILES: &str = include_str!("redis_files.sh");
/// Written inside the server: what fills it does not travel. Tells how many were written
/// before one was refused, or -1.
const SCRIPT: &str = "
for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local done = redis.pcall('SET', KEYS[1] .. n, string.rep('x', tonumber(ARGV[3])))
  if type(done) == 'table' and done['err'] then return n - tonumber(ARGV[1]) end
end
return -1";
/// Keys written at once.
const BATCH: u64 = 500;
/// How long filling a server or a failing save may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a server that was started a moment ago may take to answer.
const STARTING: Duration = Duration::from_secs(10);
/// Bytes of a value that fills memory.
const VALUE: usize = 16 << 10;

/// One effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisHarm {
    /// `CONFIG SET`.
    Config {
        /// Parameter.
        name: String,
        /// Value.
        value: String,
    },
    /// Keys `PREFIX0`, `PREFIX1` … until a write is refused, or so many.
    Fill {
        /// What the keys begin with.
        prefix: String,
        /// At most so many.
        at_most: u64,
    },
    /// Members `PREFIX0` … of a set; with an owner's key each when `owner_prefix` is given.
    Members {
        /// Database.
        database: u32,
        /// The set.
        index: String,
        /// What the members begin with.
        prefix: String,
        /// How many.
        count: u64,
        /// What stands before a member's name in its owner's key, and its life in seconds.
        owner: Option<(String, u64)>,
    },
    /// A save that fails: the data directory belongs to root meanwhile.
    FailingSave {
        /// Container.
        container: String,
    },
    /// `REPLICAOF` a server that is not there.
    Replica,
    /// Has it save, or write its log anew, stops it, damages its files and starts it.
    Files {
        /// Container.
        container: String,
        /// Which damage, for the script.
        kind: String,
        /// Where the files are.
        files: RedisFiles,
        /// The fault's identity.
        fault: String,
    },
}

/// How one effect is put right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RedisMend {
    /// The parameter has this value.
    #[serde(rename_all = "kebab-case")]
    Config {
        /// Parameter.
        name: String,
        /// Value.
        value: String,
    },
    /// No key matches the pattern.
    #[serde(rename_all = "kebab-case")]
    Delete {
        /// Database.
        database: u32,
        /// As in `SCAN MATCH`.
        pattern: String,
    },
    /// The set has no member that matches the pattern.
    #[serde(rename_all = "kebab-case")]
    RemoveMembers {
        /// Database.
        database: u32,
        /// The set.
        index: String,
        /// As in `SSCAN MATCH`.
        pattern: String,
    },
    /// The last save has succeeded.
    #[serde(rename_all = "kebab-case")]
    Save {
        /// Container.
        container: String,
        /// `uid:gid` of the data directory.
        owner: String,
    },
    /// It is a primary.
    Primary,
    /// The files are as they were, unless others have taken their place.
    #[serde(rename_all = "kebab-case")]
    Files {
        /// Container.
        container: String,
        /// Where they are.
        files: RedisFiles,
        /// The fault's identity.
        fault: String,
    },
}

fn failed(what: &str) -> impl FnOnce(RedisError) -> Error {
    let what = what.to_owned();
    move |e| Error::new(Kind::Internal, format!("{what} failed")).because(&e)
}

async fn client(system: &System, service: &str, database: u32) -> Result<Client> {
    let end = Instant::now() + STARTING;
    loop {
        // Resolved anew each time: a container gets a new address when it is started.
        let server = system.redis(service).await?;
        let ready = async {
            let client = Client::connect(&server.spec.to_database(database)).await?;
            client.ask::<u64>(&::redis::cmd("DBSIZE")).await?;
            Ok::<_, RedisError>(client)
        };
        match ready.await {
            Ok(client) => return Ok(client),
            // It was started a moment ago, or is loading.
            Err(e) if Instant::now() < end && (e.kind().is_unreachable() || e.is(ErrorKind::Loading)) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(e) => return Err(failed(&format!("connecting to {service}"))(e)),
        }
    }
}

/// `uid:gid` of a container's data directory.
///
/// # Errors
/// The engine's trouble.
pub async fn data_owner(system: &System, container: &str) -> Result<String> {
    let out = system
        .docker
        .exec(
            container,
            None,
            &["stat", "-c", "%u:%g", "/data"],
            Duration::from_secs(10),
        )
        .await?;
    Ok(out.stdout.trim().to_owned())
}

async fn chown(system: &System, container: &str, owner: &str) -> Result<()> {
    let out = system
        .docker
        .exec(
            container,
            Some("0"),
            &["chown", owner, "/data"],
            Duration::from_secs(10),
        )
        .await?;
    if out.exit_code == 0 {
        Ok(())
    } else {
        Err(Error::new(
            Kind::Internal,
            format!(
                "the data directory of {container} could not be given to {owner}: {}",
                out.stderr.trim()
            ),
        ))
    }
}

/// Does one effect; says what was seen.
///
/// # Errors
/// The server's or the engine's trouble.
pub async fn apply(system: &System, service: &str, harm: &RedisHarm) -> Result<String> {
    match harm {
        RedisHarm::Config { name, value } => {
            let client = client(system, service, 0).await?;
            client
                .config_set(name, value)
                .await
                .map_err(failed("CONFIG SET"))?;
            Ok(format!("{name} of {service} is {value}"))
        }
        RedisHarm::Fill { prefix, at_most } => fill(system, service, prefix, *at_most).await,
        RedisHarm::Members {
            database,
            index,
            prefix,
            count,
            owner,
        } => {
            let client = client(system, service, *database).await?;
            for n in 0..*count {
                let member = format!("{prefix}{n}");
                if let Some((owner_prefix, seconds)) = owner {
                    let mut set = ::redis::cmd("SET");
                    set.arg(format!("{owner_prefix}{member}"))
                        .arg(1)
                        .arg("EX")
                        .arg(seconds);
                    client.ask::<()>(&set).await.map_err(failed("SET"))?;
                }
                let mut add = ::redis::cmd("SADD");
                add.arg(index).arg(member);
                client.ask::<u64>(&add).await.map_err(failed("SADD"))?;
            }
            if let Some((_, seconds)) = owner.as_ref().filter(|(_, s)| *s < 10) {
                // Until the last of them has ended by its lifetime.
                tokio::time::sleep(Duration::from_millis(seconds * 1000 + 200)).await;
            }
            Ok(format!("{count} members were added to {index}"))
        }
        RedisHarm::FailingSave { container } => {
            let owner = data_owner(system, container).await?;
            chown(system, container, "0:0").await?;
            let failing = fail_a_save(system, service).await;
            // Whatever came of it: only the memory of the failure is to stay.
            chown(system, container, &owner).await?;
            failing
        }
        RedisHarm::Replica => {
            let client = client(system, service, 0).await?;
            client
                .ask::<()>(::redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1))
                .await
                .map_err(failed("REPLICAOF"))?;
            Ok(format!("{service} is a replica of nobody"))
        }
        RedisHarm::Files {
            container,
            kind,
            files,
            fault,
        } => damage(system, service, container, kind, files, fault).await,
    }
}

/// Where the server's files are; for a fault that is to damage them.
///
/// # Errors
/// The engine's trouble, or an image in which they cannot be looked at.
pub async fn files_of(system: &System, service: &str, fault: &str) -> Result<RedisFiles> {
    let server = system.redis(service).await?;
    redis_files::look(system, &server.container, fault, LIMIT)
        .await
        .map(|seen| seen.files)
        .map_err(|e| {
            Error::new(Kind::Refused, format!("the files of {service}: {e}")).untouched("everything")
        })
}

async fn on_files(
    system: &System,
    container: &str,
    files: &RedisFiles,
    fault: &str,
    arguments: &[&str],
) -> Result<String> {
    let info = system.docker.inspect(container).await?;
    let mut argv = vec!["/bin/sh", "-c", FILES, "redis-files"];
    argv.extend_from_slice(arguments);
    let deployment = system.deployment();
    let mut spec = HelperSpec::new(deployment, fault, "fault-redis-files", &info.image_id, &argv);
    spec.volumes_from = Some((info.id, false));
    spec.env = [
        ("DIR", files.directory.clone()),
        ("SNAPSHOT", files.snapshot.clone()),
        ("ENTRY", files.append_entry.clone()),
        ("NAME", files.append_name.clone()),
        ("SAVED", format!(".drctl-{fault}")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let output = system.docker.run_helper(&spec, LIMIT).await?;
    if output.exit_code != 0 {
        return Err(Error::new(
            Kind::FailedChanged,
            format!("the files of {container}: {}", output.last_words()),
        ));
    }
    Ok(output.stdout.trim().to_owned())
}

async fn damage(
    system: &System,
    service: &str,
    container: &str,
    kind: &str,
    files: &RedisFiles,
    fault: &str,
) -> Result<String> {
    let client = client(system, service, 0).await?;
    let written = if files.append_only {
        "BGREWRITEAOF"
    } else {
        "BGSAVE"
    };
    client
        .ask::<String>(&::redis::cmd(written))
        .await
        .map_err(failed(written))?;
    let end = Instant::now() + LIMIT;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let state = client.info().await.map_err(failed("INFO"))?.persistence;
        if !state.saving && !state.aof_rewriting {
            break;
        }
        if Instant::now() >= end {
            return Err(Error::new(
                Kind::FailedChanged,
                format!(
                    "{service} has not written its data after {}",
                    crate::event::seconds(LIMIT)
                ),
            ));
        }
    }
    system
        .docker
        .stop(container, system.runbook.deadlines.stop)
        .await?;
    on_files(system, container, files, fault, &["damage", kind]).await?;
    system.docker.start(container).await?;
    // It must not come up: that is the fault.
    let end = Instant::now() + LIMIT;
    loop {
        let now = system.docker.inspect(container).await?;
        if !now.is_running() || now.restart_count > 0 {
            return Ok(format!("{service} cannot load its files"));
        }
        if Instant::now() >= end {
            return Err(Error::new(
                Kind::FailedChanged,
                format!("{service} has started with damaged files: the fault has missed"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn fail_a_save(system: &System, service: &str) -> Result<String> {
    let client = client(system, service, 0).await?;
    let end = Instant::now() + LIMIT;
    // A save of before may still be under way.
    let _ = client.bgsave().await;
    loop {
        let state = client.info().await.map_err(failed("INFO"))?.persistence;
        if !state.saving && !state.last_save_ok {
            return Ok(format!("a save of {service} has failed"));
        }
        if !state.saving {
            let _ = client.bgsave().await;
        }
        if Instant::now() >= end {
            return Err(Error::new(
                Kind::VerifyFailed,
                format!("{service} goes on saving without an error: the fault has missed"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn fill(system: &System, service: &str, prefix: &str, at_most: u64) -> Result<String> {
    let client = client(system, service, 0).await?;
    let end = Instant::now() + LIMIT;
    let mut written = 0;
    while written < at_most && Instant::now() < end {
        let mut command = ::redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(prefix);
        command
            .arg(written)
            .arg(at_most.min(written + BATCH) - 1)
            .arg(VALUE);
        match client.ask::<i64>(&command).await {
            Ok(-1) => written += BATCH.min(at_most - written),
            Ok(refused) => {
                written += u64::try_from(refused).unwrap_or_default();
                break;
            }
            // A script that writes is refused as a whole once memory is full.
            Err(e) if e.is(ErrorKind::OutOfMemory) => break,
            Err(e) => return Err(failed("filling the memory")(e)),
        }
    }
    Ok(format!("{written} keys like {prefix}* were written"))
}

/// Puts one effect right; `None` when there was nothing to do.
///
/// # Errors
/// The server's or the engine's trouble.
pub async fn put_right(system: &System, service: &str, mend: &RedisMend) -> Result<Option<String>> {
    match mend {
        RedisMend::Config { name, value } => {
            let client = client(system, service, 0).await?;
            let now = client.config_get(name).await.map_err(failed("CONFIG GET"))?;
            if now.get(name) == Some(value) {
                return Ok(None);
            }
            client
                .config_set(name, value)
                .await
                .map_err(failed("CONFIG SET"))?;
            Ok(Some(format!("{name} of {service} is {value} again")))
        }
        RedisMend::Delete { database, pattern } => {
            let client = client(system, service, *database).await?;
            let gone = client
                .unlink_matching(pattern, None, LIMIT, |_| {})
                .await
                .map_err(failed("deleting the fault's keys"))?;
            Ok((gone.keys > 0).then(|| format!("{} keys like {pattern} were deleted", gone.keys)))
        }
        RedisMend::RemoveMembers {
            database,
            index,
            pattern,
        } => {
            let client = client(system, service, *database).await?;
            let (mut cursor, mut gone) = (0_u64, 0_u64);
            loop {
                let mut scan = ::redis::cmd("SSCAN");
                scan.arg(index)
                    .arg(cursor)
                    .arg("MATCH")
                    .arg(pattern)
                    .arg("COUNT")
                    .arg(BATCH);
                let (next, members): (u64, Vec<Vec<u8>>) =
                    client.ask(&scan).await.map_err(failed("SSCAN"))?;
                if !members.is_empty() {
                    let mut remove = ::redis::cmd("SREM");
                    remove.arg(index).arg(&members);
                    gone += client.ask::<u64>(&remove).await.map_err(failed("SREM"))?;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
            Ok((gone > 0).then(|| format!("{gone} members of {index} were removed")))
        }
        RedisMend::Save { container, owner } => {
            if data_owner(system, container).await? != *owner {
                chown(system, container, owner).await?;
            }
            let client = client(system, service, 0).await?;
            let ask = async || client.info().await.map_err(failed("INFO"));
            if ask().await?.persistence.last_save_ok {
                return Ok(None);
            }
            client.bgsave().await.map_err(failed("BGSAVE"))?;
            let end = Instant::now() + LIMIT;
            while Instant::now() < end {
                let state = ask().await?.persistence;
                if !state.saving && state.last_save_ok {
                    return Ok(Some(format!("{service} has saved its data")));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(Error::new(
                Kind::Internal,
                format!("{service} cannot save its data"),
            ))
        }
        RedisMend::Primary => {
            let client = client(system, service, 0).await?;
            let info = client.info().await.map_err(failed("INFO"))?;
            if !info.replication.replica {
                return Ok(None);
            }
            client
                .ask::<()>(::redis::cmd("REPLICAOF").arg("NO").arg("ONE"))
                .await
                .map_err(failed("REPLICAOF NO ONE"))?;
            Ok(Some(format!("{service} is a primary again")))
        }
        RedisMend::Files {
            container,
            files,
            fault,
        } => {
            match system.docker.inspect(container).await {
                // Created anew since, it may have other volumes: those are not the fault's.
                Err(WorkloadError::NotFound { .. }) => return Ok(None),
                other => other?,
            };
            let damaged = on_files(system, container, files, fault, &["state"]).await? == "damaged";
            if damaged {
                system
                    .docker
                    .stop(container, system.runbook.deadlines.stop)
                    .await?;
            }
            on_files(system, container, files, fault, &["restore"]).await?;
            Ok(damaged.then(|| format!("the files of {service} are as they were")))
        }
    }
}
