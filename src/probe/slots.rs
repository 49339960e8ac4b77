//! Connection slots: taken ones look like a database that is down.

use serde::{Deserialize, Serialize};

use crate::postgres::{Client, PgError};

/// Connection slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SlotFacts {
    /// `max_connections`.
    pub max: u32,
    /// `superuser_reserved_connections`, and `reserved_connections` (PostgreSQL 16).
    pub reserved: u32,
    /// Client backends now.
    pub used: u32,
    /// Of those, idle.
    pub idle: u32,
    /// Of those, idle in a transaction.
    pub idle_in_transaction: u32,
}

/// Counts the slots.
///
/// # Errors
/// [`PgError`].
pub async fn read(client: &Client) -> Result<SlotFacts, PgError> {
    let rows = client
        .rows(
            "select pg_catalog.current_setting('max_connections'), \
             pg_catalog.current_setting('superuser_reserved_connections')::int \
             + coalesce(pg_catalog.current_setting('reserved_connections', true)::int, 0), count(*), \
             count(*) filter (where state = 'idle'), \
             count(*) filter (where state like 'idle in transaction%') \
             from pg_catalog.pg_stat_activity where backend_type = 'client backend'",
        )
        .await?;
    let number = |column| rows.first().and_then(|r| r.number(column)).unwrap_or_default();
    Ok(SlotFacts {
        max: number(0),
        reserved: number(1),
        used: number(2),
        idle: number(3),
        idle_in_transaction: number(4),
    })
}
