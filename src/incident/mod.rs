//! The record of a run: its directory, its journal, its report, and the lock that keeps
//! two runs apart.

mod lock;
mod state;

pub use lock::{Holder, Lock, LockError};
pub use state::{StateDir, StateError, fresh_id, write_atomically};
