//! A world that does not answer: drctl does, in time, and says what to type next.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::stack::{Output, Stack, docker, run};

/// With a probe deadline of three seconds. Every case is bounded by it several times over at most.
pub const ANSWER: Duration = Duration::from_secs(15);

/// A small runbook that needs no stack.
fn runbook(directory: &Path, docker_host: &str) -> PathBuf {
    let path = directory.join("drctl.yaml");
    let text = format!(
        "version: 1\ndeployment: nobody\nenvironment: lab\nplatform:\n  docker:\n    host: \"{docker_host}\"\n\
         objectives: {{ rto: 2h, rpo: 24h }}\nservices:\n  postgres:\n    kind: postgres\n    postgres:\n      \
         admin-user: postgres\n      databases: {{ app: {{}} }}\nbackup:\n  directory: {}\n",
        directory.join("backups").display()
    );
    fs::write(&path, text).unwrap();
    path
}

pub fn recover(runbook: &Path, state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drctl"));
    command
        .env_remove("DOCKER_HOST")
        .env("DRCTL_RUNBOOK", runbook)
        .env("DRCTL_STATE_DIR", state)
        .args([
            "recover",
            "db-corruption",
            "--yes",
            "--confirm",
            "nobody",
            "--json",
        ]);
    command
}

/// Runs it and expects one of these exit codes in time, with an error that helps.
#[track_caller]
pub fn answers(what: &str, command: &mut Command, codes: &[i32], words: &[&str]) -> Output {
    let started = Instant::now();
    let out = run(command, None, ANSWER + Duration::from_secs(15));
    let took = started.elapsed();
    let error = out.event("error");
    let said = format!(
        "{what}: {:?} after {took:.1?}: {}{}",
        out.code, out.stdout, out.stderr
    );
    assert!(out.code.is_some_and(|c| codes.contains(&c)), "{said}");
    assert!(took < ANSWER, "{said}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {said}");
    }
    assert!(
        error["not-touched"]
            .as_str()
            .is_some_and(|t| t.contains("everything")),
        "{said}"
    );
    assert!(
        error["next"].as_array().is_some_and(|n| !n.is_empty()),
        "no next command: {said}"
    );
    eprintln!(
        "{what:<44} exit {:>2} in {:.1} s",
        out.code.unwrap_or(-1),
        took.as_secs_f64()
    );
    out
}

/// A unix socket whose connections are kept and never answered.
fn silent_socket(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            kept.push(stream);
        }
    });
}

/// Passes on what is said to the real engine until a request, counted from 1, is one to hang at; from that one on
/// nothing comes back.
pub fn hanging_socket(path: &Path, hangs: impl Fn(usize, &[u8]) -> bool + Send + Sync + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    let hangs = Arc::new(hangs);
    let seen = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (seen, hangs) = (seen.clone(), hangs.clone());
            std::thread::spawn(move || pass_on(client, &seen, &*hangs));
        }
    });
}

fn pass_on(mut client: UnixStream, seen: &AtomicUsize, hangs: &(impl Fn(usize, &[u8]) -> bool + ?Sized)) {
    let engine = std::env::var("DOCKER_HOST").unwrap_or_default();
    let engine = engine
        .strip_prefix("unix://")
        .unwrap_or("/var/run/docker.sock")
        .to_owned();
    let Ok(mut engine) = UnixStream::connect(engine) else {
        return;
    };
    let (Ok(mut back), Ok(mut to_client)) = (engine.try_clone(), client.try_clone()) else {
        return;
    };
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let mut buffer = vec![0_u8; 64 * 1024];
    while let Ok(n) = client.read(&mut buffer) {
        let begins = [&b"GET "[..], b"POST ", b"DELETE ", b"PUT "];
        if n > 0 && begins.iter().any(|b| buffer[..n].starts_with(b)) {
            let number = seen.fetch_add(1, Ordering::SeqCst) + 1;
            if hangs(number, &buffer[..n]) {
                // Accepted, and never answered: the thread sleeps until the test is over.
                loop {
                    std::thread::sleep(Duration::from_secs(60));
                }
            }
        }
        if n == 0 || engine.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = engine.shutdown(Shutdown::Write);
}

#[test]
fn an_engine_that_is_not_there_is_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let host = |name: &str| format!("unix://{}", at(name).display());

    let rb = runbook(dir.path(), &host("absent.sock"));
    answers(
        "no socket",
        &mut recover(&rb, &at("state")),
        &[7],
        &["absent.sock", "no socket"],
    );

    drop(UnixListener::bind(at("dead.sock")).unwrap());
    let rb = runbook(dir.path(), &host("dead.sock"));
    answers(
        "nobody listens",
        &mut recover(&rb, &at("state")),
        &[7],
        &["dead.sock"],
    );

    silent_socket(&at("silent.sock"));
    let rb = runbook(dir.path(), &host("silent.sock"));
    answers(
        "accepts and is silent",
        &mut recover(&rb, &at("state")),
        &[7],
        &["silent.sock"],
    );

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rb = runbook(dir.path(), &format!("tcp://{closed}"));
    answers(
        "tcp, refused",
        &mut recover(&rb, &at("state")),
        &[7],
        &[&closed.to_string()],
    );

    refusing_permission(dir.path());
}

/// `status` and `check` show what is known without the engine, in time, and their exit codes say that the rest is not.
#[test]
fn what_is_known_without_an_engine_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    silent_socket(&at("silent.sock"));
    for socket in ["absent.sock", "silent.sock"] {
        let rb = runbook(dir.path(), &format!("unix://{}", at(socket).display()));
        // The monitoring plugins' CRITICAL is 2: that there is no backup is known without an engine.
        for (verb, code) in [("status", 7), ("check", 2)] {
            let started = Instant::now();
            let mut command = Command::new(env!("CARGO_BIN_EXE_drctl"));
            command
                .env_remove("DOCKER_HOST")
                .env("DRCTL_RUNBOOK", &rb)
                .env("DRCTL_STATE_DIR", at("state"))
                .arg(verb);
            let out = run(&mut command, None, ANSWER + Duration::from_secs(15));
            let said = format!(
                "{verb} with {socket}: {:?}\n{}{}",
                out.code, out.stdout, out.stderr
            );
            assert_eq!(out.code, Some(code), "{said}");
            assert!(started.elapsed() < ANSWER, "{said}");
            assert!(out.stdout.contains("engine"), "{said}");
            // There is no set, which needs no engine to be known.
            assert!(out.stdout.contains("backup"), "{said}");
            eprintln!("{said}");
        }
    }
}

/// As somebody who may not use the engine.
fn refusing_permission(dir: &Path) {
    if run(
        Command::new("setpriv").args(["--reuid", "65534", "true"]),
        None,
        ANSWER,
    )
    .code
        != Some(0)
    {
        eprintln!("SKIPPED permission: setpriv cannot change the user here");
        return;
    }
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(dir, open).unwrap();
    let socket = dir.join("private.sock");
    silent_socket(&socket);
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
    let rb = runbook(dir, &format!("unix://{}", socket.display()));
    let state = dir.join("nobody");
    fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(65534), Some(65534)).unwrap();
    let inner = recover(&rb, &state);
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    answers(
        "permission refused",
        &mut command,
        &[7],
        &["permission denied", "private.sock"],
    );
}

#[test]
fn what_hangs_later_is_an_answer_too() {
    let Some(stack) = Stack::up("silence") else { return };
    let sound = fs::read_to_string(stack.runbook()).unwrap();
    let run_with = |text: &str| {
        fs::write(stack.runbook(), text).unwrap();
        let mut command = stack.command(&[
            "recover",
            "db-corruption",
            "--yes",
            "--confirm",
            &stack.name,
            "--json",
        ]);
        command.env_remove("DOCKER_HOST");
        command
    };

    // The engine stops answering in the middle.
    for requests in [1, 2, 3, 4, 6, 8] {
        let socket = stack.dir.path().join(format!("hang-{requests}.sock"));
        hanging_socket(&socket, move |number, _| number > requests);
        let text = sound.replace(
            "  docker:\n",
            &format!("  docker:\n    host: \"unix://{}\"\n", socket.display()),
        );
        assert_ne!(text, sound);
        let what = format!("the engine hangs after {requests} requests");
        if requests < 3 {
            answers(&what, &mut run_with(&text), &[7], &["hang-"]);
            continue;
        }
        // The database itself answers, so that there is a diagnosis; what could not be looked at is said.
        let started = Instant::now();
        let out = run(&mut run_with(&text), None, ANSWER * 2);
        let took = started.elapsed();
        assert!(
            took < ANSWER && matches!(out.code, Some(7 | 12)),
            "{what}: {:?} after {took:.1?}: {}{}",
            out.code,
            out.stdout,
            out.stderr
        );
        assert!(out.stdout.contains(" was not "), "{what}: {}", out.stdout);
        eprintln!(
            "{what:<44} exit {:>2} in {:.1} s",
            out.code.unwrap_or(-1),
            took.as_secs_f64()
        );
    }

    // A database that accepts and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            kept.push(stream);
        }
    });
    let text = sound.replace(
        "      admin-user: simgen\n",
        &format!("      admin-user: simgen\n      host: 127.0.0.1\n      port: {port}\n"),
    );
    assert_ne!(text, sound);
    answers(
        "the database accepts and is silent",
        &mut run_with(&text),
        &[12],
        &["postgres"],
    );

    let container = stack.container("postgres");
    docker(&["pause", &container]).ok();
    answers(
        "the container is paused",
        &mut run_with(&sound),
        &[4],
        &["paused", "drctl recover db-down"],
    );
    docker(&["unpause", &container]).ok();
    stack.wait_healthy();

    // Helpers that were created when the engine fell silent, and so never ran: a later run removes them.
    let end = Instant::now() + Duration::from_secs(90);
    while !stack.leftovers().is_empty() && Instant::now() < end {
        stack.drctl(&["recover", "db-corruption", "--dry-run"]).ok();
        std::thread::sleep(Duration::from_secs(3));
    }
    assert_eq!(stack.leftovers(), "");
}
