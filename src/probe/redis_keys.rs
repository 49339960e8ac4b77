//! What fills a Redis: a sample of its keys, grouped by the pattern of their names.
//!
//! `SCAN` gives keys in the order of their hashes, which says nothing about them: the first few
//! thousand are a fair sample. A single huge key may be missed by one; comparing
//! [`KeySample::bytes`] with the server's own figure tells.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::redis::{Client, ConnectSpec, Key, KeyFacts, Keyspace, RedisError, glob_matches, pattern_of};

/// Keys per round trip.
const BATCH: u32 = 500;
/// Groups that differ in the last part of their name only, from this number on, are one.
const MANY_NAMES: usize = 20;
/// How many of the largest keys are named.
const LARGEST: usize = 10;

/// Bounds a look at the keys.
#[derive(Debug, Clone, Copy)]
pub struct SampleLimits {
    /// Keys in all, shared among the databases by their size.
    pub keys: u64,
    /// Time in all. One round trip may be under way when it ends.
    pub time: Duration,
}

impl Default for SampleLimits {
    fn default() -> Self {
        Self {
            keys: 20_000,
            time: Duration::from_secs(2),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct KeySample {
    /// Keys looked at.
    pub sampled: u64,
    /// Keys there are.
    pub total: u64,
    /// Every key was looked at: nothing is extrapolated.
    pub complete: bool,
    /// Groups, the largest first.
    pub groups: Vec<KeyGroup>,
    /// The largest keys of the sample, the largest first.
    pub largest: Vec<LargeKey>,
    /// What could not be looked at, and why.
    pub not_examined: Vec<String>,
}

/// Keys of one type whose names were made by one pattern.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct KeyGroup {
    /// Number of the database.
    pub database: u32,
    /// As for `SCAN MATCH`: `cv:*`, `user:*:cart`. Names no single user or session.
    pub pattern: String,
    /// `string`, `hash`, `set` …
    pub kind: String,
    /// Keys of it in the sample.
    pub sampled: u64,
    /// Keys of it, extrapolated.
    pub keys: u64,
    /// Their memory, extrapolated; 0 when the server does not tell (`MEMORY USAGE`).
    pub bytes: u64,
    /// Keys of the sample without an end.
    pub without_ttl: u64,
    /// Keys of the sample that match one of the runbook's `disposable-patterns`.
    pub disposable: u64,
}

/// A key that is large by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LargeKey {
    /// Number of the database.
    pub database: u32,
    /// The pattern of its name: the name itself when that holds no identifier.
    pub pattern: String,
    /// Its type.
    pub kind: String,
    /// Its memory.
    pub bytes: u64,
    /// It never ends by itself.
    pub without_ttl: bool,
    /// It matches one of the runbook's `disposable-patterns`.
    pub disposable: bool,
}

impl KeyGroup {
    /// True when the runbook says of every key that was seen that it may be deleted.
    #[must_use]
    pub fn is_disposable(&self) -> bool {
        self.sampled > 0 && self.disposable == self.sampled
    }

    /// Share of keys without an end, in percent.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    pub fn percent_without_ttl(&self) -> f64 {
        if self.sampled == 0 {
            return 0.0;
        }
        self.without_ttl as f64 * 100.0 / self.sampled as f64
    }
}

impl KeySample {
    /// Memory of all keys, extrapolated.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.groups.iter().map(|g| g.bytes).sum()
    }

    /// Memory of the keys that may be deleted, extrapolated.
    #[must_use]
    pub fn disposable_bytes(&self) -> u64 {
        self.groups
            .iter()
            .map(|g| scaled(g.bytes, g.disposable, g.sampled))
            .sum()
    }
}

/// Looks at a sample of the keys of every database of `keyspace` (from `INFO`). Reads only, and
/// what it reads does not count as used.
///
/// # Errors
/// [`RedisError`] when the first database cannot be connected to; what fails later is listed.
pub async fn sample(
    spec: &ConnectSpec,
    keyspace: &BTreeMap<u32, Keyspace>,
    disposable_patterns: &[String],
    limits: SampleLimits,
) -> Result<KeySample, RedisError> {
    let until = Instant::now() + limits.time;
    let mut sample = KeySample {
        total: keyspace.values().map(|k| k.keys).sum(),
        complete: true,
        ..KeySample::default()
    };
    for (&database, keys) in keyspace {
        let client = match Client::connect(&spec.to_database(database)).await {
            Ok(client) => client,
            Err(e) if sample.sampled == 0 => return Err(e),
            Err(e) => {
                sample.not_examined.push(format!("database {database}: {e}"));
                sample.complete = false;
                continue;
            }
        };
        let share = scaled(limits.keys, keys.keys, sample.total).max(u64::from(BATCH));
        let mut work = Work {
            database,
            disposable_patterns,
            seen: HashSet::new(),
            groups: BTreeMap::new(),
            largest: &mut sample.largest,
        };
        let complete = match work.read(&client, share, until).await {
            Ok(complete) => complete,
            Err(e) => {
                sample.not_examined.push(format!("database {database}: {e}"));
                false
            }
        };
        let seen = work.groups.values().map(|g| g.sampled).sum();
        let groups = work.groups;
        sample.sampled += seen;
        sample.complete &= complete;
        sample
            .groups
            .extend(merge_many_names(groups).into_iter().map(|mut g| {
                if !complete {
                    g.keys = scaled(keys.keys, g.sampled, seen);
                    g.bytes = scaled(g.bytes, keys.keys.max(seen), seen);
                }
                g
            }));
    }
    sample
        .groups
        .sort_by(|a, b| (b.bytes, b.keys, &a.pattern).cmp(&(a.bytes, a.keys, &b.pattern)));
    Ok(sample)
}

struct Work<'a> {
    database: u32,
    disposable_patterns: &'a [String],
    /// A scan may give a key twice.
    seen: HashSet<Key>,
    /// By pattern and type.
    groups: BTreeMap<(String, String), KeyGroup>,
    largest: &'a mut Vec<LargeKey>,
}

impl Work<'_> {
    /// True when the scan came to its end.
    async fn read(&mut self, client: &Client, at_most: u64, until: Instant) -> Result<bool, RedisError> {
        let mut cursor = 0;
        loop {
            let batch = client.scan(cursor, None, BATCH).await?;
            let keys: Vec<Key> = batch
                .keys
                .into_iter()
                .filter(|k| self.seen.insert(k.clone()))
                .collect();
            for (key, facts) in keys.iter().zip(client.key_facts(&keys).await?) {
                self.add(key, &facts);
            }
            cursor = batch.cursor;
            if cursor == 0 {
                return Ok(true);
            }
            if self.seen.len() as u64 >= at_most || Instant::now() >= until {
                return Ok(false);
            }
        }
    }

    fn add(&mut self, key: &Key, facts: &KeyFacts) {
        if facts.kind == "none" {
            return;
        }
        let pattern = pattern_of(key);
        let bytes = facts.bytes.unwrap_or_default();
        let without_ttl = facts.ttl.is_none();
        let disposable = self
            .disposable_patterns
            .iter()
            .any(|p| glob_matches(p.as_bytes(), key));
        if self.largest.len() < LARGEST || self.largest.last().is_some_and(|l| l.bytes < bytes) {
            let at = self.largest.partition_point(|l| l.bytes >= bytes);
            let large = LargeKey {
                database: self.database,
                pattern: pattern.clone(),
                kind: facts.kind.clone(),
                bytes,
                without_ttl,
                disposable,
            };
            self.largest.insert(at, large);
            self.largest.truncate(LARGEST);
        }
        let group = self
            .groups
            .entry((pattern.clone(), facts.kind.clone()))
            .or_insert_with(|| KeyGroup {
                database: self.database,
                pattern,
                kind: facts.kind.clone(),
                ..KeyGroup::default()
            });
        group.add(&KeyGroup {
            sampled: 1,
            keys: 1,
            bytes,
            without_ttl: u64::from(without_ttl),
            disposable: u64::from(disposable),
            ..KeyGroup::default()
        });
    }
}

impl KeyGroup {
    fn add(&mut self, other: &Self) {
        self.sampled += other.sampled;
        self.keys += other.keys;
        self.bytes += other.bytes;
        self.without_ttl += other.without_ttl;
        self.disposable += other.disposable;
    }
}

/// `cache:apple`, `cache:pear` and many more are `cache:*`: words that nobody would take for
/// identifiers by themselves.
fn merge_many_names(groups: BTreeMap<(String, String), KeyGroup>) -> Vec<KeyGroup> {
    let prefix = |pattern: &str| pattern.rsplit_once(':').map(|(prefix, _)| format!("{prefix}:*"));
    let mut names: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (pattern, kind) in groups.keys() {
        if let Some(prefix) = prefix(pattern) {
            *names.entry((prefix, kind.clone())).or_default() += 1;
        }
    }
    let mut merged: BTreeMap<(String, String), KeyGroup> = BTreeMap::new();
    for ((pattern, kind), group) in groups {
        let wide = prefix(&pattern)
            .filter(|p| {
                names
                    .get(&(p.clone(), kind.clone()))
                    .is_some_and(|n| *n >= MANY_NAMES)
            })
            .unwrap_or(pattern);
        merged
            .entry((wide.clone(), kind))
            .or_insert_with(|| KeyGroup {
                database: group.database,
                pattern: wide,
                kind: group.kind.clone(),
                ..KeyGroup::default()
            })
            .add(&group);
    }
    merged.into_values().collect()
}

/// `n * part / whole`, without overflow; 0 of nothing.
fn scaled(n: u64, part: u64, whole: u64) -> u64 {
    let product = u128::from(n) * u128::from(part);
    product
        .checked_div(u128::from(whole))
        .and_then(|q| u64::try_from(q).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_of(keys: &[(&str, KeyFacts)], disposable: &[&str]) -> (Vec<KeyGroup>, Vec<LargeKey>) {
        let disposable: Vec<String> = disposable.iter().map(|p| (*p).to_owned()).collect();
        let mut largest = Vec::new();
        let mut work = Work {
            database: 0,
            disposable_patterns: &disposable,
            seen: HashSet::new(),
            groups: BTreeMap::new(),
            largest: &mut largest,
        };
        for (key, facts) in keys {
            work.add(&key.as_bytes().to_vec(), facts);
        }
        (merge_many_names(work.groups), largest)
    }

    fn key(kind: &str, ttl: Option<u64>, bytes: u64) -> KeyFacts {
        KeyFacts {
            kind: kind.into(),
            ttl: ttl.map(Duration::from_secs),
            bytes: Some(bytes),
        }
    }

    #[test]
    fn keys_are_grouped_by_pattern_and_type() {
        let (groups, largest) = sample_of(
            &[
                ("cv:0d8f3b7e11", key("string", Some(60), 100)),
                ("cv:0d8f3b7e12", key("string", None, 300)),
                ("cv:0d8f3b7e13", key("hash", None, 50)),
                ("sessions:all", key("set", None, 9_000)),
                ("gone:1", key("none", None, 0)),
            ],
            &["cv:*"],
        );
        let short: Vec<_> = groups
            .iter()
            .map(|g| {
                (
                    &*g.pattern,
                    &*g.kind,
                    g.keys,
                    g.bytes,
                    g.without_ttl,
                    g.is_disposable(),
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                ("cv:*", "hash", 1, 50, 1, true),
                ("cv:*", "string", 2, 400, 1, true),
                ("sessions:all", "set", 1, 9_000, 1, false),
            ]
        );
        let sizes: Vec<u64> = largest.iter().map(|l| l.bytes).collect();
        assert_eq!(sizes, [9_000, 300, 100, 50]);
        assert_eq!(largest[0].pattern, "sessions:all");
    }

    #[test]
    fn many_words_are_one_group_and_few_are_not() {
        let words: Vec<String> = (0..MANY_NAMES)
            .map(|i| {
                let letter = char::from(b'a' + u8::try_from(i).unwrap());
                format!("cache:{letter}{letter}")
            })
            .collect();
        let keys: Vec<_> = words.iter().map(|w| (&**w, key("string", None, 1))).collect();
        let (groups, _) = sample_of(&keys, &["cache:a*"]);
        assert_eq!((groups.len(), &*groups[0].pattern), (1, "cache:*"));
        // One of them may be deleted, the group as such may not.
        assert_eq!((groups[0].disposable, groups[0].is_disposable()), (1, false));
        let (groups, _) = sample_of(&keys[1..], &[]);
        assert_eq!(groups.len(), MANY_NAMES - 1);
    }

    #[test]
    fn shares_are_extrapolated() {
        assert_eq!(scaled(1_000, 1, 4), 250);
        assert_eq!(scaled(u64::MAX, 10, 10), u64::MAX);
        assert_eq!(scaled(5, 0, 0), 0);
    }
}
