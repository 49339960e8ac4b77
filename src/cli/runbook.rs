//! `drctl runbook`: validate, schema, show.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Context;
use crate::error::{Error, Kind, Result};
use crate::event::EVENT_VERSION;
use crate::ui;

/// Arguments of `drctl runbook`.
#[derive(Debug, Args)]
pub struct RunbookArgs {
    #[command(subcommand)]
    verb: RunbookVerb,
}

#[derive(Debug, Subcommand)]
enum RunbookVerb {
    /// Check a runbook: every problem at once, with line and column
    Validate {
        /// The runbook to check; default: the one that would be used
        path: Option<PathBuf>,
    },
    /// Print the JSON Schema of runbooks, for editors
    Schema,
    /// Print the runbook that is in force, with every default written out
    Show,
}

/// Runs `drctl runbook`.
///
/// # Errors
/// An invalid or missing runbook.
pub fn run(cx: &Context, args: RunbookArgs) -> Result<ExitCode> {
    match args.verb {
        RunbookVerb::Schema => {
            let schema = crate::runbook::schema();
            if cx.global.json {
                let schema: serde_json::Value = serde_json::from_str(&schema)
                    .map_err(|e| Error::new(Kind::Internal, "the schema is no JSON").because(&e))?;
                ui::json(&json!({ "event": "runbook-schema", "version": EVENT_VERSION, "schema": schema }));
            } else {
                ui::data(&schema);
            }
        }
        RunbookVerb::Show => {
            let runbook = cx.runbook()?;
            if cx.global.json {
                ui::json(&json!({
                    "event": "runbook", "version": EVENT_VERSION, "path": runbook.source,
                    "runbook": crate::runbook::to_json(&runbook),
                }));
            } else {
                ui::data(&crate::runbook::render(&runbook));
            }
        }
        RunbookVerb::Validate { path } => {
            let global = super::Global {
                runbook: path.or_else(|| cx.global.runbook.clone()),
                ..cx.global.clone()
            };
            let runbook = Context {
                global,
                reporter: cx.reporter.clone(),
                state: cx.state.clone(),
            }
            .runbook()?;
            if cx.global.json {
                ui::json(&json!({
                    "event": "runbook-valid", "version": EVENT_VERSION, "path": runbook.source,
                    "deployment": runbook.deployment, "environment": runbook.environment,
                    "services": runbook.services.len(), "endpoints": runbook.endpoints.len(),
                }));
                return Ok(ExitCode::SUCCESS);
            }
            ui::line(&format!(
                "{} is valid: deployment {} ({}), {} services, {} endpoints",
                runbook.source.display(),
                runbook.deployment,
                serde_json::to_value(runbook.environment)
                    .ok()
                    .and_then(|v| v.as_str().map(str::to_owned))
                    .unwrap_or_default(),
                runbook.services.len(),
                runbook.endpoints.len(),
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}
