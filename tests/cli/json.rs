//! With `--json` every line of standard output is one JSON object that says what it is, whatever happens.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::CommandFactory;
use drctl::cli::Cli;
use drctl::incident::{CASE_FORMAT, Case, Incident, Log, Record, StateDir};
use serde_json::{Value, json};

use crate::help::drctl;

const DEPLOYMENT: &str = "json-lines";
const LABEL: &str = "20261120T020000Z";

/// Arguments of the verbs that need some; a scenario of `recover` needs none.
const VERBS: &[&[&str]] = &[
    &["status"],
    &["check"],
    &["diagnose"],
    &["diagnose", "db-down"],
    &["diagnose", "no-such-scenario"],
    &["incident", "list"],
    &["incident", "show"],
    &["incident", "show", "no-such-incident"],
    &["incident", "report"],
    &["incident", "resume"],
    &["incident", "undo"],
    &["incident", "note", "2026", "a", "remark"],
    &["incident", "note"],
    &["incident", "close"],
    &["backup"],
    &["backup", "create"],
    &["backup", "list"],
    &["backup", "show"],
    &["backup", "show", LABEL],
    &["backup", "show", "no-label"],
    &["backup", "verify"],
    &["backup", "verify", "--all"],
    &["backup", "verify", LABEL],
    &["backup", "prune"],
    &["drill", "list"],
    &["drill", "inject", "db-corruption/heap-page"],
    &["drill", "inject", "no-such/fault"],
    &["drill", "heal"],
    &["drill", "heal", "no-such-fault"],
    &["drill", "heal", "--forget"],
    &["runbook", "validate"],
    &["runbook", "validate", "no-such-file.yaml"],
    &["runbook", "schema"],
    &["runbook", "show"],
    &["no-such-verb"],
    &["check", "--no-such-option"],
    &["recover"],
    &[],
];

/// What they print is asked for in its own form.
const NOT_JSON: [&str; 2] = ["completions", "man"];

/// Every command line; a verb without one is a failure.
fn command_lines() -> Vec<Vec<String>> {
    fn leaves(command: &clap::Command, path: &[String], all: &mut Vec<Vec<String>>) {
        if !command.has_subcommands() {
            all.push(path.to_vec());
        }
        for sub in command.get_subcommands() {
            leaves(sub, &[path, &[sub.get_name().to_owned()]].concat(), all);
        }
    }
    let mut all: Vec<Vec<String>> = VERBS
        .iter()
        .map(|words| words.iter().map(ToString::to_string).collect())
        .collect();
    let mut verbs = Vec::new();
    leaves(&Cli::command(), &[], &mut verbs);
    for verb in verbs {
        if verb[0] == "recover" {
            all.push(verb);
        } else if !NOT_JSON.contains(&verb[0].as_str()) {
            assert!(
                all.iter().any(|line| line.starts_with(&verb)),
                "{verb:?} is not tried"
            );
        }
    }
    all
}

/// The events of a run, each of them what it has to be.
fn events(what: &str, out: &Output) -> Vec<Value> {
    let text = String::from_utf8(out.stdout.clone()).unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    let events: Vec<Value> = text
        .lines()
        .map(|line| {
            let value: Value = serde_json::from_str(line)
                .unwrap_or_else(|e| panic!("{what}: {e}: {line:?}\n{text}\n{stderr}"));
            assert!(
                value["event"].is_string(),
                "{what}: an event without a name: {line}"
            );
            assert!(
                value["version"].is_u64(),
                "{what}: an event without a version: {line}"
            );
            value
        })
        .collect();
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "{what}: a torn line: {text}"
    );
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
    let failed: Vec<&Value> = events.iter().filter(|e| e["event"] == "error").collect();
    assert!(failed.len() <= 1, "{what}: an error is printed once: {text}");
    if let Some(error) = failed.first() {
        assert_eq!(error["exit-code"], json!(out.status.code()), "{what}: {text}");
    }
    // 10 and 12 are what was found, and 3 is `check`'s as well: those need no error.
    if !matches!(out.status.code(), Some(0 | 10 | 12))
        && !what.contains("\"check\"")
        && !what.contains("\"status\"")
    {
        assert_eq!(
            failed.len(),
            1,
            "{what} ended with {:?} and no error\n{text}\n{stderr}",
            out.status
        );
    }
    events
}

/// Runs every command line with `--json` and with `-n --json`; gives back the names of the events.
fn every(home: &Path, options: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in command_lines() {
        for dry_run in [true, false] {
            let mut args: Vec<&str> = options.to_vec();
            args.extend(line.iter().map(String::as_str));
            // Behind the verb, where people type it.
            args.push("--json");
            args.extend(dry_run.then_some("-n"));
            for event in events(&format!("{args:?}"), &drctl(home, &args)) {
                names.insert(event["event"].as_str().unwrap().to_owned());
            }
        }
    }
    names
}

fn runbook(home: &Path, host: &Path) -> PathBuf {
    let path = home.join("runbook.yaml");
    let text = format!(
        "version: 1
deployment: {DEPLOYMENT}
environment: lab
platform:
  docker: {{ host: \"unix://{host}\", compose-project: {DEPLOYMENT} }}
objectives: {{ rto: 2h, rpo: 24h }}
services:
  db:
    kind: postgres
    postgres:
      admin-user: postgres
      databases:
        shop: {{}}
  cache:
    kind: redis
    redis: {{}}
  api:
    kind: app
    depends-on: [db, cache]
backup:
  directory: {home}/backups
deadlines: {{ probe: 2s }}
",
        host = host.display(),
        home = home.display(),
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// An engine that knows nothing: enough to be spoken to.
fn engine(home: &Path) -> PathBuf {
    let path = home.join("engine.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut head = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
                let target = head.split(' ').nth(1).unwrap_or_default();
                let (status, body) = if target.ends_with("/version") {
                    ("200 OK", r#"{"Version":"20.10.24","ApiVersion":"1.41"}"#)
                } else if target.contains("/containers/json") {
                    ("200 OK", "[]")
                } else {
                    ("404 Not Found", r#"{"message":"no such thing"}"#)
                };
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                     Connection: close\r\n\r\n{body}",
                    body.len()
                );
            });
        }
    });
    path
}

/// An incident that was cut off, one that is over, a fault that is in force, and what backups leave.
fn fill(home: &Path) {
    let state = StateDir::at(home.join("drctl"));
    let step = |n: usize| {
        json!({
            "title": format!("step {n}"), "why": "a test", "risk": "reversible", "action": { "workload": { "stop": { "service": "api" } } },
            "undo": { "action": { "workload": { "start": { "service": "api", "wait": false } } } }, "timeout-seconds": 5,
        })
    };
    let case = Case {
        format: CASE_FORMAT,
        certainty: "confirmed".into(),
        summary: "it is broken".into(),
        reasons: vec!["it\nsays so".into()],
        evidence: Value::Null,
    };
    let now = jiff::Timestamp::now();
    for (run, records) in [
        (
            "20261119T183012Z-db-corruption-0001",
            vec![Record::StepStarted { step: 1 }, Record::Undone {}],
        ),
        (
            "20261120T183012Z-db-corruption-0002",
            vec![Record::StepStarted { step: 1 }],
        ),
    ] {
        let plan = serde_json::from_value(json!({
            "format": 1, "scenario": "db-corruption", "deployment": DEPLOYMENT, "run": run, "service": "db",
            "diagnosis": "it is broken", "remedy": "restart", "alternatives": [], "backup": null,
            "steps": [step(1), step(2)], "expect": [],
            "data-loss": { "summary": "nothing", "none": true, "rows-since-backup": null, "newest-now": null, "backup-from": null },
            "estimate-seconds": 1, "disk-needed": 0, "disk-free": null, "kept": "nothing",
            "discard": [{ "workload": { "stop": { "service": "api" } } }],
        }))
        .unwrap();
        let (_, mut journal) = Incident::create(&state, &case, &plan).unwrap();
        let opened = Record::Opened {
            number: 1,
            incident: run.into(),
            deployment: DEPLOYMENT.into(),
            scenario: "db-corruption".into(),
            service: "db".into(),
            began: now,
            diagnosed: now,
            down_since: None,
            follows: None,
            drctl: "0.1.0".into(),
        };
        let planned = Record::Planned {
            remedy: plan.remedy,
            steps: 2,
        };
        for record in [opened, planned].into_iter().chain(records) {
            journal.append(record).unwrap();
        }
    }
    let drill = state.subdirectory("drills/f1").unwrap();
    let fault = json!({
        "format": 1, "id": "f1", "deployment": DEPLOYMENT, "fault": "db-corruption/stopped", "service": "db",
        "container": "c", "target": "its container", "heal": "start", "status": "injected", "note": null,
        "planned-at": now.to_string(), "injected-at": now.to_string(), "ended-at": null, "expires-at": null,
    });
    std::fs::write(drill.join("fault.json"), fault.to_string()).unwrap();

    let sets = home.join("backups");
    let manifest = json!({
        "format": 1, "deployment": DEPLOYMENT, "label": LABEL, "started": "2026-11-20T02:00:00Z",
        "finished": "2026-11-20T02:01:00Z", "drctl-version": "0.1.0", "bytes": 1, "skew-seconds": 0.0,
        "postgres": { "db": {
            "server-version": "15", "server-version-number": 150_020, "system-identifier": "1", "timeline": 1,
            "wal-segment-size": 16_777_216, "data-checksums": true, "image": "p", "image-id": "sha256:1",
            "data-dir": "/d", "owner": "1:1", "start-lsn": "0/1", "end-lsn": "0/2", "globals": null, "logical": {},
            "physical": {
                "path": "postgres/base", "bytes": 0, "files": 0, "start-lsn": "0/1", "end-lsn": "0/2", "timeline": 1,
                "start-segment": "000000010000000000000001", "finished": "2026-11-20T02:01:00Z", "seconds": 1.0,
            },
            "facts": {},
        } },
        "files": [],
    });
    for (label, text) in [
        (LABEL, Some(manifest.to_string())),
        ("20261121T020000Z", Some("torn".to_owned())),
        ("20261122T020000Z", None),
    ] {
        let set = sets.join(label);
        std::fs::create_dir_all(&set).unwrap();
        if let Some(text) = text {
            std::fs::write(set.join("manifest.json"), text).unwrap();
        }
    }
}

#[test]
fn without_a_runbook() {
    let home = tempfile::tempdir().unwrap();
    let names = every(home.path(), &[]);
    for name in ["error", "fault-listed", "runbook-schema", "check"] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
}

#[test]
fn with_a_wrong_runbook() {
    let home = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("bad.yaml", "version: 1\nno: such key\n"),
        ("torn.yaml", "version: [\n"),
    ] {
        let bad = home.path().join(name);
        std::fs::write(&bad, text).unwrap();
        every(home.path(), &["-r", bad.to_str().unwrap()]);
    }
}

#[test]
fn with_a_dead_engine() {
    let home = tempfile::tempdir().unwrap();
    let path = runbook(home.path(), Path::new("/nonexistent.sock"));
    let names = every(home.path(), &["-r", path.to_str().unwrap()]);
    for name in ["runbook", "runbook-valid", "status", "opinion", "backups"] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
}

/// What is printed is in the README as well.
#[test]
fn with_an_engine_that_knows_nothing_and_a_past() {
    let home = tempfile::tempdir().unwrap();
    fill(home.path());
    let path = runbook(home.path(), &engine(home.path()));
    let names = every(home.path(), &["-r", path.to_str().unwrap()]);
    for name in [
        "incident-listed",
        "incident-shown",
        "incident-forecast",
        "report",
        "heal-forecast",
        "backup-manifest",
        "backup-verified",
        "backup-prune",
    ] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
    let readme = include_str!("../../README.md");
    for name in names {
        assert!(
            readme.contains(&format!("`{name}`")),
            "the README does not name the event {name}"
        );
    }
}

/// What a dry run shows of incidents and faults is in the object.
#[test]
fn a_dry_run_says_what_would_be_done() {
    let home = tempfile::tempdir().unwrap();
    fill(home.path());
    let path = runbook(home.path(), &engine(home.path()));
    let path = path.to_str().unwrap();
    let one = |args: &[&str]| {
        let args = [&["-r", path], args, &["-n", "--json"]].concat();
        let mut found = events(&format!("{args:?}"), &drctl(home.path(), &args));
        assert_eq!(found.len(), 1, "{args:?}: {found:?}");
        found.remove(0)
    };
    let undo = one(&["incident", "undo"]);
    assert_eq!(undo["verb"], "undo");
    assert_eq!(undo["incident"], "20261120T183012Z-db-corruption-0002");
    assert_eq!(undo["state"], "executing");
    assert_eq!(
        undo["steps"],
        json!([{ "step": 1, "title": "step 1", "how": "start api" }])
    );
    let resume = one(&["incident", "resume"]);
    assert_eq!(resume["steps"], json!([{ "step": 1, "title": "step 1" }]));
    let close = one(&["incident", "close", "20261119"]);
    assert_eq!(close["drops"], json!(["stop api"]));
    let note = one(&["incident", "note", "20261120", "a", "remark"]);
    assert_eq!(note["text"], "a remark");
    let heal = one(&["drill", "heal"]);
    assert_eq!(
        (&heal["event"], &heal["id"]),
        (&json!("heal-forecast"), &json!("f1"))
    );

    let shown = drctl(home.path(), &["incident", "show", "20261120", "--json"]);
    let shown = events("show", &shown).remove(0);
    assert!(
        !shown["timeline"].to_string().contains("a remark"),
        "a dry run has written: {shown}"
    );
}

/// Its end is no line of its own.
#[test]
fn a_watch_ends_with_a_whole_line() {
    let home = tempfile::tempdir().unwrap();
    let path = runbook(home.path(), Path::new("/nonexistent.sock"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_drctl"))
        .args(["status", "--watch", "1s", "--json", "-r"])
        .arg(&path)
        .env_clear()
        .env("HOME", home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    out.read_line(&mut text).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        assert_eq!(value["event"], "status");
    }
}
