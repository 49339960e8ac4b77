//! Losses that no tool of the server sees: rows that an index still knows and the table does
//! not, pages of zeros in the middle of a file, rows that are there and cannot be read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::facts::DatabaseFacts;
use super::relations::{self, Check, MAX_BLOCKS, Relation, RelationFinding, RelationKind};
use crate::postgres::{Client, ConnectSpec, PgError, quote_ident, quote_literal};
use crate::runbook::{Table, TableName};

/// Seconds that looking at one page's header takes, with a margin (3.4 µs were measured).
const SECONDS_PER_PAGE: f64 = 8e-6;
/// Longest look at the headers of one table, unless everything is read.
const HEADER_LIMIT: f64 = 1.0;
/// An index-only scan believes the visibility map and so counts rows that are gone: here that
/// is what we want to know.
const BY_INDEX: &str = "set enable_seqscan = off; set enable_bitmapscan = off; set enable_indexscan = on; \
    set enable_indexonlyscan = on; set jit = off; set lock_timeout = '300ms'";
const BY_TABLE: &str = "set enable_seqscan = on; set enable_indexscan = off; set enable_indexonlyscan = off; \
    set enable_bitmapscan = off";

/// Partitions that hold rows, each with every partitioned table that it is a part of.
const PARTITIONS: &str = "
with recursive part as (
  select oid as whole, oid from pg_catalog.pg_class where relkind = 'p'
  union all select p.whole, i.inhrelid from part p join pg_catalog.pg_inherits i on i.inhparent = p.oid
)
select p.oid, n.nspname, w.relname from part p
join pg_catalog.pg_class c on c.oid = p.oid and c.relkind = 'r'
join pg_catalog.pg_class w on w.oid = p.whole
join pg_catalog.pg_namespace n on n.oid = w.relnamespace";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CountReport {
    /// What is wrong.
    pub findings: Vec<RelationFinding>,
    /// What was not looked at, and why.
    pub not_examined: Vec<(String, String)>,
    /// Pages of zeros that may be new ones: no index knows of rows in them.
    pub empty_pages: Vec<EmptyPages>,
}

/// Pages of zeros inside a table. A server adds pages ahead of use and a crash leaves them,
/// so they are only a sign; index entries that point into a lost page are marked dead by
/// the first query that follows them, after which the index agrees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EmptyPages {
    /// `schema.name`.
    pub table: String,
    /// Path below the data directory.
    pub path: String,
    /// Block numbers, the first hundred.
    pub blocks: Vec<u64>,
    /// The backup set that has data in one of them.
    pub filled_in: Option<String>,
}

/// Compares the tables that the runbook names, and their partitions (all tables when `deep`), with
/// their indexes,
/// looks for pages of zeros in them, and when `deep` reads every row.
///
/// `facts` has the rows by sequential scan; only where an index disagrees with it are both
/// counted again in one snapshot. Ends after `deadline`; what was not reached is listed.
///
/// # Errors
/// [`PgError`] when there is no session, or the catalogue cannot be read.
pub async fn compare(
    spec: &ConnectSpec,
    tables: &BTreeMap<TableName, Table>,
    facts: Option<&DatabaseFacts>,
    deep: bool,
    deadline: Duration,
) -> Result<CountReport, PgError> {
    let until = Instant::now() + deadline;
    let client = Client::connect(spec).await?;
    let mut all = relations::list(&client).await?;
    // Many small ones rather than one large one, should the time not do for all.
    all.sort_by_key(|r| r.bytes);
    let is_named = |schema: &str, name: &str| tables.keys().any(|t| t.schema == schema && t.table == name);
    let mut report = CountReport::default();
    let parts: BTreeSet<u32> = match client.rows(PARTITIONS).await {
        Ok(rows) => rows
            .iter()
            .filter(|row| is_named(row.text(1), row.text(2)))
            .filter_map(|row| row.number(0))
            .collect(),
        Err(e) => {
            let partitions = "partitions of the runbook's tables".to_owned();
            report.not_examined.push((partitions, e.to_string()));
            BTreeSet::new()
        }
    };
    let mut work = Work {
        client,
        all: &all,
        until,
        report,
    };
    for r in &all {
        let named = is_named(&r.schema, &r.name) || parts.contains(&r.oid);
        if r.kind != RelationKind::Heap
            || r.system
            || r.access != "heap"
            || r.bytes.is_none()
            || !(named || deep)
        {
            continue;
        }
        let rows = facts
            .and_then(|f| f.relation(&r.schema, &r.name))
            .and_then(|f| f.rows);
        if let Err(e) = work.table(r, rows, deep).await {
            work.report.not_examined.push((r.qualified(), e.to_string()));
            if !matches!(&e, PgError::Server { severity, .. } if severity == "ERROR") {
                // The session is gone; the tables after this one were not looked at either.
                break;
            }
        }
    }
    work.report.findings = relations::merge(work.report.findings);
    Ok(work.report)
}

struct Work<'a> {
    client: Client,
    all: &'a [Relation],
    until: Instant,
    report: CountReport,
}

impl Work<'_> {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    async fn ask(&self, sql: &str) -> Result<Vec<crate::postgres::Row>, PgError> {
        self.client
            .within(self.left().max(Duration::from_millis(50)), sql)
            .await
    }

    async fn count(&self, sql: &str) -> Result<u64, PgError> {
        Ok(self
            .ask(sql)
            .await?
            .first()
            .and_then(|r| r.number(0))
            .unwrap_or_default())
    }

    /// Notes damage as a finding; anything else ends the look at this table.
    fn note(&mut self, r: &Relation, check: Check, e: PgError) -> Result<(), PgError> {
        if relations::is_damage(&e) {
            self.report
                .findings
                .push(relations::finding_of(self.all, r, check, &e));
            Ok(())
        } else {
            Err(e)
        }
    }

    async fn table(&mut self, r: &Relation, rows: Option<u64>, deep: bool) -> Result<(), PgError> {
        if self.left().is_zero() {
            self.report.not_examined.push((
                r.qualified(),
                "the time allowed ran out before it was compared with its index".into(),
            ));
            return Ok(());
        }
        let missing = match self.index_against_table(r, rows).await {
            Ok(missing) => missing,
            Err(e) => {
                self.note(r, Check::IndexAgainstHeap, e)?;
                None
            }
        };
        if let Err(e) = self.zero_pages(r, missing, deep).await {
            self.note(r, Check::ZeroPages, e)?;
        }
        if deep {
            // The text form of a row needs every value of it, the out-of-line ones too.
            let sql = format!("select count(t::text) from only {} t", sql_name(r));
            if let Err(e) = self.ask(&format!("{BY_TABLE}; {sql}")).await {
                self.note(r, Check::FullRead, e)?;
            }
        }
        Ok(())
    }

    /// Rows that the index has and the table has not; `None` when there is no index to ask.
    async fn index_against_table(&mut self, r: &Relation, rows: Option<u64>) -> Result<Option<u64>, PgError> {
        self.client.execute(BY_INDEX).await?;
        let sql = format!("select count(*) from only {}", sql_name(r));
        let plan = self.ask(&format!("explain {sql}")).await?;
        let Some(index) = plan.iter().find_map(|row| used_index(row.text(0))) else {
            return Ok(None);
        };
        let by_index = self.count(&sql).await?;
        if rows == Some(by_index) {
            return Ok(Some(0));
        }
        // Rows may have come in between: only one snapshot can tell.
        self.client
            .execute("begin isolation level repeatable read read only")
            .await?;
        let both = async {
            let by_index = self.count(&sql).await?;
            self.client.execute(BY_TABLE).await?;
            Ok::<_, PgError>((by_index, self.count(&sql).await?))
        }
        .await;
        // Also takes back what was set since.
        self.client.execute("rollback").await?;
        let (by_index, by_table) = both?;
        if by_index > by_table {
            self.report.findings.push(RelationFinding {
                rows_missing: Some(by_index - by_table),
                ..r.finding(
                    Check::IndexAgainstHeap,
                    format!("its index {index} has {by_index} rows, the table {by_table}"),
                )
            });
        } else if by_index < by_table
            && let Some(i) = self
                .all
                .iter()
                .find(|i| i.name == index && i.table == r.qualified())
        {
            self.report.findings.push(i.finding(
                Check::IndexAgainstHeap,
                format!("it has {by_index} rows, its table {by_table}"),
            ));
        }
        Ok(Some(by_index.saturating_sub(by_table)))
    }

    /// Pages of zeros before the last page that is none, in which the server finds no row.
    /// The server itself adds such pages ahead of use: see [`judge`].
    async fn zero_pages(&mut self, r: &Relation, missing: Option<u64>, deep: bool) -> Result<(), PgError> {
        let blocks = r.blocks();
        // Precision does not matter in an estimate.
        #[allow(clippy::cast_precision_loss)]
        let expected = blocks as f64 * SECONDS_PER_PAGE;
        let suspicious = missing.is_some_and(|m| m > 0);
        if blocks < 2
            || (!deep && !suspicious && expected > HEADER_LIMIT)
            || expected > self.left().as_secs_f64()
        {
            if blocks >= 2 {
                self.report.not_examined.push((
                    r.qualified(),
                    "the headers of its pages were not looked at: too many for the time allowed".into(),
                ));
            }
            return Ok(());
        }
        let found = self
            .ask(&format!(
                "with h as materialized (select b, pg_catalog.pg_read_binary_file({path} || \
                 case when b >= 131072 then '.' || b / 131072 else '' end, (b % 131072) * 8192, 24, true) \
                 = pg_catalog.decode(pg_catalog.repeat('00', 24), 'hex') as zero \
                 from pg_catalog.generate_series(0::bigint, {last}) b) \
                 select b from h where zero and b < (select max(b) from h where not zero) order by b limit {MAX_BLOCKS}",
                path = quote_literal(&r.path),
                last = blocks - 1,
            ))
            .await?;
        let mut confirmed = Vec::new();
        for block in found.iter().filter_map(|row| row.number::<u64>(0)) {
            // Newer in memory than on disk: then the server finds rows there.
            let rows = self
                .count(&format!(
                    "select count(*) from only {} where ctid >= '({block},0)'::tid and ctid < '({},0)'::tid",
                    sql_name(r),
                    block + 1
                ))
                .await?;
            if rows == 0 {
                confirmed.push(block);
            }
        }
        if confirmed.is_empty() {
            return Ok(());
        }
        judge(&mut self.report, r, confirmed, missing);
        Ok(())
    }
}

/// What pages of zeros say. Only an index that knows rows which are not there makes them damage:
/// where it agrees, and where there is none to ask, they may be pages that a crash has left.
fn judge(report: &mut CountReport, r: &Relation, blocks: Vec<u64>, missing: Option<u64>) {
    let text = format!("{} pages inside the table hold only zeros", blocks.len());
    if missing.is_some_and(|rows| rows > 0) {
        report.findings.push(RelationFinding {
            blocks,
            rows_missing: missing,
            ..r.finding(Check::ZeroPages, text)
        });
        return;
    }
    let list: Vec<String> = blocks.iter().take(10).map(ToString::to_string).collect();
    let index = match missing {
        Some(_) => "its index agrees with the table",
        None => "no index could tell",
    };
    report.not_examined.push((
        r.qualified(),
        format!(
            "{text} (block {}); {index}, so they may be new pages",
            list.join(", ")
        ),
    ));
    report.empty_pages.push(EmptyPages {
        table: r.qualified(),
        path: r.path.clone(),
        blocks,
        filled_in: None,
    });
}

fn sql_name(r: &Relation) -> String {
    format!("{}.{}", quote_ident(&r.schema), quote_ident(&r.name))
}

/// `orders_pkey` of `  ->  Parallel Index Only Scan using orders_pkey on orders  (cost=…)`.
fn used_index(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("Index Only Scan using ")?;
    let (name, _) = rest.split_once(" on ")?;
    let name = name
        .strip_prefix('"')
        .and_then(|n| n.strip_suffix('"'))
        .unwrap_or(name);
    Some(name.replace("\"\"", "\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_a_plan() {
        let line =
            "  ->  Parallel Index Only Scan using orders_pkey on orders  (cost=0.43..1 rows=1 width=0)";
        assert_eq!(used_index(line).as_deref(), Some("orders_pkey"));
        assert_eq!(
            used_index("Index Only Scan using \"a b\" on t  (cost=1)").as_deref(),
            Some("a b")
        );
        assert_eq!(used_index("Seq Scan on orders  (cost=1)"), None);
    }

    #[test]
    fn pages_of_zeros_are_damage_only_where_an_index_knows_their_rows() {
        let table = Relation {
            oid: 1,
            schema: "public".into(),
            name: "log".into(),
            kind: RelationKind::Heap,
            table: "public.log".into(),
            path: "base/1/2".into(),
            bytes: Some(10 * 8192),
            pages: 10,
            rows: 100.0,
            access: "heap".into(),
            usable: true,
            system: false,
            unlogged: false,
        };
        for (missing, findings, empty) in [(Some(3), 1, 0), (Some(0), 0, 1), (None, 0, 1)] {
            let mut report = CountReport::default();
            judge(&mut report, &table, vec![4], missing);
            let found = (report.findings.len(), report.empty_pages.len());
            assert_eq!(found, (findings, empty), "{missing:?}");
        }
    }
}
