//! Disks that are really full: no byte is left, drctl's own directory is on it, and the services come back without
//! losing anything; what is not safe to free is named and left alone.

use std::time::{Duration, Instant};

use crate::mounted::Mounted;
use crate::retention::{copy_set, keep};
use crate::stack::{Output, Stack, docker};

/// A stack whose PostgreSQL data is on a small disk.
fn on_a_small_disk(name: &str, mib: u64) -> Option<(tempfile::TempDir, Mounted, Stack)> {
    let directory = tempfile::tempdir().unwrap();
    let disk = Mounted::image(directory.path(), mib)?;
    let data = disk.0.join("postgres");
    std::fs::create_dir(&data).unwrap();
    let stack = Stack::up_with(name, &[("SIMGEN_POSTGRES_DATA", data.to_str().unwrap())])?;
    // The least that the log may be, so that a small disk lasts.
    for sql in [
        "alter system set max_wal_size = '64MB'",
        "alter system set min_wal_size = '32MB'",
        "alter system reset wal_keep_size",
    ] {
        stack.psql(sql).unwrap();
    }
    Some((directory, disk, stack))
}

/// The runbook's backups on that disk.
fn backups_on(stack: &Stack, disk: &Mounted) -> std::path::PathBuf {
    let backups = disk.0.join("backups");
    let text = std::fs::read_to_string(stack.runbook()).unwrap();
    let old = stack.dir.path().join("backups").display().to_string();
    assert!(text.contains(&old));
    std::fs::write(
        stack.runbook(),
        text.replace(&old, &backups.display().to_string()),
    )
    .unwrap();
    backups
}

fn first_opinion(out: &Output) -> serde_json::Value {
    out.events()
        .into_iter()
        .find(|e| e["event"] == "opinion")
        .unwrap_or_default()
}

fn opinion(out: &Output, scenario: &str) -> serde_json::Value {
    out.events()
        .into_iter()
        .find(|e| e["event"] == "opinion" && e["scenario"] == scenario)
        .unwrap_or_default()
}

fn redis(stack: &Stack, args: &[&str]) -> String {
    let container = stack.container("redis");
    let mut all = vec!["exec", &*container, "redis-cli"];
    all.extend(args);
    let out = docker(&all);
    (out.stdout + &out.stderr).trim().to_owned()
}

/// Images and volumes of others, and of ours that something needs.
fn bystanders(stack: &Stack) -> (Vec<String>, String) {
    let container = stack.container("nginx");
    let commit = |label: &str| {
        let change = format!("LABEL com.docker.compose.project={label}");
        docker(&["commit", "--pause=false", "--change", &change, &container])
            .ok()
            .trim()
            .to_owned()
    };
    let volume = format!("{}-foreign", stack.name);
    docker(&["volume", "create", &volume]).ok();
    (vec![commit("somebody-else"), commit(&stack.name)], volume)
}

fn is_there(kind: &str, name: &str) -> bool {
    docker(&[kind, "inspect", name]).code == Some(0)
}

#[test]
fn with_no_byte_left_everything_comes_back_and_nothing_is_lost() {
    let Some((_directory, disk, stack)) = on_a_small_disk("nobyte", 900) else {
        return;
    };
    let backups = backups_on(&stack, &disk);
    let state = disk.0.join("state");
    let state_flag = state.to_str().unwrap().to_owned();
    let at = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--state-dir", &state_flag]);
        stack.drctl(&all)
    };
    // Redis and the log of an API server on the same disk.
    let redis_volume = docker(&[
        "volume",
        "inspect",
        "--format",
        "{{.Mountpoint}}",
        &format!("{}_redis_data", stack.name),
    ])
    .ok()
    .trim()
    .to_owned();
    let log = stack.inspect("api1", "{{.LogPath}}");
    let home = std::path::Path::new(&log)
        .parent()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    for service in ["redis", "api1"] {
        docker(&["stop", &stack.container(service)]).ok();
    }
    let _redis_data = disk.take_over("redis", &redis_volume);
    let _log_home = disk.take_over("api1", &home);
    for service in ["redis", "api1"] {
        docker(&["start", &stack.container(service)]).ok();
    }
    stack.wait_healthy();

    // A good backup, and older ones that the rules let go; one is another deployment's.
    keep(&stack, "{ last: 1 }");
    at(&["backup", "--quiet"]).ok();
    let newest = std::fs::read_dir(&backups)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    // One old set is less than the next backup will need: the log is wanted as well.
    let old = copy_set(&newest, "20250101T020000Z", None);
    let foreign = copy_set(&newest, "20240101T020000Z", Some((&stack.name, "another")));
    let (images, volume) = bystanders(&stack);
    let line = format!(
        "{{\"log\":\"{}\\n\",\"stream\":\"stdout\",\"time\":\"2026-11-25T00:00:00Z\"}}\n",
        "GET /api ".repeat(20)
    );
    let grown = line.repeat((40 << 20) / line.len());
    {
        let mut file = std::fs::File::options().append(true).open(&log).unwrap();
        std::io::Write::write_all(&mut file, grown.as_bytes()).unwrap();
    }

    let traffic = stack.traffic();
    let end = Instant::now() + Duration::from_secs(30);
    while traffic.numbers().len() < 20 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    let out = at(&[
        "drill",
        "inject",
        "disk-full/data-volume",
        "--ttl",
        "20m",
        "--yes",
    ]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    disk.fill("rest", 0);
    redis(&stack, &["set", "unsaved", "1"]);
    redis(&stack, &["bgsave"]);
    let end = Instant::now() + Duration::from_secs(20);
    while !redis(&stack, &["set", "k", "v"]).contains("MISCONF") {
        assert!(
            Instant::now() < end,
            "{}",
            redis(&stack, &["info", "persistence"])
        );
        redis(&stack, &["bgsave"]);
        std::thread::sleep(Duration::from_millis(200));
    }
    // What the engine and the dying server left unused.
    disk.fill("rest", 0);
    assert_eq!(disk.free(), 0);

    let out = at(&["diagnose", "--json"]);
    let first = first_opinion(&out);
    assert_eq!(first["scenario"], "disk-full", "{first}");
    assert_eq!(first["certainty"], "confirmed");
    assert_eq!(
        opinion(&out, "redis-failure")["consequence-of"],
        "disk-full",
        "{}",
        out.stdout
    );
    assert_eq!(opinion(&out, "db-corruption")["look-alike"]["name"], "disk-full");
    let plan = at(&["recover", "disk-full", "--dry-run"]).ok();
    for words in [
        "20250101T020000Z",
        "Bring postgres back",
        "Have redis save its data",
        "archive",
    ] {
        assert!(
            plan.to_lowercase().contains(&words.to_lowercase()),
            "{words}: {plan}"
        );
    }
    assert!(old.join("manifest.json").exists(), "a dry run removes nothing");
    assert_eq!(disk.free(), 0);

    // Backup sets go, and nothing brings them back: a yes is not enough.
    let out = at(&["recover", "disk-full", "--yes", "--json"]);
    assert_eq!(out.code, Some(4), "{}\n{}", out.stdout, out.stderr);
    assert!(old.join("manifest.json").exists());

    let acknowledged = traffic.log().to_owned();
    let began = Instant::now();
    let out = at(&[
        "recover",
        "disk-full",
        "--yes",
        "--confirm",
        &stack.name,
        "--json",
        "--acknowledged",
        acknowledged.to_str().unwrap(),
    ]);
    let took = began.elapsed();
    assert_eq!(out.code, Some(0), "{}\n{}", out.stdout, out.stderr);
    eprintln!(
        "disk-full: recovered in {:.1} s, {} bytes free",
        took.as_secs_f64(),
        disk.free()
    );
    stack.wait_healthy();

    assert!(redis(&stack, &["set", "k", "v"]).contains("OK"));
    assert_eq!(redis(&stack, &["get", "unsaved"]), "1");
    let written = traffic.finish();
    assert!(written.count >= 20 && written.lost.is_empty(), "{written:?}");
    // Only what the rules let go is gone, and nothing of others.
    assert!(newest.join("manifest.json").exists() && foreign.join("manifest.json").exists());
    assert!(!old.exists());
    assert!(images.iter().all(|i| is_there("image", i)) && is_there("volume", &volume));
    // What was in the log is in the archive, whole.
    let report = out.event("report")["report"].clone();
    let text = report.to_string();
    for fact in ["backups-removed", "freed-by-backups"] {
        assert!(text.contains(fact), "{fact}: {text}");
    }
    let archive = text
        .split("log-archived\":\"")
        .nth(1)
        .and_then(|t| t.split('"').next())
        .unwrap();
    let back = zstd::decode_all(std::fs::File::open(archive).unwrap()).unwrap();
    assert!(String::from_utf8_lossy(&back).contains(&grown));
    assert!(std::fs::metadata(&log).unwrap().len() < 1 << 20);
    std::fs::remove_dir_all(std::path::Path::new(archive).parent().unwrap()).unwrap();
    // The incident was remembered in memory, and is at home now.
    let id = out.event("incident")["id"].as_str().unwrap().to_owned();
    assert!(
        out.event("incident")["directory"]
            .as_str()
            .unwrap()
            .starts_with("/dev/shm/")
    );
    assert!(
        state.join("incidents").join(&id).join("journal.jsonl").exists(),
        "{}",
        out.stdout
    );
    assert!(
        !std::path::Path::new("/dev/shm/drctl-0/incidents")
            .join(&id)
            .exists()
    );
    at(&["incident", "show", &id]).ok();

    at(&["drill", "heal"]).ok();
    for image in images {
        docker(&["rmi", &image]).ok();
    }
    docker(&["volume", "rm", &volume]).ok();
    stack.wait_healthy();
}

/// Nothing that is safe to free: what is large is named with the statement for a person, and nothing is touched.
#[test]
fn where_nothing_is_safe_it_is_refused_and_the_slot_is_named() {
    let Some((_directory, disk, stack)) = on_a_small_disk("slot", 640) else {
        return;
    };
    stack.drctl(&["backup", "--quiet"]).ok();
    let rows = stack.psql("select count(*) from orders").unwrap();
    stack
        .psql("select pg_create_physical_replication_slot('forgotten', true)")
        .unwrap();
    stack
        .psql("select pg_logical_emit_message(false, 'x', repeat(md5(random()::text), 262144)) from generate_series(1, 16); checkpoint")
        .unwrap();
    let filler = disk.fill("filler", 10 << 20);
    let out = stack.drctl(&["diagnose", "--json"]);
    assert_eq!(first_opinion(&out)["scenario"], "disk-full", "{}", out.stdout);
    let out = stack.agreed(&["recover", "disk-full"]);
    assert_eq!(out.code, Some(4), "{}{}", out.stdout, out.stderr);
    let error = out.event("error").to_string();
    for words in [
        "does not suffice",
        "forgotten",
        "pg_drop_replication_slot('forgotten')",
        "write-ahead log",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert_eq!(
        stack
            .psql("select count(*) from pg_replication_slots where slot_name = 'forgotten'")
            .unwrap(),
        "1"
    );
    assert!(filler.exists());
    // The person has decided.
    std::fs::remove_file(&filler).unwrap();
    stack
        .psql("select pg_drop_replication_slot('forgotten')")
        .unwrap();
    stack.psql("checkpoint").unwrap();
    let out = stack.drctl(&["diagnose", "disk-full", "--json"]);
    assert_eq!(first_opinion(&out)["certainty"], "absent", "{}", out.stdout);
    assert_eq!(stack.psql("select count(*) from orders").unwrap(), rows);
}

/// Killed in the middle with no byte left: what was done is remembered in memory, gone on with, and brought home.
#[test]
fn a_killed_recovery_is_gone_on_with_although_its_memory_had_no_room() {
    let Some((_directory, disk, stack)) = on_a_small_disk("fullkill", 700) else {
        return;
    };
    let backups = backups_on(&stack, &disk);
    let state = disk.0.join("state");
    let state_flag = state.to_str().unwrap().to_owned();
    keep(&stack, "{ last: 1 }");
    stack
        .drctl(&["backup", "--quiet", "--state-dir", &state_flag])
        .ok();
    let newest = std::fs::read_dir(&backups)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let old = ["20250101T020000Z", "20250102T020000Z"].map(|l| copy_set(&newest, l, None));
    // What a killed backup has left fills the disk as well, and no backup would ever begin again to remove it.
    let unfinished = backups.join("20250103T020000Z.partial");
    std::fs::create_dir(&unfinished).unwrap();
    std::fs::write(unfinished.join("half"), vec![1_u8; 8 << 20]).unwrap();
    let rows = stack.psql("select count(*) from orders").unwrap();
    let inject = [
        "drill",
        "inject",
        "disk-full/data-volume",
        "--ttl",
        "20m",
        "--state-dir",
        &state_flag,
    ];
    stack.drctl(&inject).ok();
    disk.fill("rest", 0);
    assert_eq!(disk.free(), 0);

    // Three records open the incident, the fourth begins the first step.
    let mut command = stack.command(&[
        "recover",
        "disk-full",
        "--yes",
        "--confirm",
        &stack.name,
        "--json",
        "--state-dir",
        &state_flag,
    ]);
    command.env("DRCTL_CRASH_AFTER_RECORD", "4");
    let out = crate::stack::run(&mut command, None, Duration::from_secs(120));
    assert_eq!(out.code, None, "{}{}", out.stdout, out.stderr);
    let id = out.event("incident")["id"].as_str().unwrap().to_owned();
    let away = std::path::Path::new("/dev/shm/drctl-0/incidents").join(&id);
    assert!(away.join("journal.jsonl").exists());
    // Nothing else is begun meanwhile.
    let out = stack.agreed(&["recover", "disk-full", "--state-dir", &state_flag]);
    assert_eq!(out.code, Some(4), "{}", out.stdout);
    assert!(out.event("error").to_string().contains(&id));

    let out = stack.agreed(&["incident", "resume", &id, "--state-dir", &state_flag]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    stack.wait_healthy();
    assert!(!unfinished.exists() && old.iter().any(|o| !o.exists()));
    assert!(newest.join("manifest.json").exists());
    assert!(state.join("incidents").join(&id).join("journal.jsonl").exists());
    assert!(!away.exists());
    let counted: i64 = stack
        .psql("select count(*) from orders")
        .unwrap()
        .parse()
        .unwrap();
    assert!(counted >= rows.parse().unwrap());
    stack.drctl(&["drill", "heal", "--state-dir", &state_flag]).ok();
    stack.wait_healthy();
}

/// A disk has bytes and files; either can run out.
#[test]
fn a_disk_without_files_is_named_too() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Mounted::at(directory.path().join("data"), "640m,nr_inodes=4000") else {
        return;
    };
    let Some(stack) = Stack::up_with("inodes", &[("SIMGEN_POSTGRES_DATA", disk.0.to_str().unwrap())]) else {
        return;
    };
    let empty = disk.0.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let mut made = 0;
    while std::fs::File::create(empty.join(made.to_string())).is_ok() {
        made += 1;
    }
    assert!(disk.free() > 64 << 20, "bytes are left");
    let out = stack.drctl(&["diagnose", "--json"]);
    let first = first_opinion(&out);
    assert_eq!(first["scenario"], "disk-full", "{first}");
    assert!(
        first["summary"].as_str().unwrap().contains("no more files"),
        "{first}"
    );
    let out = stack.agreed(&["recover", "disk-full"]);
    assert_eq!(out.code, Some(4), "{}", out.stdout);
    assert!(out.event("error").to_string().contains("df -i"), "{}", out.stdout);
    std::fs::remove_dir_all(&empty).unwrap();
    let out = stack.drctl(&["diagnose", "disk-full", "--json"]);
    assert_eq!(first_opinion(&out)["certainty"], "absent", "{}", out.stdout);
}
