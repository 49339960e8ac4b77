//! Tests that need no server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "tests panic"
)]

mod backup;
mod help;
mod json;
mod readme;
mod runbook;
