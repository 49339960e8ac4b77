//! What is known of an engine that does not answer: its service, its process, its socket.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One question to the service manager takes no longer.
const DEADLINE: Duration = Duration::from_secs(2);

/// An engine that could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Unreachable {
    /// Why, with its address.
    pub cause: String,
    /// Whether it would run on this machine.
    pub local: bool,
    /// What systemd says of it, as `failed (Result: exit-code)`; `None` where there is none.
    pub systemd: Option<String>,
    /// Whether a process of its name runs on this machine.
    pub process: bool,
}

/// Looks at this machine for an engine that `cause` says cannot be reached.
pub async fn look(cause: String, local: bool) -> Unreachable {
    let (systemd, process) = if local {
        let (systemd, process) = tokio::join!(
            systemd(),
            tokio::task::spawn_blocking(|| runs(&["dockerd", "podman"]))
        );
        (systemd, process.unwrap_or_default())
    } else {
        (None, false)
    };
    Unreachable {
        cause,
        local,
        systemd,
        process,
    }
}

async fn systemd() -> Option<String> {
    let asked = tokio::process::Command::new("systemctl")
        .args(["show", "docker.service", "--no-pager"])
        .args(["--property", "LoadState,ActiveState,SubState,Result"])
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, asked).await.ok()?.ok()?;
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or("unknown")
    };
    if value("LoadState") != "loaded" {
        return Some("no service docker.service".to_owned());
    }
    Some(format!(
        "{} ({}), result {}",
        value("ActiveState"),
        value("SubState"),
        value("Result")
    ))
}

/// Whether a process with one of these names runs.
fn runs(names: &[&str]) -> bool {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| {
            std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| names.contains(&comm.trim()))
        })
}
