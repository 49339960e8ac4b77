//! What only looks like damage: it is named, refused, and nothing at all is changed.

use std::time::{Duration, Instant};

use crate::mounted::Mounted;
use crate::stack::{Output, Stack, docker, run};

/// What drctl must leave exactly as it is.
#[derive(Debug, PartialEq, Eq)]
struct World {
    container: String,
    files: String,
    databases: String,
    /// What drctl has made, the fault's own sessions aside: containers, networks, volumes.
    made: String,
    incidents: Vec<String>,
}

/// Path, size, owner, mode and time of every file. What a running server writes by itself is left out, and of one
/// that runs the times too: a checkpoint may come at any moment.
fn files(stack: &Stack, running: bool) -> String {
    let format = if running { "%p %s %U %m" } else { "%p %s %U %m %T@" };
    let prune = "( -path ./pg_wal -o -path ./pg_stat -o -path ./pg_stat_tmp -o -path ./pg_logical -o -path ./pg_xact \
                 -o -path ./pg_subtrans -o -path '*/pgsql_tmp' ) -prune";
    let own = "! -name postmaster.pid ! -name postmaster.opts ! -name pg_internal.init ! -name pg_control";
    let prune = prune.replace('(', "\\(").replace(')', "\\)");
    stack.beside_the_server(&format!(
        "cd \"$PGDATA\" && find . {prune} -o {own} -printf '{format}\\n' | sed 's/^\\(\\.[^ ]*\\) [0-9]* \\(.* 700\\)/\\1 \\2/' | sort"
    ))
}

impl World {
    /// A server that starts and ends again and again replays its log each time: `restless`.
    fn of(stack: &Stack, restless: bool) -> Self {
        let state = stack.inspect("postgres", "{{.State.Status}} {{.RestartCount}}");
        let running = matches!(state.as_str(), "running 0" | "paused 0");
        // A crash loop goes on by itself: only who it is can stay the same.
        let looping = !running && !state.starts_with("exited");
        let format = if looping {
            "{{.Id}} {{.HostConfig.RestartPolicy.Name}}"
        } else {
            "{{.Id}} {{.State.Status}} {{.State.StartedAt}} {{.State.FinishedAt}} {{.State.Pid}} {{.RestartCount}}"
        };
        let incidents = std::fs::read_dir(stack.state().join("incidents"));
        Self {
            container: stack.inspect("postgres", format),
            files: files(stack, running || restless)
                .lines()
                // Its replay makes the file of a table whose creation was cut off, and may end before it drops it.
                .filter(|l| !(looping && l.starts_with("./base/") && l.contains(" 0 ")))
                .fold(String::new(), |all, line| all + line + "\n"),
            databases: stack
                .psql("select string_agg(oid || datname || datallowconn || datconnlimit, ' ' order by oid) from pg_database")
                .unwrap_or_else(|_| "nobody gets in".into()),
            made: made(stack),
            incidents: incidents
                .into_iter()
                .flatten()
                .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
                .collect(),
        }
    }
}

fn made(stack: &Stack) -> String {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let mut left = stack.leftovers();
        left = left.lines().filter(|l| !l.contains("-fault-")).collect();
        if left.is_empty() || Instant::now() > end {
            return left;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Recovers, and expects to be refused by this name with nothing changed. Which part changed is named.
fn refused(stack: &Stack, name: &str, databases_open: bool) -> Result<f64, String> {
    let restless = name == "disk-full";
    let before = World::of(stack, restless);
    if before.files.lines().count() < 100 {
        return Err(format!("the listing is not one: {}", before.files));
    }
    let started = Instant::now();
    let out = stack.agreed(&["recover", "db-corruption"]);
    let took = started.elapsed().as_secs_f64();
    named(&out, name)?;
    let after = World::of(stack, restless);
    for (what, b, a) in [
        ("the container", &before.container, &after.container),
        ("files", &before.files, &after.files),
        ("what drctl made", &String::new(), &after.made),
    ] {
        if b != a {
            let gone = b.lines().filter(|l| !a.contains(l));
            let new = a.lines().filter(|l| !b.contains(l));
            return Err(format!(
                "{what} changed: {:?} became {:?}",
                gone.collect::<Vec<_>>(),
                new.collect::<Vec<_>>()
            ));
        }
    }
    if databases_open && before.databases != after.databases {
        return Err(format!(
            "databases: {} became {}",
            before.databases, after.databases
        ));
    }
    if !after.incidents.is_empty() {
        return Err(format!("incidents were opened: {:?}", after.incidents));
    }
    Ok(took)
}

fn named(out: &Output, name: &str) -> Result<(), String> {
    let said = || format!("{:?} {}\n{}", out.code, out.stdout, out.stderr);
    let (diagnosis, error) = (out.event("diagnosis"), out.event("error"));
    if out.code != Some(4) || error["kind"] != "refused" {
        return Err(format!("not refused: {}", said()));
    }
    if diagnosis["look_alike"] != name || diagnosis["certainty"] != "absent" {
        return Err(format!("not named {name}: {}", said()));
    }
    let message = error["message"].as_str().unwrap_or_default();
    if !message.contains(&format!("not db-corruption but {name}"))
        || error["not-touched"] != "everything"
        || error["next"].as_array().is_none_or(Vec::is_empty)
    {
        return Err(format!("the error does not help: {}", said()));
    }
    Ok(())
}

#[test]
fn look_alikes_are_named_and_left_alone() {
    let Some(stack) = Stack::up("alike") else { return };
    // A backup, so that a destructive plan would be possible, were it made.
    stack.drctl(&["backup"]).ok();
    stack
        .psql("alter system set autovacuum = off")
        .and_then(|_| stack.psql("select pg_reload_conf()"))
        .unwrap();
    let mut failures = Vec::new();
    let mut tell = |case: &str, seen: Result<f64, String>| match seen {
        Ok(took) => eprintln!("{case:<18} refused in {took:.1} s"),
        Err(why) => {
            eprintln!("{case:<18} FAILED: {why}");
            failures.push(case.to_owned());
        }
    };
    for fault in [
        "permissions",
        "config",
        "wrong-major",
        "stopped",
        "shm-full",
        "slots-full",
    ] {
        let injected = stack.drctl(&["drill", "inject", &format!("db-corruption/{fault}")]);
        let seen = if injected.code == Some(0) {
            // Sessions of the application that wait for a slot come and go.
            refused(&stack, fault, !matches!(fault, "slots-full" | "permissions"))
        } else {
            Err(format!("inject: {}", injected.stderr))
        };
        tell(fault, seen);
        let healed = stack.drctl(&["drill", "heal"]);
        assert_eq!(healed.code, Some(0), "{}", healed.stderr);
        stack.drctl(&["drill", "heal", "--all", "--forget"]).ok();
        stack.wait_healthy();
    }
    tell("paused", paused(&stack));
    stack.wait_healthy();
    tell("wrong-password", wrong_password(&stack));
    tell("starting", replaying(&stack));
    stack.wait_healthy();
    assert_eq!(failures, [""; 0]);
}

/// The data on a file system that is really full, first while the server still runs, then when it cannot start.
#[test]
fn a_full_disk_is_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Mounted::at(directory.path().join("data"), "320m") else {
        return;
    };
    let data = disk.0.to_str().unwrap();
    let Some(stack) = Stack::up_with("full", &[("SIMGEN_POSTGRES_DATA", data)]) else {
        return;
    };
    stack.drctl(&["backup"]).ok();
    let before = stack.psql("select count(*), sum(amount) from orders").unwrap();
    let filler = disk.0.join("filler");
    let fill = |leave: u64| {
        let mut all = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&filler)
            .unwrap();
        let block = vec![1_u8; 256 << 10];
        while disk.free() > leave && std::io::Write::write_all(&mut all, &block).is_ok() {}
    };

    // Tables cannot grow any more. The server runs, and what is there can be read.
    stack.psql("checkpoint").unwrap();
    fill(0);
    let error = stack
        .psql("create table more as select repeat('x', 1000) from generate_series(1, 5000)")
        .unwrap_err();
    assert!(error.contains("53100"), "{error}");
    let state = stack.inspect("postgres", "{{.State.Status}} {{.RestartCount}}");
    assert_eq!(state, "running 0");
    let took = refused(&stack, "disk-full", true).unwrap();
    eprintln!(
        "disk-full, running: refused in {took:.1} s, {} bytes free",
        disk.free()
    );

    // A new segment of the log does not fit, although some room is left: the server ends, and cannot start.
    std::fs::remove_file(&filler).unwrap();
    fill(12 << 20);
    let since = jiff::Timestamp::now();
    let end = Instant::now() + Duration::from_secs(60);
    while !(stack.logs("postgres", since).contains("PANIC")
        && stack.inspect("postgres", "{{.RestartCount}}") != "0")
    {
        assert!(Instant::now() < end, "{}", stack.logs("postgres", since));
        let _ = stack.psql("select count(*) from generate_series(1, 10) n, pg_switch_wal(), txid_current()");
    }
    assert!(disk.free() > 1 << 20, "it fails with room left, not without any");
    let took = refused(&stack, "disk-full", false).unwrap();
    eprintln!(
        "disk-full, down: refused in {took:.1} s, {} bytes free",
        disk.free()
    );

    // It was nothing but room: with that, everything is there.
    std::fs::remove_file(&filler).unwrap();
    docker(&["start", &stack.container("postgres")]).ok();
    stack.wait_healthy();
    assert_eq!(
        stack.psql("select count(*), sum(amount) from orders").unwrap(),
        before
    );
}

/// What somebody ordered, what a crash always does, and what belongs to somebody else: on evidence of a real server,
/// with a backup that would make a restore possible.
#[test]
fn orders_and_other_clusters_are_not_damage() {
    let Some(stack) = Stack::up("orders") else { return };
    let sql = |text: &str| stack.psql(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    sql("alter system set autovacuum = off");
    sql("select pg_reload_conf()");
    sql("create unlogged table scratch (id integer primary key, t text)");
    sql("insert into scratch select n, repeat('x', 100) from generate_series(1, 20000) n");
    sql("insert into orders (customer_id, amount, created_at) values (1, 1, now() + interval '400 days')");
    sql("vacuum analyze");
    stack.drctl(&["backup"]).ok();

    // Every crash empties it; and what the server has counted is gone from here on.
    crash(&stack);
    assert_eq!(sql("select count(*) from scratch"), "0");
    let out = not_damaged(&stack, "an unlogged table after a crash");
    assert!(!out.contains("scratch"), "{out}");

    sql("update orders set created_at = now() where created_at > now() + interval '1 day'");
    not_damaged(&stack, "a row from the future that was put right");

    // A file that was given up lies there until the next checkpoint, and files are compared.
    sql("truncate order_lines");
    sql("checkpoint");
    let took = refused(&stack, "data-loss", true).unwrap();
    eprintln!("truncated          refused in {took:.1} s");
    crash(&stack);
    let took = refused(&stack, "data-loss", true).unwrap();
    eprintln!("truncated, crashed refused in {took:.1} s");

    // No counter reaches back to before the crash, and the file ends where VACUUM cut it. That nobody can tell from
    // damage; so nothing that users would notice may follow from it.
    sql("delete from orders where id > 15000");
    sql("vacuum orders");
    sql("checkpoint");
    crash(&stack);
    not_damaged(&stack, "deleted, cut by VACUUM, and crashed");

    sql("drop table sketches cascade");
    sql("checkpoint");
    let out = stack.agreed(&["recover", "db-corruption"]);
    assert_eq!(out.code, Some(4), "{}{}", out.stdout, out.stderr);
    assert!(
        out.stdout.contains("table public.sketches is not there any more"),
        "{}",
        out.stdout
    );

    postgres(&stack, "alter database simgen with allow_connections false");
    let took = refused(&stack, "database-closed", false).unwrap();
    eprintln!("closed             refused in {took:.1} s");

    // The application would come back between the two.
    postgres(
        &stack,
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'simgen'",
    );
    postgres(&stack, "alter database simgen rename to simgen_elsewhere");
    let out = stack.agreed(&["recover", "db-corruption"]);
    named(&out, "database-missing").unwrap();
    assert!(out.stdout.contains("simgen_elsewhere"), "{}", out.stdout);
    let took = refused(&stack, "database-missing", false).unwrap();
    eprintln!("missing            refused in {took:.1} s");

    // A volume in which the entrypoint has made a new cluster.
    let container = stack.container("postgres");
    docker(&["stop", &container]).ok();
    stack.change_files("find \"$PGDATA\" -mindepth 1 -delete");
    docker(&["start", &container]).ok();
    let end = Instant::now() + Duration::from_secs(90);
    while stack.psql("select 1").as_deref() != Ok("1") {
        assert!(Instant::now() < end, "no new cluster came up");
        std::thread::sleep(Duration::from_millis(500));
    }
    let took = refused(&stack, "wrong-volume", true).unwrap();
    eprintln!("wrong volume       refused in {took:.1} s");
}

fn crash(stack: &Stack) {
    let container = stack.container("postgres");
    docker(&["kill", "-s", "KILL", &container]).ok();
    docker(&["start", &container]).ok();
    let end = Instant::now() + Duration::from_secs(60);
    while stack.psql("select 1").as_deref() != Ok("1") {
        assert!(Instant::now() < end, "the server did not come back");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Statements in the administrator's database.
fn postgres(stack: &Stack, sql: &str) {
    let container = stack.container("postgres");
    docker(&[
        "exec",
        &container,
        "psql",
        "-Xq",
        "-v",
        "ON_ERROR_STOP=1",
        "-U",
        "simgen",
        "-d",
        "postgres",
        "-c",
        sql,
    ])
    .ok();
}

/// Looks, and expects no diagnosis of damage and no plan; returns what was said.
fn not_damaged(stack: &Stack, case: &str) -> String {
    let out = stack.agreed(&["recover", "db-corruption", "--deep"]);
    let diagnosis = out.event("diagnosis");
    let all = format!("{}\n{}", out.stdout, out.stderr);
    assert_ne!(diagnosis["certainty"], "confirmed", "{case}: {all}");
    assert!(!diagnosis.is_null(), "{case}: {all}");
    assert!(out.event("plan").is_null(), "{case} led to a plan: {all}");
    eprintln!("{case}: {} {}", diagnosis["certainty"], diagnosis["summary"]);
    diagnosis.to_string()
}

fn paused(stack: &Stack) -> Result<f64, String> {
    let container = stack.container("postgres");
    docker(&["pause", &container]).ok();
    let seen = refused(stack, "paused", false);
    docker(&["unpause", &container]).ok();
    seen
}

/// The runbook's secret is not the server's.
fn wrong_password(stack: &Stack) -> Result<f64, String> {
    let text = std::fs::read_to_string(stack.runbook()).unwrap();
    let secret = stack.dir.path().join("password");
    std::fs::write(&secret, "not the password\n").unwrap();
    let wrong = text.replace(
        "container-env: POSTGRES_PASSWORD",
        &format!("file: {}", secret.display()),
    );
    assert_ne!(wrong, text);
    std::fs::write(stack.runbook(), wrong).unwrap();
    let seen = refused(stack, "wrong-password", true);
    std::fs::write(stack.runbook(), text).unwrap();
    seen
}

/// The server replays its log after a crash; it is held in the middle of that, because the little there is to replay
/// here takes no time.
fn replaying(stack: &Stack) -> Result<f64, String> {
    stack.psql(
        "checkpoint; create table churn as select n, repeat('x', 500) t from generate_series(1, 200000) n; drop table churn",
    )?;
    let container = stack.container("postgres");
    docker(&["kill", "-s", "KILL", &container]).ok();
    docker(&["start", &container]).ok();
    let postmaster = stack.inspect("postgres", "{{.State.Pid}}");
    let end = Instant::now() + Duration::from_secs(10);
    let startup = loop {
        if let Some(pid) = startup_process(&postmaster) {
            break pid;
        }
        if Instant::now() > end {
            return Err("the startup process was not seen".into());
        }
        std::thread::sleep(Duration::from_micros(500));
    };
    let signal = |name: &str| {
        run(
            std::process::Command::new("kill").args([name, &startup]),
            None,
            Duration::from_secs(5),
        )
    };
    signal("-STOP");
    let seen = refused(stack, "starting", false);
    signal("-CONT");
    seen
}

/// The process that replays, as this machine numbers it.
fn startup_process(postmaster: &str) -> Option<String> {
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).ok()?;
    children
        .split_whitespace()
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|c| c.starts_with("postgres: startup"))
        })
        .map(str::to_owned)
}
