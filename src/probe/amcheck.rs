//! The structure of tables and indexes, checked by the server's own `amcheck` (PostgreSQL
//! manual, appendix F). By SQL and not by the program `pg_amcheck`: each relation's answer
//! comes with its SQLSTATE, its limit holds inside the server, and a database that lacks the
//! extension is examined too instead of being skipped with a warning and exit code 0.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::RwLock;
use tokio::time::Instant;

use super::pages;
use super::relations::{self, Check, MAX_BLOCKS, Relation, RelationFinding, RelationKind};
use crate::postgres::{Client, ConnectSpec, PgError, quote_ident};
use crate::system::PostgresServer;

/// Seconds that comparing a table with an index takes per row of the table, at the most seen
/// (0.5 µs), with a margin for a machine that has other work.
const SECONDS_PER_ROW: f64 = 1e-6;
/// From this many rows on, structure comes first and the comparison when time is left.
const MANY_ROWS: f64 = 50_000.0;
/// Patience with locks of others: a probe must not queue behind an ALTER TABLE, and nothing
/// may queue behind the probe.
const LOCK_TIMEOUT: &str = "set lock_timeout = '300ms'";
/// How long a server that restarts is waited for.
const RESTART: Duration = Duration::from_secs(5);
/// Restarts of the server after which no more is read: each ends everyone's sessions.
const MAX_CRASHES: u32 = 2;
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
    until: Instant,
    queue: Mutex<VecDeque<Task>>,
    found: Mutex<Found>,
    /// Held for writing by a check that is repeated: who crashes then did it.
    alone: RwLock<()>,
}

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
    let extension = client
        .rows(
            "select (select n.nspname from pg_catalog.pg_extension e join pg_catalog.pg_namespace n \
             on n.oid = e.extnamespace where e.extname = 'amcheck'), pg_catalog.pg_is_in_recovery()",
        )
        .await?;
    let extension = extension.first();
    let installed = extension.and_then(|r| r.opt(0)).map(quote_ident);
    let in_recovery = extension.is_some_and(|r| r.is_true(1));
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

/// How the check of one relation ended badly.
enum Trouble {
    /// The session is of no use any more.
    Session(PgError),
    /// This relation was not examined.
    Relation(String),
}

impl Work<'_> {
    fn next(&self) -> Option<Task> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    fn with<T>(&self, change: impl FnOnce(&mut Found) -> T) -> T {
        change(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn skip(&self, task: &Task, why: &str) {
        for relation in &task.relations {
            let Some(r) = self.relations.get(*relation) else {
                continue;
            };
            self.with(|f| {
                // Its structure and its comparison are two tasks, and one thing to say.
                let name = r.qualified();
                f.skipped.insert(*relation);
                if !f.not_examined.iter().any(|(known, _)| *known == name) {
                    f.not_examined.push((name, why.to_owned()));
                }
            });
        }
    }

    /// Each relation of a task by itself, next.
    fn split(&self, task: &Task, again: bool) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        for relation in task.relations.iter().rev() {
            queue.push_front(Task {
                relations: vec![*relation],
                mode: task.mode,
                again,
            });
        }
    }

    fn give_up(&self, why: &str) {
        while let Some(task) = self.next() {
            self.skip(&task, why);
        }
    }

    /// One session and the next ones after it, until there is nothing left to do.
    async fn session(&self) {
        let mut session: Option<Client> = None;
        while let Some(task) = self.next() {
            let batch: Vec<&Relation> = task
                .relations
                .iter()
                .filter_map(|i| self.relations.get(*i))
                .collect();
            let left = self.until.saturating_duration_since(Instant::now());
            // Not begun rather than broken off: what it would have cost is left to others.
            let expected = match task.mode {
                Mode::IndexAndRows if !self.options.parent_check => {
                    batch.iter().map(|r| r.rows.max(0.0)).sum::<f64>() * SECONDS_PER_ROW
                }
                _ => 0.0,
            };
            if left.is_zero() || left.as_secs_f64() < expected {
                self.skip(&task, OUT_OF_TIME);
                continue;
            }
            let client = match session.take() {
                Some(client) => client,
                None => match self.open().await {
                    Ok(client) => client,
                    Err(e) => {
                        self.skip(&task, &e.to_string());
                        self.give_up(&e.to_string());
                        return;
                    }
                },
            };
            let (_shared, _alone) = if task.again {
                (None, Some(self.alone.write().await))
            } else {
                (Some(self.alone.read().await), None)
            };
            let outcome = match (batch.as_slice(), task.mode) {
                ([r], Mode::Heap) => self.heap(&client, r).await,
                ([r], Mode::Index) => self.index(&client, r, false).await,
                ([r], Mode::IndexAndRows) => self.index(&client, r, true).await,
                (several, mode) => match self.several(&client, several, mode).await {
                    Err(Trouble::Relation(why)) if why != OUT_OF_TIME => {
                        self.split(&task, false);
                        session = Some(client);
                        continue;
                    }
                    other => other,
                },
            };
            match outcome {
                Ok(findings) => {
                    self.with(|f| {
                        f.examined.extend(&task.relations);
                        f.findings.extend(findings);
                    });
                    session = Some(client);
                }
                Err(Trouble::Relation(why)) => {
                    self.skip(&task, &why);
                    session = Some(client);
                }
                Err(Trouble::Session(e)) => {
                    drop(client);
                    self.lost(&task, &batch, &e).await;
                }
            }
        }
    }

    /// The session broke. Perhaps this check made the server stumble, perhaps another's did:
    /// it is repeated alone, and what breaks the session again is damaged.
    async fn lost(&self, task: &Task, batch: &[&Relation], e: &PgError) {
        if matches!(e, PgError::Timeout { .. }) {
            self.skip(task, &e.to_string());
            return;
        }
        if !self.back_again().await {
            self.skip(task, &e.to_string());
            self.give_up("the server went away and did not come back");
            return;
        }
        let ([r], true) = (batch, task.again) else {
            self.split(task, true);
            return;
        };
        let crashes = self.with(|f| {
            f.crashes += 1;
            f.examined.extend(&task.relations);
            let check = if task.mode == Mode::Heap {
                Check::HeapStructure
            } else {
                Check::IndexStructure
            };
            f.findings.push(r.finding(
                check,
                format!("the server's process ended while it read this relation: {e}"),
            ));
            f.crashes
        });
        if crashes >= MAX_CRASHES {
            self.give_up("reading on would make the server restart again");
        }
    }

    async fn back_again(&self) -> bool {
        let end = Instant::now() + RESTART;
        loop {
            if let Ok(client) = Client::connect(&self.spec).await
                && client.rows("select 1").await.is_ok()
            {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn open(&self) -> Result<Client, PgError> {
        let client = Client::connect(&self.spec).await?;
        client.execute(LOCK_TIMEOUT).await?;
        if self.borrowed {
            client.execute("begin").await?;
            // In a schema of its own: nothing of the user's can be in the way.
            client
                .execute(&format!(
                    "create schema {s}; create extension amcheck schema {s}",
                    s = self.schema
                ))
                .await?;
        }
        Ok(client)
    }

    /// One statement of a check. A failed one must not end the transaction that holds the
    /// borrowed extension.
    async fn ask(&self, client: &Client, sql: &str) -> Result<Vec<crate::postgres::Row>, PgError> {
        let left = self
            .until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(50));
        if !self.borrowed {
            return client.within(left, sql).await;
        }
        client.execute("savepoint drctl").await?;
        let answer = client.within(left, sql).await;
        let end = if answer.is_ok() {
            "release savepoint drctl"
        } else {
            "rollback to savepoint drctl"
        };
        client.execute(end).await?;
        answer
    }

    fn trouble(e: PgError) -> Trouble {
        match &e {
            PgError::Server { sqlstate, .. } if sqlstate == "57014" => Trouble::Relation(OUT_OF_TIME.into()),
            PgError::Server { sqlstate, .. } if sqlstate == "55P03" => {
                Trouble::Relation("another session holds a lock on it".into())
            }
            // Class 57: the server is going away; FATAL of any class ends the session.
            PgError::Server {
                sqlstate, severity, ..
            } if !sqlstate.starts_with("57P") && severity == "ERROR" => Trouble::Relation(e.to_string()),
            _ => Trouble::Session(e),
        }
    }

    /// Several small relations in one statement. Any error is left to the checks one by one.
    async fn several(
        &self,
        client: &Client,
        batch: &[&Relation],
        mode: Mode,
    ) -> Result<Vec<RelationFinding>, Trouble> {
        let oids: Vec<String> = batch.iter().map(|r| r.oid.to_string()).collect();
        let from = format!("from pg_catalog.unnest('{{{}}}'::oid[]) o", oids.join(","));
        let sql = match (mode, self.options.parent_check) {
            (Mode::Heap, _) => format!(
                "select o, v.blkno, v.msg {from}, lateral {}.verify_heapam(relation := o::regclass, \
                 on_error_stop := false, check_toast := true, skip := 'none') v limit 100",
                self.schema
            ),
            (_, true) => format!(
                "select {}.bt_index_parent_check(o::regclass, {}) {from}",
                self.schema,
                mode == Mode::IndexAndRows
            ),
            (_, false) => format!(
                "select {}.bt_index_check(o::regclass, {}) {from}",
                self.schema,
                mode == Mode::IndexAndRows
            ),
        };
        match self.ask(client, &sql).await {
            Ok(rows) if mode == Mode::Heap => Ok(rows
                .iter()
                .filter_map(|row| {
                    let oid = row.number::<u32>(0)?;
                    let r = batch.iter().find(|r| r.oid == oid)?;
                    Some(self.reported(r, row.number(1), row.text(2)))
                })
                .collect()),
            Ok(_) => Ok(Vec::new()),
            Err(e) => Err(Self::trouble(e)),
        }
    }

    /// `verify_heapam` of the whole table. A page that cannot be read ends the function: then
    /// the blocks before and after it are checked by themselves.
    async fn heap(&self, client: &Client, r: &Relation) -> Result<Vec<RelationFinding>, Trouble> {
        let mut findings = Vec::new();
        let mut toast = true;
        // `None` is the whole, however long it has become.
        let mut parts: Vec<Option<(u64, u64)>> = vec![None];
        let mut damaged = 0;
        while let Some(part) = parts.pop() {
            let range = part
                .map(|(from, to)| format!(", startblock := {from}, endblock := {to}"))
                .unwrap_or_default();
            let sql = format!(
                "select blkno, msg from {}.verify_heapam(relation := {}::oid::regclass, on_error_stop := false, \
                 check_toast := {toast}, skip := 'none'{range}) limit 100",
                self.schema, r.oid
            );
            match self.ask(client, &sql).await {
                Ok(rows) => findings.extend(
                    rows.iter()
                        .map(|row| self.reported(r, row.number(0), row.text(1))),
                ),
                Err(e) if relations::is_damage(&e) => {
                    let finding = relations::finding_of(self.relations, r, Check::HeapStructure, &e);
                    let own = finding.relation == r.qualified();
                    let block = finding.blocks.first().copied();
                    findings.push(finding);
                    damaged += 1;
                    match block {
                        Some(block) if own && damaged < MAX_BLOCKS => {
                            let (from, to) = part.unwrap_or((0, r.blocks().saturating_sub(1)));
                            if block < to {
                                parts.push(Some((block + 1, to)));
                            }
                            if block > from {
                                parts.push(Some((from, block - 1)));
                            }
                        }
                        // A page of the out-of-line values: the table itself can still be checked.
                        _ if !own && toast => {
                            toast = false;
                            parts.push(part);
                        }
                        _ => break,
                    }
                }
                Err(e) => {
                    if findings.is_empty() {
                        return Err(Self::trouble(e));
                    }
                    if let Trouble::Session(e) = Self::trouble(e) {
                        self.with(|f| f.findings.append(&mut findings));
                        return Err(Trouble::Session(e));
                    }
                    break;
                }
            }
        }
        Ok(findings)
    }

    /// A row of `verify_heapam`. What it says of an out-of-line value is about the toast.
    fn reported(&self, r: &Relation, block: Option<u64>, message: &str) -> RelationFinding {
        let toast = message.starts_with("toast value").then(|| {
            self.relations
                .iter()
                .find(|t| t.kind == RelationKind::Toast && t.table == r.table)
        });
        match toast.flatten() {
            Some(toast) => toast.finding(Check::HeapStructure, message),
            None => RelationFinding {
                sqlstate: None,
                blocks: block.into_iter().collect(),
                ..r.finding(Check::HeapStructure, message)
            },
        }
    }

    async fn index(
        &self,
        client: &Client,
        r: &Relation,
        rows: bool,
    ) -> Result<Vec<RelationFinding>, Trouble> {
        let sql = |rows: bool| {
            if self.options.parent_check {
                format!(
                    "select {}.bt_index_parent_check({}::oid::regclass, {rows})",
                    self.schema, r.oid
                )
            } else {
                format!(
                    "select {}.bt_index_check({}::oid::regclass, {rows})",
                    self.schema, r.oid
                )
            }
        };
        let mut findings = Vec::new();
        match self.ask(client, &sql(rows)).await {
            Ok(_) => return Ok(findings),
            Err(e) if relations::is_damage(&e) => {
                let mut finding = relations::finding_of(self.relations, r, Check::IndexStructure, &e);
                let own = finding.relation == r.qualified();
                if own && finding.blocks.is_empty() {
                    finding.blocks.extend(index_block(&e.to_string()));
                }
                findings.push(finding);
                if own || !rows {
                    return Ok(findings);
                }
            }
            Err(e) => return Err(Self::trouble(e)),
        }
        // The table was in the way: the index by itself may still be good or bad.
        match self.ask(client, &sql(false)).await {
            Ok(_) => {}
            Err(e) if relations::is_damage(&e) => {
                findings.push(relations::finding_of(
                    self.relations,
                    r,
                    Check::IndexStructure,
                    &e,
                ));
            }
            Err(e) => {
                self.with(|f| f.findings.append(&mut findings));
                return Err(Self::trouble(e));
            }
        }
        Ok(findings)
    }
}

/// The index's own block in the words of `bt_index_check`: `… (Index tid=(3,2) …)`,
/// `block 3 in index "…"`.
fn index_block(message: &str) -> Option<u64> {
    let digits = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text.get(..end)?.parse().ok()
    };
    for mark in ["ndex tid=(", "index block=", "Index block=", "ower index tid=("] {
        if let Some((_, rest)) = message.split_once(mark) {
            return digits(rest);
        }
    }
    let (before, _) = message
        .split_once(" in index \"")
        .or_else(|| message.split_once(" of index \""))?;
    let (_, number) = before.rsplit_once("block ")?;
    digits(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_an_index() {
        assert_eq!(
            index_block("x (Lower index tid=(5,2) (points to heap tid=(8,1)) higher …)"),
            Some(5)
        );
        assert_eq!(index_block("corrupted page at block 3 in index \"a\""), Some(3));
        assert_eq!(
            index_block(
                "heap tuple (0,67) from table \"orders\" lacks matching index tuple within index \"orders_cust\""
            ),
            None
        );
    }
}
