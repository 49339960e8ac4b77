//! Reads a damaged table block range by block range.

use super::{MAX_LINE_POINTERS, Salvaged, halves, is_of_rows, range_of};
use crate::engine::actions::{ActionContext, ActionError, pg};
use crate::postgres::{Client, CopyError, PgError};

/// Blocks read in one statement at first: 64 MiB.
const RANGE: u64 = 8192;

/// Reads one damaged table into a staging table.
pub(super) struct Reader<'a> {
    pub(super) cx: &'a ActionContext<'a>,
    pub(super) source: &'a Client,
    pub(super) target: &'a Client,
    pub(super) select: String,
    pub(super) filter: String,
    pub(super) copy_in: String,
}

impl Reader<'_> {
    pub(super) async fn all(&self, blocks: u64, result: &mut Salvaged) -> Result<(), ActionError> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut low = 0;
        while low < blocks {
            ranges.push((low, (low + RANGE).min(blocks)));
            low += RANGE;
        }
        ranges.reverse();
        for session in [self.source, self.target] {
            session
                .execute(&format!(
                    "set statement_timeout = {}",
                    self.cx.deadline.as_millis()
                ))
                .await
                .map_err(pg("preparing the copy of rows"))?;
        }
        while let Some((low, high)) = ranges.pop() {
            match self.copy(&range_of("", low, high)).await {
                Ok(rows) => result.readable += rows,
                Err(CopyError::Target(e)) if !is_of_rows(&e) => return Err(cannot_be_written(e)),
                Err(CopyError::Source(
                    e @ (PgError::Broken { .. } | PgError::Timeout { .. } | PgError::NoConnection { .. }),
                )) => {
                    // Garbage can take a backend, and with it every session, down. Once is
                    // enough: no second user of a production server shall pay for it.
                    result.remark(format!("reading stopped at block {low}: {e}"));
                    return Ok(());
                }
                // The question is wrong for this table: asked of every row it stays so.
                Err(CopyError::Source(e)) if is_wrong_question(&e) => {
                    result.remark(format!("it could not be read: {e}"));
                    return Ok(());
                }
                Err(_) if high - low > 1 => ranges.extend(halves(low, high)),
                Err(CopyError::Target(_)) => self.row_by_row(low, result).await?,
                Err(CopyError::Source(e)) => {
                    result.bad_blocks.push(low);
                    // A page that fails its checksum fails for every row alike.
                    if !whole_page(&e) {
                        self.row_by_row(low, result).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn row_by_row(&self, block: u64, result: &mut Salvaged) -> Result<(), ActionError> {
        for pointer in 1..=MAX_LINE_POINTERS {
            match self.copy(&format!("ctid = '({block},{pointer})'")).await {
                Ok(rows) => result.readable += rows,
                Err(CopyError::Source(PgError::Server { .. })) => {}
                Err(CopyError::Target(e)) if is_of_rows(&e) => {
                    if result.refused == 0 {
                        result.remark(format!(
                            "rows that the restored database does not take stay in the kept data, the first \
                             ({block},{pointer}): {e}"
                        ));
                    }
                    result.refused += 1;
                }
                Err(CopyError::Target(e)) => return Err(cannot_be_written(e)),
                Err(CopyError::Source(e)) => {
                    result.remark(format!("reading stopped at row ({block},{pointer}): {e}"));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn copy(&self, range: &str) -> Result<u64, CopyError> {
        self.source
            .copy_to(
                &format!("copy ({} where {range}{}) to stdout", self.select, self.filter),
                self.target,
                &self.copy_in,
                self.cx.deadline,
            )
            .await
    }
}

/// The restored database does not take the rows: no damage, and nothing to go on without.
fn cannot_be_written(e: PgError) -> ActionError {
    pg("writing the rows that are brought over")(e)
}

/// Syntax, names, types and rights (class 42): no damage.
fn is_wrong_question(e: &PgError) -> bool {
    e.sqlstate().is_some_and(|code| code.starts_with("42"))
}

fn whole_page(e: &PgError) -> bool {
    let text = e.to_string();
    text.contains("invalid page")
        || text.contains("could not read block")
        || text.contains("could not open file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_does_not_fit_is_no_damage() {
        let error = |sqlstate: &str| PgError::Server {
            severity: "ERROR".into(),
            sqlstate: sqlstate.into(),
            message: String::new(),
            detail: None,
        };
        assert!(is_wrong_question(&error("42883")));
        assert!(!is_wrong_question(&error("XX001")));
    }
}
