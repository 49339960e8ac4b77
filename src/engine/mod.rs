//! Carries out approved plans. Nothing else in drctl changes a deployment, but making
//! backups and injecting faults.

pub mod acknowledged;
pub mod actions;
pub mod approve;
mod endpoints;
mod execute;
mod free_slots;
mod interrupt;
mod load;
#[cfg(test)]
mod model;
#[cfg(test)]
pub(crate) fn a_plan() -> crate::plan::Plan {
    model::plan(1)
}
mod proof;
mod reaches;
mod redis;
mod resume;
mod running;
mod settle;
mod space;
mod undo;
pub mod verify;

pub use approve::{ApprovedPlan, Ask, Consent, Needs};
pub use execute::{Hands, Run, Stop, Which};
pub use interrupt::{Interrupts, Signal};
pub use proof::{Proof, prove, write_report};
pub use resume::{Live, carry_out, left_changed, lock, memory_of, open_journal_error};
pub use undo::{Closed, cannot_close, cannot_undo, close, take_back};
