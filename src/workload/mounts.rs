//! Who else has the same files, and whether they are there.

use bollard::query_parameters as q;

use super::docker::Docker;
use super::{ContainerInfo, LABEL_DEPLOYMENT, WorkloadError};

/// Programs that are a PostgreSQL server, start one, or write into its files.
const SERVERS: [&str; 10] = [
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
];

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

    /// Names of those of [`Self::sharing_data`] in which a PostgreSQL server runs on the files, or
    /// may at any moment: two of them destroy the data, and the lock file keeps them apart within
    /// one container only. One that only reads, or that runs something else (a tool that ships
    /// the log, as many deployments have beside their server), is none. One whose processes the
    /// engine does not tell is taken for a server.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn servers_sharing_data(
        &self,
        container: &ContainerInfo,
        path: &str,
    ) -> Result<Vec<String>, WorkloadError> {
        let mut found = Vec::new();
        for other in self.sharers(container, path).await? {
            if !other.writable {
                continue;
            }
            let serves = match self.processes(&other.id).await {
                Ok(all) => all.is_empty() || all.iter().any(|p| may_serve(&p.command)),
                Err(_) => true,
            };
            if serves {
                found.push(other.name);
            }
        }
        Ok(found)
    }

    async fn sharers(&self, container: &ContainerInfo, path: &str) -> Result<Vec<Sharer>, WorkloadError> {
        let Some(mount) = container.mount_of(path) else {
            return Ok(Vec::new());
        };
        let options = q::ListContainersOptionsBuilder::default().all(false).build();
        let running = self
            .call(
                "the list of containers",
                self.deadline,
                self.api.list_containers(Some(options)),
            )
            .await?;
        let others = running.into_iter().filter_map(|c| {
            let ours = c
                .labels
                .as_ref()
                .is_some_and(|l| l.contains_key(LABEL_DEPLOYMENT));
            let id = c.id.unwrap_or_default();
            if ours || id == container.id {
                return None;
            }
            let mut same = c
                .mounts
                .iter()
                .flatten()
                .filter(|m| match (&mount.volume, &m.name) {
                    (Some(volume), Some(name)) => volume == name,
                    _ => m.source.as_deref() == Some(mount.source.as_str()),
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

    /// Whether a path is there, as the container sees it with its mounts; it need not run.
    ///
    /// # Errors
    /// The engine's trouble, as that of a mount that cannot be made.
    pub async fn has_path(&self, container: &str, path: &str) -> Result<bool, WorkloadError> {
        let options = q::ContainerArchiveInfoOptionsBuilder::default()
            .path(path)
            .build();
        let asked = self
            .call(
                &format!("{path} of container {container}"),
                self.deadline,
                self.api.get_container_archive_info(container, Some(options)),
            )
            .await;
        match asked {
            Ok(_) => Ok(true),
            Err(WorkloadError::NotFound { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Whether a process is of a server by its command line or title, as `postgres: checkpointer` or
/// `bash /usr/local/bin/docker-entrypoint.sh postgres`.
fn may_serve(command: &str) -> bool {
    command.split_whitespace().any(|word| {
        let program = word.rsplit('/').next().unwrap_or(word).trim_end_matches(':');
        SERVERS.contains(&program)
    })
}

#[cfg(test)]
mod tests {
    use super::may_serve;

    #[test]
    fn a_server_is_known_by_its_processes_and_a_tool_beside_it_is_none() {
        for server in [
            "postgres",
            "postgres: checkpointer ",
            "/usr/lib/postgresql/15/bin/postgres -D /d",
            "bash /usr/local/bin/docker-entrypoint.sh postgres -c fsync=on",
            "/usr/bin/python3 /usr/bin/patroni /etc/patroni.yml",
        ] {
            assert!(may_serve(server), "{server}");
        }
        for other in [
            "wal-g wal-receive /var/lib/postgresql/data",
            "/bin/postgres_exporter --web.listen-address=:9187",
            "tail -F /var/lib/postgresql/data/log/x.log",
            "sleep infinity",
        ] {
            assert!(!may_serve(other), "{other}");
        }
    }
}
