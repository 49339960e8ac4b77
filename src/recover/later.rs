//! What can be done with an incident later: go on with it, take it back, let go of what it
//! keeps.

use jiff::Timestamp;

use super::memory::{bring_home, lock_if_writable};
use super::{Recover, known, listen, publish, unproven};
use crate::engine;
use crate::engine::approve::check_rules;
use crate::error::{Error, Kind, Result};
use crate::event::Verdict;
use crate::incident::{Incident, Journal, Listing, Lock, Log, Record, Report, Stage};
use crate::probe::watch::Watch;

/// An incident that is continued: locked, and read again under the lock.
struct Continued {
    incident: Incident,
    journal: Journal,
    _lock: Lock,
    _at_home: Option<Lock>,
}

fn continue_with(cx: &Recover<'_>, mut incident: Incident, verb: &str) -> Result<Continued> {
    let (ours, theirs) = (cx.system.deployment(), incident.plan.deployment.as_str());
    if ours != theirs {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "incident {} is about {theirs}, the runbook about {ours}",
                incident.id()
            ),
        )
        .untouched("everything")
        .next("-r PATH    # the runbook of that deployment"));
    }
    let (memory, command) = (engine::memory_of(&incident), format!("incident {verb}"));
    // Whoever takes the lock at home only must not begin, or move the incident, meanwhile.
    let at_home = if memory.path() == cx.state.path() {
        None
    } else {
        lock_if_writable(cx.state, ours, &command)?
    };
    let lock = engine::lock(&memory, ours, &command)?;
    let journal = incident.reopen().map_err(|e| engine::open_journal_error(&e))?;
    Ok(Continued {
        incident,
        journal,
        _lock: lock,
        _at_home: at_home,
    })
}

/// Continues an incident from where its journal ends: forwards to a proven recovery, or
/// backwards when it had turned back.
///
/// # Errors
/// As [`recover`](super::recover).
pub async fn resume(cx: &Recover<'_>, incident: Incident) -> Result<Report> {
    let ended = go_on(cx, incident).await;
    // Its lock is free again: nobody may be at it while it moves.
    if let Ok(_lock) = engine::lock(cx.state, cx.system.deployment(), "incident resume") {
        bring_home(cx.state, None, cx.reporter);
    }
    ended
}

async fn go_on(cx: &Recover<'_>, incident: Incident) -> Result<Report> {
    let watch = Watch::start(&cx.system.runbook);
    let mut c = continue_with(cx, incident, "resume")?;
    let (id, stage) = (c.incident.id().to_owned(), c.incident.progress.stage);
    let question = match stage {
        Stage::Undoing => format!("Go on taking back incident {id}?"),
        Stage::Fresh | Stage::Executing => format!("Go on with incident {id}?"),
        Stage::Executed | Stage::Verified(_) => String::new(),
        Stage::Undone | Stage::Closing | Stage::Closed => {
            let mut error = Error::new(
                Kind::Refused,
                format!("incident {id} is {}: there is nothing to resume", stage.words()),
            )
            .untouched("everything");
            for verb in c.incident.progress.choices() {
                error = error.next(format!("drctl incident {verb} {id}"));
            }
            return Err(error);
        }
    };
    // To prove again changes nothing and needs no agreement.
    if !question.is_empty() {
        check_rules(&c.incident.plan)?;
        let how = agree(cx, &c.incident, &question).await?;
        c.journal
            .append(Record::Approved {
                what: "resume".into(),
                how,
            })
            .map_err(|e| engine::open_journal_error(&e))?;
    }
    c.incident.progress.down_since = c
        .incident
        .progress
        .down_since
        .or_else(|| first_disruption(&c.incident));
    let interrupts = listen()?;
    let carried = engine::carry_out(
        cx.system,
        &mut c.incident,
        &mut c.journal,
        cx.reporter,
        &interrupts,
    )
    .await;
    if let Err(e) = carried {
        engine::write_report(cx.system, &mut c.incident, &mut c.journal, cx.reporter);
        return Err(e);
    }
    if c.incident.progress.stage == Stage::Undone {
        let report = engine::write_report(cx.system, &mut c.incident, &mut c.journal, cx.reporter);
        publish(cx.reporter, &report);
        return match engine::left_changed(&c.incident) {
            Some(left) => Err(left),
            None => Ok(report),
        };
    }
    let proof = engine::prove(
        cx.system,
        &mut c.incident,
        &mut c.journal,
        cx.reporter,
        &interrupts,
        // An earlier measurement of this incident stands: the outage is over since then.
        watch.as_ref().filter(|_| !matches!(stage, Stage::Verified(_))),
        cx.acknowledged.as_deref(),
    )
    .await?;
    publish(cx.reporter, &proof.report);
    match proof.verdict {
        Verdict::Pass => Ok(proof.report),
        verdict => Err(unproven(&id, verdict)),
    }
}

/// When the incident may first have turned users away: what is already down when it is
/// resumed has been so since then at the earliest, and is counted from there.
fn first_disruption(incident: &Incident) -> Option<Timestamp> {
    incident.entries.iter().find_map(|e| match &e.record {
        Record::StepStarted { step } => {
            let risk = incident.plan.steps.get(step.wrapping_sub(1))?.risk;
            (risk >= crate::plan::Risk::Disruptive).then_some(e.at)
        }
        _ => None,
    })
}

/// Takes an incident back.
///
/// # Errors
/// As [`super::recover`].
pub async fn undo(cx: &Recover<'_>, incident: Incident) -> Result<Report> {
    let mut c = continue_with(cx, incident, "undo")?;
    let listing = Listing::read(cx.state);
    known(&listing, cx.system.deployment())?;
    if let Some(refused) = engine::cannot_undo(&c.incident, &listing.incidents) {
        return Err(refused);
    }
    let id = c.incident.id().to_owned();
    let question = format!(
        "Take back {} steps of incident {id}? What was written since stays in what is taken out of service.",
        c.incident.progress.to_undo().len() + c.incident.progress.left.len()
    );
    let how = agree(cx, &c.incident, &question).await?;
    let interrupts = listen()?;
    let taken = engine::take_back(
        cx.system,
        &mut c.incident,
        &mut c.journal,
        how,
        cx.reporter,
        &interrupts,
    )
    .await;
    match taken {
        Ok(report) => {
            publish(cx.reporter, &report);
            match engine::left_changed(&c.incident) {
                Some(left) => Err(left),
                None => Ok(report),
            }
        }
        Err(e) => {
            engine::write_report(cx.system, &mut c.incident, &mut c.journal, cx.reporter);
            Err(e)
        }
    }
}

async fn agree(cx: &Recover<'_>, incident: &Incident, question: &str) -> Result<String> {
    engine::approve::agree(
        engine::Needs::of(incident.plan.risk(), cx.system.runbook.environment),
        cx.system.deployment(),
        question,
        "everything: the deployment is as the last run left it",
        &cx.consent,
    )
    .await
}

/// Lets go of what an incident kept.
///
/// # Errors
/// [`Kind::Refused`] while what it keeps may be needed, [`Kind::Declined`],
/// [`Kind::FailedChanged`].
pub async fn close(cx: &Recover<'_>, incident: Incident) -> Result<engine::Closed> {
    let mut c = continue_with(cx, incident, "close")?;
    let listing = Listing::read(cx.state);
    known(&listing, cx.system.deployment())?;
    if let Some(refused) = engine::cannot_close(&c.incident, &listing.incidents) {
        return Err(refused);
    }
    let dropping = if c.incident.progress.started.is_empty() {
        0
    } else {
        c.incident.plan.discard.len()
    };
    let (needs, question) = if c.incident.progress.stage == Stage::Undoing {
        (
            engine::Needs::Name,
            format!(
                "End incident {} although it could not be taken back? drctl does nothing more for it, and leaves: {}.",
                c.incident.id(),
                c.incident.what_stays().join("; ")
            ),
        )
    } else if dropping == 0 {
        (
            engine::Needs::Yes,
            format!("Close incident {}? It keeps nothing.", c.incident.id()),
        )
    } else {
        let what: Vec<String> = c
            .incident
            .plan
            .discard
            .iter()
            .map(crate::plan::Action::summary)
            .collect();
        (
            engine::Needs::Name,
            format!(
                "Close incident {} and {}? This cannot be taken back.",
                c.incident.id(),
                what.join(", ")
            ),
        )
    };
    let how = engine::approve::agree(
        needs,
        cx.system.deployment(),
        &question,
        "everything: what the incident kept is still there",
        &cx.consent,
    )
    .await?;
    engine::close(cx.system, &mut c.incident, &mut c.journal, how, cx.reporter).await
}
