//! Backup sets: making, finding and checking them.
//!
//! A set is one directory of standard formats: a person with ordinary tools and no drctl
//! gets everything back (`RESTORE.md` in each set says how). It is written under
//! `LABEL.partial`, its manifest last, and renamed when all of it is on disk; so a set
//! that is there is whole, and what a killed run leaves is never taken for one.

mod base_check;
mod catalogue;
mod compress;
mod create;
mod files;
mod label;
mod logical;
mod manifest;
mod physical;
mod preflight;
mod proof;
mod prune;
mod restore_text;
pub mod retention;
mod run;
mod seal;
mod shape;
mod steps;
mod verify;

pub use base_check::{Compared, compare as compare_base};
pub use catalogue::{Catalogue, CatalogueError, Entry, PARTIAL, PRUNED, SUSPECT, Set};
pub use create::{Forecast, Options, catalogue_error, create, forecast};
pub use files::allocated;
pub use label::{Label, NotALabel};
#[cfg(test)]
pub use manifest::A_SERVER;
pub use manifest::{FILE_NAME, FORMAT, FileDigest, LogicalPart, Manifest, PhysicalPart, PostgresPart};
pub use preflight::Room;
pub use proof::{Proof, record};
pub use prune::{Prunable, Prune, Pruned, hold, hold_directory, look, prune_labels};
pub use verify::{Check, Verification, verify};
