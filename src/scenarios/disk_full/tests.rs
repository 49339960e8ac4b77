use super::super::service_crash::fixtures::container;
use super::diagnose::{by_hand, shortages};
use super::*;
use crate::plan::{Action, SpaceAction, lint};
use crate::probe::connection::Connection;
use crate::probe::disk::Place;
use crate::probe::fills::{Slot, Wal, Word};
use crate::probe::logs::{LogFinding, LogPattern};
use crate::scenarios::Certainty;

const MIB: u64 = 1 << 20;

fn runbook() -> Runbook {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml");
    crate::runbook::load(std::path::Path::new(path)).unwrap()
}

fn volume(service: &str) -> Use {
    Use::Volume {
        service: service.into(),
        destination: "/data".into(),
    }
}

fn disk(id: &str, free: u64, uses: &[Use]) -> FileSystem {
    FileSystem {
        id: id.into(),
        size: 1000 * MIB,
        free,
        inodes: 10_000,
        free_inodes: 5_000,
        read_only: false,
        places: uses
            .iter()
            .map(|u| Place {
                what: u.clone(),
                path: format!("/{id}"),
            })
            .collect(),
    }
}

fn database() -> Database {
    Database {
        log: vec![],
        connection: Connection::Open {
            version: 150_013,
            started_at: None,
            in_recovery: false,
        },
        wal: Some(Wal {
            segment: 16 * MIB,
            max: 1000 * MIB,
            ..Wal::default()
        }),
        wal_bytes: Some(300 * MIB),
        temporary_bytes: Some(0),
        slot_names: vec![],
        shared_memory: Some((MIB, 64 * MIB)),
        words: vec![],
    }
}

/// PostgreSQL, its log, the backups and an API server's log on one disk; the archive elsewhere.
fn evidence(free: u64) -> Evidence {
    let log = Use::Log {
        service: "api1".into(),
    };
    Evidence {
        format: EVIDENCE_FORMAT,
        taken_at: Timestamp::UNIX_EPOCH,
        disks: Disks {
            file_systems: vec![
                disk("a", free, &[volume("postgres"), Use::Backups, log]),
                disk("b", 900 * MIB, &[Use::Engine, Use::State]),
            ],
            unseen: vec![],
        },
        containers: BTreeMap::from([(
            "postgres".to_owned(),
            ContainerState::Found(Box::new(container("postgres"))),
        )]),
        databases: BTreeMap::from([("postgres".to_owned(), Ok(database()))]),
        caches: BTreeMap::new(),
        logs: vec![ContainerLog {
            service: "api1".into(),
            container: "simgen_api1_1".into(),
            path: "/a/log".into(),
            bytes: 200 * MIB,
        }],
        images: vec![],
        backups: Backups {
            rules: true,
            old: vec![
                ("20260101T020000Z".into(), 40 * MIB),
                ("20260102T020000Z".into(), 40 * MIB),
                ("20260103T020000Z".into(), 40 * MIB),
            ],
            kept_bytes: 40 * MIB,
            kept: 1,
            newest_bytes: 40 * MIB,
            unreadable: None,
        },
        kept: vec![("20261120T000000Z-x".into(), "the old data".into())],
        archives: vec![
            Archive {
                path: "/a/logs".into(),
                file_system: "a".into(),
                free: 0,
            },
            Archive {
                path: "/b/logs".into(),
                file_system: "b".into(),
                free: 900 * MIB,
            },
        ],
    }
}

fn request() -> PlanRequest {
    PlanRequest {
        run: "r".into(),
        tried: vec![],
        remedy: None,
        backup: None,
        now: Timestamp::UNIX_EPOCH,
    }
}

fn planned(ev: &Evidence) -> std::result::Result<Plan, Refusal> {
    let plan = DiskFull::plan(ev, &runbook(), &request())?;
    lint(&plan).unwrap();
    Ok(plan)
}

fn full(line: &str) -> LogFinding {
    LogFinding {
        pattern: LogPattern::DiskFull,
        at: None,
        line: line.into(),
    }
}

#[test]
fn how_much_is_too_little_depends_on_who_is_there() {
    let said = |free: u64, said: bool| {
        let mut ev = evidence(free);
        if said {
            let server = ev.databases.get_mut("postgres").unwrap().as_mut().unwrap();
            server.log.push(full("PANIC:  No space left on device"));
        }
        DiskFull::diagnose(&ev, &runbook()).certainty
    };
    assert_eq!(said(0, false), Certainty::Confirmed);
    assert_eq!(said(15 * MIB, false), Certainty::Confirmed);
    assert_eq!(said(17 * MIB, false), Certainty::Absent);
    assert_eq!(said(40 * MIB, true), Certainty::Confirmed);
    // The words are from before somebody made room.
    assert_eq!(said(65 * MIB, true), Certainty::Absent);
    // Nearly full by percentage, and fine.
    assert_eq!(said(70 * MIB, false), Certainty::Absent);
}

#[test]
fn files_run_out_too() {
    let mut ev = evidence(500 * MIB);
    ev.disks.file_systems[0].free_inodes = 0;
    let found = DiskFull::diagnose(&ev, &runbook());
    assert_eq!(found.certainty, Certainty::Confirmed);
    assert!(found.summary.contains("no more files"), "{}", found.summary);
    // Old sets are many files.
    assert!(matches!(
        planned(&ev).unwrap().steps[0].action,
        Action::Space(SpaceAction::PruneBackups { .. })
    ));
    assert!(
        planned(&ev)
            .unwrap()
            .expect
            .iter()
            .any(|e| matches!(e, crate::plan::Expectation::Room { files, .. } if *files > 0))
    );
    // A file system without such a limit says 0.
    ev.disks.file_systems[0].inodes = 0;
    assert_eq!(DiskFull::diagnose(&ev, &runbook()).certainty, Certainty::Absent);
}

#[test]
fn the_safest_goes_first_and_no_more_than_is_needed() {
    let ev = evidence(10 * MIB);
    let plan = planned(&ev).unwrap();
    let Action::Space(SpaceAction::PruneBackups { labels, enough, .. }) = &plan.steps[0].action else {
        panic!("{:?}", plan.steps)
    };
    assert_eq!(labels, &["20260101T020000Z", "20260102T020000Z"]);
    assert_eq!(*enough, 64 * MIB);
    // Nothing brings a set back: it takes the typed name, and is not said to be taken back.
    assert_eq!(plan.risk(), crate::plan::Risk::Destructive);
    assert!(matches!(&plan.steps[0].undo, crate::plan::Undo::Impossible(_)));
    // The server runs and is let be; nothing else is touched.
    assert_eq!(plan.steps.len(), 1);
    assert!(
        plan.expect
            .iter()
            .any(|e| matches!(e, crate::plan::Expectation::ServerWrites { .. }))
    );

    // Without rules the log is next, on another disk than the full one.
    let mut ev = evidence(0);
    ev.backups.old.clear();
    let server = ev.databases.get_mut("postgres").unwrap().as_mut().unwrap();
    server.connection = Connection::Closed {
        cause: "refused".into(),
    };
    let plan = planned(&ev).unwrap();
    let Action::Space(SpaceAction::ArchiveLog { into, .. }) = &plan.steps[0].action else {
        panic!("{:?}", plan.steps)
    };
    assert_eq!(into, "/b/logs");
    assert_eq!(plan.risk(), crate::plan::Risk::Disruptive);
    assert!(matches!(&plan.steps[0].undo, crate::plan::Undo::Manual(how) if how.contains("/b/logs")));
    assert!(
        matches!(&plan.steps[1].action, Action::Space(SpaceAction::Revive { service }) if service == "postgres")
    );
}

#[test]
fn a_server_that_refuses_drctl_alone_is_not_brought_back() {
    for (sqlstate, comes_back) in [("57P03", true), ("28P01", false), ("53300", false)] {
        let mut ev = evidence(0);
        let server = ev.databases.get_mut("postgres").unwrap().as_mut().unwrap();
        server.connection = Connection::Refused {
            sqlstate: sqlstate.into(),
            message: String::new(),
        };
        let plan = planned(&ev).unwrap();
        let step = plan
            .steps
            .iter()
            .find(|s| matches!(s.action, Action::Space(SpaceAction::Revive { .. })));
        assert_eq!(step.is_some(), comes_back, "{sqlstate}: {:?}", plan.steps);
    }
}

#[test]
fn an_image_is_not_said_to_come_back() {
    let mut ev = evidence(0);
    ev.backups.old.clear();
    ev.logs.clear();
    ev.disks.file_systems[0].places.push(Place {
        what: Use::Engine,
        path: "/a".into(),
    });
    ev.images = vec![OldImage {
        id: "sha256:1".into(),
        bytes: 500 * MIB,
        own_bytes: 500 * MIB,
    }];
    let plan = planned(&ev).unwrap();
    assert!(matches!(
        &plan.steps[0].action,
        Action::Space(SpaceAction::RemoveImages { .. })
    ));
    assert_eq!(plan.risk(), crate::plan::Risk::Destructive);
    assert!(matches!(&plan.steps[0].undo, crate::plan::Undo::Impossible(_)));

    // Its layers are the current build's, too: next to nothing would come back for it.
    ev.images[0].own_bytes = 3 * MIB;
    let refusal = planned(&ev).unwrap_err();
    assert!(
        refusal.message.contains("does not suffice"),
        "{}",
        refusal.message
    );
}

#[test]
fn what_is_not_safe_is_named_and_left_to_a_person() {
    let mut ev = evidence(0);
    ev.backups.old.clear();
    ev.backups.rules = false;
    // No other disk has room for it.
    ev.archives.truncate(1);
    let server = ev.databases.get_mut("postgres").unwrap().as_mut().unwrap();
    server.wal.as_mut().unwrap().slots = vec![Slot {
        name: "it's".into(),
        kind: "physical".into(),
        active: false,
        retains: 280 * MIB,
    }];
    let refusal = planned(&ev).unwrap_err();
    assert!(
        refusal.message.contains("does not suffice"),
        "{}",
        refusal.message
    );
    assert!(
        refusal.reasons.iter().any(|r| r.contains("pg_wal")),
        "{:?}",
        refusal.reasons
    );
    assert!(refusal.reasons.iter().any(|r| r.contains("used by nobody")));
    let next = refusal.next.join("\n");
    for words in [
        "select pg_drop_replication_slot('it''s');",
        "keep: { last: 2",
        "drctl incident close 20261120T000000Z-x",
        "never delete anything in pg_wal",
    ] {
        assert!(next.contains(words), "{words}: {next}");
    }
    // Never offered as a step.
    let short = shortages(&ev);
    assert!(
        by_hand(&ev, &short[0])
            .iter()
            .all(|n| !n.contains("volume prune"))
    );
}

#[test]
fn what_only_says_so_is_told_apart() {
    let with = |change: &dyn Fn(&mut Evidence)| {
        let mut ev = evidence(500 * MIB);
        change(&mut ev);
        let found = DiskFull::diagnose(&ev, &runbook());
        assert!(planned(&ev).is_err());
        found.look_alike.map(|l| l.name).unwrap_or_default()
    };
    let said = |word: Word| {
        with(&move |ev: &mut Evidence| {
            let server = ev.databases.get_mut("postgres").unwrap().as_mut().unwrap();
            server.words = vec![(word, "ERROR:  …".into())];
        })
    };
    assert_eq!(with(&|_| {}), "");
    assert_eq!(said(Word::SharedMemory), "shm-full");
    assert_eq!(said(Word::TempFileLimit), "temp-file-limit");
    assert_eq!(said(Word::Quota), "quota");
    assert_eq!(said(Word::ReadOnly), "read-only");
    assert_eq!(with(&|ev| ev.disks.file_systems[0].read_only = true), "read-only");
}

#[test]
fn a_disk_that_nobody_saw_is_not_called_fine() {
    let mut ev = evidence(500 * MIB);
    ev.disks.unseen = vec![(volume("postgres"), "it does not run".into())];
    assert_eq!(DiskFull::diagnose(&ev, &runbook()).certainty, Certainty::Absent);
    let mut down = container("postgres");
    down.info.status = crate::workload::Status::Exited;
    ev.containers
        .insert("postgres".into(), ContainerState::Found(Box::new(down)));
    assert_eq!(DiskFull::diagnose(&ev, &runbook()).certainty, Certainty::Unknown);
}
