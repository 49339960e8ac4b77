//! Every kind of damage under traffic: recovered by the gentlest remedy that helps, proven, measured, and nothing
//! left behind.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::stack::{Stack, Traffic};

struct Case {
    fault: &'static str,
    remedy: &'static str,
    /// Acknowledged writes that may be lost.
    may_lose: bool,
    /// Taken back before it is closed, and recovered once more.
    undo: bool,
}

const fn case(fault: &'static str, remedy: &'static str) -> Case {
    Case {
        fault,
        remedy,
        may_lose: false,
        undo: false,
    }
}

fn cases() -> Vec<Case> {
    vec![
        case("index-page", "reindex"),
        case("index-entries", "reindex"),
        Case {
            undo: true,
            ..case("heap-page", "restore-database")
        },
        case("zero-page", "restore-database"),
        case("toast", "restore-database"),
        case("missing-segment", "restore-database"),
        case("truncated-segment", "restore-database"),
        Case {
            undo: true,
            ..case("pg-control", "restore-cluster")
        },
        // The last checkpoint's own record is what is damaged: what came after it can only be read where it had
        // reached the tables before the crash.
        Case {
            may_lose: true,
            ..case("wal", "restore-cluster")
        },
        case("pg-xact", "restore-cluster"),
    ]
}

#[test]
fn every_damage_is_recovered_under_traffic() {
    let Some(stack) = Stack::up("recover") else { return };
    let only = std::env::var("DRCTL_TEST_ONLY").unwrap_or_default();
    let mut table = format!(
        "{:<18} {:<17} {:>6} {:>5} {:>8} {:>8} {:>7}  notes\n",
        "fault", "remedy", "acked", "lost", "rto ms", "recover", "case"
    );
    let mut failures = Vec::new();
    // A physical restore begins a new timeline: what was backed up before is of another.
    let mut fresh_backup = false;
    for case in cases() {
        if !only.is_empty() && !only.split(',').any(|f| f == case.fault) {
            continue;
        }
        // Of the log since an older backup this one leaves a part only: databases that an earlier case dropped after
        // that part would rightly be back.
        if !fresh_backup || case.fault == "wal" {
            stack.drctl(&["backup"]).ok();
            fresh_backup = true;
        }
        let started = Instant::now();
        let seen = try_case(&stack, &case);
        let seconds = started.elapsed().as_secs_f64();
        match seen {
            Ok(row) => writeln!(
                table,
                "{:<18} {:<17} {:>6} {:>5} {:>8} {:>7.1}s {seconds:>6.1}s  {}",
                case.fault, case.remedy, row.acked, row.lost, row.rto, row.recover, row.notes
            )
            .unwrap(),
            Err(why) => {
                writeln!(table, "{:<18} FAILED after {seconds:.1} s: {why}", case.fault).unwrap();
                failures.push(case.fault);
                // The next case needs a sound server.
                stack.drctl(&["drill", "heal"]);
                stack.drctl(&["drill", "heal", "--all", "--forget"]);
                fresh_backup = false;
            }
        }
        eprintln!("{}", table.lines().last().unwrap_or_default());
        fresh_backup &= case.remedy != "restore-cluster";
    }
    eprint!("\n{table}");
    assert_eq!(failures, [""; 0]);
}

struct Row {
    acked: usize,
    lost: usize,
    rto: String,
    recover: f64,
    notes: String,
}

fn try_case(stack: &Stack, case: &Case) -> Result<Row, String> {
    let mut notes = String::new();
    let traffic = stack.traffic();
    std::thread::sleep(Duration::from_secs(2));
    let name = format!("db-corruption/{}", case.fault);
    let injected = stack.drctl(&["drill", "inject", &name]);
    if injected.code != Some(0) {
        return Err(format!("inject: {}", injected.stderr));
    }
    let started = Instant::now();
    let log = traffic.log().to_str().unwrap_or_default().to_owned();
    let out = stack.agreed(&["recover", "db-corruption", "--acknowledged", &log]);
    let recover = started.elapsed().as_secs_f64();
    let said = || format!("{}\n{}", out.stdout, out.stderr);
    if out.code != Some(0) {
        return Err(format!("recover: {:?} {}", out.code, said()));
    }
    let (diagnosis, plan, report) = (out.event("diagnosis"), out.event("plan"), out.event("report"));
    if diagnosis["certainty"] != "confirmed" || plan["plan"]["remedy"] != case.remedy {
        return Err(format!(
            "diagnosis {diagnosis}, remedy {}",
            plan["plan"]["remedy"]
        ));
    }
    if report["report"]["outcome"] != "verified" {
        return Err(format!("the report says {}", report["report"]["outcome"]));
    }
    let (acked, lost) = count(traffic, &report["report"]["rpo"], case)?;
    let incident = report["report"]["incident"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let rto = report["report"]["rto"]["measured"]
        .as_f64()
        .map_or("-".to_owned(), |s| format!("{:.0}", s * 1000.0));
    healthy(stack)?;

    let mut open = vec![incident.clone()];
    if case.undo {
        let started = Instant::now();
        let undone = stack.agreed(&["incident", "undo", &incident]);
        if undone.code != Some(0) {
            return Err(format!("undo: {} {}", undone.stdout, undone.stderr));
        }
        if undone.event("report")["report"]["outcome"] != "undone" {
            return Err(format!("undo: {}", undone.stdout));
        }
        write!(notes, "undone in {:.1} s", started.elapsed().as_secs_f64()).unwrap();
        // The damage is back, and is recovered from again.
        let again = stack.agreed(&["recover", "db-corruption"]);
        let report = again.event("report");
        if again.code != Some(0) || report["report"]["remedy"] != case.remedy {
            return Err(format!("recovered again: {} {}", again.stdout, again.stderr));
        }
        open.push(
            report["report"]["incident"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        );
        healthy(stack)?;
        notes.push_str(", recovered again");
    }
    for incident in open {
        let closed = stack.agreed(&["incident", "close", &incident]);
        if closed.code != Some(0) {
            return Err(format!("close {incident}: {} {}", closed.stdout, closed.stderr));
        }
    }
    let forgotten = stack.drctl(&["drill", "heal", "--all", "--forget"]);
    if forgotten.code != Some(0) {
        return Err(format!("forget: {}", forgotten.stderr));
    }
    nothing_left(stack)?;
    healthy(stack)?;
    Ok(Row {
        acked,
        lost,
        rto,
        recover,
        notes,
    })
}

/// Ends the traffic, counts what is lost, and compares with what drctl counted.
fn count(traffic: Traffic<'_>, rpo: &serde_json::Value, case: &Case) -> Result<(usize, usize), String> {
    // The writer goes on for a moment after the recovery: nothing that it is told now may be lost either.
    std::thread::sleep(Duration::from_millis(500));
    let truth = traffic.finish();
    let lost = truth.lost.len();
    if truth.count < 10 {
        return Err(format!("only {} orders were acknowledged", truth.count));
    }
    if rpo["lost-acknowledged"].as_u64() != Some(lost as u64) {
        return Err(format!(
            "drctl counted {} lost of {}, the test {lost} of {}: {:?}",
            rpo["lost-acknowledged"], rpo["acknowledged"], truth.count, truth.lost
        ));
    }
    if lost > 0 && !case.may_lose {
        return Err(format!("{lost} acknowledged orders are lost: {:?}", truth.lost));
    }
    Ok((truth.count, lost))
}

fn healthy(stack: &Stack) -> Result<(), String> {
    match stack.http("/health/ready") {
        (200, _) => Ok(()),
        other => Err(format!("/health/ready through nginx gave {other:?}")),
    }
}

fn nothing_left(stack: &Stack) -> Result<(), String> {
    let containers = stack.leftovers_after(Duration::from_secs(3));
    let databases = stack.psql("select datname from pg_database where datname ~ 'drctl'")?;
    let roles = stack.psql("select rolname from pg_roles where rolname ~ 'drctl'")?;
    let files = stack.set_aside();
    if containers.is_empty() && databases.is_empty() && roles.is_empty() && files.is_empty() {
        return Ok(());
    }
    Err(format!(
        "left behind: containers {containers:?}, databases {databases:?}, roles {roles:?}, files {files:?}"
    ))
}

/// A role with a setting of its own goes through the fence. What it writes after the rows were brought over would be
/// acknowledged and out of service: the names are not swapped. The settings of the database, lists too, come along.
#[test]
fn a_writer_that_the_fence_does_not_stop_is_seen_before_the_swap() {
    let Some(stack) = Stack::up("fence") else { return };
    stack.drctl(&["backup"]).ok();
    for sql in [
        "alter role simgen_app set default_transaction_read_only = off",
        "create role lister",
        "alter role lister in database simgen set search_path = ''",
        "alter role lister in database simgen set temp_tablespaces = 'pg_default'",
    ] {
        stack.psql(sql).unwrap();
    }
    let lists = "select c from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase \
                 join pg_roles r on r.oid = s.setrole, unnest(s.setconfig) c \
                 where d.datname = 'simgen' and r.rolname = 'lister' order by 1";
    let settings = stack.psql(lists).unwrap();
    assert!(settings.contains("search_path=\"\""), "{settings}");
    let traffic = stack.traffic();
    std::thread::sleep(Duration::from_secs(1));
    stack.agreed(&["drill", "inject", "db-corruption/heap-page"]).ok();

    let out = stack.agreed(&["recover", "db-corruption"]);
    assert_eq!(out.code, Some(8), "{}{}", out.stdout, out.stderr);
    let error = out.event("error").to_string();
    for words in ["although it is read-only", "simgen_app", "nothing was renamed"] {
        assert!(error.contains(words), "{words:?} is not in {error}");
    }
    assert_eq!(
        stack
            .psql("select count(*) from pg_database where datname like '%drctl%'")
            .unwrap()
            .trim(),
        "0"
    );

    stack
        .psql("alter role simgen_app reset default_transaction_read_only")
        .unwrap();
    let log = traffic.log().to_str().unwrap().to_owned();
    stack
        .agreed(&[
            "recover",
            "db-corruption",
            "--remedy",
            "restore-database",
            "--acknowledged",
            &log,
        ])
        .ok();
    std::thread::sleep(Duration::from_millis(500));
    let truth = traffic.finish();
    assert!(
        truth.count > 10 && truth.lost.is_empty(),
        "{} lost",
        truth.lost.len()
    );
    assert_eq!(stack.psql(lists).unwrap(), settings);
    for line in stack.drctl(&["incident", "list", "--json"]).ok().lines() {
        let listed: serde_json::Value = serde_json::from_str(line).unwrap();
        if listed["next"]
            .as_array()
            .is_some_and(|n| n.iter().any(|v| v == "close"))
        {
            stack
                .agreed(&["incident", "close", listed["incident"].as_str().unwrap()])
                .ok();
        }
    }
    stack.drctl(&["drill", "heal", "--all", "--forget"]).ok();
    nothing_left(&stack).unwrap();
}
