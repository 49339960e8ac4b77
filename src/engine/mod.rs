//! Carries out approved plans. Nothing else in drctl changes a deployment, but making
//! backups and injecting faults.

pub mod actions;
