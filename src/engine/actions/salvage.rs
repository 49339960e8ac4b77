//! Rows that damaged data still shows and the restored data lacks.
//!
//! A damaged table is read block range by block range: a range that fails is halved until
//! the bad block stands alone, and its rows are then tried one by one; so are rows that the
//! restored side does not take, as garbage among their values. What is read goes
//! into a temporary table of the restored side, is compared there by primary key, counted,
//! and inserted only where the runbook says so. Nothing is ever written to the damage.

mod merge;
mod read;

use serde::Serialize;

use self::merge::{Merged, Staged};
use self::read::Reader;
use super::{ActionContext, ActionError, Outcome, pg};
use crate::plan::SalvageTable;
use crate::postgres::{Client, ConnectSpec, PgError, Row, quote_ident, quote_literal, quote_qualified};

/// More line pointers than fit on a page of 8 KiB (`MaxHeapTuplesPerPage`).
const MAX_LINE_POINTERS: u32 = 291;
/// Rounds over tables that refer to each other in a circle: each lets in one generation more.
const MAX_ROUNDS: u32 = 100;

/// What came of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Salvaged {
    /// `schema.name`.
    pub table: String,
    /// Rows that were readable in the damage and new enough to matter.
    pub readable: u64,
    /// Of those, missing in the restored data.
    pub missing: u64,
    /// Of those, inserted.
    pub merged: u64,
    /// Blocks of which not every row could be read, of all partitions of a partitioned table.
    pub bad_blocks: Vec<u64>,
    /// Rows that the restored data does not take: garbage among their values, mostly.
    pub refused: u64,
    /// Why nothing or not everything was done.
    pub remark: Option<String>,
}

impl Salvaged {
    fn remark(&mut self, text: String) {
        self.remark = Some(match self.remark.take() {
            Some(before) => format!("{before}; {text}"),
            None => text,
        });
    }
}

/// Salvages tables in an order in which referenced tables come first.
pub(super) async fn tables(
    cx: &ActionContext<'_>,
    from: &ConnectSpec,
    into: &ConnectSpec,
    tables: &[SalvageTable],
) -> Result<Vec<Salvaged>, ActionError> {
    let target = Client::connect(into)
        .await
        .map_err(pg(format!("connecting to {}", into.database)))?;
    let source = Client::connect(from)
        .await
        .map_err(pg(format!("connecting to {}", from.database)))?;
    // An index of the damage may lie; the heap is the data.
    source
        .execute("set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; set jit = off")
        .await
        .map_err(pg("preparing to read the damage"))?;
    let mut done = Vec::new();
    let mut waiting = Vec::new();
    for (n, table) in in_reference_order(&target, tables).await?.into_iter().enumerate() {
        let (mut result, staged) = stage(cx, &source, &target, table, n).await?;
        if let Some(mut staged) = staged {
            if table.merge && result.missing > 0 {
                staged.merge(cx, &target, &mut result).await?;
            }
            if table.merge && staged.may_wait(&result) {
                waiting.push((done.len(), staged));
            } else {
                staged.settle(cx, &target, &mut result).await?;
            }
        }
        done.push(result);
    }
    // A row whose parent was brought over after it: tables that refer to each other in a circle.
    for _ in 0..MAX_ROUNDS {
        let mut more = 0;
        for (at, staged) in &mut waiting {
            if let Some(result) = done.get_mut(*at) {
                more += staged.merge(cx, &target, result).await?;
            }
        }
        if more == 0 {
            break;
        }
    }
    for (at, staged) in waiting {
        if let Some(result) = done.get_mut(at) {
            staged.settle(cx, &target, result).await?;
        }
    }
    sequences(&source, &target).await?;
    Ok(done)
}

/// Parents before children, so that a child's parent is there when the child is inserted.
async fn in_reference_order<'a>(
    target: &Client,
    tables: &'a [SalvageTable],
) -> Result<Vec<&'a SalvageTable>, ActionError> {
    let edges = target
        .rows(
            "select c.conrelid::regclass::oid::text, c.confrelid::regclass::oid::text, \
             cn.nspname || '.' || cc.relname, pn.nspname || '.' || pc.relname from pg_catalog.pg_constraint c \
             join pg_catalog.pg_class cc on cc.oid = c.conrelid join pg_catalog.pg_namespace cn on cn.oid = cc.relnamespace \
             join pg_catalog.pg_class pc on pc.oid = c.confrelid join pg_catalog.pg_namespace pn on pn.oid = pc.relnamespace \
             where c.contype = 'f' and c.conrelid <> c.confrelid",
        )
        .await
        .map_err(pg("reading the foreign keys"))?;
    let mut left: Vec<&SalvageTable> = tables.iter().collect();
    let mut ordered = Vec::new();
    while !left.is_empty() {
        let free = left
            .iter()
            .position(|t| {
                !edges
                    .iter()
                    .any(|e| e.text(2) == t.table && left.iter().any(|other| other.table == e.text(3)))
            })
            // A cycle: any order is as good, more rounds follow.
            .unwrap_or(0);
        ordered.push(left.remove(free));
    }
    Ok(ordered)
}

/// Reads what is new of a table into a temporary table of the target, the `n`th, and counts what
/// the target lacks. No [`Staged`] where nothing can be done with its rows.
async fn stage(
    cx: &ActionContext<'_>,
    source: &Client,
    target: &Client,
    table: &SalvageTable,
    n: usize,
) -> Result<(Salvaged, Option<Staged>), ActionError> {
    let mut result = Salvaged {
        table: table.table.clone(),
        ..Salvaged::default()
    };
    let name = quote_qualified(&table.table);
    let what = || pg(format!("salvaging {}", table.table));
    let shape = shape(target, &name).await.map_err(what())?;
    let parts = match parts(source, &name).await {
        Ok(parts) => parts,
        Err(e) => {
            result.remark(format!("the damage does not say what the table consists of: {e}"));
            return Ok((result, None));
        }
    };
    let Some(shape) = shape.filter(|_| !parts.is_empty()) else {
        result.remark("the table is not on both sides".into());
        return Ok((result, None));
    };
    if shape.key.is_empty() {
        result.remark("no primary key: rows cannot be told apart, so none are taken over".into());
        return Ok((result, None));
    }
    let stage = format!("pg_temp.drctl_stage_{n}");
    target
        .execute(&format!(
            "drop table if exists {stage}; create table {stage} as select {} from {name} with no data",
            shape.columns
        ))
        .await
        .map_err(what())?;
    let filter = match (&table.newest, &table.since) {
        (Some(column), Some(since)) => {
            let of_type = column_type(target, &name, column).await.map_err(what())?;
            newer_than(column, &of_type, since)
        }
        _ => String::new(),
    };
    for part in &parts {
        let Some(blocks) = block_count(source, part).await else {
            result.remark(format!(
                "the size of {part} is not known: none of its rows were read"
            ));
            continue;
        };
        let reader = Reader {
            cx,
            source,
            target,
            select: format!("select {} from only {part}", shape.columns),
            filter: filter.clone(),
            copy_in: format!("copy {stage} from stdin"),
        };
        reader.all(blocks, &mut result).await?;
    }
    // Fresh and without statistics, it would be joined row by row.
    target
        .within(cx.deadline, &format!("analyze {stage}"))
        .await
        .map_err(what())?;
    let absent = format!(
        "not exists (select 1 from {name} t where {})",
        shape
            .key
            .iter()
            .map(|c| format!("t.{0} = s.{0}", quote_ident(c)))
            .collect::<Vec<_>>()
            .join(" and ")
    );
    let count = |rows: Vec<Row>| rows.first().and_then(|r| r.number(0)).unwrap_or_default();
    result.missing = target
        .within(
            cx.deadline,
            &format!("select count(*) from {stage} s where {absent}"),
        )
        .await
        .map(count)
        .map_err(what())?;
    let staged = Staged {
        name,
        stage,
        shape,
        absent,
        merged: Merged::default(),
        tried: table.merge,
    };
    Ok((result, Some(staged)))
}

/// Both halves of a range of blocks, the lower one last: it is popped first.
fn halves(low: u64, high: u64) -> [(u64, u64); 2] {
    let middle = low + (high - low) / 2;
    [(middle, high), (low, middle)]
}

/// `of` is empty or an alias with its dot.
fn range_of(of: &str, low: u64, high: u64) -> String {
    format!("{of}ctid >= '({low},0)' and {of}ctid < '({high},0)'")
}

/// True when the values of a row are at fault (classes 22 and 23; P0 is said by functions of the
/// database, as in the check of a domain): the other rows may be good.
fn is_of_rows(e: &PgError) -> bool {
    matches!(e, PgError::Server { sqlstate, .. } if ["22", "23", "P0"].iter().any(|c| sqlstate.starts_with(c)))
}

/// What is needed to copy rows of a table and to tell them apart.
struct Shape {
    /// Columns that can be inserted (generated ones cannot), quoted and joined.
    columns: String,
    /// Primary key.
    key: Vec<String>,
    /// ` and …` per foreign key: it is null or its parent exists.
    parents: String,
    /// Whether one of them is to the table itself.
    refers_to_itself: bool,
}

async fn shape(target: &Client, name: &str) -> Result<Option<Shape>, PgError> {
    let table = quote_literal(name);
    let columns = target
        .rows(&format!(
            "select attname from pg_catalog.pg_attribute where attrelid = to_regclass({table}) \
             and attnum > 0 and not attisdropped and attgenerated = '' order by attnum"
        ))
        .await?;
    if columns.is_empty() {
        return Ok(None);
    }
    let key = target
        .rows(&format!(
            "select a.attname from pg_catalog.pg_index i cross join unnest(i.indkey) with ordinality k(attnum, n) \
             join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum \
             where i.indrelid = to_regclass({table}) and i.indisprimary order by k.n"
        ))
        .await?;
    let parents = target
        .rows(&format!(
            "select c.confrelid::regclass::text, \
             string_agg(format('s.%I is null', ca.attname), ' or '), \
             string_agg(format('p.%I = s.%I', pa.attname, ca.attname), ' and '), \
             c.confrelid = c.conrelid, string_agg(format('s.%I = s.%I', pa.attname, ca.attname), ' and ') \
             from pg_catalog.pg_constraint c cross join unnest(c.conkey, c.confkey) as k(child, parent) \
             join pg_catalog.pg_attribute ca on ca.attrelid = c.conrelid and ca.attnum = k.child \
             join pg_catalog.pg_attribute pa on pa.attrelid = c.confrelid and pa.attnum = k.parent \
             where c.contype = 'f' and c.conparentid = 0 and c.conrelid = to_regclass({table}) group by c.oid, 1"
        ))
        .await?;
    Ok(Some(Shape {
        columns: columns
            .iter()
            .map(|r| quote_ident(r.text(0)))
            .collect::<Vec<_>>()
            .join(", "),
        key: key.iter().map(|r| r.text(0).to_owned()).collect(),
        parents: parents
            .iter()
            .map(|r| parent_exists(r.text(0), r.text(1), r.text(2), r.is_true(3).then(|| r.text(4))))
            .collect::<Vec<_>>()
            .concat(),
        refers_to_itself: parents.iter().any(|r| r.is_true(3)),
    }))
}

/// ` and …`: a row `s` refers to none, to one that is there, or, where `itself` says when, to
/// itself.
fn parent_exists(parent: &str, none: &str, same: &str, itself: Option<&str>) -> String {
    let itself = itself.map_or_else(String::new, |same| format!(" or ({same})"));
    format!(" and ({none} or exists (select 1 from {parent} p where {same}){itself})")
}

/// The relations that hold the rows of a table, quoted: itself, or the partitions of one that is
/// partitioned, which has no blocks of its own. Foreign tables among them hold theirs elsewhere.
/// None when there is no such table.
async fn parts(source: &Client, name: &str) -> Result<Vec<String>, PgError> {
    let table = quote_literal(name);
    let kind = source
        .value(&format!(
            "select relkind from pg_catalog.pg_class where oid = to_regclass({table})"
        ))
        .await?;
    match kind.as_deref() {
        None => Ok(Vec::new()),
        Some("p") => Ok(source
            .rows(&format!(
                "select n.nspname, c.relname from pg_catalog.pg_partition_tree(to_regclass({table})) t \
                 join pg_catalog.pg_class c on c.oid = t.relid join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                 where t.isleaf and c.relkind = 'r' order by 1, 2"
            ))
            .await?
            .iter()
            .map(|r| format!("{}.{}", quote_ident(r.text(0)), quote_ident(r.text(1))))
            .collect()),
        Some(_) => Ok(vec![name.to_owned()]),
    }
}

/// The name of a column's type, of a domain that of the type below it.
async fn column_type(target: &Client, name: &str, column: &str) -> Result<String, PgError> {
    let sql = format!(
        "with recursive t as (select ty.oid, ty.typbasetype, ty.typname from pg_catalog.pg_attribute a \
         join pg_catalog.pg_type ty on ty.oid = a.atttypid where a.attrelid = to_regclass({}) and a.attname = {} \
         union all select ty.oid, ty.typbasetype, ty.typname from t join pg_catalog.pg_type ty on ty.oid = t.typbasetype) \
         select typname from t where typbasetype = 0",
        quote_literal(name),
        quote_literal(column)
    );
    Ok(target.value(&sql).await?.unwrap_or_default())
}

/// ` and …`: what is older than `since` is in the backup and need not be read. A type that holds
/// no zone may hold any zone's time, and a date is a day's beginning; of any other type nothing
/// is left out, and never a row without a value.
fn newer_than(column: &str, of_type: &str, since: &str) -> String {
    let column = quote_ident(column);
    let since = format!("{}::timestamptz", quote_literal(since));
    let from = match of_type {
        "timestamptz" => since,
        "timestamp" => format!("({since} at time zone 'UTC') - interval '26 hours'"),
        "date" => format!("({since} at time zone 'UTC')::date - 1"),
        _ => return String::new(),
    };
    format!(" and ({column} >= {from} or {column} is null)")
}

async fn block_count(source: &Client, name: &str) -> Option<u64> {
    source
        .value(&format!(
            "select pg_catalog.pg_relation_size(to_regclass({})) / current_setting('block_size')::bigint",
            quote_literal(name)
        ))
        .await
        .ok()??
        .parse()
        .ok()
}

/// Moves sequences forward to where the damage had them: numbers that users have seen are
/// not given out twice, whether or not their rows came back. Of a sequence that cannot be
/// read the restored value stands.
async fn sequences(source: &Client, target: &Client) -> Result<(), ActionError> {
    const LIST: &str = "select n.nspname, c.relname, s.seqincrement from pg_catalog.pg_sequence s \
        join pg_catalog.pg_class c on c.oid = s.seqrelid \
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.relpersistence <> 't'";
    let Ok(seen) = source.rows(LIST).await else {
        return Ok(());
    };
    for row in seen {
        let name = format!("{}.{}", quote_ident(row.text(0)), quote_ident(row.text(1)));
        // Each by itself: the view pg_sequences fails as a whole when one cannot be read.
        let last = format!("select last_value from {name} where is_called");
        let (Ok(theirs), Ok(mine)) = (source.rows(&last).await, target.rows(&last).await) else {
            continue;
        };
        let number = |rows: &[Row]| rows.first().and_then(|r| r.number::<i64>(0));
        let (Some(theirs), mine) = (number(&theirs), number(&mine)) else {
            continue;
        };
        if mine.is_none_or(|mine| mine < theirs) && row.number::<i64>(2).unwrap_or(1) > 0 {
            target
                .execute(&format!(
                    "select pg_catalog.setval(s, {theirs}) from to_regclass({}) s where s is not null",
                    quote_literal(&name)
                ))
                .await
                .map_err(pg(format!("moving sequence {name} forward")))?;
        }
    }
    Ok(())
}

/// One outcome for all databases.
pub(super) fn outcome(cx: &ActionContext<'_>, databases: &[(String, Vec<Salvaged>)]) -> Outcome {
    let all = || databases.iter().flat_map(|(_, t)| t);
    for table in all() {
        if let Some(remark) = &table.remark {
            cx.warn(format!("{}: {remark}", table.table));
        }
    }
    let merged: u64 = all().map(|t| t.merged).sum();
    let missing: u64 = all().map(|t| t.missing).sum();
    let blocks: usize = all().map(|t| t.bad_blocks.len()).sum();
    let mut text = format!("{merged} rows newer than the backup brought over");
    if missing > merged {
        text = format!("{text}, {} stay in the kept data", missing - merged);
    }
    let refused: u64 = all().map(|t| t.refused).sum();
    if refused > 0 {
        text = format!("{text}; {refused} hold values that the restored data does not take");
    }
    if blocks > 0 {
        let words = if blocks == 1 { "block is" } else { "blocks are" };
        text = format!("{text}; {blocks} {words} not fully readable");
    }
    Outcome::new(text)
        .fact("rows-salvaged", merged)
        .fact("rows-kept-aside", missing - merged)
        .fact("rows-refused", refused)
        .fact("bad-blocks", blocks)
        .fact("tables", serde_json::to_value(databases).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_waits_for_its_parent_and_may_be_its_own() {
        assert_eq!(
            parent_exists("public.customers", "s.c is null", "p.id = s.c", None),
            " and (s.c is null or exists (select 1 from public.customers p where p.id = s.c))"
        );
        assert_eq!(
            parent_exists("public.node", "s.up is null", "p.id = s.up", Some("s.id = s.up")),
            " and (s.up is null or exists (select 1 from public.node p where p.id = s.up) or (s.id = s.up))"
        );
    }

    #[test]
    fn only_a_time_tells_what_is_new() {
        let since = "2026-11-20T18:43:57Z";
        assert_eq!(
            newer_than("at", "timestamptz", since),
            " and (\"at\" >= '2026-11-20T18:43:57Z'::timestamptz or \"at\" is null)"
        );
        assert_eq!(
            newer_than("at", "timestamp", since),
            " and (\"at\" >= ('2026-11-20T18:43:57Z'::timestamptz at time zone 'UTC') - interval '26 hours' \
             or \"at\" is null)"
        );
        assert_eq!(
            newer_than("day", "date", since),
            " and (\"day\" >= ('2026-11-20T18:43:57Z'::timestamptz at time zone 'UTC')::date - 1 or \"day\" is null)"
        );
        for other in ["int8", "text", ""] {
            assert_eq!(newer_than("seq", other, since), "");
        }
    }

    #[test]
    fn ranges_are_halved_down_to_one_block() {
        let mut ranges = vec![(0, 7)];
        let mut single = Vec::new();
        while let Some((low, high)) = ranges.pop() {
            if high - low > 1 {
                ranges.extend(halves(low, high));
            } else {
                single.push(low);
            }
        }
        assert_eq!(single, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(range_of("s.", 3, 4), "s.ctid >= '(3,0)' and s.ctid < '(4,0)'");
    }
}
