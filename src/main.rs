//! The `drctl` program: parse, run, exit code. Everything else is in the library.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(drctl::ui::panicked));
    // Every TLS client of drctl names this provider itself; a crate that does not must not find another one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match drctl::cli::Cli::try_parse() {
        Ok(cli) => cli,
        // A monitoring system takes the exit code 2 of a wrong option for a broken deployment.
        Err(e) if e.use_stderr() && is_check() => return drctl::cli::check::usage(&e, is_json()),
        Err(e) if e.use_stderr() && is_json() => return drctl::cli::usage(&e),
        Err(e) => e.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            return drctl::ui::fatal(&format!("no asynchronous runtime could be started: {e}"));
        }
    };
    let code = drctl::cli::run_to_the_end(&runtime, cli);
    // A helper task that hangs on a dead socket must not delay the exit.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    code
}

/// Whether the command line, which makes no sense, was meant for `drctl check`: its first word that is a verb.
fn is_check() -> bool {
    let verbs = drctl::cli::Cli::command();
    words()
        .find(|word| verbs.get_subcommands().any(|verb| verb.get_name() == word))
        .is_some_and(|word| word == "check")
}

/// Whether `--json` is on a command line that makes no sense.
fn is_json() -> bool {
    words()
        .take_while(|word| word != "--")
        .any(|word| word == "--json")
}

fn words() -> impl Iterator<Item = String> {
    // A word that is no text is one of the things that can be wrong.
    std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
}
