//! Facts about a database, recorded while it is well. Some losses no server tool sees: a
//! truncated or emptied relation, a page of zeros, WAL that was not replayed to its end.
//! Only a comparison with what was true before shows them.

mod counting;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::counting::{count, newest};
use crate::postgres::{Client, Lsn, PgError, Row};
use crate::runbook::{Table, TableName};
use crate::system::PostgresServer;

/// What was true of one database at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DatabaseFacts {
    /// When the snapshot was taken, by the server's clock.
    pub taken_at: Timestamp,
    /// WAL position at that moment (replay position on a standby).
    pub lsn: Lsn,
    /// `pg_database_size`, bytes.
    pub bytes: u64,
    /// When the statistics began (`pg_stat_database`); the counters `inserted` and `deleted`
    /// of two facts can be compared only when this is the same in both.
    pub stats_reset: Option<Timestamp>,
    /// When the server last began to count from nothing (`pg_stat_archiver`): a crash throws
    /// every counter away and leaves no other trace of that. None when it does not count at
    /// all, and in facts of an older format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats_since: Option<Timestamp>,
    /// Relations of the user's schemas, by schema and name.
    pub relations: Vec<RelationFact>,
}

/// What was true of one relation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RelationFact {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// What it is.
    pub kind: RelationKind,
    /// Path below the data directory (`pg_relation_filepath`); none for a partitioned table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Bytes of the main fork (`pg_relation_size`).
    pub bytes: u64,
    /// `relpages`: the pages that the last VACUUM or ANALYZE saw. Not `bytes` divided by the
    /// page size: the difference between the two is itself evidence.
    pub pages: u64,
    /// `reltuples`, when the table was ever analysed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_rows: Option<u64>,
    /// Rows, counted by a sequential scan (an index-only scan counts rows that are gone) or in
    /// the dump's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// The greatest value of the column that the runbook names as `newest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<Newest>,
    /// Rows inserted since the statistics began (`n_tup_ins`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inserted: Option<u64>,
    /// Rows deleted since the statistics began (`n_tup_del`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<u64>,
    /// Rows updated since the statistics began (`n_tup_upd`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<u64>,
    /// Whether it is not in the write-ahead log (`relpersistence`): a crash and a restored base
    /// backup empty it, and that is how it was made. Facts of an older format do not say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlogged: bool,
    /// The table of an index, `schema.table`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_of: Option<String>,
    /// The table of a toast relation, `schema.table`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toast_of: Option<String>,
    /// Why the rows could not be counted, in the server's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a relation is (`pg_class.relkind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelationKind {
    /// A table.
    Table,
    /// A partitioned table: no storage of its own.
    Partitioned,
    /// An index.
    Index,
    /// Out-of-line storage of a table.
    Toast,
    /// A materialised view.
    Matview,
    /// A sequence.
    Sequence,
}

/// The newest value of a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Newest {
    /// The column.
    pub column: String,
    /// Its greatest value as the server prints it; `None` in an empty table.
    pub value: Option<String>,
    /// The same as an instant; a time without a zone is taken as UTC.
    pub at: Option<Timestamp>,
}

impl DatabaseFacts {
    /// The relation `schema.name`.
    #[must_use]
    pub fn relation(&self, schema: &str, name: &str) -> Option<&RelationFact> {
        self.relations
            .iter()
            .find(|r| r.schema == schema && r.name == name)
    }

    /// Records the rows of `schema.name`, counted elsewhere.
    pub fn set_rows(&mut self, schema: &str, name: &str, rows: u64) {
        if let Some(fact) = self
            .relations
            .iter_mut()
            .find(|r| r.schema == schema && r.name == name && r.kind == RelationKind::Table)
        {
            fact.rows = Some(rows);
        }
    }

    /// Exact row counts by `schema.table`, of those that were counted.
    #[must_use]
    pub fn rows(&self) -> BTreeMap<String, u64> {
        self.relations
            .iter()
            .filter_map(|r| Some((r.qualified(), r.rows?)))
            .collect()
    }
}

impl RelationFact {
    /// `schema.name`.
    #[must_use]
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// Sizes, estimates and counters of every user relation, without reading any of them.
/// Toast relations and their indexes live in `pg_toast`, and belong to the user when their
/// table does. `pg_toast` alone would also bring those of the system catalogues.
const RELATIONS: &str = r#"
with mine as (
  select c.oid, c.reltoastrelid from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
    and c.relkind in ('r', 'p', 'm', 'S') and c.relpersistence <> 't'
), wanted as (
  select oid from mine
  union select reltoastrelid from mine where reltoastrelid <> 0
), everything as (
  select oid, null::oid as parent from wanted
  union select i.indexrelid, i.indrelid from pg_catalog.pg_index i join wanted w on w.oid = i.indrelid
)
select n.nspname, c.relname, c.relkind, pg_catalog.pg_relation_filepath(c.oid),
  pg_catalog.pg_relation_size(c.oid), c.relpages, c.reltuples::numeric,
  s.n_tup_ins, s.n_tup_del,
  (select pn.nspname || '.' || p.relname from pg_catalog.pg_class p
     join pg_catalog.pg_namespace pn on pn.oid = p.relnamespace where p.oid = e.parent),
  case when c.relkind = 't' then
    (select tn.nspname || '.' || t.relname from pg_catalog.pg_class t
       join pg_catalog.pg_namespace tn on tn.oid = t.relnamespace where t.reltoastrelid = c.oid) end,
  s.n_tup_upd, c.relpersistence = 'u'
from everything e
join pg_catalog.pg_class c on c.oid = e.oid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join pg_catalog.pg_stat_all_tables s on s.relid = c.oid and c.relkind in ('r', 't', 'm')
order by n.nspname collate pg_catalog."C", c.relname collate pg_catalog."C""#;

const DATABASE: &str = r#"
select pg_catalog.to_char(pg_catalog.transaction_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
  case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
       else pg_catalog.pg_current_wal_lsn() end,
  pg_catalog.pg_database_size(pg_catalog.current_database()),
  (select pg_catalog.to_char(stats_reset at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
     from pg_catalog.pg_stat_database where datname = pg_catalog.current_database()),
  case when pg_catalog.current_setting('track_counts')::boolean then
    (select pg_catalog.to_char(stats_reset at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
       from pg_catalog.pg_stat_archiver) end"#;

/// Tables whose rows are what `count(*)` says and what a dump holds of them: no members of
/// extensions, which a dump may hold in part, and no parents, whose children count too.
const PLAIN_TABLES: &str = "
select c.oid, n.nspname, c.relname from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and c.relpersistence <> 't' and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
  and not exists (select 1 from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_class'::regclass
    and d.objid = c.oid and d.deptype = 'e')
  and not exists (select 1 from pg_catalog.pg_inherits i where i.inhparent = c.oid)";

/// Whose rows are counted.
#[derive(Debug, Clone, Copy)]
pub enum Counting<'a> {
    /// Those of the tables that the runbook names.
    Named,
    /// Those of all tables.
    All,
    /// Those of all tables but these (schema, name): somebody else counts them. Their newest
    /// value is asked for, which an index answers at no cost.
    AllBut(&'a BTreeSet<(String, String)>),
}

/// An open repeatable-read snapshot of one database. While it is held, others can see
/// exactly the same (`pg_dump --snapshot`), and nothing that it sees is vacuumed away.
#[derive(Debug)]
pub struct Snapshot {
    client: Client,
}

impl Snapshot {
    /// Takes a snapshot of `database`.
    ///
    /// # Errors
    /// [`PgError`].
    pub async fn take(server: &PostgresServer, database: &str) -> Result<Self, PgError> {
        let client = server.connect_to(&server.admin.to_database(database)).await?;
        // An index-only scan believes the visibility map and counts rows that are gone; JIT
        // costs more than it saves on one pass.
        client
            .execute(
                "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; \
                 set jit = off; set idle_in_transaction_session_timeout = 0",
            )
            .await?;
        client
            .execute("begin isolation level repeatable read read only")
            .await?;
        Ok(Self { client })
    }

    /// A name by which other sessions of this database can see the same
    /// (`pg_export_snapshot`), for as long as this value lives.
    ///
    /// # Errors
    /// [`PgError`].
    pub async fn export(&self) -> Result<String, PgError> {
        let id = self
            .client
            .value("select pg_catalog.pg_export_snapshot()")
            .await?;
        Ok(id.unwrap_or_default())
    }

    /// Tables by their identifier, as (schema, name), whose rows a dump holds one for one.
    ///
    /// # Errors
    /// [`PgError`].
    pub async fn plain_tables(&self) -> Result<BTreeMap<u32, (String, String)>, PgError> {
        let rows = self.client.rows(PLAIN_TABLES).await?;
        Ok(rows
            .iter()
            .filter_map(|r| Some((r.number(0)?, (r.text(1).to_owned(), r.text(2).to_owned()))))
            .collect())
    }

    /// Counts those of `tables` that have no count yet; see [`Snapshot::read`].
    ///
    /// # Errors
    /// As [`Snapshot::read`].
    pub async fn count_rest(
        &self,
        facts: &mut DatabaseFacts,
        tables: &BTreeSet<(String, String)>,
        deadline: Duration,
    ) -> Result<(), PgError> {
        for fact in &mut facts.relations {
            if fact.rows.is_none()
                && fact.problem.is_none()
                && fact.kind == RelationKind::Table
                && tables.contains(&(fact.schema.clone(), fact.name.clone()))
            {
                let column = fact.newest.as_ref().map(|n| n.column.clone());
                count(&self.client, fact, column, deadline).await?;
            }
        }
        Ok(())
    }

    /// Reads the facts. `counting` says which rows are counted; `deadline` bounds each count,
    /// the server's probe deadline everything else.
    ///
    /// A table that cannot be read is a fact too: its `problem` says why, and the others are
    /// still counted.
    ///
    /// # Errors
    /// [`PgError`] when the connection breaks or a catalogue query fails.
    pub async fn read(
        &self,
        tables: &BTreeMap<TableName, Table>,
        counting: Counting<'_>,
        deadline: Duration,
    ) -> Result<DatabaseFacts, PgError> {
        let head = self.client.rows(DATABASE).await?;
        let head = head.first();
        let mut facts = DatabaseFacts {
            taken_at: head.and_then(|r| r.number(0)).unwrap_or_else(Timestamp::now),
            lsn: head.and_then(|r| r.number(1)).unwrap_or_default(),
            bytes: head.and_then(|r| r.number(2)).unwrap_or_default(),
            stats_reset: head.and_then(|r| r.number(3)),
            stats_since: head.and_then(|r| r.number(4)),
            relations: self
                .client
                .within(deadline, RELATIONS)
                .await?
                .iter()
                .filter_map(relation)
                .collect(),
        };
        for fact in &mut facts.relations {
            let named = tables
                .iter()
                .find(|(n, _)| n.schema == fact.schema && n.table == fact.name)
                .map(|(_, t)| t);
            let column = named.and_then(|t| t.newest.as_ref()).map(ToString::to_string);
            if let Counting::AllBut(others) = counting
                && others.contains(&(fact.schema.clone(), fact.name.clone()))
            {
                if let Some(column) = column {
                    newest(&self.client, fact, column, deadline).await?;
                }
                continue;
            }
            let exact = !matches!(counting, Counting::Named);
            let counted = match fact.kind {
                RelationKind::Table => exact || named.is_some(),
                // Its partitions are counted for themselves; the whole only when asked for.
                RelationKind::Partitioned | RelationKind::Matview => named.is_some(),
                RelationKind::Index | RelationKind::Toast | RelationKind::Sequence => false,
            };
            if counted {
                count(&self.client, fact, column, deadline).await?;
            }
        }
        Ok(facts)
    }

    /// Ends the snapshot. Dropping it does the same, less politely.
    ///
    /// # Errors
    /// [`PgError`]; the snapshot is gone anyway.
    pub async fn release(self) -> Result<(), PgError> {
        self.client.execute("rollback").await
    }
}

/// Collects the facts of one database in one snapshot; see [`Snapshot::read`].
///
/// # Errors
/// [`PgError`] when there is no connection, it breaks, or a catalogue query fails.
pub async fn collect(
    server: &PostgresServer,
    database: &str,
    tables: &BTreeMap<TableName, Table>,
    exact: bool,
    deadline: Duration,
) -> Result<DatabaseFacts, PgError> {
    let snapshot = Snapshot::take(server, database).await?;
    let counting = if exact { Counting::All } else { Counting::Named };
    let facts = snapshot.read(tables, counting, deadline).await?;
    snapshot.release().await?;
    Ok(facts)
}

fn relation(row: &Row) -> Option<RelationFact> {
    let kind = match row.text(2) {
        "r" => RelationKind::Table,
        "p" => RelationKind::Partitioned,
        "i" => RelationKind::Index,
        "t" => RelationKind::Toast,
        "m" => RelationKind::Matview,
        "S" => RelationKind::Sequence,
        // A partitioned index ('I') has no storage.
        _ => return None,
    };
    Some(RelationFact {
        schema: row.text(0).to_owned(),
        name: row.text(1).to_owned(),
        kind,
        path: row.opt(3).map(str::to_owned),
        // NULL when the relation was dropped in between.
        bytes: row.number(4).unwrap_or_default(),
        pages: row.number(5).unwrap_or_default(),
        // -1: never analysed.
        estimated_rows: row.number(6),
        rows: None,
        newest: None,
        inserted: row.number(7),
        deleted: row.number(8),
        updated: row.number(11),
        unlogged: row.is_true(12),
        index_of: row.opt(9).map(str::to_owned),
        toast_of: row.opt(10).map(str::to_owned),
        problem: None,
    })
}
