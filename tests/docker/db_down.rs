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
    ("recovery-signal", "clear-stale", "recover from nowhere"),
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

/// Ends a container that a test started beside the stack, however the test ends.
struct Beside(String);

impl Drop for Beside {
    fn drop(&mut self) {
        crate::stack::docker(&["rm", "-f", "-v", &self.0]);
    }
}

fn refused_with(stack: &Stack, args: &[&str], code: i32, words: &[&str]) {
    let out = stack.agreed(args);
    assert_eq!(out.code, Some(code), "{args:?}: {} {}", out.stdout, out.stderr);
    for word in words {
        assert!(out.stdout.contains(word), "{args:?}: {word}: {}", out.stdout);
    }
    assert_eq!(
        stack.inspect("postgres", "{{.State.Running}}"),
        "false",
        "{args:?}"
    );
}

fn stop_all(stack: &Stack) {
    for service in ["nginx", "api1", "api2", "redis", "postgres"] {
        crate::stack::docker(&["stop", "-t", "20", &stack.container(service)]);
    }
}

fn orders_of(stack: &Stack) -> u64 {
    let count = stack.psql("select count(*) from orders").unwrap();
    count.trim().parse().unwrap()
}

#[test]
fn no_start_beside_a_second_server_and_none_on_an_empty_directory() {
    let Some(stack) = Stack::up("rival") else { return };
    let own = stack.container("postgres");
    let orders = orders_of(&stack);
    let volume = stack.inspect("postgres", "{{range .Mounts}}{{.Name}}{{end}}");
    let mount = format!("{volume}:/var/lib/postgresql/data");
    let image = stack.inspect("postgres", "{{.Image}}");
    stop_all(&stack);

    // Somebody has helped himself.
    let rival = Beside(format!("{own}-rival"));
    crate::stack::docker(&[
        "run",
        "-d",
        "--name",
        &rival.0,
        "--network",
        "none",
        "-v",
        &mount,
        &image,
    ])
    .ok();
    let end = Instant::now() + Duration::from_secs(30);
    while crate::stack::docker(&["exec", &rival.0, "pg_isready"]).code != Some(0) {
        assert!(Instant::now() < end, "the second server does not start");
        std::thread::sleep(Duration::from_millis(300));
    }
    refused_with(
        &stack,
        &["recover", "db-down"],
        4,
        &["another container holds its data", &rival.0, "docker stop"],
    );
    // Where the diagnosis does not ask, the step does. Redis, which came up beside it, stays up.
    refused_with(
        &stack,
        &["recover", "outage"],
        9,
        &["runs on the data of postgres", &rival.0, "it is not started"],
    );
    drop(rival);

    // A tool beside the server that only ships files is none.
    let tool = Beside(format!("{own}-tool"));
    crate::stack::docker(&[
        "run",
        "-d",
        "--name",
        &tool.0,
        "--network",
        "none",
        "-v",
        &mount,
        "--entrypoint",
        "sleep",
        &image,
        "600",
    ])
    .ok();
    stack.agreed(&["recover", "outage"]).ok();
    stack.wait_healthy();
    drop(tool);

    // As where the disk is not mounted: a start would have made a new cluster.
    stop_all(&stack);
    stack.change_files("cd \"$PGDATA\" && mkdir .elsewhere && mv -- * .elsewhere/");
    refused_with(
        &stack,
        &["recover", "db-down"],
        4,
        &["its data directory is empty", "findmnt -T", "docker volume ls"],
    );
    refused_with(
        &stack,
        &["recover", "outage"],
        9,
        &["is empty", "it is not started", "findmnt -T"],
    );
    assert_eq!(stack.beside_the_server("ls -A \"$PGDATA\""), ".elsewhere");
    stack.change_files("cd \"$PGDATA\" && mv -- .elsewhere/* . && rmdir .elsewhere");
    stack.agreed(&["recover", "outage"]).ok();
    stack.wait_healthy();
    // The write checks of the recoveries may have added some.
    assert!(orders_of(&stack) >= orders);
}

#[test]
fn rules_that_are_gone_and_a_recovery_that_is_paused_are_left_to_people() {
    let Some(stack) = Stack::up("byhand2") else { return };
    let own = stack.container("postgres");
    let words = ["pg_hba.conf) are gone", "drctl backup list", "local all all peer"];
    inject(&stack, "missing-hba");
    let out = stack.agreed(&["recover", "db-down"]);
    assert_eq!(out.code, Some(4), "{}", out.stdout);
    for word in words {
        assert!(out.stdout.contains(word), "{}", out.stdout);
    }
    stack.agreed(&["drill", "heal"]).ok();
    stack.wait_healthy();

    // Nothing has been said of it yet.
    crate::stack::docker(&["stop", "-t", "20", &own]);
    stack.change_files(
        "cd \"$PGDATA\" && mkdir -p .drctl && cp -p pg_hba.conf .drctl/kept && : > pg_hba.conf",
    );
    refused_with(&stack, &["recover", "db-down"], 4, &words);
    stack.change_files("cd \"$PGDATA\" && rm pg_hba.conf");
    refused_with(&stack, &["recover", "db-down"], 4, &words);

    // A recovery to a point in time that has got there: from the checkpoint of a clean stop, with log behind it.
    stack.change_files("cd \"$PGDATA\" && mv .drctl/kept pg_hba.conf && cp global/pg_control .drctl/control");
    crate::stack::docker(&["start", &own]).ok();
    stack.wait_healthy();
    stack.psql("create table behind_the_target (id int)").unwrap();
    crate::stack::docker(&["kill", &own]).ok();
    stack.change_files(
        "cd \"$PGDATA\" && cat .drctl/control > global/pg_control && touch recovery.signal && \
         chown --reference=pg_hba.conf recovery.signal && \
         printf \"restore_command = 'false'\\nrecovery_target = 'immediate'\\n\" >> postgresql.auto.conf",
    );
    crate::stack::docker(&["start", &own]).ok();
    let state = "select pg_get_wal_replay_pause_state()";
    let end = Instant::now() + Duration::from_secs(30);
    while stack.psql(state).as_deref().map(str::trim) != Ok("paused") {
        assert!(
            Instant::now() < end,
            "{}",
            stack.logs("postgres", jiff::Timestamp::UNIX_EPOCH)
        );
        std::thread::sleep(Duration::from_millis(300));
    }
    let began = Instant::now();
    let out = stack.agreed(&["recover", "db-down"]);
    assert_eq!(out.code, Some(4), "{}", out.stdout);
    for word in ["its recovery is paused", "pg_wal_replay_resume"] {
        assert!(out.stdout.contains(word), "{}", out.stdout);
    }
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(stack.psql(state).unwrap().trim(), "paused");
    // The step of a start does not wait for it either.
    stop_all(&stack);
    let began = Instant::now();
    let out = stack.agreed(&["recover", "outage"]);
    assert_eq!(out.code, Some(9), "{}", out.stdout);
    assert!(
        out.stdout.contains("recovery of postgres is paused"),
        "{}",
        out.stdout
    );
    assert!(began.elapsed() < Duration::from_secs(120));
    // It runs and waits for a decision; nobody asked for a stop.
    assert_eq!(stack.inspect("postgres", "{{.State.Status}}"), "running");
    assert_eq!(stack.psql(state).unwrap().trim(), "paused");
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
