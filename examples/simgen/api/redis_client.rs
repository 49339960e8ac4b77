//! Access to Redis: one connection that is opened when first needed and again after a failure.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{FromRedisValue, RedisResult};

/// How long a request waits for Redis.
const LIMIT: Duration = Duration::from_secs(2);

/// Makes the connection without connecting.
pub fn connection(url: &str) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(1)))
        .set_response_timeout(Some(Duration::from_secs(1)))
        .set_number_of_retries(1)
        .set_max_delay(Duration::from_millis(200));
    ConnectionManager::new_lazy_with_config(redis::Client::open(url)?, config)
}

/// Sends one command.
pub async fn ask<T: FromRedisValue>(
    connection: &ConnectionManager,
    command: &redis::Cmd,
) -> Result<T, String> {
    let mut connection = connection.clone();
    match tokio::time::timeout(LIMIT, command.query_async(&mut connection)).await {
        Ok(answer) => answer.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
    }
}
