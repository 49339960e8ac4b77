//! Health, as its user would see it: the database answers a query of a real table, Redis accepts a write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::db;
use crate::redis_client::ask;
use crate::serve::App;
use crate::sessions;

pub async fn live() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// 200 only if both the database and Redis are usable, else 503 and which is not.
pub async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let (database, redis) = tokio::join!(database_usable(&app), redis_usable(&app));
    let status = if database.is_ok() && redis.is_ok() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let word = if status.is_success() { "ok" } else { "unavailable" };
    (
        status,
        Json(json!({ "status": word, "database": up_or_error(&database), "redis": up_or_error(&redis) })),
    )
}

/// Everything that can be told, always with status 200: what is down is in the body.
pub async fn detailed(State(app): State<Arc<App>>) -> Json<Value> {
    let (database, redis) = tokio::join!(database(&app), redis(&app));
    let (redis, sessions) = redis;
    let pool = app.db.status();
    Json(json!({
        "websocket_sessions": sessions,
        "session_limit": app.session_limit,
        "pool": {
            "size": pool.max_size,
            "open": pool.size,
            "available": pool.max_size - (pool.size - pool.available.min(pool.size)),
            "in_use": pool.size - pool.available.min(pool.size),
            "waiting": pool.waiting,
        },
        "redis": redis,
        "database": database,
    }))
}

fn up_or_error(result: &Result<(), String>) -> &str {
    match result {
        Ok(()) => "up",
        Err(error) => error,
    }
}

async fn database_usable(app: &App) -> Result<(), String> {
    // An application that can only read is not healthy: a server in recovery or set read-only refuses orders.
    let sql =
        "SELECT current_setting('transaction_read_only'), (SELECT id FROM customers ORDER BY id LIMIT 1)";
    let row = db::with(&app.db, async |client| client.query_one(sql, &[]).await)
        .await
        .map_err(|e| e.to_string())?;
    match row.try_get::<_, &str>(0) {
        Ok("off") => Ok(()),
        Ok(_) => Err("database is read-only".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn redis_usable(app: &App) -> Result<(), String> {
    let mut command = redis::cmd("SET");
    command.arg("health:write").arg(1).arg("EX").arg(30);
    ask(&app.redis, &command).await
}

async fn database(app: &App) -> Value {
    let start = Instant::now();
    let usable = database_usable(app).await;
    let latency = millis(start);
    if let Err(error) = usable {
        return json!({ "state": "down", "error": error });
    }
    // Sessions of other roles show no state to this one.
    let sql = "SELECT coalesce(state, 'hidden'), count(*) FROM pg_stat_activity
               WHERE datname = current_database() GROUP BY 1";
    let connections = db::with(&app.db, async |client| {
        let rows = client.query(sql, &[]).await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<BTreeMap<String, i64>, _>>()
    })
    .await;
    match connections {
        Ok(connections) => json!({ "state": "up", "latency_ms": latency, "connections": connections }),
        Err(error) => json!({ "state": "up", "latency_ms": latency, "error": error.to_string() }),
    }
}

/// The state of Redis, and the number of sessions if it can be told.
async fn redis(app: &App) -> (Value, Option<u64>) {
    let start = Instant::now();
    let usable = redis_usable(app).await;
    let latency = millis(start);
    let sessions: Result<u64, _> = ask(&app.redis, redis::cmd("SCARD").arg(sessions::ALL)).await;
    let info: Result<String, _> = ask(&app.redis, redis::cmd("INFO").arg("memory")).await;
    let field = |name: &str| {
        info.as_ref().ok()?.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(':')?
                .trim()
                .parse::<u64>()
                .ok()
        })
    };
    let value = json!({
        "state": if usable.is_ok() { "up" } else { "down" },
        "latency_ms": latency,
        "error": usable.err(),
        "used_memory": field("used_memory"),
        "maxmemory": field("maxmemory"),
    });
    (value, sessions.ok())
}

/// Milliseconds since `start`, to a hundredth.
fn millis(start: Instant) -> f64 {
    (start.elapsed().as_secs_f64() * 100_000.0).round() / 100.0
}
