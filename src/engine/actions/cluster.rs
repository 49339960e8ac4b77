//! Work on a data directory: a base backup beside the old data, proven there by a side
//! server, and brought in by renames inside the same volume. That is the swap which the
//! next `compose up` does not undo.
//!
//! Beside the data means `.drctl/RUN/` inside it: the data directory is usually a mount
//! point itself, and a rename across mounts would be a copy.
//!
//! ```text
//! .drctl/RUN/new     the data directory to be
//! .drctl/RUN/wal     copies of WAL segments, for the replay
//! .drctl/RUN/damage  a copy of the damaged data, for salvage
//! .drctl/RUN/old     the old data, after the switch
//! ```

use std::os::unix::fs::MetadataExt;

use super::damaged;
use super::scripts::{
    DISCARD, DROP_COPY, EXTRACT, KEEP_WAL, LIVE_WAL, LOG_USED, OWNER, STOPPED_AT, SWITCH, SWITCH_BACK, Script,
};
use super::server::{must_be_alone, session_beside};
use super::side_server::SideServer;
use super::{ActionContext, ActionError, Outcome, pg, prove, salvage, succeeded};
use crate::backup::{self, Compared};
use crate::event::bytes;
use crate::plan::{RowFloor, SalvageTable};
use crate::postgres::{Lsn, wal_gap};
use crate::system::{PostgresServer, WORK_DIR};
use crate::workload::{HelperMount, HelperOutput};

const NOT_MOVED: &str = "none of its files is moved";

pub(super) async fn script(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    run: &str,
    purpose: &str,
    script: Script,
    environment: &[(&str, &str)],
    mounts: Vec<HelperMount>,
) -> Result<HelperOutput, ActionError> {
    let argv = script.argv();
    let argv = argv.each_ref().map(String::as_str);
    let mut spec = server.files_helper(cx.system.deployment(), cx.run, purpose, false, &argv);
    spec.env.push(("RUN".into(), run.to_owned()));
    spec.env.push(("FIRST".into(), String::new()));
    for (name, value) in environment {
        spec.env.retain(|(n, _)| n != name);
        spec.env.push(((*name).to_owned(), (*value).to_owned()));
    }
    spec.mounts = mounts;
    let output = cx.system.docker.run_helper(&spec, cx.deadline).await?;
    succeeded(purpose, output)
}

/// A server that runs must not have its files moved; checked just before each such step.
pub(super) fn must_be_stopped(server: &PostgresServer) -> Result<(), ActionError> {
    use crate::workload::Status;
    match server.container.status {
        Status::Exited | Status::Created | Status::Dead => Ok(()),
        _ => Err(ActionError::Other(format!(
            "{} runs: its files are not touched while it does",
            server.service
        ))),
    }
}

/// `uid:gid` of the data directory. Read on the host when the engine shares it; asked of a
/// helper otherwise.
pub(super) async fn owner(cx: &ActionContext<'_>, server: &PostgresServer) -> Result<String, ActionError> {
    if cx.system.docker.is_local()
        && let Some(mount) = server.container.mount_of(&server.data_dir)
    {
        let rest = server
            .data_dir
            .strip_prefix(&mount.destination)
            .unwrap_or_default();
        if let Ok(meta) = std::fs::metadata(format!("{}{rest}", mount.source)) {
            return Ok(format!("{}:{}", meta.uid(), meta.gid()));
        }
    }
    let output = script(cx, server, cx.run, "owner", OWNER, &[], Vec::new()).await?;
    Ok(output.stdout.trim().to_owned())
}

/// The number after a word on a line of its own in a script's output.
fn reported(output: &HelperOutput, word: &str) -> u64 {
    output
        .stdout
        .lines()
        .find_map(|l| l.strip_prefix(word)?.trim().parse().ok())
        .unwrap_or_default()
}

pub(super) async fn extract_base(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    base: &str,
    (first_segment, whole): (&str, bool),
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let begun = tokio::time::Instant::now();
    let copy = async {
        // On a remote engine it lies there twice for a while: as it came, and beside the data.
        let staging = cx.staged(&server, "extract-base", base, 2).await?;
        let output = script(
            cx,
            &server,
            run,
            "extract-base",
            EXTRACT,
            &[("FIRST", first_segment)],
            vec![staging.mount("/drctl/base", true)],
        )
        .await?;
        staging.close().await?;
        Ok::<_, ActionError>(output)
    };
    // Together: it is read from the disk once, and the copy only lies beside the data. Both to
    // their end: a helper that still copies would be in the way of the step's undo.
    let (sound, copied) = tokio::join!(sound(cx, base), copy);
    sound?;
    let output = copied?;
    if let Some(gap) = missing(&output, first_segment, whole)? {
        cx.warn(format!(
            "the write-ahead log since the backup is not complete ({gap}): its replay ends there"
        ));
    }
    let differing: Vec<&str> = output
        .stdout
        .lines()
        .filter_map(|l| l.strip_prefix("differs "))
        .collect();
    if !differing.is_empty() {
        cx.warn(format!(
            "{} differ from the backup's; the backup's come into force, the present ones are kept with the old data",
            differing.join(", ")
        ));
    }
    let size = reported(&output, "bytes ") * 1024;
    let mut outcome = Outcome::new(format!("{} copied to {WORK_DIR}/{run}/new", bytes(size)))
        .fact("bytes", size)
        .fact("extract-seconds", begun.elapsed().as_secs_f64());
    if !differing.is_empty() {
        outcome = outcome.fact("configuration-differs", differing.join(" "));
    }
    Ok(outcome)
}

/// What is missing of the kept log, in words. An error where the plan counts on all of it.
fn missing(output: &HelperOutput, first: &str, whole: bool) -> Result<Option<String>, ActionError> {
    let kept: Vec<&str> = output
        .stdout
        .lines()
        .filter_map(|l| l.strip_prefix("kept "))
        .collect();
    match wal_gap(&kept, first) {
        // The plan was made when everything was there: a checkpoint has removed it since, or is
        // about to remove more.
        Some(gap) if whole => Err(ActionError::Other(format!(
            "the write-ahead log since the backup is not complete any more ({gap}), and what was committed since would be \
             lost; run this again: the new plan says what it loses"
        ))),
        other => Ok(other),
    }
}

/// The base backup is as it was when it was made. A file that has changed since is found before
/// the server waits for it: a page without a checksum would otherwise only be wrong.
async fn sound(cx: &ActionContext<'_>, base: &str) -> Result<(), ActionError> {
    let path = std::path::PathBuf::from(base);
    let compared = tokio::task::spawn_blocking(move || backup::compare_base(&path))
        .await
        .map_err(|e| ActionError::Other(e.to_string()))?;
    match compared {
        Ok(Compared::Equal) => Ok(()),
        Ok(Compared::Unknown) => {
            cx.warn(format!(
                "{base} was made without checksums that drctl can compare"
            ));
            Ok(())
        }
        Ok(Compared::Different(found)) => Err(ActionError::Unproven {
            what: format!("the base backup in {base}"),
            found: format!(
                "{found}; drctl backup verify --all tells which sets are whole, and the next recovery takes none of the others"
            ),
        }),
        Err(e) => Err(ActionError::Other(format!(
            "{base} cannot be compared with its manifest: {e}"
        ))),
    }
}

pub(super) async fn keep_wal(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    (first_segment, whole): (&str, bool),
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    must_be_stopped(&server)?;
    let environment = [
        ("FIRST", first_segment),
        ("WHOLE", if whole { "yes" } else { "" }),
    ];
    let output = script(cx, &server, run, "keep-wal", KEEP_WAL, &environment, Vec::new()).await?;
    missing(&output, first_segment, whole)?;
    let segments = reported(&output, "segments ");
    Ok(
        Outcome::new(format!("{segments} WAL segments since the backup are kept"))
            .fact("wal-segments", segments),
    )
}

fn replay_settings(server: &PostgresServer, run: &str) -> Vec<(&'static str, String)> {
    let work = server.work_dir(run);
    vec![
        (
            "restore_command",
            // The third argument is the only length that a whole segment can have.
            format!("sh \"{work}/restore-wal\" \"%f\" \"%p\" \"$(cat \"{work}/segment-size\")\""),
        ),
        ("recovery_target_timeline", "latest".to_owned()),
    ]
}

async fn start_new(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    run: &str,
) -> Result<SideServer, ActionError> {
    let owner = owner(cx, server).await?;
    let path = format!("{}/new", server.work_dir(run));
    Ok(SideServer::start(cx, server, &owner, &path, &replay_settings(server, run)).await?)
}

pub(super) async fn prove_side(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    floors: &[(String, Vec<RowFloor>)],
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let begun = tokio::time::Instant::now();
    let side = start_new(cx, &server, run).await?;
    let ready = begun.elapsed();
    let mut checks = Vec::new();
    let end = async {
        let output = script(cx, &server, run, "stopped-at", STOPPED_AT, &[], Vec::new()).await?;
        Ok::<Option<Lsn>, ActionError>(output.stdout.parse().ok())
    };
    let proof = async {
        for (database, config) in &server.config.databases {
            let floors = floors
                .iter()
                .find(|(d, _)| d == database.as_str())
                .map(|(_, f)| f.as_slice())
                .unwrap_or_default();
            let spec = side.admin.to_database(database.as_str());
            checks.extend(prove::database(cx, &spec, Some(config), floors, prove::Indexes::Copied).await?);
        }
        Ok::<_, ActionError>(())
    };
    let (proof, end) = tokio::join!(proof, end);
    let log = side.stop(cx.deadline).await;
    proof?;
    let (log, end) = (log?, end?);
    if let Some((reached, end)) = fell_short(&log, end) {
        return Err(ActionError::Unproven {
            what: "the replay of the whole write-ahead log".into(),
            found: format!(
                "it ended at {reached}, and the server was stopped at {end}: what lies between is missing"
            ),
        });
    }
    let mut outcome = prove::outcome(cx, "the restored server", &checks)?;
    for (fact, text) in replay_end(&log) {
        outcome.text = format!("{}; {fact} {text}", outcome.text);
        outcome = outcome.fact(fact, text);
    }
    Ok(outcome.fact("replay-seconds", ready.as_secs_f64()).fact(
        "prove-seconds",
        begun.elapsed().saturating_sub(ready).as_secs_f64(),
    ))
}

/// Where the replay ended, in the server's words.
fn replay_end(log: &str) -> Vec<(&'static str, String)> {
    let after = |mark: &str| {
        log.lines()
            .rev()
            .find_map(|l| l.split_once(mark))
            .map(|(_, rest)| {
                rest.split(" system usage")
                    .next()
                    .unwrap_or(rest)
                    .trim()
                    .to_owned()
            })
    };
    let mut facts = Vec::new();
    if let Some(lsn) = after("redo done at ") {
        facts.push(("replayed-to", lsn));
    }
    if let Some(time) = after("last completed transaction was at log time ") {
        facts.push(("last-transaction", time));
    }
    facts
}

/// Where the replay ended, when that is before `end`. A log that says nothing of it is of a
/// start that had nothing left to replay.
fn fell_short(log: &str, end: Option<Lsn>) -> Option<(Lsn, Lsn)> {
    let facts = replay_end(log);
    let (_, reached) = facts.iter().find(|(fact, _)| *fact == "replayed-to")?;
    let (reached, end) = (reached.parse().ok()?, end?);
    (reached < end).then_some((reached, end))
}

pub(super) async fn salvage_rows(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    tables: &[(String, Vec<SalvageTable>)],
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    must_be_stopped(&server)?;
    // Salvage is a gift: a copy that cannot be made to start must not stop the restore.
    let damage = match damaged::start(cx, &server, run, "damage").await {
        Ok((damage, _)) => damage,
        Err(e) => {
            cx.warn(format!("nothing could be salvaged: {e}"));
            return Ok(Outcome::new(format!("nothing could be salvaged: {e}"))
                .fact("rows-salvaged", 0)
                .fact("salvage-failed", e.to_string()));
        }
    };
    let new = start_new(cx, &server, run).await?;
    let mut done = Vec::new();
    for (database, tables) in tables {
        let from = damage.admin.to_database(database);
        let into = new.admin.to_database(database).writable();
        match salvage::tables(cx, &from, &into, tables).await {
            Ok(salvaged) => done.push((database.clone(), salvaged)),
            Err(e) => cx.warn(format!("salvage from {database} stopped: {e}")),
        }
    }
    new.stop(cx.deadline).await?;
    // Its data is a throw-away copy: how it ends does not matter.
    let _ = damage.stop(cx.deadline).await;
    let copy = [("TO", "damage")];
    script(cx, &server, run, "drop-copy", DROP_COPY, &copy, Vec::new()).await?;
    Ok(salvage::outcome(cx, &done))
}

pub(super) async fn salvage_from_log(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    first_segment: &str,
    (from, into): (&str, &str),
    tables: &[SalvageTable],
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let work = async {
        let client = session_beside(cx, &server, from).await?;
        // A record of our own: the one that ends the segment then stands behind this position,
        // and a replay that has seen everything ends there or later.
        client
            .within(
                cx.deadline,
                "begin; set local synchronous_commit = local; select pg_catalog.txid_current(); commit",
            )
            .await
            .map_err(pg("writing to the log"))?;
        let end = client
            .value("select pg_catalog.pg_current_wal_insert_lsn()")
            .await
            .map_err(pg("asking where the log ends"))?;
        let end: Option<Lsn> = end.and_then(|e| e.parse().ok());
        // Ends the present segment, so that everything committed lies in whole ones.
        client
            .rows("select pg_catalog.pg_switch_wal()")
            .await
            .map_err(pg("ending the WAL segment"))?;
        let kept = script(
            cx,
            &server,
            run,
            "keep-wal",
            LIVE_WAL,
            &[("FIRST", first_segment)],
            Vec::new(),
        )
        .await?;
        if kept.stdout.contains("done") {
            return Ok(Vec::new());
        }
        let new = start_new(cx, &server, run).await?;
        let salvaged = salvage::tables(
            cx,
            &new.admin.to_database(from),
            &server.admin.to_database(into).writable(),
            tables,
        )
        .await;
        // Its data is a throw-away copy: how it ends does not matter.
        let log = new.stop(cx.deadline).await.unwrap_or_default();
        if let Some((reached, end)) = fell_short(&log, end) {
            cx.warn(format!(
                "the replay of the log ended at {reached}, before its end at {end}: rows that the damage hides and that \
                 were committed after that are not brought over"
            ));
        }
        salvaged
    }
    .await;
    match work {
        Ok(salvaged) => {
            script(cx, &server, run, "drop-copy", LOG_USED, &[], Vec::new()).await?;
            Ok(salvage::outcome(cx, &[(from.to_owned(), salvaged)]))
        }
        // A gift, like all salvage: without it the restore is what it was.
        Err(e) => {
            cx.warn(format!("the write-ahead log could not be used: {e}"));
            Ok(Outcome::new(format!("nothing could be brought over: {e}"))
                .fact("rows-salvaged", 0)
                .fact("salvage-failed", e.to_string()))
        }
    }
}

pub(super) async fn switch(cx: &ActionContext<'_>, service: &str, run: &str) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    must_be_stopped(&server)?;
    must_be_alone(cx, &server, NOT_MOVED).await?;
    let begun = tokio::time::Instant::now();
    script(cx, &server, run, "switch", SWITCH, &[], Vec::new()).await?;
    Ok(Outcome::new(format!(
        "the restored data is in place; the old is kept in {WORK_DIR}/{run}/old"
    ))
    .fact("switch-seconds", begun.elapsed().as_secs_f64()))
}

pub(super) async fn switch_back(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    must_be_stopped(&server)?;
    must_be_alone(cx, &server, NOT_MOVED).await?;
    let output = script(cx, &server, run, "switch-back", SWITCH_BACK, &[], Vec::new()).await?;
    Ok(Outcome::new(if output.stdout.contains("nothing") {
        "the old data was still in place".to_owned()
    } else {
        format!("the old data is back; what served until now is kept in {WORK_DIR}/{run}-undone")
    }))
}

pub(super) async fn discard(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    script(cx, &server, run, "discard", DISCARD, &[], Vec::new()).await?;
    Ok(Outcome::new(format!("{WORK_DIR}/{run} of {service} is removed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_replay_is_read_from_the_log() {
        let log = "LOG:  redo done at 0/5000028 system usage: CPU: user: 0.01 s\n\
                   LOG:  last completed transaction was at log time 2026-11-20 18:30:12.5+00\n";
        assert_eq!(
            replay_end(log),
            [
                ("replayed-to", "0/5000028".to_owned()),
                ("last-transaction", "2026-11-20 18:30:12.5+00".to_owned())
            ]
        );
        assert!(replay_end("LOG:  ready").is_empty());
        let end = |lsn: &str| lsn.parse().ok();
        let short = (Lsn(0x500_0028), Lsn(0x500_0060));
        assert_eq!(fell_short(log, end("0/5000060")), Some(short));
        assert_eq!(fell_short(log, end("0/5000028")), None);
        assert_eq!(fell_short(log, end("")), None);
        assert_eq!(fell_short("LOG:  ready", end("0/5000060")), None);
    }

    #[test]
    fn a_log_that_the_plan_counts_on_and_that_has_a_hole_stops_the_step() {
        let output = |kept: &[&str]| HelperOutput {
            exit_code: 0,
            stderr: String::new(),
            stdout: kept.join("\n"),
        };
        let first = "000000010000000000000004";
        let hole = output(&["kept 000000010000000000000004", "kept 000000010000000000000006"]);
        assert!(missing(&hole, first, true).is_err());
        assert!(missing(&hole, first, false).unwrap().is_some());
        let sound = output(&["kept 000000010000000000000004", "kept 000000010000000000000005"]);
        assert_eq!(missing(&sound, first, true).unwrap(), None);
    }
}
