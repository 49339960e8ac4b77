//! Tests that need no server.

mod runbook;
