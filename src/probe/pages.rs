//! Pages of what `amcheck` has no check for (GIN, GiST, SP-GiST, BRIN and hash indexes) and of
//! sequences: each is read through the server, which compares the checksum, or at least the
//! page's header. By `pageinspect` (PostgreSQL manual, appendix F), because no query reads
//! every page of an index.

use std::time::Duration;

use tokio::time::Instant;

use super::relations::{self, Check, Relation, RelationFinding, RelationKind};
use crate::postgres::{Client, ConnectSpec, PgError, quote_ident};

/// Sequences have one page each.
const SEQUENCES: &str = "select c.oid, n.nspname, c.relname, pg_catalog.pg_relation_filepath(c.oid), \
    pg_catalog.pg_relation_size(c.oid) from pg_catalog.pg_class c \
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.relkind = 'S' and c.relpersistence <> 't'";

/// Reads the pages of `indexes` and of every sequence, where the extension is installed or
/// `borrow` allows it to be created in a transaction that is rolled back, until `until` at the latest. What could
/// not be read for another reason than damage is not a finding; `amcheck`'s report says already
/// that it has no check for these.
///
/// # Errors
/// [`PgError`] when no session is to be had or the extension is not to be had.
pub async fn read(
    spec: &ConnectSpec,
    indexes: &[&Relation],
    borrow: bool,
    until: Instant,
) -> Result<Vec<RelationFinding>, PgError> {
    let mut client = Client::connect(spec).await?;
    let sequences: Vec<Relation> = client
        .rows(SEQUENCES)
        .await?
        .iter()
        .filter_map(|row| {
            Some(Relation {
                oid: row.number(0)?,
                schema: row.text(1).to_owned(),
                name: row.text(2).to_owned(),
                // A sequence is data, like a table, and cannot be derived from anything.
                kind: RelationKind::Heap,
                table: format!("{}.{}", row.text(1), row.text(2)),
                path: row.text(3).to_owned(),
                bytes: row.number(4),
                pages: 0,
                rows: -1.0,
                access: String::new(),
                usable: true,
                system: false,
                unlogged: false,
            })
        })
        .collect();
    let all: Vec<&Relation> = indexes.iter().copied().chain(&sequences).collect();
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let row = client
        .rows(
            "select (select n.nspname from pg_catalog.pg_extension e join pg_catalog.pg_namespace n \
             on n.oid = e.extnamespace where e.extname = 'pageinspect')",
        )
        .await?;
    let schema = if let Some(installed) = row.first().and_then(|r| r.opt(0)) {
        quote_ident(installed)
    } else if !borrow {
        return Ok(Vec::new());
    } else {
        // Written, and never committed.
        client = Client::connect(&spec.clone().writable()).await?;
        let schema = quote_ident(&format!("drctl_pages_{}", std::process::id()));
        client.execute("set lock_timeout = '300ms'").await?;
        client.execute("begin").await?;
        client
            .execute(&format!(
                "create schema {schema}; create extension pageinspect schema {schema}"
            ))
            .await?;
        schema
    };
    let mut findings = Vec::new();
    for relation in all {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match pages(&client, &schema, relation, left).await {
            Ok(()) => {}
            Err(e) if relations::is_damage(&e) => {
                let check = match relation.kind {
                    RelationKind::Heap => Check::HeapStructure,
                    _ => Check::IndexStructure,
                };
                findings.push(relations::finding_of(&[], relation, check, &e));
            }
            Err(e @ PgError::Server { .. }) if e.is("57014") || e.is("55P03") => {}
            Err(e) => return Err(e),
        }
    }
    // Best effort: the session ends with the value, and its transaction with it.
    let _ = client.execute("rollback").await;
    Ok(findings)
}

/// Reads every page of one relation.
async fn pages(client: &Client, schema: &str, r: &Relation, limit: Duration) -> Result<(), PgError> {
    client.execute("savepoint drctl").await.or_else(outside)?;
    let answer = client
        .within(
            limit,
            &format!(
                "select count(p) from pg_catalog.generate_series(0, {}) b, \
                 lateral {schema}.get_raw_page({}::oid::regclass::text, 'main', b) p",
                // An empty index has no page to read.
                i64::try_from(r.blocks()).unwrap_or(i64::MAX) - 1,
                r.oid
            ),
        )
        .await;
    let end = if answer.is_ok() {
        "release savepoint drctl"
    } else {
        "rollback to savepoint drctl"
    };
    client.execute(end).await.or_else(outside)?;
    answer.map(drop)
}

/// Savepoints are for the borrowed extension only: outside of a transaction there are none.
fn outside(e: PgError) -> Result<(), PgError> {
    if e.is("25P01") { Ok(()) } else { Err(e) }
}
