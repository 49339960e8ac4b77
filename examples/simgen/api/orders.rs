//! Orders: what must never be lost once it was acknowledged.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_postgres::Row;

use crate::db;
use crate::error::ApiError;
use crate::serve::App;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    traffic_no: Option<i64>,
    /// Without it the order is the first customer's.
    customer_id: Option<i64>,
    note: Option<String>,
}

#[derive(Deserialize)]
pub struct Wanted {
    traffic_no: i64,
}

const INSERT: &str = "
    INSERT INTO orders (traffic_no, customer_id, note, amount, body)
    VALUES ($1::bigint, coalesce($2, (SELECT id FROM customers ORDER BY id LIMIT 1)), $3,
            (coalesce($1::bigint, 0) % 10000) / 100.0, jsonb_build_object('sku', 'S' || coalesce($1::bigint, 0) % 997, 'channel', 'web'))
    RETURNING id, to_json(created_at)";
const INSERT_LINE: &str =
    "INSERT INTO order_lines (order_id, line_no, item, quantity) VALUES ($1, 1, 'item', 1)";

// A macro and not a constant, because `concat!` takes literals only.
macro_rules! select_order {
    ($condition:literal) => {
        concat!(
            "SELECT json_build_object('id', id, 'traffic_no', traffic_no, 'customer_id', customer_id, 'note', note,
             'amount', amount, 'body', body, 'created_at', created_at,
             'lines', (SELECT count(*) FROM order_lines WHERE order_id = orders.id))
             FROM orders WHERE ",
            $condition
        )
    };
}

/// Answers 201 only after the commit, which PostgreSQL reports when it is on disk.
pub async fn create(
    State(app): State<Arc<App>>,
    order: Result<Json<NewOrder>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let Json(order) = order.map_err(|e| ApiError::Invalid(e.body_text()))?;
    let row = db::with(&app.db, async |client| {
        let transaction = client.transaction().await?;
        let row = transaction
            .query_one(INSERT, &[&order.traffic_no, &order.customer_id, &order.note])
            .await?;
        let id: i64 = row.try_get(0)?;
        transaction.execute(INSERT_LINE, &[&id]).await?;
        transaction.commit().await?;
        Ok(row)
    })
    .await?;
    let id: i64 = get(&row, 0)?;
    let created_at: Value = get(&row, 1)?;
    Ok((
        StatusCode::CREATED,
        Json(json!({ "id": id, "traffic_no": order.traffic_no, "created_at": created_at })),
    ))
}

pub async fn show(State(app): State<Arc<App>>, Path(id): Path<i64>) -> Result<Json<Value>, ApiError> {
    one(&app, select_order!("id = $1"), id, || format!("order {id}")).await
}

pub async fn find(
    State(app): State<Arc<App>>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Value>, ApiError> {
    let number = wanted.traffic_no;
    one(&app, select_order!("traffic_no = $1"), number, || {
        format!("order with traffic_no {number}")
    })
    .await
}

async fn one(app: &App, sql: &str, key: i64, name: impl FnOnce() -> String) -> Result<Json<Value>, ApiError> {
    let row = db::with(&app.db, async |client| client.query_opt(sql, &[&key]).await).await?;
    let row = row.ok_or_else(|| ApiError::NotFound(name()))?;
    Ok(Json(get(&row, 0)?))
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, ApiError> {
    row.try_get(column).map_err(|e| ApiError::Database(e.to_string()))
}
