//! Redis: the client, what `INFO` says, and the small vocabulary (error codes, key patterns)
//! that the rest of the crate shares.
//!
//! PING says nothing of use when memory is full or a password is wrong for writing, and
//! `redis-cli` ends with 0 on an error reply: everything here goes through the protocol and
//! gives an error its kind.

mod client;
mod error;
mod info;
mod keys;
mod unlink;

pub use client::{Client, ConnectSpec, KeyFacts, ScanBatch, SlowCommand};
pub use error::{ErrorKind, RedisError};
pub use info::{
    ClientsInfo, Keyspace, Loading, MemoryInfo, PersistenceInfo, RedisInfo, ReplicationInfo, StatsInfo,
};
pub use keys::{Key, glob_matches, pattern_of};
pub use unlink::{Unlinked, unlink_matching};
