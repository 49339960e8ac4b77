//! The sketch-analysis service: stands in for a model, and keeps its answers in Redis under `cv:*`.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use redis::aio::ConnectionManager;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::redis_client::ask;
use crate::{health, redis_client, serve_until_signal};

/// Seconds that an answer is kept.
const CACHE_TTL: u64 = 3600;

#[derive(clap::Args)]
pub struct Args {
    /// Address and port
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8001")]
    listen: SocketAddr,
    #[arg(
        long,
        env = "REDIS_URL",
        hide_env_values = true,
        default_value = "redis://redis:6379/0"
    )]
    redis_url: String,
}

pub async fn run(args: &Args) -> anyhow::Result<()> {
    let redis = Arc::new(redis_client::connection(&args.redis_url)?);
    let router = Router::new()
        .route("/health", get(health::live))
        .route("/analyze", post(analyze))
        .with_state(redis);
    serve_until_signal(args.listen, router).await
}

/// Redis is only a cache here: without it every sketch is analysed anew.
async fn analyze(State(redis): State<Arc<ConnectionManager>>, sketch: Bytes) -> Json<Value> {
    let digest = Sha256::digest(&sketch)
        .iter()
        .fold(String::new(), |mut hex, byte| {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        });
    let key = format!("cv:{digest}");
    if let Ok(Some(strokes)) = ask::<Option<u64>>(&redis, redis::cmd("GET").arg(&key)).await {
        return Json(json!({ "sketch": digest, "strokes": strokes, "cached": true }));
    }
    let strokes = sketch.chunk_by(|a, b| a == b).count();
    let mut command = redis::cmd("SET");
    command.arg(&key).arg(strokes).arg("EX").arg(CACHE_TTL);
    if let Err(error) = ask::<()>(&redis, &command).await {
        tracing::warn!("the answer is not cached: {error}");
    }
    Json(json!({ "sketch": digest, "strokes": strokes, "cached": false }))
}
