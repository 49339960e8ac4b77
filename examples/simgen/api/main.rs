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
mod sessions;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

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

async fn probe(url: &str) -> anyhow::Result<()> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(2))
        .build()?;
    let status = client
        .get(url)
        .send()
        .await
        .with_context(|| format!("no answer from {url}"))?
        .status();
    if !status.is_success() {
        bail!("{url} answered {status}");
    }
    Ok(())
}

/// Serves until SIGTERM or SIGINT, and then gives the requests under way five seconds.
///
/// As process 1 of a container the program must handle the signals itself: the kernel gives process 1 no default.
async fn serve_until_signal(listen: SocketAddr, router: axum::Router) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    tracing::info!("listening on {listen}");

    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        // A dropped sender means the same as a message: stop.
        let _ = stopping.await;
    });
    let mut server = tokio::spawn(async move { server.await });
    tokio::select! {
        ended = &mut server => ended.context("the server task failed")?.context("the server failed")?,
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    drop(stop);
    if !server.is_finished()
        && tokio::time::timeout(Duration::from_secs(5), server)
            .await
            .is_err()
    {
        tracing::warn!("requests were still under way after 5 s");
    }
    Ok(())
}
