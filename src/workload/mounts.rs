//! Who else has the same files, and whether they are there.

use std::path::{Path, PathBuf};

use bollard::query_parameters as q;

use super::docker::Docker;
use super::{ContainerInfo, LABEL_DEPLOYMENT, WorkloadError};

/// A kind of server: how one that may write into its files is known.
#[derive(Debug, Clone, Copy)]
pub struct Servers {
    /// Programs that are one, start one, or write into its files.
    programs: &'static [&'static str],
    /// The directory of its data, where its container tells.
    data: fn(&ContainerInfo) -> Option<String>,
}

/// PostgreSQL.
pub const POSTGRES: Servers = Servers {
    programs: &[
        "postgres",
        "postmaster",
        "pg_ctl",
        "pg_ctlcluster",
        "initdb",
        "pg_basebackup",
        "pg_rewind",
        "pg_resetwal",
        "patroni",
        "stolon-keeper",
    ],
    data: |container| container.env_var("PGDATA").map(str::to_owned),
};

/// Redis, and what goes by its protocol and its files.
pub const REDIS: Servers = Servers {
    programs: &[
        "redis-server",
        "valkey-server",
        "keydb-server",
        "redis-stack-server",
        "redis-rdb-bgsave",
        "redis-aof-rewrite",
    ],
    data: |container| {
        let mut words = container.command.iter().flat_map(|w| w.split_whitespace());
        words.find(|w| w.eq_ignore_ascii_case("--dir"))?;
        Some(words.next()?.trim_matches(['"', '\'']).to_owned())
    },
};

/// Of the official image, while it prepares a start.
const ENTRY_POINT: &str = "docker-entrypoint.sh";
/// What only starts another program, which its arguments name.
const STARTERS: [&str; 12] = [
    "sh",
    "bash",
    "dash",
    "ash",
    "exec",
    "env",
    "tini",
    "dumb-init",
    "setpriv",
    "nice",
    "python",
    "python3",
];
/// The same, and its first argument is a user.
const AS_A_USER: [&str; 4] = ["gosu", "su-exec", "su", "runuser"];

/// Another container with the same mount.
struct Sharer {
    id: String,
    name: String,
    writable: bool,
}

impl Docker {
    /// Names of other containers that run and have the mount that holds `path` of this one, by
    /// volume or by directory. drctl's own helpers are left out.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn sharing_data(
        &self,
        container: &ContainerInfo,
        path: &str,
    ) -> Result<Vec<String>, WorkloadError> {
        let others = self.sharers(container, path).await?;
        Ok(others.into_iter().map(|o| o.name).collect())
    }

    /// Names of those of [`Self::sharing_data`] in which a server of a kind runs on the files, or
    /// may at any moment: two of them destroy the data, and the lock file keeps them apart within
    /// one container only. One that only reads, or that runs something else (a tool that ships
    /// the log, as many deployments have beside their server), is none. One whose processes the
    /// engine does not tell is taken for a server.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn servers_sharing_data(
        &self,
        servers: Servers,
        container: &ContainerInfo,
        path: &str,
    ) -> Result<Vec<String>, WorkloadError> {
        let mut found = Vec::new();
        for other in self.sharers(container, path).await? {
            if !other.writable {
                continue;
            }
            let theirs = self.inspect(&other.id).await.ok();
            let serves = match self.processes(&other.id).await {
                Ok(all) if !all.is_empty() => all.iter().any(|p| may_serve(servers, &p.command)),
                // Between two starts it has none: what it would run tells.
                _ => theirs
                    .as_ref()
                    .is_none_or(|t| may_serve(servers, &t.command.join(" "))),
            };
            // Two servers may have a directory each below one mount.
            let apart = theirs.as_ref().is_some_and(|t| {
                let data = (servers.data)(t).and_then(|d| place(t, &d));
                matches!((data, place(container, path)), (Some(theirs), Some(ours)) if !touch(&theirs, &ours))
            });
            if serves && !apart {
                found.push(other.name);
            }
        }
        Ok(found)
    }

    async fn sharers(&self, container: &ContainerInfo, path: &str) -> Result<Vec<Sharer>, WorkloadError> {
        let Some(ours) = place(container, path) else {
            return Ok(Vec::new());
        };
        let volume = container.mount_of(path).and_then(|m| m.volume.clone());
        let options = q::ListContainersOptionsBuilder::default().all(false).build();
        let running = self
            .call(
                "the list of containers",
                self.deadline,
                self.api.list_containers(Some(options)),
            )
            .await?;
        let others = running.into_iter().filter_map(|c| {
            let helper = c
                .labels
                .as_ref()
                .is_some_and(|l| l.contains_key(LABEL_DEPLOYMENT));
            let id = c.id.unwrap_or_default();
            if helper || id == container.id {
                return None;
            }
            let mut same = c
                .mounts
                .iter()
                .flatten()
                .filter(|m| match (&volume, &m.name) {
                    (Some(volume), Some(name)) => volume == name,
                    // A directory above it, or one in it, is the same files.
                    _ => m
                        .source
                        .as_deref()
                        .is_some_and(|s| !s.is_empty() && touch(Path::new(s), &ours)),
                })
                .peekable();
            same.peek()?;
            let writable = same.any(|m| m.rw != Some(false));
            let first = c.names.unwrap_or_default().into_iter().next().unwrap_or_default();
            Some(Sharer {
                id,
                name: first.trim_start_matches('/').to_owned(),
                writable,
            })
        });
        Ok(others.collect())
    }
}

/// Where a path of a container is on the engine's host. `None` where it has no mount, or one in
/// memory, which is nobody else's.
fn place(container: &ContainerInfo, path: &str) -> Option<PathBuf> {
    let mount = container.mount_of(path).filter(|m| !m.source.is_empty())?;
    let rest = path.strip_prefix(mount.destination.trim_end_matches('/'))?;
    Some(Path::new(&mount.source).join(rest.trim_start_matches('/')))
}

/// One is the other, or lies in it.
fn touch(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// Whether a process is of a server by its command line or title, as `postgres: checkpointer` or
/// `bash /usr/local/bin/docker-entrypoint.sh postgres`. Only the program counts: the name of a user
/// or a directory that some tool is given is none.
fn may_serve(servers: Servers, command: &str) -> bool {
    let mut words = command
        .split_whitespace()
        // Options, their numbers, and variables of `env`.
        .filter(|w| !w.starts_with('-') && !w.contains('=') && !w.starts_with(|c: char| c.is_ascii_digit()));
    while let Some(word) = words.next() {
        let program = word.rsplit('/').next().unwrap_or(word).trim_end_matches(':');
        if servers.programs.contains(&program) || program == ENTRY_POINT {
            return true;
        }
        if AS_A_USER.contains(&program) {
            words.next();
        } else if !STARTERS.contains(&program) {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{POSTGRES, REDIS, may_serve, touch};

    #[test]
    fn a_server_is_known_by_its_processes_and_a_tool_beside_it_is_none() {
        for server in [
            "postgres",
            "postgres: checkpointer ",
            "/usr/lib/postgresql/15/bin/postgres -D /d",
            "bash /usr/local/bin/docker-entrypoint.sh postgres -c fsync=on",
            "/usr/bin/python3 /usr/bin/patroni /etc/patroni.yml",
            "docker-entrypoint.sh postgres",
            "gosu postgres postgres -D /d",
            "tini -- docker-entrypoint.sh postgres",
            "su postgres -c postgres -D /d",
            "sh -c exec postgres -D /d",
            "setpriv --reuid 999 --clear-groups /usr/lib/postgresql/15/bin/postgres -D /d",
        ] {
            assert!(may_serve(POSTGRES, server), "{server}");
        }
        for other in [
            "wal-g wal-receive /var/lib/postgresql/data",
            "/bin/postgres_exporter --web.listen-address=:9187",
            "tail -F /var/lib/postgresql/data/log/x.log",
            "sleep infinity",
            "psql -h db -U postgres",
            "su postgres -c pgbackrest backup",
            "su - postgres -c pgbackrest backup",
            "sh -c psql -U postgres",
            "rsync -a /srv/postgres /backup",
            "gosu postgres pgbackrest archive-push",
        ] {
            assert!(!may_serve(POSTGRES, other), "{other}");
        }
        for server in [
            "redis-server *:6379",
            "/usr/local/bin/redis-server 0.0.0.0:6379",
            "redis-rdb-bgsave 0.0.0.0:6379",
            "docker-entrypoint.sh redis-server /etc/redis.conf",
            "setpriv --reuid=redis --regid=redis --clear-groups redis-server *:6379",
        ] {
            assert!(may_serve(REDIS, server), "{server}");
        }
        for other in [
            "redis_exporter",
            "redis-cli -h redis monitor",
            "restic backup /data",
        ] {
            assert!(!may_serve(REDIS, other), "{other}");
        }
    }

    #[test]
    fn a_directory_above_or_below_holds_the_same_files() {
        let touch = |a, b| touch(Path::new(a), Path::new(b));
        assert!(touch("/srv/pg", "/srv/pg/data") && touch("/srv/pg/data", "/srv/pg"));
        assert!(!touch("/srv/pg", "/srv/pg2") && !touch("/srv/a", "/srv/b"));
    }
}
