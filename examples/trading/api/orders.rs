//! Orders and their fills: what must never be lost once it was acknowledged.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::db;
use crate::error::ApiError;
use crate::redis_client::ask;
use crate::serve::App;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    client_order_id: Option<i64>,
    symbol: String,
    side: String,
    quantity: f64,
    price: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewFill {
    quantity: f64,
    price: f64,
}

const INSERT: &str = "
    INSERT INTO orders (client_order_id, symbol, side, quantity, price)
    VALUES ($1, $2, $3, $4::float8::numeric, $5::float8::numeric) RETURNING id";
// The row is locked first: two fills at once must not both see the order open.
const OPEN: &str = "SELECT id FROM orders WHERE id = $1 AND status IN ('NEW', 'PARTIALLY_FILLED') FOR UPDATE";
const FILL: &str = "
    INSERT INTO fills (order_id, quantity, price)
    VALUES ($1, $2::float8::numeric, $3::float8::numeric) RETURNING id";
const STATUS: &str = "
    UPDATE orders SET status = CASE WHEN filled >= quantity THEN 'FILLED' ELSE 'PARTIALLY_FILLED' END
    FROM (SELECT sum(quantity) AS filled FROM fills WHERE order_id = $1) f
    WHERE id = $1 RETURNING status";
const SHOW: &str = "
    SELECT json_build_object('id', o.id, 'client_order_id', client_order_id, 'symbol', symbol, 'side', side,
           'quantity', quantity, 'price', price, 'status', status, 'created_at', created_at,
           'fills', (SELECT count(*) FROM fills WHERE order_id = o.id))
    FROM orders o WHERE id = $1";

/// Counts the orders of this minute in Redis. Without Redis there is no limit and so no order.
async fn within_the_limit(app: &App) -> Result<bool, ApiError> {
    let minute = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() / 60);
    let key = format!("rate:{minute}");
    let mut count = redis::cmd("INCR");
    count.arg(&key);
    let count: u64 = ask(&app.redis, &count).await.map_err(ApiError::Redis)?;
    if count == 1 {
        let mut expire = redis::cmd("EXPIRE");
        expire.arg(&key).arg(120);
        ask::<()>(&app.redis, &expire).await.map_err(ApiError::Redis)?;
    }
    Ok(count <= app.rate_limit)
}

/// Answers 201 only after the commit, which PostgreSQL reports when it is on disk.
pub async fn create(
    State(app): State<Arc<App>>,
    order: Result<Json<NewOrder>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(order) = order.map_err(|e| ApiError::Invalid(e.body_text()))?;
    if !within_the_limit(&app).await? {
        let error = json!({ "error": "too many orders in this minute" });
        return Ok((StatusCode::TOO_MANY_REQUESTS, Json(error)).into_response());
    }
    let row = db::with(&app.db, async |client| {
        client
            .query_one(
                INSERT,
                &[
                    &order.client_order_id,
                    &order.symbol,
                    &order.side,
                    &order.quantity,
                    &order.price,
                ],
            )
            .await
    })
    .await?;
    let id: i64 = row.try_get(0).map_err(|e| ApiError::Database(e.to_string()))?;
    let answer = json!({ "id": id, "client_order_id": order.client_order_id, "status": "NEW" });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// The fill and the order's new status, or neither.
pub async fn fill(
    State(app): State<Arc<App>>,
    Path(id): Path<i64>,
    fill: Result<Json<NewFill>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let Json(fill) = fill.map_err(|e| ApiError::Invalid(e.body_text()))?;
    let done = db::with(&app.db, async |client| {
        let transaction = client.transaction().await?;
        if transaction.query_opt(OPEN, &[&id]).await?.is_none() {
            return Ok(None);
        }
        let row = transaction
            .query_one(FILL, &[&id, &fill.quantity, &fill.price])
            .await?;
        let number: i64 = row.try_get(0)?;
        let status: String = transaction.query_one(STATUS, &[&id]).await?.try_get(0)?;
        transaction.commit().await?;
        Ok(Some((number, status)))
    })
    .await?;
    let (number, status) = done.ok_or_else(|| ApiError::NotFound(format!("open order {id}")))?;
    Ok((
        StatusCode::CREATED,
        Json(json!({ "id": number, "order_id": id, "order_status": status })),
    ))
}

pub async fn show(State(app): State<Arc<App>>, Path(id): Path<i64>) -> Result<Json<Value>, ApiError> {
    let row = db::with(&app.db, async |client| client.query_opt(SHOW, &[&id]).await).await?;
    let row = row.ok_or_else(|| ApiError::NotFound(format!("order {id}")))?;
    row.try_get(0)
        .map(Json)
        .map_err(|e| ApiError::Database(e.to_string()))
}
