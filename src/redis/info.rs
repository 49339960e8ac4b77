//! `INFO`, reduced to what decisions rest on.

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedisInfo {
    /// `redis_version`.
    pub version: String,
    /// Another one after each start.
    pub run_id: String,
    /// Seconds since the start.
    pub uptime: u64,
    /// Memory.
    pub memory: MemoryInfo,
    /// Connections.
    pub clients: ClientsInfo,
    /// Counters since the start.
    pub stats: StatsInfo,
    /// What is on disk.
    pub persistence: PersistenceInfo,
    /// Primary or replica.
    pub replication: ReplicationInfo,
    /// Error replies since the start: code → count. `OOM` and `MISCONF` tell of refused writes
    /// that no PING shows.
    pub errors: BTreeMap<String, u64>,
    /// Databases that hold keys.
    pub keyspace: BTreeMap<u32, Keyspace>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemoryInfo {
    /// `used_memory`.
    pub used: u64,
    /// What the system sees (`used_memory_rss`).
    pub resident: u64,
    /// The most it ever was.
    pub peak: u64,
    /// Of `used`, the data (`used_memory_dataset`).
    pub dataset: u64,
    /// Of `used`, the buffers of clients.
    pub client_buffers: u64,
    /// Of `used`, what does not count against `max`: buffers for replicas and the AOF.
    pub not_counted: u64,
    /// `maxmemory`; 0 for no limit.
    pub max: u64,
    /// `maxmemory_policy`.
    pub policy: String,
    /// `mem_fragmentation_ratio`.
    pub fragmentation: f64,
    /// Memory of the host. Not the container's limit.
    pub host_total: u64,
    /// Values that are unlinked and not freed yet.
    pub pending_frees: u64,
}

/// Connections.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ClientsInfo {
    /// Now, ours included.
    pub connected: u64,
    /// `maxclients`.
    pub max: u64,
    /// Waiting in a blocking command.
    pub blocked: u64,
    /// Turned away since the start because `max` was reached.
    pub rejected: u64,
    /// `paused_actions`, where the version tells it and there is a pause: `write` or `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
}

/// Counters since the start (or since `CONFIG RESETSTAT`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StatsInfo {
    /// Keys removed to stay below `maxmemory`.
    pub evicted_keys: u64,
    /// Keys that reached their end.
    pub expired_keys: u64,
    /// Reads that found their key.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Commands per second, just now.
    pub ops_per_second: u64,
    /// All error replies.
    pub error_replies: u64,
}

/// What is on disk.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PersistenceInfo {
    /// The data is being read at start: wait, a restart begins again.
    pub loading: Option<Loading>,
    /// Changes that no RDB file has.
    pub changes_since_save: u64,
    /// The last RDB file; the start of the server when it has written none.
    pub last_save: Option<Timestamp>,
    /// `rdb_last_bgsave_status`. False also makes writes fail, with `MISCONF`.
    pub last_save_ok: bool,
    /// An RDB file is being written.
    pub saving: bool,
    /// `appendonly`.
    pub aof_enabled: bool,
    /// `aof_last_write_status`. False makes writes fail, with `MISCONF`.
    pub aof_write_ok: bool,
    /// `aof_last_bgrewrite_status`.
    pub aof_rewrite_ok: bool,
    /// The AOF is being rewritten, or will be.
    pub aof_rewriting: bool,
}

/// How far the reading at start is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Loading {
    /// Percent read.
    pub percent: f64,
    /// Seconds that are left.
    pub eta: u64,
    /// Bytes to read.
    pub bytes: u64,
}

/// Primary or replica.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ReplicationInfo {
    /// This is a replica: it refuses writes with `READONLY`.
    pub replica: bool,
    /// `host:port` of the primary, for a replica.
    pub primary: Option<String>,
    /// `master_link_status` is `up`, for a replica.
    pub link_up: Option<bool>,
    /// Replicas that are connected to it.
    pub replicas: u64,
    /// Of those, the ones that follow closely (`min_slaves_good_slaves`); told only where writes
    /// are refused for want of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good_replicas: Option<u64>,
}

/// One numbered database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Keyspace {
    /// Keys.
    pub keys: u64,
    /// Of those, with an end.
    pub expires: u64,
    /// Their mean time to live, in milliseconds.
    pub average_ttl: u64,
}

impl MemoryInfo {
    /// Share of the limit in use, in percent; `None` without a limit.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share for people and thresholds")]
    pub fn percent(&self) -> Option<f64> {
        (self.max > 0).then(|| self.counted() as f64 * 100.0 / self.max as f64)
    }

    /// True when the limit is reached: the next write evicts, or is refused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.max > 0 && self.counted() >= self.max
    }

    fn counted(&self) -> u64 {
        self.used.saturating_sub(self.not_counted)
    }
}

impl StatsInfo {
    /// Share of reads that found their key, in percent; `None` before the first read.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share for people and thresholds")]
    pub fn hit_rate(&self) -> Option<f64> {
        let reads = self.hits + self.misses;
        (reads > 0).then(|| self.hits as f64 * 100.0 / reads as f64)
    }
}

impl RedisInfo {
    /// Keys in all databases.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.keyspace.values().map(|k| k.keys).sum()
    }

    /// Keys in all databases that never end by themselves.
    #[must_use]
    pub fn keys_without_ttl(&self) -> u64 {
        self.keyspace
            .values()
            .map(|k| k.keys.saturating_sub(k.expires))
            .sum()
    }

    /// Error replies with this code since the start.
    #[must_use]
    pub fn errors_of(&self, code: &str) -> u64 {
        self.errors.get(code).copied().unwrap_or_default()
    }

    /// Reads the text of `INFO`; `None` when it is not one. What an old server does not say
    /// is zero, or good where it is a status.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter(|l| !l.starts_with('#'))
            .filter_map(|l| l.trim_end().split_once(':'))
            .collect();
        let f = Fields(&fields);
        // Valkey says both; without either this is no INFO.
        if f.text("redis_version").is_empty() || !fields.contains_key("used_memory") {
            return None;
        }
        let replica = f.text("role") == "slave";
        Some(Self {
            version: f.text("redis_version").to_owned(),
            run_id: f.text("run_id").to_owned(),
            uptime: f.number("uptime_in_seconds"),
            memory: MemoryInfo {
                used: f.number("used_memory"),
                resident: f.number("used_memory_rss"),
                peak: f.number("used_memory_peak"),
                dataset: f.number("used_memory_dataset"),
                client_buffers: f.number("mem_clients_normal"),
                not_counted: f.number("mem_not_counted_for_evict"),
                max: f.number("maxmemory"),
                policy: f.text("maxmemory_policy").to_owned(),
                fragmentation: f.number("mem_fragmentation_ratio"),
                host_total: f.number("total_system_memory"),
                pending_frees: f.number("lazyfree_pending_objects"),
            },
            clients: ClientsInfo {
                connected: f.number("connected_clients"),
                max: f.number("maxclients"),
                blocked: f.number("blocked_clients"),
                rejected: f.number("rejected_connections"),
                paused: Some(f.text("paused_actions"))
                    .filter(|actions| ["write", "all"].contains(actions))
                    .map(str::to_owned),
            },
            stats: StatsInfo {
                evicted_keys: f.number("evicted_keys"),
                expired_keys: f.number("expired_keys"),
                hits: f.number("keyspace_hits"),
                misses: f.number("keyspace_misses"),
                ops_per_second: f.number("instantaneous_ops_per_sec"),
                error_replies: f.number("total_error_replies"),
            },
            persistence: PersistenceInfo {
                loading: f.is_set("loading").then(|| Loading {
                    percent: f.number("loading_loaded_perc"),
                    eta: f.number("loading_eta_seconds"),
                    bytes: f.number("loading_total_bytes"),
                }),
                changes_since_save: f.number("rdb_changes_since_last_save"),
                last_save: Timestamp::from_second(f.number("rdb_last_save_time"))
                    .ok()
                    .filter(|t| *t != Timestamp::UNIX_EPOCH),
                last_save_ok: f.is_good("rdb_last_bgsave_status"),
                saving: f.is_set("rdb_bgsave_in_progress"),
                aof_enabled: f.is_set("aof_enabled"),
                aof_write_ok: f.is_good("aof_last_write_status"),
                aof_rewrite_ok: f.is_good("aof_last_bgrewrite_status"),
                aof_rewriting: f.is_set("aof_rewrite_in_progress") || f.is_set("aof_rewrite_scheduled"),
            },
            replication: ReplicationInfo {
                replica,
                primary: replica.then(|| format!("{}:{}", f.text("master_host"), f.text("master_port"))),
                link_up: replica.then(|| f.text("master_link_status") == "up"),
                replicas: f.number("connected_slaves"),
                good_replicas: f.text("min_slaves_good_slaves").parse().ok(),
            },
            errors: fields
                .iter()
                .filter_map(|(name, value)| {
                    let count = list_value(value, "count")?;
                    Some((name.strip_prefix("errorstat_")?.to_owned(), count))
                })
                .collect(),
            keyspace: fields
                .iter()
                .filter_map(|(name, value)| {
                    let database = name.strip_prefix("db")?.parse().ok()?;
                    let keyspace = Keyspace {
                        keys: list_value(value, "keys")?,
                        expires: list_value(value, "expires").unwrap_or_default(),
                        average_ttl: list_value(value, "avg_ttl").unwrap_or_default(),
                    };
                    Some((database, keyspace))
                })
                .collect(),
        })
    }
}

/// The number called `name` in `name=1,other=2`.
fn list_value(list: &str, name: &str) -> Option<u64> {
    list.split(',')
        .find_map(|item| item.strip_prefix(name)?.strip_prefix('='))?
        .parse()
        .ok()
}

struct Fields<'a>(&'a BTreeMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    fn text(&self, name: &str) -> &'a str {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn number<T: FromStr + Default>(&self, name: &str) -> T {
        // `loading_loaded_perc` has a percent sign in some versions.
        self.text(name).trim_end_matches('%').parse().unwrap_or_default()
    }

    fn is_set(&self, name: &str) -> bool {
        self.text(name) == "1"
    }

    fn is_good(&self, name: &str) -> bool {
        matches!(self.text(name), "ok" | "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From a Redis 7.0.15 whose memory is full, shortened.
    const FULL: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:a1b2\r\n\
        uptime_in_seconds:77\r\n\r\n# Clients\r\nconnected_clients:5\r\nmaxclients:10000\r\nblocked_clients:0\r\n\
        # Memory\r\nused_memory:8390000\r\nused_memory_rss:14000000\r\nused_memory_peak:8400000\r\n\
        used_memory_dataset:7000000\r\nmem_clients_normal:8000\r\nmem_not_counted_for_evict:0\r\n\
        maxmemory:8388608\r\nmaxmemory_policy:noeviction\r\nmem_fragmentation_ratio:1.67\r\n\
        total_system_memory:16000000000\r\nlazyfree_pending_objects:0\r\n# Persistence\r\nloading:0\r\n\
        rdb_changes_since_last_save:5460\r\nrdb_bgsave_in_progress:0\r\nrdb_last_save_time:1764000000\r\n\
        rdb_last_bgsave_status:err\r\naof_enabled:1\r\naof_rewrite_in_progress:0\r\naof_rewrite_scheduled:1\r\n\
        aof_last_bgrewrite_status:ok\r\naof_last_write_status:ok\r\n# Stats\r\nexpired_keys:3\r\nevicted_keys:0\r\n\
        keyspace_hits:30\r\nkeyspace_misses:10\r\nrejected_connections:2\r\ntotal_error_replies:5461\r\n\
        # Replication\r\nrole:master\r\nconnected_slaves:1\r\n# Errorstats\r\nerrorstat_OOM:count=5460\r\n\
        errorstat_ERR:count=1\r\n# Keyspace\r\ndb0:keys=162,expires=100,avg_ttl=250\r\ndb3:keys=1,expires=0,avg_ttl=0\r\n";

    #[test]
    fn a_full_server_is_read() {
        let info = RedisInfo::parse(FULL).unwrap();
        assert_eq!(info.version, "7.0.15");
        assert!(info.memory.is_full());
        assert!(info.memory.percent().unwrap() > 100.0);
        assert_eq!(info.memory.policy, "noeviction");
        assert!((info.memory.fragmentation - 1.67).abs() < f64::EPSILON);
        assert_eq!(info.errors_of("OOM"), 5460);
        assert_eq!(info.errors_of("MISCONF"), 0);
        assert_eq!((info.keys(), info.keys_without_ttl()), (163, 63));
        assert_eq!(info.keyspace[&0].average_ttl, 250);
        assert_eq!(info.stats.hit_rate(), Some(75.0));
        assert_eq!(info.clients.rejected, 2);
        let disk = &info.persistence;
        assert!(!disk.last_save_ok && disk.aof_enabled && disk.aof_write_ok && disk.aof_rewriting);
        assert_eq!(disk.last_save.unwrap().as_second(), 1_764_000_000);
        assert_eq!(disk.loading, None);
        assert!(!info.replication.replica);
        let kept = serde_json::to_string(&info).unwrap();
        assert_eq!(serde_json::from_str::<RedisInfo>(&kept).unwrap(), info);
    }

    #[test]
    fn a_loading_replica_is_read() {
        let info = RedisInfo::parse(
            "redis_version:7.0.15\nused_memory:10\nmaxmemory:0\nloading:1\nloading_total_bytes:1000\n\
             loading_loaded_perc:42.50\nloading_eta_seconds:7\nrole:slave\nmaster_host:10.0.0.1\nmaster_port:6379\n\
             master_link_status:down\nmem_not_counted_for_evict:20\n",
        )
        .unwrap();
        let loading = info.persistence.loading.unwrap();
        assert!((loading.percent - 42.5).abs() < f64::EPSILON);
        assert_eq!(loading.eta, 7);
        assert_eq!(info.replication.primary.as_deref(), Some("10.0.0.1:6379"));
        assert_eq!(info.replication.link_up, Some(false));
        assert_eq!((info.memory.percent(), info.memory.is_full()), (None, false));
        assert_eq!(info.stats.hit_rate(), None);
    }

    #[test]
    fn what_is_no_info_is_refused() {
        for text in ["", "PONG", "redis_version:7.0.15\r\n", "used_memory:1\r\n"] {
            assert_eq!(RedisInfo::parse(text), None, "{text}");
        }
    }
}
