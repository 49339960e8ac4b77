//! The API server: settings and routes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post};
use deadpool_postgres::Pool;
use redis::aio::ConnectionManager;

use crate::{db, health, orders, redis_client, serve_until_signal, sessions};

#[derive(clap::Args)]
pub struct Args {
    /// Address and port
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8000")]
    listen: SocketAddr,
    #[arg(long, env = "DATABASE_HOST", default_value = "postgres")]
    pub database_host: String,
    #[arg(long, env = "DATABASE_PORT", default_value_t = 5432)]
    pub database_port: u16,
    #[arg(long, env = "DATABASE_NAME", default_value = "simgen")]
    pub database_name: String,
    #[arg(long, env = "DATABASE_USER", default_value = "simgen_app")]
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
    /// Most sessions at a time, over all API servers
    #[arg(long, env = "SESSION_LIMIT", default_value_t = 1000)]
    session_limit: u64,
    /// Seconds until a session ends by itself
    #[arg(long, env = "SESSION_TTL", default_value_t = 3600)]
    session_ttl: u64,
}

/// What the handlers share.
pub struct App {
    pub db: Pool,
    pub redis: ConnectionManager,
    pub session_limit: u64,
    pub session_ttl: u64,
}

pub async fn run(args: &Args) -> anyhow::Result<()> {
    let app = Arc::new(App {
        db: db::pool(args)?,
        redis: redis_client::connection(&args.redis_url)?,
        session_limit: args.session_limit,
        session_ttl: args.session_ttl,
    });
    let router = Router::new()
        .route("/health", get(health::ready))
        .route("/health/ready", get(health::ready))
        .route("/health/live", get(health::live))
        .route("/health/detailed", get(health::detailed))
        .route("/api/v1/orders", post(orders::create).get(orders::find))
        .route("/api/v1/orders/{id}", get(orders::show))
        .route("/api/v1/sessions", post(sessions::open))
        .route("/api/v1/sessions/{id}", delete(sessions::close))
        .with_state(app);
    serve_until_signal(args.listen, router).await
}
