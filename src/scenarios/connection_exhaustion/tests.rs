//! Diagnosis and ladder on sessions as a server shows them.

use serde_json::{Value, json};

use super::{ConnectionExhaustion, Evidence};
use crate::plan::{Action, Plan, Release, Remedy, SessionAction, lint};
use crate::runbook::{self, Runbook};
use crate::scenarios::{Certainty, PlanRequest, Refusal, Scenario};

const RUNBOOK: &str = include_str!("../../../runbooks/simgen.yaml");

fn runbook() -> Runbook {
    runbook::parse(std::path::Path::new("simgen.yaml"), RUNBOOK).unwrap()
}

/// One session; `more` changes fields.
fn session(pid: i32, activity: &str, seconds: u64, more: &Value) -> Value {
    let mut session = json!({
        "id": {"pid": pid, "started": "2026-11-20 19:00:00.5+00"}, "user": "simgen_app", "superuser": false,
        "application": "simgen-api", "client": format!("172.20.0.{}", pid % 7), "database": "simgen",
        "activity": activity, "seconds": seconds, "transaction-seconds": null, "verb": "SELECT",
        "kind": "client backend", "waits-for": [], "wants-exclusive": false
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        session[key] = value.clone();
    }
    session
}

fn evidence(sessions: &[Value]) -> Evidence {
    let used = sessions.iter().filter(|s| s["kind"] == "client backend").count();
    serde_json::from_value(json!({
        "taken-at": "2026-11-20T19:45:00Z", "service": "postgres", "container": "simgen_postgres_1",
        "idle-over": null, "running-over": null,
        "connection": {"open": {"version": 150_020, "started-at": null, "in-recovery": false}},
        "facts": {
            "slots": {"max": 50, "reserved": 3, "used": used, "idle": 0, "idle-in-transaction": 0},
            "sessions": sessions, "limits": []
        },
        "backends": [], "turned-away": null
    }))
    .unwrap()
}

fn many(count: i32, activity: &str, seconds: u64) -> Vec<Value> {
    (1..=count)
        .map(|pid| session(100 + pid, activity, seconds, &json!({})))
        .collect()
}

fn request() -> PlanRequest {
    PlanRequest {
        run: "20261120T194500Z-connection-exhaustion-1f3a".into(),
        tried: Vec::new(),
        remedy: None,
        backup: None,
        now: "2026-11-20T19:45:00Z".parse().unwrap(),
    }
}

fn plan_of(ev: &Evidence, request: &PlanRequest) -> Result<Plan, Refusal> {
    let plan = ConnectionExhaustion::plan(ev, &runbook(), request);
    if let Ok(plan) = &plan {
        lint(plan).unwrap();
    }
    plan
}

fn plan(ev: &Evidence) -> Result<Plan, Refusal> {
    plan_of(ev, &request())
}

fn look_alike(ev: &Evidence) -> Option<String> {
    ConnectionExhaustion::diagnose(ev, &runbook())
        .look_alike
        .map(|l| l.name)
}

fn certainty(ev: &Evidence) -> Certainty {
    ConnectionExhaustion::diagnose(ev, &runbook()).certainty
}

#[test]
fn old_idle_sessions_are_ended_oldest_first_and_no_more_than_needed() {
    let mut sessions = many(40, "idle", 700);
    sessions[7]["seconds"] = json!(9000);
    sessions.extend((1..=7).map(|n| session(n, "running", 2, &json!({}))));
    let ev = evidence(&sessions);
    assert_eq!(certainty(&ev), Certainty::Confirmed);
    let plan = plan(&ev).unwrap();
    let Action::Sessions(SessionAction::End { sessions, free, .. }) = &plan.steps[0].action else {
        panic!("{:?}", plan.steps)
    };
    assert_eq!((sessions.len(), *free, sessions[0].pid), (11, 11, 108));
    assert!(plan.data_loss.none);
    insta::assert_yaml_snapshot!("idle", plan);
}

#[test]
fn who_works_is_left_alone() {
    let mut sessions = many(30, "idle", 5);
    // A dump looks idle in a transaction while its workers read.
    sessions.push(session(
        1,
        "in-transaction",
        5000,
        &json!({"application": "pg_dump"}),
    ));
    sessions.push(session(2, "in-transaction", 4000, &json!({})));
    sessions.push(session(3, "running", 9000, &json!({})));
    sessions.extend((4..=17).map(|n| session(n, "running", 2, &json!({}))));
    let plan = plan(&evidence(&sessions)).unwrap();
    let Action::Sessions(SessionAction::End { sessions, .. }) = &plan.steps[0].action else {
        panic!("{:?}", plan.steps)
    };
    assert_eq!(sessions.iter().map(|s| s.pid).collect::<Vec<_>>(), [2]);
    assert!(!plan.data_loss.none);
}

#[test]
fn superusers_come_last_and_young_sessions_only_of_who_hoards() {
    let mut sessions = vec![session(
        1,
        "idle",
        9000,
        &json!({"superuser": true, "user": "simgen"}),
    )];
    sessions.extend((2..=47).map(|n| session(n, "idle", 5, &json!({"client": "172.20.0.9"}))));
    let plan = plan(&evidence(&sessions)).unwrap();
    let Action::Sessions(SessionAction::End { sessions, .. }) = &plan.steps[0].action else {
        panic!("{:?}", plan.steps)
    };
    assert!(sessions.iter().all(|s| s.pid != 1));
    // The same sessions of many clients are pools that wait for work.
    let spread = evidence(&many(47, "idle", 5));
    let refusal = plan_of(&spread, &request()).unwrap_err();
    assert!(
        refusal.next.iter().any(|n| n.contains("--idle-over")),
        "{refusal:?}"
    );
    let mut asked = spread;
    asked.idle_over = Some(3);
    assert_eq!(plan_of(&asked, &request()).unwrap().remedy, Remedy::EndSessions);
}

#[test]
fn a_young_transaction_is_waited_for() {
    let plan = plan(&evidence(&many(47, "in-transaction", 15))).unwrap();
    assert_eq!(plan.remedy, Remedy::EndSessions);
    assert!(plan.estimate_seconds >= 45, "{}", plan.estimate_seconds);
}

#[test]
fn a_queue_behind_one_session_is_let_go_by_ending_that_one() {
    let mut sessions = vec![session(1, "in-transaction", 30, &json!({"verb": "UPDATE"}))];
    sessions.extend((2..=46).map(|n| {
        session(
            n,
            "running",
            20,
            &json!({"waits-for": [if n > 20 { 2 } else { 1 }]}),
        )
    }));
    let ev = evidence(&sessions);
    let plan = plan(&ev).unwrap();
    assert_eq!(plan.remedy, Remedy::UnblockSessions);
    let Action::Sessions(SessionAction::Unblock { session, how, .. }) = &plan.steps[0].action else {
        panic!("{:?}", plan.steps)
    };
    assert_eq!((session.pid, *how), (1, Release::Terminate));
    assert!(
        plan.steps[0].why.contains("45 sessions wait"),
        "{}",
        plan.steps[0].why
    );
}

/// A pool of a few sessions that all wait stops its application, however many slots are left.
#[test]
fn a_small_queue_counts_where_it_is_felt() {
    // One that holds the lock, three that wait, and others of another role that work.
    let small = |waited: u64, theirs: i32| {
        let mut sessions = vec![session(
            1,
            "in-transaction",
            90,
            &json!({"verb": "UPDATE", "user": "admin", "client": ""}),
        )];
        sessions.extend((2..=4).map(|n| {
            session(
                n,
                "running",
                waited,
                &json!({"waits-for": [1], "client": "172.20.0.5"}),
            )
        }));
        sessions.extend((5..5 + theirs).map(|n| session(n, "idle", 5, &json!({"client": "172.20.0.5"}))));
        evidence(&sessions)
    };
    let ev = small(20, 2);
    assert_eq!(certainty(&ev), Certainty::Confirmed);
    let plan_ = plan(&ev).unwrap();
    assert_eq!(plan_.remedy, Remedy::UnblockSessions);
    assert!(
        plan_
            .alternatives
            .iter()
            .any(|a| a.why_not.contains("connections are free")),
        "{:?}",
        plan_.alternatives
    );
    // It is over in a moment, or most of the pool goes on.
    assert_eq!(certainty(&small(0, 2)), Certainty::Absent);
    let mut ev = small(20, 9);
    assert_eq!(certainty(&ev), Certainty::Absent);
    // Users notice.
    for (millis, failures, expected) in [
        (vec![5], vec![], Certainty::Absent),
        (vec![4000], vec![], Certainty::Confirmed),
        (vec![], vec!["timeout".to_owned()], Certainty::Confirmed),
    ] {
        ev.endpoints.insert(
            "ready".into(),
            crate::probe::endpoints::Answers { millis, failures },
        );
        assert_eq!(certainty(&ev), expected);
    }
    // Two are no queue.
    let mut ev = small(20, 0);
    ev.facts.as_mut().unwrap().sessions.remove(1);
    assert_eq!(certainty(&ev), Certainty::Absent);
}

#[test]
fn a_waiting_change_of_a_table_is_given_up_before_anybodys_work() {
    let mut sessions = vec![
        session(1, "running", 300, &json!({})),
        session(
            2,
            "running",
            60,
            &json!({"waits-for": [1], "wants-exclusive": true, "verb": "ALTER"}),
        ),
    ];
    sessions.extend((3..=46).map(|n| session(n, "running", 20, &json!({"waits-for": [2]}))));
    let plan = plan(&evidence(&sessions)).unwrap();
    let Action::Sessions(SessionAction::Unblock { session, how, .. }) = &plan.steps[0].action else {
        panic!("{:?}", plan.steps)
    };
    assert_eq!((session.pid, *how), (2, Release::Cancel));
    assert!(plan.data_loss.none);
}

#[test]
fn what_runs_is_not_ended_without_being_asked_and_a_backup_never() {
    let queue = |application: &str, more: &Value| {
        let mut root = session(1, "running", 2400, more);
        root["verb"] = json!("CREATE");
        root["application"] = json!(application);
        let mut sessions = vec![root];
        sessions.extend((2..=46).map(|n| session(n, "running", 20, &json!({"waits-for": [1]}))));
        evidence(&sessions)
    };
    let asked = |mut ev: Evidence, over: Option<u64>| {
        ev.running_over = over;
        let unblock = PlanRequest {
            remedy: Some(Remedy::UnblockSessions),
            ..request()
        };
        plan_of(&ev, &unblock)
    };
    let index = queue("psql", &json!({}));
    assert_eq!(certainty(&index), Certainty::Confirmed);
    for (over, allowed) in [(None, false), (Some(3000), false), (Some(2400), true)] {
        let plan = asked(index.clone(), over);
        assert_eq!(plan.is_ok(), allowed, "{over:?}: {plan:?}");
    }
    let refusal = format!("{:?}", asked(index, None).unwrap_err());
    assert!(refusal.contains("--running-over"), "{refusal}");
    for tool in ["pg_dump", "pgBackRest [backup]", "barman", "wal-g"] {
        for activity in ["running", "in-transaction", "idle"] {
            let ev = queue(tool, &json!({"activity": activity}));
            let refusal = format!("{:?}", asked(ev, Some(1)).unwrap_err());
            assert!(refusal.contains(tool), "{refusal}");
        }
    }
}

#[test]
fn nobody_decides_about_a_prepared_transaction_or_the_servers_own_work() {
    let waiting = |root: i32| (2..=46).map(move |n| session(n, "running", 20, &json!({"waits-for": [root]})));
    let mut prepared: Vec<Value> = waiting(0).collect();
    // Idle sessions that could be ended, and services that could be restarted, do not change that.
    prepared.truncate(30);
    prepared.extend((60..=76).map(|n| session(n, "idle", 9000, &json!({}))));
    let mut ev = evidence(&prepared);
    assert_eq!(look_alike(&ev).as_deref(), Some("prepared-transaction"));
    for (tried, remedy) in [
        (vec![], None),
        (vec![], Some(Remedy::EndSessions)),
        (vec![], Some(Remedy::Restart)),
        (vec![Remedy::EndSessions], None),
    ] {
        let asked = PlanRequest {
            tried,
            remedy,
            ..request()
        };
        let refusal = plan_of(&ev, &asked).unwrap_err();
        assert!(refusal.message.contains("prepared transaction"), "{refusal:?}");
        assert!(refusal.next[0].contains("pg_prepared_xacts"), "{refusal:?}");
    }
    ev.prepared.push(super::Prepared {
        gid: "it's".into(),
        prepared: "2026-11-20 18:00:00+00".into(),
        owner: "simgen_app".into(),
        database: "simgen".into(),
    });
    let refusal = plan(&ev).unwrap_err();
    assert!(
        refusal.next[1].starts_with("rollback prepared 'it''s';"),
        "{refusal:?}"
    );
    let mut vacuum: Vec<Value> = waiting(1).collect();
    vacuum.push(session(
        1,
        "running",
        900,
        &json!({"kind": "autovacuum worker", "user": ""}),
    ));
    let refusal = plan(&evidence(&vacuum)).unwrap_err();
    assert!(
        refusal.reasons.iter().any(|r| r.contains("autovacuum worker")),
        "{refusal:?}"
    );
}

#[test]
fn commits_that_wait_for_a_standby_are_no_work_and_nobody_is_ended() {
    let committing = |count: i32, seconds: u64| {
        let mut sessions = many(47 - count, "idle", 9000);
        sessions.extend((1..=count).map(|n| session(n, "running", seconds, &json!({"sync-rep": true}))));
        evidence(&sessions)
    };
    let mut ev = committing(40, 60);
    // Those that wait for the locks of one that commits do not change that.
    ev.facts.as_mut().unwrap().sessions.extend(
        evidence(
            &(200..220)
                .map(|n| session(n, "running", 20, &json!({"waits-for": [1]})))
                .collect::<Vec<_>>(),
        )
        .facts
        .unwrap()
        .sessions,
    );
    for ev in [ev, committing(3, 1), committing(1, 5)] {
        assert_eq!(look_alike(&ev).as_deref(), Some("synchronous-standby"));
        let refusal = plan(&ev).unwrap_err();
        assert!(
            refusal.next.iter().any(|n| n.contains("pg_stat_replication")),
            "{refusal:?}"
        );
    }
    // Each COMMIT waits for a moment.
    assert_eq!(look_alike(&committing(40, 0)), None);
}

#[test]
fn a_process_that_is_no_session_is_not_called_a_prepared_transaction() {
    let sessions: Vec<Value> = (2..=46)
        .map(|n| session(n, "running", 20, &json!({"waits-for": [77]})))
        .collect();
    let ev = evidence(&sessions);
    assert_eq!(look_alike(&ev), None);
    let refusal = format!("{:?}", plan(&ev).unwrap_err());
    assert!(
        refusal.contains("pid 77") && !refusal.contains("prepared"),
        "{refusal}"
    );
}

#[test]
fn load_is_no_leak_until_the_operator_says_so() {
    let mut ev = evidence(&many(47, "running", 40));
    assert_eq!(look_alike(&ev).as_deref(), Some("service-overload"));
    assert_eq!(certainty(&ev), Certainty::Absent);
    ev.running_over = Some(30);
    assert_eq!(certainty(&ev), Certainty::Confirmed);
    assert!(plan(&ev).unwrap().steps[0].title.contains("11 running"));
}

#[test]
fn the_only_way_in_is_one_idle_superuser() {
    let refused = json!({"refused": {"sqlstate": "53300", "message": "sorry, too many clients already"}});
    let backend = |user: &str, state: &str, seconds: u64| {
        json!({"title": format!("postgres: {user} simgen 172.20.0.5({seconds}) {state}"), "user": user,
            "database": "simgen", "client": format!("172.20.0.5({seconds})"), "state": state, "seconds": seconds})
    };
    let locked = |backends: Value| {
        let mut value = serde_json::to_value(evidence(&[])).unwrap();
        value["connection"] = refused.clone();
        value["facts"] = Value::Null;
        value["backends"] = backends;
        serde_json::from_value::<Evidence>(value).unwrap()
    };
    let ev = locked(json!([
        backend("simgen_app", "idle", 900),
        backend("simgen", "idle in transaction", 800),
        backend("simgen", "idle", 10),
        backend("simgen", "idle", 70)
    ]));
    assert_eq!(certainty(&ev), Certainty::Confirmed);
    let plan_ = plan(&ev).unwrap();
    let Action::Sessions(SessionAction::FreeSlot { title, .. }) = &plan_.steps[0].action else {
        panic!("{:?}", plan_.steps)
    };
    assert_eq!(title, "postgres: simgen simgen 172.20.0.5(70) idle");
    assert!(plan(&locked(json!([backend("simgen_app", "idle", 900)]))).is_err());
}

#[test]
fn free_slots_limits_and_a_server_that_is_down() {
    assert_eq!(certainty(&evidence(&many(20, "idle", 9000))), Certainty::Absent);
    let change = |what: &dyn Fn(&mut Value)| {
        let mut value = serde_json::to_value(evidence(&many(20, "idle", 9))).unwrap();
        what(&mut value);
        serde_json::from_value::<Evidence>(value).unwrap()
    };
    let limited = |what: &str| {
        let limits = json!([{"what": what, "limit": 5, "used": 5}]);
        change(&|v| v["facts"]["limits"] = limits.clone())
    };
    assert_eq!(
        look_alike(&limited("role simgen_app")).as_deref(),
        Some("own-limit")
    );
    assert_eq!(look_alike(&limited("role somebody")), None);
    // Nobody is told to let a role in that is locked out on purpose.
    let mut both = limited("role simgen_app");
    let mut locked_out = both.facts.as_ref().unwrap().limits[0].clone();
    locked_out.what = "role dismissed".into();
    both.facts.as_mut().unwrap().limits.push(locked_out);
    let next = ConnectionExhaustion::diagnose(&both, &runbook())
        .look_alike
        .unwrap()
        .next;
    assert_eq!(next.len(), 1, "{next:?}");
    let down = |connection: Value| {
        change(&|v| {
            v["facts"] = Value::Null;
            v["connection"] = connection.clone();
        })
    };
    for connection in [
        json!({"closed": {"cause": "refused"}}),
        json!("silent"),
        json!({"refused": {"sqlstate": "57P03", "message": "starting up"}}),
    ] {
        assert_eq!(look_alike(&down(connection)).as_deref(), Some("db-down"));
    }
    let password = down(json!({"refused": {"sqlstate": "28P01", "message": "password"}}));
    assert_eq!(certainty(&password), Certainty::Unknown);
}

#[test]
fn applications_are_restarted_only_when_the_rest_did_not_hold() {
    let ev = evidence(&many(47, "idle", 9000));
    let tried = PlanRequest {
        tried: vec![Remedy::EndSessions],
        ..request()
    };
    let plan = plan_of(&ev, &tried).unwrap();
    assert_eq!(plan.remedy, Remedy::Restart);
    let titles: Vec<&str> = plan.steps.iter().map(|s| s.title.as_str()).collect();
    assert_eq!(titles, ["Restart api1", "Restart api2"]);
}
