//! Sessions: a key with a lifetime each, and the set `sessions:all` that is counted against the limit.
//!
//! The set has the fault of the guide on purpose: a session that ends by its lifetime stays in it, so in time the
//! limit is reached with nobody connected.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::redis_client::ask;
use crate::serve::App;

/// Key of the set of all session ids.
pub const ALL: &str = "sessions:all";

/// In one step inside Redis: two API servers must not both take the last place.
const OPEN: &str = "
if redis.call('SCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[4])
return 1";

fn key(id: &str) -> String {
    format!("session:{id}")
}

pub async fn open(State(app): State<Arc<App>>) -> Result<(StatusCode, Json<Value>), ApiError> {
    let id = tokio::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .await
        .map_err(|e| ApiError::Redis(format!("no session id: {e}")))?;
    let id = id.trim();
    let mut command = redis::cmd("EVAL");
    command.arg(OPEN).arg(2).arg(ALL).arg(key(id));
    command
        .arg(id)
        .arg(app.session_limit)
        .arg(jiff::Timestamp::now().to_string())
        .arg(app.session_ttl);
    let opened: u64 = ask(&app.redis, &command).await.map_err(ApiError::Redis)?;
    if opened == 0 {
        return Err(ApiError::SessionLimit);
    }
    Ok((
        StatusCode::CREATED,
        Json(json!({ "id": id, "expires_in": app.session_ttl })),
    ))
}

pub async fn close(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let removed: u64 = ask(&app.redis, redis::cmd("SREM").arg(ALL).arg(&id))
        .await
        .map_err(ApiError::Redis)?;
    let _: u64 = ask(&app.redis, redis::cmd("DEL").arg(key(&id)))
        .await
        .map_err(ApiError::Redis)?;
    if removed == 0 {
        return Err(ApiError::NotFound(format!("session {id}")));
    }
    Ok(StatusCode::NO_CONTENT)
}
