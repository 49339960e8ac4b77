//! An index that has lost entries: what an update under a broken operator class, or a
//! lost index write, leaves.
//!
//! Rows from the middle of the table are deleted and inserted again with the same
//! values, in one transaction in which the index is marked as not to be written to
//! (`pg_index.indisready`). Nobody else ever sees it so marked. The rows are the same
//! afterwards, only their places are new, and the index does not know those.

use super::target::{self, Chosen, regclass};
use super::{Prepared, Request, Work};
use crate::error::{Error, Kind, Result};
use crate::faults::record::{Heal, TableRef};
use crate::faults::server::{asking, session};
use crate::postgres::{quote_ident, quote_literal};
use crate::system::{PostgresServer, System};

/// Rows that lose their entry, at most; fewer in a small table.
const ROWS: u64 = 50;

pub(super) struct Entries {
    chosen: Chosen,
    index: String,
    from: u64,
}

pub(super) async fn prepare(server: &PostgresServer, request: &Request) -> Result<Prepared> {
    let chosen = target::table(
        server,
        request.database.as_deref(),
        request.table.as_deref(),
        false,
    )
    .await?;
    let index = chosen.index(server).await?;
    let from = chosen.live_block(server, &chosen.quoted).await?.number;
    let filenode = filenode(&chosen, server, &index).await?;
    Ok(Prepared {
        target: format!(
            "entries of index {index} for up to {ROWS} rows of table {} from block {from}",
            chosen.table
        ),
        heal: Heal::Reindex {
            database: chosen.database.clone(),
            index: index.clone(),
            filenode,
        },
        work: Work::Entries(Box::new(Entries { chosen, index, from })),
    })
}

async fn filenode(chosen: &Chosen, server: &PostgresServer, index: &str) -> Result<String> {
    let row = chosen
        .one(
            server,
            &format!("select pg_relation_filenode({})", regclass(index)),
        )
        .await?;
    Ok(row.text(0).to_owned())
}

impl Entries {
    pub(super) async fn inject(&self, server: &PostgresServer) -> Result<String> {
        let (table, index) = (&self.chosen.quoted, &self.index);
        let columns = self
            .chosen
            .client
            .rows(&format!(
                "select attname from pg_attribute where attrelid = {} and attnum > 0 and not attisdropped \
                 and attgenerated = '' order by attnum",
                regclass(table)
            ))
            .await
            .map_err(asking(server, "a look at the table's columns"))?
            .iter()
            .map(|r| quote_ident(r.text(0)))
            .collect::<Vec<_>>()
            .join(", ");
        let mark = |ready: bool| {
            format!(
                "update pg_index set indisready = {ready} where indexrelid = {}",
                regclass(index)
            )
        };
        // As a replica: no trigger fires and no foreign key is followed. A cascading
        // delete would take other rows along.
        let sql = format!(
            "begin; set local session_replication_role = replica; {}; \
             with gone as (delete from {table} where ctid in \
             (select ctid from {table} where ctid >= '({},0)' limit {ROWS}) returning *) \
             insert into {table} ({columns}) overriding system value select {columns} from gone; \
             {}; commit",
            mark(false),
            self.from,
            mark(true),
        );
        let done = self.chosen.client.within(target::PATIENCE, &sql).await;
        if done.is_err() {
            let _ = self.chosen.client.execute("rollback").await;
        }
        done.map_err(asking(server, "the rewrite of rows without their index entries"))?;
        Ok(format!("index {index} no longer knows all rows of {table}"))
    }
}

/// Builds the index again unless that has been done since. `false` when it has.
///
/// # Errors
/// The server's error.
pub async fn reindex(
    system: &System,
    server: &PostgresServer,
    database: &str,
    index: &str,
    filenode: &str,
) -> Result<bool> {
    let client = session(server, database).await?;
    let now = client
        .value(&format!(
            "select pg_relation_filenode(to_regclass({}))",
            quote_literal(index)
        ))
        .await
        .map_err(asking(server, "a look at the index"))?;
    if now.as_deref() != Some(filenode) {
        return Ok(false);
    }
    client
        .within(system.runbook.deadlines.step, &format!("reindex index {index}"))
        .await
        .map_err(|e| {
            Error::new(
                Kind::FailedUndone,
                format!("index {index} could not be built again"),
            )
            .because(&e)
        })?;
    Ok(true)
}

/// Builds all indexes of a table again.
///
/// # Errors
/// The server's error.
pub async fn reindex_table(system: &System, server: &PostgresServer, table: &TableRef) -> Result<()> {
    let client = session(server, &table.database).await?;
    client
        .within(
            system.runbook.deadlines.step,
            &format!("reindex table {}", table.table),
        )
        .await
        .map(drop)
        .map_err(|e| {
            Error::new(
                Kind::FailedChanged,
                format!(
                    "the original is back, and the indexes of {} could not be built again",
                    table.table
                ),
            )
            .because(&e)
        })
}
