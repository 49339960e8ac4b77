//! Ways to ports that an engine on another host does not publish, where there is no SSH to
//! forward them: through the engine's own API.
//!
//! A helper in the container's network does nothing but wait, and each connection to a socket
//! of this machine becomes a small relay inside it. Whole databases do not come this way, only
//! questions: what is large is read and written by helpers over there.

use std::path::{Path, PathBuf};

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecResults};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::{ContainerInfo, Docker, Helper, HelperNetwork, HelperSpec, WorkloadError};

/// Copies both ways between the standard streams and `$1` port `$2`, until either side ends.
/// `bash` opens the connection itself; Alpine's images have `nc` of busybox.
const RELAY: &str = r#"
if command -v bash >/dev/null; then
  exec bash -c '
    exec 3<>"/dev/tcp/$1/$2" || exit 7
    exec 4<&0
    cat <&3 & from=$!
    cat <&4 >&3 & to=$!
    wait -n
    kill "$from" "$to" 2>/dev/null
    exit 0' relay "$1" "$2"
fi
exec nc "$1" "$2"
"#;

/// A way to one port of one run of a container. Dropping it ends the helper.
#[derive(Debug)]
pub(super) struct Bridge {
    dir: PathBuf,
    accepting: JoinHandle<()>,
    helper: Helper,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Bridge {
    /// Starts the helper and listens. The container must run.
    ///
    /// # Errors
    /// The engine's trouble; no directory for the socket.
    pub(super) async fn open(
        docker: &Docker,
        deployment: &str,
        container: &ContainerInfo,
        port: u16,
    ) -> Result<Self, WorkloadError> {
        let fail = |e: std::io::Error| WorkloadError::Transport {
            what: format!(
                "a socket that leads to port {port} of container {}",
                container.name
            ),
            cause: e.to_string(),
        };
        let dir = super::ssh::private_dir("bridge").map_err(fail)?;
        // What follows must not leave the directory behind.
        let opened = async {
            let listener = UnixListener::bind(dir.join(format!(".s.PGSQL.{port}"))).map_err(fail)?;
            let mut spec = HelperSpec::new(
                deployment,
                &format!("bridge-{}", std::process::id()),
                "port-bridge",
                &container.image_id,
                &["sleep", "2147483647"],
            );
            spec.network = HelperNetwork::Container(container.id.clone());
            Ok::<_, WorkloadError>((listener, docker.spawn_helper(&spec).await?))
        }
        .await;
        let (listener, helper) = match opened {
            Ok(both) => both,
            Err(e) => {
                let _ = std::fs::remove_dir_all(&dir);
                return Err(e);
            }
        };
        // At the container's own address: many images let everybody in who comes from 127.0.0.1.
        let address = container.address().unwrap_or("127.0.0.1").to_owned();
        let (api, id) = (docker.api.clone(), helper.id.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let argv = ["/bin/sh", "-c", RELAY, "relay", &address, &port.to_string()].map(str::to_owned);
                // A connection that does not come about is closed, as by a port that nobody
                // listens on.
                tokio::spawn(relay(api.clone(), id.clone(), argv.to_vec(), stream));
            }
        });
        Ok(Self {
            dir,
            accepting,
            helper,
        })
    }

    /// Directory of the socket `.s.PGSQL.PORT`.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the helper still runs: an engine that was restarted has ended it.
    pub(super) async fn stands(&self) -> bool {
        !self.accepting.is_finished() && self.helper.inspect().await.is_ok_and(|i| i.is_running())
    }
}

async fn relay(
    api: bollard::Docker,
    helper: String,
    argv: Vec<String>,
    stream: UnixStream,
) -> Result<(), bollard::errors::Error> {
    let options = CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        cmd: Some(argv),
        ..CreateExecOptions::default()
    };
    let exec = api.create_exec(&helper, options).await?.id;
    let StartExecResults::Attached {
        mut output,
        mut input,
    } = api.start_exec(&exec, None).await?
    else {
        return Ok(());
    };
    let (mut from, mut to) = stream.into_split();
    let up = async {
        let _ = tokio::io::copy(&mut from, &mut input).await;
        let _ = input.shutdown().await;
    };
    let down = async {
        while let Some(Ok(chunk)) = output.next().await {
            if let LogOutput::StdOut { message } = chunk
                && to.write_all(&message).await.is_err()
            {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    // The server's end of the conversation is the end; the client's is told to the server.
    tokio::pin!(down);
    tokio::select! {
        () = &mut down => {}
        () = up => {
            let _ = tokio::time::timeout(std::time::Duration::from_secs(5), down).await;
        }
    }
    Ok(())
}
