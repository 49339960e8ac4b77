//! File systems that the services write to, and how full they are.
//!
//! Where the engine is on this machine the mounts are asked here, which costs nothing. Elsewhere `df` is asked inside a
//! container that has them: one process that starts no other.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::containers::ContainerState;
use crate::system::System;
use crate::workload::ContainerInfo;

/// Where an engine usually keeps its data; what does not exist is left out.
const HOST_PATHS: &[&str] = &["/", "/var/lib/docker"];

/// A file system, once, whatever is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileSystem {
    /// What it is called: the path on the host, or `SERVICE:PATH` inside a container.
    pub name: String,
    /// Services with data on it, in order.
    pub services: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes that an ordinary program may still write.
    pub free: u64,
}

impl FileSystem {
    /// Percent in use, as `df` says it: of what ordinary programs can have.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    pub fn percent(&self) -> f64 {
        self.used() as f64 * 100.0 / self.size.max(1) as f64
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.size.saturating_sub(self.free)
    }
}

/// One answer, before those of the same file system are brought together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// Tells whether two are the same.
    identity: String,
    name: String,
    service: Option<String>,
    size: u64,
    free: u64,
}

/// All of them; and for each service that could not be asked, why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileSystems {
    /// The file systems, those of the host first.
    pub found: Vec<FileSystem>,
    /// `SERVICE: why`.
    pub unknown: Vec<String>,
}

/// Looks at the host's file systems (when it is this machine) and at those below the services' writable mounts.
pub async fn look(
    system: &System,
    containers: &BTreeMap<String, ContainerState>,
    deadline: Duration,
) -> FileSystems {
    let mut seen = Vec::new();
    let mut unknown = Vec::new();
    let mounted = containers
        .iter()
        .filter_map(|(name, state)| Some((name, &state.found()?.info)))
        .filter(|(_, info)| info.mounts.iter().any(|m| m.writable));
    if system.docker.is_local() {
        seen.extend(of_host(deadline).await);
    }
    let answers = join_all(
        mounted.map(|(name, info)| async move { (name, of_container(system, name, info, deadline).await) }),
    );
    for (name, answer) in answers.await {
        match answer {
            Ok(more) => seen.extend(more),
            Err(why) => unknown.push(format!("{name}: {why}")),
        }
    }
    FileSystems {
        found: merge(seen),
        unknown,
    }
}

/// Asks without ever waiting for longer than the deadline: a dead network file system blocks the call for good, in a
/// thread that is left behind.
async fn ask_here(path: String, deadline: Duration) -> Result<(u64, u64, u64), String> {
    let asking = tokio::task::spawn_blocking(move || {
        let stat = rustix::fs::statvfs(&*path).map_err(|e| e.to_string())?;
        let device = std::fs::metadata(&path).map_err(|e| e.to_string())?.dev();
        let unit = stat.f_frsize;
        // As df: what only root may use counts neither as free nor as there.
        let usable = stat
            .f_blocks
            .saturating_sub(stat.f_bfree.saturating_sub(stat.f_bavail));
        Ok((device, usable * unit, stat.f_bavail * unit))
    });
    match tokio::time::timeout(deadline, asking).await {
        Err(_) => Err(format!("no answer within {}", crate::event::seconds(deadline))),
        Ok(Err(e)) => Err(e.to_string()),
        Ok(Ok(answer)) => answer,
    }
}

async fn of_host(deadline: Duration) -> Vec<Seen> {
    let asked = HOST_PATHS.iter().map(|path| async move {
        let (device, size, free) = ask_here((*path).to_owned(), deadline).await.ok()?;
        Some(Seen {
            identity: device.to_string(),
            name: (*path).to_owned(),
            service: None,
            size,
            free,
        })
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn of_container(
    system: &System,
    service: &str,
    info: &ContainerInfo,
    deadline: Duration,
) -> Result<Vec<Seen>, String> {
    let writable: Vec<_> = info.mounts.iter().filter(|m| m.writable).collect();
    if system.docker.is_local() {
        let asked = join_all(writable.iter().map(|m| ask_here(m.source.clone(), deadline))).await;
        let answers: Result<Vec<_>, _> = asked.into_iter().collect();
        // A path that is not here: the engine is in a virtual machine, or we are in a container. It is asked as one
        // that is elsewhere.
        if let Ok(answers) = answers {
            return Ok(writable
                .iter()
                .zip(answers)
                .map(|(mount, (device, size, free))| Seen {
                    identity: device.to_string(),
                    name: format!("{service}:{}", mount.destination),
                    service: Some(service.to_owned()),
                    size,
                    free,
                })
                .collect());
        }
    }
    if !info.is_running() {
        return Err(format!(
            "container {} does not run, so it cannot be asked",
            info.name
        ));
    }
    let mut argv = vec!["df", "-Pk"];
    argv.extend(writable.iter().map(|m| m.destination.as_str()));
    let said = system
        .docker
        .exec(&info.id, None, &argv, deadline)
        .await
        .map_err(|e| e.to_string())?;
    let rows = parse(&said.stdout);
    if rows.is_empty() {
        return Err(format!(
            "df says nothing (exit code {}): {}",
            said.exit_code,
            said.stderr.trim()
        ));
    }
    Ok(rows
        .into_iter()
        .map(|(identity, size, free, path)| Seen {
            identity,
            name: format!("{service}:{path}"),
            service: Some(service.to_owned()),
            size,
            free,
        })
        .collect())
}

/// Rows of `df -Pk`: what tells two apart, bytes in all, bytes free, mount point.
fn parse(text: &str) -> Vec<(String, u64, u64, String)> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // The device's name may hold blanks; the five fields behind it do not.
            let at = fields.iter().position(|f| f.ends_with('%') && f.len() > 1)?;
            let number = |back: usize| fields.get(at.checked_sub(back)?)?.parse::<u64>().ok();
            let (used, free) = (number(2)? << 10, number(1)? << 10);
            let device = fields.get(..at.checked_sub(3)?)?.join(" ");
            let path = fields.get(at + 1..)?.join(" ");
            Some((format!("{device} {}", used + free), used + free, free, path))
        })
        .collect()
}

/// One entry for each file system, called by its first name, with everybody who is on it.
fn merge(seen: Vec<Seen>) -> Vec<FileSystem> {
    let mut found: Vec<(String, FileSystem)> = Vec::new();
    for one in seen {
        if let Some((_, known)) = found.iter_mut().find(|(id, _)| *id == one.identity) {
            known
                .services
                .extend(one.service.filter(|s| !known.services.contains(s)));
        } else if one.size > 0 {
            found.push((
                one.identity,
                FileSystem {
                    name: one.name,
                    services: one.service.into_iter().collect(),
                    size: one.size,
                    free: one.free,
                },
            ));
        }
    }
    found.into_iter().map(|(_, f)| f).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_df_are_read() {
        let text = "Filesystem     1024-blocks     Used Available Capacity Mounted on\n\
                    /dev/vda1         61611820 10248840  48202832      18% /var/lib/postgresql/data\n\
                    nas:/my share         1000      400       500      45% /backup set\n\
                    df: /nonexistent: No such file or directory\n";
        let rows = parse(text);
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert_eq!(rows[0].1, (10_248_840 + 48_202_832) << 10);
        assert_eq!(
            (rows[0].2, &*rows[0].3),
            (48_202_832 << 10, "/var/lib/postgresql/data")
        );
        assert_eq!(
            (&*rows[1].0, &*rows[1].3),
            ("nas:/my share 921600", "/backup set")
        );
        assert!(parse("").is_empty() && parse("sh: df: not found").is_empty());
    }

    #[test]
    fn each_file_system_is_listed_once_with_all_who_are_on_it() {
        let seen = |identity: &str, name: &str, service: Option<&str>, size| Seen {
            identity: identity.into(),
            name: name.into(),
            service: service.map(Into::into),
            size,
            free: size / 4,
        };
        let merged = merge(vec![
            seen("1", "/", None, 100),
            seen("1", "db:/data", Some("db"), 100),
            seen("2", "cache:/data", Some("cache"), 40),
            seen("1", "db:/wal", Some("db"), 100),
            seen("3", "db:/proc", Some("db"), 0),
        ]);
        let told: Vec<_> = merged.iter().map(|f| (&*f.name, f.services.join(","))).collect();
        assert_eq!(
            told,
            [("/", "db".to_owned()), ("cache:/data", "cache".to_owned())]
        );
        assert!((merged[0].percent() - 75.0).abs() < f64::EPSILON);
    }
}
