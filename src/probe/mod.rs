//! Read-only observations of the world.

pub mod facts;
