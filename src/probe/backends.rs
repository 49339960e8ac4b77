//! The server's processes by their titles: all that can be seen of the sessions when no
//! session can be had any more.

use serde::{Deserialize, Serialize};

use crate::workload::ProcessInfo;

/// One session as its process's title tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Backend {
    /// The whole title, as `postgres: app shop 172.20.0.5(41992) idle`.
    pub title: String,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// Client; `[local]` for the socket.
    pub client: String,
    /// What it does.
    pub state: String,
    /// Seconds since the process began.
    pub seconds: u64,
}

/// The sessions among a container's processes, the oldest first. A title reads
/// `postgres: [CLUSTER: ]USER DATABASE CLIENT STATE` (`ps_status.c` in the server's sources).
#[must_use]
pub fn sessions(processes: &[ProcessInfo]) -> Vec<Backend> {
    let mut all: Vec<Backend> = processes.iter().filter_map(session).collect();
    all.sort_by_key(|b| std::cmp::Reverse(b.seconds));
    all
}

fn session(process: &ProcessInfo) -> Option<Backend> {
    let title = process.command.trim_end();
    let mut rest = title.strip_prefix("postgres: ")?;
    if let Some((_, behind)) = rest.split_once(": ") {
        rest = behind;
    }
    let mut words = rest.splitn(4, ' ');
    let (user, database, client) = (words.next()?, words.next()?, words.next()?);
    if client != "[local]" && !(client.contains('(') && client.ends_with(')')) {
        return None;
    }
    Some(Backend {
        title: title.to_owned(),
        user: user.to_owned(),
        database: database.to_owned(),
        client: client.to_owned(),
        state: words.next().unwrap_or_default().to_owned(),
        seconds: process.seconds,
    })
}

/// The title of the process that replays the log, as `startup recovering 00000001…`.
#[must_use]
pub fn replaying(processes: &[ProcessInfo]) -> Option<String> {
    processes.iter().find_map(|p| {
        let rest = p.command.strip_prefix("postgres: ")?;
        let at = rest.find("startup")?;
        Some(rest.get(at..)?.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(seconds: u64, command: &str) -> ProcessInfo {
        ProcessInfo {
            seconds,
            state: "S".into(),
            command: command.into(),
        }
    }

    #[test]
    fn sessions_are_told_from_the_servers_own_processes() {
        let all = sessions(&[
            process(900, "postgres -c max_connections=50"),
            process(900, "postgres: autovacuum launcher "),
            process(900, "postgres: logical replication launcher"),
            process(10, "postgres: app shop 172.20.0.5(41992) idle"),
            process(20, "postgres: main: root postgres [local] idle in transaction"),
        ]);
        let seen: Vec<_> = all
            .iter()
            .map(|b| (b.user.as_str(), b.client.as_str(), b.state.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("root", "[local]", "idle in transaction"),
                ("app", "172.20.0.5(41992)", "idle")
            ]
        );
    }

    #[test]
    fn a_replay_shows_where_it_is() {
        let all = [process(
            3,
            "postgres: startup recovering 00000001000000000000001F",
        )];
        assert_eq!(
            replaying(&all).as_deref(),
            Some("startup recovering 00000001000000000000001F")
        );
        assert_eq!(replaying(&[process(3, "postgres: checkpointer ")]), None);
    }
}
