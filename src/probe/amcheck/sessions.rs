//! The sessions that work off the tasks: bounded, and careful with a server that a damaged page brings down.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::super::relations::{self, Check, MAX_BLOCKS, Relation, RelationFinding, RelationKind};
use super::{Found, Mode, OUT_OF_TIME, SECONDS_PER_ROW, Task, Work};
use crate::postgres::{Client, PgError, quote_ident};

/// Patience with locks of others: a probe must not queue behind an ALTER TABLE, and nothing
/// may queue behind the probe.
const LOCK_TIMEOUT: &str = "set lock_timeout = '300ms'";
/// Why several relations are not examined in one statement.
const ONE_BY_ONE: &str = "tables are read one by one";
/// How long a server that restarts is waited for.
const RESTART: Duration = Duration::from_secs(5);
/// Restarts of the server after which no more is read: each ends everyone's sessions.
const MAX_CRASHES: u32 = 2;

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

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Found) -> T) -> T {
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

    pub(super) fn give_up(&self, why: &str) {
        while let Some(task) = self.next() {
            self.skip(&task, why);
        }
    }

    /// One session and the next ones after it, until there is nothing left to do.
    pub(super) async fn session(&self) {
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
        if mode == Mode::Heap && !self.checks_tables {
            return Err(Trouble::Relation(ONE_BY_ONE.into()));
        }
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
        if !self.checks_tables {
            return self.every_row(client, r).await;
        }
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

    /// Every row of a table, where there is no `verify_heapam`.
    async fn every_row(&self, client: &Client, r: &Relation) -> Result<Vec<RelationFinding>, Trouble> {
        // A materialised view that was never filled refuses to be read, and has nothing to read.
        if r.bytes == Some(0) {
            return Ok(Vec::new());
        }
        match self.ask(client, &read_every_row(r)).await {
            Ok(_) => Ok(Vec::new()),
            Err(e) if relations::is_damage(&e) => Ok(vec![relations::finding_of(
                self.relations,
                r,
                Check::FullRead,
                &e,
            )]),
            Err(e) => Err(Self::trouble(e)),
        }
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

/// The text form of a row needs every value of it, the out-of-line ones too. Those by themselves
/// have no row type; a column that no index holds makes the table be read.
fn read_every_row(r: &Relation) -> String {
    let what = if r.kind == RelationKind::Toast {
        "t.chunk_data"
    } else {
        "t::text"
    };
    format!(
        "select count({what}) from only {}.{} t",
        quote_ident(&r.schema),
        quote_ident(&r.name)
    )
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
    fn a_full_read_needs_every_value() {
        let mut r = Relation {
            oid: 16_384,
            schema: "public".into(),
            name: "Orders".into(),
            kind: RelationKind::Heap,
            table: "public.Orders".into(),
            path: "base/5/16384".into(),
            bytes: Some(8192),
            pages: 1,
            rows: 1.0,
            access: "heap".into(),
            usable: true,
            system: false,
            unlogged: false,
        };
        assert_eq!(
            read_every_row(&r),
            "select count(t::text) from only \"public\".\"Orders\" t"
        );
        (r.kind, r.schema, r.name) = (RelationKind::Toast, "pg_toast".into(), "pg_toast_16384".into());
        assert_eq!(
            read_every_row(&r),
            "select count(t.chunk_data) from only \"pg_toast\".\"pg_toast_16384\" t"
        );
    }

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
