//! Whether the server's own rules let the application work: its role may log in and connect, its
//! transactions may write, and no database is near the end of its transaction numbers. A server
//! that refuses by such a rule runs and answers its administrator as if nothing were wrong.

use serde::{Deserialize, Serialize};

use crate::postgres::{Client, PgError, quote_literal};

/// Transactions that a server keeps back: it refuses to write when only these are left
/// (`xidStopLimit` in `varsup.c` of the server's sources).
const KEPT_BACK: i64 = 3_000_000;
/// The age that no row may reach.
const WRAPAROUND: i64 = 1 << 31;

/// Where `default_transaction_read_only` is set. A later one of these overrules the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The server's configuration files.
    Server,
    /// Every role (`alter role all`).
    Everybody,
    /// The database.
    Database,
    /// The role.
    Role,
    /// The role in this database alone.
    RoleInDatabase,
}

/// What a server says of one role that the application uses, and of the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RoleFacts {
    /// The role may log in; `None` when there is no such role.
    pub can_log_in: Option<bool>,
    /// Its password's time is over.
    pub expired: bool,
    /// It may connect to the database.
    pub can_connect: bool,
    /// Each place where `default_transaction_read_only` is set, and whether to on.
    pub read_only: Vec<(Level, bool)>,
    /// The database whose oldest transaction is the oldest of all, and that age.
    pub oldest: Option<(String, i64)>,
}

impl RoleFacts {
    /// Where the role's transactions are made read-only; `None` when they are not.
    #[must_use]
    pub fn read_only_by(&self) -> Option<Level> {
        self.read_only
            .iter()
            .max_by_key(|(level, _)| *level)
            .filter(|(_, on)| *on)
            .map(|(level, _)| *level)
    }

    /// Transactions until the server refuses to write: none left when 0 or less.
    #[must_use]
    pub fn transactions_left(&self) -> Option<i64> {
        self.oldest.as_ref().map(|(_, age)| WRAPAROUND - KEPT_BACK - *age)
    }
}

/// Asks a session in the database about `role`.
///
/// # Errors
/// [`PgError`].
pub async fn read(client: &Client, role: &str) -> Result<RoleFacts, PgError> {
    let role = quote_literal(role);
    let rows = client
        .rows(&format!(
            "select rolcanlogin, coalesce(rolvaliduntil < pg_catalog.now(), false), \
             pg_catalog.has_database_privilege(oid, pg_catalog.current_database(), 'connect') \
             from pg_catalog.pg_roles where rolname = {role}"
        ))
        .await?;
    let row = rows.first();
    let settings = client
        .rows(&format!(
            "select s.setrole <> 0, s.setdatabase <> 0, pg_catalog.substr(c, pg_catalog.strpos(c, '=') + 1) \
             from pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) c \
             where c like 'default_transaction_read_only=%' \
             and s.setdatabase in (0, (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())) \
             and s.setrole in (0, (select oid from pg_catalog.pg_roles where rolname = {role}))"
        ))
        .await?;
    let mut read_only: Vec<(Level, bool)> = settings
        .iter()
        .map(|r| {
            let level = match (r.is_true(0), r.is_true(1)) {
                (true, true) => Level::RoleInDatabase,
                (true, false) => Level::Role,
                (false, true) => Level::Database,
                (false, false) => Level::Everybody,
            };
            (level, is_on(r.text(2)))
        })
        .collect();
    // This session overrules it for itself, so what the files say is asked; only a superuser may.
    let file = client
        .value(
            "select setting from pg_catalog.pg_file_settings where name = 'default_transaction_read_only' \
             and error is null order by seqno desc limit 1",
        )
        .await
        .unwrap_or_default();
    read_only.extend(file.map(|setting| (Level::Server, is_on(&setting))));
    let oldest = client
        .rows(
            "select datname, greatest(pg_catalog.age(datfrozenxid), pg_catalog.mxid_age(datminmxid)) \
             from pg_catalog.pg_database order by 2 desc limit 1",
        )
        .await?;
    Ok(RoleFacts {
        can_log_in: row.map(|r| r.is_true(0)),
        expired: row.is_some_and(|r| r.is_true(1)),
        can_connect: row.is_some_and(|r| r.is_true(2)),
        read_only,
        oldest: oldest
            .first()
            .and_then(|r| Some((r.text(0).to_owned(), r.number(1)?))),
    })
}

/// A boolean as a configuration file may write it.
fn is_on(setting: &str) -> bool {
    matches!(
        setting.trim().to_lowercase().as_str(),
        "on" | "true" | "yes" | "1" | "t" | "y"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_setting_counts() {
        let of = |read_only: &[(Level, bool)]| RoleFacts {
            can_log_in: Some(true),
            expired: false,
            can_connect: true,
            read_only: read_only.to_vec(),
            oldest: Some(("simgen".into(), 2_000_000_000)),
        };
        assert_eq!(of(&[]).read_only_by(), None);
        assert_eq!(of(&[(Level::Server, true)]).read_only_by(), Some(Level::Server));
        assert_eq!(
            of(&[(Level::Role, false), (Level::Server, true)]).read_only_by(),
            None
        );
        assert_eq!(
            of(&[(Level::RoleInDatabase, true), (Level::Role, false)]).read_only_by(),
            Some(Level::RoleInDatabase)
        );
        assert_eq!(of(&[]).transactions_left(), Some(144_483_648));
        assert!(is_on("ON") && is_on("true") && !is_on("off"));
    }
}
