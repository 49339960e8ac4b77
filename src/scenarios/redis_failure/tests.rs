//! What each kind of damaged files leads to.

use super::*;
use crate::plan::{Action, FileMend, RedisAction, RedisFiles, Risk, lint};
use crate::probe::redis_files::{AppendFacts, AppendState, Keys, SnapshotFacts};
use crate::runbook;
use crate::scenarios::service_crash::fixtures::container;

fn rb() -> Runbook {
    runbook::load(std::path::Path::new("runbooks/simgen.yaml")).unwrap()
}

fn snapshot(state: SnapshotState) -> SnapshotFacts {
    SnapshotFacts {
        bytes: 1 << 20,
        modified: None,
        state,
        keys: Keys {
            all: 1000,
            expiring: 100,
        },
    }
}

fn append(state: AppendState) -> AppendFacts {
    AppendFacts {
        bytes: 1 << 20,
        state,
        base_keys: Some(Keys { all: 10, expiring: 0 }),
    }
}

fn evidence(files: RedisFileFacts) -> Evidence {
    let mut facts = container("redis");
    facts.info.status = Status::Restarting;
    facts.last_words = vec![crate::workload::LogLine {
        at: None,
        text: "Short read or OOM loading DB. Unrecoverable error, aborting now.".into(),
    }];
    Evidence {
        taken_at: Timestamp::UNIX_EPOCH,
        servers: BTreeMap::from([(
            "redis".to_owned(),
            Server {
                container: ContainerState::Found(Box::new(facts)),
                state: Err("it does not run".into()),
                files: Some(Ok(files)),
            },
        )]),
        memory_available: None,
    }
}

fn files(append_only: bool) -> RedisFileFacts {
    RedisFileFacts {
        files: RedisFiles {
            directory: "/data".into(),
            snapshot: "dump.rdb".into(),
            append_only,
            append_entry: "appendonlydir".into(),
            append_name: "appendonly.aof".into(),
        },
        free: 1 << 30,
        snapshot: None,
        append: None,
    }
}

fn request(remedy: Option<Remedy>) -> PlanRequest {
    PlanRequest {
        run: "run".into(),
        tried: vec![],
        remedy,
        backup: None,
        now: Timestamp::UNIX_EPOCH,
    }
}

fn planned(seen: RedisFileFacts, remedy: Option<Remedy>) -> Result<(Remedy, FileMend, Risk), Refusal> {
    let plan = plan::plan(&evidence(seen), &rb(), &request(remedy))?;
    lint(&plan).unwrap();
    assert!(!plan.discard.is_empty() && !plan.kept.is_empty());
    let step = plan.steps.iter().find_map(|s| match &s.action {
        Action::Redis(RedisAction::MendFiles { mend, .. }) => Some((mend.clone(), s.risk)),
        _ => None,
    });
    let (mend, risk) = step.unwrap();
    Ok((plan.remedy, mend, risk))
}

fn cut() -> AppendState {
    AppendState::Cut {
        file: "appendonly.aof.1.incr.aof".into(),
        good: 10,
        bytes: 20,
        behind: 5,
    }
}

#[test]
fn the_gentlest_mend_is_chosen_and_what_loses_needs_the_name() {
    let lines = vec!["file a seq 1 type b".to_owned()];
    let manifest = AppendState::Manifest {
        rebuilt: Ok(lines.clone()),
    };
    let of = |state| RedisFileFacts {
        append: Some(append(state)),
        ..files(true)
    };
    assert_eq!(
        planned(of(manifest), None),
        Ok((Remedy::Repair, FileMend::Manifest(lines), Risk::Reversible))
    );
    assert_eq!(
        planned(of(cut()), None),
        Ok((Remedy::Repair, FileMend::Cut, Risk::Destructive))
    );
    let base = AppendState::Damaged("LZF".into());
    assert_eq!(
        planned(of(base.clone()), None).map(|p| p.0),
        Ok(Remedy::StartEmpty)
    );
    let with_snapshot = RedisFileFacts {
        snapshot: Some(snapshot(SnapshotState::Sound)),
        ..of(base)
    };
    assert_eq!(
        planned(with_snapshot, None).map(|p| (p.0, p.1)),
        Ok((Remedy::LoadSnapshot, FileMend::FromSnapshot))
    );
    let of = |state| RedisFileFacts {
        snapshot: Some(snapshot(state)),
        ..files(false)
    };
    assert_eq!(
        planned(of(SnapshotState::ChecksumWrong), None).map(|p| p.1),
        Ok(FileMend::Checksum)
    );
    assert_eq!(
        planned(of(SnapshotState::Damaged("short".into())), None).map(|p| p.1),
        Ok(FileMend::Empty)
    );
}

#[test]
fn want_of_room_is_no_reason_to_start_empty() {
    let full = RedisFileFacts {
        free: 1 << 10,
        append: Some(append(cut())),
        ..files(true)
    };
    let refused = planned(full.clone(), None).unwrap_err();
    assert!(
        refused.reasons.iter().any(|r| r.contains("disk-full")),
        "{refused:?}"
    );
    // A person may.
    assert_eq!(
        planned(full, Some(Remedy::StartEmpty)).map(|p| p.1),
        Ok(FileMend::Empty)
    );
}

#[test]
fn sound_files_are_never_given_up() {
    // It may not read them, for example: that is no damage.
    let sound = RedisFileFacts {
        snapshot: Some(snapshot(SnapshotState::Sound)),
        ..files(false)
    };
    for remedy in [None, Some(Remedy::StartEmpty), Some(Remedy::Repair)] {
        assert!(planned(sound.clone(), remedy).is_err(), "{remedy:?}");
    }
    let mut unseen = evidence(sound);
    unseen.servers.get_mut("redis").unwrap().files = Some(Err("no helper".into()));
    let refused = plan::plan(&unseen, &rb(), &request(Some(Remedy::StartEmpty))).unwrap_err();
    assert!(refused.message.contains("could not be looked at"), "{refused:?}");
}

#[test]
fn killed_for_want_of_memory_again_and_again_it_gets_more() {
    let ev = |restarts: i64, available: Option<u64>| {
        let mut ev = evidence(files(false));
        ev.memory_available = available;
        let server = ev.servers.get_mut("redis").unwrap();
        server.files = None;
        let ContainerState::Found(facts) = &mut server.container else {
            unreachable!()
        };
        facts.last_words.clear();
        facts.info.oom_killed = true;
        facts.info.exit_code = 137;
        facts.info.memory_limit = 256 << 20;
        facts.info.restart_count = restarts;
        ev
    };
    let remedy = |ev: &Evidence| plan::plan(ev, &rb(), &request(None)).map(|p| p.remedy);
    assert_eq!(remedy(&ev(0, Some(8 << 30))), Ok(Remedy::Start));
    let often = ev(5, Some(8 << 30));
    assert_eq!(remedy(&often), Ok(Remedy::RaiseLimit));
    lint(&plan::plan(&often, &rb(), &request(None)).unwrap()).unwrap();
    let refused = remedy(&ev(5, Some(1 << 20))).unwrap_err();
    assert!(
        refused.reasons.iter().any(|r| r.contains("of memory left")),
        "{refused:?}"
    );
}
