//! A server on a side data directory that nobody but drctl knows: on the engine's default
//! bridge, without a published port, under a lease, with archiving and replication off.

use std::time::Duration;

use super::{ActionContext, ActionError};
use crate::postgres::{Client, ConnectSpec};
use crate::system::PostgresServer;
use crate::workload::{Helper, HelperNetwork, WorkloadError};

const PORT: u16 = 5432;
const POLL: Duration = Duration::from_millis(100);

/// A running side server.
pub(super) struct SideServer {
    helper: Helper,
    /// As the administrator, to the administration database, read-only.
    pub admin: ConnectSpec,
}

/// Why a side server does not run.
pub(super) enum NotStarted {
    /// It ended by itself; its last words.
    Ended(String),
    /// Something else went wrong.
    Other(ActionError),
}

impl From<ActionError> for NotStarted {
    fn from(e: ActionError) -> Self {
        Self::Other(e)
    }
}

impl From<NotStarted> for ActionError {
    fn from(e: NotStarted) -> Self {
        match e {
            NotStarted::Ended(words) => Self::Other(format!("the side server does not start: {words}")),
            NotStarted::Other(e) => e,
        }
    }
}

impl SideServer {
    /// Starts a server on `directory` (as the service's container sees it) and waits
    /// until it has ended recovery.
    pub(super) async fn start(
        cx: &ActionContext<'_>,
        server: &PostgresServer,
        owner: &str,
        directory: &str,
        settings: &[(&str, String)],
    ) -> Result<Self, NotStarted> {
        let mut argv: Vec<String> = vec!["postgres".into(), "-D".into(), directory.into()];
        let port = PORT.to_string();
        // hot_standby off: the limits of the primary (max_connections …) need not be met.
        for (name, value) in [
            ("listen_addresses", "*"),
            ("port", port.as_str()),
            ("unix_socket_directories", "/tmp"),
            ("archive_mode", "off"),
            ("hot_standby", "off"),
            ("logging_collector", "off"),
            ("primary_conninfo", ""),
            ("ssl", "off"),
        ]
        .into_iter()
        .chain(settings.iter().map(|(n, v)| (*n, v.as_str())))
        {
            argv.push("-c".into());
            argv.push(format!("{name}={value}"));
        }
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut spec = server.files_helper(cx.system.deployment(), cx.run, "side-server", false, &argv);
        spec.user = Some(owner.to_owned());
        spec.network = HelperNetwork::Bridge;
        spec.stop_signal = "INT";
        let helper = cx
            .system
            .docker
            .spawn_helper(&spec)
            .await
            .map_err(ActionError::from)?;
        let end = tokio::time::Instant::now() + cx.deadline;
        let mut admin = server.admin.clone();
        loop {
            let last = match helper.inspect().await {
                Ok(info) if info.is_running() => {
                    let reach = cx.system.docker.reach(cx.system.deployment(), &info, PORT).await;
                    let reach = reach.map_err(ActionError::from)?;
                    (admin.host, admin.port, admin.socket_dir) = (reach.host, reach.port, reach.socket_dir);
                    match ready(&admin).await {
                        Ok(true) => return Ok(Self { helper, admin }),
                        Ok(false) => "it is still in recovery".to_owned(),
                        Err(e) => e.to_string(),
                    }
                }
                Ok(_) | Err(WorkloadError::NotFound { .. }) => {
                    let output = helper
                        .finish(Duration::from_secs(10))
                        .await
                        .map_err(ActionError::from)?;
                    return Err(NotStarted::Ended(output.last_words()));
                }
                Err(e) => return Err(NotStarted::Other(e.into())),
            };
            if tokio::time::Instant::now() >= end {
                let words = helper
                    .stop(Duration::from_secs(30))
                    .await
                    .map(|o| o.last_words())
                    .unwrap_or_default();
                return Err(NotStarted::Other(ActionError::Other(format!(
                    "the side server does not take connections ({last}): {words}"
                ))));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops it cleanly, with everything on disk, and gives back what it logged.
    pub(super) async fn stop(self, limit: Duration) -> Result<String, ActionError> {
        let output = self.helper.stop(limit).await?;
        if output.exit_code != 0 {
            return Err(ActionError::Helper {
                what: "the clean stop of the side server".into(),
                exit_code: output.exit_code,
                last_words: output.last_words(),
            });
        }
        Ok(output.stderr)
    }
}

async fn ready(admin: &ConnectSpec) -> Result<bool, crate::postgres::PgError> {
    let client = Client::connect(admin).await?;
    Ok(client.value("select pg_is_in_recovery()").await?.as_deref() == Some("f"))
}
