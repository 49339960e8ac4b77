//! The demo application of the `trading` stack: `serve` is the API server, `probe` what its health check runs.
//!
//! Like that of `simgen`, whose parts it shares, it is written to be operated on: it starts without its database,
//! never waits without a limit, and what it acknowledges is committed.

#[path = "../../simgen/api/db.rs"]
mod db;
#[path = "../../simgen/api/error.rs"]
#[expect(dead_code, reason = "it has no sessions")]
mod error;
mod orders;
#[path = "../../simgen/api/redis_client.rs"]
mod redis_client;
mod serve;
#[path = "../../simgen/api/serving.rs"]
mod serving;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "trading-api",
    version,
    about = "The demo application of the trading stack"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the API server
    Serve(serve::Args),
    /// Asks a health endpoint and fails unless it answers with success
    Probe {
        /// For example http://127.0.0.1:8085/livez
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
        Command::Probe { url } => serving::probe(&url).await,
    }
}
