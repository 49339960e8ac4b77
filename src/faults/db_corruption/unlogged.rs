//! An unlogged table that a crash has emptied: as it was made, while the catalogue still
//! remembers how large it was. The table is the fault's own, so that nobody loses rows.

use super::target::PATIENCE;
use super::{Prepared, Request, Work};
use crate::error::{Error, Kind, Result};
use crate::faults::record::{Heal, TableRef};
use crate::faults::server::{self, asking, session};
use crate::postgres::{quote_literal, quote_qualified};
use crate::system::{PostgresServer, System};

/// Enough for a table and an index of many pages.
const ROWS: u32 = 20_000;

pub(super) async fn prepare(server: &PostgresServer, request: &Request, id: &str) -> Result<Prepared> {
    let first = || server.config.databases.keys().next().map(ToString::to_string);
    let Some(database) = request.database.clone().or_else(first) else {
        return Err(Error::new(
            Kind::Refused,
            format!("the runbook names no database of {}", server.service),
        )
        .untouched("everything")
        .next("drctl drill inject … --database DATABASE"));
    };
    drop(session(server, &database).await?);
    let table = table(&database, id);
    Ok(Prepared {
        target: format!("a new unlogged table {} in {database}, by a crash", table.table),
        heal: Heal::DropTable { table: table.clone() },
        work: Work::Unlogged(table),
    })
}

/// The fault's own table. The end of the identity is what makes it unique, and a name longer
/// than 63 bytes would be cut there.
fn table(database: &str, id: &str) -> TableRef {
    let tail: String = id
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect::<String>()
        .to_lowercase();
    let tail = tail.get(tail.len().saturating_sub(40)..).unwrap_or_default();
    TableRef {
        database: database.to_owned(),
        table: quote_qualified(&format!("drctl_fault_{tail}")),
    }
}

/// Makes and fills the table, then crashes the server and starts it again.
pub(super) async fn inject(system: &System, server: &PostgresServer, table: &TableRef) -> Result<String> {
    let client = session(server, &table.database).await?;
    let name = &table.table;
    let fill = format!(
        "create unlogged table {name} (id integer primary key, t text); \
         insert into {name} select n, repeat('x', 100) from generate_series(1, {ROWS}) n"
    );
    for sql in [fill, format!("vacuum analyze {name}"), "checkpoint".to_owned()] {
        client
            .within(PATIENCE, &sql)
            .await
            .map_err(asking(server, "the filling of an unlogged table"))?;
    }
    drop(client);
    server::crash(system, server).await?;
    server::start_and_serve(system, server).await?;
    let now = system.postgres(&server.service).await?;
    let left = session(&now, &table.database)
        .await?
        .value(&format!("select count(*) from {name}"))
        .await
        .map_err(asking(server, "a look at the emptied table"))?;
    match left.as_deref() {
        Some("0") => Ok(format!("the server runs again, and table {name} is empty")),
        other => Err(Error::new(
            Kind::FailedChanged,
            format!("table {name} has {} rows after the crash", other.unwrap_or("no")),
        )
        .next("drctl drill heal")),
    }
}

/// Drops the fault's table. `false` when it was not there.
///
/// # Errors
/// The server's error.
pub async fn drop_table(system: &System, server: &PostgresServer, table: &TableRef) -> Result<bool> {
    if !server.container.is_running() {
        // Killed between the crash and the start.
        server::start_and_serve(system, server).await?;
    }
    let now = system.postgres(&server.service).await?;
    let client = session(&now, &table.database).await?;
    let there = client
        .value(&format!("select to_regclass({})", quote_literal(&table.table)))
        .await
        .map_err(asking(&now, "a look for the fault's table"))?;
    if there.is_none() {
        return Ok(false);
    }
    client
        .execute(&format!("drop table if exists {}", table.table))
        .await
        .map_err(asking(&now, "the removal of the fault's table"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_named_after_the_fault_and_fits() {
        let name = |id: &str| table("app", id).table;
        let one = name("20261120T194357Z-db-corruption-unlogged-crash-1f3a");
        assert_ne!(one, name("20261120T194357Z-db-corruption-unlogged-crash-1f3b"));
        assert!(one.starts_with("\"public\".\"drctl_fault_"), "{one}");
        assert!(one.len() <= 63 + "\"public\".\"\"".len(), "{one}");
    }
}
