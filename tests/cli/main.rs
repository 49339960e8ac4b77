//! Tests that need no server.

mod help;
mod readme;
mod runbook;
