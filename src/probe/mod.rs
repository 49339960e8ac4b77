//! Read-only observations of the world. Every probe is bounded, and one that fails gives a
//! fact too: why it failed.

pub mod amcheck;
pub mod connection;
pub mod containers;
pub mod control;
pub mod counts;
pub mod facts;
pub mod files;
pub mod http;
pub mod logs;
pub mod observer;
pub mod reach;
pub mod relations;
pub mod slots;
pub mod watch;
