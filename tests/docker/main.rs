//! Tests on a real engine and real servers. Skipped, and said so, where no engine answers; a failure there with
//! `DRCTL_REQUIRE_DOCKER=1`.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "tests talk and panic"
)]

mod backup;
mod check;
mod connection_exhaustion;
mod crash;
mod crash_undo;
mod db_down;
mod disk_full;
mod faults;
mod hostile;
mod kinds;
mod lookalikes;
mod matrix;
mod mounted;
mod network_partition;
mod outage;
mod recover;
mod redis;
mod redis_failure;
mod redis_oom;
mod remote;
mod retention;
mod salvage;
mod service_crash;
mod service_overload;
mod silence;
mod stack;
mod stuck_sessions;
mod sweep;
mod tls;
