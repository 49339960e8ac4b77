//! A connection in which nothing waits for ever and every error reply has its kind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Cmd, FromRedisValue, Pipeline, RedisConnectionInfo, Value, cmd, pipe};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, BufReader};
use tokio::net::{TcpStream, UnixStream};

use super::error::{ErrorKind, RedisError};
use super::info::RedisInfo;
use super::keys::{Key, pattern_of};

/// Elements that `MEMORY USAGE` looks at in a collection.
const USAGE_SAMPLES: u32 = 5;

/// Where and how to connect.
#[derive(Debug, Clone)]
pub struct ConnectSpec {
    /// Address or name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Directory with a socket `.s.PGSQL.PORT` that leads there, where TCP does not.
    pub socket_dir: Option<PathBuf>,
    /// Password of the default user.
    pub password: Option<SecretString>,
    /// A server without a password is as good: the password is a guess, nobody has said that
    /// there is one.
    pub password_optional: bool,
    /// Number of the database.
    pub database: u32,
    /// Bounds the connection, and is the default for each command.
    pub deadline: Duration,
}

impl ConnectSpec {
    /// The same, to another database.
    #[must_use]
    pub fn to_database(&self, database: u32) -> Self {
        Self {
            database,
            ..self.clone()
        }
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// A part of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanBatch {
    /// Where to go on; 0 at the end.
    pub cursor: u64,
    /// Keys. One may come twice in a scan, when the server resizes its table meanwhile.
    pub keys: Vec<Key>,
}

/// What is known of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFacts {
    /// `string`, `hash`, `set` …; `none` when it has gone meanwhile.
    pub kind: String,
    /// What is left of its life; `None` for a key without an end.
    pub ttl: Option<Duration>,
    /// `MEMORY USAGE`, extrapolated by the server for large collections; `None` when it has
    /// gone or the user may not ask.
    pub bytes: Option<u64>,
}

/// An entry of the slow log. Arguments may be anybody's data and are not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SlowCommand {
    /// When it ran.
    pub at: Option<Timestamp>,
    /// How long it kept the server from everything else, in microseconds.
    pub microseconds: u64,
    /// The command's name, with the pattern of its first argument: `HGETALL session:*`.
    pub command: String,
    /// Number of arguments.
    pub arguments: usize,
    /// `host:port` of the client.
    pub client: String,
}

/// An open connection. The driver's background task ends with it.
#[derive(Debug)]
pub struct Client {
    connection: MultiplexedConnection,
    address: String,
    pub(super) deadline: Duration,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    /// Connects, authenticates and selects the database.
    ///
    /// A server that is loading lets us in; so does one that wants a password and got none:
    /// the first command then tells.
    ///
    /// # Errors
    /// [`RedisError`]; a server that accepts and never answers is a `Timeout`.
    pub async fn connect(spec: &ConnectSpec) -> Result<Self, RedisError> {
        let client = Self::open(spec).await?;
        match client.introduce(spec).await {
            Ok(()) => Ok(client),
            // A server that is full says so and hangs up, perhaps before we have asked.
            Err(e) if e.is(ErrorKind::Broken) => Err(greeting_error(spec).await.unwrap_or(e)),
            Err(e) => Err(e),
        }
    }

    async fn open(spec: &ConnectSpec) -> Result<Self, RedisError> {
        let address = spec.address();
        let stream = within(spec.deadline, &address, "the connection", stream(spec))
            .await?
            .map_err(|e| RedisError::NoConnection {
                address: address.clone(),
                cause: e.to_string(),
            })?;
        // The driver keeps only a phrase of its own of a refused AUTH: we send it ourselves,
        // and it has nothing to set up. Deadlines are ours, too.
        let settings = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let setup = MultiplexedConnection::new_with_config(&settings, stream, config);
        let (connection, driver) = within(spec.deadline, &address, "the connection", setup)
            .await?
            .map_err(|e| RedisError::from_driver(&e, &address, "the connection"))?;
        Ok(Self {
            connection,
            address,
            deadline: spec.deadline,
            driver: tokio::spawn(driver),
        })
    }

    /// AUTH and SELECT. Every server answers these two, whatever state it is in; only that a busy
    /// one refuses SELECT, and lets a script be ended.
    async fn introduce(&self, spec: &ConnectSpec) -> Result<(), RedisError> {
        if let Some(password) = &spec.password {
            match self.ask::<()>(cmd("AUTH").arg(password.expose_secret())).await {
                Err(e) if spec.password_optional && e.is(ErrorKind::NoPasswordSet) => {}
                other => other?,
            }
        }
        match self.ask::<()>(cmd("SELECT").arg(spec.database)).await {
            Err(e)
                if e.is(ErrorKind::PasswordNeeded)
                    || (e.is(ErrorKind::NotPermitted) || e.is(ErrorKind::Busy)) && spec.database == 0 =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Any command, within the connection's default deadline.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        self.ask_within(self.deadline, command).await
    }

    /// Any command that may take longer (or must be shorter) than the default. After a
    /// time-out the server may still do it.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn ask_within<T: FromRedisValue>(
        &self,
        deadline: Duration,
        command: &Cmd,
    ) -> Result<T, RedisError> {
        let what = name_of(command);
        let mut connection = self.connection.clone();
        within(
            deadline,
            &self.address,
            &what,
            command.query_async(&mut connection),
        )
        .await?
        .map_err(|e| RedisError::from_driver(&e, &self.address, &what))
    }

    /// Several commands in one round trip; each has an answer or an error of its own.
    pub(super) async fn ask_all(
        &self,
        deadline: Duration,
        what: &str,
        commands: &mut Pipeline,
    ) -> Result<Vec<Result<Value, RedisError>>, RedisError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        commands.ignore_errors();
        let mut connection = self.connection.clone();
        let answers: Vec<::redis::RedisResult<Value>> = within(
            deadline,
            &self.address,
            what,
            commands.query_async(&mut connection),
        )
        .await?
        .map_err(|e| RedisError::from_driver(&e, &self.address, what))?;
        Ok(answers
            .into_iter()
            .map(|a| a.map_err(|e| RedisError::from_driver(&e, &self.address, what)))
            .collect())
    }

    /// `PING`. It succeeds while every write is refused for want of memory.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn ping(&self) -> Result<(), RedisError> {
        self.ask(&cmd("PING")).await
    }

    /// `INFO`. Also answered while the server loads.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn info(&self) -> Result<RedisInfo, RedisError> {
        let text: String = self.ask(&cmd("INFO")).await?;
        RedisInfo::parse(&text).ok_or_else(|| self.unexpected("INFO", "it has no version or no memory"))
    }

    /// Settings whose names match a pattern, as `CONFIG GET` gives them.
    ///
    /// # Errors
    /// [`RedisError`]; managed servers often do not know the command.
    pub async fn config_get(&self, pattern: &str) -> Result<BTreeMap<String, String>, RedisError> {
        self.ask(cmd("CONFIG").arg("GET").arg(pattern)).await
    }

    /// Changes a setting, until the next start.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn config_set(&self, name: &str, value: &str) -> Result<(), RedisError> {
        self.ask(cmd("CONFIG").arg("SET").arg(name).arg(value)).await
    }

    /// Number of keys in the connection's database.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn dbsize(&self) -> Result<u64, RedisError> {
        self.ask(&cmd("DBSIZE")).await
    }

    /// The next part of a scan; the first has the cursor 0. `count` is about how many keys
    /// the server looks at, however many of them match.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn scan(
        &self,
        cursor: u64,
        pattern: Option<&str>,
        count: u32,
    ) -> Result<ScanBatch, RedisError> {
        let (cursor, keys) = self.ask(&scan_command(cursor, pattern, count)).await?;
        Ok(ScanBatch { cursor, keys })
    }

    /// Type, time to live and memory of keys, in one round trip. Does not count as a use of
    /// them.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn key_facts(&self, keys: &[Key]) -> Result<Vec<KeyFacts>, RedisError> {
        let mut commands = pipe();
        for key in keys {
            commands.cmd("TYPE").arg(key);
            commands.cmd("PTTL").arg(key);
            commands
                .cmd("MEMORY")
                .arg("USAGE")
                .arg(key)
                .arg("SAMPLES")
                .arg(USAGE_SAMPLES);
        }
        let mut answers = self
            .ask_all(self.deadline, "TYPE, PTTL and MEMORY USAGE", &mut commands)
            .await?
            .into_iter();
        let mut facts = Vec::with_capacity(keys.len());
        while let (Some(kind), Some(ttl), Some(bytes)) = (answers.next(), answers.next(), answers.next()) {
            let ttl: i64 = self.read("PTTL", ttl?)?;
            facts.push(KeyFacts {
                kind: self.read("TYPE", kind?)?,
                ttl: u64::try_from(ttl).ok().map(Duration::from_millis),
                bytes: bytes
                    .ok()
                    .and_then(|b| ::redis::from_redis_value(b).ok().flatten()),
            });
        }
        Ok(facts)
    }

    /// `MEMORY USAGE` of one key; `None` when there is no such key.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn memory_usage(&self, key: &[u8]) -> Result<Option<u64>, RedisError> {
        let mut command = cmd("MEMORY");
        command.arg("USAGE").arg(key).arg("SAMPLES").arg(USAGE_SAMPLES);
        self.ask(&command).await
    }

    /// The newest entries of the slow log.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn slowlog(&self, entries: u32) -> Result<Vec<SlowCommand>, RedisError> {
        type Entry = (u64, i64, u64, Vec<Vec<u8>>, String, String);
        let log: Vec<Entry> = self.ask(cmd("SLOWLOG").arg("GET").arg(entries)).await?;
        Ok(log
            .into_iter()
            .map(|(_, at, microseconds, words, client, _)| SlowCommand {
                at: Timestamp::from_second(at).ok(),
                microseconds,
                command: words
                    .iter()
                    .take(2)
                    .map(|w| word(w))
                    .collect::<Vec<_>>()
                    .join(" "),
                arguments: words.len().saturating_sub(1),
                client,
            })
            .collect())
    }

    /// Ends the script or the function that runs; true where there was one.
    ///
    /// # Errors
    /// [`RedisError`]; `Unkillable` for one that has written, and nothing is done then.
    pub async fn kill_script(&self) -> Result<bool, RedisError> {
        let ended = match self.ask::<()>(cmd("SCRIPT").arg("KILL")).await {
            // It is a function that runs, which has a command of its own since version 7.
            Err(e) if e.is(ErrorKind::Busy) => self.ask::<()>(cmd("FUNCTION").arg("KILL")).await,
            other => other,
        };
        match ended {
            Ok(()) => Ok(true),
            Err(e) if e.is(ErrorKind::NotBusy) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Clients that wait with a command which never waits by itself, by its name: only a pause
    /// holds these back. The list is as long as there are clients.
    ///
    /// # Errors
    /// [`RedisError`]; managed servers often do not let us ask.
    pub async fn held_back(&self) -> Result<BTreeMap<String, u64>, RedisError> {
        let list: String = self.ask(cmd("CLIENT").arg("LIST")).await?;
        Ok(held_back(&list))
    }

    /// Starts writing an RDB file in the background. `INFO` tells how it ends.
    ///
    /// # Errors
    /// [`RedisError`], also when one is being written.
    pub async fn bgsave(&self) -> Result<(), RedisError> {
        self.ask(&cmd("BGSAVE")).await
    }

    /// When the last RDB file was written, to the second.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn lastsave(&self) -> Result<Timestamp, RedisError> {
        let seconds = self.ask(&cmd("LASTSAVE")).await?;
        Timestamp::from_second(seconds).map_err(|e| self.unexpected("LASTSAVE", &e.to_string()))
    }

    pub(super) fn read<T: FromRedisValue>(&self, what: &str, value: Value) -> Result<T, RedisError> {
        ::redis::from_redis_value(value).map_err(|e| self.unexpected(what, &e.to_string()))
    }

    fn unexpected(&self, what: &str, cause: &str) -> RedisError {
        RedisError::Unexpected {
            address: self.address.clone(),
            what: what.to_owned(),
            cause: cause.to_owned(),
        }
    }
}

/// Writes that a server works off at once (redis 7.0, commands/*.json): not all, the usual ones.
const WRITES: [&str; 24] = [
    "set", "setex", "psetex", "setnx", "mset", "getset", "append", "incr", "incrby", "decr", "del", "unlink",
    "expire", "pexpire", "hset", "hdel", "hincrby", "lpush", "rpush", "sadd", "srem", "zadd", "zrem",
    "zincrby",
];

/// From `CLIENT LIST`: the flag `b` is a client that waits, `cmd` the command that it waits with.
fn held_back(list: &str) -> BTreeMap<String, u64> {
    let mut held = BTreeMap::new();
    for line in list.lines() {
        let field = |name: &str| {
            let mut words = line.split(' ');
            words.find_map(|w| w.strip_prefix(name)?.strip_prefix('='))
        };
        let (Some(flags), Some(command)) = (field("flags"), field("cmd")) else {
            continue;
        };
        if flags.contains('b') && WRITES.contains(&command) {
            *held.entry(command.to_owned()).or_default() += 1;
        }
    }
    held
}

pub(super) fn scan_command(cursor: u64, pattern: Option<&str>, count: u32) -> Cmd {
    let mut command = cmd("SCAN");
    command.arg(cursor);
    if let Some(pattern) = pattern {
        command.arg("MATCH").arg(pattern);
    }
    command.arg("COUNT").arg(count);
    command
}

/// The command's name for an error: never an argument, which may be a secret.
fn name_of(command: &Cmd) -> String {
    match command.args_iter().next() {
        Some(::redis::Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned(),
        _ => "a command".to_owned(),
    }
}

/// One word of a slow command, bounded.
fn word(bytes: &[u8]) -> String {
    pattern_of(&bytes[..bytes.len().min(60)])
}

async fn within<F: Future>(
    deadline: Duration,
    address: &str,
    what: &str,
    work: F,
) -> Result<F::Output, RedisError> {
    tokio::time::timeout(deadline, work)
        .await
        .map_err(|_| RedisError::Timeout {
            address: address.to_owned(),
            what: what.to_owned(),
            deadline,
        })
}

/// The two kinds of connection.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

async fn stream(spec: &ConnectSpec) -> std::io::Result<Box<dyn Stream>> {
    if let Some(directory) = &spec.socket_dir {
        let socket = directory.join(format!(".s.PGSQL.{}", spec.port));
        return Ok(Box::new(UnixStream::connect(socket).await?));
    }
    if spec.host.is_empty() {
        return Err(std::io::Error::other(
            "the container is in no network that leads here",
        ));
    }
    let stream = TcpStream::connect((&*spec.host, spec.port)).await?;
    // Not for its effect on speed alone: a pipeline's last small packet waits otherwise.
    let _ = stream.set_nodelay(true);
    Ok(Box::new(stream))
}

/// What a server says unasked to a new connection before it hangs up.
async fn greeting_error(spec: &ConnectSpec) -> Option<RedisError> {
    let read = async {
        let stream = stream(spec).await.ok()?;
        let mut line = String::new();
        BufReader::new(stream.take(512)).read_line(&mut line).await.ok()?;
        line.strip_prefix('-').map(RedisError::from_reply_line)
    };
    tokio::time::timeout(spec.deadline, read).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clients_that_a_pause_holds_back_are_counted() {
        // From a Redis 7.0.15, shortened: one waits for a list as it wants to, one sleeps, one is us.
        let list = "id=7 addr=127.0.0.1:1 name= flags=b db=0 events=r cmd=set user=default\n\
                    id=8 addr=127.0.0.1:2 name= flags=b db=0 events=r cmd=set user=default\n\
                    id=9 addr=127.0.0.1:3 name=b flags=b db=0 events=r cmd=blpop user=default\n\
                    id=10 addr=127.0.0.1:4 name= flags=N db=0 events=r cmd=set user=default\n\
                    id=11 addr=127.0.0.1:5 name= flags=N db=0 events=r cmd=client|list user=default\n";
        assert_eq!(held_back(list), BTreeMap::from([("set".to_owned(), 2)]));
        assert!(held_back("").is_empty());
    }
}
