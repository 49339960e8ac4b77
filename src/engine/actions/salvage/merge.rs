//! Rows that were read from the damage go into their tables: what is refused is narrowed down to
//! the row.

use super::{MAX_LINE_POINTERS, Salvaged, Shape, block_count, halves, is_of_rows, range_of};
use crate::engine::actions::{ActionContext, ActionError, pg};
use crate::postgres::{Client, PgError};

/// Rows that were read from the damage, in a temporary table of the target.
pub(super) struct Staged {
    pub(super) name: String,
    pub(super) stage: String,
    pub(super) shape: Shape,
    /// True of a row `s` that the table lacks.
    pub(super) absent: String,
    /// What came of the last merge.
    pub(super) merged: Merged,
    /// Whether rows are to be inserted at all, and not only counted.
    pub(super) tried: bool,
}

/// What came of bringing staged rows into their table.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) rows: u64,
    pub(super) refused: u64,
    pub(super) first_error: Option<String>,
}

impl Staged {
    /// Inserts what can be inserted by now; again after other tables, where rows refer to theirs.
    /// Returns how many.
    ///
    /// # Errors
    /// What is no fault of the rows: no session, no room.
    pub(super) async fn merge(
        &mut self,
        cx: &ActionContext<'_>,
        target: &Client,
        result: &mut Salvaged,
    ) -> Result<u64, ActionError> {
        let what = || pg(format!("salvaging {}", result.table));
        let mut merged = self.once(cx, target).await.map_err(what())?;
        // One more generation each time: a row's parent may be a row of the same table.
        let mut more = merged.rows;
        while self.shape.refers_to_itself && more > 0 {
            let next = self.once(cx, target).await.map_err(what())?;
            more = next.rows;
            merged = Merged {
                rows: merged.rows + more,
                ..next
            };
        }
        let rows = merged.rows;
        result.merged += rows;
        self.merged = merged;
        Ok(rows)
    }

    /// Whether rows of other tables that are still to come could let in more of this one.
    pub(super) fn may_wait(&self, result: &Salvaged) -> bool {
        !self.shape.parents.is_empty() && result.merged + self.merged.refused < result.missing
    }

    /// Says what was left out, and removes the temporary table.
    pub(super) async fn settle(
        self,
        cx: &ActionContext<'_>,
        target: &Client,
        result: &mut Salvaged,
    ) -> Result<(), ActionError> {
        let refused = self.merged.refused;
        result.refused += refused;
        if let Some(e) = &self.merged.first_error {
            result.remark(match refused {
                0 => format!("its rows stay in the kept data: {e}"),
                1 => format!("1 row cannot be inserted and stays in the kept data: {e}"),
                _ => format!("{refused} rows cannot be inserted and stay in the kept data: {e}"),
            });
        }
        let left = result.missing.saturating_sub(result.merged + refused);
        if self.tried && left > 0 && (refused > 0 || self.merged.first_error.is_none()) {
            result.remark(format!(
                "{left} rows refer to rows that are lost or collide with others: they stay in the kept data"
            ));
        }
        target
            .within(cx.deadline, &format!("drop table {}", self.stage))
            .await
            .map_err(pg(format!("salvaging {}", result.table)))?;
        Ok(())
    }

    /// All rows at once; where one is refused, those around it by halves.
    async fn once(&self, cx: &ActionContext<'_>, target: &Client) -> Result<Merged, PgError> {
        let mut merged = Merged::default();
        match self.part(cx, target, "true").await {
            Ok(rows) => merged.rows = rows,
            Err(e) if is_of_rows(&e) => {
                merged.first_error = Some(e.to_string());
                self.in_parts(cx, target, &mut merged).await?;
            }
            Err(e) if ends_everything(&e) => return Err(e),
            Err(e) => merged.first_error = Some(e.to_string()),
        }
        Ok(merged)
    }

    async fn in_parts(
        &self,
        cx: &ActionContext<'_>,
        target: &Client,
        merged: &mut Merged,
    ) -> Result<(), PgError> {
        let blocks = block_count(target, &self.stage).await.unwrap_or_default();
        let mut ranges = vec![(0, blocks)];
        while let Some((low, high)) = ranges.pop() {
            match self.part(cx, target, &range_of("s.", low, high)).await {
                Ok(rows) => merged.rows += rows,
                Err(e) if !is_of_rows(&e) => return Err(e),
                Err(_) if high - low > 1 => ranges.extend(halves(low, high)),
                Err(_) => {
                    for pointer in 1..=MAX_LINE_POINTERS {
                        let row = format!("s.ctid = '({low},{pointer})'");
                        match self.part(cx, target, &row).await {
                            Ok(rows) => merged.rows += rows,
                            Err(e) if is_of_rows(&e) => merged.refused += 1,
                            Err(e) => return Err(e),
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn part(&self, cx: &ActionContext<'_>, target: &Client, which: &str) -> Result<u64, PgError> {
        match target.within(cx.deadline, &self.sql(which)).await {
            Ok(rows) => Ok(rows.first().and_then(|r| r.number(0)).unwrap_or_default()),
            Err(e) => {
                let _ = target.execute("rollback").await;
                Err(e)
            }
        }
    }

    /// Replica mode: no user trigger fires for a row that was already processed once. It also
    /// turns foreign keys off, so the parents are asked for by hand.
    fn sql(&self, which: &str) -> String {
        format!(
            "begin; set local session_replication_role = replica; set local statement_timeout = 0; \
             with merged as (insert into {name} ({columns}) overriding system value \
             select {columns} from {stage} s where {which} and {absent}{parents} \
             on conflict do nothing returning 1) select count(*) from merged; commit",
            name = self.name,
            columns = self.shape.columns,
            stage = self.stage,
            absent = self.absent,
            parents = self.shape.parents,
        )
    }
}

/// True when no other table would fare better: no session, no resources, the server is going
/// away.
fn ends_everything(e: &PgError) -> bool {
    match e {
        PgError::Server {
            severity, sqlstate, ..
        } => severity != "ERROR" || ["08", "53", "57", "58"].iter().any(|c| sqlstate.starts_with(c)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(severity: &str, sqlstate: &str) -> PgError {
        PgError::Server {
            severity: severity.into(),
            sqlstate: sqlstate.into(),
            message: String::new(),
            detail: None,
        }
    }

    #[test]
    fn a_row_that_is_refused_is_told_from_a_server_that_takes_none() {
        for (code, of_rows, ends) in [
            // Invalid text, out of range, NOT NULL, CHECK and the check of a domain.
            ("22021", true, false),
            ("22008", true, false),
            ("23502", true, false),
            ("23514", true, false),
            ("P0001", true, false),
            ("42501", false, false),
            ("53100", false, true),
            ("57014", false, true),
            ("58030", false, true),
        ] {
            let e = error("ERROR", code);
            assert_eq!((is_of_rows(&e), ends_everything(&e)), (of_rows, ends), "{code}");
        }
        assert!(ends_everything(&error("FATAL", "XX000")));
        let broken = PgError::Broken {
            address: String::new(),
            cause: String::new(),
        };
        assert!(ends_everything(&broken) && !is_of_rows(&broken));
    }

    #[test]
    fn rows_are_inserted_where_they_are_absent_and_their_parents_there() {
        let staged = Staged {
            name: "\"public\".\"node\"".into(),
            stage: "pg_temp.drctl_stage_0".into(),
            shape: Shape {
                columns: "\"id\", \"up\"".into(),
                key: vec!["id".into()],
                parents: " and (s.up is null)".into(),
                refers_to_itself: true,
            },
            absent: "not exists (select 1)".into(),
            merged: Merged::default(),
            tried: true,
        };
        assert_eq!(
            staged.sql("s.ctid = '(0,1)'"),
            "begin; set local session_replication_role = replica; set local statement_timeout = 0; \
             with merged as (insert into \"public\".\"node\" (\"id\", \"up\") overriding system value \
             select \"id\", \"up\" from pg_temp.drctl_stage_0 s where s.ctid = '(0,1)' and not exists (select 1) \
             and (s.up is null) on conflict do nothing returning 1) select count(*) from merged; commit"
        );
        let of = |missing, merged| Salvaged {
            missing,
            merged,
            ..Salvaged::default()
        };
        assert!(staged.may_wait(&of(3, 1)) && !staged.may_wait(&of(3, 3)));
    }
}
