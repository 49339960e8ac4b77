//! No connection is left, for every reason: who is to blame is named, only that is ended, and users get in again.

use std::time::{Duration, Instant};

use crate::stack::{Stack, docker};

/// Sessions of the fault's role, and what they wait for.
const HELD: &str = "select count(*) from pg_stat_activity where usename like 'drctl_fault_%'";

/// A connection as the application opens it.
fn gets_in(stack: &Stack) -> Result<String, String> {
    stack.psql_as("simgen_app", "lab-app", "select 1")
}

/// Waits, a moment longer than the pools need, until the application is turned away.
fn turned_away(stack: &Stack) -> String {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match gets_in(stack) {
            Err(e) => return e,
            Ok(_) if Instant::now() > end => return "it gets in".into(),
            Ok(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The scenario that `diagnose` names first.
fn first_opinion(stack: &Stack) -> (String, String) {
    let out = stack.drctl(&["diagnose", "--json"]);
    let opinion = out
        .events()
        .into_iter()
        .find(|e| e["event"] == "opinion")
        .unwrap_or_default();
    let word = |key: &str| opinion[key].as_str().unwrap_or_default().to_owned();
    (word("scenario"), word("certainty"))
}

/// Ages that a test need not wait for.
fn short_ages(stack: &Stack) {
    let text = std::fs::read_to_string(stack.runbook()).unwrap();
    let short = text.replace("idle-in-transaction-after: 1m", "idle-in-transaction-after: 2s");
    assert_ne!(short, text);
    std::fs::write(stack.runbook(), short).unwrap();
}

struct Case {
    fault: &'static str,
    /// What a session of the application gets.
    error: &'static str,
    remedy: &'static str,
    /// Sessions of the fault that are ended at most.
    ends: i64,
}

#[test]
fn the_holders_are_named_and_only_as_many_ended_as_are_needed() {
    let Some(stack) = Stack::up("slots") else { return };
    short_ages(&stack);
    let reserved = "remaining connection slots are reserved";
    let cases = [
        Case {
            fault: "idle",
            error: reserved,
            remedy: "end-sessions",
            ends: 12,
        },
        Case {
            fault: "idle-in-transaction",
            error: reserved,
            remedy: "end-sessions",
            ends: 12,
        },
        Case {
            fault: "reserved",
            error: "sorry, too many clients already",
            remedy: "end-sessions",
            ends: 12,
        },
        Case {
            fault: "lock-pile-up",
            error: reserved,
            remedy: "unblock-sessions",
            ends: i64::MAX,
        },
        Case {
            fault: "lock-queue",
            error: reserved,
            remedy: "unblock-sessions",
            ends: i64::MAX,
        },
    ];
    let mut failures = Vec::new();
    for case in &cases {
        match try_case(&stack, case) {
            Ok(seen) => eprintln!("{:<20} {seen}", case.fault),
            Err(why) => {
                eprintln!("{:<20} FAILED: {why}", case.fault);
                failures.push(case.fault);
            }
        }
        let healed = stack.drctl(&["drill", "heal"]);
        assert_eq!(healed.code, Some(0), "{}", healed.stderr);
        stack.wait_healthy();
    }
    for fault in ["busy", "own-limit"] {
        if let Err(why) = look_alike(&stack, fault) {
            eprintln!("{fault:<20} FAILED: {why}");
            failures.push(fault);
        }
        stack.drctl(&["drill", "heal"]).ok();
        stack.wait_healthy();
    }
    long_statements_end_when_asked(&stack);
    commits_that_wait_for_a_standby_are_left_alone(&stack);
    let roles = stack.psql("select count(*) from pg_roles where rolname like 'drctl_%'");
    assert_eq!(roles.as_deref(), Ok("0"));
    assert_eq!(failures, [""; 0]);
}

fn try_case(stack: &Stack, case: &Case) -> Result<String, String> {
    let name = format!("connection-exhaustion/{}", case.fault);
    let injected = stack.drctl(&["drill", "inject", &name, "--ttl", "5m"]);
    if injected.code != Some(0) {
        return Err(format!("inject: {}", injected.stderr));
    }
    let refused = turned_away(stack);
    if !refused.contains(case.error) {
        return Err(format!("the application got {refused:?}"));
    }
    let held = stack.psql(HELD).ok().and_then(|n| n.parse::<i64>().ok());
    let (first, certainty) = first_opinion(stack);
    if (first.as_str(), certainty.as_str()) != ("connection-exhaustion", "confirmed") {
        return Err(format!("diagnose names {first} first ({certainty})"));
    }
    if case.fault == "idle-in-transaction" {
        std::thread::sleep(Duration::from_secs(2));
    }
    // From typing to the first connection of an ordinary role.
    let began = Instant::now();
    let (out, first) = std::thread::scope(|scope| {
        let recovery = scope.spawn(|| stack.agreed(&["recover", "connection-exhaustion"]));
        let first = loop {
            if gets_in(stack).is_ok() || began.elapsed() > Duration::from_secs(60) {
                break began.elapsed();
            }
        };
        (recovery.join().unwrap(), first)
    });
    let report = out.event("report");
    if out.code != Some(0) {
        return Err(format!("recover: {:?} {}\n{}", out.code, out.stdout, out.stderr));
    }
    let plan = out.event("plan");
    if plan["plan"]["remedy"] != case.remedy {
        return Err(format!("remedy {}", plan["plan"]["remedy"]));
    }
    stack.wait_healthy();
    gets_in(stack)?;
    let left: i64 = stack.psql(HELD)?.parse().unwrap_or_default();
    if held.is_some_and(|held| held - left > case.ends) {
        return Err(format!(
            "{held:?} sessions were held, {left} are left: too many were ended"
        ));
    }
    if report.is_null() {
        return Err("no report".into());
    }
    if first > Duration::from_secs(3) {
        return Err(format!(
            "the first connection came after {:.1} s",
            first.as_secs_f64()
        ));
    }
    Ok(format!(
        "{} in; first connection after {:.2} s; {left} of {held:?} sessions left",
        case.remedy,
        first.as_secs_f64()
    ))
}

/// Named, and nothing is ended.
fn look_alike(stack: &Stack, fault: &str) -> Result<(), String> {
    let injected = stack.drctl(&[
        "drill",
        "inject",
        &format!("connection-exhaustion/{fault}"),
        "--ttl",
        "5m",
    ]);
    if injected.code != Some(0) {
        return Err(format!("inject: {}", injected.stderr));
    }
    let refused = turned_away(stack);
    let sessions = "select string_agg(pid::text, ' ' order by pid) from pg_stat_activity where usename like 'drctl_fault_%'";
    let before = stack.psql(sessions)?;
    let out = stack.agreed(&["recover", "connection-exhaustion"]);
    let name = if fault == "busy" {
        "service-overload"
    } else {
        "own-limit"
    };
    if out.code != Some(4) || out.event("diagnosis")["look_alike"] != name || !out.event("plan").is_null() {
        return Err(format!("{:?} {}\n{}", out.code, out.stdout, out.stderr));
    }
    if stack.psql(sessions)? != before {
        return Err("sessions were ended".into());
    }
    eprintln!(
        "{fault:<20} refused as {name} ({})",
        refused.lines().next().unwrap_or_default()
    );
    Ok(())
}

fn long_statements_end_when_asked(stack: &Stack) {
    stack
        .drctl(&["drill", "inject", "connection-exhaustion/busy", "--ttl", "5m"])
        .ok();
    std::thread::sleep(Duration::from_secs(1));
    stack
        .agreed(&["recover", "connection-exhaustion", "--running-over", "1s"])
        .ok();
    gets_in(stack).unwrap();
    stack.drctl(&["drill", "heal"]).ok();
    stack.wait_healthy();
    let running = docker(&[
        "ps",
        "-q",
        "--filter",
        &format!("label=drctl.deployment={}", stack.name),
    ])
    .stdout;
    assert_eq!(running, "");
}

/// Cancelled, a COMMIT would be there on this server alone, and the next one waits as before.
fn commits_that_wait_for_a_standby_are_left_alone(stack: &Stack) {
    let set = |names: &str| {
        stack
            .psql(&format!("alter system set synchronous_standby_names = '{names}'"))
            .unwrap();
        stack.psql("select pg_reload_conf()").unwrap();
    };
    set("elsewhere");
    let postgres = stack.container("postgres");
    for _ in 0..4 {
        let commit = "create temp table waits (n int)";
        docker(&[
            "exec", "-d", &postgres, "psql", "-U", "simgen", "-d", "simgen", "-c", commit,
        ])
        .ok();
    }
    let waiting = |over: &str| {
        stack
            .psql(&format!(
                "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and query_start < now() - interval '{over}'"
            ))
            .unwrap()
    };
    let end = Instant::now() + Duration::from_secs(20);
    while waiting("2 s") != "4" && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(200));
    }
    let out = stack.agreed(&["recover", "connection-exhaustion", "--running-over", "1s"]);
    let still = waiting("0 s");
    set("");
    assert_eq!(out.code, Some(4), "{}{}", out.stdout, out.stderr);
    assert_eq!(
        out.event("diagnosis")["look_alike"],
        "synchronous-standby",
        "{}",
        out.stdout
    );
    assert_eq!(still, "4", "one of them was ended");
    stack.wait_healthy();
    assert_eq!(waiting("0 s"), "0");
}
