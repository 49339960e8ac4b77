//! Dumps: one database each, in PostgreSQL's directory format, made by a helper of the
//! server's own image that writes straight into the staging directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;

use super::compress::Packer;
use super::manifest::LogicalPart;
use super::preflight::{Surveyed, expected_dump, server_error};
use super::run::Run;
use super::{Manifest, files, shape};
use crate::error::{Error, Kind, Result};
use crate::event;
use crate::postgres::{PgError, Properties};
use crate::probe::facts::{Counting, DatabaseFacts, Snapshot};
use crate::system::PostgresServer;
use crate::workload::HelperSpec;

/// Level of `pg_dump`'s own gzip, where the disk is too small for [`Packer`]: the lowest that
/// is not larger than `pg_dump | gzip`, which uses 6.
const COMPRESSION: &str = "4";
/// Separates the two answers of the dump's helper.
const MARK: &str = "==== drctl: properties of the database ====";

/// Dumps, then reads the dump's table of contents and the properties of the database that
/// a restore into another database leaves out. `$1` jobs, `$2` snapshot, `$3` compression.
/// Not synced file by file: see [`files::sync_file_system`].
const DUMP: &str = r#"
pg_dump --format=directory --compress="$3" --jobs="$1" --snapshot="$2" --lock-wait-timeout=60s --no-sync --no-password --file=/backup || exit 41
toc=$(pg_restore --create --list /backup) || exit 42
wanted='^[0-9]+; [0-9]+ [0-9]+ '
printf '%s\n' "$toc" | grep -E "$wanted"'TABLE DATA '
echo "$4"
printf '%s\n' "$toc" | grep -E "$wanted"'(DATABASE PROPERTIES|ACL - DATABASE|COMMENT - DATABASE|SECURITY LABEL - DATABASE) ' >/tmp/drctl.list
if [ -s /tmp/drctl.list ]; then pg_restore --create --use-list=/tmp/drctl.list --file=- /backup || exit 43; fi
"#;

/// With passwords, unless the role may not see them.
const GLOBALS: &str = r"
pg_dumpall --globals-only --no-password && exit 0
echo '-- The administrator may not read password hashes: they are missing here.'
pg_dumpall --globals-only --no-role-passwords --no-password
";

/// A dump and what was true when it was made.
pub struct Dumped {
    /// Its record.
    pub part: LogicalPart,
    /// Facts of the very snapshot that was dumped.
    pub facts: DatabaseFacts,
}

/// A helper that talks to the server as drctl's own user on this machine, so that the
/// files it writes belong to whoever makes the backup.
fn helper(run: &Run<'_>, server: &PostgresServer, purpose: &str, argv: &[&str]) -> HelperSpec {
    let mut spec = server.client_helper(run.system.deployment(), &run.label.to_string(), purpose, argv);
    spec.user = Some(own_user());
    spec
}

/// `uid:gid` of this process.
#[must_use]
pub fn own_user() -> String {
    format!(
        "{}:{}",
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw()
    )
}

/// Dumps one database.
pub async fn dump(
    run: &Run<'_>,
    surveyed: &Surveyed,
    database: &str,
    database_bytes: u64,
    previous: Option<&Manifest>,
) -> Result<Dumped> {
    let server = &surveyed.server;
    let subject = format!("database {database} of {}", server.service);
    let fail = |e: PgError| server_error(&server.service, &format!("the dump of {database}"), &e);
    let began = Instant::now();
    let relative = format!("{}/{}", surveyed.directory, files::component(database));
    let target = run.staging.join(&relative);
    files::make_private_dir(&target).map_err(|e| run.io(&target, &e))?;

    let before = tables(server, database).await.map_err(fail)?;
    let snapshot = Snapshot::take(server, database).await.map_err(fail)?;
    let snapshot_at = Timestamp::now();
    let id = snapshot.export().await.map_err(fail)?;
    let plain = snapshot.plain_tables().await.map_err(fail)?;
    let jobs = run.system.runbook.backup.postgres.jobs;
    let expected = expected_dump(previous, &server.service, database, database_bytes);
    let mut packer = packer(&target, jobs, expected, database_bytes).map_err(|e| run.io(&target, &e))?;
    let staging = run.area(server, "backup-dump", &target, &own_user()).await?;
    let mut spec = helper(
        run,
        server,
        "backup-dump",
        &[
            "sh",
            "-c",
            DUMP,
            "dump",
            &jobs.to_string(),
            &id,
            if packer.is_some() { "0" } else { COMPRESSION },
            MARK,
        ],
    );
    // By environment: as an argument, a name with `=` in it would be connection parameters.
    spec.env.push(("PGDATABASE".into(), database.to_owned()));
    spec.mounts.push(staging.mount("/backup", false));
    let named = server
        .config
        .databases
        .iter()
        .find(|(n, _)| n.as_str() == database);
    let none = std::collections::BTreeMap::new();
    // Who compresses counts as well, and spares the server the reading of its tables.
    let elsewhere: BTreeSet<(String, String)> = if packer.is_some() {
        plain.values().cloned().collect()
    } else {
        BTreeSet::new()
    };
    let limit = run.system.runbook.deadlines.step;
    let facts = snapshot.read(
        named.map_or(&none, |(_, d)| &d.tables),
        Counting::AllBut(&elsewhere),
        limit,
    );
    // Together: the rows that are counted are exactly the rows that are dumped.
    let what = format!("dump of {database}");
    let growing = target.clone();
    let packed = packer.as_ref().map(Packer::meter);
    let written = move || {
        packed
            .as_ref()
            .map_or_else(|| files::measure(&growing).0, |p| p())
    };
    let dumping = run.helper(&spec, &what, written, expected);
    let both = async { tokio::join!(dumping, facts) };
    let (output, facts) = match &mut packer {
        None => both.await,
        Some(packer) => tokio::select! {
            both = both => both,
            // The helper ends with this function: its lease closes.
            e = packer.failed() => return Err(run.io(&target, &e)),
        },
    };
    let output = output?;
    match output.exit_code {
        0 => {}
        42 | 43 => {
            return Err(Error::new(
                Kind::BackupDamaged,
                format!(
                    "the dump of {subject} cannot be read back: {}",
                    output.last_words()
                ),
            )
            .untouched("the server and every older backup; what this run had written was removed"));
        }
        _ => return Err(run.tool_failed("pg_dump", &subject, &output)),
    }
    run.fetch(&staging, &what, database_bytes).await?;
    staging.close().await?;
    let (toc, properties) = output.stdout.split_once(MARK).unwrap_or((&output.stdout, ""));
    let mut facts = facts.map_err(fail)?;
    if let Some(packer) = packer {
        let rows = packer.finish().await.map_err(|e| run.io(&target, &e))?;
        for (entry, table) in shape::data_numbers(toc) {
            if let (Some(rows), Some((schema, name))) = (rows.get(&entry), plain.get(&table)) {
                facts.set_rows(schema, name, *rows);
            }
        }
        // Whatever the text did not tell, as that of a dump by INSERT.
        snapshot
            .count_rest(&mut facts, &elsewhere, limit)
            .await
            .map_err(fail)?;
    }
    // Best effort: the session ends with the value in any case.
    let _ = snapshot.release().await;
    let after = tables(server, database).await.map_err(fail)?;
    // Tables that came or went meanwhile prove nothing.
    let lasting: Vec<String> = before.intersection(&after).cloned().collect();
    let missing = shape::missing_tables(toc, &lasting);
    if !missing.is_empty() {
        return Err(Error::new(
            Kind::BackupDamaged,
            format!(
                "the dump of {subject} lacks tables that the database has: {}",
                missing.join(", ")
            ),
        )
        .untouched("the server and every older backup; what this run had written was removed"));
    }
    let (header, made) = properties_header(server, database).await.map_err(fail)?;
    let settings = format!(
        "{}/{}.settings.sql",
        surveyed.directory,
        files::component(database)
    );
    let path = run.staging.join(&settings);
    files::write_private(
        &path,
        format!("{header}{}", only_properties(properties)).as_bytes(),
    )
    .map_err(|e| run.io(&path, &e))?;
    let (bytes, count) = files::measure(&target);
    Ok(Dumped {
        part: LogicalPart {
            path: relative,
            settings,
            bytes,
            files: count,
            snapshot_at,
            lsn: facts.lsn,
            jobs,
            seconds: began.elapsed().as_secs_f64(),
            tables: shape::data_entries(toc).len() as u64,
            database_bytes,
            encoding: made.encoding,
            collate: made.collate,
            ctype: made.ctype,
            owner: made.owner,
            locale_provider: made.provider,
            locale: made.locale,
            icu_rules: made.icu_rules,
            tablespace: made.tablespace,
            table_rows: facts.rows(),
        },
        facts,
    })
}

/// Compresses the dump beside `pg_dump`, unless the disk could not hold the plain text as
/// well: text that is not compressed in time must have a place. It is about as large as the
/// database, whose indexes it leaves out.
fn packer(target: &Path, jobs: u32, expected: u64, database_bytes: u64) -> std::io::Result<Option<Packer>> {
    if files::free_space(target)? < expected.saturating_add(database_bytes) {
        return Ok(None);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = usize::try_from(jobs).unwrap_or(1).min(cores);
    Packer::start(target, threads).map(Some)
}

/// `schema name owner` of every table whose data a dump must hold, spelled as the table of
/// contents spells it. Members of extensions are recreated by `CREATE EXTENSION`.
async fn tables(server: &PostgresServer, database: &str) -> Result<BTreeSet<String>, PgError> {
    let client = server.connect_to(&server.admin.to_database(database)).await?;
    let rows = client
        .rows(
            "select translate(n.nspname || ' ' || c.relname || ' ' || pg_get_userbyid(c.relowner), E'\\n\\r', '  ') \
             from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind = 'r' and c.relpersistence <> 't' and n.nspname <> 'information_schema' \
               and n.nspname !~ '^pg_' and not exists (select 1 from pg_depend d \
                 where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')",
        )
        .await?;
    Ok(rows.iter().map(|r| r.text(0).to_owned()).collect())
}

/// The statements after `CREATE DATABASE` of a `pg_restore --create` script: that one creates
/// and connects whatever its list says. The guard against meta-commands in names
/// (`\restrict`, 15.14 and later) is kept, once around all.
fn only_properties(script: &str) -> String {
    let after_create = script.split_once("\n\\connect ").map_or("", |(_, rest)| rest);
    let token = script.lines().find_map(|l| l.strip_prefix("\\restrict "));
    let body: Vec<&str> = after_create
        .lines()
        .skip(1)
        .filter(|l| {
            !["\\connect ", "\\restrict ", "\\unrestrict "]
                .iter()
                .any(|m| l.starts_with(m))
        })
        .collect();
    let body = body.join("\n");
    match token {
        Some(token) if !body.trim().is_empty() => {
            format!("\\restrict {token}\n{body}\n\\unrestrict {token}\n")
        }
        _ => format!("{body}\n"),
    }
}

/// What `CREATE DATABASE` needs, as a comment for a person and as values for the manifest.
async fn properties_header(server: &PostgresServer, database: &str) -> Result<(String, Properties), PgError> {
    let client = server.connect().await?;
    let rows = client.rows(&Properties::query(database)).await?;
    let properties = rows.first().map(Properties::of).unwrap_or_default();
    let header = format!(
        "-- Properties of the database that pg_restore without --create leaves out:\n\
         -- settings, access rights, comment. Run it as the administrator after the\n\
         -- restored database has its final name.\n\
         -- The database was made with: {}{}\n\n",
        properties.create(database).replace('\n', " "),
        properties.in_tablespace().replace('\n', " ")
    );
    Ok((header, properties))
}

/// Writes roles, their settings and memberships; returns the path in the set.
pub async fn globals(run: &Run<'_>, surveyed: &Surveyed) -> Result<String> {
    let spec = helper(run, &surveyed.server, "backup-globals", &["sh", "-c", GLOBALS]);
    let output = run
        .system
        .docker
        .run_helper(&spec, run.system.runbook.deadlines.step)
        .await?;
    if output.exit_code != 0
        || !output
            .stdout
            .contains("PostgreSQL database cluster dump complete")
    {
        return Err(run.tool_failed(
            "pg_dumpall",
            &format!("the roles of {}", surveyed.server.service),
            &output,
        ));
    }
    if !output.stderr.trim().is_empty() {
        run.warn(format!("pg_dumpall: {}", output.last_words()));
    }
    let relative = format!("{}/globals.sql", surveyed.directory);
    let path = run.staging.join(&relative);
    files::write_private(&path, output.stdout.as_bytes()).map_err(|e| run.io(&path, &e))?;
    Ok(relative)
}

/// One line about a dump.
#[must_use]
pub fn summary(part: &LogicalPart) -> String {
    format!(
        "{} tables, {} from {}",
        part.tables,
        event::bytes(part.bytes),
        event::bytes(part.database_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_properties_come_without_create_and_connect() {
        let script = "\\restrict T\nSET x = 0;\nCREATE DATABASE a;\nALTER DATABASE a OWNER TO b;\n\\unrestrict T\n\
                      \\connect a\n\\restrict T\nSET x = 0;\nALTER DATABASE a SET work_mem TO '6MB';\n\
                      \\unrestrict T\n\\connect a\n\\restrict T\nREVOKE ALL ON DATABASE a FROM PUBLIC;\n\\unrestrict T\n";
        assert_eq!(
            only_properties(script),
            "\\restrict T\nSET x = 0;\nALTER DATABASE a SET work_mem TO '6MB';\nREVOKE ALL ON DATABASE a FROM PUBLIC;\n\\unrestrict T\n"
        );
        assert_eq!(only_properties("").trim(), "");
    }
}
