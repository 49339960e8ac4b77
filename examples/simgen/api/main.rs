//! The demo application of the `simgen` stack, as one program with three commands:
//! `serve` is an API server, `cv` the sketch-analysis service, `probe` what their health checks run.
//!
//! It is written to be operated on: it starts without its database, it never waits without a limit, and what it
//! acknowledges is committed. So whatever is missing after a recovery is the recovery's fault.

mod cv;
mod db;
mod error;
mod health;
mod orders;
mod redis_client;
mod serve;
mod serving;
mod sessions;

use clap::{Parser, Subcommand};

use serving::{probe, serve_until_signal};

#[derive(Parser)]
#[command(
    name = "simgen-api",
    version,
    about = "The demo application of the simgen stack"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs an API server
    Serve(serve::Args),
    /// Runs the sketch-analysis service
    Cv(cv::Args),
    /// Asks a health endpoint and fails unless it answers with success
    Probe {
        /// For example http://127.0.0.1:8000/health/live
        url: String,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    match Cli::parse().command {
        Command::Serve(args) => serve::run(&args).await,
        Command::Cv(args) => cv::run(&args).await,
        Command::Probe { url } => probe(&url).await,
    }
}
