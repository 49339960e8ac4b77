//! `drctl diagnose`: what is wrong, and what to type.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser};

use super::Context;
use crate::diagnose::{Opinion, all, one};
use crate::error::{Kind, Result};
use crate::probe::observer::Observer;
use crate::scenarios::{Certainty, DetectOptions, registry};
use crate::ui;

/// Arguments of `drctl diagnose`.
#[derive(Debug, Args)]
#[command(
    after_help = "Looks only; nothing is changed. Exit code 0: nothing is wrong; 10: a failure was found; \
12: something could not be looked at.\n\n\
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
    let system = cx.system().await?;
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
        ..DetectOptions::default()
    };
    let chosen = args
        .scenario
        .as_deref()
        .and_then(|name| registry().into_iter().find(|s| s.name == name));
    let opinions = match chosen {
        Some(scenario) => vec![one(&world, scenario, &options, deadline).await],
        None => all(&world, &options, deadline).await,
    };
    if cx.global.json {
        for opinion in &opinions {
            ui::json(&ui::diagnosis::json(opinion, args.scenario.is_some()));
        }
    } else {
        ui::data(&ui::diagnosis::text(
            system.deployment(),
            &opinions,
            args.scenario.is_some(),
        ));
    }
    Ok(verdict(&opinions))
}

/// What was found is printed already: only the exit code is left to say.
fn verdict(opinions: &[Opinion]) -> ExitCode {
    let elsewhere = |o: &Opinion| o.diagnosis().is_some_and(|d| d.look_alike.is_some());
    if opinions.iter().any(|o| o.is_finding() || elsewhere(o)) {
        ExitCode::from(Kind::VerifyFailed.exit_code())
    } else if opinions.iter().any(|o| o.certainty() == Certainty::Unknown) {
        ExitCode::from(Kind::CouldNotVerify.exit_code())
    } else {
        ExitCode::SUCCESS
    }
}
