//! A program of the operator's own. The message is its standard input and never an argument: arguments can be read by
//! everybody on the machine.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::check::Message;
use crate::runbook::alerting::NotifyCommand;

/// Runs it to its end; with its deadline ends whatever it has started, too.
pub(super) async fn run(
    config: &NotifyCommand,
    deployment: &str,
    message: &Message,
    deadline: Duration,
) -> Result<(), String> {
    let (program, arguments) = config.argv.split_first().ok_or("no program is given")?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("DRCTL_KIND", &message.kind)
        .env("DRCTL_STATUS", &message.status)
        .env("DRCTL_DEPLOYMENT", deployment)
        .env("DRCTL_SUBJECT", &message.subject)
        .stdin(Stdio::piped())
        // Its words belong to nobody here: standard output is the plugin's.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| e.to_string())?;
    let group = child
        .id()
        .and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    let text = format!("{}\n{}\n", message.subject, message.body);
    let work = async {
        if let Some(mut input) = child.stdin.take() {
            // A program that does not read is no failure.
            let _ = input.write_all(text.as_bytes()).await;
        }
        child.wait().await
    };
    // A little before the way's own deadline, which would leave its children behind.
    let longest = deadline.mul_f64(0.95);
    match tokio::time::timeout(longest, work).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("it ended with {status}")),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => {
            if let Some(group) = group {
                // It has not been waited for, so the number is still its own.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            Err(format!(
                "not done within {}, and ended",
                crate::event::seconds(longest)
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> NotifyCommand {
        NotifyCommand {
            argv: vec!["sh".into(), "-c".into(), script.into()],
        }
    }

    #[tokio::test]
    async fn the_message_is_its_input_and_the_rest_its_environment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("told");
        let script = format!(
            "{{ cat; echo \"$DRCTL_KIND $DRCTL_STATUS $DRCTL_DEPLOYMENT $DRCTL_SUBJECT\"; }} > {}",
            file.display()
        );
        let message = Message {
            kind: "alert".into(),
            status: "CRITICAL".into(),
            subject: "S".into(),
            body: "B".into(),
            ..Message::default()
        };
        run(&shell(&script), "shop", &message, Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!(
            std::fs::read_to_string(file).unwrap(),
            "S\nB\nalert CRITICAL shop S\n"
        );
    }

    #[tokio::test]
    async fn one_that_fails_or_hangs_is_said() {
        let message = Message::default();
        let second = Duration::from_secs(1);
        for (script, why) in [
            ("exit 3", "exit status: 3"),
            ("sleep 60 & wait", "not done within"),
        ] {
            let began = std::time::Instant::now();
            let said = run(&shell(script), "shop", &message, second).await.unwrap_err();
            assert!(said.contains(why), "{said}");
            assert!(began.elapsed() < Duration::from_secs(3));
        }
        let absent = NotifyCommand {
            argv: vec!["/nonexistent/program".into()],
        };
        let said = run(&absent, "shop", &message, second).await.unwrap_err();
        assert!(said.contains("No such file"), "{said}");
    }
}
