//! A copy of damaged data that is made to start: as it is, with a control file made anew
//! and its log replayed, or at the worst by `pg_resetwal`. The gentlest that works.

use super::cluster::{must_be_stopped, owner, script};
use super::mend::{self, Mended};
use super::scripts::{COPY_DAMAGED, FILL_STATUS, REBUILD_CONTROL, RESET_COPY, Script};
use super::side_server::{NotStarted, SideServer};
use super::{ActionContext, ActionError, Outcome, succeeded};
use crate::system::PostgresServer;
use crate::workload::HelperOutput;

/// How a copy was made to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Started {
    AsItIs,
    /// Its control file was made anew; all of the log was replayed.
    Replayed,
    /// Its log was thrown away.
    Reset,
}

impl Started {
    fn words(self) -> &'static str {
        match self {
            Self::AsItIs => "as it is",
            Self::Replayed => "with a control file made anew, after the replay of its whole log",
            Self::Reset => "after pg_resetwal: what only its log held is lost",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::AsItIs => "as-it-is",
            Self::Replayed => "replayed",
            Self::Reset => "reset",
        }
    }
}

/// Copies the damage to `new`, makes the copy start, and takes out of it what cannot be
/// read.
pub(super) async fn copy(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    tables: &[(String, Vec<String>)],
) -> Result<Outcome, ActionError> {
    let server = cx.system.postgres(service).await?;
    must_be_stopped(&server)?;
    let (side, how) = start(cx, &server, run, "new").await?;
    let mended = mend::all(cx, &server, run, &side.admin, tables, how == Started::Reset).await;
    let stopped = side.stop(cx.deadline).await;
    let mended = mended?;
    stopped?;
    let mut outcome = Outcome::new(format!("the copy of the damaged data starts {}", how.words()))
        .fact("copy-started", how.name());
    let lost = Mended::words(&mended);
    for line in &lost {
        cx.warn(line.clone());
    }
    if lost.is_empty() {
        outcome.text.push_str("; everything in it can be read");
    } else {
        outcome.text = format!("{}; {}", outcome.text, lost.join("; "));
        outcome = outcome.fact("lost", lost);
    }
    Ok(outcome)
}

/// Makes a copy of the damage in `directory` and starts a server on it.
pub(super) async fn start(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    run: &str,
    directory: &str,
) -> Result<(SideServer, Started), ActionError> {
    let copy = async || {
        let to = [("TO", directory)];
        script(cx, server, run, "copy-damage", COPY_DAMAGED, &to, Vec::new()).await
    };
    copy().await?;
    let owner = owner(cx, server).await?;
    let path = format!("{}/{directory}", server.work_dir(run));
    let words = match SideServer::start(cx, server, &owner, &path, &[]).await {
        Ok(side) => return Ok((side, Started::AsItIs)),
        Err(NotStarted::Ended(words)) => words,
        Err(NotStarted::Other(e)) => return Err(e),
    };
    cx.note(format!("the copy does not start as it is: {words}"));
    if names_control_file(&words) {
        match replayed(cx, server, run, directory, &owner).await {
            Ok(side) => return Ok((side, Started::Replayed)),
            Err(e) => cx.note(format!("its log cannot be replayed: {e}")),
        }
        // That attempt has left its traces.
        copy().await?;
    }
    reset(cx, server, run, directory, &owner)
        .await
        .map(|side| (side, Started::Reset))
}

fn names_control_file(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    words.contains("control file") || words.contains("pg_control")
}

/// A script on a copy, as the data's owner: the server's own programs refuse to run as root.
async fn as_owner(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    run: &str,
    purpose: &str,
    script: Script,
    (directory, owner): (&str, &str),
) -> Result<HelperOutput, ActionError> {
    let argv = script.argv();
    let argv = argv.each_ref().map(String::as_str);
    let mut spec = server.files_helper(cx.system.deployment(), cx.run, purpose, false, &argv);
    spec.user = Some(owner.to_owned());
    spec.env.push(("RUN".into(), run.to_owned()));
    spec.env.push(("TO".into(), directory.to_owned()));
    let output = cx.system.docker.run_helper(&spec, cx.deadline).await?;
    succeeded(purpose, output)
}

async fn replayed(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    run: &str,
    directory: &str,
    owner: &str,
) -> Result<SideServer, ActionError> {
    as_owner(
        cx,
        server,
        run,
        "rebuild-control",
        REBUILD_CONTROL,
        (directory, owner),
    )
    .await?;
    let path = format!("{}/{directory}", server.work_dir(run));
    Ok(SideServer::start(cx, server, owner, &path, &[]).await?)
}

async fn reset(
    cx: &ActionContext<'_>,
    server: &PostgresServer,
    run: &str,
    directory: &str,
    owner: &str,
) -> Result<SideServer, ActionError> {
    let output = as_owner(cx, server, run, "reset-copy", RESET_COPY, (directory, owner)).await?;
    if output.stdout.contains("xact") {
        cx.warn("transaction status is lost: rows of transactions that were rolled back may show among the salvaged ones");
    }
    // A segment of pg_xact or pg_multixact that is missing is named by the server; each
    // is filled in and the start tried again.
    let path = format!("{}/{directory}", server.work_dir(run));
    let mut tries = 0;
    loop {
        match SideServer::start(cx, server, owner, &path, &[]).await {
            Ok(side) => return Ok(side),
            Err(NotStarted::Ended(words)) => {
                tries += 1;
                let missing = missing_status_file(&words);
                let Some(file) = missing.filter(|_| tries < 8) else {
                    return Err(ActionError::Other(format!("the copy does not start: {words}")));
                };
                cx.warn(format!(
                    "{file} is missing in the copy: its transactions are taken as committed"
                ));
                let fill = [("TO", directory), ("FILE", &file), ("OWNER", owner)];
                script(cx, server, run, "fill-status", FILL_STATUS, &fill, Vec::new()).await?;
            }
            Err(NotStarted::Other(e)) => return Err(e),
        }
    }
}

/// `pg_xact/0000` out of `Could not open file "pg_xact/0000"`.
fn missing_status_file(words: &str) -> Option<String> {
    let at = words.find("\"pg_xact/")? + 1;
    let name: String = words.get(at..)?.chars().take_while(|c| *c != '"').collect();
    let segment = name.strip_prefix("pg_xact/")?;
    (!segment.is_empty() && segment.chars().all(|c| c.is_ascii_hexdigit())).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_file_is_ever_filled_in() {
        let words = r#"FATAL:  could not access status of transaction 827; DETAIL:  Could not open file "pg_xact/0000": No such file"#;
        assert_eq!(missing_status_file(words).as_deref(), Some("pg_xact/0000"));
        assert_eq!(missing_status_file(r#"could not open file "pg_xact/../x""#), None);
        assert_eq!(missing_status_file("nothing"), None);
    }

    #[test]
    fn a_control_file_is_made_anew_only_where_it_is_the_trouble() {
        for words in [
            "FATAL:  incorrect checksum in control file",
            "PANIC:  could not read file \"global/pg_control\": read 100 of 296",
            "DETAIL:  The database cluster was initialized with PG_CONTROL_VERSION 0 (0x00000000)",
        ] {
            assert!(names_control_file(words), "{words}");
        }
        assert!(!names_control_file(
            "PANIC:  could not locate a valid checkpoint record"
        ));
    }
}
