//! A server that does not answer: each cause is made, named, put right with the gentlest remedy, and proven; no
//! acknowledged write is lost, and nothing of it is left.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::crash::{close, expect_ok, newest};
use crate::stack::Stack;
use crate::sweep::Sweep;

/// Fault, remedy, what the summary says of it.
const CASES: &[(&str, &str, &str)] = &[
    ("stopped", "start", "does not run"),
    ("killed", "start", "does not run"),
    ("frozen", "thaw", "stopped by a signal"),
    ("paused", "thaw", "paused"),
    ("bad-config", "reconfigure", "refuses its configuration"),
    ("too-large", "reconfigure", "refuses its configuration"),
    ("bad-hba", "reconfigure", "refuses its configuration"),
    ("wrong-port", "reconfigure", "listens on port 5433"),
    ("wrong-listen", "reconfigure", "inside its own container only"),
    ("wrong-owner", "fix-permissions", "wrong owner or mode"),
    ("wrong-mode", "fix-permissions", "wrong owner or mode"),
    ("stale-lock", "clear-stale", "postmaster.pid"),
    ("missing-directory", "repair", "pg_notify is gone"),
    ("missing-version", "repair", "PG_VERSION is gone"),
    ("standby-signal", "clear-stale", "standby of nobody"),
    ("recovering", "wait", "replaying its log"),
];

fn inject(stack: &Stack, fault: &str) {
    let fault = format!("db-down/{fault}");
    stack.agreed(&["drill", "inject", &fault, "--ttl", "15m"]).ok();
}

/// What is named first.
fn first(stack: &Stack) -> Value {
    let out = stack.drctl(&["diagnose", "--json"]);
    let mut all = out.events();
    all.retain(|e| e["event"] == "opinion");
    assert!(!all.is_empty(), "{} {}", out.stdout, out.stderr);
    all.swap_remove(0)
}

/// What of the configuration (of a line that was set aside a comment stays, which names the run) and of the owners and modes must be as it was.
fn files(stack: &Stack) -> String {
    stack.beside_the_server(
        "cd \"$PGDATA\" && cat postgresql.auto.conf pg_hba.conf | grep -v '^#' ; stat -c '%n %u %a' . base global && ls *.signal 2>/dev/null; true",
    )
}

#[test]
fn every_cause_is_named_and_put_right_and_nothing_is_lost() {
    let Some(stack) = Stack::up("dbdown") else { return };
    let only = std::env::var("DRCTL_FAULTS").unwrap_or_default();
    let traffic = stack.traffic();
    let mut failures = Vec::new();
    for (fault, remedy, words) in CASES.iter().filter(|(f, ..)| f.contains(&only)) {
        let began = Instant::now();
        match case(&stack, fault, remedy, words) {
            Ok(rto) => eprintln!(
                "{fault:<16} {remedy:<16} RTO {rto:>6.1} s, {:>5.1} s in all",
                began.elapsed().as_secs_f64()
            ),
            Err(why) => {
                eprintln!("{fault:<16} FAILED: {why}");
                failures.push(format!("{fault}: {why}"));
            }
        }
        stack.agreed(&["drill", "heal"]).ok();
        stack.wait_healthy();
    }
    let written = traffic.finish();
    eprintln!(
        "{} writes were acknowledged, lost: {:?}",
        written.count, written.lost
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(written.count > 50, "{written:?}");
    assert_eq!(written.lost, [0_i64; 0]);
}

fn case(stack: &Stack, fault: &str, remedy: &str, words: &str) -> Result<f64, String> {
    let before = files(stack);
    inject(stack, fault);
    let opinion = first(stack);
    let summary = opinion["summary"].as_str().unwrap_or_default();
    if opinion["scenario"] != "db-down" || opinion["certainty"] != "confirmed" || !summary.contains(words) {
        return Err(format!("named {opinion}"));
    }
    let out = stack.agreed(&["recover", "db-down"]);
    expect_ok("recover", &out)?;
    if out.event("plan")["plan"]["remedy"] != remedy {
        return Err(format!("planned {}", out.event("plan")["plan"]["remedy"]));
    }
    let report = &out.event("report")["report"];
    if report["outcome"] != "verified" {
        return Err(format!("ended as {report}"));
    }
    stack.wait_healthy();
    stack.psql_as("simgen_app", "lab-app", "select count(*) from orders")?;
    let (id, _) = newest(stack);
    close(stack, &id)?;
    let after = files(stack);
    if after.trim() != before.trim() {
        return Err(format!("files were\n{before}\nand are\n{after}"));
    }
    Ok(report["rto"]["measured"].as_f64().unwrap_or_default())
}

#[test]
fn what_only_looks_so_is_named_and_left_alone() {
    let Some(stack) = Stack::up("notdown") else { return };
    for (fault, name) in [
        ("slots-full", "connection-exhaustion"),
        ("detached", "network-partition"),
        ("wrong-password", "wrong-password"),
    ] {
        inject(&stack, fault);
        let before = stack.inspect("postgres", "{{.Id}} {{.State.StartedAt}}");
        let out = stack.agreed(&["recover", "db-down"]);
        if fault == "slots-full" {
            // The administrator gets in by a slot that is reserved: the server answers.
            assert_eq!(out.code, Some(0), "{}", out.stdout);
            assert!(out.event("plan").is_null(), "{}", out.stdout);
        } else {
            assert_eq!(out.code, Some(4), "{fault}: {}", out.stdout);
            let message = out.event("error")["message"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            assert!(
                message.contains(&format!("not db-down but {name}")),
                "{fault}: {message}"
            );
        }
        assert_eq!(
            before,
            stack.inspect("postgres", "{{.Id}} {{.State.StartedAt}}"),
            "{fault}"
        );
        stack.agreed(&["drill", "heal"]).ok();
        stack.wait_healthy();
    }
    // Damage is handed over, and no restart is tried on it.
    stack
        .agreed(&["drill", "inject", "db-corruption/pg-control", "--ttl", "10m"])
        .ok();
    let out = stack.agreed(&["recover", "db-down"]);
    assert_eq!(out.code, Some(4), "{}", out.stdout);
    assert!(
        out.stdout.contains("not db-down but db-corruption"),
        "{}",
        out.stdout
    );
    assert!(
        out.stdout.contains("drctl recover db-corruption"),
        "{}",
        out.stdout
    );
    stack.agreed(&["drill", "heal"]).ok();
    stack.wait_healthy();
    assert_eq!(stack.leftovers_after(Duration::from_secs(10)), "");
}

#[test]
fn what_drctl_does_not_put_right_it_says_with_what_to_type() {
    let Some(stack) = Stack::up("byhand") else { return };
    // A rule that refuses is broken: without it others would be let in.
    let broken = "printf 'hosst all bad all reject\\n' >> \"$PGDATA\"/pg_hba.conf";
    stack.change_files(broken);
    crate::stack::docker(&["restart", "-t", "20", &stack.container("postgres")]);
    let end = Instant::now() + Duration::from_secs(30);
    let out = loop {
        let out = stack.agreed(&["recover", "db-down"]);
        if out.code == Some(4) || Instant::now() > end {
            break out;
        }
    };
    assert_eq!(out.code, Some(4), "{}", out.stdout);
    assert!(out.stdout.contains("others would be let in"), "{}", out.stdout);
    assert!(out.stdout.contains("mend the rule by hand"), "{}", out.stdout);
    stack.change_files("sed -i '/^hosst/d' \"$PGDATA\"/pg_hba.conf");
    // The container is stopped while it loops, so that the next start is drctl's.
    crate::stack::docker(&["stop", "-t", "20", &stack.container("postgres")]);
    stack.agreed(&["recover", "db-down"]).ok();
    stack.wait_healthy();
}

/// How the server is: the configuration is as the fault made it and nobody is served, or a line of it is a comment
/// and the application's role is served.
fn end(stack: &Stack) -> Result<&'static str, String> {
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let conf = stack.beside_the_server("grep -c '^wal_level' \"$PGDATA\"/postgresql.auto.conf; grep -c '^# drctl ' \"$PGDATA\"/postgresql.auto.conf; true");
        let serves = stack.psql_as("simgen_app", "lab-app", "select 1").is_ok();
        match (conf.split_whitespace().collect::<Vec<_>>().as_slice(), serves) {
            (["1", "0"], false) => return Ok("old"),
            (["0", "1"], true) => return Ok("new"),
            (seen, serves) if Instant::now() > limit => {
                return Err(format!("lines {seen:?}, serves: {serves}"));
            }
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

#[test]
fn killed_after_any_record_it_ends_old_or_new() {
    let Some(stack) = Stack::up("dbdowncrash") else {
        return;
    };
    inject(&stack, "bad-config");
    let failures = Sweep {
        stack: &stack,
        recover: &["recover", "db-down"],
        end,
        kept: Stack::set_aside,
    }
    .run();
    stack.agreed(&["drill", "heal"]).ok();
    stack.wait_healthy();
    assert_eq!(stack.set_aside(), "");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
