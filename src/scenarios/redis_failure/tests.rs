//! What each kind of damaged files leads to.

use super::*;
use crate::plan::{Action, FileMend, RedisAction, RedisFiles, Risk, Undo, lint};
use crate::probe::redis_files::{AppendFacts, AppendState, Keys, SnapshotFacts, SnapshotState};
use crate::runbook;
use crate::scenarios::service_crash::fixtures::container;
use crate::workload::Status;

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
fn a_stopped_one_without_its_manifest_is_mended_before_it_is_started() {
    let stopped = |seen: Option<RedisFileFacts>| {
        let mut ev = evidence(files(true));
        let server = ev.servers.get_mut("redis").unwrap();
        server.files = seen.map(Ok);
        let ContainerState::Found(facts) = &mut server.container else {
            unreachable!()
        };
        facts.last_words.clear();
        facts.info.status = Status::Exited;
        plan::plan(&ev, &rb(), &request(None)).unwrap()
    };
    let of = |state, bytes| RedisFileFacts {
        append: Some(AppendFacts {
            bytes,
            ..append(state)
        }),
        ..files(true)
    };
    let lost = AppendState::Manifest {
        rebuilt: Ok(vec!["file a seq 1 type b".into()]),
    };
    let plan = stopped(Some(of(lost.clone(), 1 << 20)));
    assert_eq!(plan.remedy, Remedy::Repair);
    lint(&plan).unwrap();
    // It was not running: nothing is to be started again over the old files.
    assert!(
        matches!(plan.steps[0].undo, Undo::NotNeeded(_)),
        "{:?}",
        plan.steps
    );
    // There is nothing to write over, or it is not what it loads.
    let other = RedisFileFacts {
        append: Some(append(lost.clone())),
        ..files(false)
    };
    for seen in [
        None,
        Some(of(lost, 0)),
        Some(of(AppendState::Sound, 9)),
        Some(other),
    ] {
        assert_eq!(stopped(seen).remedy, Remedy::Start);
    }
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

/// As Redis 7.0.15 logs a start that fails, the last line of which reads like damage.
fn says(ev: &mut Evidence, words: &[&str]) {
    let server = ev.servers.get_mut("redis").unwrap();
    let ContainerState::Found(facts) = &mut server.container else {
        unreachable!()
    };
    facts.last_words = words
        .iter()
        .map(|text| crate::workload::LogLine {
            at: None,
            text: (*text).to_owned(),
        })
        .collect();
}

const BEGINS: &str = "# oO0OoO0OoO0Oo Redis is starting oO0OoO0OoO0Oo";
const FATAL: &str = "# Fatal error loading the DB: Invalid argument. Exiting.";

/// That it is named, and that no remedy is possible, whoever asks.
fn is_left_alone(ev: &Evidence, name: &str) {
    let opinion = diagnose(ev);
    assert_eq!(
        opinion.look_alike.as_ref().map(|l| l.name.as_str()),
        Some(name),
        "{opinion:?}"
    );
    for remedy in std::iter::once(None).chain(RedisFailing::REMEDIES.iter().map(|r| Some(*r))) {
        assert!(
            plan::plan(ev, &rb(), &request(remedy)).is_err(),
            "{name}: {remedy:?}"
        );
    }
}

#[test]
fn data_of_another_version_is_never_given_up() {
    let newer = "# Can't handle RDB format version 12";
    let sound_beside = RedisFileFacts {
        snapshot: Some(snapshot(SnapshotState::Sound)),
        ..files(true)
    };
    let damaged = RedisFileFacts {
        snapshot: Some(snapshot(SnapshotState::Damaged("it says".into()))),
        ..files(false)
    };
    for seen in [sound_beside, damaged.clone()] {
        let mut ev = evidence(seen);
        says(&mut ev, &[BEGINS, newer, FATAL]);
        is_left_alone(&ev, "wrong-version");
        // The next start has begun, and has not said anything yet.
        says(&mut ev, &[BEGINS, newer, FATAL, BEGINS]);
        is_left_alone(&ev, "wrong-version");
    }
    // A flipped byte in the name of a command reads the same: the look at the file tells.
    let unknown = ["# Unknown command 'hpexpire' reading the append only file a.aof"];
    for (state, whole) in [
        (AppendState::Sound, true),
        (AppendState::Damaged("Expected prefix".into()), false),
    ] {
        let mut ev = evidence(RedisFileFacts {
            append: Some(append(state)),
            ..files(true)
        });
        says(&mut ev, &unknown);
        if whole {
            is_left_alone(&ev, "wrong-version");
        } else {
            assert!(diagnose(&ev).look_alike.is_none());
        }
    }
    // Its log has scrolled away, and the look at its files tells.
    for other in [
        RedisFileFacts {
            snapshot: Some(snapshot(SnapshotState::OtherVersion("RDB format 12".into()))),
            ..files(false)
        },
        RedisFileFacts {
            append: Some(append(AppendState::OtherVersion("RDB format 12".into()))),
            snapshot: Some(snapshot(SnapshotState::Sound)),
            ..files(true)
        },
    ] {
        let mut ev = evidence(other);
        says(&mut ev, &[FATAL]);
        is_left_alone(&ev, "wrong-version");
    }
    // A start before the last one is history: somebody has put the image right since.
    let mut ev = evidence(damaged.clone());
    says(
        &mut ev,
        &[BEGINS, newer, FATAL, BEGINS, "# Wrong RDB checksum", FATAL],
    );
    assert!(diagnose(&ev).look_alike.is_none());
    // Overwritten letters are read as version 0.
    says(&mut ev, &[BEGINS, "# Can't handle RDB format version 0", FATAL]);
    assert!(diagnose(&ev).look_alike.is_none());
}

#[test]
fn beside_a_snapshot_of_another_version_only_a_person_starts_empty() {
    let seen = RedisFileFacts {
        append: Some(append(AppendState::Damaged("LZF".into()))),
        snapshot: Some(snapshot(SnapshotState::OtherVersion("RDB format 12".into()))),
        ..files(true)
    };
    let refused = planned(seen.clone(), None).unwrap_err();
    assert!(
        refused.reasons.iter().any(|r| r.contains("another image reads")),
        "{refused:?}"
    );
    assert_eq!(
        planned(seen, Some(Remedy::StartEmpty)).map(|p| p.1),
        Ok(FileMend::Empty)
    );
}

/// A server that runs, and what it said when it was asked.
fn running(kind: Option<ErrorKind>, files: Option<RedisFileFacts>) -> Evidence {
    let facts = container("redis");
    let connect = kind.map_or(redis::Answer::Good(1), |kind| {
        redis::Answer::Failed(redis::RedisFailure {
            kind,
            text: "its words".into(),
        })
    });
    let state = RedisState {
        service: "redis".into(),
        taken_at: Timestamp::UNIX_EPOCH,
        container: facts.info.clone(),
        connect,
        ping: None,
        info: None,
        info_failure: None,
        write: None,
        writes_held: None,
    };
    Evidence {
        taken_at: Timestamp::UNIX_EPOCH,
        servers: BTreeMap::from([(
            "redis".to_owned(),
            Server {
                container: ContainerState::Found(Box::new(facts)),
                state: Ok(state),
                files: files.map(Ok),
            },
        )]),
        memory_available: None,
    }
}

#[test]
fn a_script_is_ended_before_a_server_is_killed_and_what_that_costs_is_told() {
    let saved = RedisFileFacts {
        snapshot: Some(snapshot(SnapshotState::Sound)),
        ..files(false)
    };
    let asked = |files: Option<RedisFileFacts>, tried: Vec<Remedy>| {
        let request = PlanRequest {
            tried,
            ..request(None)
        };
        let plan = plan::plan(&running(Some(ErrorKind::Busy), files), &rb(), &request).unwrap();
        lint(&plan).unwrap();
        plan
    };
    let plan = asked(Some(saved.clone()), vec![]);
    assert_eq!((plan.remedy, plan.data_loss.none), (Remedy::KillScript, true));
    assert_eq!(plan.steps[0].risk, Risk::Reversible);
    let restart = |files: Option<RedisFileFacts>| {
        let plan = asked(files, vec![Remedy::KillScript]);
        assert_eq!((plan.remedy, plan.data_loss.none), (Remedy::Restart, false));
        assert_eq!(plan.steps[0].risk, Risk::Destructive);
        plan.data_loss.summary
    };
    assert!(restart(Some(saved)).contains("since the snapshot of"));
    assert!(restart(Some(files(false))).contains("all keys: there is no dump.rdb"));
    assert!(restart(Some(files(true))).contains("append-only file did not have yet"));
    assert!(restart(None).contains("is not known"));
}

#[test]
fn a_server_without_a_network_is_not_restarted() {
    let mut ev = running(Some(ErrorKind::NoConnection), None);
    let with = plan::plan(&ev, &rb(), &request(None)).unwrap();
    assert_eq!(with.remedy, Remedy::Restart);
    let networks = |ev: &mut Evidence, mode: &str| {
        let Ok(state) = &mut ev.servers.get_mut("redis").unwrap().state else {
            unreachable!()
        };
        state.container.networks.clear();
        mode.clone_into(&mut state.container.network_mode);
    };
    networks(&mut ev, "simgen_default");
    is_left_alone(&ev, "network-partition");
    // That one has no networks of its own, and is reached.
    networks(&mut ev, "host");
    assert!(diagnose(&ev).look_alike.is_none());
}

#[test]
fn writes_that_were_forbidden_are_named_and_left_alone() {
    let mut ev = running(None, None);
    assert_eq!(diagnose(&ev).certainty, Certainty::Absent);
    let mut held = |writes: redis::WritesHeld| {
        let Ok(state) = &mut ev.servers.get_mut("redis").unwrap().state else {
            unreachable!()
        };
        state.writes_held = Some(writes);
        ev.clone()
    };
    let few = held(redis::WritesHeld::TooFewReplicas { needed: 2, good: 1 });
    is_left_alone(&few, "too-few-replicas");
    let paused = held(redis::WritesHeld::Paused {
        sign: "3 clients wait with SET".into(),
    });
    is_left_alone(&paused, "paused");
}
