//! Counting the rows of one table and finding its newest, where either may fail without ending the look at the others.

use std::time::Duration;

use super::{Newest, RelationFact};
use crate::postgres::{Client, PgError, Row, quote_ident, quote_literal, sqlstate};

/// Counts one table and finds its newest row in the same scan.
pub(super) async fn count(
    client: &Client,
    fact: &mut RelationFact,
    column: Option<String>,
    deadline: Duration,
) -> Result<(), PgError> {
    let table = table_name(fact);
    // A savepoint: one unreadable table must not end the snapshot of all.
    client.execute("savepoint drctl").await?;
    let result = async {
        let newest = match &column {
            Some(column) => greatest(client, &table, column).await?,
            None => "null, null".to_owned(),
        };
        client
            .within(deadline, &format!("select count(*), {newest} from {table}"))
            .await
    }
    .await;
    match result {
        Ok(rows) => {
            let row = rows.first();
            fact.rows = row.and_then(|r| r.number(0));
            fact.newest = column.map(|column| newest_of(column, row, 1));
            client.execute("release savepoint drctl").await
        }
        Err(e) => {
            fact.problem = Some(survivable(e)?.to_string());
            client.execute("rollback to savepoint drctl").await
        }
    }
}

/// Finds the newest row alone, by an index where there is one. An index that cannot be read
/// is no problem of the table: then the table itself is.
pub(super) async fn newest(
    client: &Client,
    fact: &mut RelationFact,
    column: String,
    deadline: Duration,
) -> Result<(), PgError> {
    let table = table_name(fact);
    for by_index in ["on", "off"] {
        client.execute("savepoint drctl").await?;
        let result = async {
            let newest = greatest(client, &table, &column).await?;
            client
                .execute(&format!("set local enable_indexscan = {by_index}"))
                .await?;
            let rows = client
                .within(deadline, &format!("select {newest} from {table}"))
                .await?;
            client.execute("set local enable_indexscan = off").await?;
            Ok(rows)
        }
        .await;
        match result {
            Ok(rows) => {
                fact.newest = Some(newest_of(column, rows.first(), 0));
                fact.problem = None;
                return client.execute("release savepoint drctl").await;
            }
            Err(e) => {
                fact.problem = Some(survivable(e)?.to_string());
                // Puts the setting back, too.
                client.execute("rollback to savepoint drctl").await?;
            }
        }
    }
    Ok(())
}

fn table_name(fact: &RelationFact) -> String {
    format!("{}.{}", quote_ident(&fact.schema), quote_ident(&fact.name))
}

/// The greatest value of a column as two expressions: as text, and as an instant.
async fn greatest(client: &Client, table: &str, column: &str) -> Result<String, PgError> {
    let name = quote_ident(column);
    let kind = client
        .value(&format!(
            "select pg_catalog.format_type(atttypid, null) from pg_catalog.pg_attribute \
             where attrelid = {}::regclass and attname = {} and not attisdropped",
            quote_literal(table),
            quote_literal(column)
        ))
        .await?;
    let instant = match kind.as_deref() {
        Some("timestamp with time zone") => Some(format!("max({name}) at time zone 'UTC'")),
        Some("timestamp without time zone" | "date") => Some(format!("max({name})::timestamp")),
        _ => None,
    };
    let instant = instant.map_or_else(
        || "null".to_owned(),
        |i| format!(r#"pg_catalog.to_char({i}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#),
    );
    Ok(format!("max({name})::text, {instant}"))
}

fn newest_of(column: String, row: Option<&Row>, at: usize) -> Newest {
    Newest {
        column,
        value: row.and_then(|r| r.opt(at)).map(str::to_owned),
        at: row.and_then(|r| r.number(at + 1)),
    }
}

/// An error of one table alone. When the server is going away, or did not answer, the next
/// table would fare no better.
fn survivable(e: PgError) -> Result<PgError, PgError> {
    match e {
        PgError::NoConnection { .. }
        | PgError::Timeout { .. }
        | PgError::Broken { .. }
        | PgError::TooLong { .. } => Err(e),
        e @ PgError::Server { .. } if e.is(sqlstate::CANNOT_CONNECT_NOW) => Err(e),
        e @ PgError::Server { .. } => Ok(e),
    }
}
