//! The files that a Redis server loads at its start, mended on a copy while it does not run.

use std::time::{Duration, Instant};

use super::server::held_by;
use super::{ActionContext, ActionError, Outcome, succeeded};
use crate::plan::{FileMend, RedisFiles};
use crate::probe::http::Http;
use crate::probe::redis_files::{data_directory, lacks_manifest, look};
use crate::system::{RedisServer, WORK_DIR};
use crate::workload::{ContainerInfo, HelperOutput, HelperSpec, REDIS, Status};

const SCRIPT: &str = include_str!("redis_files.sh");
/// How long an application may take to fill its cache.
const WARM_LIMIT: Duration = Duration::from_secs(30);

/// Runs one verb of the script as root: it gives the files to the server's user.
async fn script(
    cx: &ActionContext<'_>,
    server: &RedisServer,
    run: &str,
    files: &RedisFiles,
    entries: &[&str],
    arguments: &[&str],
) -> Result<HelperOutput, ActionError> {
    let mut argv = vec!["/bin/sh", "-c", SCRIPT, "redis-files"];
    argv.extend_from_slice(arguments);
    let image = &server.container.image_id;
    let mut spec = HelperSpec::new(cx.system.deployment(), cx.run, "redis-files", image, &argv);
    spec.volumes_from = Some((server.container.id.clone(), false));
    spec.env = [
        ("DIR", files.directory.as_str()),
        ("RUN", run),
        ("SNAPSHOT", &files.snapshot),
        ("ENTRY", &files.append_entry),
        ("NAME", &files.append_name),
        ("ENTRIES", &entries.join("\n")),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let output = cx.system.docker.run_helper(&spec, cx.deadline).await?;
    succeeded(arguments.first().copied().unwrap_or_default(), output)
}

/// What changes place: what the server loads. A server that is to be empty must not find the
/// other kind either, should its settings change one day.
fn entries<'a>(files: &'a RedisFiles, mend: &FileMend) -> Vec<&'a str> {
    match mend {
        FileMend::Empty => vec![&files.snapshot, &files.append_entry],
        FileMend::Checksum => vec![&files.snapshot],
        FileMend::Manifest(_) | FileMend::Cut | FileMend::FromSnapshot => vec![&files.append_entry],
    }
}

/// Every start of a Redis server comes through here: two servers on one directory write over each
/// other's files, and one that does not find its append-only file begins empty and writes over
/// it. `untouched` says what is left alone.
pub(super) async fn may_start(
    cx: &ActionContext<'_>,
    service: &str,
    container: &ContainerInfo,
    untouched: &str,
) -> Result<(), ActionError> {
    must_be_alone(cx, service, container, untouched).await?;
    must_have_manifest(cx, service, container, untouched).await
}

/// Refuses where another server runs on the same data.
pub(super) async fn must_be_alone(
    cx: &ActionContext<'_>,
    service: &str,
    container: &ContainerInfo,
    untouched: &str,
) -> Result<(), ActionError> {
    let directory = data_directory(cx.system, container).await?;
    let docker = &cx.system.docker;
    match docker
        .servers_sharing_data(REDIS, container, &directory)
        .await?
        .as_slice()
    {
        [] => Ok(()),
        others => Err(ActionError::Other(held_by(service, others, untouched))),
    }
}

/// Refuses where the start of a server would find it empty and write over its files.
async fn must_have_manifest(
    cx: &ActionContext<'_>,
    service: &str,
    container: &ContainerInfo,
    untouched: &str,
) -> Result<(), ActionError> {
    if !lacks_manifest(cx.system, container).await? {
        return Ok(());
    }
    let seen = look(cx.system, container, cx.run, cx.deadline).await;
    let (state, directory) = match &seen {
        Ok(facts) if !facts.would_be_overwritten() => return Ok(()),
        Ok(facts) => (facts.in_words(), facts.files.directory.as_str()),
        Err(why) => (
            format!("its files could not be looked at: {why}"),
            "its data directory",
        ),
    };
    let next = if container.is_running() {
        "`redis-cli bgrewriteaof` has it written anew from what is in memory"
    } else {
        "`drctl recover redis-failure` writes it anew"
    };
    Err(ActionError::Other(format!(
        "the append-only file of {service} has no manifest in {directory} ({state}): {untouched}, for it would be \
         empty and write over the files that are there; {next}"
    )))
}

/// Nobody may have the files open: not this container, and no other one with the same data.
async fn must_be_free(
    cx: &ActionContext<'_>,
    server: &RedisServer,
    files: &RedisFiles,
) -> Result<(), ActionError> {
    match server.container.status {
        Status::Exited | Status::Created | Status::Dead => {}
        _ => {
            return Err(ActionError::Other(format!(
                "{} runs: its files are not touched while it does",
                server.service
            )));
        }
    }
    let sharing = cx
        .system
        .docker
        .sharing_data(&server.container, &files.directory)
        .await?;
    if sharing.is_empty() {
        return Ok(());
    }
    Err(ActionError::Other(format!(
        "container {} runs on the same data: nothing is changed under it",
        sharing.join(", ")
    )))
}

pub(super) async fn keep_snapshot(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    files: &RedisFiles,
) -> Result<Outcome, ActionError> {
    let server = cx.system.redis(service).await?;
    script(cx, &server, run, files, &[], &["keep"]).await?;
    Ok(Outcome::new(format!(
        "{} is copied to {WORK_DIR}/{run}/snapshot",
        files.snapshot
    )))
}

pub(super) async fn put_snapshot_back(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    files: &RedisFiles,
) -> Result<Outcome, ActionError> {
    let server = cx.system.redis(service).await?;
    script(cx, &server, run, files, &[], &["keep-back"]).await?;
    Ok(Outcome::new(format!("{} is the one of before", files.snapshot)))
}

pub(super) async fn mend(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    files: &RedisFiles,
    mend: &FileMend,
) -> Result<Outcome, ActionError> {
    let server = cx.system.redis(service).await?;
    must_be_free(cx, &server, files).await?;
    let mut argv = vec!["mend"];
    match mend {
        FileMend::Manifest(lines) => {
            argv.push("manifest");
            argv.extend(lines.iter().map(String::as_str));
        }
        FileMend::Checksum => argv.push("checksum"),
        FileMend::Cut => argv.push("cut"),
        FileMend::FromSnapshot => argv.push("from-snapshot"),
        FileMend::Empty => argv.push("empty"),
    }
    script(cx, &server, run, files, &entries(files, mend), &argv).await?;
    let done = match mend {
        FileMend::Empty => "nothing is left for it to load",
        _ => "its own check tool accepts the new files, and they are in place",
    };
    Ok(Outcome::new(format!(
        "{done}; the old ones are kept in {}/{WORK_DIR}/{run}/old",
        files.directory
    )))
}

pub(super) async fn put_back(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    files: &RedisFiles,
) -> Result<Outcome, ActionError> {
    let server = cx.system.redis(service).await?;
    must_be_free(cx, &server, files).await?;
    script(cx, &server, run, files, &[], &["back"]).await?;
    Ok(Outcome::new(format!(
        "the old files of {service} are back; what was written since is kept in {WORK_DIR}/{run}/undone"
    )))
}

pub(super) async fn drop_kept(
    cx: &ActionContext<'_>,
    service: &str,
    run: &str,
    files: &RedisFiles,
) -> Result<Outcome, ActionError> {
    let server = cx.system.redis(service).await?;
    script(cx, &server, run, files, &[], &["drop"]).await?;
    Ok(Outcome::new(format!("{WORK_DIR}/{run} of {service} is dropped")))
}

pub(super) async fn warm(cx: &ActionContext<'_>, url: &str) -> Result<Outcome, ActionError> {
    let begun = Instant::now();
    let asked = match Http::new() {
        Ok(http) => http.send_text(url, "", WARM_LIMIT.min(cx.deadline)).await,
        Err(e) => Err(e),
    };
    let why = match asked {
        Ok(answer) if (200..300).contains(&answer.status) => {
            return Ok(Outcome::new(format!("{url} answered {}", answer.status))
                .fact("warm-seconds", begun.elapsed().as_secs_f64()));
        }
        Ok(answer) => format!("{url} answered {}", answer.status),
        Err(e) => format!("{url}: {e}"),
    };
    cx.warn(format!(
        "the cache could not be filled: {why}; it fills as it is used"
    ));
    Ok(Outcome::new(format!(
        "the cache is left to fill by itself: {why}"
    )))
}

#[cfg(test)]
mod tests {
    use super::SCRIPT;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::Command;

    /// Runs one verb on a directory; true when it went well. `tools` come before the system's.
    fn run(data: &Path, tools: Option<&Path>, verb: &str) -> bool {
        let system = std::env::var("PATH").unwrap();
        let path = tools.map_or_else(|| system.clone(), |t| format!("{}:{system}", t.display()));
        Command::new("/bin/sh")
            .args(["-c", SCRIPT, "redis-files", verb])
            .env("PATH", path)
            .env("DIR", data)
            .env("RUN", "run")
            .env("SNAPSHOT", "dump.rdb")
            .env("ENTRY", "appendonlydir")
            .env("NAME", "appendonly.aof")
            .status()
            .unwrap()
            .success()
    }

    #[test]
    fn an_undo_that_was_cut_off_does_not_cost_the_newer_snapshot() {
        let place = tempfile::tempdir().unwrap();
        let (data, tools) = (place.path().join("data"), place.path().join("tools"));
        fs::create_dir_all(&data).unwrap();
        fs::create_dir_all(&tools).unwrap();
        let snapshot = data.join("dump.rdb");
        fs::write(&snapshot, "older").unwrap();
        assert!(run(&data, None, "keep"));
        fs::write(&snapshot, "newer").unwrap();
        // It ends in the middle of the copy, as where the engine ends or the disk is full.
        let torn = "#!/bin/sh\nfor last; do :; done\n[ ! -d \"$last\" ] || last=$last/dump.rdb\nprintf ne >\"$last\"\nexit 1\n";
        fs::write(tools.join("cp"), torn).unwrap();
        fs::set_permissions(tools.join("cp"), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!run(&data, Some(&tools), "keep-back"));
        assert_eq!(fs::read_to_string(&snapshot).unwrap(), "newer");
        for _ in 0..2 {
            assert!(run(&data, None, "keep-back"));
            assert_eq!(fs::read_to_string(&snapshot).unwrap(), "older");
            let undone = data.join(".drctl/run/undone/dump.rdb");
            assert_eq!(fs::read_to_string(undone).unwrap(), "newer");
        }
    }
}
