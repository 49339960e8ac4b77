//! drctl: disaster recovery as code.

pub mod runbook;
