//! From a reference to the secret, at the moment it is needed. Nothing here prints or stores a value.

use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use secrecy::SecretString;
use tokio::io::AsyncReadExt;

use super::raw::SecretRef;

/// How long a program or a file may take.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The longest secret, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// A secret that could not be had. It names the reference, never a value.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the secret {reference}: {why}")]
pub struct SecretError {
    /// The reference as the runbook has it.
    pub reference: SecretRef,
    /// What went wrong.
    pub why: SecretFailure,
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretFailure {
    /// The environment variable is not set.
    #[error("the variable is not set; set it where drctl runs")]
    NotSet,
    /// The container does not have the variable.
    #[error("the container has no such variable")]
    NotInContainer,
    /// The value is not UTF-8.
    #[error("the value is not UTF-8")]
    NotUtf8,
    /// There is nothing in it.
    #[error("the value is empty")]
    Empty,
    /// More than 64 KiB.
    #[error("the value is longer than 64 KiB")]
    TooLong,
    /// The file is a directory, a pipe or a device.
    #[error("not a regular file")]
    NotAFile,
    /// The file could not be read or the program could not be started.
    #[error("{0}")]
    Io(#[source] std::io::Error),
    /// The program said no.
    #[error("the program ended with {0}; run it by hand to see why")]
    Failed(std::process::ExitStatus),
    /// The reference has no program.
    #[error("no program is given")]
    NoProgram,
    /// No answer within ten seconds.
    #[error("no answer within 10 s")]
    TimedOut,
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            // Arguments may hold what should not be printed; the program is enough to find it in the runbook.
            Self::Command(argv) => write!(f, "command {}", argv.first().map_or("", String::as_str)),
            Self::ContainerEnv(name) => write!(f, "container-env {name}"),
        }
    }
}

impl SecretRef {
    /// The secret. `container_env` is the environment of the service's container as `NAME=value`; give an empty slice
    /// where it is not known.
    ///
    /// # Errors
    /// [`SecretError`] after ten seconds at the latest.
    pub async fn resolve(&self, container_env: &[String]) -> Result<SecretString, SecretError> {
        let found = match self {
            Self::Env(name) => from_env(name),
            Self::File(path) => from_file(path.clone()).await,
            Self::Command(argv) => from_command(argv, DEADLINE).await,
            Self::ContainerEnv(name) => container_env
                .iter()
                .find_map(|line| line.strip_prefix(name.as_str())?.strip_prefix('='))
                .map(|value| value.as_bytes().to_vec())
                .ok_or(SecretFailure::NotInContainer),
        };
        found.and_then(into_secret).map_err(|why| SecretError {
            reference: self.clone(),
            why,
        })
    }
}

fn into_secret(bytes: Vec<u8>) -> Result<SecretString, SecretFailure> {
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(SecretFailure::TooLong);
    }
    let mut value = String::from_utf8(bytes).map_err(|_| SecretFailure::NotUtf8)?;
    // One line ending is what editors and `echo` add; anything more belongs to the secret.
    if value.ends_with('\n') {
        value.pop();
        if value.ends_with('\r') {
            value.pop();
        }
    }
    if value.is_empty() {
        Err(SecretFailure::Empty)
    } else {
        Ok(value.into())
    }
}

fn from_env(name: &str) -> Result<Vec<u8>, SecretFailure> {
    // A name that is empty or holds `=` or NUL is never set.
    std::env::var_os(name)
        .map(std::os::unix::ffi::OsStringExt::into_vec)
        .ok_or(SecretFailure::NotSet)
}

async fn from_file(path: PathBuf) -> Result<Vec<u8>, SecretFailure> {
    let read = async {
        // Without O_NONBLOCK, opening a FIFO waits for a writer, in a thread that no deadline can end.
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = tokio::fs::OpenOptions::new()
            .read(true)
            .custom_flags(nonblock)
            .open(path)
            .await
            .map_err(SecretFailure::Io)?;
        if !file.metadata().await.map_err(SecretFailure::Io)?.is_file() {
            return Err(SecretFailure::NotAFile);
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .await
            .map_err(SecretFailure::Io)?;
        Ok(bytes)
    };
    tokio::time::timeout(DEADLINE, read)
        .await
        .unwrap_or(Err(SecretFailure::TimedOut))
}

async fn from_command(argv: &[String], deadline: Duration) -> Result<Vec<u8>, SecretFailure> {
    let (program, arguments) = argv.split_first().ok_or(SecretFailure::NoProgram)?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A password manager's complaint may quote what it was given.
        .stderr(Stdio::null())
        // A group of its own, so that the deadline also ends what the program started.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(SecretFailure::Io)?;
    let group = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(rustix::process::Pid::from_raw);
    let stdout = child.stdout.take();
    let run = async {
        let mut bytes = Vec::new();
        if let Some(stdout) = stdout {
            stdout
                .take(MAX_BYTES + 1)
                .read_to_end(&mut bytes)
                .await
                .map_err(SecretFailure::Io)?;
        }
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
            return Err(SecretFailure::TooLong);
        }
        let status = child.wait().await.map_err(SecretFailure::Io)?;
        if status.success() {
            Ok(bytes)
        } else {
            Err(SecretFailure::Failed(status))
        }
    };
    let result = tokio::time::timeout(deadline, run)
        .await
        .unwrap_or(Err(SecretFailure::TimedOut));
    if let (Err(SecretFailure::TimedOut | SecretFailure::TooLong), Some(group)) = (&result, group) {
        // It has not been waited for, so the number is still its own. If it is gone, that is what we wanted.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    async fn resolve(reference: SecretRef, env: &[&str]) -> Result<String, String> {
        let env: Vec<String> = env.iter().map(|&line| line.to_owned()).collect();
        reference
            .resolve(&env)
            .await
            .map(|secret| secret.expose_secret().to_owned())
            .map_err(|error| error.to_string())
    }

    fn command(script: &str) -> SecretRef {
        SecretRef::Command(vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()])
    }

    #[tokio::test]
    async fn each_source_gives_its_value_without_the_line_ending() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "from file\r\n").unwrap();
        assert_eq!(resolve(SecretRef::File(file), &[]).await.unwrap(), "from file");
        assert_eq!(
            resolve(command("echo from command"), &[]).await.unwrap(),
            "from command"
        );
        let container = SecretRef::ContainerEnv("PASS".to_owned());
        assert_eq!(
            resolve(container, &["PASSWORD=no", "PASS=a=b"]).await.unwrap(),
            "a=b"
        );
        assert!(
            !resolve(SecretRef::Env("PATH".to_owned()), &[])
                .await
                .unwrap()
                .is_empty()
        );
    }

    #[tokio::test]
    async fn a_failure_names_the_reference() {
        for (reference, expected) in [
            (
                SecretRef::Env("DRCTL_TEST_NOT_SET".to_owned()),
                "env DRCTL_TEST_NOT_SET: the variable is not set",
            ),
            (
                SecretRef::ContainerEnv("PASS".to_owned()),
                "container-env PASS: the container has no such variable",
            ),
            (
                SecretRef::File("/nonexistent/password".into()),
                "file /nonexistent/password: No such file",
            ),
            (SecretRef::File("/dev".into()), "file /dev: not a regular file"),
            (
                SecretRef::File("/dev/zero".into()),
                "file /dev/zero: not a regular file",
            ),
            (
                command("echo hunter2; exit 3"),
                "command sh: the program ended with exit status: 3",
            ),
            (command("true"), "command sh: the value is empty"),
            (
                command("head -c 70000 /dev/zero"),
                "command sh: the value is longer than 64 KiB",
            ),
            (command(r"printf '\377'"), "command sh: the value is not UTF-8"),
            (
                SecretRef::Command(vec!["/nonexistent/program".to_owned()]),
                "command /nonexistent/program: No such file",
            ),
        ] {
            let message = resolve(reference, &[]).await.unwrap_err();
            assert!(message.contains(expected), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[tokio::test]
    async fn a_program_that_does_not_answer_is_ended_with_what_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", pid_file.display());
        let argv = ["sh".to_owned(), "-c".to_owned(), script];
        let start = std::time::Instant::now();
        let result = from_command(&argv, Duration::from_secs(1)).await;
        assert!(matches!(result, Err(SecretFailure::TimedOut)), "{result:?}");
        assert!(start.elapsed() < Duration::from_secs(5));
        let pid = std::fs::read_to_string(pid_file).unwrap().trim().to_owned();
        // Gone, or a zombie until PID 1 takes note.
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_running = || !stat().is_empty() && !stat().contains(") Z ");
        while is_running() && start.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!is_running(), "{}", stat());
    }

    #[tokio::test]
    async fn a_fifo_that_nobody_writes_to_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        assert!(
            resolve(SecretRef::File(path), &[])
                .await
                .unwrap_err()
                .contains("not a regular file")
        );
    }
}
