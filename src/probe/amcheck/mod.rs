//! The structure of tables and indexes, checked by the server's own `amcheck` (PostgreSQL
//! manual, appendix F). By SQL and not by the program `pg_amcheck`: each relation's answer
//! comes with its SQLSTATE, its limit holds inside the server, and a database that lacks the
//! extension is examined too instead of being skipped with a warning and exit code 0.

mod sessions;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::RwLock;
use tokio::time::Instant;

use super::pages;
use super::relations::{self, Relation, RelationFinding, RelationKind};
use crate::postgres::{Client, ConnectSpec, PgError, quote_ident};
use crate::system::PostgresServer;

/// Seconds that comparing a table with an index takes per row of the table, at the most seen
/// (0.5 µs), with a margin for a machine that has other work.
const SECONDS_PER_ROW: f64 = 1e-6;
/// From this many rows on, structure comes first and the comparison when time is left.
const MANY_ROWS: f64 = 50_000.0;
/// Relations of at most this many bytes share a statement.
const SMALL: u64 = 2 << 20;
/// How much one statement examines.
const BATCH: u64 = 16 << 20;
/// Begins the reason of an index whose structure was examined, and whose table's rows were
/// not looked for in it.
pub const ROWS_PENDING: &str = "examined by itself, not against the rows of its table";
const OUT_OF_TIME: &str = "the time allowed ran out";

/// What to examine.
#[derive(Debug, Clone)]
pub struct AmcheckOptions {
    /// Tables as `schema.name`, with their indexes and out-of-line values; all when `None`.
    pub relations: Option<Vec<String>>,
    /// Whether every row of a table must be found in each of its indexes.
    pub heap_all_indexed: bool,
    /// Whether the levels of an index are compared. Locks out writers: for a server that
    /// nobody uses.
    pub parent_check: bool,
    /// Whether `pageinspect` may be created in a transaction that is rolled back, where it is
    /// not installed, to read the pages of what amcheck cannot check. That leaves dead rows in
    /// the catalogue: not for a look that promises to change nothing.
    pub borrow_pageinspect: bool,
    /// For everything together.
    pub deadline: Duration,
    /// Sessions.
    pub workers: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AmcheckReport {
    /// Relations that were examined.
    pub examined: u32,
    /// Relations that were to be examined and were not at all: time, a lock, a lost session.
    /// Those for which no check exists are not among them.
    pub unfinished: u32,
    /// What is wrong, one entry per relation and check.
    pub findings: Vec<RelationFinding>,
    /// What was not examined, and why.
    pub not_examined: Vec<(String, String)>,
    /// Tables were read in full instead: the amcheck that is installed has no check of them.
    pub tables_read: bool,
}

impl AmcheckReport {
    /// What was examined, in words.
    #[must_use]
    pub fn examined_words(&self) -> String {
        let how = if self.tables_read {
            " (tables by reading every row: the amcheck that is installed, older than 1.3, has no check of them)"
        } else {
            ""
        };
        format!("{} relations examined{how}", self.examined)
    }
}

/// Examines a database of a service. Nothing is changed.
///
/// # Errors
/// [`PgError`] when there is no session, or the catalogue cannot be read.
pub async fn check_database(
    server: &PostgresServer,
    database: &str,
    options: &AmcheckOptions,
) -> Result<AmcheckReport, PgError> {
    if !server.container.is_running() {
        // Says so at once, without an attempt.
        drop(server.connect().await?);
    }
    check(&server.admin.to_database(database), options).await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Heap,
    /// The index by itself.
    Index,
    /// The index by itself and against its table.
    IndexAndRows,
}

#[derive(Debug, Clone)]
struct Task {
    /// Small ones of the same mode share a statement: there are hundreds in any catalogue.
    relations: Vec<usize>,
    mode: Mode,
    /// A check during which the server went away is done again, alone.
    again: bool,
}

#[derive(Debug, Default)]
struct Found {
    examined: BTreeSet<usize>,
    skipped: BTreeSet<usize>,
    findings: Vec<RelationFinding>,
    not_examined: Vec<(String, String)>,
    crashes: u32,
}

struct Work<'a> {
    spec: ConnectSpec,
    options: &'a AmcheckOptions,
    relations: &'a [Relation],
    /// Schema of the extension's functions, quoted; the temporary one when `borrowed`.
    schema: String,
    borrowed: bool,
    /// Whether the extension has `verify_heapam`.
    checks_tables: bool,
    until: Instant,
    queue: Mutex<VecDeque<Task>>,
    found: Mutex<Found>,
    /// Held for writing by a check that is repeated: who crashes then did it.
    alone: RwLock<()>,
}

/// The schema of the extension, whether the server is in recovery, and whether the extension can
/// check tables: since its version 1.3, which came with PostgreSQL 14. An upgrade of the server
/// leaves an extension at the version that it had.
const EXTENSION: &str = "\
    select n.nspname, pg_catalog.pg_is_in_recovery(), case \
      when e.oid is null then pg_catalog.current_setting('server_version_num')::int >= 140000 \
      else exists (select from pg_catalog.pg_proc p \
        where p.pronamespace = e.extnamespace and p.proname = 'verify_heapam') end \
    from (values (1)) one left join pg_catalog.pg_extension e on e.extname = 'amcheck' \
    left join pg_catalog.pg_namespace n on n.oid = e.extnamespace";

/// Examines the database of `spec`. Nothing is changed: where the extension is missing it is
/// created in a transaction that is rolled back.
///
/// # Errors
/// As [`check_database`].
pub async fn check(spec: &ConnectSpec, options: &AmcheckOptions) -> Result<AmcheckReport, PgError> {
    let until = Instant::now() + options.deadline;
    let client = Client::connect(spec).await?;
    let mut all = relations::list(&client).await?;
    let mut files = relations::short_files(&all);
    if !files.is_empty() {
        // A TRUNCATE or a VACUUM in between looks the same once.
        all = relations::list(&client).await?;
        let still = relations::short_files(&all);
        files.retain(|f| still.iter().any(|s| s.relation == f.relation));
    }
    let extension = client.rows(EXTENSION).await?;
    let extension = extension.first();
    let installed = extension.and_then(|r| r.opt(0)).map(quote_ident);
    let in_recovery = extension.is_some_and(|r| r.is_true(1));
    let checks_tables = extension.is_some_and(|r| r.is_true(2));
    drop(client);

    let mut found = Found::default();
    let queue = tasks(&all, options, &mut found);
    if let Some(wanted) = &options.relations {
        files.retain(|f| wanted.contains(&f.table));
    }
    found.findings = files;
    let work = Work {
        spec: ConnectSpec {
            // The temporary extension is written, and never committed.
            read_only: installed.is_some() && spec.read_only,
            ..spec.clone()
        },
        options,
        relations: &all,
        borrowed: installed.is_none(),
        checks_tables,
        schema: installed.unwrap_or_else(|| quote_ident(&format!("drctl_amcheck_{}", std::process::id()))),
        until,
        queue: Mutex::new(queue),
        found: Mutex::new(found),
        alone: RwLock::new(()),
    };
    if work.borrowed && in_recovery {
        work.give_up("amcheck is not installed, and cannot be on a server in recovery");
    } else {
        // Two sessions that create the same extension would wait for one another.
        let workers = if work.borrowed { 1 } else { options.workers.max(1) };
        let sessions = futures_util::future::join_all((0..workers).map(|_| work.session()));
        let beyond: Vec<&Relation> = all.iter().filter(|r| is_beyond(r, options)).collect();
        let pages = pages::read(&work.spec, &beyond, options.borrow_pageinspect, until);
        // The server's own limits fire first, except in a server that has stopped answering.
        let both = async { tokio::join!(sessions, pages).1 };
        // Pages that could not be read are no finding: nothing is said of them either way.
        if let Ok(Ok(damaged)) = tokio::time::timeout_at(until + Duration::from_secs(1), both).await {
            work.with(|f| f.findings.extend(damaged));
        }
        work.give_up(OUT_OF_TIME);
    }
    let mut found = work.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let done: BTreeSet<String> = found
        .examined
        .iter()
        .filter_map(|i| all.get(*i))
        .map(Relation::qualified)
        .collect();
    for (relation, why) in &mut found.not_examined {
        if done.contains(relation) {
            *why = format!("{ROWS_PENDING}: {why}");
        }
    }
    Ok(AmcheckReport {
        examined: u32::try_from(found.examined.len()).unwrap_or(u32::MAX),
        unfinished: u32::try_from(found.skipped.difference(&found.examined).count()).unwrap_or(u32::MAX),
        findings: relations::merge(found.findings),
        not_examined: found.not_examined,
        tables_read: !checks_tables,
    })
}

/// An index of a kind that amcheck cannot judge; its pages can be read all the same.
fn is_beyond(r: &Relation, options: &AmcheckOptions) -> bool {
    r.kind == RelationKind::Index
        && r.access != "btree"
        && r.usable
        && r.bytes.is_some()
        && options
            .relations
            .as_ref()
            .is_none_or(|wanted| wanted.contains(&r.table))
}

/// What to do, in order: the small relations, of which most can be had in little time, then
/// the large ones, tables before indexes, since an index can be built again, and the largest
/// first, so that the sessions end together; at last the comparison of many rows.
fn tasks(all: &[Relation], options: &AmcheckOptions, found: &mut Found) -> VecDeque<Task> {
    let rows_of = |r: &Relation| r.rows.max(0.0);
    let rank = |r: &Relation, index: u8| match (r.bytes.unwrap_or_default() > SMALL, r.system) {
        (true, _) => 4 + index,
        (false, false) => index,
        (false, true) => 2 + index,
    };
    let mut chosen: Vec<(u8, Mode, u64, usize)> = Vec::new();
    let estimate: f64 = all
        .iter()
        .filter(|r| r.access == "btree")
        .map(rows_of)
        .sum::<f64>()
        * SECONDS_PER_ROW;
    let plenty = estimate < options.deadline.as_secs_f64() / 4.0;
    for (relation, r) in all.iter().enumerate() {
        if options
            .relations
            .as_ref()
            .is_some_and(|wanted| !wanted.contains(&r.table))
            || r.bytes.is_none()
        {
            continue;
        }
        let mut add = |order: u8, mode| {
            chosen.push((order, mode, r.bytes.unwrap_or_default(), relation));
        };
        match r.kind {
            RelationKind::Heap | RelationKind::Toast if r.access == "heap" => add(rank(r, 0), Mode::Heap),
            RelationKind::Index | RelationKind::ToastIndex if r.access == "btree" && r.usable => {
                let order = rank(r, 1);
                if !options.heap_all_indexed {
                    add(order, Mode::Index);
                } else if options.parent_check || plenty || rows_of(r) < MANY_ROWS {
                    add(order, Mode::IndexAndRows);
                } else {
                    add(order, Mode::Index);
                    add(6, Mode::IndexAndRows);
                }
            }
            RelationKind::Index if !r.usable => {
                found
                    .not_examined
                    .push((r.qualified(), "the index is not valid: no query uses it".into()));
            }
            _ => found
                .not_examined
                .push((r.qualified(), format!("amcheck has no check for {}", r.access))),
        }
    }
    chosen.sort_by_key(|(order, mode, size, _)| (*order, *mode, u64::MAX - *size));
    let mut queue: VecDeque<Task> = VecDeque::new();
    // Order, mode and bytes of the statement that is being filled.
    let mut open: Option<(u8, Mode, u64)> = None;
    for (order, mode, size, relation) in chosen {
        match (&mut open, queue.back_mut()) {
            (Some((o, m, bytes)), Some(task))
                if size <= SMALL && (*o, *m) == (order, mode) && *bytes + size <= BATCH =>
            {
                *bytes += size;
                task.relations.push(relation);
            }
            _ => {
                queue.push_back(Task {
                    relations: vec![relation],
                    mode,
                    again: false,
                });
                open = (size <= SMALL).then_some((order, mode, size));
            }
        }
    }
    queue
}
