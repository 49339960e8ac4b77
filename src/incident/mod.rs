//! The record of a run: its directory, its journal, its report, and the lock that keeps
//! two runs apart.

mod away;
mod journal;
mod lock;
mod markdown;
mod progress;
mod report;
mod state;
mod store;
mod timeline;

pub use away::{
    Away, away, bring_home, fallback_path, private_fallback, remember_home, try_write_in, writable,
};
pub use journal::{Entry, JOURNAL_FILE, Journal, JournalError, Log, Record};
pub use lock::{Holder, Lock, LockError, backup_lock, recovery_lock};
pub use markdown::{fact_text, is_plain, markdown, rpo_line, rto_line};
pub use progress::{Progress, Stage};
pub use report::{Phases, Report};
pub use state::{NoStateDir, StateDir, StateError, fresh_id, write_atomically};
pub use store::{CASE_FORMAT, Case, Incident, IncidentError, Listing, Unreadable, write_json};
pub use timeline::{Moment, timeline};
