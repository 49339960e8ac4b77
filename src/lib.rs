//! drctl: disaster recovery as code.
//!
//! One direction: **observe → decide → approve → act → prove**. Imports go down this
//! list and never up:
//!
//! ```text
//! cli, ui → recover, diagnose → scenarios, drill, notify → check → engine → incident, backup, probe, faults → system
//!         → postgres, redis, workload → plan, runbook, event
//! ```
//!
//! Only code reached from `engine`, `backup` and `faults` changes anything; only `ui`
//! prints; only `cli` knows clap; only `runbook` knows YAML. Deciding is pure: evidence,
//! runbook and `now` go in, a plan comes out.

pub mod backup;
pub mod check;
pub mod cli;
pub mod diagnose;
pub mod engine;
pub mod error;
pub mod event;
pub mod faults;
pub mod glob;
pub mod incident;
pub mod notify;
pub mod plan;
pub mod postgres;
pub mod printable;
pub mod private_dir;
pub mod probe;
pub mod recover;
pub mod redis;
pub mod runbook;
pub mod scenarios;
pub mod system;
pub mod ui;
pub mod workload;
