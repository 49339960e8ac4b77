//! The end of a recovery: whether it holds, what it was for the users, and the report.

use std::collections::BTreeMap;

use serde_json::Value;

use super::actions::Checked;
use super::interrupt::{Interrupts, Signal};
use super::{acknowledged, verify};
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Phase, SharedReporter, Verdict};
use crate::incident::{
    Incident, Journal, JournalError, Log, Record, Report, markdown, write_atomically, write_json,
};
use crate::plan::Expectation;
use crate::probe::watch::{LASTING, Watch};
use crate::system::System;

/// How a proof ended.
#[derive(Debug, Clone)]
pub struct Proof {
    /// The worst verdict.
    pub verdict: Verdict,
    /// The report.
    pub report: Report,
}

/// Proves a recovery, measures it, and writes the report.
///
/// # Errors
/// [`Kind::Interrupted`] or [`Kind::Terminated`] when a signal came before the last check (the
/// recovery stands, unproven; later, only the measuring ends), [`Kind::Internal`] when the journal cannot be written. A proof that does not
/// hold is no error here.
pub async fn prove(
    system: &System,
    incident: &mut Incident,
    journal: &mut Journal,
    reporter: &SharedReporter,
    interrupts: &Interrupts,
    watch: Option<&Watch>,
    acknowledged: Option<&[u64]>,
) -> Result<Proof> {
    reporter.event(&Event::Phase {
        phase: Phase::Verify,
        subject: incident.plan.deployment.clone(),
    });
    let id = incident.id().to_owned();
    let seen = interrupts.seen().0;
    let expect = incident.plan.expect.clone();
    let unproven = |e: &JournalError| {
        Error::new(
            Kind::Internal,
            "the recovery was carried out, and its journal cannot be written",
        )
        .because(e)
        .untouched("the recovery itself: every step is done, the old data is kept")
        .next(format!("drctl incident resume {id}    # verify again"))
    };
    let checks = checked(system, &expect, journal, reporter, interrupts, seen).await;
    let checks = match checks {
        Ok(Ok(checks)) => checks,
        Ok(Err(e)) => return Err(unproven(&e)),
        Err(which) => {
            let _ = journal.append(Record::Interrupted {
                signal: which.name().into(),
            });
            let kind = which.kind();
            return Err(Error::new(
                kind,
                format!("stopped by {} before the proof was complete", which.name()),
            )
            .untouched("the recovery itself: every step is done, the old data is kept")
            .next(format!(
                "drctl incident resume {}    # verify again",
                incident.id()
            ))
            .next(format!("drctl incident undo {}", incident.id())));
        }
    };
    let facts = tokio::select! {
        biased;
        // The proof is whole by now: only what the report would say of the loss is missing.
        which = interrupts.more_than(seen) => {
            reporter.event(&Event::Warning {
                text: format!(
                    "{} came: what was lost is not measured; drctl incident resume {id} does it",
                    which.name()
                ),
            });
            watch.and_then(|w| seen_by_users(w, incident)).into_iter().collect()
        }
        facts = measure(system, incident, reporter, watch, acknowledged) => facts,
    };
    if !facts.is_empty() {
        journal
            .append(Record::Measured { facts })
            .map_err(|e| unproven(&e))?;
    }
    let verdict = verify::overall(&checks);
    journal
        .append(Record::Verified { verdict })
        .map_err(|e| unproven(&e))?;
    let report = write_report(system, incident, journal, reporter);
    Ok(Proof { verdict, report })
}

/// Checks what is expected and journals each check. The inner error is the journal's, the outer
/// one a signal after the `seen` ones.
pub(super) async fn checked(
    system: &System,
    expect: &[Expectation],
    journal: &mut Journal,
    reporter: &SharedReporter,
    interrupts: &Interrupts,
    seen: u32,
) -> std::result::Result<std::result::Result<Vec<Checked>, JournalError>, Signal> {
    tokio::select! {
        biased;
        which = interrupts.more_than(seen) => Err(which),
        all = verify::verify(system, expect, reporter, |c: &Checked| {
            journal.append(Record::Checked {
                what: c.what.clone(),
                verdict: c.verdict,
                found: c.found.clone(),
            })
        }) => Ok(all),
    }
}

/// What only the world can tell after a recovery. Best effort: what cannot be measured is
/// said, and missing in the report.
async fn measure(
    system: &System,
    incident: &Incident,
    reporter: &SharedReporter,
    watch: Option<&Watch>,
    acknowledged: Option<&[u64]>,
) -> BTreeMap<String, Value> {
    let mut facts = BTreeMap::new();
    let warn = |text: String| reporter.event(&Event::Warning { text });
    let service = &incident.plan.service;
    let counted = async {
        match acknowledged {
            Some(numbers) => acknowledged::count(system, service, numbers).await,
            None => Ok(BTreeMap::new()),
        }
    };
    let served = async {
        let watch = watch?;
        watch.until_up(LASTING * 3).await;
        seen_by_users(watch, incident)
    };
    let (counted, newest, served) = tokio::join!(counted, newest_rows(system, service), served);
    match counted {
        Ok(counted) => facts.extend(counted),
        Err(e) => warn(format!("acknowledged writes could not be counted: {e}")),
    }
    if !newest.is_empty() {
        facts.insert("newest-rows-after".into(), Value::Object(newest));
    }
    facts.extend(served);
    facts
}

/// What a watch has seen so far, as a fact.
fn seen_by_users(watch: &Watch, incident: &Incident) -> Option<(String, Value)> {
    let seen = watch.seen(incident.progress.down_since);
    Some(("watch".into(), serde_json::to_value(seen).ok()?))
}

/// The newest row of each table for which the runbook names a column.
async fn newest_rows(system: &System, service: &str) -> serde_json::Map<String, Value> {
    let mut newest = serde_json::Map::new();
    let Ok(server) = system.postgres(service).await else {
        return newest;
    };
    for (database, config) in &server.config.databases {
        let facts = crate::probe::facts::collect(
            &server,
            database.as_str(),
            &config.tables,
            false,
            system.runbook.deadlines.step,
        );
        let Ok(facts) = facts.await else { continue };
        for relation in facts.relations {
            let at = relation.newest.as_ref().and_then(|n| n.at);
            if let Some(at) = at {
                newest.insert(format!("{database} {}", relation.name), at.to_string().into());
            }
        }
    }
    newest
}

/// Draws the report up from the journal as it is on disk, and writes it beside it. A
/// report that cannot be written is a warning: it can be made again at any time.
pub fn write_report(
    system: &System,
    incident: &mut Incident,
    journal: &mut Journal,
    reporter: &SharedReporter,
) -> Report {
    if let Ok(fresh) = Incident::load(&incident.directory) {
        *incident = fresh;
    }
    let report = Report::of(incident, &system.runbook.objectives);
    let written = write_json(&incident.directory.join("report.json"), &report)
        .map_err(|e| e.to_string())
        .and_then(|()| {
            write_atomically(
                &incident.directory.join("report.md"),
                markdown(&report).as_bytes(),
            )
            .map_err(|e| e.to_string())
        });
    match written {
        Ok(()) => {
            let _ = journal.append(Record::ReportWritten {});
        }
        Err(e) => reporter.event(&Event::Warning {
            text: format!(
                "the report could not be written: {e}; drctl incident report {} prints it",
                incident.id()
            ),
        }),
    }
    report
}
