//! How a PostgreSQL server that lets us in is: a handful of numbers that tell of trouble before it is one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::slots::{self, SlotFacts};
use crate::postgres::{Client, PgError, Row};

/// Transaction numbers a server can hand out between two freezes: 2^31, less what it keeps for itself (PostgreSQL
/// manual, 25.1.5).
const TRANSACTION_NUMBERS: u64 = 2_147_483_648 - 3_000_000;

/// What is known of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Vitals {
    /// `server_version`.
    pub version: String,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// It replays the log of another server, or is recovering.
    pub in_recovery: bool,
    /// Connections; drctl's own is among those used.
    pub slots: SlotFacts,
    /// Seconds since the oldest open transaction of a client began; `None` when none is open.
    pub oldest_transaction: Option<u64>,
    /// Failed page checksums since the statistics were reset; `None` where pages have none.
    pub checksum_failures: Option<u64>,
    /// Transactions until the server refuses to write to prevent a wraparound, of the database that is nearest.
    pub transactions_left: u64,
    /// Percent of the reads that found their block in the server's memory; `None` before there were any.
    pub block_hit_rate: Option<f64>,
    /// Standbys and others that receive the log, one of each name; a base backup under way is none.
    pub receivers: Vec<Receiver>,
    /// Replication slots that nobody reads, with the bytes of log that they hold back.
    pub idle_slots: Vec<(String, u64)>,
    /// For a standby: seconds since the last replayed transaction; `None` for a primary.
    pub replay_age: Option<u64>,
    /// Bytes of all databases; `None` where that took too long to count.
    pub size: Option<u64>,
}

/// Who receives the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Receiver {
    /// `application_name`.
    pub name: String,
    /// `streaming`, `catchup` …
    pub state: String,
    /// Bytes of log that it has not replayed (or, for a receiver that replays nothing, not flushed).
    pub behind: u64,
}

const ONE_ROW: &str = "
select pg_catalog.current_setting('server_version'),
  pg_catalog.to_char(pg_catalog.pg_postmaster_start_time() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
  pg_catalog.pg_is_in_recovery(),
  (select extract(epoch from pg_catalog.clock_timestamp() - min(xact_start))::bigint from pg_catalog.pg_stat_activity
     where pid <> pg_catalog.pg_backend_pid() and backend_type = 'client backend' and xact_start is not null),
  (select sum(checksum_failures)::bigint from pg_catalog.pg_stat_database),
  (select max(pg_catalog.age(datfrozenxid)) from pg_catalog.pg_database),
  (select round(sum(blks_hit) * 100.0 / nullif(sum(blks_hit) + sum(blks_read), 0), 2) from pg_catalog.pg_stat_database),
  case when pg_catalog.pg_is_in_recovery()
    then greatest(extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp()), 0)::bigint end";

const REPLICATION: &str = "
with here as (select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
    else pg_catalog.pg_current_wal_lsn() end as lsn)
select 'receiver', application_name, coalesce(state, ''),
    greatest(pg_catalog.pg_wal_lsn_diff(here.lsn, coalesce(replay_lsn, flush_lsn, sent_lsn)), 0)::bigint
  from pg_catalog.pg_stat_replication, here where state is distinct from 'backup'
union all
select 'slot', slot_name, '', greatest(pg_catalog.pg_wal_lsn_diff(here.lsn, restart_lsn), 0)::bigint
  from pg_catalog.pg_replication_slots, here where not active";

const SIZE: &str =
    "select sum(pg_catalog.pg_database_size(oid))::bigint from pg_catalog.pg_database where datallowconn";

/// Reads all of it, with one connection. The size is counted file by file and may take long: it is left out then, for
/// the rest is worth more.
///
/// # Errors
/// [`PgError`].
pub async fn read(client: &Client) -> Result<Vitals, PgError> {
    // Sent together: over SSH each round trip counts.
    let (slots, one, replication, size) = tokio::join!(
        slots::read(client),
        client.rows(ONE_ROW),
        client.rows(REPLICATION),
        client.value(SIZE)
    );
    let (slots, one, replication) = (slots?, one?, replication?);
    let row = one.first();
    let number = |column| row.and_then(|r: &Row| r.number::<u64>(column));
    let of = |kind: &'static str| replication.iter().filter(move |r| r.text(0) == kind);
    Ok(Vitals {
        version: row.map_or_else(String::new, |r| r.text(0).to_owned()),
        started_at: row.and_then(|r| r.number(1)),
        in_recovery: row.is_some_and(|r| r.is_true(2)),
        slots,
        oldest_transaction: number(3),
        checksum_failures: number(4),
        transactions_left: TRANSACTION_NUMBERS.saturating_sub(number(5).unwrap_or_default()),
        block_hit_rate: row.and_then(|r| r.number(6)),
        replay_age: number(7),
        receivers: one_of_each_name(
            of("receiver")
                .map(|r| Receiver {
                    name: r.text(1).to_owned(),
                    state: r.text(2).to_owned(),
                    behind: r.number(3).unwrap_or_default(),
                })
                .collect(),
        ),
        idle_slots: of("slot")
            .map(|r| (r.text(1).to_owned(), r.number(3).unwrap_or_default()))
            .collect(),
        size: size.ok().flatten().and_then(|s| s.parse().ok()),
    })
}

/// Of those with one name the one that is furthest behind: the name is the label of the metric, and a scrape with one
/// label twice is refused as a whole.
fn one_of_each_name(mut all: Vec<Receiver>) -> Vec<Receiver> {
    all.sort_by(|a, b| a.name.cmp(&b.name).then(b.behind.cmp(&a.behind)));
    all.dedup_by(|later, kept| later.name == kept.name);
    all
}

impl Vitals {
    /// Connections that ordinary roles can have.
    #[must_use]
    pub fn ordinary(&self) -> u32 {
        self.slots.max.saturating_sub(self.slots.reserved)
    }

    /// Percent of those that are in use; drctl's own session is not counted.
    #[must_use]
    pub fn connections_percent(&self) -> f64 {
        f64::from(self.used()) * 100.0 / f64::from(self.ordinary().max(1))
    }

    /// Sessions of clients, without the one that asked.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.slots.used.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_receivers_with_one_name_the_furthest_behind_is_told() {
        let receiver = |name: &str, behind| Receiver {
            name: name.into(),
            state: "streaming".into(),
            behind,
        };
        let all = vec![
            receiver("b", 1),
            receiver("a", 2),
            receiver("b", 7),
            receiver("a", 1),
        ];
        assert_eq!(one_of_each_name(all), [receiver("a", 2), receiver("b", 7)]);
    }
}
