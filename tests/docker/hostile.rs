//! A world that has no room and that means harm: nothing is begun that could not be remembered, and nothing is run
//! that drctl was only told the name of.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::mounted::Mounted;
use crate::silence::{ANSWER, answers, recover};
use crate::stack::{Stack, run};

#[test]
fn a_hostile_world_is_survived() {
    let Some(stack) = Stack::up("hostile") else { return };
    let sound = fs::read_to_string(stack.runbook()).unwrap();
    no_room_for_memory(&stack);
    names_are_only_names(&stack, &sound);
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
    let directory = stack.dir.path().join("back ups & touch pwned 'x\"y`touch pwned`");
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
