//! What the check tools print, as it is read.

use super::parse::parse;
use super::*;

/// The beginning of what every look tells.
const HEAD: &str =
    "directory=/data\nsnapshot-name=dump.rdb\nappend-name=appendonly.aof\nowner=999:999\nfree=1000\n";

fn look(append_only: &str, rest: &str) -> RedisFileFacts {
    parse(&format!("{HEAD}append-only={append_only}\n{rest}")).unwrap()
}

// Each as redis-check-rdb and redis-check-aof 7.0.15 print it.
const CRC: &str = "snapshot=106805 1795663293
check-snapshot=[offset 0] Checking RDB file dump.rdb
check-snapshot=--- RDB ERROR DETECTED ---
check-snapshot=[offset 106805] RDB CRC error
check-snapshot=[additional info] While doing: check-sum
check-snapshot=[info] 5506 keys read
check-snapshot=[info] 50 expires
check-snapshot=[info] 0 already expired
";
const SHORT: &str = "snapshot=20000 1795663293
check-snapshot=--- RDB ERROR DETECTED ---
check-snapshot=[offset 19997] Unexpected EOF reading RDB file
check-snapshot=[info] 1027 keys read
check-snapshot=[info] 0 expires
";
const BASE: &str = "append-entry=appendonlydir
append-file=103668 appendonlydir/appendonly.aof.2.base.rdb
append-file=16203 appendonlydir/appendonly.aof.2.incr.aof
append-file=88 appendonlydir/appendonly.aof.manifest
";
const MANIFEST: &str = "manifest=file appendonly.aof.2.base.rdb seq 2 type b
manifest=file appendonly.aof.2.incr.aof seq 2 type i
";

#[test]
fn a_wrong_checksum_is_not_a_damaged_snapshot() {
    let seen = look("no", CRC);
    let snapshot = seen.snapshot.as_ref().unwrap();
    assert_eq!(snapshot.state, SnapshotState::ChecksumWrong);
    assert_eq!((snapshot.keys.all, snapshot.keys.lasting()), (5506, 5456));
    assert!(seen.is_damaged());
    let seen = look("no", SHORT);
    assert_eq!(
        seen.snapshot.as_ref().unwrap().state,
        SnapshotState::Damaged("Unexpected EOF reading RDB file".into())
    );
    // With an append-only file the snapshot is not what is loaded.
    assert!(!look("yes", SHORT).is_damaged());
}

#[test]
fn the_place_of_a_damaged_command_is_told() {
    let seen = look(
        "yes",
        &format!(
            "{BASE}{MANIFEST}check-append=[offset 103668] \\o/ RDB looks OK! \\o/
check-append=[info] 5050 keys read
check-append=[info] 50 expires
check-append=AOF analyzed: filename=appendonly.aof.2.base.rdb, size=103668, ok_up_to=103668, ok_up_to_line=1, diff=0
check-append=BASE AOF appendonly.aof.2.base.rdb is valid
check-append=AOF analyzed: filename=appendonly.aof.2.incr.aof, size=16203, ok_up_to=983, ok_up_to_line=230, diff=15220
check-append=AOF appendonly.aof.2.incr.aof is not valid. Use the --fix option to try fixing it.
behind=530
"
        ),
    );
    let append = seen.append.as_ref().unwrap();
    assert_eq!(
        append.state,
        AppendState::Cut {
            file: "appendonly.aof.2.incr.aof".into(),
            good: 983,
            bytes: 16203,
            behind: 530
        }
    );
    assert_eq!(append.base_keys.map(Keys::lasting), Some(5000));
    assert_eq!(append.bytes, 103_668 + 16_203 + 88);
}

#[test]
fn a_damaged_base_cannot_be_cut() {
    let seen = look(
        "yes",
        &format!(
            "{BASE}{MANIFEST}check-append=--- RDB ERROR DETECTED ---
check-append=[offset 9011] Internal error in RDB reading offset 0, function at rdb.c:413 -> Invalid LZF compressed string
check-append=[info] 436 keys read
"
        ),
    );
    let append = seen.append.unwrap();
    assert!(
        matches!(&append.state, AppendState::Damaged(why) if why.contains("LZF")),
        "{append:?}"
    );
    assert_eq!(append.base_keys, None);
}

#[test]
fn a_manifest_is_rebuilt_only_where_it_is_certain() {
    let rebuilt = |files: &str, manifest: &str| {
        let seen = look("yes", &format!("append-entry=appendonlydir\n{files}{manifest}"));
        match seen.append.unwrap().state {
            AppendState::Manifest { rebuilt } => rebuilt,
            other => panic!("{other:?}"),
        }
    };
    let garbage = "manifest=garbage\n";
    assert_eq!(
        rebuilt(BASE, garbage),
        Ok(vec![
            "file appendonly.aof.2.base.rdb seq 2 type b".to_owned(),
            "file appendonly.aof.2.incr.aof seq 2 type i".to_owned()
        ])
    );
    let second = "append-file=5 appendonlydir/appendonly.aof.3.incr.aof\n";
    assert!(rebuilt(&format!("{BASE}{second}"), garbage).is_err());
    // A manifest that is not there is none.
    assert!(rebuilt("append-file=5 appendonlydir/appendonly.aof.1.incr.aof\n", "").is_err());
}

#[test]
fn one_file_of_before_version_7_is_judged_too() {
    let seen = look(
        "yes",
        "append-entry=appendonly.aof
append-file=16203 appendonly.aof
check-append=AOF analyzed: size=16203, ok_up_to=983, diff=15220
check-append=AOF is not valid. Use the --fix option to try fixing it.
behind=12
",
    );
    assert!(matches!(
        seen.append.unwrap().state,
        AppendState::Cut {
            good: 983,
            behind: 12,
            ..
        }
    ));
    assert_eq!(seen.files.append_entry, "appendonly.aof");
}

#[test]
fn what_could_not_be_looked_at_is_no_verdict() {
    assert!(parse("error=there is no directory /x\n").is_err());
    assert!(parse("").is_err());
}

// As redis-check-rdb and redis-check-aof 7.0.15 print it of files whose first bytes say 99.
const NEWER: &str = "snapshot=3000 1795663293
snapshot-header=REDIS0099
check-snapshot=--- RDB ERROR DETECTED ---
check-snapshot=[offset 9] Can't handle RDB format version 99
check-snapshot=[info] 0 keys read
";

#[test]
fn a_file_of_another_version_is_not_damaged() {
    let seen = look("no", NEWER);
    assert_eq!(seen.other_version(), Some("RDB format 99"));
    let seven_four = look("no", &NEWER.replace("99\n", "12\n"));
    assert!(
        seven_four.in_words().contains("which Redis 7.4 and 8 write"),
        "{}",
        seven_four.in_words()
    );
    let seen = look("yes", NEWER);
    assert_eq!(
        (seen.other_version(), seen.snapshot_of_another_version()),
        (None, Some("RDB format 99"))
    );
    let base = look(
        "yes",
        &format!(
            "{BASE}{MANIFEST}check-append=--- RDB ERROR DETECTED ---
check-append=[offset 9] Can't handle RDB format version 99
check-append=RDB preamble of AOF file is not sane, aborting.
"
        ),
    );
    assert_eq!(base.other_version(), Some("RDB format 99"));
    // Valkey's own name stands where Redis looks for its own; other bytes there are damage.
    let signature = |header: &str| {
        look(
            "no",
            &format!(
                "snapshot=3000 1795663293
snapshot-header={header}
check-snapshot=--- RDB ERROR DETECTED ---
check-snapshot=[offset 9] Wrong signature trying to load DB from file
"
            ),
        )
    };
    assert_eq!(
        signature("VALKEY080").other_version(),
        Some("the RDB format 080 of Valkey")
    );
    assert_eq!(signature("REDxx0010").other_version(), None);
    // It makes a 0 of letters.
    assert_eq!(look("no", &NEWER.replace("99\n", "0\n")).other_version(), None);
}

#[test]
fn the_place_of_a_manifest_is_told_by_the_command_line_and_its_file() {
    let with = |command: &[&str], configuration: &str| {
        let mut info: ContainerInfo = serde_json::from_value(serde_json::json!({
            "id": "id", "name": "redis", "image": "redis:7", "image-id": "sha256:aa", "status": "exited", "exit-code": 0,
            "oom-killed": false, "error": "", "health": null, "started-at": null, "finished-at": null, "restart-count": 0,
            "restart-policy": "no", "stop-signal": "SIGTERM", "shm-size": 0, "memory-limit": 0, "networks": {},
            "published": {}, "mounts": [], "labels": {}, "working-dir": "/data"
        }))
        .unwrap();
        info.command = command.iter().map(|w| (*w).to_owned()).collect();
        let told = environment(&info).into_iter().collect();
        let paths = paths(&info, &told, configuration);
        (paths.append, paths.manifest, paths.directory)
    };
    let paths = |command: &[&str]| with(command, "");
    let manifest = |command: &[&str]| paths(command).1;
    assert_eq!(paths(&["redis-server"]).0, "/data/appendonlydir");
    assert_eq!(
        manifest(&["redis-server"]),
        "/data/appendonlydir/appendonly.aof.manifest"
    );
    assert_eq!(
        manifest(&[
            "redis-server",
            "--dir",
            "/var/lib/redis",
            "--appendfilename",
            "log",
            "--appenddirname",
            "logs"
        ]),
        "/var/lib/redis/logs/log.manifest"
    );
    assert_eq!(paths(&["redis-server"]).2, "/data");
    assert_eq!(paths(&["redis-server", "--dir", "./a"]).2, "/data/a");
    let conf = "# dir /tmp\nDIR ./one\nappenddirname \"logs\"\ndir /srv/redis\n";
    let file = ["redis-server", "/etc/redis.conf"];
    assert_eq!(with(&file, conf).1, "/srv/redis/logs/appendonly.aof.manifest");
    let both = ["redis-server", "/etc/redis.conf", "--dir", "/var/lib/redis"];
    assert_eq!(with(&both, conf).0, "/var/lib/redis/logs");
}
