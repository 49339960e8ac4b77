//! `drctl man`: the manual pages, made of the same doc comments as the help texts.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_mangen::Man;

use super::Cli;
use crate::error::{Error, Kind, Result};
use crate::ui;

/// Arguments of `drctl man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  drctl man | man -l -
  drctl man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Write one page per command into this directory, which is made. Default: print the page of drctl itself
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Runs `drctl man`. It needs no runbook and no engine.
///
/// # Errors
/// [`Kind::Internal`] when a page cannot be written.
pub fn run(args: &ManArgs, dry_run: bool) -> Result<ExitCode> {
    let mut root = Cli::command();
    root.build();
    let Some(directory) = &args.directory else {
        let page = page(&root).map_err(|e| Error::new(Kind::Internal, "no page was made").because(&e))?;
        ui::data(&String::from_utf8_lossy(&page));
        return Ok(ExitCode::SUCCESS);
    };
    let failed = |path: &Path, e: &io::Error| {
        Error::new(Kind::Internal, format!("{} cannot be written", path.display()))
            .because(e)
            .untouched("everything but the pages before this one")
    };
    if !dry_run {
        std::fs::create_dir_all(directory).map_err(|e| failed(directory, &e))?;
    }
    for command in commands(&root) {
        let path = directory.join(Man::new(command.clone()).get_filename());
        if !dry_run {
            page(&command)
                .and_then(|text| std::fs::write(&path, text))
                .map_err(|e| failed(&path, &e))?;
        }
        ui::line(&path.display().to_string());
    }
    Ok(ExitCode::SUCCESS)
}

/// The command and all below it.
fn commands(command: &clap::Command) -> Vec<clap::Command> {
    let mut all = vec![command.clone()];
    for below in command
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help")
    {
        all.extend(commands(below));
    }
    all
}

fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(command.clone()).render(&mut text)?;
    Ok(text)
}
