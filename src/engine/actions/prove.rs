//! The proof of a database before it is brought into service.

use std::time::Duration;

use super::{ActionContext, ActionError, Checked, Outcome, pg};
use crate::event::{Event, Verdict};
use crate::plan::RowFloor;
use crate::postgres::{Client, ConnectSpec, PgError, quote_qualified};
use crate::probe::amcheck::{self, AmcheckOptions};
use crate::runbook::Database;

/// Sessions that check at the same time.
const WORKERS: usize = 2;

/// Checks one database: structure of heap and indexes, rows, the runbook's questions.
pub(super) async fn database(
    cx: &ActionContext<'_>,
    spec: &ConnectSpec,
    config: Option<&Database>,
    floors: &[RowFloor],
) -> Result<Vec<Checked>, ActionError> {
    let structure = structure(cx, spec);
    let content = async {
        let client = Client::connect(spec)
            .await
            .map_err(pg(format!("connecting to {}", spec.database)))?;
        let mut checks = rows(&client, floors, cx.deadline).await;
        if let Some(config) = config {
            checks.extend(validations(&client, config, cx.deadline).await);
        }
        Ok::<_, ActionError>(checks)
    };
    let (structure, content) = tokio::join!(structure, content);
    let mut checks = vec![structure?];
    checks.extend(content?);
    Ok(checks)
}

async fn structure(cx: &ActionContext<'_>, spec: &ConnectSpec) -> Result<Checked, ActionError> {
    let options = AmcheckOptions {
        relations: None,
        heap_all_indexed: true,
        parent_check: false,
        deadline: cx.deadline,
        workers: WORKERS,
    };
    let report = amcheck::check(spec, &options)
        .await
        .map_err(pg(format!("checking the structure of {}", spec.database)))?;
    let (verdict, found) = match report.findings.first() {
        Some(first) => (
            Verdict::Fail,
            format!(
                "{} findings, the first in {}: {}",
                report.findings.len(),
                first.relation,
                first.message
            ),
        ),
        None if report.examined == 0 => (Verdict::CouldNotVerify, "nothing could be examined".to_owned()),
        None => (
            Verdict::Pass,
            format!("{} relations examined, nothing found", report.examined),
        ),
    };
    Ok(Checked {
        what: format!("structure of {} (amcheck)", spec.database),
        verdict,
        found,
    })
}

/// Whether tables hold at least the rows they must.
pub async fn rows(client: &Client, floors: &[RowFloor], deadline: Duration) -> Vec<Checked> {
    let mut checks = Vec::new();
    for floor in floors {
        let counted = client
            .within(
                deadline,
                &format!("select count(*) from {}", quote_qualified(&floor.table)),
            )
            .await;
        let (verdict, found) = match number(counted) {
            Ok(n) if u64::try_from(n).is_ok_and(|n| n >= floor.at_least) => {
                (Verdict::Pass, format!("{n} rows"))
            }
            Ok(n) => (
                Verdict::Fail,
                format!(
                    "{n} rows, {} fewer than there must be",
                    i128::from(floor.at_least) - i128::from(n)
                ),
            ),
            Err(e) => (Verdict::Fail, e),
        };
        checks.push(Checked {
            what: format!("at least {} rows in {}", floor.at_least, floor.table),
            verdict,
            found,
        });
    }
    checks
}

/// The runbook's questions and whether their answers are those of a sound database.
pub async fn validations(client: &Client, config: &Database, deadline: Duration) -> Vec<Checked> {
    let mut checks = Vec::new();
    for question in &config.validation {
        let answer = number(client.within(deadline, &question.sql).await);
        let (verdict, found) = match answer {
            Ok(n) if question.expect.holds(n) => (Verdict::Pass, n.to_string()),
            Ok(n) => (Verdict::Fail, n.to_string()),
            Err(e) => (Verdict::Fail, e),
        };
        checks.push(Checked {
            what: question.name.clone(),
            verdict,
            found,
        });
    }
    checks
}

fn number(answer: Result<Vec<crate::postgres::Row>, PgError>) -> Result<i64, String> {
    answer
        .map_err(|e| e.to_string())?
        .first()
        .and_then(|r| r.number(0))
        .ok_or_else(|| "the answer is no number".to_owned())
}

/// Turns checks into the outcome of a step: a proof that does not hold is its failure.
pub(super) fn outcome(
    cx: &ActionContext<'_>,
    subject: &str,
    checks: &[Checked],
) -> Result<Outcome, ActionError> {
    for check in checks {
        cx.reporter.event(&Event::Checked {
            what: check.what.clone(),
            verdict: check.verdict,
            found: check.found.clone(),
        });
    }
    if let Some(bad) = checks
        .iter()
        .find(|c| matches!(c.verdict, Verdict::Fail | Verdict::CouldNotVerify))
    {
        return Err(ActionError::Unproven {
            what: bad.what.clone(),
            found: bad.found.clone(),
        });
    }
    let checks = serde_json::to_value(checks).unwrap_or_default();
    Ok(Outcome::new(format!(
        "{subject} is proven: {} checks hold",
        checks.as_array().map_or(0, Vec::len)
    ))
    .fact("checks", checks))
}
