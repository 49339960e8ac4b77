//! A server on a side data directory that nobody but drctl knows: on the engine's default
//! bridge, without a published port, under a lease, with archiving and replication off.

use std::time::Duration;

use super::{ActionContext, ActionError};
use crate::postgres::{Client, ConnectSpec};
use crate::probe::settings::settings_of;
use crate::system::PostgresServer;
use crate::workload::{Helper, HelperNetwork, WorkloadError};

const PORT: u16 = 5432;
const POLL: Duration = Duration::from_millis(100);
/// In the helper's own file system: it goes when the helper goes.
const RULES_FILE: &str = "/tmp/drctl-hba.conf";
/// Writes the rules of access, and becomes the server.
const BEGIN: &str = r#"umask 077; printf '%s\n' "$DRCTL_RULES" > /tmp/drctl-hba.conf && exec "$@""#;
/// Settings of the service's command line that are not for a server beside it: where its files
/// are, where it listens, whom it follows, what it archives, and its caches, for which there may
/// be no room twice. By the beginnings of their names.
const NOT_TAKEN: &[&str] = &[
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "external_pid_file",
    "port",
    "listen_addresses",
    "unix_socket_",
    "archive_",
    "recovery_",
    "restore_command",
    "primary_",
    "shared_buffers",
    "huge_pages",
];

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
        let mut argv: Vec<String> = ["/bin/sh", "-c", BEGIN, "drctl", "postgres", "-D", directory]
            .map(str::to_owned)
            .into();
        // First: of a setting that is given twice the last one counts.
        argv.extend(taken(&server.container.command));
        let port = PORT.to_string();
        // hot_standby off: the limits of the primary (max_connections …) need not be met.
        for (name, value) in [
            ("listen_addresses", "*"),
            ("port", port.as_str()),
            ("unix_socket_directories", "/tmp"),
            ("archive_mode", "off"),
            ("hot_standby", "off"),
            ("logging_collector", "off"),
            ("log_destination", "stderr"),
            ("primary_conninfo", ""),
            // Nobody would confirm what is written here.
            ("synchronous_standby_names", ""),
            // What a copy holds works as the original does: its subscriptions would fetch from the
            // publisher under the same name and confirm what the original has not, and pg_cron
            // would do its jobs a second time. A setting of a library that is not loaded is no error.
            ("max_logical_replication_workers", "0"),
            ("cron.launch_active_jobs", "off"),
            ("ssl", "off"),
            ("hba_file", RULES_FILE),
        ]
        .into_iter()
        .chain(settings.iter().map(|(n, v)| (*n, v.as_str())))
        {
            argv.push("-c".into());
            argv.push(format!("{name}={value}"));
        }
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut spec = server.files_helper(cx.system.deployment(), cx.run, "side-server", false, &argv);
        spec.env.push(("DRCTL_RULES".into(), rules(&server.admin)));
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
            let mut refused = false;
            let last = match helper.inspect().await {
                Ok(info) if info.is_running() => {
                    let reach = cx.system.docker.reach(cx.system.deployment(), &info, PORT).await;
                    let reach = reach.map_err(ActionError::from)?;
                    (admin.host, admin.port, admin.socket_dir) = (reach.host, reach.port, reach.socket_dir);
                    match ready(&admin).await {
                        Ok(true) => return Ok(Self { helper, admin }),
                        Ok(false) => "it is still in recovery".to_owned(),
                        Err(e) => {
                            // It has started, and waiting will not change its mind: class 28.
                            refused = e.sqlstate().is_some_and(|s| s.starts_with("28"));
                            e.to_string()
                        }
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
            if refused || tokio::time::Instant::now() >= end {
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

/// What a server on the same data must have of the service's command line (manual, server
/// configuration: names may be written with dashes there): without its
/// `max_prepared_transactions` or its libraries a replay ends with a FATAL.
fn taken(command: &[String]) -> Vec<String> {
    settings_of(command)
        .into_iter()
        .filter(|word| *word != "-c")
        .filter(|setting| {
            let name = setting.split('=').next().unwrap_or_default();
            let name = name.trim().replace('-', "_").to_ascii_lowercase();
            !NOT_TAKEN.iter().any(|n| name.starts_with(n))
        })
        .flat_map(|setting| ["-c".to_owned(), setting.to_owned()])
        .collect()
}

/// One rule, for drctl alone: the service's own may admit only its network, which this server is
/// not on. `md5` asks for SCRAM where the password is stored so (manual, 21.5). Without a
/// password nobody from outside this server's network gets in.
fn rules(admin: &ConnectSpec) -> String {
    let from = if admin.password.is_some() {
        "all md5"
    } else {
        "samenet trust"
    };
    format!("host all \"{}\" {from}", admin.user.replace('"', "\"\""))
}

async fn ready(admin: &ConnectSpec) -> Result<bool, crate::postgres::PgError> {
    let client = Client::connect(admin).await?;
    Ok(client.value("select pg_is_in_recovery()").await?.as_deref() == Some("f"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_beside_takes_what_the_replay_needs_and_nothing_that_leads_outside() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let command = words(
            "postgres -c max_prepared_transactions=100 --shared-preload-libraries=timescaledb -c port=5433 \
             -c config_file=/etc/p.conf --hba-file=/etc/hba.conf -c archive_command=x -c shared_buffers=8GB \
             -D /data -c Data_Directory=/data",
        );
        assert_eq!(
            taken(&command),
            [
                "-c",
                "max_prepared_transactions=100",
                "-c",
                "shared-preload-libraries=timescaledb"
            ]
        );
        assert!(taken(&[]).is_empty());
    }

    #[test]
    fn the_rules_let_the_administrator_in_and_nobody_else() {
        let mut admin = ConnectSpec {
            host: String::new(),
            port: PORT,
            socket_dir: None,
            user: "ad\"min".to_owned(),
            password: None,
            database: "postgres".to_owned(),
            read_only: true,
            deadline: POLL,
        };
        assert_eq!(rules(&admin), "host all \"ad\"\"min\" samenet trust");
        admin.password = Some("secret".into());
        assert_eq!(rules(&admin), "host all \"ad\"\"min\" all md5");
        assert!(BEGIN.contains(RULES_FILE));
    }
}
