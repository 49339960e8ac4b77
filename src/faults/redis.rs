//! What the faults of a running Redis consist of, and how each is put right.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::redis_files;
use crate::error::{Error, Kind, Result};
use crate::plan::RedisFiles;
use crate::redis::{Client, ErrorKind, RedisError, unlink_matching};
use crate::system::System;

/// Written inside the server: what fills it does not travel. Tells how many were written
/// before one was refused, or -1. With a lifetime a key looks unused for a month, which only
/// RESTORE can say: it goes before every other where the server evicts.
const SCRIPT: &str = "
local payload
for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local key = KEYS[1] .. n
  local done = redis.pcall('SET', key, string.rep('x', tonumber(ARGV[3])))
  if ARGV[4] ~= '0' and not (type(done) == 'table' and done['err']) then
    payload = payload or redis.call('DUMP', key)
    done = redis.pcall('RESTORE', key, ARGV[4], payload, 'REPLACE', 'IDLETIME', '2592000')
  end
  if type(done) == 'table' and done['err'] then return n - tonumber(ARGV[1]) end
end
return -1";
/// Keeps the server busy for so many seconds, and writes nothing. Where the clock stands still in a
/// script the rounds end it: a server goes some hundred thousand in a second.
const BUSY: &str = "
local life = tonumber(ARGV[1])
local first, rounds = redis.call('TIME')[1], 0
while redis.call('TIME')[1] - first < life and rounds < life * 1000000 do rounds = rounds + 1 end
return rounds";
/// Keys written at once.
const BATCH: u64 = 500;
/// How long filling a server or a failing save may take.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// How long a server that was started a moment ago may take to answer.
const STARTING: Duration = Duration::from_secs(10);
/// Bytes of a value that fills memory.
pub(super) const VALUE: u64 = 16 << 10;

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
        /// Their life, where they are the first to be evicted.
        evict_first: Option<Duration>,
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
    /// A script that does nothing, for so many seconds, and lets nobody else do anything.
    BusyScript {
        /// Its life.
        seconds: u64,
    },
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
    /// It runs no script that keeps it from everything else.
    EndScript,
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

pub(super) fn failed(what: &str) -> impl FnOnce(RedisError) -> Error {
    let what = what.to_owned();
    move |e| Error::new(Kind::Internal, format!("{what} failed")).because(&e)
}

pub(super) async fn client(system: &System, service: &str, database: u32) -> Result<Client> {
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

/// What a parameter is.
///
/// # Errors
/// A server that does not answer, or does not know it.
pub(super) async fn value_of(system: &System, service: &str, name: &str) -> Result<String> {
    let server = system.redis(service).await?;
    let asked = async { server.connect().await?.config_get(name).await };
    let mut all = asked.await.map_err(failed("CONFIG GET"))?;
    all.remove(name).ok_or_else(|| {
        Error::new(Kind::Refused, format!("{service} does not know {name}")).untouched("everything")
    })
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
        RedisHarm::Fill {
            prefix,
            at_most,
            evict_first,
        } => fill(system, service, prefix, *at_most, *evict_first).await,
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
        RedisHarm::BusyScript { seconds } => busy_script(system, service, *seconds).await,
        RedisHarm::Files {
            container,
            kind,
            files,
            fault,
        } => redis_files::damage(system, service, container, kind, files, fault).await,
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

async fn fill(
    system: &System,
    service: &str,
    prefix: &str,
    at_most: u64,
    evict_first: Option<Duration>,
) -> Result<String> {
    let life = evict_first.map_or(0, |life| life.as_millis().max(1));
    let client = client(system, service, 0).await?;
    let end = Instant::now() + LIMIT;
    let mut written = 0;
    while written < at_most && Instant::now() < end {
        let mut command = ::redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(prefix);
        command
            .arg(written)
            .arg(at_most.min(written + BATCH) - 1)
            .arg(VALUE)
            .arg(life.to_string());
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
            // It may have been started a moment ago.
            drop(client(system, service, *database).await?);
            let server = system.redis(service).await?;
            let gone = unlink_matching(&server.spec.to_database(*database), pattern, LIMIT)
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
        } => redis_files::restore(system, service, container, files, fault).await,
        RedisMend::EndScript => end_script(system, service).await,
    }
}

/// Runs a script that does nothing until its time is over, and waits until the server says so to
/// others.
async fn busy_script(system: &System, service: &str, seconds: u64) -> Result<String> {
    let client = client(system, service, 0).await?;
    let mut command = ::redis::cmd("EVAL");
    command.arg(BUSY).arg(0).arg(seconds);
    match client
        .ask_within::<u64>(Duration::from_millis(500), &command)
        .await
    {
        // It runs on without the client that has sent it.
        Err(e) if e.is(ErrorKind::Timeout) => {}
        Err(e) => return Err(failed("EVAL")(e)),
        Ok(_) => {
            return Err(Error::new(
                Kind::VerifyFailed,
                format!("the script of {service} has ended at once: the fault has missed"),
            ));
        }
    }
    drop(client);
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if is_busy(system, service).await? {
            return Ok(format!("{service} runs a script and nothing else"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(Error::new(
        Kind::VerifyFailed,
        format!("{service} does not call itself busy: the fault has missed"),
    ))
}

/// Whether it refuses others for a script.
async fn is_busy(system: &System, service: &str) -> Result<bool> {
    let server = system.redis(service).await?;
    let asked = async { Client::connect(&server.spec).await?.ping().await };
    Ok(asked.await.is_err_and(|e| e.is(ErrorKind::Busy)))
}

/// Ends the script, where the server is still busy. Which one runs it does not tell: only a
/// script that has written nothing is ended, and that can be run again.
async fn end_script(system: &System, service: &str) -> Result<Option<String>> {
    if !is_busy(system, service).await? {
        return Ok(None);
    }
    let server = system.redis(service).await?;
    let ended = async { Client::connect(&server.spec).await?.kill_script().await };
    let ended = ended.await.map_err(failed("SCRIPT KILL"))?;
    Ok(ended.then(|| format!("the script that {service} ran was ended")))
}
