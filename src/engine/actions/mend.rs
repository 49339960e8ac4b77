//! Takes out of a copy of the damage what cannot be read, so that the rest can be used and
//! proven. Only ever on a side server that runs on a copy: the damage itself is kept.
//!
//! A damaged table is written anew without the pages that fail; indexes are built anew;
//! values out of line that are gone are cleared. Rows that refer to a lost one would break
//! every later restore of a dump: they are set aside in a schema of their own, and stay.

use super::cluster::{owner, script};
use super::scripts::EMPTY_FILES;
use super::{ActionContext, ActionError, pg};
use crate::postgres::{Client, ConnectSpec, PgError, quote_ident, quote_literal, quote_qualified};
use crate::probe::amcheck::{self, AmcheckOptions};
use crate::probe::relations::{self, RelationFinding, RelationKind};
use crate::system::PostgresServer;

/// Where rows go that refer to lost ones.
pub const SET_ASIDE: &str = "drctl_set_aside";
/// Blocks that are read in one statement at first.
const RANGE: u64 = 1024;
/// A chain of references longer than this is a circle.
const LONGEST_CHAIN: u32 = 16;

/// What became of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mended {
    database: String,
    tables: Vec<Rewritten>,
    indexes: Vec<String>,
    /// Table and rows that were set aside.
    aside: Vec<(String, u64)>,
}

/// A table that was written anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rewritten {
    table: String,
    /// Pages that could not be read, when they could be counted.
    pages: Option<u64>,
    /// Values out of line that were cleared, and rows that were dropped with theirs.
    cleared: (u64, u64),
    rows: u64,
}

impl Mended {
    /// A line per loss; none when nothing was lost.
    pub(super) fn words(all: &[Self]) -> Vec<String> {
        let mut lines = Vec::new();
        for m in all {
            for t in &m.tables {
                let mut line = format!("{} of {}: ", t.table, m.database);
                match t.pages {
                    Some(0) => line += "written anew",
                    Some(n) => line += &format!("the rows of {n} damaged {} are lost", plural(n, "page")),
                    None => line += "what cannot be read is lost",
                }
                let (cleared, dropped) = t.cleared;
                if cleared > 0 {
                    line += &format!(", {cleared} long {} cleared", plural(cleared, "value"));
                }
                if dropped > 0 {
                    line += &format!(
                        ", {dropped} {} with unreadable values lost",
                        plural(dropped, "row")
                    );
                }
                lines.push(format!("{line}, {} {} kept", t.rows, plural(t.rows, "row")));
            }
            for (table, rows) in &m.aside {
                lines.push(format!(
                    "{rows} {} of {table} of {} refer to lost ones and are set aside in schema {SET_ASIDE}",
                    plural(*rows, "row"),
                    m.database
                ));
            }
        }
        lines
    }
}

fn plural(n: u64, noun: &str) -> String {
    if n == 1 {
        noun.to_owned()
    } else {
        format!("{noun}s")
    }
}

/// Mends every database of the side server. `doubtful` when rows may be missing although
/// nothing is damaged: its log was thrown away.
pub(super) async fn all(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    run: &str,
    admin: &ConnectSpec,
    tables: &[(String, Vec<String>)],
    doubtful: bool,
) -> Result<Vec<Mended>, ActionError> {
    let names = Client::connect(admin)
        .await
        .map_err(pg("connecting to the copy"))?
        .rows("select datname from pg_catalog.pg_database where datallowconn order by 1")
        .await
        .map_err(pg("listing the databases of the copy"))?;
    let mut mended = Vec::new();
    for row in names {
        let name = row.text(0);
        let known = tables
            .iter()
            .find(|(d, _)| d == name)
            .map(|(_, t)| t.as_slice())
            .unwrap_or_default();
        let spec = admin.to_database(name).writable();
        let one = Mending {
            cx,
            server,
            run,
            spec: &spec,
        };
        mended.push(one.database(known, doubtful).await?);
    }
    Ok(mended)
}

struct Mending<'a> {
    cx: &'a ActionContext<'a>,
    server: &'a PostgresServer,
    run: &'a str,
    spec: &'a ConnectSpec,
}

impl Mending<'_> {
    async fn database(&self, known: &[String], doubtful: bool) -> Result<Mended, ActionError> {
        let database = &self.spec.database;
        let options = AmcheckOptions {
            relations: None,
            heap_all_indexed: true,
            parent_check: false,
            borrow_pageinspect: true,
            deadline: self.cx.deadline,
            workers: 2,
        };
        let report = amcheck::check(self.spec, &options)
            .await
            .map_err(pg(format!("checking the structure of {database}")))?;
        let mut mended = Mended {
            database: database.clone(),
            ..Mended::default()
        };
        if report.findings.is_empty() && known.is_empty() && !doubtful {
            return Ok(mended);
        }
        let client = Client::connect(self.spec)
            .await
            .map_err(pg(format!("connecting to {database}")))?;
        // No trigger fires and no foreign key acts: nobody changes anything here, it is lost.
        // An index may be what is damaged, so none is asked.
        client
            .execute(
                "set session_replication_role = replica; set enable_indexscan = off; set jit = off; \
                 set enable_indexonlyscan = off; set enable_bitmapscan = off",
            )
            .await
            .map_err(pg("preparing to mend the copy"))?;
        self.missing_files(&client).await?;
        let system =
            |f: &RelationFinding| f.table.starts_with("pg_") || f.table.starts_with("information_schema.");
        let of_table = |f: &&RelationFinding| matches!(f.kind, RelationKind::Heap | RelationKind::Toast);
        let mut damaged: Vec<String> = known.to_vec();
        damaged.extend(
            report
                .findings
                .iter()
                .filter(|f| !system(f))
                .filter(of_table)
                .map(|f| f.table.clone()),
        );
        damaged.sort();
        damaged.dedup();
        for table in &damaged {
            let out_of_line = report.findings.iter().any(|f| {
                f.table == *table && matches!(f.kind, RelationKind::Toast | RelationKind::ToastIndex)
            }) || known.contains(table);
            mended.tables.push(self.table(&client, table, out_of_line).await?);
        }
        for finding in &report.findings {
            let index = matches!(finding.kind, RelationKind::Index | RelationKind::ToastIndex);
            if index && !damaged.contains(&finding.table) && !mended.indexes.contains(&finding.relation) {
                let sql = format!("reindex index {}", quote_qualified(&finding.relation));
                self.run(&client, &sql, || format!("rebuilding index {}", finding.relation))
                    .await?;
                mended.indexes.push(finding.relation.clone());
            }
        }
        if !damaged.is_empty() || doubtful {
            mended.aside = self.set_orphans_aside(&client).await?;
        }
        Ok(mended)
    }

    async fn run(
        &self,
        client: &Client,
        sql: &str,
        what: impl Fn() -> String,
    ) -> Result<Vec<crate::postgres::Row>, ActionError> {
        client.within(self.cx.deadline, sql).await.map_err(pg(what()))
    }

    /// A relation whose file is gone cannot even be planned for. An empty file is what it
    /// has now.
    async fn missing_files(&self, client: &Client) -> Result<(), ActionError> {
        let all = relations::list(client)
            .await
            .map_err(pg("listing the relations of the copy"))?;
        let missing: Vec<&str> = all
            .iter()
            .filter(|r| r.bytes.is_none() && !r.system)
            .map(|r| r.path.as_str())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let owner = owner(self.cx, self.server).await?;
        // Paths of pg_relation_filepath are digits, slashes and pg_tblspc/…/PG_…: none has a line end.
        let files = missing.join("\n");
        let empty = [("TO", "new"), ("FILES", &files), ("OWNER", &owner)];
        script(
            self.cx,
            self.server,
            self.run,
            "empty-files",
            EMPTY_FILES,
            &empty,
            Vec::new(),
        )
        .await
        .map(drop)
    }

    /// Writes a table anew without what cannot be read.
    async fn table(&self, client: &Client, table: &str, out_of_line: bool) -> Result<Rewritten, ActionError> {
        let name = quote_qualified(table);
        let what = || format!("writing {table} anew");
        let pages = self.unreadable_pages(client, &name).await;
        // Where a page fails its checksum the server takes it for an empty one; it stays so
        // only because the table is written anew.
        self.run(client, "set zero_damaged_pages = on", what).await?;
        let cleared = if out_of_line {
            self.clear_values(client, &name, table).await?
        } else {
            (0, 0)
        };
        self.run(client, &format!("vacuum (full, analyze) {name}"), what)
            .await?;
        self.run(client, "set zero_damaged_pages = off", what).await?;
        let rows = self
            .run(client, &format!("select count(*) from only {name}"), what)
            .await?;
        Ok(Rewritten {
            table: table.to_owned(),
            pages,
            cleared,
            rows: rows.first().and_then(|r| r.number(0)).unwrap_or_default(),
        })
    }

    /// How many pages fail; `None` where that cannot be told: every statement on the table
    /// fails when one of its indexes cannot be planned with.
    async fn unreadable_pages(&self, client: &Client, name: &str) -> Option<u64> {
        let size = format!(
            "select pg_catalog.pg_relation_size(to_regclass({})) / current_setting('block_size')::bigint",
            quote_literal(name)
        );
        let blocks: u64 = client.value(&size).await.ok()??.parse().ok()?;
        client
            .execute(&format!("select from only {name} where ctid = '(0,0)' limit 0"))
            .await
            .ok()?;
        let mut ranges: Vec<(u64, u64)> = (0..blocks.div_ceil(RANGE))
            .map(|n| (n * RANGE, ((n + 1) * RANGE).min(blocks)))
            .collect();
        let mut bad = 0;
        while let Some((low, high)) = ranges.pop() {
            let sql =
                format!("select count(*) from only {name} where ctid >= '({low},0)' and ctid < '({high},0)'");
            match client.within(self.cx.deadline, &sql).await {
                Ok(_) => {}
                Err(PgError::Server { .. }) if high - low > 1 => {
                    let middle = low + (high - low) / 2;
                    ranges.extend([(low, middle), (middle, high)]);
                }
                Err(PgError::Server { .. }) => bad += 1,
                Err(_) => return None,
            }
        }
        Some(bad)
    }

    /// Clears each long value that cannot be read: NULL where the column takes it, a mark in
    /// a text; a row that takes neither goes. Gives the values and the rows.
    async fn clear_values(
        &self,
        client: &Client,
        name: &str,
        table: &str,
    ) -> Result<(u64, u64), ActionError> {
        let what = || format!("clearing what cannot be read in {table}");
        let sql = CLEAR_VALUES.replace("$TABLE", &quote_literal(name));
        self.run(client, &sql, what).await?;
        let counted = self
            .run(
                client,
                "select current_setting('drctl.cleared'), current_setting('drctl.dropped')",
                what,
            )
            .await?;
        let number = |column| counted.first().and_then(|r| r.number(column)).unwrap_or_default();
        Ok((number(0), number(1)))
    }

    /// Moves rows whose parent is lost to the schema for them, children of children after
    /// them.
    async fn set_orphans_aside(&self, client: &Client) -> Result<Vec<(String, u64)>, ActionError> {
        let keys = client
            .rows(
                "select cn.nspname, cc.relname, format('%I.%I', cn.nspname, cc.relname), format('%I.%I', pn.nspname, pc.relname), \
                 string_agg(format('s.%I is not null', ca.attname), ' and '), \
                 string_agg(format('p.%I = s.%I', pa.attname, ca.attname), ' and ') \
                 from pg_catalog.pg_constraint c cross join unnest(c.conkey, c.confkey) as k(child, parent) \
                 join pg_catalog.pg_attribute ca on ca.attrelid = c.conrelid and ca.attnum = k.child \
                 join pg_catalog.pg_attribute pa on pa.attrelid = c.confrelid and pa.attnum = k.parent \
                 join pg_catalog.pg_class cc on cc.oid = c.conrelid join pg_catalog.pg_namespace cn on cn.oid = cc.relnamespace \
                 join pg_catalog.pg_class pc on pc.oid = c.confrelid join pg_catalog.pg_namespace pn on pn.oid = pc.relnamespace \
                 where c.contype = 'f' and c.convalidated and c.conparentid = 0 group by c.oid, 1, 2, 3, 4",
            )
            .await
            .map_err(pg("reading the foreign keys"))?;
        let mut moved: Vec<(String, u64)> = Vec::new();
        for _ in 0..LONGEST_CHAIN {
            let mut more = false;
            for key in &keys {
                let table = format!("{}.{}", key.text(0), key.text(1));
                let what = || format!("setting aside rows of {table} that refer to lost ones");
                let orphans = format!(
                    "from {} s where {} and not exists (select from {} p where {})",
                    key.text(2),
                    key.text(4),
                    key.text(3),
                    key.text(5)
                );
                let count = self
                    .run(client, &format!("select count(*) {orphans}"), what)
                    .await?;
                let count: u64 = count.first().and_then(|r| r.number(0)).unwrap_or_default();
                if count == 0 {
                    continue;
                }
                let side: String = format!("{}_{}", key.text(0), key.text(1))
                    .chars()
                    .take(50)
                    .collect();
                let side = format!("{}.{}", quote_ident(SET_ASIDE), quote_ident(&side));
                let sql = format!(
                    "begin; set local statement_timeout = 0; create schema if not exists {0}; \
                     create table if not exists {side} as select * from {1} with no data; \
                     comment on schema {0} is {2}; \
                     with gone as (delete {orphans} returning s.*) insert into {side} select * from gone; commit",
                    quote_ident(SET_ASIDE),
                    key.text(2),
                    quote_literal(&format!(
                        "Rows that refer to rows which incident {} could not save. Drop it when they were looked at.",
                        self.run
                    )),
                );
                if let Err(e) = client.within(self.cx.deadline, &sql).await {
                    let _ = client.execute("rollback").await;
                    return Err(pg(what())(e));
                }
                more = true;
                match moved.iter_mut().find(|(t, _)| *t == table) {
                    Some((_, n)) => *n += count,
                    None => moved.push((table, count)),
                }
            }
            if !more {
                return Ok(moved);
            }
        }
        Err(ActionError::Other(format!(
            "rows of {} refer to one another in a circle: they cannot be set aside",
            self.spec.database
        )))
    }
}

/// `$TABLE` is the quoted name as a string constant.
const CLEAR_VALUES: &str = r"
do $drctl$
declare
  t constant regclass := to_regclass($TABLE);
  at tid; c record; kept tid; cleared bigint := 0; dropped bigint := 0;
begin
  for at in execute format('select ctid from only %s', t) loop
    begin
      execute format('select length(x::text) from only %s x where ctid = $1', t) using at;
      continue;
    exception when data_corrupted or index_corrupted or internal_error or undefined_file or data_exception then
      null;
    end;
    kept := at;
    for c in select attname, attnotnull, typcategory, typname from pg_catalog.pg_attribute a
      join pg_catalog.pg_type y on y.oid = a.atttypid
      where a.attrelid = t and attnum > 0 and not attisdropped and attlen = -1 and attgenerated = ''
    loop
      begin
        execute format('select length(%I::text) from only %s where ctid = $1', c.attname, t) using kept;
      exception when data_corrupted or index_corrupted or internal_error or undefined_file or data_exception then
        begin
          execute format('update only %s set %I = %s where ctid = $1 returning ctid', t, c.attname,
            case when not c.attnotnull then 'null'
              when c.typcategory = 'S' then quote_literal('[lost]')
              when c.typname = 'bytea' then quote_literal('')
              when c.typname in ('json', 'jsonb') then quote_literal('null')
              else 'null' end) into kept using kept;
          cleared := cleared + 1;
        exception when integrity_constraint_violation then
          execute format('delete from only %s where ctid = $1', t) using kept;
          dropped := dropped + 1;
          exit;
        end;
      end;
    end loop;
  end loop;
  perform set_config('drctl.cleared', cleared::text, false), set_config('drctl.dropped', dropped::text, false);
end
$drctl$";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_is_said_and_no_more() {
        let sound = Mended {
            database: "postgres".into(),
            indexes: vec!["public.i".into()],
            ..Mended::default()
        };
        let app = Mended {
            database: "app".into(),
            tables: vec![
                Rewritten {
                    table: "public.orders".into(),
                    pages: Some(1),
                    cleared: (0, 0),
                    rows: 19_935,
                },
                Rewritten {
                    table: "public.docs".into(),
                    pages: Some(0),
                    cleared: (2, 1),
                    rows: 399,
                },
            ],
            aside: vec![("public.order_lines".into(), 130)],
            ..Mended::default()
        };
        assert!(Mended::words(std::slice::from_ref(&sound)).is_empty());
        assert_eq!(
            Mended::words(&[sound, app]),
            [
                "public.orders of app: the rows of 1 damaged page are lost, 19935 rows kept",
                "public.docs of app: written anew, 2 long values cleared, 1 row with unreadable values lost, 399 rows kept",
                "130 rows of public.order_lines of app refer to lost ones and are set aside in schema drctl_set_aside",
            ]
        );
    }
}
