//! A damaged database: pages, indexes, out-of-line values, files, control data, WAL.

mod detect;
mod evidence;

pub use detect::{DetectOptions, detect};
pub use evidence::*;

/// The scenario's name on the command line, in plans and in labels.
pub const NAME: &str = "db-corruption";
