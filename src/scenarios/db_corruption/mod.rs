//! A damaged database: pages, indexes, out-of-line values, files, control data, WAL.

mod evidence;

pub use evidence::*;

/// The scenario's name on the command line, in plans and in labels.
pub const NAME: &str = "db-corruption";
