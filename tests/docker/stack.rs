//! A running example stack with a runbook, a state directory and a backup directory of its own, removed when dropped.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Stacks that run now.
static RUNNING: Mutex<usize> = Mutex::new(0);
static ONE_LESS: Condvar = Condvar::new();
/// More at once would measure each other: a stack waits for disks and clocks most of its time, and there may be only
/// two cores.
const AT_ONCE: usize = 2;
/// Bounds one `drctl` where a test says nothing else.
const DRCTL_DEADLINE: Duration = Duration::from_secs(180);

/// What a finished program left.
#[derive(Debug)]
pub struct Output {
    /// Exit code; `None` when it was killed, by its deadline or otherwise.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output, or a panic that shows everything.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self.stdout
    }

    /// The events that `--json` printed.
    pub fn events(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .filter_map(|l| serde_json::from_str(l).ok())
            .collect()
    }

    /// The last event of that name; null when there is none.
    pub fn event(&self, name: &str) -> Value {
        let mut of_name = self.events();
        of_name.retain(|e| e["event"] == name);
        of_name.pop().unwrap_or_default()
    }
}

/// Runs a program to its end and never longer than `deadline`.
pub fn run(command: &mut Command, input: Option<&str>, deadline: Duration) -> Output {
    let mut child = command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        let _ = stdin.write_all(text.as_bytes());
    }
    let mut out = child.stdout.take().unwrap();
    let mut err = child.stderr.take().unwrap();
    let out = std::thread::spawn(move || read_all(&mut out));
    let err = std::thread::spawn(move || read_all(&mut err));
    let end = Instant::now() + deadline;
    let code = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if Instant::now() >= end => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    Output {
        code,
        stdout: out.join().unwrap(),
        stderr: err.join().unwrap(),
    }
}

fn read_all(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The right to run a stack, or all stacks that may run at once; given back when dropped.
struct Turn(usize);

impl Turn {
    fn wait(share: usize) -> Self {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running + share > AT_ONCE {
            running = ONE_LESS.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += share;
        Self(share)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        ONE_LESS.notify_all();
    }
}

/// A stack that is up and healthy.
pub struct Stack {
    /// Name of the deployment and of the Compose project.
    pub name: String,
    /// Port of nginx on the loopback address.
    pub port: u16,
    /// Holds the runbook, the state and the backups.
    pub dir: TempDir,
    example: &'static str,
    lab_env: Vec<(String, String)>,
    began: Instant,
    _turn: Turn,
}

impl Stack {
    /// Brings the `simgen` stack up, or says that there is no engine and gives `None`.
    pub fn up(name: &str) -> Option<Self> {
        Self::up_with(name, &[])
    }

    /// The same with variables of `examples/simgen/compose.yaml` set.
    pub fn up_with(name: &str, variables: &[(&str, &str)]) -> Option<Self> {
        Self::up_example("simgen", name, variables)
    }

    /// The same while no other stack runs, for what measures how long things take.
    pub fn up_alone(name: &str, variables: &[(&str, &str)]) -> Option<Self> {
        Self::up_in_turn("simgen", name, variables, AT_ONCE)
    }

    /// Brings another example stack up. What asks the database by `psql` knows only that of `simgen`.
    pub fn up_example(example: &'static str, name: &str, variables: &[(&str, &str)]) -> Option<Self> {
        Self::up_in_turn(example, name, variables, 1)
    }

    fn up_in_turn(
        example: &'static str,
        name: &str,
        variables: &[(&str, &str)],
        share: usize,
    ) -> Option<Self> {
        let turn = Turn::wait(share);
        if !engine_answers() {
            assert!(
                std::env::var("DRCTL_REQUIRE_DOCKER").as_deref() != Ok("1"),
                "DRCTL_REQUIRE_DOCKER=1 and no Docker engine answers"
            );
            eprintln!("SKIPPED {name}: no Docker engine answers, nothing of it was tested");
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let name = format!("t-{name}-{}", std::process::id());
        let mut lab_env: Vec<(String, String)> = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        lab_env.push(("LAB_PROJECT".into(), name.clone()));
        lab_env.push((format!("{}_HTTP_PORT", example.to_uppercase()), port.to_string()));
        // From here on dropping it removes whatever came up.
        let stack = Self {
            name,
            port,
            dir: tempfile::tempdir().unwrap(),
            example,
            lab_env,
            began: Instant::now(),
            _turn: turn,
        };
        stack.lab(&["up", example], Duration::from_secs(900)).ok();
        stack.write_runbook("lab");
        Some(stack)
    }

    /// Writes the example's runbook with this stack's names, with another environment if need be.
    pub fn write_runbook(&self, environment: &str) {
        let source = format!("runbooks/{}.yaml", self.example);
        let text = std::fs::read_to_string(Path::new(ROOT).join(source)).unwrap();
        let backups = self.dir.path().join("backups");
        std::fs::create_dir_all(&backups).unwrap();
        let mut written = String::new();
        // Tests make several backups a day, and look at all of them.
        for line in text.lines().filter(|l| !l.trim_start().starts_with("keep:")) {
            let line = match line.trim_start().split_once(": ") {
                Some(("deployment", _)) => format!("deployment: {}", self.name),
                Some(("environment", _)) => format!("environment: {environment}"),
                Some(("compose-project", _)) => format!("    compose-project: {}", self.name),
                Some(("directory", _)) => format!("  directory: {}", backups.display()),
                _ => ["127.0.0.1:8080", "127.0.0.1:8085"]
                    .iter()
                    .fold(line.to_owned(), |line, default| {
                        line.replace(default, &format!("127.0.0.1:{}", self.port))
                    }),
            };
            writeln!(written, "{line}").unwrap();
        }
        std::fs::write(self.runbook(), written).unwrap();
    }

    /// The runbook's path.
    pub fn runbook(&self) -> PathBuf {
        self.dir.path().join("drctl.yaml")
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A `drctl` on this stack, not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drctl"));
        command
            .env("DRCTL_RUNBOOK", self.runbook())
            .env("DRCTL_STATE_DIR", self.state())
            .env("NO_COLOR", "1")
            .args(args);
        command
    }

    /// Runs `drctl` with a deadline.
    pub fn drctl(&self, args: &[&str]) -> Output {
        run(&mut self.command(args), None, DRCTL_DEADLINE)
    }

    /// Runs `drctl` with every agreement given and its events on standard output.
    pub fn agreed(&self, args: &[&str]) -> Output {
        let mut all = args.to_vec();
        all.extend(["--yes", "--confirm", &self.name, "--json"]);
        self.drctl(&all)
    }

    /// Names in the data volume's `.drctl`, one per line, asked of a container of its own: the server may be down.
    pub fn set_aside(&self) -> String {
        self.beside_the_server("ls -A \"$PGDATA\"/.drctl 2>/dev/null; true")
    }

    /// What a shell prints in a container with the database's image and files. It never changes the server's.
    pub fn beside_the_server(&self, script: &str) -> String {
        self.beside("postgres", script)
    }

    /// The same, of any service.
    pub fn beside(&self, service: &str, script: &str) -> String {
        // Where it runs, it has its files itself, and another container is what takes longest.
        let container = self.container(service);
        let pgdata = "PGDATA=/var/lib/postgresql/data";
        let inside = docker(&["exec", "-e", pgdata, &container, "/bin/sh", "-c", script]);
        if inside.code == Some(0) {
            return inside.stdout.trim().to_owned();
        }
        self.with_its_files(service, ":ro", script)
    }

    /// The same, and it may change them.
    pub fn change_files(&self, script: &str) -> String {
        self.change_files_of("postgres", script)
    }

    /// The same, of any service.
    pub fn change_files_of(&self, service: &str, script: &str) -> String {
        self.with_its_files(service, "", script)
    }

    fn with_its_files(&self, service: &str, mode: &str, script: &str) -> String {
        let volumes_from = &format!("{}{mode}", self.container(service));
        let image = self.inspect(service, "{{.Image}}");
        let mut args = vec!["run", "--rm", "--network", "none", "--volumes-from"];
        args.extend([
            volumes_from,
            "-e",
            "PGDATA=/var/lib/postgresql/data",
            "--entrypoint",
            "/bin/sh",
        ]);
        args.extend([&*image, "-c", script]);
        docker(&args).ok().trim().to_owned()
    }

    /// Waits until nothing that drctl made for this stack is left, and says what is at the end of `patience`.
    pub fn leftovers_after(&self, patience: Duration) -> String {
        let end = Instant::now() + patience;
        loop {
            let left = self.leftovers();
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The same after a SIGKILL of drctl, without helpers that were never started: the engine may have been about to make
    /// one. Those go with the next run.
    pub fn running_leftovers(&self, patience: Duration) -> String {
        let end = Instant::now() + patience;
        loop {
            let mut left = self.leftovers();
            left = left
                .lines()
                .filter(|l| !l.ends_with(" Created ") && !l.ends_with(" Created"))
                .collect();
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Name of a service's container.
    pub fn container(&self, service: &str) -> String {
        let project = format!("label=com.docker.compose.project={}", self.name);
        let service = format!("label=com.docker.compose.service={service}");
        docker(&["ps", "-aq", "--filter", &project, "--filter", &service])
            .ok()
            .trim()
            .to_owned()
    }

    /// Statements as the superuser in one session; errors carry their SQLSTATE. Rows as `a|b`.
    pub fn psql(&self, sql: &str) -> Result<String, String> {
        self.psql_as("simgen", "lab-owner", sql)
    }

    /// The same as any role, by password over TCP: as the application connects.
    pub fn psql_as(&self, role: &str, password: &str, sql: &str) -> Result<String, String> {
        let container = self.container("postgres");
        let secret = format!("PGPASSWORD={password}");
        let mut command = Command::new("docker");
        command.args([
            "exec",
            "-i",
            "-e",
            &secret,
            "-e",
            "PGCONNECT_TIMEOUT=5",
            &container,
        ]);
        command.args([
            "psql",
            "-XqtA",
            "-v",
            "ON_ERROR_STOP=1",
            "-v",
            "VERBOSITY=verbose",
        ]);
        command.args(["-h", "127.0.0.1", "-U", role, "-d", "simgen"]);
        let out = run(&mut command, Some(sql), Duration::from_secs(60));
        if out.code == Some(0) {
            Ok(out.stdout.trim().to_owned())
        } else {
            Err(out.stderr.trim().to_owned())
        }
    }

    /// What `redis-cli` prints of a command.
    pub fn redis_cli(&self, words: &[&str]) -> String {
        let container = self.container("redis");
        let out = docker(&[&["exec", &container, "redis-cli", "--raw"], words].concat());
        out.ok().trim().to_owned()
    }

    /// One field of `docker inspect` of a service's container.
    pub fn inspect(&self, service: &str, format: &str) -> String {
        docker(&["inspect", "--format", format, &self.container(service)])
            .ok()
            .trim()
            .to_owned()
    }

    /// The same of the container that has the service's name, where another one has been set aside.
    pub fn inspect_name(&self, service: &str, format: &str) -> String {
        docker(&[
            "inspect",
            "--format",
            format,
            &format!("{}_{service}_1", self.name),
        ])
        .ok()
        .trim()
        .to_owned()
    }

    /// What a service has logged since then.
    pub fn logs(&self, service: &str, since: jiff::Timestamp) -> String {
        let out = docker(&["logs", "--since", &since.to_string(), &self.container(service)]);
        out.stdout + &out.stderr
    }

    /// Status and body of a GET through nginx; status 0 when nothing answered.
    pub fn http(&self, path: &str) -> (u16, String) {
        get(self.port, path).unwrap_or((0, String::new()))
    }

    /// Waits until a user gets an answer again.
    #[track_caller]
    pub fn wait_healthy(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let (status, body) = self.http("/health/ready");
            if status == 200 && self.http("/api/v1/orders/1").0 == 200 {
                return;
            }
            assert!(
                Instant::now() < end,
                "{} is not healthy again: {status} {body}",
                self.name
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Starts the traffic writer.
    pub fn traffic(&self) -> Traffic<'_> {
        let first = self
            .psql("select coalesce(max(traffic_no), 0) + 1 from orders")
            .unwrap();
        let log = self.dir.path().join(format!("acknowledged-{first}"));
        let child =
            Command::new(Path::new(ROOT).join(format!("target/lab/{}/bin/simgen-traffic", self.name)))
                .args([
                    "--url",
                    &format!("http://127.0.0.1:{}", self.port),
                    "--from",
                    &first,
                    "--log",
                ])
                .arg(&log)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
        Traffic {
            stack: self,
            child,
            log,
        }
    }

    /// Containers, networks and volumes that drctl made for this stack and that are still there.
    pub fn leftovers(&self) -> String {
        let label = format!("label=drctl.deployment={}", self.name);
        let mut found = String::new();
        for what in [&["ps", "-a"][..], &["network", "ls"], &["volume", "ls"]] {
            let mut args = what.to_vec();
            let format = if what[0] == "ps" {
                "{{.Names}} {{.Status}}"
            } else {
                "{{.Name}}"
            };
            args.extend(["--filter", &label, "--format", format]);
            found += &docker(&args).stdout;
        }
        found
    }

    fn lab(&self, args: &[&str], deadline: Duration) -> Output {
        let mut command = Command::new(Path::new(ROOT).join("tests/lab/lab"));
        command
            .current_dir(ROOT)
            .args(args)
            .envs(self.lab_env.iter().map(|(k, v)| (k, v)));
        run(&mut command, None, deadline)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // An ended helper is removed by the engine, a moment later.
        let end = Instant::now() + Duration::from_secs(10);
        let mut left = self.leftovers();
        while !left.is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(200));
            left = self.leftovers();
        }
        for line in left.lines() {
            let _ = docker(&["rm", "-f", line.split(' ').next().unwrap_or_default()]);
        }
        let down = self.lab(&["down", self.example], Duration::from_secs(120));
        eprintln!("{}: {} s", self.name, self.began.elapsed().as_secs());
        if !std::thread::panicking() {
            assert_eq!(left, "", "drctl left these behind");
            assert_eq!(down.code, Some(0), "{}", down.stderr);
        }
    }
}

/// A running traffic writer.
pub struct Traffic<'a> {
    stack: &'a Stack,
    child: Child,
    log: PathBuf,
}

/// What became of the orders that were acknowledged.
#[derive(Debug)]
pub struct Acknowledged {
    /// How many were acknowledged.
    pub count: usize,
    /// Numbers that the database does not have: acknowledged writes that were lost.
    pub lost: Vec<i64>,
}

impl Traffic<'_> {
    /// The writer's log: the number of an acknowledged order at the start of each line.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Numbers that were acknowledged so far.
    pub fn numbers(&self) -> Vec<i64> {
        std::fs::read_to_string(&self.log)
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.split(' ').next()?.parse().ok())
            .collect()
    }

    /// Ends the writer and compares its log with the database.
    pub fn finish(mut self) -> Acknowledged {
        let pid = self.child.id().to_string();
        run(
            Command::new("kill").args(["-TERM", &pid]),
            None,
            Duration::from_secs(5),
        )
        .ok();
        let end = Instant::now() + Duration::from_secs(20);
        while self.child.try_wait().unwrap().is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let numbers = self.numbers();
        let present: std::collections::HashSet<i64> = self
            .stack
            .psql(
                "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; \
                   select traffic_no from orders where traffic_no is not null",
            )
            .unwrap()
            .lines()
            .filter_map(|l| l.parse().ok())
            .collect();
        Acknowledged {
            count: numbers.len(),
            lost: numbers.into_iter().filter(|n| !present.contains(n)).collect(),
        }
    }
}

impl Drop for Traffic<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `docker` command with a deadline.
pub fn docker(args: &[&str]) -> Output {
    run(Command::new("docker").args(args), None, Duration::from_secs(60))
}

fn engine_answers() -> bool {
    Command::new("docker").arg("--version").output().is_ok()
        && run(
            Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]),
            None,
            Duration::from_secs(20),
        )
        .code
            == Some(0)
}

fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let address = ([127, 0, 0, 1], port).into();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let answer = read_all(&mut stream);
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, b)| b.to_owned())
        .unwrap_or_default();
    Some((status, body))
}
