//! Single files of a container, by the engine's archive calls: the container need not run, and
//! nothing of its image is needed.

use std::io::Read;

use bollard::query_parameters as q;
use futures_util::StreamExt;

use super::WorkloadError;
use super::docker::Docker;

/// Bytes that are read of a file at most: a configuration, not data.
const SMALL: usize = 1 << 20;
/// A header of an archive.
const TAR_BLOCK: usize = 512;

impl Docker {
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

    /// The content of a small file, as the container sees it with its mounts; it need not run. At
    /// most 1 MiB of it, and `None` where there is no such file.
    ///
    /// # Errors
    /// The engine's trouble, as that of a mount that cannot be made.
    pub async fn read_small(&self, container: &str, path: &str) -> Result<Option<String>, WorkloadError> {
        let options = q::DownloadFromContainerOptionsBuilder::default()
            .path(path)
            .build();
        let what = format!("{path} of container {container}");
        let asked = self.call(&what, self.deadline, async {
            let mut stream = self.api.download_from_container(container, Some(options));
            let mut archive = Vec::new();
            // One header stands before the content. What is longer is cut off by ending the stream.
            while archive.len() < SMALL + TAR_BLOCK
                && let Some(chunk) = stream.next().await
            {
                archive.extend_from_slice(&chunk?);
            }
            Ok(archive)
        });
        match asked.await {
            Ok(archive) => Ok(first_file(&archive)),
            Err(WorkloadError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The beginning of the first regular file of an archive that may end anywhere.
fn first_file(archive: &[u8]) -> Option<String> {
    let mut archive = tar::Archive::new(archive);
    let mut file = archive
        .entries()
        .ok()?
        .flatten()
        .find(|e| e.header().entry_type().is_file())?;
    let mut content = Vec::new();
    // An archive that ends early has given its bytes before it says so.
    let _ = file.read_to_end(&mut content);
    content.truncate(SMALL);
    Some(String::from_utf8_lossy(&content).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(name: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_file_that_was_cut_off_has_its_beginning() {
        let whole = archive("redis.conf", b"dir /data\nappendonly yes\n");
        assert_eq!(first_file(&whole).unwrap(), "dir /data\nappendonly yes\n");
        assert_eq!(first_file(&whole[..TAR_BLOCK + 9]).unwrap(), "dir /data");
        assert_eq!(first_file(&[]), None);
    }

    #[test]
    fn a_directory_is_no_file() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir("conf", ".").unwrap();
        assert_eq!(first_file(&builder.into_inner().unwrap()), None);
    }
}
