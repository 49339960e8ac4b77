//! Directories of this machine for helpers to read and write, wherever the engine is.
//!
//! A local engine mounts the directory itself. A remote one cannot see it: there a volume
//! takes its place, and the files travel through the connection as one compressed tar
//! stream. What a helper does is the same in both cases; only the mount's source differs.
//!
//! The volume belongs to a holder: a helper that does nothing and whose anonymous volume it
//! is. The engine removes such a volume together with its container, and the container ends
//! a while after drctl does, like every helper. What is left all the same (a volume that
//! another helper still used then) goes when drctl next works for the deployment.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as BollardError;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::query_parameters as q;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::transfer::{self, Packing};
use super::{Docker, Helper, HelperMount, HelperSpec, WorkloadError};

/// Where the holder has the volume.
const PLACE: &str = "/staging";
/// Chunks that may be on their way between the engine and the thread that packs them.
const IN_FLIGHT: usize = 16;
/// How much of a tool's complaint is kept.
const WORDS_LIMIT: usize = 4 << 10;
/// Makes the place its user's and says whether there is a better packing than none, and how
/// many KiB are free.
const PREPARE: &str = r#"
set -e
chown "$1" /staging; chmod 700 /staging
if command -v zstd >/dev/null; then echo zstd; else echo plain; fi
df -Pk /staging | awk 'NR == 2 { print $4 }'
"#;
/// A pipe's exit code is that of its last command: the marks are for the first.
const SEND_ZSTD: &str =
    "cd /staging && { tar -cf - . || : >/tmp/failed; } | zstd -q -1 -T0 -c && [ ! -e /tmp/failed ]";
const SEND_PLAIN: &str = "cd /staging && tar -cf - .";
const TAKE_ZSTD: &str = "cd /staging && zstd -q -d -c | tar -xpf -";
const TAKE_PLAIN: &str = "cd /staging && tar -xpf -";

/// For whom and what a directory is made available, as [`HelperSpec`] has it.
#[derive(Debug, Clone, Copy)]
pub struct StagingSpec<'a> {
    /// The deployment, for the label.
    pub deployment: &'a str,
    /// The run, for the label.
    pub run: &'a str,
    /// What it is for, for the label and the name.
    pub purpose: &'a str,
    /// Image of the helper that will use it.
    pub image: &'a str,
}

/// A directory of this machine that a helper can use.
#[derive(Debug)]
pub struct Staging {
    directory: PathBuf,
    far: Option<Far>,
}

/// The volume on a remote engine.
#[derive(Debug)]
struct Far {
    docker: Docker,
    holder: Helper,
    volume: String,
    packing: Packing,
    free: u64,
    closed: bool,
}

/// Bytes that were transferred so far, for whoever watches.
pub type Meter = Arc<AtomicU64>;

impl Staging {
    /// For a helper to write into, as `owner` (`uid:gid`). Then [`Self::fetch`] brings what
    /// it wrote into `directory`, which is empty.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn empty(
        docker: &Docker,
        spec: StagingSpec<'_>,
        directory: &Path,
        owner: &str,
    ) -> Result<Self, WorkloadError> {
        let far = if docker.is_local() {
            None
        } else {
            Some(Far::create(docker, spec, owner).await?)
        };
        Ok(Self {
            directory: directory.to_owned(),
            far,
        })
    }

    /// For a helper to read what `directory` holds. `copies` says how often the bytes must
    /// fit on the far side, for a helper that makes a copy.
    ///
    /// # Errors
    /// The engine's trouble, no room on the far side, a failed transfer.
    pub async fn filled(
        docker: &Docker,
        spec: StagingSpec<'_>,
        directory: &Path,
        copies: u64,
        deadline: Duration,
        sent: &Meter,
    ) -> Result<Self, WorkloadError> {
        let staging = Self::empty(docker, spec, directory, "0:0").await?;
        if let Some(far) = &staging.far {
            let needed = transfer::size(directory) * copies;
            if needed > far.free {
                return Err(WorkloadError::Transfer {
                    what: format!("sending {} to {}", directory.display(), docker.host()),
                    cause: format!(
                        "{} are needed there and {} are free",
                        crate::event::bytes(needed),
                        crate::event::bytes(far.free)
                    ),
                });
            }
            far.send(directory, deadline, sent).await?;
        }
        Ok(staging)
    }

    /// True when the directory itself is used and nothing is transferred.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.far.is_none()
    }

    /// The mount for a helper.
    #[must_use]
    pub fn mount(&self, target: &str, read_only: bool) -> HelperMount {
        HelperMount {
            source: match &self.far {
                Some(far) => far.volume.clone(),
                None => self.directory.display().to_string(),
            },
            target: target.to_owned(),
            read_only,
        }
    }

    /// Brings what helpers have written into the directory.
    ///
    /// # Errors
    /// A failed transfer; the directory then holds a part.
    pub async fn fetch(&self, deadline: Duration, received: &Meter) -> Result<(), WorkloadError> {
        match &self.far {
            Some(far) => far.fetch(&self.directory, deadline, received).await,
            None => Ok(()),
        }
    }

    /// Removes what stands for the directory on the far side. Without this it goes a little
    /// later.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn close(mut self) -> Result<(), WorkloadError> {
        match self.far.take() {
            Some(mut far) => {
                far.closed = true;
                far.docker.remove(&far.holder.id).await
            }
            None => Ok(()),
        }
    }
}

impl Drop for Far {
    /// After a failure: not left to the far side, which may take long to notice that a
    /// connection is dead.
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (docker, id) = (self.docker.clone(), self.holder.id.clone());
            runtime.spawn(async move { docker.remove(&id).await });
        }
    }
}

impl Far {
    async fn create(docker: &Docker, spec: StagingSpec<'_>, owner: &str) -> Result<Self, WorkloadError> {
        let mut holder = HelperSpec::new(
            spec.deployment,
            spec.run,
            &format!("{}-staging", spec.purpose),
            spec.image,
            &["sleep", "2147483647"],
        );
        holder.mounts.push(HelperMount {
            source: String::new(),
            target: PLACE.to_owned(),
            read_only: false,
        });
        // A signal that ends nothing: so it goes last, 20 seconds after drctl, and its volume
        // is in nobody's use any more.
        holder.stop_signal = "CONT";
        let holder = docker.spawn_helper(&holder).await?;
        let prepared = async {
            let info = holder.inspect().await?;
            let volume = info.mount_of(PLACE).and_then(|m| m.volume.clone());
            let argv = ["/bin/sh", "-c", PREPARE, "prepare", owner];
            let said = docker
                .exec(
                    &holder.id,
                    None,
                    &argv,
                    docker.deadline.max(Duration::from_secs(10)),
                )
                .await?;
            let mut lines = said.stdout.lines();
            match (said.exit_code, volume, lines.next()) {
                (0, Some(volume), Some(packing)) => Ok((
                    volume,
                    if packing == "zstd" {
                        Packing::Zstd
                    } else {
                        Packing::Plain
                    },
                    lines.next().and_then(|n| n.parse::<u64>().ok()),
                )),
                _ => Err(WorkloadError::Transfer {
                    what: format!("a volume for {}", spec.purpose),
                    cause: said.stderr.trim().to_owned(),
                }),
            }
        }
        .await;
        match prepared {
            Ok((volume, packing, free)) => Ok(Self {
                docker: docker.clone(),
                holder,
                volume,
                packing,
                free: free.map_or(u64::MAX, |kib| kib.saturating_mul(1024)),
                closed: false,
            }),
            Err(e) => {
                let _ = docker.remove(&holder.id).await;
                Err(e)
            }
        }
    }

    async fn send(&self, directory: &Path, deadline: Duration, sent: &Meter) -> Result<(), WorkloadError> {
        let what = format!("sending {} to {}", directory.display(), self.docker.host);
        let (tell, mut chunks) = mpsc::channel::<Bytes>(IN_FLIGHT);
        let (from, packing, meter) = (directory.to_owned(), self.packing, sent.clone());
        let packer = tokio::task::spawn_blocking(move || transfer::pack(&from, packing, tell, meter));
        let script = match self.packing {
            Packing::Zstd => TAKE_ZSTD,
            Packing::Plain => TAKE_PLAIN,
        };
        let work = async {
            let (id, mut output, mut input) = self.start(&what, script, true).await?;
            let writing = async {
                while let Some(chunk) = chunks.recv().await {
                    // The tool has ended early: its exit code and words say why.
                    if input.write_all(&chunk).await.is_err() {
                        break;
                    }
                }
                drop(chunks);
                let _ = input.shutdown().await;
            };
            let reading = async {
                let mut words = Vec::new();
                while let Some(chunk) = output.next().await {
                    keep(&mut words, &chunk?.into_bytes());
                }
                Ok::<_, BollardError>(words)
            };
            let ((), words) = tokio::join!(writing, reading);
            self.ended(&what, &id, words).await
        };
        let done = self.within(&what, deadline, work).await;
        let packed = packer.await;
        // When the far side failed, the packer only saw that nobody takes its bytes.
        done?;
        joined(&what, packed)
    }

    async fn fetch(
        &self,
        directory: &Path,
        deadline: Duration,
        received: &Meter,
    ) -> Result<(), WorkloadError> {
        let what = format!("fetching {} from {}", directory.display(), self.docker.host);
        let (tell, chunks) = mpsc::channel::<Bytes>(IN_FLIGHT);
        let (to, packing, meter) = (directory.to_owned(), self.packing, received.clone());
        let unpacker = tokio::task::spawn_blocking(move || transfer::unpack(&to, packing, chunks, meter));
        let script = match self.packing {
            Packing::Zstd => SEND_ZSTD,
            Packing::Plain => SEND_PLAIN,
        };
        let work = async {
            let (id, mut output, _input) = self.start(&what, script, false).await?;
            let mut words = Vec::new();
            let mut taken = true;
            while let Some(chunk) = output.next().await {
                match chunk {
                    Ok(LogOutput::StdErr { message }) => keep(&mut words, &message),
                    Ok(other) => {
                        taken = tell.send(other.into_bytes()).await.is_ok();
                        if !taken {
                            break;
                        }
                    }
                    Err(e) => return Err(self.docker.classify(&what, &e).await),
                }
            }
            // Its end is the end of the stream, for the thread that unpacks.
            drop(tell);
            if taken {
                self.ended(&what, &id, Ok(words)).await
            } else {
                Ok(())
            }
        };
        let done = self.within(&what, deadline, work).await;
        let unpacked = unpacker.await;
        done?;
        joined(&what, unpacked)
    }

    async fn within<T>(
        &self,
        what: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, WorkloadError>>,
    ) -> Result<T, WorkloadError> {
        match tokio::time::timeout(deadline, work).await {
            Ok(done) => done,
            Err(_) => Err(WorkloadError::Timeout {
                host: self.docker.host.clone(),
                what: what.to_owned(),
                deadline,
            }),
        }
    }

    /// Starts a script in the holder.
    async fn start(
        &self,
        what: &str,
        script: &str,
        stdin: bool,
    ) -> Result<(String, Output, Input), WorkloadError> {
        let options = CreateExecOptions {
            attach_stdin: Some(stdin),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(["/bin/sh", "-c", script].map(str::to_owned).to_vec()),
            ..CreateExecOptions::default()
        };
        let deadline = self.docker.deadline.max(Duration::from_secs(30));
        let start = async {
            let id = self.docker.api.create_exec(&self.holder.id, options).await?.id;
            let started = self.docker.api.start_exec(&id, None).await?;
            Ok((id, started))
        };
        match self.docker.call(what, deadline, start).await? {
            (id, StartExecResults::Attached { output, input }) => Ok((id, output, input)),
            (_, StartExecResults::Detached) => Err(WorkloadError::Transfer {
                what: what.to_owned(),
                cause: "the engine did not attach to it".into(),
            }),
        }
    }

    /// The exit code decides, not the end of the stream.
    async fn ended(
        &self,
        what: &str,
        id: &str,
        words: Result<Vec<u8>, BollardError>,
    ) -> Result<(), WorkloadError> {
        let words = match words {
            Ok(words) => words,
            Err(e) => return Err(self.docker.classify(what, &e).await),
        };
        let asked = self
            .docker
            .call(what, self.docker.deadline, self.docker.api.inspect_exec(id));
        match asked.await?.exit_code {
            Some(0) => Ok(()),
            code => Err(WorkloadError::Transfer {
                what: what.to_owned(),
                cause: format!(
                    "the far side ended with exit code {}: {}",
                    code.unwrap_or(-1),
                    String::from_utf8_lossy(&words).trim().replace('\n', "; ")
                ),
            }),
        }
    }
}

type Output = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<LogOutput, BollardError>> + Send>>;
type Input = std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>;

fn keep(words: &mut Vec<u8>, more: &[u8]) {
    let room = WORDS_LIMIT.saturating_sub(words.len());
    words.extend_from_slice(more.get(..room.min(more.len())).unwrap_or_default());
}

fn joined(
    what: &str,
    done: Result<std::io::Result<()>, tokio::task::JoinError>,
) -> Result<(), WorkloadError> {
    let cause = match done {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(e)) => e.to_string(),
        Err(e) => e.to_string(),
    };
    Err(WorkloadError::Transfer {
        what: what.to_owned(),
        cause,
    })
}

/// How far a transfer has come.
#[must_use]
pub fn metered(meter: &Meter) -> u64 {
    meter.load(Ordering::Relaxed)
}

impl Docker {
    /// Removes the volumes of this deployment that are nobody's any more: their holder was
    /// killed before it could take them along. The engine refuses to remove one in use.
    /// Best effort: the next run tries again.
    pub(super) async fn remove_abandoned_volumes(&self, deployment: &str) {
        let filters = HashMap::from([(
            "label".to_owned(),
            vec![
                format!("{}={deployment}", super::LABEL_DEPLOYMENT),
                super::LABEL_PURPOSE.to_owned(),
            ],
        )]);
        let options = q::ListVolumesOptionsBuilder::default().filters(&filters).build();
        let listed = self
            .call(
                "the list of volumes",
                self.deadline,
                self.api.list_volumes(Some(options)),
            )
            .await;
        for volume in listed.ok().and_then(|l| l.volumes).unwrap_or_default() {
            let _ = self
                .call(
                    "the removal of a volume",
                    self.deadline.max(Duration::from_secs(10)),
                    self.api
                        .remove_volume(&volume.name, None::<q::RemoveVolumeOptions>),
                )
                .await;
        }
    }
}
