//! `drctl runbook`: validate, schema, show.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::Context;
use crate::error::Result;
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
        RunbookVerb::Schema => ui::data(&crate::runbook::schema()),
        RunbookVerb::Show => ui::data(&crate::runbook::render(&cx.runbook()?)),
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
