//! How a Redis server is: its container, whether it lets us in, what it says of itself, and,
//! when asked for, whether a write really works.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::redis::{Client, ErrorKind, RedisError, RedisInfo};
use crate::system::RedisServer;
use crate::workload::ContainerInfo;

/// Beginning of the key that the write test writes.
pub const PROBE_KEY_PREFIX: &str = "drctl:probe:";
/// Seconds after which that key ends by itself, should we not.
const PROBE_KEY_LIFE: u32 = 5;

/// Clients up to which they are listed: a thousand take the server less than a millisecond or two.
const MOST_CLIENTS: u64 = 1_000;

/// What was observed of a Redis server. A question that failed is a fact, too.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedisState {
    /// The service in the runbook.
    pub service: String,
    /// When it was looked at.
    pub taken_at: Timestamp,
    /// Its container.
    pub container: ContainerInfo,
    /// Whether a connection could be had, with the password.
    pub connect: Answer,
    /// `PING`; `None` without a connection. It lies when memory is full.
    pub ping: Option<Answer>,
    /// `INFO`.
    pub info: Option<RedisInfo>,
    /// Why there is no `info` although there was a connection.
    pub info_failure: Option<RedisFailure>,
    /// A key written, read back and deleted; `None` when that was not asked for, or there was
    /// no connection.
    pub write: Option<Answer>,
    /// Why no write gets through although everything is answered, as far as that can be seen
    /// without writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes_held: Option<WritesHeld>,
}

/// What a server was told to do with writes, and does while it answers all else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WritesHeld {
    /// It refuses them (`NOREPLICAS`).
    #[serde(rename_all = "kebab-case")]
    TooFewReplicas {
        /// `min-replicas-to-write`.
        needed: u64,
        /// Replicas that follow closely.
        good: u64,
    },
    /// It lets them wait.
    #[serde(rename_all = "kebab-case")]
    Paused {
        /// What tells so.
        sign: String,
    },
}

/// How a question ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It was answered, after this many milliseconds.
    Good(u64),
    /// It was not, or with an error.
    Failed(RedisFailure),
}

/// An error of [`crate::redis`] in a form that can be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedisFailure {
    /// What it means.
    pub kind: ErrorKind,
    /// In words; the server's own where it spoke.
    pub text: String,
}

impl From<&RedisError> for RedisFailure {
    fn from(e: &RedisError) -> Self {
        Self {
            kind: e.kind(),
            text: e.to_string(),
        }
    }
}

impl Answer {
    fn of<T>(result: &Result<T, RedisError>, took: Duration) -> Self {
        match result {
            Ok(_) => Self::Good(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            Err(e) => Self::Failed(e.into()),
        }
    }

    /// True when it was answered.
    #[must_use]
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Good(_))
    }

    /// Why it was not.
    #[must_use]
    pub fn failure(&self) -> Option<&RedisFailure> {
        match self {
            Self::Good(_) => None,
            Self::Failed(failure) => Some(failure),
        }
    }
}

impl RedisState {
    /// The first thing that failed, in the order in which a user meets it.
    #[must_use]
    pub fn first_failure(&self) -> Option<&RedisFailure> {
        let answers = [Some(&self.connect), self.ping.as_ref(), self.write.as_ref()];
        answers
            .into_iter()
            .flatten()
            .find_map(Answer::failure)
            .or(self.info_failure.as_ref())
    }

    /// True when something failed with this meaning.
    #[must_use]
    pub fn failed_with(&self, kind: ErrorKind) -> bool {
        let answers = [Some(&self.connect), self.ping.as_ref(), self.write.as_ref()];
        answers
            .into_iter()
            .flatten()
            .filter_map(Answer::failure)
            .chain(self.info_failure.as_ref())
            .any(|f| f.kind == kind)
    }
}

/// Looks at a server. Read-only unless `write_test`: that writes one small key of its own,
/// deletes it, and has it end after five seconds whatever happens. On a server that is full
/// and evicts, even one small key may cost others.
///
/// Ends after a few times the spec's deadline at the latest: two of them for a server that
/// does not answer.
pub async fn observe(server: &RedisServer, write_test: bool) -> RedisState {
    let begun = Instant::now();
    let attempt = server.connect().await;
    let mut state = RedisState {
        service: server.service.clone(),
        taken_at: Timestamp::now(),
        container: server.container.clone(),
        connect: Answer::of(&attempt, begun.elapsed()),
        ping: None,
        info: None,
        info_failure: None,
        write: None,
        writes_held: None,
    };
    let Ok(client) = attempt else { return state };
    let begun = Instant::now();
    let ping = client.ping().await;
    state.ping = Some(Answer::of(&ping, begun.elapsed()));
    if ping.is_err_and(|e| e.kind().is_unreachable()) {
        return state;
    }
    match client.info().await {
        Ok(info) => {
            state.writes_held = writes_held(&client, &info).await;
            state.info = Some(info);
        }
        Err(e) => state.info_failure = Some((&e).into()),
    }
    if write_test {
        let begun = Instant::now();
        let wrote = write_read_delete(&client).await;
        state.write = Some(Answer::of(&wrote, begun.elapsed()));
    }
    state
}

/// Whether writes are refused or held back, asked without one. Each further question is put only
/// where `INFO` gives reason to; one that is refused tells nothing.
async fn writes_held(client: &Client, info: &RedisInfo) -> Option<WritesHeld> {
    if let Some(good) = info
        .replication
        .good_replicas
        .filter(|_| !info.replication.replica)
    {
        let setting = client.config_get("min-replicas-to-write").await.ok();
        let needed = setting.and_then(|all| all.get("min-replicas-to-write")?.parse().ok());
        // That the number is told at all means that one is needed at least.
        let needed = needed.unwrap_or(1);
        if good < needed {
            return Some(WritesHeld::TooFewReplicas { needed, good });
        }
    }
    if let Some(actions) = &info.clients.paused {
        return Some(WritesHeld::Paused {
            sign: format!("paused_actions:{actions}"),
        });
    }
    if info.clients.blocked == 0 || info.clients.connected > MOST_CLIENTS {
        return None;
    }
    let held = client.held_back().await.ok()?;
    let (command, clients) = held.iter().max_by_key(|(_, n)| **n)?;
    Some(WritesHeld::Paused {
        sign: format!("{clients} clients wait with {}", command.to_uppercase()),
    })
}

/// What PING does not tell: whether a value can be stored, read back and removed.
///
/// # Errors
/// [`RedisError`]; another value than the one written is `Unexpected`.
pub async fn write_read_delete(client: &Client) -> Result<(), RedisError> {
    // Two keyed hashes with random keys: nobody else's key has this name.
    let random = || RandomState::new().hash_one(std::process::id());
    let key = format!("{PROBE_KEY_PREFIX}{:016x}", random());
    let value = format!("{:016x}", random());
    let mut set = ::redis::cmd("SET");
    set.arg(&key).arg(&value).arg("EX").arg(PROBE_KEY_LIFE).arg("NX");
    client.ask::<()>(&set).await?;
    let read: Option<Vec<u8>> = client.ask(::redis::cmd("GET").arg(&key)).await?;
    let removed: u64 = client.ask(::redis::cmd("DEL").arg(&key)).await?;
    if read.as_deref() == Some(value.as_bytes()) && removed == 1 {
        return Ok(());
    }
    Err(RedisError::Unexpected {
        address: client.address().to_owned(),
        what: "GET of a value just written".into(),
        cause: match read {
            None => "it is gone".into(),
            Some(_) => format!("it is another one, or was gone at the end ({removed} removed)"),
        },
    })
}
