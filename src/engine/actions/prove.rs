//! The proof of a database before it is brought into service.

use super::{ActionContext, ActionError, Checked, Outcome, pg};
use crate::engine::verify::{rows, validations};
use crate::event::{Event, Verdict};
use crate::plan::RowFloor;
use crate::postgres::{Client, ConnectSpec};
use crate::probe::amcheck::{self, AmcheckOptions};
use crate::runbook::Database;

/// Sessions that check at the same time.
const WORKERS: usize = 2;

/// Where the indexes of a database come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Indexes {
    /// Copied as files: each row is looked for in them.
    Copied,
    /// Built by this server from these tables a moment ago: that a row is in them needs no
    /// proof, that their pages are sound does.
    Built,
}

/// Checks one database: structure of heap and indexes, rows, the runbook's questions.
pub(super) async fn database(
    cx: &ActionContext<'_>,
    spec: &ConnectSpec,
    config: Option<&Database>,
    floors: &[RowFloor],
    indexes: Indexes,
) -> Result<Vec<Checked>, ActionError> {
    let structure = structure(cx, spec, indexes);
    let content = async {
        let client = Client::connect(spec)
            .await
            .map_err(pg(format!("connecting to {}", spec.database)))?;
        let mut checks = Vec::new();
        if let Some(config) = config {
            checks = validations(&client, config, cx.deadline).await;
        }
        checks.extend(rows(&client, &spec.database, floors, cx.deadline).await);
        Ok::<_, ActionError>(checks)
    };
    let (structure, content) = tokio::join!(structure, content);
    let mut checks = vec![structure?];
    checks.extend(content?);
    Ok(checks)
}

async fn structure(
    cx: &ActionContext<'_>,
    spec: &ConnectSpec,
    indexes: Indexes,
) -> Result<Checked, ActionError> {
    let options = AmcheckOptions {
        relations: None,
        heap_all_indexed: indexes == Indexes::Copied,
        parent_check: false,
        borrow_pageinspect: true,
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
        None if report.unfinished > 0 => (
            Verdict::CouldNotVerify,
            format!(
                "{} relations examined, {} could not be",
                report.examined, report.unfinished
            ),
        ),
        None => (
            Verdict::Pass,
            format!("{}, nothing found", report.examined_words()),
        ),
    };
    Ok(Checked {
        what: format!("structure of {} (amcheck)", spec.database),
        verdict,
        found,
    })
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
