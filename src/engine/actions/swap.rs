//! Bringing a restored database into service by two renames in one transaction, and back.
//! What belongs to the name and not to the content is carried over: settings, grants,
//! comment, connection limit. pg_dump of one database does not hold them.

use std::time::Duration;

use super::server::{end_sessions, session, session_beside, wait_empty};
use super::{ActionContext, ActionError, Outcome, pg};
use crate::engine::settle::until;
use crate::postgres::{Client, PgError, quote_ident, quote_literal, sqlstate};
use crate::system::PostgresServer;

/// Settings whose value is a list of names, stored with each name quoted where it needs to be
/// (`variable_is_guc_list_quote` in pg_dump's sources). They are set name by name: the stored text
/// pasted into a statement would be whatever somebody with a role of his own had put there.
const LIST_SETTINGS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];
/// Every database that drctl makes or keeps has this in its name; nothing else is dropped.
pub const NAME_MARK: &str = "_drctl_";
const SESSIONS_END: Duration = Duration::from_secs(15);

/// Where the three names stand: has the swap happened?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Before,
    After,
    Other,
}

async fn names(client: &Client, database: &str, side: &str, kept: &str) -> Result<Names, ActionError> {
    let rows = client
        .rows(&format!(
            "select datname from pg_catalog.pg_database where datname in ({}, {}, {})",
            quote_literal(database),
            quote_literal(side),
            quote_literal(kept)
        ))
        .await
        .map_err(pg("reading the list of databases"))?;
    let has = |name: &str| rows.iter().any(|r| r.text(0) == name);
    Ok(match (has(database), has(side), has(kept)) {
        (true, true, false) => Names::Before,
        (true, false, true) => Names::After,
        _ => Names::Other,
    })
}

pub(super) async fn swap(
    cx: &ActionContext<'_>,
    service: &str,
    database: &str,
    side: &str,
    kept: &str,
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let client = session_beside(cx, &server, database).await?;
    match names(&client, database, side, kept).await? {
        Names::Before => {}
        Names::After => return Ok(Outcome::new(format!("{database} was swapped already"))),
        Names::Other => {
            return Err(ActionError::Other(format!(
                "the databases {database}, {side} and {kept} are not as this step expects: nothing was renamed"
            )));
        }
    }
    carry_over(&client, database, side).await?;
    still_fenced(cx, &server, &client, database).await?;
    let begun = tokio::time::Instant::now();
    rename(&client, (database, kept), (side, database)).await?;
    Ok(Outcome::new(format!(
        "{side} is {database} now; the damaged one is kept as {kept}"
    ))
    .fact("swap-seconds", begun.elapsed().as_secs_f64()))
}

/// A fact: rows inserted, changed and deleted in all tables of the fenced database.
pub(super) const WRITES: &str = "writes-at-the-fence";
/// Before version 15 the counters came from a file that may be half a second old
/// (`PGSTAT_STAT_INTERVAL` in `pgstat.c`).
const COUNTERS_SETTLE: Duration = Duration::from_millis(600);

/// Rows inserted, changed and deleted in the tables of the session's database since its counters
/// began. `None` where the server does not count. Tables of the system are left out: the server
/// writes them itself.
pub(super) async fn writes(client: &Client) -> Result<Option<i64>, PgError> {
    const COUNT: &str = "select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint \
        from pg_catalog.pg_stat_user_tables";
    if client.value("show track_counts").await?.as_deref() != Some("on") {
        return Ok(None);
    }
    let version = client.value("show server_version_num").await?;
    if version
        .and_then(|v| v.parse::<u32>().ok())
        .is_some_and(|v| v < 150_000)
    {
        tokio::time::sleep(COUNTERS_SETTLE).await;
    }
    Ok(client.value(COUNT).await?.and_then(|n| n.parse().ok()))
}

fn connections(database: &str, on: bool) -> String {
    format!(
        "alter database {} with allow_connections {on}",
        quote_ident(database)
    )
}

/// Whether the fence held. It makes new sessions read-only, and a session may say otherwise: a role
/// with a setting of its own, a driver that asks for `READ WRITE`. What such a one wrote since the
/// rows were brought over would be in the kept database only, acknowledged and out of service.
///
/// Asked by a session that was there before connections were refused, when it is the last one:
/// what a session wrote is counted when it ends, at the latest.
async fn still_fenced(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    client: &Client,
    database: &str,
) -> Result<(), ActionError> {
    let Some(before) = cx.facts.get(WRITES).and_then(serde_json::Value::as_i64) else {
        cx.warn(format!(
            "{database} does not count what is written: whether somebody wrote to it meanwhile is not known"
        ));
        return Ok(());
    };
    let what = || pg(format!("looking whether {database} was written meanwhile"));
    // A swap that was cut off may have refused them.
    client
        .execute(&connections(database, true))
        .await
        .map_err(what())?;
    let counting = session(cx, server, database).await?;
    client
        .execute(&connections(database, false))
        .await
        .map_err(what())?;
    end_others(client, database, &counting).await?;
    let now = writes(&counting).await.map_err(what())?;
    drop(counting);
    let written = match now {
        Some(now) if now > before => now - before,
        _ => return Ok(()),
    };
    let let_in = client.execute(&connections(database, true)).await;
    let overriding = client
        .rows(&format!(
            "select r.rolname from pg_catalog.pg_db_role_setting s join pg_catalog.pg_roles r on r.oid = s.setrole \
             left join pg_catalog.pg_database d on d.oid = s.setdatabase \
             where (d.datname is null or d.datname = {}) \
             and 'default_transaction_read_only=off' = any (s.setconfig)",
            quote_literal(database)
        ))
        .await
        .map_err(pg("looking for roles with a setting of their own"))?;
    let who = match overriding.first() {
        Some(row) => format!(
            "role {0} has default_transaction_read_only = off of its own (alter role {1} reset default_transaction_read_only)",
            row.text(0),
            quote_ident(row.text(0))
        ),
        None => "an application asks for READ WRITE by itself: stop it meanwhile".to_owned(),
    };
    let_in.map_err(what())?;
    Err(ActionError::Other(format!(
        "{database} was written although it is read-only: {written} rows since the fence, which the restored one does not have; \
         {who}; nothing was renamed"
    )))
}

/// Ends the sessions of a database in which nobody may connect any more, but one.
async fn end_others(client: &Client, database: &str, but: &Client) -> Result<(), ActionError> {
    let what = || pg(format!("ending the sessions of {database}"));
    let own = but
        .value("select pg_catalog.pg_backend_pid()")
        .await
        .map_err(what())?
        .unwrap_or_default();
    let others = format!(
        "from pg_catalog.pg_stat_activity where datname = {} and pid not in (pg_catalog.pg_backend_pid(), {own})",
        quote_literal(database)
    );
    let sql = format!("select pg_catalog.pg_terminate_backend(pid) {others}");
    let left = until(SESSIONS_END, Duration::from_millis(20), none_left, || {
        client.rows(&sql)
    });
    let left = left.await.map_err(what())?;
    if left.is_empty() {
        return Ok(());
    }
    Err(ActionError::Other(format!(
        "{} sessions of {database} do not end within {}",
        left.len(),
        crate::event::seconds(SESSIONS_END)
    )))
}

/// Whether a statement that ends sessions found none; one that failed is not sent again.
fn none_left<T, E>(ended: &Result<Vec<T>, E>) -> bool {
    ended.as_ref().map_or(true, Vec::is_empty)
}

pub(super) async fn swap_back(
    cx: &ActionContext<'_>,
    service: &str,
    database: &str,
    (side, kept): (&str, &str),
    undone: &str,
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let client = session_beside(cx, &server, database).await?;
    let text = match names(&client, database, side, kept).await? {
        Names::After => {
            rename(&client, (database, undone), (kept, database)).await?;
            format!(
                "{database} is the database from before again; the restored one, with all work since, is kept as {undone}"
            )
        }
        // The swap was prepared and never happened, or was undone already.
        _ => format!("{database} was not swapped"),
    };
    client
        .execute(&connections(database, true))
        .await
        .map_err(pg(format!("letting connections to {database} in")))?;
    Ok(Outcome::new(text))
}

/// Renames `first` and then `second` in one transaction, with nobody connected.
///
/// Connections are refused first: ending sessions alone would race with pools that
/// reconnect at once. If power fails in between, the database refuses connections until
/// this step is resumed or undone; no data is touched either way.
async fn rename(client: &Client, first: (&str, &str), second: (&str, &str)) -> Result<(), ActionError> {
    for name in [first.0, second.0] {
        client
            .execute(&connections(name, false))
            .await
            .map_err(pg(format!("refusing connections to {name}")))?;
    }
    let sql = format!(
        "begin; alter database {} rename to {}; alter database {} rename to {}; \
         alter database {} with allow_connections true; commit",
        quote_ident(first.0),
        quote_ident(first.1),
        quote_ident(second.0),
        quote_ident(second.1),
        quote_ident(second.1),
    );
    let mut tries = 0;
    loop {
        for name in [first.0, second.0] {
            end_sessions(client, Some(name)).await?;
            wait_empty(client, name, SESSIONS_END).await?;
        }
        tries += 1;
        match client.execute(&sql).await {
            Ok(()) => return Ok(()),
            // 55006: something connected in between (a worker of the server's own).
            Err(e) if e.is("55006") && tries < 20 => {
                let _ = client.execute("rollback").await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(e) => {
                let _ = client.execute("rollback").await;
                return Err(pg(format!(
                    "renaming {} to {} and {} to {}",
                    first.0, first.1, second.0, second.1
                ))(e));
            }
        }
    }
}

/// The value of a setting that is a list, as `SET` takes it: every name a string of its own, none
/// at all an empty one (`search_path = ''`).
fn list_value(stored: &str) -> String {
    let names = list_names(stored);
    if names.is_empty() {
        return "''".to_owned();
    }
    let quoted: Vec<String> = names.iter().map(|n| quote_literal(n)).collect();
    quoted.join(", ")
}

/// The names of a list as the server stores it: separated by commas, in double quotes where a name
/// needs them, with a double quote inside written twice (`SplitGUCList`).
fn list_names(stored: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = stored.trim();
    while !rest.is_empty() {
        let mut name = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut chars = quoted.char_indices().peekable();
            let mut end = quoted.len();
            while let Some((at, c)) = chars.next() {
                if c != '"' {
                    name.push(c);
                } else if chars.next_if(|(_, next)| *next == '"').is_some() {
                    name.push('"');
                } else {
                    end = at + 1;
                    break;
                }
            }
            rest = quoted[end..].trim_start();
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            rest[..end].trim_end().clone_into(&mut name);
            rest = &rest[end..];
        }
        names.push(name);
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    names
}

/// Settings, grants, comment and connection limit of `from` for `to`.
async fn carry_over(client: &Client, from: &str, to: &str) -> Result<(), ActionError> {
    let what = || pg(format!("carrying settings of {from} over to {to}"));
    let (target, source) = (quote_ident(to), quote_literal(from));
    let mut sql = Vec::new();
    let settings = client
        .rows(&format!(
            "select r.rolname, split_part(c.setting, '=', 1), substr(c.setting, strpos(c.setting, '=') + 1) \
             from pg_catalog.pg_db_role_setting s \
             join pg_catalog.pg_database d on d.oid = s.setdatabase \
             left join pg_catalog.pg_roles r on r.oid = s.setrole, unnest(s.setconfig) as c(setting) \
             where d.datname = {source}"
        ))
        .await
        .map_err(what())?;
    for row in &settings {
        let (role, name, value) = (row.opt(0), row.text(1), row.text(2));
        // Our own fence.
        if role.is_none() && name == "default_transaction_read_only" {
            continue;
        }
        let value = if LIST_SETTINGS.contains(&name) {
            list_value(value)
        } else {
            quote_literal(value)
        };
        let whom = role.map_or_else(
            || format!("alter database {target}"),
            |r| format!("alter role {} in database {target}", quote_ident(r)),
        );
        sql.push(format!("{whom} set {} to {value}", quote_ident(name)));
    }
    let grants = client
        .rows(&format!(
            "select coalesce(r.rolname, ''), a.privilege_type, a.is_grantable from pg_catalog.pg_database d, \
             aclexplode(d.datacl) a left join pg_catalog.pg_roles r on r.oid = a.grantee where d.datname = {source}"
        ))
        .await
        .map_err(what())?;
    // No entry at all is the built-in default; entries replace it, PUBLIC's part included.
    if !grants.is_empty() {
        sql.push(format!("revoke all on database {target} from public"));
    }
    for row in &grants {
        let grantee = match row.text(0) {
            "" => "public".to_owned(),
            role => quote_ident(role),
        };
        let option = if row.is_true(2) { " with grant option" } else { "" };
        sql.push(format!(
            "grant {} on database {target} to {grantee}{option}",
            row.text(1)
        ));
    }
    let rest = client
        .rows(&format!(
            "select datconnlimit, pg_catalog.shobj_description(oid, 'pg_database') \
             from pg_catalog.pg_database where datname = {source}"
        ))
        .await
        .map_err(what())?;
    if let Some(row) = rest.first() {
        sql.push(format!(
            "alter database {target} connection limit {}",
            row.text(0)
        ));
        if let Some(comment) = row.opt(1) {
            sql.push(format!(
                "comment on database {target} is {}",
                quote_literal(comment)
            ));
        }
    }
    client.execute(&sql.join("; ")).await.map_err(what())
}

/// Ends what a killed run left at work on `database`: the server goes on with a statement
/// whose client is gone, and a CREATE DATABASE would come to its end after the drop.
async fn end_earlier_runs(client: &Client, database: &str) -> Result<(), ActionError> {
    let sql = format!(
        "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity \
         where pid <> pg_catalog.pg_backend_pid() and application_name = 'drctl' and state = 'active' \
         and pg_catalog.strpos(query, {}) > 0",
        quote_literal(&quote_ident(database))
    );
    let ended = until(SESSIONS_END, Duration::from_millis(50), none_left, || {
        client.rows(&sql)
    });
    let ended = ended.await.map_err(pg("ending the sessions of an earlier run"))?;
    if ended.is_empty() {
        return Ok(());
    }
    Err(ActionError::Other(format!(
        "a session of an earlier run still works on {database} after {}",
        crate::event::seconds(SESSIONS_END)
    )))
}

pub(super) async fn drop_database(
    cx: &ActionContext<'_>,
    service: &str,
    database: &str,
) -> Result<Outcome, ActionError> {
    if !database.contains(NAME_MARK) {
        return Err(ActionError::Other(format!(
            "{database} does not carry drctl's mark in its name and is not dropped"
        )));
    }
    let server = cx.system.postgres(service).await?;
    let client = session_beside(cx, &server, database).await?;
    end_earlier_runs(&client, database).await?;
    // FORCE ends sessions; without it one forgotten psql would keep the data for ever.
    match client
        .within(
            cx.deadline,
            &format!("drop database if exists {} with (force)", quote_ident(database)),
        )
        .await
    {
        Ok(_) => Ok(Outcome::new(format!("{database} is dropped"))),
        Err(e) if e.is(sqlstate::INVALID_CATALOG) => Ok(Outcome::new(format!("{database} was gone"))),
        Err(e) => Err(pg(format!("dropping {database}"))(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_list_is_set_name_by_name() {
        for (stored, set) in [
            ("", "''"),
            (r#""""#, "''"),
            ("public", "'public'"),
            (r#""$user", public"#, "'$user', 'public'"),
            (r#""a,b", "say ""x""" , c"#, r#"'a,b', 'say "x"', 'c'"#),
            ("it's", "'it''s'"),
            // What an ordinary role can have stored: one name for the server, a statement if pasted.
            (
                "a;alter/**/role/**/evil/**/superuser",
                "'a;alter/**/role/**/evil/**/superuser'",
            ),
            (r#""unclosed"#, "'unclosed'"),
        ] {
            assert_eq!(list_value(stored), set, "{stored}");
        }
    }
}
