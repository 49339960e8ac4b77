//! The API server: settings, routes, health.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use deadpool_postgres::Pool;
use redis::aio::ConnectionManager;
use serde_json::{Value, json};

use crate::redis_client::ask;
use crate::serving::serve_until_signal;
use crate::{db, orders, redis_client};

#[derive(clap::Args)]
pub struct Args {
    /// Address and port
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8085")]
    listen: SocketAddr,
    #[arg(long, env = "DATABASE_HOST", default_value = "db")]
    pub database_host: String,
    #[arg(long, env = "DATABASE_PORT", default_value_t = 5432)]
    pub database_port: u16,
    #[arg(long, env = "DATABASE_NAME", default_value = "trading")]
    pub database_name: String,
    #[arg(long, env = "DATABASE_USER", default_value = "trading_app")]
    pub database_user: String,
    /// Better from the environment: arguments are seen in every process list
    #[arg(long, env = "DATABASE_PASSWORD", hide_env_values = true, default_value = "")]
    pub database_password: String,
    /// Most connections to the database
    #[arg(long, env = "DATABASE_POOL_SIZE", default_value_t = 10)]
    pub database_pool_size: usize,
    #[arg(
        long,
        env = "REDIS_URL",
        hide_env_values = true,
        default_value = "redis://redis:6379/0"
    )]
    redis_url: String,
    /// Most orders in a minute
    #[arg(long, env = "RATE_LIMIT", default_value_t = 6000)]
    rate_limit: u64,
}

/// What the handlers share.
pub struct App {
    pub db: Pool,
    pub redis: ConnectionManager,
    pub rate_limit: u64,
}

pub async fn run(args: &Args) -> anyhow::Result<()> {
    let app = Arc::new(App {
        db: db::pool(args)?,
        redis: redis_client::connection(&args.redis_url)?,
        rate_limit: args.rate_limit,
    });
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .route("/api/v1/orders", post(orders::create))
        .route("/api/v1/orders/{id}", get(orders::show))
        .route("/api/v1/orders/{id}/fills", post(orders::fill))
        .with_state(app);
    serve_until_signal(args.listen, router).await
}

async fn livez() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// 200 only if orders can be written and the rate limit works, else 503 and which does not.
async fn healthz(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let mut ping = redis::cmd("SET");
    ping.arg("health:write").arg(1).arg("EX").arg(30);
    let (database, redis) = tokio::join!(writable(&app), ask::<()>(&app.redis, &ping));
    let up = database.is_ok() && redis.is_ok();
    let word = |result: Result<(), String>| result.err().unwrap_or_else(|| "up".to_owned());
    let status = if up {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        Json(json!({
            "status": if up { "ok" } else { "unavailable" },
            "database": word(database),
            "redis": word(redis),
        })),
    )
}

async fn writable(app: &App) -> Result<(), String> {
    // A server in recovery or set read-only answers, and refuses orders.
    let sql = "SELECT current_setting('transaction_read_only'), (SELECT symbol FROM instruments LIMIT 1)";
    let row = db::with(&app.db, async |client| client.query_one(sql, &[]).await)
        .await
        .map_err(|e| e.to_string())?;
    match row.try_get::<_, &str>(0) {
        Ok("off") => Ok(()),
        Ok(_) => Err("database is read-only".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
