//! Read-only observations of the world. Every probe is bounded, and one that fails gives a
//! fact too: why it failed.

pub mod amcheck;
pub mod application;
pub mod backends;
pub mod connection;
pub mod containers;
pub mod control;
pub mod counts;
pub mod disk;
pub mod endpoints;
pub mod engine;
pub mod facts;
pub mod files;
pub mod filesystems;
pub mod fills;
pub mod host;
pub mod http;
pub mod logs;
pub mod observer;
pub mod overview;
pub mod pages;
pub mod queries;
pub mod reach;
pub mod redis;
pub mod redis_files;
pub mod redis_keys;
pub mod redis_sessions;
pub mod relations;
pub mod sessions;
pub mod settings;
pub mod slots;
pub mod usage;
pub mod vitals;
pub mod watch;
