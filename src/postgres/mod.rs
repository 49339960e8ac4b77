//! PostgreSQL: the client, quoting, and the small vocabulary (LSN, SQLSTATE) that the
//! rest of the crate shares.

mod client;
mod damage;
mod like;
mod lsn;

pub use client::{Client, ConnectSpec, CopyError, PgError, Row};
pub use damage::{is_damage, is_damage_in_words, missing_library};
pub use like::{Properties, conninfo};
pub use lsn::{Lsn, wal_gap};

/// Quotes an identifier (PostgreSQL manual, 4.1.1): always quoted, quotes doubled.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a string constant (PostgreSQL manual, 4.1.2.1). A backslash makes it an
/// escape string so that the text means the same whatever
/// `standard_conforming_strings` says.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// `schema.table` or `table` (in `public`), quoted for SQL.
#[must_use]
pub fn quote_qualified(name: &str) -> String {
    match name.split_once('.') {
        Some((schema, table)) => format!("{}.{}", quote_ident(schema), quote_ident(table)),
        None => format!("{}.{}", quote_ident("public"), quote_ident(name)),
    }
}

/// SQLSTATE codes that decisions rest on (PostgreSQL manual, appendix A).
pub mod sqlstate {
    /// Whatever a server did not expect; extensions' errors without a code of their own, too.
    pub const INTERNAL_ERROR: &str = "XX000";
    /// Out of disk space, or out of `/dev/shm`: the text decides.
    pub const DISK_FULL: &str = "53100";
    /// All connection slots are taken.
    pub const TOO_MANY_CONNECTIONS: &str = "53300";
    /// Starting up, shutting down, in recovery.
    pub const CANNOT_CONNECT_NOW: &str = "57P03";
    /// The database does not accept connections (`ALLOW_CONNECTIONS false`).
    pub const OBJECT_NOT_IN_STATE: &str = "55000";
    /// Wrong password.
    pub const INVALID_PASSWORD: &str = "28P01";
    /// No matching `pg_hba.conf` line, or no such role.
    pub const INVALID_AUTHORIZATION: &str = "28000";
    /// The server does not do this in this case.
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    /// No such database.
    pub const INVALID_CATALOG: &str = "3D000";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_hostile_names() {
        assert_eq!(
            quote_ident(r#"a"; drop table x; --"#),
            r#""a""; drop table x; --""#
        );
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\'b"), r"E'a\\''b'");
        assert_eq!(quote_qualified("orders"), r#""public"."orders""#);
        assert_eq!(quote_qualified("app.orders"), r#""app"."orders""#);
    }
}
