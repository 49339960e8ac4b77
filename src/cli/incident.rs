//! `drctl incident`: what happened, and how to go on or back.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::Context;
use super::recover::{consent, recovery};
use crate::error::{Error, Kind, Result};
use crate::incident::{
    Incident, IncidentError, JOURNAL_FILE, Journal, Listing, Log, Record, Report, markdown, timeline,
};
use crate::ui::report::Would;
use crate::{engine, recover, ui};

/// Arguments of `drctl incident`.
#[derive(Debug, Args)]
#[command(
    after_help = "An ID may be cut short. Without one, the latest incident of the deployment that is not closed is meant.\n\n\
`undo` brings the old data back into service and keeps what was written since beside it; what a step could not keep (ended \
sessions, removed sets) stays gone, as the plan has said. `close` lets go of the old data and cannot be taken back: it needs \
the deployment's name.\n\n\
Examples:\n  drctl incident show\n  drctl incident undo --dry-run\n  drctl incident report 20261120 > report.md"
)]
pub struct IncidentArgs {
    #[command(subcommand)]
    verb: IncidentVerb,
}

#[derive(Debug, Subcommand)]
enum IncidentVerb {
    /// List the incidents, newest first
    List,
    /// Show an incident: diagnosis, plan, timeline, and what can be done
    Show {
        /// The incident
        id: Option<String>,
    },
    /// Print the report of an incident as Markdown
    Report {
        /// The incident
        id: Option<String>,
    },
    /// Go on with an incident that was cut off, or verify it again
    Resume {
        /// The incident
        id: Option<String>,
    },
    /// Take an incident back: the old data comes into service again
    Undo {
        /// The incident
        id: Option<String>,
    },
    /// Add a remark to the timeline of an incident
    Note {
        /// The incident
        id: String,
        /// The remark
        #[arg(required = true)]
        text: Vec<String>,
    },
    /// Drop what an incident kept, and close it: there is no undo after this
    Close {
        /// The incident
        id: Option<String>,
    },
}

/// Runs `drctl incident`.
///
/// # Errors
/// As the verbs say: refused, declined, locked, failed.
pub async fn run(cx: &Context, args: IncidentArgs) -> Result<ExitCode> {
    match args.verb {
        IncidentVerb::List => list(cx),
        IncidentVerb::Show { id } => {
            let incident = choose(cx, id.as_deref())?;
            let moments = timeline(&incident.entries, &incident.plan);
            if cx.global.json {
                ui::json(&serde_json::json!({
                    "event": "incident-shown", "version": crate::event::EVENT_VERSION, "incident": incident.id(),
                    "state": incident.progress.stage.name(), "certainty": incident.case.certainty,
                    "summary": incident.case.summary, "reasons": incident.case.reasons,
                    "plan": incident.plan, "timeline": moments, "next": incident.progress.choices(),
                }));
            } else {
                ui::data(&ui::report::show(&incident, &moments));
            }
        }
        IncidentVerb::Report { id } => {
            let incident = choose(cx, id.as_deref())?;
            let report = report(cx, &incident)?;
            if cx.global.json {
                ui::json(&serde_json::json!({
                    "event": "report", "version": crate::event::EVENT_VERSION, "report": report,
                }));
            } else {
                ui::data(&markdown(&report));
            }
        }
        IncidentVerb::Note { id, text } => note(cx, &id, &text.join(" "))?,
        IncidentVerb::Resume { id } => {
            let system = cx.system().await?;
            let incident = chosen(cx, id.as_deref(), system.deployment())?;
            if cx.global.dry_run {
                would(cx, &incident, Would::Resume);
                return Ok(ExitCode::SUCCESS);
            }
            recover::resume(&recovery(cx, &system, consent(cx)), incident).await?;
        }
        IncidentVerb::Undo { id } => {
            let system = cx.system().await?;
            let incident = chosen(cx, id.as_deref(), system.deployment())?;
            if cx.global.dry_run {
                would(cx, &incident, Would::Undo);
                return Ok(ExitCode::SUCCESS);
            }
            recover::undo(&recovery(cx, &system, consent(cx)), incident).await?;
        }
        IncidentVerb::Close { id } => {
            let system = cx.system().await?;
            let incident = chosen(cx, id.as_deref(), system.deployment())?;
            let name = incident.id().to_owned();
            if cx.global.dry_run {
                would(cx, &incident, Would::Close);
                return Ok(ExitCode::SUCCESS);
            }
            let closed = recover::close(&recovery(cx, &system, consent(cx)), incident).await?;
            if cx.global.json {
                ui::json(&serde_json::json!({
                    "event": "incident-closed", "version": crate::event::EVENT_VERSION, "incident": name,
                    "dropped": closed.dropped, "left": closed.left,
                }));
            } else {
                for line in &closed.dropped {
                    ui::line(line);
                }
                for line in &closed.left {
                    ui::line(&format!("left as it is: {line}"));
                }
                ui::line(&format!("incident {name} is closed"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(cx: &Context) {
    let listing = Listing::read(&cx.state);
    let warn = |text: String| cx.reporter.event(&crate::event::Event::Warning { text });
    for found in &listing.unreadable {
        warn(format!(
            "{} cannot be read: {}",
            found.path.display(),
            found.cause
        ));
    }
    if let Some(path) = &listing.foreign {
        warn(format!(
            "{} is somebody else's: nothing in it was read",
            path.display()
        ));
    }
    if cx.global.json {
        for i in &listing.incidents {
            ui::json(&serde_json::json!({
                "event": "incident-listed", "version": crate::event::EVENT_VERSION, "incident": i.id(),
                "deployment": i.plan.deployment, "scenario": i.plan.scenario, "service": i.plan.service,
                "remedy": i.plan.remedy, "state": i.progress.stage.name(),
                "opened-at": i.opened_at().map(|t| t.to_string()), "next": i.progress.choices(),
            }));
        }
    } else if listing.incidents.is_empty() {
        ui::line(&format!("no incidents in {}", cx.state.path().display()));
    } else {
        ui::data(&ui::report::list(&listing.incidents, jiff::Timestamp::now()));
    }
}

/// What a dry run shows of an incident.
fn would(cx: &Context, incident: &Incident, what: Would) {
    if cx.global.json {
        ui::json(&ui::report::forecast(incident, what));
    } else {
        ui::data(&ui::report::would(incident, what));
    }
}

/// An incident for a verb that only reads: the runbook is needed only to know which
/// deployment is meant.
fn choose(cx: &Context, id: Option<&str>) -> Result<Incident> {
    match id {
        Some(id) => chosen(cx, Some(id), ""),
        None => chosen(cx, None, cx.runbook()?.deployment.as_str()),
    }
}

fn chosen(cx: &Context, id: Option<&str>, deployment: &str) -> Result<Incident> {
    Listing::read(&cx.state).choose(id, deployment).map_err(|e| {
        let kind = match e {
            IncidentError::Unknown(_) | IncidentError::Ambiguous { .. } | IncidentError::NoneOpen(_) => {
                Kind::Usage
            }
            _ => Kind::Internal,
        };
        Error::new(kind, e.to_string())
            .untouched("everything")
            .next(format!(
                "drctl incident list    # what there is in {}",
                cx.state.path().display()
            ))
    })
}

/// The report drawn up anew; the one on disk when the runbook cannot be read.
fn report(cx: &Context, incident: &Incident) -> Result<Report> {
    match cx.runbook() {
        Ok(runbook) => Ok(Report::of(incident, &runbook.objectives)),
        Err(e) => std::fs::read(incident.directory.join("report.json"))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .ok_or(e),
    }
}

fn note(cx: &Context, id: &str, text: &str) -> Result<()> {
    let incident = chosen(cx, Some(id), "")?;
    if cx.global.dry_run {
        if cx.global.json {
            ui::json(&serde_json::json!({
                "event": "incident-forecast", "version": crate::event::EVENT_VERSION, "incident": incident.id(),
                "verb": "note", "state": incident.progress.stage.name(), "text": text,
            }));
        } else {
            ui::line(&format!("note {}: {text}", incident.id()));
        }
        return Ok(());
    }
    let root = incident.directory.parent().and_then(std::path::Path::parent);
    let state = root.map_or_else(|| cx.state.clone(), crate::incident::StateDir::at);
    let _lock = engine::lock(&state, &incident.plan.deployment, "incident note")?;
    let (mut journal, _) =
        Journal::open(&incident.directory.join(JOURNAL_FILE)).map_err(|e| engine::open_journal_error(&e))?;
    journal
        .append(Record::Noted {
            text: text.to_owned(),
        })
        .map_err(|e| engine::open_journal_error(&e))
}
