//! Work on a running server: reindex, restore beside, fence, salvage.

use std::time::Duration;

use super::server::{end_sessions, session, session_beside};
use super::{ActionContext, ActionError, Outcome, pg, prove, salvage, succeeded};
use crate::engine::settle::until;
use crate::plan::{RowFloor, SalvageTable};
use crate::postgres::{
    Client, PgError, Properties, conninfo, quote_ident, quote_literal, quote_qualified, sqlstate,
};
use crate::system::PostgresServer;

/// How long the rebuilding of an index that locks its table may wait for the lock: whoever comes
/// after it waits, too.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How long writers may take to end after the fence went up.
const FENCE_LIMIT: Duration = Duration::from_secs(15);
/// Mebibytes for the build of an index in a restore that the page cache holds as a whole. What is
/// gathered in memory is flushed into the index, and flushing into cached pages costs less than a
/// tree that does not fit into the processor's caches: a GIN index of 1.4 million JSON documents
/// takes 10 s with 16 MiB, 13 s with 128 MiB and 15 s with 256 MiB.
const INDEX_MEMORY_CACHED: u64 = 12;
/// Where the index is larger than what can be cached, each flush reads and writes the disk:
/// at least (PostgreSQL's own default), and at most.
const INDEX_MEMORY_LEAST: u64 = 64;
const INDEX_MEMORY_MOST: u64 = 1024;

pub(super) async fn reindex(
    cx: &ActionContext<'_>,
    service: &str,
    database: &str,
    index: &str,
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let client = session(cx, &server, database).await?;
    let what = || pg(format!("rebuilding index {index} of {database}"));
    // What a concurrent build that was cut off leaves behind (manual, REINDEX, "Rebuilding
    // Indexes Concurrently"): it costs every write and serves no query.
    let leftovers = client
        .rows(&format!(
            "select n.nspname, c.relname from pg_catalog.pg_index i \
             join pg_catalog.pg_class c on c.oid = i.indexrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
             where not i.indisvalid and i.indrelid = (select indrelid from pg_catalog.pg_index where indexrelid = {0}::regclass) \
             and c.relname ~ '_cc(new|old)[0-9]*$'",
            quote_literal(&quote_qualified(index))
        ))
        .await
        .map_err(what())?;
    for row in leftovers {
        let name = format!("{}.{}", quote_ident(row.text(0)), quote_ident(row.text(1)));
        client
            .within(cx.deadline, &format!("drop index concurrently if exists {name}"))
            .await
            .map_err(what())?;
    }
    let name = quote_qualified(index);
    let begun = tokio::time::Instant::now();
    // It waits for transactions that are older than itself and turns nobody away meanwhile; the
    // limit for the statement is the step's.
    client.execute("set lock_timeout = 0").await.map_err(what())?;
    let how = match client
        .within(cx.deadline, &format!("reindex index concurrently {name}"))
        .await
    {
        Ok(_) => "concurrently",
        // Indexes of system catalogues and of exclusion constraints cannot be rebuilt
        // concurrently, and say so (manual, REINDEX). On no other ground the table is locked: the
        // operator agreed to a rebuilding beside readers and writers.
        Err(e) if e.is(sqlstate::FEATURE_NOT_SUPPORTED) => {
            client
                .execute(&format!("set lock_timeout = {}", LOCK_WAIT.as_millis()))
                .await
                .map_err(what())?;
            client
                .within(cx.deadline, &format!("reindex index {name}"))
                .await
                .map_err(what())?;
            "with the table locked"
        }
        Err(e) => return Err(what()(e)),
    };
    Ok(Outcome::new(format!("{index} is rebuilt {how}"))
        .fact("reindex-seconds", begun.elapsed().as_secs_f64()))
}

pub(super) async fn restore_side(
    cx: &ActionContext<'_>,
    service: &str,
    database: &str,
    side: &str,
    dump: &str,
    jobs: u32,
) -> Result<Outcome, ActionError> {
    super::swap::drop_database(cx, service, side).await?;
    let server = cx.system.postgres(service).await?;
    let client = session_beside(cx, &server, database).await?;
    let what = || pg(format!("creating database {side}"));
    let like = client.rows(&Properties::query(database)).await.map_err(what())?;
    let like = like
        .first()
        .map(Properties::of)
        .ok_or_else(|| ActionError::Other(format!("there is no database {database} on {service}")))?;
    let create = format!("{}{}", like.create(side), like.in_tablespace());
    client.within(cx.deadline, &create).await.map_err(what())?;
    let (sessions, into) = (jobs.to_string(), conninfo(side));
    let mut helper = server.client_helper(
        cx.system.deployment(),
        cx.run,
        "pg-restore",
        &[
            "pg_restore",
            "--exit-on-error",
            "--no-password",
            // It would connect to its publisher from the side database, too.
            "--no-subscriptions",
            "--jobs",
            &sessions,
            "--dbname",
            &into,
            "/drctl/dump",
        ],
    );
    let staging = cx.staged(&server, "pg-restore", dump, 1).await?;
    helper.mounts.push(staging.mount("/drctl/dump", true));
    helper.env.push((
        "PGOPTIONS".into(),
        settings(cx, &server, &client, database, jobs).await,
    ));
    let begun = tokio::time::Instant::now();
    let output = cx.system.docker.run_helper(&helper, cx.deadline).await?;
    succeeded(&format!("pg_restore into {side}"), output)?;
    staging.close().await?;
    // A commit that waits takes the log of all before it to the disk, and the log is what a
    // restart needs; the files follow with the server's next checkpoint. `local`: no standby
    // is waited for.
    client
        .within(
            cx.deadline,
            "begin; set local synchronous_commit = local; select pg_catalog.txid_current(); commit",
        )
        .await
        .map_err(pg("writing the restored data to the log"))?;
    Ok(Outcome::new(format!("the dump is restored into {side}"))
        .fact("restore-seconds", begun.elapsed().as_secs_f64()))
}

/// Settings of the sessions of a restore.
async fn settings(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    client: &Client,
    database: &str,
    jobs: u32,
) -> String {
    // Commits need not wait for the disk: the last one does, once for all.
    let mut options = "-c synchronous_commit=off -c statement_timeout=0".to_owned();
    let size = client
        .value(&format!(
            "select pg_catalog.pg_database_size({})",
            quote_literal(database)
        ))
        .await;
    let size = size.ok().flatten().and_then(|s| s.parse::<u64>().ok());
    if let Some(mib) = index_memory(spare_memory(cx, server), size, jobs) {
        options.push_str(&format!(" -c maintenance_work_mem={mib}MB"));
    }
    // New pages go to the log as a whole. A session that asks for what its server cannot do is
    // refused: since version 15, where it is built in, and for superusers.
    let compresses = client
        .value(
            "select 'lz4' = any (enumvals) and current_setting('is_superuser') = 'on' \
             from pg_catalog.pg_settings where name = 'wal_compression'",
        )
        .await;
    if compresses.is_ok_and(|c| c.as_deref() == Some("t")) {
        options.push_str(" -c wal_compression=lz4");
    }
    options
}

/// Bytes that the server's machine can spare, or a part of its container's limit; `None` where
/// nothing is known of it.
fn spare_memory(cx: &ActionContext<'_>, server: &PostgresServer) -> Option<u64> {
    match server.container.memory_limit {
        // Its caches and the users' sessions need the larger part.
        limit if limit > 0 => Some(limit / 4),
        _ if cx.system.docker.is_local() => std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| available(&text))
            .map(|bytes| bytes / 4),
        _ => None,
    }
}

/// Mebibytes that one session of a restore may take to build an index; `None` for the server's
/// own setting.
fn index_memory(spare: Option<u64>, database: Option<u64>, jobs: u32) -> Option<u64> {
    let spare = spare?;
    if database.is_some_and(|size| size <= spare) {
        return Some(INDEX_MEMORY_CACHED);
    }
    let each = (spare >> 20) / u64::from(jobs.max(1));
    Some(each.clamp(INDEX_MEMORY_LEAST, INDEX_MEMORY_MOST))
}

/// `MemAvailable` of `/proc/meminfo` in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

pub(super) async fn prove_side(
    cx: &ActionContext<'_>,
    service: &str,
    database: &str,
    side: &str,
    floors: &[RowFloor],
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let spec = server.admin.to_database(side);
    let config = server
        .config
        .databases
        .iter()
        .find(|(n, _)| n.as_str() == database);
    // Without statistics the first queries of the users would be planned blindly.
    let analyze = async {
        let client = session(cx, &server, side).await?;
        client
            .within(cx.deadline, "analyze")
            .await
            .map_err(pg(format!("analyzing {side}")))
    };
    let config = config.map(|(_, c)| c);
    let proof = prove::database(cx, &spec, config, floors, prove::Indexes::Built);
    let (checks, analyzed) = tokio::join!(proof, analyze);
    analyzed?;
    prove::outcome(cx, side, &checks?)
}

pub(super) async fn fence_writers(
    cx: &ActionContext<'_>,
    service: &str,
    database: &str,
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let client = session_beside(cx, &server, database).await?;
    let prepared = client
        .rows(&format!(
            "select gid from pg_catalog.pg_prepared_xacts where database = {}",
            quote_literal(database)
        ))
        .await
        .map_err(pg("looking for prepared transactions"))?;
    if !prepared.is_empty() {
        let list: Vec<String> = prepared
            .iter()
            .map(|r| format!("ROLLBACK PREPARED {}", quote_literal(r.text(0))))
            .collect();
        return Err(ActionError::Other(format!(
            "{database} holds prepared transactions, which would block the rename and which no tool may decide about; commit them or: {}",
            list.join("; ")
        )));
    }
    // Readers go on reading what is readable. New sessions start read-only; the old ones
    // are ended, or they would go on writing.
    client
        .execute(&format!(
            "alter database {} set default_transaction_read_only = on",
            quote_ident(database)
        ))
        .await
        .map_err(pg(format!("making {database} read-only")))?;
    let since = client
        .value("select pg_catalog.clock_timestamp()")
        .await
        .map_err(pg("reading the clock"))?
        .unwrap_or_default();
    end_sessions(&client, Some(database)).await?;
    let sql = format!(
        "select count(*) from pg_catalog.pg_stat_activity where datname = {} and backend_type = 'client backend' \
         and backend_start < {}::timestamptz and pid <> pg_catalog.pg_backend_pid()",
        quote_literal(database),
        quote_literal(&since)
    );
    // An error ends it at once.
    let none = |old: &Result<Option<String>, PgError>| !matches!(old, Ok(n) if n.as_deref() != Some("0"));
    let old = until(FENCE_LIMIT, Duration::from_millis(20), none, || {
        client.value(&sql)
    });
    let old = old.await.map_err(pg("counting sessions"))?;
    if old.as_deref() != Some("0") {
        return Err(ActionError::Other(format!(
            "{} sessions of {database} from before the fence do not end",
            old.unwrap_or_default()
        )));
    }
    let outcome = Outcome::new(format!("{database} is read-only; no session from before is left"));
    // Rows are brought over after this: what is written later is what the swap must not lose.
    let counting = session(cx, &server, database).await?;
    let writes = super::swap::writes(&counting)
        .await
        .map_err(pg(format!("counting what was written to {database}")))?;
    Ok(match writes {
        Some(writes) => outcome.fact(super::swap::WRITES, writes),
        None => outcome,
    })
}

pub(super) async fn unfence_writers(
    cx: &ActionContext<'_>,
    service: &str,
    database: &str,
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let client = session_beside(cx, &server, database).await?;
    client
        .execute(&format!(
            "alter database {} reset default_transaction_read_only",
            quote_ident(database)
        ))
        .await
        .map_err(pg(format!("letting {database} be written again")))?;
    // Read-only sessions in pools would stay read-only: they took the setting at their start.
    end_sessions(&client, Some(database)).await?;
    Ok(Outcome::new(format!("{database} can be written again")))
}

pub(super) async fn salvage_rows(
    cx: &ActionContext<'_>,
    service: &str,
    from: &str,
    into: &str,
    tables: &[SalvageTable],
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let salvaged = salvage::tables(
        cx,
        &server.admin.to_database(from),
        &server.admin.to_database(into).writable(),
        tables,
    )
    .await?;
    Ok(salvage::outcome(cx, &[(from.to_owned(), salvaged)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cache_holds_is_built_in_small_portions() {
        assert_eq!(index_memory(Some(4 << 30), Some(1 << 30), 2), Some(12));
        assert_eq!(index_memory(Some(4 << 30), Some(100 << 30), 2), Some(1024));
        assert_eq!(index_memory(Some(1 << 30), None, 4), Some(256));
        assert_eq!(index_memory(Some(100 << 20), Some(1 << 30), 4), Some(64));
        assert_eq!(index_memory(None, Some(1 << 30), 2), None);
    }

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       24683776 kB\nMemAvailable:   22126004 kB\n";
        assert_eq!(available(text), Some(22_126_004 << 10));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
