//! The `drctl` program: parse, run, exit code. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = drctl::cli::Cli::parse();
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
    let code = runtime.block_on(drctl::cli::run(cli));
    // A helper task that hangs on a dead socket must not delay the exit.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    code
}
