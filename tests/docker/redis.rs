//! What is seen of a real Redis in good and in bad times: every trouble has its own kind, whatever PING says.

use std::time::{Duration, Instant};

use drctl::probe::redis::{Answer, PROBE_KEY_PREFIX, RedisState, observe};
use drctl::probe::redis_keys::{SampleLimits, sample};
use drctl::redis::{Client, ConnectSpec, ErrorKind, RedisError, glob_matches, unlink_matching};
use drctl::system::{RedisServer, System};
use redis::cmd;

use crate::stack::{Stack, docker};

/// Keys that the runbook calls disposable, and their size.
const CACHED: u64 = 3_000;
const CACHED_BYTES: usize = 4_096;

async fn server(stack: &Stack) -> RedisServer {
    let runbook = drctl::runbook::load(&stack.runbook()).unwrap();
    let system = System::open(runbook).await.unwrap();
    let name = system.redis_service(None).unwrap().to_string();
    system.redis(&name).await.unwrap()
}

async fn fill(client: &Client) {
    let value = "x".repeat(CACHED_BYTES);
    let mut load = redis::cmd("EVAL");
    load.arg("for i = 1, tonumber(ARGV[1]) do redis.call('SET', string.format('cv:%032x', i), ARGV[2]) end")
        .arg(0)
        .arg(CACHED)
        .arg(value);
    client.ask::<()>(&load).await.unwrap();
}

fn failed(answer: Option<&Answer>) -> Option<ErrorKind> {
    Some(answer?.failure()?.kind)
}

/// The kind of the first thing that failed, after a look with a write test.
async fn seen(server: &RedisServer) -> (Option<ErrorKind>, RedisState) {
    let state = observe(server, true).await;
    // It must be possible to keep it.
    let kept = serde_json::to_string(&state).unwrap();
    let state: RedisState = serde_json::from_str(&kept).unwrap();
    (state.first_failure().map(|f| f.kind), state)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_trouble_of_a_redis_has_its_kind() {
    let Some(stack) = Stack::up("redis") else { return };
    let server = server(&stack).await;
    let client = server.connect().await.unwrap();

    a_sound_one(&server, &client).await;
    patterns_as_the_server(&server, &client).await;
    full_memory(&server, &client).await;
    passwords(&server, &client).await;
    replica(&server, &client).await;
    cannot_save(&stack, &server, &client).await;
    busy(&server, &client).await;
    too_many_clients(&server, &client).await;

    docker(&["pause", &stack.container("redis")]).ok();
    let begun = Instant::now();
    let (kind, state) = seen(&server).await;
    docker(&["unpause", &stack.container("redis")]).ok();
    assert_eq!(kind, Some(ErrorKind::Timeout), "{state:?}");
    assert!(
        begun.elapsed() < server.spec.deadline * 2,
        "{:?}",
        begun.elapsed()
    );

    docker(&["stop", &stack.container("redis")]).ok();
    // To one who does not know it yet, its address belongs to nobody.
    let (kind, state) = seen(&server).await;
    assert!(kind.is_some_and(ErrorKind::is_unreachable), "{state:?}");
    let stopped = self::server(&stack).await;
    let (kind, state) = seen(&stopped).await;
    assert_eq!(kind, Some(ErrorKind::NoConnection));
    assert!(
        state.first_failure().unwrap().text.contains("is not running"),
        "{state:?}"
    );
}

async fn a_sound_one(server: &RedisServer, client: &Client) {
    let (kind, state) = seen(server).await;
    assert_eq!(kind, None, "{state:?}");
    assert!(state.write.as_ref().unwrap().is_good());
    let info = state.info.unwrap();
    assert!(info.version.starts_with("7."), "{}", info.version);
    assert_eq!(info.memory.max, 128 << 20);
    assert_eq!(info.memory.policy, "noeviction");
    assert!(info.memory.used > 0 && info.memory.peak >= info.memory.used && !info.memory.is_full());
    assert!(info.clients.connected >= 2 && info.clients.max > 0);
    assert!(info.persistence.last_save_ok && !info.persistence.aof_enabled);
    assert!(!info.replication.replica);
    // A status asks for no write, and nothing is left of one.
    assert_eq!(observe(server, false).await.write, None);
    let left = client
        .scan(0, Some(&format!("{PROBE_KEY_PREFIX}*")), 100_000)
        .await
        .unwrap();
    assert_eq!((left.cursor, left.keys.len()), (0, 0));

    let before = client.lastsave().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    client.bgsave().await.unwrap();
    wait(client, |i| !i.persistence.saving).await;
    assert!(client.lastsave().await.unwrap() > before);

    client.config_set("slowlog-log-slower-than", "0").await.unwrap();
    let _: Option<String> = client
        .ask(cmd("GET").arg("session:0d8f3b7e-5c0a-4f53-9f3c-0a4f2f1f9a11"))
        .await
        .unwrap();
    let slow = client.slowlog(50).await.unwrap();
    client
        .config_set("slowlog-log-slower-than", "10000")
        .await
        .unwrap();
    let get = slow.iter().find(|s| s.command == "GET session:*");
    assert_eq!(get.map(|s| s.arguments), Some(1), "{slow:?}");
}

async fn wait(client: &Client, done: impl Fn(&drctl::redis::RedisInfo) -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let info = client.info().await.unwrap();
        if done(&info) {
            return;
        }
        assert!(Instant::now() < end, "{info:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Our matcher and the server's give the same answer for each of these.
async fn patterns_as_the_server(server: &RedisServer, client: &Client) {
    let names: Vec<Vec<u8>> = [
        "a", "b", "ab", "abc", "a*c", "a-c", "a]", "]", "-", "^", "^a", "\\", "a\\b", "[a]", "a?", "cv:1",
        "cv:12",
    ]
    .iter()
    .map(|n| format!("g:{n}").into_bytes())
    .chain([b"g:\xff\x00".to_vec()])
    .collect();
    for name in &names {
        client.ask::<()>(cmd("SET").arg(name).arg(1)).await.unwrap();
    }
    for pattern in [
        "*", "?", "??", "a*", "*a", "*b*", "a\\*c", "a[*-]c", "[a-c]", "[c-a]*", "[^a]", "[^^]", "[\\]]",
        "a]", "[", "[a", "[]", "[^]", "[a-", "[a-]", "\\", "a\\\\b", "\\[a\\]", "a\\?", "cv:*", "cv:?",
        "**1", "*:*:*", "[^-b]*",
    ] {
        let pattern = format!("g:{pattern}");
        let mut server: Vec<Vec<u8>> = client.scan(0, Some(&pattern), 1_000_000).await.unwrap().keys;
        let mut ours: Vec<Vec<u8>> = names
            .iter()
            .filter(|n| glob_matches(pattern.as_bytes(), n))
            .cloned()
            .collect();
        server.sort();
        ours.sort();
        assert_eq!(ours, server, "{pattern}");
    }
    let gone = unlink_matching(&server.spec, "g:*", Duration::from_secs(60)).await;
    assert_eq!(gone.unwrap().keys, names.len() as u64);
}

async fn full_memory(server: &RedisServer, client: &Client) {
    fill(client).await;
    let other = Client::connect(&server.spec.to_database(2)).await.unwrap();
    for i in 0..30 {
        let mut set = cmd("HSET");
        set.arg(format!("user:{i}:cart")).arg("item").arg(i);
        other.ask::<()>(&set).await.unwrap();
        let mut expire = cmd("EXPIRE");
        expire.arg(format!("user:{i}:cart")).arg(600);
        other.ask::<()>(&expire).await.unwrap();
    }

    let info = client.info().await.unwrap();
    let patterns = &server.config.disposable_patterns;
    let all = SampleLimits {
        keys: 1_000_000,
        time: Duration::from_secs(20),
    };
    let found = sample(&server.spec, &info.keyspace, patterns, all).await.unwrap();
    assert!(found.complete && found.not_examined.is_empty(), "{found:?}");
    assert_eq!(found.sampled, info.keys());
    let cv = &found.groups[0];
    assert_eq!((cv.database, &*cv.pattern, &*cv.kind), (0, "cv:*", "string"));
    assert_eq!((cv.keys, cv.without_ttl), (CACHED, CACHED));
    assert!(cv.is_disposable());
    let payload = CACHED * CACHED_BYTES as u64;
    assert!(cv.bytes > payload && cv.bytes < payload * 2, "{cv:?}");
    let carts = found.groups.iter().find(|g| g.pattern == "user:*:cart").unwrap();
    assert_eq!((carts.database, &*carts.kind, carts.keys), (2, "hash", 30));
    assert_eq!((carts.without_ttl, carts.is_disposable()), (0, false));
    assert!(found.largest[0].bytes >= CACHED_BYTES as u64);

    // A part of them gives about the same picture.
    let some = SampleLimits { keys: 600, ..all };
    let part = sample(&server.spec, &info.keyspace, patterns, some)
        .await
        .unwrap();
    assert!(!part.complete && part.sampled < found.sampled, "{part:?}");
    let share = part.groups[0].bytes * 100 / cv.bytes;
    assert!((90..=110).contains(&share), "{share} %: {part:?}");

    // Full: PING is content, nothing can be written.
    let limit = client.info().await.unwrap().memory.used - (1 << 20);
    client.config_set("maxmemory", &limit.to_string()).await.unwrap();
    let (kind, state) = seen(server).await;
    assert_eq!(kind, Some(ErrorKind::OutOfMemory), "{state:?}");
    assert!(state.ping.as_ref().unwrap().is_good());
    assert!(state.failed_with(ErrorKind::OutOfMemory));
    let info = state.info.unwrap();
    assert!(info.memory.is_full() && info.memory.percent().unwrap() >= 100.0);
    assert_eq!(info.stats.evicted_keys, 0);

    // Bounded, then all of it. The other database's keys and everything else stay.
    let before = client.dbsize().await.unwrap();
    let minute = Duration::from_secs(60);
    let some = unlink_matching(&server.spec, "cv:*", Duration::ZERO)
        .await
        .unwrap();
    assert!(!some.complete && some.keys > 0 && some.keys < CACHED, "{some:?}");
    let rest = unlink_matching(&server.spec, "cv:*", minute).await.unwrap();
    assert_eq!((rest.keys, rest.complete), (CACHED - some.keys, true));
    assert_eq!(client.dbsize().await.unwrap(), before - CACHED);
    assert_eq!(other.dbsize().await.unwrap(), 30);
    wait(client, |i| i.memory.pending_frees == 0 && !i.memory.is_full()).await;
    assert_eq!(seen(server).await.0, None);
    assert!(client.info().await.unwrap().errors_of("OOM") >= 1);
    client.config_set("maxmemory", "128mb").await.unwrap();
    let max = client.config_get("maxmemory").await.unwrap();
    assert_eq!(max["maxmemory"], (128 << 20).to_string());
}

async fn passwords(server: &RedisServer, client: &Client) {
    let with = |password: Option<&str>, optional| RedisServer {
        spec: ConnectSpec {
            password: password.map(Into::into),
            password_optional: optional,
            ..server.spec.clone()
        },
        ..server.clone()
    };
    let lost = with(Some("quite-right"), false);
    assert_eq!(seen(&lost).await.0, Some(ErrorKind::NoPasswordSet));
    assert_eq!(seen(&with(Some("a-guess"), true)).await.0, None);

    client.config_set("requirepass", "quite-right").await.unwrap();
    assert_eq!(seen(&lost).await.0, None);
    let (kind, state) = seen(&with(None, true)).await;
    assert_eq!(kind, Some(ErrorKind::PasswordNeeded), "{state:?}");
    let (kind, state) = seen(&with(Some("quite-wrong"), true)).await;
    assert_eq!(kind, Some(ErrorKind::WrongPassword), "{state:?}");
    assert!(!format!("{state:?}{:?}", with(Some("quite-wrong"), true)).contains("quite-wrong"));
    assert!(!serde_json::to_string(&state).unwrap().contains("quite-wrong"));
    client.config_set("requirepass", "").await.unwrap();

    let acl = |rule: &str| {
        let mut command = cmd("ACL");
        command.arg("SETUSER").arg("default").arg(rule);
        command
    };
    client.ask::<()>(&acl("-set")).await.unwrap();
    let (_, state) = seen(server).await;
    client.ask::<()>(&acl("+@all")).await.unwrap();
    assert_eq!(failed(state.write.as_ref()), Some(ErrorKind::NotPermitted));
    assert!(state.ping.unwrap().is_good());
    assert_eq!(seen(server).await.0, None);
}

async fn replica(server: &RedisServer, client: &Client) {
    client
        .ask::<()>(cmd("REPLICAOF").arg("127.0.0.1").arg(1))
        .await
        .unwrap();
    let (_, state) = seen(server).await;
    client.config_set("replica-serve-stale-data", "no").await.unwrap();
    let (stale, _) = seen(server).await;
    client
        .ask::<()>(cmd("REPLICAOF").arg("NO").arg("ONE"))
        .await
        .unwrap();
    client
        .config_set("replica-serve-stale-data", "yes")
        .await
        .unwrap();
    assert_eq!(failed(state.write.as_ref()), Some(ErrorKind::ReadOnly));
    let replication = state.info.unwrap().replication;
    assert!(replication.replica);
    assert_eq!(replication.link_up, Some(false));
    assert_eq!(replication.primary.as_deref(), Some("127.0.0.1:1"));
    assert_eq!(stale, Some(ErrorKind::MasterDown));
    assert_eq!(seen(server).await.0, None);
}

async fn cannot_save(stack: &Stack, server: &RedisServer, client: &Client) {
    let id = stack.container("redis");
    let owner = docker(&["exec", &id, "stat", "-c", "%u:%g", "/data"]).ok();
    docker(&["exec", "-u", "0", &id, "chown", "0:0", "/data"]).ok();
    client.bgsave().await.unwrap();
    wait(client, |i| !i.persistence.saving && !i.persistence.last_save_ok).await;
    let (kind, state) = seen(server).await;
    docker(&["exec", "-u", "0", &id, "chown", owner.trim(), "/data"]).ok();
    client.bgsave().await.unwrap();
    wait(client, |i| !i.persistence.saving && i.persistence.last_save_ok).await;
    assert_eq!(kind, Some(ErrorKind::CannotPersist), "{state:?}");
    assert_eq!(failed(state.ping.as_ref()), Some(ErrorKind::CannotPersist));
    assert!(!state.info.unwrap().persistence.last_save_ok);
    assert_eq!(seen(server).await.0, None);
}

async fn busy(server: &RedisServer, client: &Client) {
    client.config_set("busy-reply-threshold", "50").await.unwrap();
    let looping = server.connect().await.unwrap();
    let mut script = cmd("EVAL");
    script.arg("while true do end").arg(0);
    let running =
        tokio::spawn(async move { looping.ask_within::<()>(Duration::from_secs(20), &script).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (kind, state) = seen(server).await;
    client.ask::<()>(cmd("SCRIPT").arg("KILL")).await.unwrap();
    assert_eq!(kind, Some(ErrorKind::Busy), "{state:?}");
    assert!(matches!(running.await.unwrap(), Err(RedisError::Reply { .. })));
    assert_eq!(seen(server).await.0, None);
}

async fn too_many_clients(server: &RedisServer, client: &Client) {
    let before = client.info().await.unwrap().clients;
    client.config_set("maxclients", "1").await.unwrap();
    // How it meets us depends on who is faster; the kind must not.
    for _ in 0..20 {
        let (kind, state) = seen(server).await;
        assert_eq!(kind, Some(ErrorKind::TooManyClients), "{state:?}");
    }
    client
        .config_set("maxclients", &before.max.to_string())
        .await
        .unwrap();
    assert!(client.info().await.unwrap().clients.rejected > before.rejected);
    assert_eq!(seen(server).await.0, None);
}
