//! Access to PostgreSQL: a pool that survives a restart or an exchange of the database, and a limit on every use.

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::error::ApiError;
use crate::serve::Args;

/// How long a request waits for a connection, and then again for its work.
const LIMIT: Duration = Duration::from_secs(2);

/// Makes the pool without connecting: the server may come later.
pub fn pool(args: &Args) -> anyhow::Result<Pool> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&args.database_host)
        .port(args.database_port)
        .dbname(&args.database_name)
        .user(&args.database_user)
        .password(&args.database_password)
        .application_name("simgen-api")
        // The server ends a statement that we have given up on; without it the statement would run on unseen.
        .options(
            "-c statement_timeout=2000 -c idle_in_transaction_session_timeout=10000 -c synchronous_commit=on",
        )
        .connect_timeout(Duration::from_secs(1))
        .tcp_user_timeout(Duration::from_secs(3))
        .keepalives_idle(Duration::from_secs(5));
    // Each connection is tried before it is used: after a restart of the server all idle ones are dead.
    let manager = Manager::from_config(
        config,
        NoTls,
        ManagerConfig {
            recycling_method: RecyclingMethod::Verified,
        },
    );
    Ok(Pool::builder(manager)
        .max_size(args.database_pool_size)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(LIMIT))
        .create_timeout(Some(LIMIT))
        .recycle_timeout(Some(Duration::from_millis(500)))
        .build()?)
}

#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("no connection: {}", full(.0))]
    Pool(#[from] deadpool_postgres::PoolError),
    #[error("no connection within {} s", LIMIT.as_secs())]
    ConnectTimeout,
    #[error("no answer within {} s", LIMIT.as_secs())]
    Timeout,
    #[error("{}", .0.as_db_error().map_or_else(|| full(.0), ToString::to_string))]
    Postgres(#[from] tokio_postgres::Error),
}

/// The error with all its causes: "error connecting to server" alone does not say why.
fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors repeat their cause in their own text.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        let code = match &error {
            DbError::Postgres(e) => e.code(),
            _ => None,
        };
        match code {
            Some(&SqlState::UNIQUE_VIOLATION) => Self::Conflict(error.to_string()),
            Some(&SqlState::FOREIGN_KEY_VIOLATION | &SqlState::CHECK_VIOLATION) => {
                Self::Invalid(error.to_string())
            }
            _ => Self::Database(error.to_string()),
        }
    }
}

/// Runs `work` on a connection of the pool, within the limits.
///
/// A connection whose work did not end in time is closed and not given back: an answer may still be under way on it.
pub async fn with<T>(
    pool: &Pool,
    work: impl AsyncFnOnce(&mut Object) -> Result<T, tokio_postgres::Error>,
) -> Result<T, DbError> {
    let mut client = tokio::time::timeout(LIMIT, pool.get())
        .await
        .map_err(|_| DbError::ConnectTimeout)??;
    if let Ok(result) = tokio::time::timeout(LIMIT, work(&mut client)).await {
        return Ok(result?);
    }
    drop(Object::take(client));
    Err(DbError::Timeout)
}
