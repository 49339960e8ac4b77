//! What keeps a sound PostgreSQL server from running: its configuration, the owner and mode of
//! its files, files that it trips over; and the wait for one that replays its log.
//!
//! The files are worked on by a helper container with the server's mounts, so that it works
//! when the server does not start. Configuration is written by the data's owner: what root
//! writes, the server may not read. Only who gives files away must be root.

use std::time::Duration;

use tokio::time::Instant;

use super::cluster::{must_be_stopped, owner};
use super::scripts::PRELUDE;
use super::server::{must_be_alone, paused};
use super::{ActionContext, ActionError, Outcome, succeeded};
use crate::event::seconds;
use crate::plan::{ConfigLine, ServerAction};
use crate::probe::backends::replaying;
use crate::probe::connection::replay_paused;
use crate::probe::settings;
use crate::system::{PostgresServer, WORK_DIR};
use crate::workload::{HelperOutput, Status};

const SCRIPT: &str = include_str!("server_files.sh");
/// How often a server that replays is asked.
const POLL: Duration = Duration::from_millis(300);
/// How often the progress of a replay is told.
const TOLD_EVERY: Duration = Duration::from_secs(2);

pub(super) async fn apply(cx: &ActionContext<'_>, action: &ServerAction) -> Result<Outcome, ActionError> {
    use ServerAction as A;
    match action {
        A::AwaitRecovery { service } => await_recovery(cx, service).await,
        A::SetAside { service, run, lines } => set_aside(cx, service, run, lines).await,
        A::PutLinesBack { service, run } => put_lines_back(cx, service, run).await,
        A::FixPermissions { service, run, owner } => {
            let server = cx.system.postgres(service).await?;
            must_be_alone(cx, &server, "no owner or mode is changed").await?;
            let output = script(cx, &server, run, None, &["fix-permissions", owner]).await?;
            let files = count(&output);
            Ok(Outcome::new(format!(
                "{} given back; who had them is kept in {WORK_DIR}/{run}/permissions",
                counted(files)
            ))
            .fact("files-given-back", files))
        }
        A::RestorePermissions { service, run } => {
            let server = cx.system.postgres(service).await?;
            let output = script(cx, &server, run, None, &["restore-permissions"]).await?;
            let files = counted(count(&output));
            Ok(Outcome::new(format!("{files} as before")))
        }
        A::MakeMissing {
            service,
            run,
            owner,
            directories,
            version,
        } => {
            let server = cx.system.postgres(service).await?;
            must_be_stopped(&server)?;
            must_be_alone(cx, &server, "nothing is made in its directory").await?;
            let mut argv = vec!["make-missing", owner, version.as_deref().unwrap_or_default()];
            argv.extend(directories.iter().map(String::as_str));
            let output = script(cx, &server, run, None, &argv).await?;
            let made: Vec<&str> = output
                .stdout
                .lines()
                .filter_map(|l| l.strip_prefix("made "))
                .collect();
            Ok(Outcome::new(match made.as_slice() {
                [] => "nothing was missing".to_owned(),
                made => format!("made: {}", made.join(", ")),
            }))
        }
        A::MoveAside { service, run, files } => move_aside(cx, service, run, files).await,
        A::MoveBack { service, run, files } => {
            let server = cx.system.postgres(service).await?;
            must_be_stopped(&server)?;
            let mut argv = vec!["move-back"];
            argv.extend(files.iter().map(String::as_str));
            script(cx, &server, run, None, &argv).await?;
            Ok(Outcome::new(format!("{} are back", files.join(", "))))
        }
    }
}

/// Runs one verb of the script, as `user` or as root.
async fn script(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    run: &str,
    user: Option<String>,
    arguments: &[&str],
) -> Result<HelperOutput, ActionError> {
    let whole = format!("{PRELUDE}{SCRIPT}");
    let mut argv = vec!["/bin/sh", "-c", &*whole, "server-files"];
    argv.extend_from_slice(arguments);
    let mut spec = server.files_helper(cx.system.deployment(), cx.run, "server-files", false, &argv);
    spec.env.push(("RUN".into(), run.to_owned()));
    spec.env.push(("FIRST".into(), String::new()));
    spec.user = user;
    let output = cx.system.docker.run_helper(&spec, cx.deadline).await?;
    succeeded(arguments.first().copied().unwrap_or_default(), output)
}

fn count(output: &HelperOutput) -> u64 {
    let number = output
        .stdout
        .lines()
        .find_map(|l| l.strip_prefix("files ")?.trim().parse().ok());
    number.unwrap_or_default()
}

fn counted(files: u64) -> String {
    match files {
        1 => "1 file".into(),
        n => format!("{n} files"),
    }
}

async fn set_aside(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    lines: &[ConfigLine],
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    must_be_alone(cx, &server, "no line is changed").await?;
    let user = owner(cx, &server).await?;
    let numbers: Vec<String> = lines.iter().map(|l| l.line.to_string()).collect();
    let mut argv = vec!["set-aside"];
    for (line, number) in lines.iter().zip(&numbers) {
        argv.extend([line.file.as_str(), number, &line.begins]);
    }
    script(cx, &server, run, Some(user.clone()), &argv).await?;
    let said = settings::check(cx.system, &server, &user, cx.run, &[], cx.deadline)
        .await
        .map_err(ActionError::Other)?;
    if let Some(said) = settings::refusal(&said) {
        return Err(ActionError::Unproven {
            what: "the configuration without these lines".into(),
            found: said,
        });
    }
    let words: Vec<String> = lines.iter().map(ConfigLine::in_words).collect();
    Ok(Outcome::new(format!(
        "set aside: {}; `postgres -C` accepts the rest, and the file as it was is kept in {WORK_DIR}/{run}/config",
        words.join("; ")
    ))
    .fact("lines-set-aside", words))
}

async fn put_lines_back(cx: &ActionContext<'_>, service: &str, run: &str) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    let user = owner(cx, &server).await?;
    let output = script(cx, &server, run, Some(user), &["put-lines-back"]).await?;
    let of = |word: &str| -> Vec<&str> {
        let lines = output.stdout.lines();
        lines.filter_map(|l| l.strip_prefix(word)).collect()
    };
    let rewritten = of("rewritten ");
    if !rewritten.is_empty() {
        cx.warn(format!(
            "{} has been written anew since and is left as it is; the file as it was is kept in {WORK_DIR}/{run}/config",
            rewritten.join(", ")
        ));
    }
    Ok(Outcome::new(match of("back ").as_slice() {
        [] => "no line was to be put back".to_owned(),
        files => format!("{} reads as before", files.join(", ")),
    }))
}

async fn move_aside(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    files: &[String],
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    must_be_stopped(&server)?;
    // A lock file protects from a second server on the same files: there must be none.
    let sharing = cx
        .system
        .docker
        .sharing_data(&server.container, &server.data_dir)
        .await?;
    if !sharing.is_empty() {
        return Err(ActionError::Other(format!(
            "container {} runs on the same data: nothing is moved under it",
            sharing.join(", ")
        )));
    }
    let mut argv = vec!["move-aside"];
    argv.extend(files.iter().map(String::as_str));
    script(cx, &server, run, None, &argv).await?;
    Ok(Outcome::new(format!(
        "{} moved to {WORK_DIR}/{run}/aside",
        files.join(", ")
    )))
}

/// Watches a server until it takes connections. It is let work: a restart would have it begin
/// its replay anew.
async fn await_recovery(cx: &ActionContext<'_>, service: &str) -> Result<Outcome, ActionError> {
    let begun = Instant::now();
    let end = begun + cx.deadline;
    let mut told: Option<Instant> = None;
    let mut last_replay = None;
    let first = cx.system.container(service).await?;
    loop {
        let server = cx.system.postgres(service).await?;
        let now = &server.container;
        if !now.is_running() || now.restart_count > first.restart_count {
            return Err(ActionError::Other(format!(
                "{service} did not finish its replay: its container is {}, exit code {}",
                word(now.status),
                now.exit_code
            )));
        }
        let why = match server.connect().await {
            Ok(client) => match client.value("select pg_is_in_recovery()").await {
                Ok(Some(answer)) if answer == "f" => {
                    let mut outcome = Outcome::new(format!("{service} takes connections"))
                        .fact("waited-seconds", begun.elapsed().as_secs_f64());
                    if let Some(replay) = last_replay {
                        outcome = outcome.fact("last-seen", replay);
                    }
                    return Ok(outcome);
                }
                Ok(_) if replay_paused(&client).await == Some(true) => {
                    return Err(ActionError::Other(paused(service)));
                }
                Ok(_) => "it is still in recovery".to_owned(),
                Err(e) => e.to_string(),
            },
            Err(e) => e.to_string(),
        };
        if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            told = Some(Instant::now());
            let processes = cx.system.docker.processes(&now.id).await.unwrap_or_default();
            let replay = replaying(&processes);
            cx.note(format!(
                "{service}: {} ({})",
                replay.as_deref().unwrap_or(&why),
                seconds(begun.elapsed())
            ));
            last_replay = replay.or(last_replay);
        }
        if Instant::now() >= end {
            return Err(ActionError::Other(format!(
                "{service} is still not ready after {}: {why}; it was not touched",
                seconds(cx.deadline)
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn word(status: Status) -> String {
    format!("{status:?}").to_lowercase()
}
