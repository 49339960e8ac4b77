//! Read-only observations of the world.

pub mod facts;
pub mod http;
pub mod watch;
