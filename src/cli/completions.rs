//! `drctl completions`: what makes a shell complete drctl's commands.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use crate::error::{Error, Kind, Result};
use crate::ui;

/// Arguments of `drctl completions`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  drctl completions bash > /etc/bash_completion.d/drctl
  drctl completions zsh > /usr/local/share/zsh/site-functions/_drctl
  drctl completions fish > ~/.config/fish/completions/drctl.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs `drctl completions`. It needs no runbook and no engine.
///
/// # Errors
/// [`Kind::Internal`] when the script that was made is no text, which would be a bug.
pub fn run(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "drctl", &mut script);
    let script = String::from_utf8(script)
        .map_err(|e| Error::new(Kind::Internal, "the completion script is no text").because(&e))?;
    ui::data(&script);
    Ok(ExitCode::SUCCESS)
}
