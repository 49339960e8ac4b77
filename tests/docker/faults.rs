//! Every fault on a real stack: it leaves the evidence that the accident leaves, and healing leaves nothing.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::stack::{Stack, run};

/// The table as it is on disk: no index is asked.
const SEQUENTIAL: &str = "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; \
                          select count(*), sum(amount) from orders";
/// Through the index that serves the foreign key.
const BY_INDEX: &str = "set enable_seqscan = off; set enable_bitmapscan = off; select count(*), sum(amount) from orders where customer_id > 0";
const AMCHECK: &str = "select bt_index_check('orders_customer_id', true)";
const PARALLEL: &str = "set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; \
                        set min_parallel_table_scan_size = 0; select count(*) from orders a join orders b using (id)";

/// What a fault is expected to leave.
enum Evidence {
    /// This statement fails with this text, and sequential reads of `orders` answer as the second says.
    Sql {
        sql: &'static str,
        error: &'static str,
        table_reads: bool,
    },
    /// Nothing fails; the answers differ.
    Silent(fn(&Stack) -> Result<String, String>),
    /// Nothing fails and all rows are there; only the catalogue and a file contradict each other.
    Harmless(fn(&Stack) -> Result<String, String>),
    /// The server does not run, and its log says this.
    Down { log: &'static str },
    /// The application gets this, although the server says that it accepts connections.
    Refused { error: &'static str },
}

struct Case {
    fault: &'static str,
    more: &'static [&'static str],
    evidence: Evidence,
}

const fn case(fault: &'static str, evidence: Evidence) -> Case {
    Case {
        fault,
        more: &[],
        evidence,
    }
}

fn cases() -> Vec<Case> {
    use Evidence::{Down, Harmless, Refused, Silent, Sql};
    let sql = |sql, error, table_reads| Sql {
        sql,
        error,
        table_reads,
    };
    vec![
        case(
            "heap-page",
            sql(SEQUENTIAL, "XX001: invalid page in block", false),
        ),
        case(
            "zero-page",
            Silent(|stack| {
                let now = stack.psql(SEQUENTIAL)?;
                // Nobody says a word, not even the one who looks hardest.
                stack.psql("select count(*) from verify_heapam('orders')")?;
                Ok(now)
            }),
        ),
        case("index-page", sql(BY_INDEX, "XX001: invalid page in block", true)),
        case("index-entries", sql(AMCHECK, "XX001: heap tuple", true)),
        case(
            "toast",
            sql(
                "select sum(length(data)) from sketches",
                "XX001: invalid page in block",
                true,
            ),
        ),
        case(
            "missing-segment",
            sql(SEQUENTIAL, "58P01: could not open file", false),
        ),
        case(
            "truncated-segment",
            Silent(|stack| {
                let now = stack.psql(SEQUENTIAL)?;
                match stack.psql("select amount from orders where id = (select max(id) from orders)") {
                    Err(e) if e.contains("XX001: could not read block") => Ok(now),
                    other => Err(format!("an index fetch of a lost row gave {other:?}")),
                }
            }),
        ),
        case(
            "pg-control",
            Down {
                log: "FATAL:  incorrect checksum in control file",
            },
        ),
        case(
            "wal",
            Down {
                log: "PANIC:  could not locate a valid checkpoint record",
            },
        ),
        case(
            "pg-xact",
            Down {
                log: "FATAL:  could not access status of transaction",
            },
        ),
        case(
            "permissions",
            Refused {
                error: "Permission denied",
            },
        ),
        case(
            "config",
            Down {
                log: "contains errors",
            },
        ),
        case(
            "wrong-major",
            Down {
                log: "FATAL:  database files are incompatible with server",
            },
        ),
        case("stopped", Down { log: "" }),
        case(
            "shm-full",
            sql(PARALLEL, "53100: could not resize shared memory segment", true),
        ),
        case(
            "unlogged-crash",
            Harmless(|stack| {
                let seen = stack.psql(
                    "select pg_relation_size(oid), relpages > 100 from pg_class where relpersistence = 'u' and relkind = 'r'",
                )?;
                match seen.as_str() {
                    "0|t" => Ok(seen),
                    other => Err(format!("bytes, and pages of the catalogue: {other:?}")),
                }
            }),
        ),
        Case {
            fault: "slots-full",
            more: &["--ttl", "12s"],
            evidence: Refused {
                error: "remaining connection slots are reserved",
            },
        },
    ]
}

#[test]
fn every_fault_leaves_its_evidence_and_heals() {
    let Some(stack) = Stack::up("faults") else { return };
    let before = stack.psql(SEQUENTIAL).unwrap();
    let mut failures = Vec::new();
    eprintln!("{:<20} {:>7} {:>7}  evidence", "fault", "inject", "heal");
    for case in cases() {
        let started = Instant::now();
        let row = try_case(&stack, &case, &before);
        match row {
            Ok((inject, heal, seen)) => {
                eprintln!("{:<20} {inject:>6.1}s {heal:>6.1}s  {seen}", case.fault);
            }
            Err(why) => {
                eprintln!(
                    "{:<20} FAILED after {:.1} s: {why}",
                    case.fault,
                    started.elapsed().as_secs_f64()
                );
                failures.push(case.fault);
                // The next fault needs a sound server.
                stack.drctl(&["drill", "heal"]);
            }
        }
    }
    assert_eq!(failures, [""; 0]);

    refused_in_production(&stack);
    killed_in_the_middle(&stack, &before);
    nothing_acknowledged_is_lost(&stack);
    nothing_is_put_back_over_a_recovery(&stack);
}

fn try_case(stack: &Stack, case: &Case, before: &str) -> Result<(f64, f64, String), String> {
    let since = Timestamp::now();
    let started = Instant::now();
    let name = format!("db-corruption/{}", case.fault);
    let mut args = vec!["drill", "inject", &name];
    args.extend(case.more);
    let injected = stack.drctl(&args);
    if injected.code != Some(0) {
        return Err(format!("inject: {} {}", injected.stdout, injected.stderr));
    }
    let inject = started.elapsed().as_secs_f64();
    let seen = look(stack, &case.evidence, before, since)?;

    let started = Instant::now();
    if let ["--ttl", ..] = case.more {
        // Nobody heals it: it ends by itself, and takes its role along.
        let end = Instant::now() + Duration::from_secs(40);
        while stack
            .psql("select 1 from pg_roles where rolname ~ '^drctl_'")
            .as_deref()
            != Ok("")
            || !stack.leftovers().is_empty()
        {
            if Instant::now() > end {
                return Err(format!("it did not end by itself: {}", stack.leftovers()));
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    let healed = stack.drctl(&["drill", "heal"]);
    if healed.code != Some(0) {
        return Err(format!("heal: {} {}", healed.stdout, healed.stderr));
    }
    let heal = started.elapsed().as_secs_f64();
    stack.wait_healthy();
    for (way, sql) in [("sequentially", SEQUENTIAL), ("through an index", BY_INDEX)] {
        let after = stack.psql(sql)?;
        if after != before {
            return Err(format!("healed, and {way} {after} instead of {before}"));
        }
    }
    stack.psql(AMCHECK)?;
    let tables = stack.psql("select relname from pg_class where relname ~ 'drctl'")?;
    if !tables.is_empty() {
        return Err(format!("healed, and this is left: {tables}"));
    }
    let left = files_left(stack);
    if !left.is_empty() {
        return Err(format!("healed, and this is left: {left}"));
    }
    Ok((inject, heal, seen))
}

fn look(stack: &Stack, evidence: &Evidence, before: &str, since: Timestamp) -> Result<String, String> {
    let fails_with = |answer: Result<String, String>, error: &str| match answer {
        Err(e) if e.contains(error) => Ok(error.to_owned()),
        other => Err(format!("expected {error:?}, got {other:?}")),
    };
    match evidence {
        Evidence::Sql {
            sql,
            error,
            table_reads,
        } => {
            let seen = fails_with(stack.psql(sql), error)?;
            let reads = stack.psql(SEQUENTIAL).as_deref() == Ok(before);
            if reads != *table_reads {
                return Err(format!("sequential reads of orders answered as before: {reads}"));
            }
            running(stack)?;
            Ok(seen)
        }
        Evidence::Silent(ask) => {
            let now = ask(stack)?;
            running(stack)?;
            if now == before {
                return Err("all rows are still there".into());
            }
            Ok(format!("no error, {now} of {before}"))
        }
        Evidence::Harmless(ask) => {
            let seen = ask(stack)?;
            running(stack)?;
            if stack.psql(SEQUENTIAL).as_deref() != Ok(before) {
                return Err("orders are not as before".into());
            }
            Ok(seen)
        }
        Evidence::Down { log } => {
            let end = Instant::now() + Duration::from_secs(15);
            loop {
                let state = stack.inspect("postgres", "{{.State.Status}} {{.RestartCount}}");
                let down = state.starts_with("exited") || !state.ends_with(" 0");
                if down && stack.logs("postgres", since).contains(log) {
                    let (status, _) = stack.http("/health/ready");
                    return if status == 200 {
                        Err("still ready".into())
                    } else {
                        Ok(format!("{state}: {log}"))
                    };
                }
                if Instant::now() > end {
                    return Err(format!("state {state}, log {}", stack.logs("postgres", since)));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Evidence::Refused { error } => {
            running(stack)?;
            let ready = crate::stack::docker(&["exec", &stack.container("postgres"), "pg_isready"]);
            if ready.code != Some(0) {
                return Err(format!("pg_isready: {}", ready.stdout));
            }
            // A slot that the application gave up just now may be free for half a second.
            let mut seen = Err(String::new());
            for _ in 0..10 {
                seen = fails_with(stack.psql_as("simgen_app", "lab-app", "select 1"), error);
                if seen.is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            seen
        }
    }
}

fn running(stack: &Stack) -> Result<(), String> {
    let state = stack.inspect("postgres", "{{.State.Status}} {{.RestartCount}}");
    if state == "running 0" {
        Ok(())
    } else {
        Err(format!("the container is {state}"))
    }
}

fn files_left(stack: &Stack) -> String {
    let look = "ls -A \"$PGDATA\"/.drctl /dev/shm 2>/dev/null | grep fault";
    crate::stack::docker(&["exec", &stack.container("postgres"), "sh", "-c", look]).stdout
}

fn refused_in_production(stack: &Stack) {
    stack.write_runbook("production");
    let out = stack.drctl(&["drill", "inject", "db-corruption/stopped"]);
    assert_eq!(out.code, Some(4), "{}", out.stderr);
    stack.write_runbook("staging");
    let out = stack.drctl(&["drill", "inject", "db-corruption/stopped"]);
    assert_eq!(out.code, Some(4), "{}", out.stderr);
    assert!(
        out.stderr.contains(&format!("--confirm {}", stack.name)),
        "{}",
        out.stderr
    );
    stack.write_runbook("lab");
    let out = stack.drctl(&["drill", "inject", "db-corruption/nonsense"]);
    assert_eq!(out.code, Some(2), "{}", out.stderr);
    let out = stack.drctl(&["drill", "inject", "db-corruption/stopped", "--dry-run"]);
    assert_eq!(out.code, Some(0), "{}", out.stderr);
    assert_eq!(stack.inspect("postgres", "{{.State.Status}}"), "running");
}

/// However far an injection came when drctl was killed, healing puts it right.
fn killed_in_the_middle(stack: &Stack, before: &str) {
    for millis in [150, 400, 700, 1000] {
        let mut child = stack
            .command(&["drill", "inject", "db-corruption/heap-page"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(millis));
        let _ = child.kill();
        let _ = child.wait();
        // A helper of the killed run may still be at work for a moment.
        let end = Instant::now() + Duration::from_secs(30);
        while !stack.leftovers().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
        let healed = stack.drctl(&["drill", "heal"]).ok();
        stack.wait_healthy();
        assert_eq!(
            stack.psql(SEQUENTIAL).as_deref(),
            Ok(before),
            "killed after {millis} ms: {healed}"
        );
        eprintln!("killed after {millis:>4} ms: {}", healed.trim());
    }
}

/// What lives in processes ends by itself when its time is over, however far drctl came when it was killed. No drctl
/// runs in between.
#[test]
fn faults_in_processes_outlive_drctl_and_end() {
    let Some(stack) = Stack::up("ttl") else { return };
    let before = stack.psql(SEQUENTIAL).unwrap();
    for (fault, present) in [
        ("slots-full", &slots_are_full as &dyn Fn(&Stack) -> bool),
        ("shm-full", &|stack| !files_left(stack).is_empty()),
    ] {
        let name = format!("db-corruption/{fault}");
        // Until the fault is there, and earlier.
        for millis in [None, Some(120), Some(250), Some(600)] {
            let mut child = stack
                .command(&["drill", "inject", &name, "--ttl", "6s"])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let began = Instant::now();
            let mut seen = false;
            while began.elapsed() < Duration::from_millis(millis.unwrap_or(10_000)) && !seen {
                match millis {
                    Some(_) => std::thread::sleep(Duration::from_millis(10)),
                    None => seen = present(&stack),
                }
            }
            let _ = child.kill();
            let _ = child.wait();
            assert!(seen || millis.is_some(), "{fault} was not there after 10 s");
            let killed = began.elapsed();
            let end = Instant::now() + Duration::from_secs(40);
            let mut left = remains(&stack);
            while !left.is_empty() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(200));
                left = remains(&stack);
            }
            if left.ends_with(" Created") {
                // Killed between the helper's creation and its start: inert, and removed by the heal.
                stack.drctl(&["drill", "heal"]).ok();
                left = remains(&stack);
            }
            assert_eq!(left, "", "{fault}, killed after {killed:.1?}");
            stack.wait_healthy();
            assert_eq!(stack.psql(SEQUENTIAL).as_deref(), Ok(before.as_str()));
            eprintln!(
                "{fault:<12} killed after {:>4} ms, gone {:>4.1} s later",
                killed.as_millis(),
                began.elapsed().saturating_sub(killed).as_secs_f64()
            );
            // Its own end or the process that waits for it was there first.
            let said = stack.drctl(&["drill", "heal"]).ok();
            assert!(
                said.contains(" gone: ") || said.contains("nothing") || said.contains("no fault is open"),
                "{said}"
            );
        }
    }
    running(&stack).unwrap();
}

fn slots_are_full(stack: &Stack) -> bool {
    let out = stack.psql_as("simgen_app", "lab-app", "select 1");
    out.is_err_and(|e| e.contains("remaining connection slots are reserved"))
}

/// Roles, sessions, files in shared memory and labelled objects that drctl made.
fn remains(stack: &Stack) -> String {
    let roles = stack
        .psql(
            "select rolname from pg_roles where rolname ~ '^drctl_' union all \
             select 'session ' || pid from pg_stat_activity where application_name ~ '^drctl' or usename ~ '^drctl_'",
        )
        .unwrap_or_else(|e| e);
    let all = [roles, files_left(stack), stack.leftovers()].join("\n");
    all.trim().to_owned()
}

/// A stopped database refuses writes; it loses none that it took.
fn nothing_acknowledged_is_lost(stack: &Stack) {
    let traffic = stack.traffic();
    std::thread::sleep(Duration::from_secs(1));
    stack.drctl(&["drill", "inject", "db-corruption/stopped"]).ok();
    stack.drctl(&["drill", "heal"]).ok();
    stack.wait_healthy();
    std::thread::sleep(Duration::from_secs(2));
    let told = traffic.finish();
    assert!(told.count > 5, "only {} orders were acknowledged", told.count);
    assert_eq!(told.lost, [0_i64; 0]);
    eprintln!(
        "stopped under traffic: {} orders acknowledged, none lost",
        told.count
    );
}

/// Once somebody has repaired the table in another way, the saved page belongs nowhere.
fn nothing_is_put_back_over_a_recovery(stack: &Stack) {
    stack.drctl(&["drill", "inject", "db-corruption/heap-page"]).ok();
    stack
        .psql("set zero_damaged_pages = on; vacuum full orders")
        .unwrap();
    let recovered = stack.psql(SEQUENTIAL).unwrap();
    let said = stack.drctl(&["drill", "heal"]).ok();
    assert!(
        said.contains(" gone: ") && said.contains("nothing was put back"),
        "{said}"
    );
    assert_eq!(stack.psql(SEQUENTIAL).unwrap(), recovered);
    assert_eq!(files_left(stack), "");
    let said = stack.drctl(&["drill", "heal", "--all", "--forget"]).ok();
    assert!(said.contains("saved originals are removed"), "{said}");
}

/// Without checksums the server reads the garbage and believes it.
#[test]
fn a_damaged_page_without_checksums_is_another_error() {
    let Some(stack) = Stack::up_with("plain", &[("SIMGEN_INITDB_ARGS", "")]) else {
        return;
    };
    assert_eq!(stack.psql("show data_checksums").as_deref(), Ok("off"));
    let before = stack.psql(SEQUENTIAL).unwrap();
    stack.drctl(&["drill", "inject", "db-corruption/heap-page"]).ok();
    let seen = stack.psql(SEQUENTIAL);
    assert_ne!(seen.as_deref(), Ok(before.as_str()));
    eprintln!("without checksums: {seen:?}");
    // The server may have restarted all sessions over it.
    stack.drctl(&["drill", "heal"]).ok();
    stack.wait_healthy();
    assert_eq!(stack.psql(SEQUENTIAL).unwrap(), before);
    assert_eq!(stack.psql(BY_INDEX).unwrap(), before);
}

/// The harness itself: a program that does not end is ended.
#[test]
fn the_harness_does_not_wait_for_ever() {
    let started = Instant::now();
    let out = run(
        std::process::Command::new("sleep").arg("60"),
        None,
        Duration::from_millis(200),
    );
    assert_eq!(out.code, None);
    assert!(started.elapsed() < Duration::from_secs(10));
}
