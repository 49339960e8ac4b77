//! Who else has the same files.

use bollard::query_parameters as q;

use super::docker::Docker;
use super::{ContainerInfo, LABEL_DEPLOYMENT, WorkloadError};

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
        let others = running.into_iter().filter(|c| {
            let ours = c
                .labels
                .as_ref()
                .is_some_and(|l| l.contains_key(LABEL_DEPLOYMENT));
            let same = c.mounts.iter().flatten().any(|m| match (&mount.volume, &m.name) {
                (Some(volume), Some(name)) => volume == name,
                _ => m.source.as_deref() == Some(mount.source.as_str()),
            });
            !ours && same && c.id.as_deref() != Some(container.id.as_str())
        });
        let name = |names: Option<Vec<String>>| {
            let first = names.unwrap_or_default().into_iter().next().unwrap_or_default();
            first.trim_start_matches('/').to_owned()
        };
        Ok(others.map(|c| name(c.names)).collect())
    }
}
