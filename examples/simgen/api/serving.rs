//! An HTTP server as process 1 of a container, and what its health check runs.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Asks a health endpoint and fails unless it answers with success.
pub async fn probe(url: &str) -> anyhow::Result<()> {
    // reqwest is built without a provider of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
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
pub async fn serve_until_signal(listen: SocketAddr, router: axum::Router) -> anyhow::Result<()> {
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
