use super::fixtures::container;
use super::*;
use crate::plan::{Action, ContainerAction, Risk, Undo, lint};
use crate::workload::LogLine;

const NOW: &str = "2026-11-20T21:00:00Z";

fn runbook() -> Runbook {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml");
    crate::runbook::load(std::path::Path::new(path)).unwrap()
}

fn evidence(change: impl FnOnce(&mut ContainerFacts)) -> Evidence {
    let mut all: BTreeMap<String, ContainerFacts> =
        ["api1", "api2", "cv_service", "nginx", "postgres", "redis"]
            .into_iter()
            .map(|s| (s.to_owned(), container(s)))
            .collect();
    change(all.get_mut("api1").unwrap());
    Evidence {
        taken_at: NOW.parse().unwrap(),
        service: None,
        containers: all
            .into_iter()
            .map(|(n, f)| (n, ContainerState::Found(Box::new(f))))
            .collect(),
        again: BTreeMap::new(),
        changed: BTreeMap::new(),
    }
}

fn request() -> PlanRequest {
    PlanRequest {
        run: "20261120T210000Z-service-crash-0001".into(),
        tried: vec![],
        remedy: None,
        backup: None,
        now: NOW.parse().unwrap(),
    }
}

fn said(facts: &mut ContainerFacts, text: &str) {
    facts.last_words.push(LogLine {
        at: None,
        text: text.into(),
    });
}

fn looping(facts: &mut ContainerFacts) {
    facts.info.status = Status::Restarting;
    facts.info.exit_code = 1;
    facts.info.restart_count = 5;
}

#[test]
fn a_sound_stack_is_absent_and_refused() {
    let ev = evidence(|_| {});
    let d = diagnose(&ev, &runbook());
    assert_eq!(d.certainty, Certainty::Absent);
    assert!(d.look_alike.is_none() && d.reasons.is_empty());
}

#[test]
fn each_trouble_gets_its_gentlest_remedy() {
    let cases: [(&str, fn(&mut ContainerFacts), Remedy, Risk); 6] = [
        (
            "paused",
            |f| f.info.status = Status::Paused,
            Remedy::Thaw,
            Risk::Reversible,
        ),
        (
            "stopped by a signal",
            |f| f.processes = vec!["Tsl".into()],
            Remedy::Thaw,
            Risk::Reversible,
        ),
        (
            "killed",
            |f| {
                f.info.status = Status::Exited;
                f.info.exit_code = 137;
            },
            Remedy::Start,
            Risk::Reversible,
        ),
        (
            "unhealthy",
            |f| f.info.health = Some("unhealthy".into()),
            Remedy::Restart,
            Risk::Disruptive,
        ),
        (
            "first crashes",
            |f| {
                looping(f);
                f.info.restart_count = 1;
            },
            Remedy::Restart,
            Risk::Disruptive,
        ),
        ("loop", looping, Remedy::Recreate, Risk::Disruptive),
    ];
    for (what, change, remedy, risk) in cases {
        let ev = evidence(change);
        assert_eq!(
            diagnose(&ev, &runbook()).certainty,
            Certainty::Confirmed,
            "{what}"
        );
        let plan = ServiceCrash::plan(&ev, &runbook(), &request()).unwrap();
        lint(&plan).unwrap();
        assert_eq!((plan.remedy, plan.risk()), (remedy, risk), "{what}");
        assert_eq!(plan.steps.len(), 1, "{what}");
    }
}

#[test]
fn a_recreation_keeps_the_old_container_and_can_be_taken_back() {
    let plan = ServiceCrash::plan(&evidence(looping), &runbook(), &request()).unwrap();
    assert!(matches!(
        &plan.steps[0].undo,
        Undo::Action(Action::Container(ContainerAction::PutBack { running: true, restart_policy, .. }))
            if restart_policy == "unless-stopped"
    ));
    assert!(matches!(
        &plan.discard[..],
        [Action::Container(ContainerAction::LetGo { .. })]
    ));
    assert!(
        plan.kept
            .contains("simgen_api1_1_drctl_20261120T210000Z-service-crash-0001")
    );
}

#[test]
fn of_several_containers_the_one_in_trouble_is_named_and_the_others_are_not_stopped_by_an_undo() {
    let ev = evidence(|f| {
        f.info.status = Status::Exited;
        f.info.exit_code = 137;
        f.info.replicas = ["simgen_api1_1", "simgen_api1_2"].map(str::to_owned).into();
    });
    let d = diagnose(&ev, &runbook());
    let named = "api1 (simgen_api1_1, the worst of 2 containers) does not run";
    assert!(d.reasons[0].starts_with(named), "{d:?}");
    let plan = ServiceCrash::plan(&ev, &runbook(), &request()).unwrap();
    assert!(plan.steps[0].action.changes_the_container_of().is_empty());
    assert!(matches!(&plan.steps[0].undo, Undo::Manual(text) if text == "docker stop simgen_api1_1"));
    let ev = evidence(looping);
    let plan = ServiceCrash::plan(&ev, &runbook(), &request()).unwrap();
    assert_eq!(plan.steps[0].action.changes_the_container_of(), ["api1"]);
}

#[test]
fn a_restart_that_did_not_hold_is_followed_by_a_recreation_and_that_by_nothing() {
    let ev = evidence(|f| f.info.health = Some("unhealthy".into()));
    let mut asked = request();
    asked.tried = vec![Remedy::Restart];
    assert_eq!(
        ServiceCrash::plan(&ev, &runbook(), &asked).unwrap().remedy,
        Remedy::Recreate
    );
    asked.tried.push(Remedy::Recreate);
    let refusal = ServiceCrash::plan(&ev, &runbook(), &asked).unwrap_err();
    assert_eq!(refusal.reasons.len(), 2, "{refusal:?}");
}

#[test]
fn between_two_crashes_it_only_looks_well() {
    let young = |f: &mut ContainerFacts| {
        f.info.restart_count = 2;
        f.info.started_at = Some("2026-11-20T20:59:59Z".parse().unwrap());
    };
    let mut ev = evidence(young);
    let state = |change: fn(&mut ContainerFacts)| {
        let mut facts = container("api1");
        facts.info.restart_count = 2;
        change(&mut facts);
        ContainerState::Found(Box::new(facts))
    };
    ev.again.insert("api1".into(), state(|_| {}));
    let d = diagnose(&ev, &runbook());
    assert_eq!(d.certainty, Certainty::Absent);
    assert!(d.reasons[0].contains("has crashed 2 times"), "{d:?}");
    ev.again
        .insert("api1".into(), state(|f| f.info.restart_count = 3));
    let d = diagnose(&ev, &runbook());
    assert_eq!(d.certainty, Certainty::Confirmed);
    assert!(
        d.reasons[0].contains("crashes again and again (3 restarts)"),
        "{d:?}"
    );
}

#[test]
fn who_may_be_between_two_crashes_is_told_by_the_engine_s_clock() {
    let mut facts = container("api1");
    facts.info.restart_count = 2;
    let started: Timestamp = NOW.parse().unwrap();
    facts.info.started_at = Some(started);
    let at = |seconds| Some(started + SignedDuration::from_secs(seconds));
    assert!(may_loop(&facts, at(1)) && !may_loop(&facts, at(10)));
    assert!(may_loop(&facts, None), "watched where the engine does not tell");
    facts.info.restart_count = 0;
    assert!(!may_loop(&facts, at(1)));
}

#[test]
fn a_failed_migration_is_named_and_not_run_again() {
    for line in [
        "ERROR [alembic.util.messaging] Can't locate revision identified by '9f3a'",
        "Migration 0042_add_column failed: column \"x\" of relation \"orders\" already exists",
    ] {
        let ev = evidence(|f| {
            looping(f);
            said(f, line);
            said(f, "exiting");
        });
        let d = diagnose(&ev, &runbook());
        assert!(
            d.reasons[0].contains("a migration of its database fails"),
            "{d:?}"
        );
        assert!(d.reasons[1].contains(line), "{d:?}");
        let refusal = ServiceCrash::plan(&ev, &runbook(), &request()).unwrap_err();
        assert!(refusal.next[0].starts_with("docker logs"), "{refusal:?}");
    }
    // Without its server no migration can run: that is another failure, and the loop ends with it.
    let ev = evidence(|f| {
        looping(f);
        said(
            f,
            "migration failed: could not connect to server: Connection refused",
        );
    });
    assert!(ServiceCrash::plan(&ev, &runbook(), &request()).is_ok());
}

#[test]
fn a_missing_program_is_only_helped_where_the_image_still_has_it() {
    let gone = |f: &mut ContainerFacts| {
        f.info.status = Status::Exited;
        f.info.exit_code = 127;
    };
    let mut ev = evidence(gone);
    assert!(ServiceCrash::plan(&ev, &runbook(), &request()).is_err());
    ev.changed.insert("api1".into(), vec!["/usr/bin/serve".into()]);
    let plan = ServiceCrash::plan(&ev, &runbook(), &request()).unwrap();
    assert_eq!(plan.remedy, Remedy::Recreate);
    assert!(
        diagnose(&ev, &runbook())
            .reasons
            .iter()
            .any(|r| r.contains("/usr/bin/serve"))
    );
}

#[test]
fn a_finished_job_and_a_starting_service_are_let_be() {
    let ev = evidence(finished);
    let rb = with_a_job();
    let d = diagnose(&ev, &rb);
    assert_eq!(d.certainty, Certainty::Absent);
    assert!(d.reasons[0].contains("has done its work"), "{d:?}");
    assert!(d.reasons[0].contains("docker start simgen_api1_1"), "{d:?}");
    assert!(ServiceCrash::plan(&ev, &rb, &request()).is_err());
    let ev = evidence(|f| {
        f.info.health = Some("starting".into());
        f.info.started_at = Some("2026-11-20T20:59:58Z".parse().unwrap());
    });
    let d = diagnose(&ev, &runbook());
    assert_eq!(d.certainty, Certainty::Absent);
    assert!(d.reasons[0].contains("started 2.0 s ago"), "{d:?}");
}

/// What a job looks like when it is done.
fn finished(facts: &mut ContainerFacts) {
    facts.info.status = Status::Exited;
    facts.info.restart_policy = "no".into();
    facts.info.health = None;
}

/// A runbook in which nobody depends on api1.
fn with_a_job() -> Runbook {
    let mut rb = runbook();
    for service in rb.services.values_mut() {
        service.depends_on.retain(|n| n.as_str() != "api1");
    }
    rb
}

/// `docker stop` ends most servers with exit code 0, and `no` is what Compose takes where a file names no policy: each
/// thing that only a service has is enough to start it again.
#[test]
fn a_stopped_service_is_not_taken_for_a_finished_job() {
    let cases: [(&str, fn(&mut ContainerFacts)); 6] = [
        ("a health check", |f| f.info.health = Some("unhealthy".into())),
        ("a port", |f| {
            f.info.to_publish.insert("80/tcp".into(), "0.0.0.0:80".into());
        }),
        ("a policy", |f| f.info.restart_policy = "unless-stopped".into()),
        ("an error", |f| f.info.exit_code = 1),
        ("never started", |f| f.info.status = Status::Created),
        ("no start", |f| f.info.error = "port is already allocated".into()),
    ];
    for (what, change) in cases {
        let ev = evidence(|f| {
            finished(f);
            change(f);
        });
        let d = diagnose(&ev, &with_a_job());
        assert_eq!(d.certainty, Certainty::Confirmed, "{what}: {d:?}");
    }
    // Somebody depends on it.
    let ev = evidence(finished);
    assert_eq!(diagnose(&ev, &runbook()).certainty, Certainty::Confirmed);
    let plan = ServiceCrash::plan(&ev, &runbook(), &request()).unwrap();
    assert_eq!(plan.remedy, Remedy::Start);
    // What lets users in is never a job.
    let mut nginx = container("nginx");
    finished(&mut nginx);
    assert!(!is_finished_job(
        "nginx",
        &nginx.info,
        &BTreeMap::new(),
        &runbook()
    ));
}

#[test]
fn a_database_has_a_scenario_of_its_own() {
    let mut ev = evidence(|_| {});
    ev.service = Some("postgres".into());
    assert_eq!(diagnose(&ev, &runbook()).look_alike.unwrap().name, "db-down");
}

#[test]
fn evidence_of_an_older_version_is_read() {
    let mut value = serde_json::to_value(evidence(|_| {})).unwrap();
    value.as_object_mut().unwrap().remove("again");
    value.as_object_mut().unwrap().remove("changed");
    assert!(serde_json::from_value::<Evidence>(value).is_ok());
}
