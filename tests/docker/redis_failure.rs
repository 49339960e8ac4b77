//! A Redis whose files cannot be loaded: each kind of damage is named, mended on a copy with no more loss than it has to
//! cost, and can be taken back.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::crash::{close, newest};
use crate::stack::{Stack, docker};
use crate::sweep::Sweep;

/// Keys that each fault writes before it damages.
const KEYS: u64 = 200;

fn inject(stack: &Stack, fault: &str) {
    let fault = format!("redis-failure/{fault}");
    stack.agreed(&["drill", "inject", &fault, "--ttl", "15m"]).ok();
}

/// Keys of a pattern; `None` where it does not answer.
fn keys(stack: &Stack, pattern: &str) -> Option<u64> {
    let container = stack.container("redis");
    let count = format!("return #redis.call('keys', '{pattern}')");
    let out = docker(&["exec", &container, "redis-cli", "eval", &count, "0"]);
    (out.code == Some(0))
        .then(|| out.stdout.trim().parse().ok())
        .flatten()
}

fn faults_keys(stack: &Stack) -> Option<u64> {
    keys(stack, "drctl:*")
}

fn kept(stack: &Stack) -> String {
    stack.beside("redis", "ls -A /data/.drctl 2>/dev/null; true")
}

/// Recovers, and gives the plan that was carried out.
fn recover(stack: &Stack, expected: &str) -> Value {
    let out = stack.agreed(&["recover", "redis-failure"]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    let plan = out.event("plan")["plan"].clone();
    assert_eq!(plan["remedy"], expected, "{}", out.stdout);
    let report = &out.event("report")["report"];
    assert_eq!(report["outcome"], "verified", "{report}");
    plan
}

fn end_incident(stack: &Stack) {
    let (id, _) = newest(stack);
    close(stack, &id).unwrap();
    assert_eq!(kept(stack), "");
}

fn undo(stack: &Stack) {
    let (id, _) = newest(stack);
    stack.agreed(&["incident", "undo", &id]).ok();
}

fn heal(stack: &Stack) {
    stack.agreed(&["drill", "heal"]).ok();
    stack.wait_healthy();
    assert_eq!(stack.beside("redis", "ls -A /data | grep '^.drctl'; true"), "");
}

fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Puts an address that fills the cache into the runbook, and gives what is asked there.
fn warm_url(stack: &Stack) -> Receiver<String> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/warm", listener.local_addr().unwrap());
    let text = std::fs::read_to_string(stack.runbook()).unwrap();
    let with = text.replace(
        "      sessions: { index:",
        &format!("      warm-url: {url}\n      sessions: {{ index:"),
    );
    assert_ne!(with, text);
    std::fs::write(stack.runbook(), with).unwrap();
    let (send, asked) = channel();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut bytes = [0; 1024];
        let n = client.read(&mut bytes).unwrap();
        client
            .write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
            .unwrap();
        send.send(String::from_utf8_lossy(&bytes[..n]).into_owned())
            .unwrap();
    });
    asked
}

#[test]
fn a_damaged_snapshot_is_loaded_as_far_as_it_can_be() {
    let Some(stack) = Stack::up("redisrdb") else {
        return;
    };

    inject(&stack, "rdb-checksum");
    let plan = recover(&stack, "repair");
    assert!(
        plan["data-loss"]["summary"]
            .to_string()
            .contains("values may be wrong"),
        "{plan}"
    );
    assert_eq!(faults_keys(&stack), Some(KEYS));
    undo(&stack);
    until("it loads the old file after all", || {
        faults_keys(&stack).is_none()
    });
    end_incident(&stack);
    heal(&stack);

    // With nothing that could be kept it starts empty, and the file stays.
    let warmed = warm_url(&stack);
    inject(&stack, "rdb-damaged");
    let refused = stack.drctl(&["recover", "redis-failure", "--yes", "--json"]);
    assert_eq!(refused.code, Some(4), "without the name: {}", refused.stdout);
    let plan = recover(&stack, "start-empty");
    assert!(
        plan["data-loss"]["summary"].to_string().contains("all keys"),
        "{plan}"
    );
    assert_eq!(faults_keys(&stack), Some(0));
    let asked = warmed.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(asked.starts_with("POST /warm "), "{asked}");
    assert_eq!(stack.beside("redis", "ls /data/.drctl/*/old"), "dump.rdb");
    docker(&[
        "exec",
        &stack.container("redis"),
        "redis-cli",
        "set",
        "later",
        "1",
    ])
    .ok();
    undo(&stack);
    until("it loads the old file after all", || {
        faults_keys(&stack).is_none()
    });
    // What was written to the empty one went with its stop into a file of its own.
    assert_eq!(stack.beside("redis", "ls /data/.drctl/*/undone"), "dump.rdb");
    end_incident(&stack);
    heal(&stack);
}

#[test]
fn a_damaged_append_only_file_loses_what_stands_behind_the_damage_and_no_more() {
    let Some(stack) = Stack::up_with("redisaof", &[("SIMGEN_REDIS_APPENDONLY", "yes")]) else {
        return;
    };

    inject(&stack, "aof-manifest");
    let plan = recover(&stack, "repair");
    assert_eq!(plan["data-loss"]["none"], true, "{plan}");
    assert_eq!(faults_keys(&stack), Some(KEYS));
    end_incident(&stack);
    heal(&stack);

    // Its list alone is gone: started, it would be empty and write over its files.
    let redis = stack.container("redis");
    docker(&["exec", &redis, "redis-cli", "set", "before", "1"]).ok();
    docker(&["stop", &redis]).ok();
    stack.change_files_of("redis", "rm /data/appendonlydir/appendonly.aof.manifest");
    let plan = recover(&stack, "repair");
    assert_eq!(plan["data-loss"]["none"], true, "{plan}");
    assert_eq!(keys(&stack, "before"), Some(1));
    end_incident(&stack);
    stack.wait_healthy();

    inject(&stack, "aof-damaged");
    let plan = recover(&stack, "repair");
    assert!(
        plan["data-loss"]["summary"]
            .to_string()
            .contains("about 5 commands"),
        "{plan}"
    );
    assert_eq!(
        (faults_keys(&stack), keys(&stack, "lost:*")),
        (Some(KEYS), Some(0))
    );
    end_incident(&stack);
    heal(&stack);

    // Its base cannot be cut: the snapshot is next, where there is one, and then nothing.
    inject(&stack, "aof-base");
    stack.change_files_of("redis", "rm /data/dump.rdb");
    let plan = recover(&stack, "start-empty");
    assert!(
        plan["alternatives"].to_string().contains("there is no snapshot"),
        "{plan}"
    );
    undo(&stack);
    end_incident(&stack);
    heal(&stack);
    docker(&[
        "exec",
        &stack.container("redis"),
        "redis-cli",
        "set",
        "saved",
        "1",
    ])
    .ok();
    docker(&["exec", &stack.container("redis"), "redis-cli", "save"]).ok();
    inject(&stack, "aof-base");
    let plan = recover(&stack, "load-snapshot");
    assert!(
        plan["data-loss"]["summary"]
            .to_string()
            .contains("since the snapshot of"),
        "{plan}"
    );
    assert_eq!(keys(&stack, "saved"), Some(1));
    end_incident(&stack);
    heal(&stack);

    // Somebody restores a snapshot as they know it from before: it is not loaded, and the next save would write over it.
    let redis = stack.container("redis");
    docker(&["stop", &redis]).ok();
    stack.change_files_of("redis", "rm -rf /data/appendonlydir");
    let before = stack.beside("redis", "cksum < /data/dump.rdb");
    docker(&["start", &redis]).ok();
    until("it is not up", || keys(&stack, "saved") == Some(0));
    let looked = stack.drctl(&["diagnose", "redis-failure", "--json"]);
    let opinion = looked.event("opinion");
    assert_eq!(opinion["certainty"], "suspected", "{}", looked.stdout);
    let plan = recover(&stack, "load-snapshot");
    assert_eq!(plan["data-loss"]["none"], true, "{plan}");
    assert_eq!(keys(&stack, "saved"), Some(1));
    // The stop has saved an empty server over the snapshot: an undo must bring back what was there, and closing must not
    // drop the only copy of it.
    let snapshot = "redis-check-rdb /data/dump.rdb | grep -c \"looks OK\"; cksum < /data/dump.rdb";
    undo(&stack);
    end_incident(&stack);
    assert_eq!(stack.beside("redis", snapshot), format!("1\n{before}"));
    stack.wait_healthy();

    // Where its files are stands in a configuration of its own: there its list is missed, too.
    start_by_configuration(&stack);
    let redis = stack.container("redis");
    docker(&["exec", &redis, "redis-cli", "set", "before", "1"]).ok();
    docker(&["stop", &redis]).ok();
    stack.change_files_of("redis", "rm /data/logs/log.manifest");
    let plan = recover(&stack, "repair");
    assert_eq!(plan["data-loss"]["none"], true, "{plan}");
    assert_eq!(keys(&stack, "before"), Some(1));
    end_incident(&stack);
    docker(&["rm", "-f", "-v", &redis]).ok();
}

/// Redis in a container as the stack's, but started with a configuration file.
fn start_by_configuration(stack: &Stack) {
    let old = stack.container("redis");
    let name = format!("{}-redis-by-file", stack.name);
    let of = |format: &str| stack.inspect("redis", format);
    let image = of("{{.Config.Image}}");
    let network = of("{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}");
    let volume = of("{{range .Mounts}}{{.Name}}{{end}}");
    let settings = "printf '%s\\n' 'appendonly yes' 'appenddirname \"logs\"' 'appendfilename log' 'bind *' \
                    'protected-mode no' >/data/redis.conf; rm -rf /data/dump.rdb /data/appendonlydir";
    stack.change_files_of("redis", settings);
    docker(&["rm", "-f", &old]).ok();
    let project = format!("com.docker.compose.project={}", stack.name);
    let volume = format!("{volume}:/data");
    docker(&[
        "run",
        "--detach",
        "--name",
        &name,
        "--network",
        &network,
        "--network-alias",
        "redis",
        "--volume",
        &volume,
        "--label",
        &project,
        "--label",
        "com.docker.compose.service=redis",
        "--label",
        "com.docker.compose.oneoff=False",
        &image,
        "redis-server",
        "/data/redis.conf",
    ])
    .ok();
    until("it is not up", || keys(stack, "before") == Some(0));
}

/// How the append-only file is: with the garbage in it and nobody served, or without it and served.
fn end(stack: &Stack) -> Result<&'static str, String> {
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let damaged = stack.beside(
            "redis",
            "grep -c '^no command' /data/appendonlydir/*.incr.aof; true",
        );
        match (damaged.as_str(), faults_keys(stack)) {
            ("1", None) => return Ok("old"),
            ("0", Some(KEYS)) => return Ok("new"),
            (damaged, keys) if Instant::now() > limit => {
                return Err(format!("damaged: {damaged}, keys: {keys:?}"));
            }
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

#[test]
fn killed_while_it_mends_the_files_it_ends_old_or_new() {
    let Some(stack) = Stack::up_with("rediscrash", &[("SIMGEN_REDIS_APPENDONLY", "yes")]) else {
        return;
    };
    inject(&stack, "aof-damaged");
    let failures = Sweep {
        stack: &stack,
        recover: &["recover", "redis-failure"],
        end,
        kept,
    }
    .run();
    heal(&stack);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What `diagnose` names instead.
fn look_alike(stack: &Stack) -> String {
    let looked = stack.drctl(&["diagnose", "redis-failure", "--json"]);
    let opinion = looked.event("opinion");
    opinion["look-alike"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_redis_that_is_busy_or_held_back_is_not_restarted() {
    let Some(stack) = Stack::up("redisbusy") else {
        return;
    };
    let redis = stack.container("redis");
    let started = || docker(&["inspect", "-f", "{{.State.StartedAt}}", &redis]).ok();
    let first = started();
    let cli = |words: &[&str]| docker(&[&["exec", &redis, "redis-cli"], words].concat());
    let in_background = |words: &[&str]| docker(&[&["exec", "-d", &redis, "redis-cli"], words].concat()).ok();

    // What a restart would find.
    cli(&["set", "saved", "1"]).ok();
    cli(&["save"]).ok();
    inject(&stack, "busy-script");
    let plan = recover(&stack, "kill-script");
    assert_eq!(plan["data-loss"]["none"], true, "{plan}");
    heal(&stack);
    assert_eq!(started(), first, "a script is ended without a restart");

    // One that has written is not ended by Redis: what a kill costs is told before.
    let began = Instant::now();
    in_background(&["eval", "redis.call('set', 'half', 1) while true do end", "0"]);
    let out = stack.agreed(&["recover", "redis-failure"]);
    let unkillable = format!("{}{}", out.stdout, out.stderr);
    assert_eq!(out.code, Some(8), "{unkillable}");
    assert!(unkillable.contains("has written already"), "{unkillable}");
    eprintln!("unkillable, {:?}: {unkillable}", began.elapsed());
    let plan = stack.drctl(&[
        "recover",
        "redis-failure",
        "--remedy",
        "restart",
        "--dry-run",
        "--json",
    ]);
    let planned = format!("{}{}", plan.stdout, plan.stderr);
    assert!(
        planned.contains("what the script has written, and everything written since the snapshot"),
        "{planned}"
    );
    assert_eq!(started(), first, "nothing is restarted before somebody says so");
    docker(&["kill", &redis]).ok();
    docker(&["start", &redis]).ok();
    stack.wait_healthy();
    let second = started();

    cli(&["client", "pause", "60000", "write"]).ok();
    in_background(&["set", "held", "1"]);
    until("a write is held back", || look_alike(&stack) == "paused");
    cli(&["client", "unpause"]).ok();

    for (fault, name) in [
        ("detached", "network-partition"),
        ("too-few-replicas", "too-few-replicas"),
        ("wrong-version", "wrong-version"),
    ] {
        inject(&stack, fault);
        assert_eq!(look_alike(&stack), name);
        for remedy in [&[][..], &["--remedy", "start-empty"], &["--remedy", "restart"]] {
            let out = stack.agreed(&[&["recover", "redis-failure"], remedy].concat());
            assert_eq!(
                out.code,
                Some(4),
                "{fault} {remedy:?}: {}{}",
                out.stdout,
                out.stderr
            );
        }
        if fault != "wrong-version" {
            assert_eq!(started(), second, "{fault}");
        }
        heal(&stack);
    }
}
