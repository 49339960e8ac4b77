//! A deployment on another host: the engine behind an SSH server of the test's own, which lets the key do nothing
//! but forward. Everything that works beside the engine works from afar, and whatever is cut off leaves nothing.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::stack::{Output, Stack, docker, run};

/// With a probe deadline of three seconds, and a start of the program.
const ANSWER: Duration = Duration::from_secs(6);
/// What a staging volume may outlive its drctl.
const HOLDER: Duration = Duration::from_secs(40);
const SSHD: &str = "/usr/sbin/sshd";

/// An SSH server on the loopback address with keys of its own.
struct Server {
    child: Child,
    dir: TempDir,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// `None`, and said so, where no SSH server is installed.
    fn start() -> Option<Self> {
        if !Path::new(SSHD).exists() {
            assert!(
                std::env::var("DRCTL_REQUIRE_DOCKER").as_deref() != Ok("1"),
                "DRCTL_REQUIRE_DOCKER=1 and there is no {SSHD}: apt-get install openssh-server"
            );
            eprintln!("SKIPPED remote: there is no {SSHD}, nothing of it was tested");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["host", "key", "stranger"] {
            run(
                Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(path(name)),
                None,
                Duration::from_secs(20),
            )
            .ok();
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let key = fs::read_to_string(path("key.pub")).unwrap();
        // No command, no terminal: nothing of drctl may need to run there.
        let only_forward = format!("restrict,port-forwarding,command=\"/bin/false\" {key}");
        fs::write(path("authorized_keys"), only_forward).unwrap();
        let host = fs::read_to_string(path("host.pub")).unwrap();
        fs::write(path("known_hosts"), format!("[127.0.0.1]:{port} {host}")).unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized_keys\n\
             PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\n",
            dir.path().display()
        );
        fs::write(path("sshd_config"), config).unwrap();
        // The clients of the tests read no configuration but this.
        for (name, key, hosts) in [
            ("good", "key", "known_hosts"),
            ("wrong-key", "stranger", "known_hosts"),
            ("unknown-host", "key", "no_hosts"),
        ] {
            let config = format!(
                "Host *\nIdentityFile {0}/{key}\nIdentitiesOnly yes\nUserKnownHostsFile {0}/{hosts}\n\
                 GlobalKnownHostsFile /dev/null\n",
                dir.path().display()
            );
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("config"), config).unwrap();
            let program = path(name).join("ssh");
            fs::write(
                &program,
                format!(
                    "#!/bin/sh\nexec /usr/bin/ssh -F '{}' \"$@\"\n",
                    path(name).join("config").display()
                ),
            )
            .unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let _ = fs::create_dir_all("/run/sshd");
        let child = Command::new(SSHD)
            .args(["-D", "-e", "-f"])
            .arg(path("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("sshd.log")).unwrap())
            .spawn()
            .unwrap();
        let server = Self { child, dir, port };
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "sshd does not listen: {}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("sshd.log")).unwrap_or_default()
    }

    fn address(&self) -> String {
        format!("ssh://root@127.0.0.1:{}", self.port)
    }

    /// The stack's runbook with that engine, and so long for one question.
    fn runbook(&self, stack: &Stack, address: &str, probe: &str) -> PathBuf {
        let text = fs::read_to_string(stack.runbook()).unwrap();
        let text = text
            .lines()
            .map(|line| match line.trim_start().split_once(": ") {
                Some(("compose-project", _)) => format!("{line}\n    host: {address}\n"),
                Some(("probe", _)) => format!("  probe: {probe}\n"),
                _ => format!("{line}\n"),
            })
            .collect::<String>();
        let path = self.dir.path().join(format!("drctl-{probe}.yaml"));
        fs::write(&path, text).unwrap();
        path
    }

    /// A `drctl` that reaches the stack from afar, as one of the clients.
    fn command_as(&self, stack: &Stack, client: &str, address: &str, args: &[&str]) -> Command {
        self.command_within(stack, client, address, "3s", args)
    }

    fn command_within(
        &self,
        stack: &Stack,
        client: &str,
        address: &str,
        probe: &str,
        args: &[&str],
    ) -> Command {
        let path = format!(
            "{}:{}",
            self.dir.path().join(client).display(),
            std::env::var("PATH").unwrap()
        );
        let mut command = stack.command(args);
        command
            .env("DRCTL_RUNBOOK", self.runbook(stack, address, probe))
            .env("PATH", path)
            .env_remove("SSH_AUTH_SOCK");
        command
    }

    fn command(&self, stack: &Stack, args: &[&str]) -> Command {
        // On a busy machine the search for damage would end before it has seen everything.
        self.command_within(stack, "good", &self.address(), "10s", args)
    }

    fn drctl(&self, stack: &Stack, args: &[&str]) -> Output {
        run(&mut self.command(stack, args), None, Duration::from_secs(180))
    }

    fn agreed(&self, stack: &Stack, args: &[&str]) -> Output {
        self.drctl(stack, &agreed(stack, args))
    }

    /// Processes of clients: whoever names the configuration that only they have.
    fn clients(&self) -> Vec<u32> {
        let mark = format!("{}/config", self.dir.path().join("good").display());
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(&mark)
            })
            .collect()
    }

    #[track_caller]
    fn no_clients(&self) {
        let end = Instant::now() + Duration::from_secs(3);
        while !self.clients().is_empty() {
            assert!(
                Instant::now() < end,
                "ssh outlived its drctl: {:?}",
                self.clients()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let sockets: Vec<_> = ["/dev/shm", "/tmp"]
            .iter()
            .filter_map(|place| fs::read_dir(place).ok())
            .flatten()
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("drctl-ssh-"))
            // Of other runs on this machine, whose drctl is alive.
            .filter(|name| {
                let pid = name.split('-').nth(2).unwrap_or_default().to_owned();
                !Path::new("/proc").join(pid).exists()
            })
            .collect();
        assert_eq!(sockets, [""; 0], "directories of sockets are left");
    }
}

fn agreed<'a>(stack: &'a Stack, args: &[&'a str]) -> Vec<&'a str> {
    let mut all = args.to_vec();
    all.extend(["--yes", "--confirm", &stack.name, "--json"]);
    all
}

fn signal(name: &str, pid: u32) {
    let _ = run(
        Command::new("kill").args([name, &pid.to_string()]),
        None,
        Duration::from_secs(5),
    );
}

#[test]
fn a_deployment_on_another_host() {
    let Some(server) = Server::start() else { return };
    let Some(stack) = Stack::up("remote") else { return };
    let part = |name: &str, what: &dyn Fn(&Server, &Stack)| {
        let began = Instant::now();
        what(&server, &stack);
        server.no_clients();
        eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
    };
    part("no way in", &without_a_way_in_it_says_so_in_time);
    part("backup, verify", &backups_come_here_whole);
    part("recover", &damage_is_recovered_from_afar);
    part("kill -9", &killed_half_way_it_is_resumed);
    part("ssh killed", &cut_off_half_way_it_is_finished);
    part("abandoned volumes", &only_its_own_volumes_are_swept);
    assert_eq!(stack.leftovers_after(HOLDER), "");
}

/// The guide's deployment, as its runbook names it: found damaged, restored and proven from afar.
#[test]
fn the_trading_service_on_another_host() {
    let Some(server) = Server::start() else { return };
    let Some(stack) = Stack::up_example("trading", "trading", &[]) else {
        return;
    };
    let rows = |sql: &str| {
        let container = stack.container("db");
        let psql = [
            "exec", &container, "psql", "-XqtA", "-U", "postgres", "-d", "trading", "-c", sql,
        ];
        docker(&psql)
    };
    server.drctl(&stack, &["backup"]).ok();
    let before = rows("select count(*), sum(quantity * price) from orders").ok();
    server
        .drctl(&stack, &["drill", "inject", "db-corruption/heap-page"])
        .ok();
    assert_ne!(rows("select sum(quantity * price) from orders").code, Some(0));
    let out = server.agreed(&stack, &["recover", "db-corruption"]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    let report = out.event("report");
    assert_eq!(report["report"]["outcome"], "verified");
    for check in ["every foreign key is validated", "no filled order without a fill"] {
        assert!(out.stdout.contains(check), "{check} was not asked");
    }
    // But for the one order of the write check.
    let after = rows("select count(*) - 1, sum(quantity * price) - 1 from orders").ok();
    assert_eq!(
        after.replace(".000000000000", ""),
        before.replace(".000000000000", "")
    );
    let (status, body) = stack.http("/healthz");
    assert_eq!(status, 200, "{body}");
    let incident = report["report"]["incident"].as_str().unwrap();
    server.agreed(&stack, &["incident", "close", incident]).ok();
    server.drctl(&stack, &["drill", "heal", "--all", "--forget"]).ok();
    server.no_clients();
    assert_eq!(stack.leftovers_after(HOLDER), "");
}

/// Expects exit code 7 in time, and these words.
#[track_caller]
fn no_way(what: &str, command: &mut Command, words: &[&str]) {
    let began = Instant::now();
    let out = run(command, None, Duration::from_secs(60));
    let took = began.elapsed();
    let said = format!(
        "{what}: {:?} after {took:.1?}: {}{}",
        out.code, out.stdout, out.stderr
    );
    assert_eq!(out.code, Some(7), "{said}");
    assert!(took < ANSWER, "{said}");
    for word in words {
        assert!(out.stderr.contains(word), "{word:?} is missing: {said}");
    }
}

fn without_a_way_in_it_says_so_in_time(server: &Server, stack: &Stack) {
    let login = "root@127.0.0.1";
    let unused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let nobody = format!("ssh://{login}:{unused}");
    let try_as = |client: &str, address: &str| server.command_as(stack, client, address, &["diagnose"]);
    let good = server.address();
    no_way(
        "nothing listens",
        &mut try_as("good", &nobody),
        &[login, "Connection refused"],
    );
    no_way(
        "wrong key",
        &mut try_as("wrong-key", &good),
        &[login, "Permission denied"],
    );
    no_way(
        "unknown host",
        &mut try_as("unknown-host", &good),
        &[
            login,
            "Host key verification failed",
            &format!("ssh -p {}", server.port),
        ],
    );
    no_way(
        "no engine there",
        &mut try_as("good", &format!("{good}/nowhere/docker.sock")),
        &[login, "/nowhere/docker.sock", "open failed"],
    );
    let mut without = try_as("good", &good);
    no_way(
        "no ssh here",
        without.env("PATH", "/nowhere"),
        &["openssh-client"],
    );
    // It accepts, and says nothing.
    signal("-STOP", server.child.id());
    no_way("a server that hangs", &mut try_as("good", &good), &[login]);
    signal("-CONT", server.child.id());
}

fn backups_come_here_whole(server: &Server, stack: &Stack) {
    stack
        .psql(
            "insert into accounts select m + n, 1, n, repeat(md5(n::text), 2) \
             from generate_series(1, 100000) n, (select coalesce(max(id), 0) m from accounts) s",
        )
        .unwrap();
    let out = server.drctl(stack, &["backup", "--json"]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    let set = PathBuf::from(out.event("backup")["path"].as_str().unwrap());
    assert!(set.join("postgres/base/PG_VERSION").is_file());
    let plain = fs::read_dir(set.join("postgres/simgen"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "dat") && !p.ends_with("toc.dat"))
        .count();
    assert_eq!(plain, 0, "data files that were not compressed");
    assert_eq!(stack.leftovers_after(Duration::from_secs(5)), "");
    // From afar and from beside: the same set, the same verdict.
    for out in [
        server.drctl(stack, &["backup", "verify", "--json"]),
        stack.drctl(&["backup", "verify", "--json"]),
    ] {
        assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    }
    // A byte of it changed is found from afar as well.
    let victim = set.join("postgres/base/PG_VERSION");
    let whole = fs::read(&victim).unwrap();
    fs::write(&victim, "16\n").unwrap();
    let out = server.drctl(stack, &["backup", "verify", "--json"]);
    assert_eq!(out.code, Some(11), "{}{}", out.stdout, out.stderr);
    fs::write(&victim, whole).unwrap();
    // Whole again, and no recovery takes it before a verification has said so.
    server.drctl(stack, &["backup", "verify"]).ok();
    assert_eq!(stack.leftovers_after(Duration::from_secs(5)), "");
}

fn damage_is_recovered_from_afar(server: &Server, stack: &Stack) {
    for (fault, remedy) in [
        ("index-page", "reindex"),
        ("heap-page", "restore-database"),
        ("pg-control", "restore-cluster"),
    ] {
        let fault = format!("db-corruption/{fault}");
        let injected = server.drctl(stack, &["drill", "inject", &fault]);
        assert_eq!(injected.code, Some(0), "{fault}: {}", injected.stderr);
        let began = Instant::now();
        let out = server.agreed(stack, &["recover", "db-corruption"]);
        assert_eq!(out.code, Some(0), "{fault}: {}{}", out.stdout, out.stderr);
        let took = began.elapsed().as_secs_f64();
        assert_eq!(out.event("plan")["plan"]["remedy"], remedy, "{fault}");
        let report = out.event("report");
        assert_eq!(report["report"]["outcome"], "verified", "{fault}");
        stack.wait_healthy();
        let incident = report["report"]["incident"].as_str().unwrap();
        if remedy == "restore-database" {
            server.agreed(stack, &["incident", "undo", incident]).ok();
            assert!(stack.psql("select sum(amount) from orders").is_err());
            let again = server.agreed(stack, &["recover", "db-corruption"]);
            assert_eq!(again.code, Some(0), "{}{}", again.stdout, again.stderr);
            let second = again.event("report")["report"]["incident"]
                .as_str()
                .unwrap()
                .to_owned();
            server.agreed(stack, &["incident", "close", &second]).ok();
        }
        server.agreed(stack, &["incident", "close", incident]).ok();
        server.drctl(stack, &["drill", "heal", "--all", "--forget"]).ok();
        assert_eq!(stack.leftovers_after(Duration::from_secs(5)), "", "{fault}");
        eprintln!("  {fault} by {remedy}: {took:.1} s");
    }
    // A physical restore began a new timeline.
    server.drctl(stack, &["backup"]).ok();
}

/// Injects damage that a restore of the database mends, begins the recovery, and waits until its helper works on
/// what was sent.
fn half_way(server: &Server, stack: &Stack) -> Child {
    // From beside: what ends the fault when its time is over would be one more ssh.
    stack.drctl(&["drill", "inject", "db-corruption/heap-page"]).ok();
    let mut child = server
        .command(stack, &agreed(stack, &["recover", "db-corruption"]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(server.dir.path().join("recover.log")).unwrap())
        .spawn()
        .unwrap();
    // Read to the end, or it would wait for us.
    let out = child.stdout.take().unwrap();
    std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).count());
    let end = Instant::now() + Duration::from_secs(60);
    let label = format!("label=drctl.deployment={}", stack.name);
    loop {
        let purposes = docker(&[
            "ps",
            "--filter",
            &label,
            "--format",
            "{{.Label \"drctl.purpose\"}}",
        ]);
        if purposes.stdout.lines().any(|l| l == "pg-restore") {
            return child;
        }
        let ended = child.try_wait().unwrap();
        assert!(
            ended.is_none() && Instant::now() < end,
            "no restore was seen: {ended:?} {}",
            fs::read_to_string(server.dir.path().join("recover.log")).unwrap()
        );
    }
}

fn newest(stack: &Stack) -> String {
    fs::read_dir(stack.state().join("incidents"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .max()
        .unwrap()
}

#[track_caller]
fn finish(server: &Server, stack: &Stack, incident: &str) {
    stack.wait_healthy();
    assert!(stack.psql("select sum(amount) from orders").is_ok());
    server.agreed(stack, &["incident", "close", incident]).ok();
    stack.drctl(&["drill", "heal", "--all", "--forget"]).ok();
    let databases = stack
        .psql("select datname from pg_database where datname ~ 'drctl'")
        .unwrap();
    assert_eq!(databases, "");
}

fn killed_half_way_it_is_resumed(server: &Server, stack: &Stack) {
    let mut child = half_way(server, stack);
    child.kill().unwrap();
    child.wait().unwrap();
    server.no_clients();
    // Nobody has to come and clean up.
    assert_eq!(stack.leftovers_after(HOLDER), "");
    let incident = newest(stack);
    let out = server.agreed(stack, &["incident", "resume", &incident]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    assert_eq!(out.event("report")["report"]["outcome"], "verified");
    finish(server, stack, &incident);
}

fn cut_off_half_way_it_is_finished(server: &Server, stack: &Stack) {
    let mut child = half_way(server, stack);
    let clients = server.clients();
    assert!(!clients.is_empty());
    for pid in clients {
        signal("-KILL", pid);
    }
    let began = Instant::now();
    let code = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
        if began.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            panic!("it hangs without its ssh");
        }
    };
    let said = fs::read_to_string(server.dir.path().join("recover.log")).unwrap();
    let incident = newest(stack);
    eprintln!(
        "  ssh killed: exit code {code:?} after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    match code {
        // Taken back over a new connection: nothing is left to do but to begin again.
        Some(8) => {
            let out = server.agreed(stack, &["recover", "db-corruption"]);
            assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
            server.agreed(stack, &["incident", "close", &incident]);
            finish(server, stack, &newest(stack));
        }
        Some(9) => {
            let out = server.agreed(stack, &["incident", "resume", &incident]);
            assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
            finish(server, stack, &incident);
        }
        other => panic!("exit code {other:?}: {said}"),
    }
    assert_eq!(stack.leftovers_after(HOLDER), "");
}

fn only_its_own_volumes_are_swept(server: &Server, stack: &Stack) {
    let mine = format!("drctl.deployment={}", stack.name);
    let create = |name: &str, labels: &[&str]| {
        let name = format!("{}-{name}", stack.name);
        let mut args = vec!["volume", "create"];
        for label in labels {
            args.extend(["--label", label]);
        }
        args.push(&name);
        docker(&args).ok();
        name
    };
    let abandoned = create("abandoned", &[&mine, "drctl.purpose=backup-base-staging"]);
    let others = create(
        "others",
        &["drctl.deployment=another", "drctl.purpose=backup-base-staging"],
    );
    let plain = create("plain", &[&mine]);
    server.drctl(stack, &["diagnose"]).ok();
    let there = |name: &str| docker(&["volume", "inspect", name]).code == Some(0);
    let seen = (there(&abandoned), there(&others), there(&plain));
    for name in [&abandoned, &others, &plain] {
        docker(&["volume", "rm", "-f", name]);
    }
    assert_eq!(
        seen,
        (false, true, true),
        "abandoned, another deployment's, not a helper's"
    );
}
