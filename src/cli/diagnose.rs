//! `drctl diagnose`: what is wrong, and what to type.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser};

use super::Context;
use crate::diagnose::{General, Opinion, everything, one};
use crate::error::{Error, Kind, Result};
use crate::probe::observer::Observer;
use crate::runbook::Runbook;
use crate::scenarios::outage::{self, Outage};
use crate::scenarios::{Certainty, DetectOptions, Looked, Scenario, registry};
use crate::ui;

/// Arguments of `drctl diagnose`.
#[derive(Debug, Args)]
#[command(
    after_help = "Looks only; nothing is changed. Exit code 0: nothing is wrong; 10: a failure was found; \
12: something could not be looked at, or an endpoint fails and nothing explains it; 7: the engine does not answer, and what is known without it is told.\n\n\
Examples:\n  drctl diagnose                  # what is wrong?\n  drctl diagnose db-corruption    # one failure, with all of its evidence"
)]
pub struct DiagnoseArgs {
    /// Look for this failure alone, and show its evidence in full
    #[arg(value_name = "SCENARIO", value_parser = scenarios())]
    scenario: Option<String>,
    /// The service, where several could have the failure
    #[arg(long, requires = "scenario")]
    service: Option<String>,
    /// Read every row and compare every index with its table
    #[arg(long)]
    deep: bool,
}

fn scenarios() -> PossibleValuesParser {
    PossibleValuesParser::new(
        registry()
            .into_iter()
            .map(|s| PossibleValue::new(s.name).help(s.about)),
    )
}

/// What is added to the deadline of one probe for all that one scenario asks in turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `drctl diagnose`.
///
/// # Errors
/// A runbook or an engine that cannot be used. What was found decides the exit code.
pub async fn run(cx: &Context, args: DiagnoseArgs) -> Result<ExitCode> {
    let system = if args.scenario.as_deref().is_none_or(|s| s == Outage::NAME) {
        cx.system_or_outage().await??
    } else {
        cx.system().await?
    };
    // Opinions are printed when all are there, ranked; the talk of each look would be a jumble.
    let reporter = if args.scenario.is_some() {
        cx.reporter.clone()
    } else {
        std::sync::Arc::new(crate::event::Silent)
    };
    let world = Observer::new(&system, &reporter);
    let deadlines = system.runbook.deadlines.clone();
    let deadline = if args.deep {
        deadlines.step
    } else {
        deadlines.probe
    } + PATIENCE;
    let options = DetectOptions {
        service: args.service,
        deep: args.deep,
        state_dir: Some(cx.state.path().to_owned()),
        ..DetectOptions::default()
    };
    let chosen = args
        .scenario
        .as_deref()
        .and_then(|name| registry().into_iter().find(|s| s.name == name));
    let (opinions, general) = match chosen {
        // Who asks for one failure gets an answer on that one.
        Some(scenario) => (vec![one(&world, scenario, &options, deadline).await], Vec::new()),
        None => everything(&world, &options, deadline).await,
    };
    if cx.global.json {
        for opinion in &opinions {
            ui::json(&ui::diagnosis::json(opinion, args.scenario.is_some()));
        }
        for finding in &general {
            ui::json(&ui::diagnosis::general_json(finding));
        }
    } else {
        ui::data(&ui::diagnosis::text(
            system.deployment(),
            &opinions,
            &general,
            args.scenario.is_some(),
        ));
    }
    Ok(ExitCode::from(verdict(&opinions, &general)))
}

/// Prints what is known without an engine; gives the error back with what to type.
pub(super) async fn without_engine(cx: &Context, runbook: &Runbook, mut error: Error) -> Error {
    let began = std::time::Instant::now();
    let evidence = outage::without_engine(runbook, error.message.clone()).await;
    let opinion = registry()
        .into_iter()
        .find(|s| s.name == Outage::NAME)
        .map(|scenario| Opinion {
            scenario,
            looked: Ok(Looked {
                diagnosis: Outage::diagnose(&evidence, runbook),
                evidence: serde_json::to_value(&evidence).unwrap_or_default(),
            }),
            took: began.elapsed(),
            consequence_of: None,
        });
    if let Some(opinion) = &opinion {
        if cx.global.json {
            ui::json(&ui::diagnosis::json(opinion, true));
        } else {
            ui::data(&ui::diagnosis::without_engine(opinion));
        }
    }
    // What the connection itself knows to type, as the check of a host key, comes first.
    error.next.retain(|n| n.starts_with("ssh -"));
    error.next.extend(outage::what_to_type(&evidence));
    error
}

/// What was found is printed already: only the exit code is left to say.
fn verdict(opinions: &[Opinion], general: &[General]) -> u8 {
    let found =
        opinions.iter().any(|o| o.is_finding() || o.is_elsewhere()) || general.iter().any(|g| g.explained);
    if found {
        Kind::VerifyFailed.exit_code()
    } else if !general.is_empty() || opinions.iter().any(|o| o.certainty() == Certainty::Unknown) {
        Kind::CouldNotVerify.exit_code()
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_without_an_explanation_is_no_success() {
        let of = |explained| General {
            name: "endpoint",
            explained,
            summary: String::new(),
            reasons: vec![],
            next: vec![],
        };
        assert_eq!(verdict(&[], &[]), 0);
        assert_eq!(verdict(&[], &[of(false)]), 12);
        assert_eq!(verdict(&[], &[of(false), of(true)]), 10);
    }
}
