//! Backup sets: making, finding and checking them.
//!
//! A set is one directory of standard formats: a person with ordinary tools and no drctl
//! gets everything back (`RESTORE.md` in each set says how). It is written under
//! `LABEL.partial`, its manifest last, and renamed when all of it is on disk; so a set
//! that is there is whole, and what a killed run leaves is never taken for one.

mod catalogue;
mod label;
mod manifest;

pub use catalogue::{Catalogue, CatalogueError, Entry, Set};
pub use label::{Label, NotALabel};
pub use manifest::{FORMAT, FileDigest, LogicalPart, Manifest, PhysicalPart, PostgresPart};
