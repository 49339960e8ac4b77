//! `drctl check` and `drctl status` on a real stack: who is told of what, and what a dead thing costs.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::stack::{Output, Stack, docker, run};

type Received = Arc<Mutex<Vec<String>>>;

fn count(received: &Received, word: &str) -> usize {
    received
        .lock()
        .unwrap()
        .iter()
        .filter(|m| m.contains(word))
        .count()
}

/// Keeps request line and body of every request; answers 200.
fn http_listener() -> (u16, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let received = Received::default();
    let kept = Arc::clone(&received);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let mut reader = BufReader::new(&stream);
            let mut first = String::new();
            let _ = reader.read_line(&mut first);
            let mut length = 0;
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) <= 2 {
                    break;
                }
                if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            let _ = reader.read_exact(&mut body);
            kept.lock()
                .unwrap()
                .push(format!("{}{}", first, String::from_utf8_lossy(&body)));
            let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (port, received)
}

/// Speaks as much SMTP as a client needs, and keeps every mail.
fn smtp_listener() -> (u16, Received) {
    fn talk(stream: TcpStream, kept: &Received) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut writer = stream;
        writer.write_all(b"220 test\r\n")?;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.get(..4).unwrap_or_default().to_uppercase().as_str() {
                "DATA" => {
                    writer.write_all(b"354 go on\r\n")?;
                    let mut mail = String::new();
                    loop {
                        let mut line = String::new();
                        reader.read_line(&mut line)?;
                        if line == ".\r\n" {
                            break;
                        }
                        mail += &line;
                    }
                    kept.lock().unwrap().push(mail);
                    writer.write_all(b"250 kept\r\n")?;
                }
                "QUIT" => return writer.write_all(b"221 bye\r\n"),
                _ => writer.write_all(b"250 test\r\n")?,
            }
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let received = Received::default();
    let kept = Arc::clone(&received);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = talk(stream, &kept);
        }
    });
    (port, received)
}

fn add_to_runbook(stack: &Stack, text: &str) {
    stack.write_runbook("lab");
    let mut runbook = std::fs::read_to_string(stack.runbook()).unwrap();
    // The machine that runs the tests is busy: only what this test breaks may be found.
    runbook = runbook
        .replace("response-time-p95: 500ms", "response-time-p95: 20s")
        .replace("disk: 80", "disk: 99.9")
        .replace("memory: 85", "memory: 99.9");
    writeln!(runbook, "{text}").unwrap();
    std::fs::write(stack.runbook(), runbook).unwrap();
}

#[track_caller]
fn ended(out: &Output, code: i32, word: &str) {
    assert_eq!(out.code, Some(code), "{}\n{}", out.stdout, out.stderr);
    let first = out.stdout.lines().next().unwrap_or_default();
    assert!(first.starts_with(&format!("DRCTL {word} - ")), "{first}");
}

fn wait_well(stack: &Stack) {
    stack.wait_healthy();
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        let services = ["postgres", "redis", "api1", "api2", "cv_service", "nginx"];
        if services
            .iter()
            .all(|s| stack.inspect(s, "{{.State.Health.Status}}") == "healthy")
        {
            return;
        }
        assert!(Instant::now() < end, "the containers are not healthy again");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// One fault in the middle of three runs: one alert and one recovery by every way, and the right exit codes.
#[test]
fn one_alert_and_one_recovery() {
    let Some(stack) = Stack::up("check") else { return };
    let (http, posted) = http_listener();
    let (smtp, mailed) = smtp_listener();
    let log = stack.dir.path().join("commanded");
    let secret = stack.dir.path().join("webhook");
    std::fs::write(&secret, format!("http://127.0.0.1:{http}/hunter2\n")).unwrap();
    let ways = format!(
        "alerts: {{ deadline: 5s }}\nnotify:\n  - webhook: {{ url: {{ file: {} }} }}\n  - ping: {{ url: {{ plain: 'http://127.0.0.1:{http}/ping' }} }}\n  \
         - email: {{ host: 127.0.0.1, port: {smtp}, tls: none, from: drctl@example.com, to: [ops@example.com] }}\n  \
         - command: {{ argv: [sh, -c, 'echo \"$DRCTL_KIND\" >> {}; cat >/dev/null'] }}\n  \
         - webhook: {{ url: {{ plain: 'http://127.0.0.1:1/nobody' }} }}\n",
        secret.display(),
        log.display()
    );
    add_to_runbook(&stack, &ways);
    // Without a backup nothing is well.
    ended(&stack.drctl(&["check", "--dry-run"]), 2, "CRITICAL");
    assert!(!stack.state().join("check").exists(), "a dry run writes nothing");
    stack.drctl(&["backup"]).ok();
    wait_well(&stack);

    let textfile = stack.dir.path().join("drctl.prom");
    let path = textfile.to_str().unwrap();
    let began = Instant::now();
    let healthy = stack.drctl(&["check", "--textfile", path]);
    eprintln!("check of a healthy stack: {:?}", began.elapsed());
    ended(&healthy, 0, "OK");
    assert!(healthy.stdout.lines().next().unwrap().contains(" | ") && healthy.stdout.contains("disk_/="));
    assert_eq!(
        (
            count(&posted, "hunter2"),
            count(&posted, "POST /ping HTTP"),
            mailed.lock().unwrap().len()
        ),
        (0, 1, 0)
    );
    promtool(&textfile);

    docker(&["stop", "-t", "5", &stack.container("redis")]).ok();
    let broken = stack.drctl(&["check"]);
    ended(&broken, 2, "CRITICAL");
    assert!(
        broken.stdout.contains("service redis: it does not run"),
        "{}",
        broken.stdout
    );
    // One way is out of order: said, and nothing else is changed by it.
    assert!(
        broken.stderr.contains("webhook to 127.0.0.1") && !broken.stderr.contains("hunter2"),
        "{}",
        broken.stderr
    );
    ended(&stack.drctl(&["check"]), 2, "CRITICAL");

    docker(&["start", &stack.container("redis")]).ok();
    wait_well(&stack);
    ended(&stack.drctl(&["check"]), 0, "OK");
    ended(&stack.drctl(&["check"]), 0, "OK");

    let all = posted.lock().unwrap().clone();
    assert_eq!(count(&posted, "POST /hunter2"), 2, "{all:#?}");
    assert!(
        count(&posted, "CRITICAL: ") >= 1 && count(&posted, "well again") == 1,
        "{all:#?}"
    );
    assert_eq!(count(&posted, "POST /ping/fail HTTP"), 2, "{all:#?}");
    assert_eq!(count(&posted, "POST /ping HTTP"), 3, "{all:#?}");
    let mails = mailed.lock().unwrap().clone();
    assert_eq!(mails.len(), 2, "{mails:#?}");
    assert!(
        mails[0].contains("CRITICAL") && mails[1].contains("well again"),
        "{mails:#?}"
    );
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "alert\nrecovery\n");
    // What the broken way has missed waits for it, without the secret.
    let memory = std::fs::read_to_string(stack.state().join(format!("check/{}.json", stack.name))).unwrap();
    assert!(memory.contains("well again") && !memory.contains("hunter2"));

    maintenance(&stack, &ways, &posted);
    without_memory(&stack, &posted);
    dead_engine(&stack);
    frozen_server(&stack);
}

fn promtool(file: &std::path::Path) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(
        text.contains("drctl_check_status{") && text.contains("# TYPE drctl_service_up gauge"),
        "{text}"
    );
    if Command::new("promtool").arg("--version").output().is_err() {
        assert!(
            std::env::var("DRCTL_REQUIRE_DOCKER").as_deref() != Ok("1"),
            "promtool is missing: apt-get install prometheus"
        );
        eprintln!("SKIPPED promtool check metrics: there is no promtool (Debian package prometheus)");
        return;
    }
    let checked = run(
        Command::new("promtool").args(["check", "metrics"]),
        Some(&text),
        Duration::from_secs(20),
    );
    assert_eq!(checked.code, Some(0), "{}{}", checked.stdout, checked.stderr);
}

/// In a window nobody is told, and what is still wrong at its end is told then.
fn maintenance(stack: &Stack, ways: &str, posted: &Received) {
    let hooks = count(posted, "POST /hunter2");
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let (from, to) = (today.yesterday().unwrap(), today.tomorrow().unwrap());
    let window = format!(
        "alerts: {{ deadline: 5s, maintenance: [{{ once: {{ from: {from}T00:00, to: {to}T23:00, time-zone: UTC }} }}] }}"
    );
    add_to_runbook(stack, &ways.replace("alerts: { deadline: 5s }", &window));
    docker(&["pause", &stack.container("redis")]).ok();
    let out = stack.drctl(&["check"]);
    ended(&out, 2, "CRITICAL");
    let until = format!("(maintenance until {to}");
    assert!(out.stdout.contains(&until), "{}", out.stdout);
    assert_eq!(count(posted, "POST /hunter2"), hooks);
    add_to_runbook(stack, ways);
    ended(&stack.drctl(&["check"]), 2, "CRITICAL");
    assert_eq!(count(posted, "POST /hunter2"), hooks + 1);
    docker(&["unpause", &stack.container("redis")]).ok();
    wait_well(stack);
    ended(&stack.drctl(&["check"]), 0, "OK");
    assert_eq!(count(posted, "POST /hunter2"), hooks + 2);
}

/// A state directory that cannot be written changes nothing but what is said.
fn without_memory(stack: &Stack, posted: &Received) {
    let hooks = count(posted, "POST /hunter2");
    let mut command = stack.command(&["check"]);
    // Nobody can write there, not even root.
    command.env("DRCTL_STATE_DIR", "/proc/drctl");
    let out = run(&mut command, None, Duration::from_secs(60));
    ended(&out, 0, "OK");
    assert!(out.stderr.contains("cannot be written"), "{}", out.stderr);
    assert_eq!(count(posted, "POST /hunter2"), hooks);
    for entry in std::fs::read_dir("/dev/shm/drctl-0/check")
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{}-", stack.name))
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// No engine, or one that accepts and never answers: UNKNOWN, within the deadline.
fn dead_engine(stack: &Stack) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("tcp://{}", listener.local_addr().unwrap());
    for host in ["unix:///nonexistent/docker.sock", &silent] {
        let mut command = stack.command(&["check", "--no-notify"]);
        command.env("DOCKER_HOST", host);
        let began = Instant::now();
        let out = run(&mut command, None, Duration::from_secs(30));
        ended(&out, 3, "UNKNOWN");
        assert!(
            began.elapsed() < Duration::from_millis(4500),
            "{host}: {:?}",
            began.elapsed()
        );
        // What can be seen without it is seen.
        assert!(out.stdout.contains("[OK] endpoint health"), "{}", out.stdout);
    }
    // What is critical without it is not hidden behind it: here there is no backup.
    let backups = stack.dir.path().join("backups");
    let set_aside = stack.dir.path().join("backups-aside");
    std::fs::rename(&backups, &set_aside).unwrap();
    let mut command = stack.command(&["check", "--no-notify"]);
    command.env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    let out = run(&mut command, None, Duration::from_secs(30));
    std::fs::rename(&set_aside, &backups).unwrap();
    ended(&out, 2, "CRITICAL");
    let out = run(
        Command::new(env!("CARGO_BIN_EXE_drctl")).args(["check", "-r", "/nonexistent.yaml"]),
        None,
        Duration::from_secs(30),
    );
    ended(&out, 3, "UNKNOWN");
    let out = run(
        Command::new(env!("CARGO_BIN_EXE_drctl")).args(["check", "--no-such-option"]),
        None,
        Duration::from_secs(30),
    );
    ended(&out, 3, "UNKNOWN");
}

/// A server that accepts and never answers costs its own deadline, and every other row is there.
fn frozen_server(stack: &Stack) {
    let began = Instant::now();
    stack.drctl(&["status"]).ok();
    eprintln!("status of a healthy stack: {:?}", began.elapsed());
    let postgres = stack.container("postgres");
    docker(&["kill", "-s", "STOP", &postgres]).ok();
    // It stops when it is its turn on a processor.
    let end = Instant::now() + Duration::from_secs(10);
    while !docker(&["top", &postgres, "-eo", "pid,stat"]).ok().contains(" T") {
        assert!(Instant::now() < end, "it goes on");
        std::thread::sleep(Duration::from_millis(50));
    }
    let began = Instant::now();
    let out = stack.drctl(&["status"]);
    let took = began.elapsed();
    docker(&["kill", "-s", "CONT", &postgres]).ok();
    eprintln!("status with a frozen server: {took:?}");
    assert_eq!(out.code, Some(10), "{}{}", out.stdout, out.stderr);
    assert!(took < Duration::from_millis(3500), "{took:?}\n{}", out.stdout);
    for words in [
        "frozen",
        "did not answer",
        "noeviction",
        "REDIS",
        "live",
        "objective",
    ] {
        assert!(out.stdout.contains(words), "{words} is missing:\n{}", out.stdout);
    }
    wait_well(stack);
}
