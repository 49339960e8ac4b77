//! What takes room on the engine's disk, of one Compose project. `docker system df` and the
//! prune commands see everybody's; these see one deployment's.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::ImageSummary;
use bollard::query_parameters as q;
use jiff::Timestamp;

use super::WorkloadError;
use super::docker::Docker;

/// Label by which Compose marks what it has built, and what it runs.
const PROJECT: &str = "com.docker.compose.project";

/// An image without a name and a use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamelessImage {
    /// Its identifier.
    pub id: String,
    /// Bytes of all its layers.
    pub bytes: u64,
    /// Bytes of the layers that no other image has; 0 where the engine does not tell.
    pub own_bytes: u64,
}

fn nameless(image: ImageSummary) -> NamelessImage {
    // Engines before API 1.42 say -1 here: they do not look.
    let own = (image.shared_size >= 0).then(|| image.size.saturating_sub(image.shared_size));
    NamelessImage {
        id: image.id,
        bytes: u64::try_from(image.size).unwrap_or_default(),
        own_bytes: own.and_then(|n| u64::try_from(n).ok()).unwrap_or_default(),
    }
}

impl Docker {
    /// Where the engine keeps its data, on its own host.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn data_root(&self) -> Result<String, WorkloadError> {
        let info = self
            .call("the engine's data directory", self.deadline, self.api.info())
            .await?;
        Ok(info.docker_root_dir.unwrap_or_default())
    }

    /// What time it is on the engine's host: its time stamps count by that clock.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn clock(&self) -> Result<Option<Timestamp>, WorkloadError> {
        let info = self
            .call("the clock of the engine's host", self.deadline, self.api.info())
            .await?;
        Ok(info.system_time.and_then(|t| t.parse().ok()))
    }

    /// Bytes of memory of the engine's host.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn host_memory(&self) -> Result<u64, WorkloadError> {
        let info = self
            .call("the memory of the engine's host", self.deadline, self.api.info())
            .await?;
        Ok(u64::try_from(info.mem_total.unwrap_or_default()).unwrap_or_default())
    }

    /// The file that a container's output goes to, on the engine's host; `None` for a log driver
    /// other than `json-file`.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn log_file(&self, container: &str) -> Result<Option<PathBuf>, WorkloadError> {
        let raw = self
            .call(
                &format!("container {container}"),
                self.deadline,
                self.api
                    .inspect_container(container, None::<q::InspectContainerOptions>),
            )
            .await?;
        let driver = raw
            .host_config
            .and_then(|h| h.log_config)
            .and_then(|l| l.typ)
            .unwrap_or_default();
        Ok(raw
            .log_path
            .filter(|p| driver == "json-file" && !p.is_empty())
            .map(PathBuf::from))
    }

    /// Images that Compose built for a project, that have lost their name to a newer build, and
    /// that no container uses, running or not.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn nameless_images(&self, project: &str) -> Result<Vec<NamelessImage>, WorkloadError> {
        let filters = HashMap::from([
            ("dangling".to_owned(), vec!["true".to_owned()]),
            ("label".to_owned(), vec![format!("{PROJECT}={project}")]),
        ]);
        let options = q::ListImagesOptionsBuilder::default()
            .filters(&filters)
            .shared_size(true)
            .build();
        let images = self
            .call(
                "the list of images",
                self.deadline,
                self.api.list_images(Some(options)),
            )
            .await?;
        let everybody = q::ListContainersOptionsBuilder::default().all(true).build();
        let containers = self
            .call(
                "the list of containers",
                self.deadline,
                self.api.list_containers(Some(everybody)),
            )
            .await?;
        Ok(images
            .into_iter()
            .filter(|i| {
                // Asked for once more: an engine that ignored the filter would show everybody's.
                i.labels.get(PROJECT).map(String::as_str) == Some(project)
                    && !containers.iter().any(|c| c.image_id.as_ref() == Some(&i.id))
                    && i.repo_tags.iter().all(|t| t.starts_with("<none>"))
            })
            .map(nameless)
            .collect())
    }

    /// Removes an image by its identifier. One that a container uses, or that another image
    /// stands on, stays; gone is fine. Tells whether it went.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn remove_image(&self, id: &str) -> Result<bool, WorkloadError> {
        let options = q::RemoveImageOptionsBuilder::default()
            .force(false)
            .noprune(true)
            .build();
        let gone = self
            .call(
                &format!("removal of image {id}"),
                self.deadline.max(std::time::Duration::from_secs(60)),
                self.api.remove_image(id, Some(options), None),
            )
            .await;
        match gone {
            Ok(_) => Ok(true),
            Err(WorkloadError::NotFound { .. } | WorkloadError::Engine { status: 409, .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_another_image_has_are_not_counted_as_its_own() {
        let own = |size, shared_size| {
            nameless(ImageSummary {
                size,
                shared_size,
                ..ImageSummary::default()
            })
            .own_bytes
        };
        assert_eq!(own(900, 880), 20);
        assert_eq!(own(900, 0), 900);
        assert_eq!(own(900, -1), 0, "not told");
        assert_eq!(own(900, 901), 0);
    }
}
