//! A Docker engine on another host, reached by the system's own `ssh`: nothing is installed
//! there, and jump hosts, keys, agents and aliases work as they do for a person.
//!
//! One `ssh` forwards the engine's socket to one of this machine, in a directory that only
//! its owner can enter; further ports are added to the same connection on demand.
//! A connection that broke is made anew when something is next asked of the engine.
//!
//! The `ssh` must not outlive drctl, SIGKILL included. So it runs under a small shell that
//! reads a pipe which only drctl holds: at its end, `ssh` and the directory go. Nothing on
//! the far side is needed for that, so an account that may only forward is enough.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::WorkloadError;
use crate::private_dir::private_directory;
use crate::runbook::SshAddress;

/// `$1` is the directory, the rest the `ssh` to run. The directory goes first: at the end
/// of `ssh` this shell ends too, and with it the one that waits for the pipe's end; where
/// that one has begun to remove the directory, this shell ends after it.
const LEASE: &str = r#"
dir=$1; shift
exec 3<&0
"$@" </dev/null 3<&- &
ssh=$!
( while read -r _ <&3; do :; done; trap '' TERM; rm -rf -- "$dir"; kill "$ssh" ) >/dev/null 2>&1 &
lease=$!
exec 3<&-
wait "$ssh"; code=$?
kill "$lease" 2>/dev/null
wait "$lease" 2>/dev/null
exit "$code"
"#;
/// Seconds between two signs of life, three of which may be missing.
const ALIVE_EVERY: &str = "ServerAliveInterval=5";
/// A socket's path has at most 107 bytes (unix(7)), and `ssh` appends 17 to that of its own.
const LONGEST_DIR: usize = 70;
const POLL: Duration = Duration::from_millis(10);
/// How long the end of a connection is waited for before its shell is killed.
const END: Duration = Duration::from_secs(2);
/// How much of what `ssh` says is kept, from the end.
const WORDS_LIMIT: usize = 4 << 10;
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A connection to another host. Dropping it ends the connection.
#[derive(Debug)]
pub(super) struct Tunnel {
    address: SshAddress,
    /// Bounds the connection.
    deadline: Duration,
    dir: PathBuf,
    /// The program; a test has one of its own.
    ssh: PathBuf,
    state: tokio::sync::Mutex<State>,
    /// The end of what `ssh` said.
    words: Arc<Mutex<String>>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    /// Directory of the socket for each address and port.
    forwards: BTreeMap<(IpAddr, u16), PathBuf>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// Its end is the end of the connection. `None` while that is waited for.
    lease: Option<ChildStdin>,
    listening: Option<JoinHandle<()>>,
    /// Until when it may take to stand.
    end: Instant,
    stands: bool,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // The shell does the same; it is gone already where the connection had broken.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Tunnel {
    /// Connects within `deadline`.
    ///
    /// # Errors
    /// [`WorkloadError::Unreachable`] with the words of `ssh`.
    pub(super) async fn open(address: &SshAddress, deadline: Duration) -> Result<Self, WorkloadError> {
        let dir = private_dir("ssh").map_err(|e| WorkloadError::Unreachable {
            host: address.to_string(),
            cause: format!("no directory for its socket can be made: {e}"),
        })?;
        let tunnel = Self {
            address: address.clone(),
            deadline,
            dir,
            ssh: PathBuf::from("ssh"),
            state: tokio::sync::Mutex::default(),
            words: Arc::default(),
        };
        tunnel.ready().await?;
        Ok(tunnel)
    }

    /// Where the engine answers on this machine.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// Makes sure that the connection stands; makes it anew when it broke.
    ///
    /// # Errors
    /// [`WorkloadError::Unreachable`] with the words of `ssh`.
    pub(super) async fn ready(&self) -> Result<(), WorkloadError> {
        let mut state = self.state.lock().await;
        // Whoever waited may have given up at any moment: the state says how far it had come.
        let lives = match &mut state.running {
            Some(running) => running.lease.is_some() && matches!(running.child.try_wait(), Ok(None)),
            None => false,
        };
        if !lives {
            end(&mut state).await;
            self.start(&mut state)?;
        }
        let Some(running) = &mut state.running else {
            return Err(self.unreachable("it did not begin"));
        };
        if running.stands {
            return Ok(());
        }
        let waited = self.wait(running).await;
        if waited.is_err() {
            end(&mut state).await;
        }
        waited
    }

    /// The error when the connection has broken; waits a moment for the news of it.
    pub(super) async fn broken(&self) -> Option<WorkloadError> {
        let mut state = self.state.lock().await;
        let running = state.running.as_mut()?;
        let ended = tokio::time::timeout(Duration::from_millis(100), running.child.wait()).await;
        ended.is_ok().then(|| self.unreachable("the connection broke"))
    }

    /// A socket that leads to a port of an address on the far side. It is called
    /// `.s.PGSQL.PORT`, which is how PostgreSQL's clients look for it in a directory (and
    /// no other client minds); the directory is returned.
    ///
    /// # Errors
    /// [`WorkloadError::Unreachable`] when the connection is gone, `Transport` when `ssh`
    /// does not set the forwarding up.
    pub(super) async fn forward(&self, address: IpAddr, port: u16) -> Result<PathBuf, WorkloadError> {
        self.ready().await?;
        let mut state = self.state.lock().await;
        if let Some(dir) = state.forwards.get(&(address, port)) {
            return Ok(dir.clone());
        }
        let fail = |cause: String| WorkloadError::Transport {
            what: format!(
                "the way to {address} port {port} through {}",
                self.address.login()
            ),
            cause,
        };
        let dir = self.dir.join(state.forwards.len().to_string());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|e| fail(e.to_string()))?;
        let mut command = Command::new("ssh");
        command
            .args(["-o", "BatchMode=yes", "-S"])
            .arg(self.control())
            .args(["-O", "forward", "-L"])
            .arg(forwarding(&dir, address, port))
            .args(["--", &self.address.host])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(self.deadline, command.output())
            .await
            .map_err(|_| fail("ssh did not set it up in time".into()))?
            .map_err(|e| fail(e.to_string()))?;
        if !output.status.success() {
            return Err(fail(last_words(&String::from_utf8_lossy(&output.stderr))));
        }
        state.forwards.insert((address, port), dir.clone());
        Ok(dir)
    }

    /// What `ssh` said lately, in one line.
    pub(super) fn words(&self) -> String {
        last_words(&self.words.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn control(&self) -> PathBuf {
        self.dir.join("ctl")
    }

    fn unreachable(&self, otherwise: &str) -> WorkloadError {
        let words = self.words();
        let words = if words.is_empty() { otherwise } else { &words };
        WorkloadError::Unreachable {
            host: self.address.to_string(),
            cause: format!("ssh to {}: {words}", self.address.login()),
        }
    }

    /// Starts a connection. The one before has ended.
    fn start(&self, state: &mut State) -> Result<(), WorkloadError> {
        let fail = |cause: String| WorkloadError::Unreachable {
            host: self.address.to_string(),
            cause,
        };
        let forwards = &state.forwards;
        // The end of the one before may have taken them along; others may have been there since.
        for dir in std::iter::once(&self.dir).chain(forwards.values()) {
            private_directory(dir)
                .map_err(|e| fail(format!("no directory for its sockets can be made: {e}")))?;
        }
        // What a broken connection left is in the way of the new one.
        let sockets = forwards
            .iter()
            .map(|((_, port), dir)| dir.join(socket_name(*port)));
        for old in sockets.chain([self.socket(), self.control()]) {
            let _ = std::fs::remove_file(old);
        }
        self.words.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut child = self
            .command(forwards)
            .spawn()
            .map_err(|e| fail(format!("/bin/sh cannot be started: {e}")))?;
        let listening = child
            .stderr
            .take()
            .map(|from| tokio::spawn(listen(from, self.words.clone())));
        state.running = Some(Running {
            lease: child.stdin.take(),
            child,
            listening,
            // ssh's own time-out comes first, and has more to say.
            end: Instant::now() + self.deadline + Duration::from_millis(500),
            stands: false,
        });
        Ok(())
    }

    /// Waits until a connection stands.
    async fn wait(&self, running: &mut Running) -> Result<(), WorkloadError> {
        let socket = self.socket();
        loop {
            if UnixStream::connect(&socket).is_ok() {
                running.stands = true;
                return Ok(());
            }
            if let Ok(Some(status)) = running.child.try_wait() {
                if let Some(listening) = running.listening.take() {
                    let _ = tokio::time::timeout(Duration::from_millis(200), listening).await;
                }
                if status.code() == Some(127) {
                    return Err(WorkloadError::Unreachable {
                        host: self.address.to_string(),
                        cause: "there is no ssh program here: apt-get install openssh-client".into(),
                    });
                }
                return Err(self.unreachable(&format!("it ended ({status}) without a word")));
            }
            if Instant::now() >= running.end {
                return Err(self.unreachable(&format!(
                    "no connection within {}",
                    crate::event::seconds(self.deadline)
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn command(&self, forwards: &BTreeMap<(IpAddr, u16), PathBuf>) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", LEASE, "drctl"])
            .arg(&self.dir)
            .arg(&self.ssh)
            .arg("-nNTax")
            // Never a question: nobody may be there to answer.
            .args(["-o", "BatchMode=yes"])
            .args(["-o", "ExitOnForwardFailure=yes"])
            .args(["-o", ALIVE_EVERY, "-o", "ServerAliveCountMax=3"])
            .arg("-o")
            .arg(format!("ConnectTimeout={}", self.deadline.as_secs().max(1)))
            .args(["-o", "ControlMaster=yes", "-o", "ControlPersist=no"])
            // The level that tells why a forwarded connection was refused.
            .args(["-o", "LogLevel=INFO", "-S"])
            .arg(self.control())
            .arg("-L")
            .arg(format!(
                "{}:{}",
                self.socket().display(),
                self.address.socket.display()
            ));
        for ((address, port), dir) in forwards {
            command.arg("-L").arg(forwarding(dir, *address, *port));
        }
        if let Some(user) = &self.address.user {
            command.args(["-l", user]);
        }
        if let Some(port) = self.address.port {
            command.args(["-p", &port.to_string()]);
        }
        command
            .args(["--", &self.address.host])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for drctl, which still needs the engine to take back what it did.
            .process_group(0);
        command
    }
}

/// Ends what is left of a connection, so that nothing of it takes the next one's directory away.
async fn end(state: &mut State) {
    if let Some(running) = &mut state.running {
        // It stays in the state until it has ended: who is cut off here leaves it to the next.
        running.lease = None;
        if tokio::time::timeout(END, running.child.wait()).await.is_err() {
            let _ = running.child.kill().await;
        }
    }
    state.running = None;
}

fn socket_name(port: u16) -> String {
    format!(".s.PGSQL.{port}")
}

/// The argument of `-L` from a socket to an address.
fn forwarding(dir: &Path, address: IpAddr, port: u16) -> String {
    let socket = dir.join(socket_name(port));
    match address {
        IpAddr::V4(a) => format!("{}:{a}:{port}", socket.display()),
        IpAddr::V6(a) => format!("{}:[{a}]:{port}", socket.display()),
    }
}

/// A directory of its own for the sockets: where a full disk does no harm, if possible, and
/// with a path that is short enough.
pub(super) fn private_dir(kind: &str) -> std::io::Result<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let name = format!(
        "drctl-{kind}-{}-{}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    );
    let places = runtime.into_iter().chain([
        PathBuf::from("/dev/shm"),
        std::env::temp_dir(),
        PathBuf::from("/tmp"),
    ]);
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for place in places {
        let dir = place.join(&name);
        // -L takes its argument apart at colons and expands percent signs.
        let text = dir.to_string_lossy();
        if !dir.is_absolute() || text.len() > LONGEST_DIR || text.contains([':', '%', '$', '~']) {
            continue;
        }
        // Not one that is there already: it may be somebody else's.
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Keeps the end of what `ssh` says.
async fn listen(mut from: impl tokio::io::AsyncRead + Unpin, words: Arc<Mutex<String>>) {
    let mut buffer = [0; 512];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let text = String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).into_owned();
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.push_str(&text);
        let mut cut = words.len().saturating_sub(WORDS_LIMIT);
        while !words.is_char_boundary(cut) {
            cut += 1;
        }
        words.drain(..cut);
    }
}

/// The last lines, without control characters: they come from another host.
fn last_words(text: &str) -> String {
    let lines: Vec<String> = text
        .lines()
        .map(|l| {
            l.trim()
                .chars()
                .filter(|c| !crate::printable::is_control(*c))
                .collect::<String>()
        })
        .filter(|l| !l.is_empty())
        .collect();
    lines
        .get(lines.len().saturating_sub(3)..)
        .unwrap_or_default()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::runbook::DockerHost;

    /// A connection by a script in place of `ssh`.
    fn by(script: &str, place: &Path, deadline: Duration) -> Tunnel {
        let ssh = place.join("ssh");
        std::fs::write(&ssh, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o700)).unwrap();
        let Ok(DockerHost::Ssh(address)) = "ssh://far".parse() else {
            panic!("it is an address");
        };
        Tunnel {
            address,
            deadline,
            dir: private_dir("ssh").unwrap(),
            ssh,
            state: tokio::sync::Mutex::default(),
            words: Arc::default(),
        }
    }

    #[tokio::test]
    async fn a_connection_comes_back_after_one_that_failed_or_was_given_up() {
        let place = tempfile::tempdir().unwrap();
        let at = place.path().display();
        let script = format!("echo x >>{at}/count; [ ! -e {at}/refuse ] || exit 255; exec sleep 60");
        let tunnel = by(&script, place.path(), Duration::from_millis(200));
        let starts = || std::fs::read_to_string(place.path().join("count")).map_or(0, |t| t.lines().count());
        let forward = tunnel.dir.join("0");
        private_directory(&forward).unwrap();
        let key = ("172.18.0.2".parse().unwrap(), 5432);
        tunnel.state.lock().await.forwards.insert(key, forward.clone());
        // One that ends, and one that does not stand in time.
        std::fs::write(place.path().join("refuse"), "").unwrap();
        let refused = tunnel.ready().await.unwrap_err();
        assert!(refused.to_string().contains("exit status: 255"), "{refused}");
        std::fs::remove_file(place.path().join("refuse")).unwrap();
        tunnel.ready().await.unwrap_err();
        assert!(!tunnel.dir.exists(), "the shell takes it along");
        // Whoever waited gave up: the next one goes on with the same.
        let given_up = tokio::time::timeout(Duration::from_millis(100), tunnel.ready()).await;
        given_up.unwrap_err();
        assert!(forward.is_dir());
        let _listener = std::os::unix::net::UnixListener::bind(tunnel.socket()).unwrap();
        tunnel.ready().await.unwrap();
        tunnel.ready().await.unwrap();
        assert!(starts() <= 3, "no other was started");
        assert_eq!(std::fs::metadata(&tunnel.dir).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn words_are_the_last_lines_without_tricks() {
        assert_eq!(
            last_words("banner\n\u{1b}[2Jone\r\n\ntwo\nthree\n"),
            "[2Jone; two; three"
        );
        assert_eq!(last_words(""), "");
    }

    #[test]
    fn forwardings_are_written_as_ssh_reads_them() {
        let dir = Path::new("/dev/shm/d/0");
        let to = |a: &str| forwarding(dir, a.parse().unwrap(), 5432);
        assert_eq!(to("172.18.0.2"), "/dev/shm/d/0/.s.PGSQL.5432:172.18.0.2:5432");
        assert_eq!(to("fd00::2"), "/dev/shm/d/0/.s.PGSQL.5432:[fd00::2]:5432");
    }
}
