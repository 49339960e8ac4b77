//! A world that does not answer, that has no room, and that means harm: drctl answers in time, says what to do, and
//! runs nothing that it was only told the name of.

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

use crate::stack::{Mounted, Output, Stack, docker, run};

/// With a probe deadline of three seconds. Every case is bounded by it several times over at most.
const ANSWER: Duration = Duration::from_secs(15);

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

fn recover(runbook: &Path, state: &Path) -> Command {
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
fn answers(what: &str, command: &mut Command, codes: &[i32], words: &[&str]) -> Output {
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

/// Passes on what is said to the real engine until `requests` have been made; after that nothing comes back.
fn hanging_socket(path: &Path, requests: usize) {
    let listener = UnixListener::bind(path).unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let seen = seen.clone();
            std::thread::spawn(move || pass_on(client, &seen, requests));
        }
    });
}

fn pass_on(mut client: UnixStream, seen: &AtomicUsize, requests: usize) {
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
            if number > requests {
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
    let Some(stack) = Stack::up("hostile") else { return };
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
    for requests in [1, 2, 3, 4, 6] {
        let socket = stack.dir.path().join(format!("hang-{requests}.sock"));
        hanging_socket(&socket, requests);
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
            took < ANSWER && matches!(out.code, Some(0 | 7 | 12)),
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
        &["paused", "docker unpause"],
    );
    docker(&["unpause", &container]).ok();
    stack.wait_healthy();

    no_room_for_memory(&stack);
    names_are_only_names(&stack, &sound);

    // Helpers that were created when the engine fell silent, and so never ran: a later run removes them.
    let end = Instant::now() + Duration::from_secs(90);
    while !stack.leftovers().is_empty() && Instant::now() < end {
        stack.drctl(&["recover", "db-corruption", "--dry-run"]).ok();
        std::thread::sleep(Duration::from_secs(3));
    }
    assert_eq!(stack.leftovers(), "");
}

/// drctl's own memory cannot be written: it is kept in memory and said so, or nothing is begun.
fn no_room_for_memory(stack: &Stack) {
    let Some(full) = Mounted::at(stack.dir.path().join("full"), "64k") else {
        return;
    };
    let fallback = format!(
        "/dev/shm/drctl-{}",
        run(Command::new("id").arg("-u"), None, ANSWER).ok().trim()
    );
    stack.drctl(&["backup"]).ok();
    for read_only in [false, true] {
        if read_only {
            let mut remount = Command::new("mount");
            remount.args(["-o", "remount,ro"]).arg(&full.0);
            run(&mut remount, None, ANSWER).ok();
        } else {
            // ENOSPC, whatever is tried.
            let _ = fs::write(full.0.join("fill"), vec![1_u8; 1 << 20]);
        }
        let what = if read_only { "read-only" } else { "full" };
        stack.drctl(&["drill", "inject", "db-corruption/index-page"]).ok();
        let state = full.0.to_str().unwrap();
        let with_state = |args: &[&str]| {
            let mut all = vec!["--state-dir", state];
            all.extend(args);
            stack.agreed(&all)
        };

        // Where memory cannot be written either, nothing is begun.
        let mut nowhere = Command::new("unshare");
        nowhere
            .args([
                "-m",
                "sh",
                "-c",
                "mount -t tmpfs -o ro tmpfs /dev/shm && exec \"$@\"",
                "sh",
            ])
            .arg(env!("CARGO_BIN_EXE_drctl"))
            .args([
                "--state-dir",
                state,
                "recover",
                "db-corruption",
                "--yes",
                "--confirm",
                &stack.name,
                "--json",
            ])
            .env("DRCTL_RUNBOOK", stack.runbook());
        answers(
            &format!("{what} state directory, no memory"),
            &mut nowhere,
            &[4],
            &["cannot remember", state],
        );

        let out = with_state(&["recover", "db-corruption"]);
        assert_eq!(out.code, Some(0), "{what}: {}{}", out.stdout, out.stderr);
        let warned = out.events().iter().any(|e| {
            e["event"] == "warning"
                && e["text"]
                    .as_str()
                    .is_some_and(|t| t.contains(state) && t.contains(&fallback))
        });
        assert!(warned, "{what}: {}", out.stdout);
        let incident = out.event("incident");
        let (id, directory) = (
            incident["id"].as_str().unwrap(),
            incident["directory"].as_str().unwrap(),
        );
        assert!(directory.starts_with(&fallback), "{incident}");
        let closed = with_state(&["incident", "close", id]);
        assert_eq!(closed.code, Some(0), "{what}: {}{}", closed.stdout, closed.stderr);
        fs::remove_dir_all(directory).unwrap();
        eprintln!(
            "{:<44} recovered from {fallback}",
            format!("{what} state directory")
        );
        stack.drctl(&["drill", "heal", "--all", "--forget"]).ok();
    }
}

/// Every name that the runbook gives is full of what a shell, SQL or YAML would act on.
fn names_are_only_names(stack: &Stack, sound: &str) {
    let database = r#"d"b' $(touch "$PGDATA/pwned");--"#;
    let table = r#"t"a' $(touch "$PGDATA/pwned");drop table orders;--"#;
    let directory = stack
        .dir
        .path()
        .join("back ups $(touch pwned) 'x\"y`touch pwned`");
    let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    stack
        .psql(&format!("create database {}", quote(database)))
        .unwrap();
    let inside = |sql: &str| {
        let mut command = Command::new("docker");
        command.args([
            "exec",
            "-i",
            &stack.container("postgres"),
            "psql",
            "-XqtA",
            "-v",
            "ON_ERROR_STOP=1",
        ]);
        let connection = format!(
            "dbname='{}' user=simgen",
            database.replace('\\', "\\\\").replace('\'', "\\'")
        );
        command.args(["-d", &connection]);
        run(&mut command, Some(sql), Duration::from_secs(30))
            .ok()
            .trim()
            .to_owned()
    };
    inside(&format!(
        "create extension amcheck; create table {0} (id bigint primary key, \"w\"\"h'en\" timestamptz not null default now(), t text);\n\
         insert into {0} (id, t) select n, repeat(md5(n::text), 20) from generate_series(1, 5000) n; checkpoint",
        quote(table)
    ));
    let yaml = |text: &str| serde_json::to_string(text).unwrap();
    let mut text = String::new();
    let mut skipping = false;
    for line in sound.lines() {
        if line == "        simgen:" {
            skipping = true;
            text += &format!(
                "        {}:\n          tables:\n            {}: {{ newest: {}, append-only: true, salvage: insert-missing }}\n",
                yaml(database),
                yaml(table),
                yaml("w\"h'en")
            );
            continue;
        }
        skipping &= line.is_empty() || line.starts_with("          ");
        if skipping {
            continue;
        }
        if line.trim_start().starts_with("directory: ") {
            text += &format!("  directory: {}\n", yaml(directory.to_str().unwrap()));
        } else {
            text += line;
            text += "\n";
        }
    }
    fs::create_dir_all(&directory).unwrap();
    fs::write(stack.runbook(), text).unwrap();
    stack.drctl(&["backup"]).ok();
    let before = inside(&format!("select count(*), sum(id) from {}", quote(table)));
    for remedy in ["restore-database", "restore-cluster"] {
        stack.drctl(&["drill", "inject", "db-corruption/heap-page"]).ok();
        let out = stack.agreed(&["recover", "db-corruption", "--remedy", remedy]);
        assert_eq!(out.code, Some(0), "{remedy}: {}{}", out.stdout, out.stderr);
        assert_eq!(
            inside(&format!("select count(*), sum(id) from {}", quote(table))),
            before
        );
        let closed = stack.agreed(&["incident", "close"]);
        assert_eq!(
            closed.code,
            Some(0),
            "{remedy}: {}{}",
            closed.stdout,
            closed.stderr
        );
        stack.drctl(&["drill", "heal", "--all", "--forget"]).ok();
        eprintln!("{:<44} nothing was run", format!("hostile names, {remedy}"));
    }
    let pwned = stack.beside_the_server("find \"$PGDATA\" -name 'pwned*'");
    assert_eq!(pwned, "", "a name was run as a command");
    for place in [
        Path::new("."),
        stack.dir.path(),
        &directory,
        Path::new("/tmp"),
        Path::new("/"),
    ] {
        assert!(
            !place.join("pwned").exists(),
            "a name was run as a command in {}",
            place.display()
        );
    }
    assert_ne!(stack.psql("select count(*) from orders").unwrap(), "0");
    fs::write(stack.runbook(), sound).unwrap();
}

#[test]
fn a_hostile_file_is_refused_quickly() {
    let dir = tempfile::tempdir().unwrap();
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let of = format!("*a{}", n - 1);
        bomb += &format!("a{n}: &a{n} [{}]\n", vec![of; 10].join(", "));
    }
    let path = dir.path().join("drctl.yaml");
    let deep = "[".repeat(200_000);
    for (what, text) in [("an alias bomb", bomb), ("brackets without end", deep)] {
        fs::write(&path, text).unwrap();
        invalid(what, &path, dir.path());
    }
    fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    invalid("100 MiB of nothing", &path, dir.path());
}

#[track_caller]
fn invalid(what: &str, path: &Path, dir: &Path) {
    let started = Instant::now();
    let out = run(&mut recover(path, &dir.join("state")), None, ANSWER);
    let took = started.elapsed();
    assert_eq!(out.code, Some(3), "{what}: {}{}", out.stdout, out.stderr);
    assert!(took < Duration::from_secs(3), "{what} took {took:?}");
    assert_eq!(out.event("error")["kind"], "runbook-invalid", "{}", out.stdout);
    assert!(!dir.join("state").exists(), "{what}: a state directory was made");
    eprintln!("{what:<44} exit  3 in {:.1} s", took.as_secs_f64());
}
