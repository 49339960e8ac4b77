//! Diagnosis and ladder on evidence of a real server, and on that evidence with one thing
//! changed. The evidence file is also the fixture of its format.

use serde_json::{Value, json};

use super::{DbCorruption, Evidence};
use crate::plan::{Plan, Remedy, lint};
use crate::runbook::{self, Runbook};
use crate::scenarios::{Certainty, PlanRequest, Refusal, Scenario};

const TRUNCATED: &str = include_str!("fixtures/truncated.json");
const RUNBOOK: &str = include_str!("../../../runbooks/simgen.yaml");

fn runbook() -> Runbook {
    runbook::parse(std::path::Path::new("simgen.yaml"), RUNBOOK).unwrap()
}

/// The evidence of a truncated table, changed.
fn evidence(change: impl FnOnce(&mut Value)) -> Evidence {
    let mut value: Value = serde_json::from_str(TRUNCATED).unwrap();
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn request() -> PlanRequest {
    PlanRequest {
        run: "20261120T194500Z-db-corruption-1f3a".into(),
        tried: Vec::new(),
        remedy: None,
        backup: None,
        now: "2026-11-20T19:45:00Z".parse().unwrap(),
    }
}

fn plan(ev: &Evidence) -> Result<Plan, Refusal> {
    let plan = DbCorruption::plan(ev, &runbook(), &request());
    if let Ok(plan) = &plan {
        lint(plan).unwrap();
    }
    plan
}

fn database(ev: &mut Value) -> &mut Value {
    &mut ev["databases"]["simgen"]
}

/// The tables as the backup knew them: no loss that only facts show.
fn no_loss(ev: &mut Value) {
    let then = ev["backups"][0]["facts"]["simgen"].clone();
    database(ev)["facts"] = then;
    database(ev)["findings"] = json!([]);
}

fn index_damage(ev: &mut Value) {
    no_loss(ev);
    database(ev)["findings"] = json!([{
        "relation": "public.orders_customer_id", "kind": "index", "table": "public.orders",
        "check": "index-structure", "sqlstate": "XX001", "message": "invalid page in block 19",
        "blocks": [19], "rows-missing": null
    }]);
}

fn down(pattern: &str, line: &str) -> impl Fn(&mut Value) {
    move |ev| {
        ev["container"]["status"] = json!("exited");
        ev["container"]["exit-code"] = json!(1);
        ev["connection"] = json!({"closed": {"cause": "container is not running"}});
        ev["databases"] = json!({});
        ev["log"] = if pattern.is_empty() {
            json!([])
        } else {
            json!([{"pattern": pattern, "at": null, "line": line}])
        };
    }
}

#[test]
fn a_truncated_table_is_restored_beside_and_its_new_rows_replayed() {
    let ev = evidence(|_| {});
    let diagnosis = DbCorruption::diagnose(&ev, &runbook());
    assert_eq!(diagnosis.certainty, Certainty::Confirmed);
    insta::assert_yaml_snapshot!("truncated", plan(&ev).unwrap());
}

#[test]
fn damaged_indexes_are_only_rebuilt() {
    let ev = evidence(index_damage);
    let plan = plan(&ev).unwrap();
    assert!(plan.data_loss.none);
    insta::assert_yaml_snapshot!("indexes", plan);
}

#[test]
fn a_damaged_control_file_takes_a_restore_of_the_cluster() {
    let ev = evidence(down("control-file", "FATAL:  incorrect checksum in control file"));
    let plan = plan(&ev).unwrap();
    assert!(plan.data_loss.none, "all WAL since the backup is there");
    insta::assert_yaml_snapshot!("control-file", plan);
}

#[test]
fn wal_with_a_hole_means_salvage_too() {
    let ev = evidence(|ev| {
        down("control-file", "FATAL:  incorrect checksum in control file")(ev);
        let wal = ev["files"]["Ok"]["wal"].as_array_mut().unwrap();
        wal.retain(|n| !n.as_str().unwrap().ends_with('0') && wal_number(n) > 8);
    });
    let plan = plan(&ev).unwrap();
    assert!(!plan.data_loss.none);
    assert!(
        plan.steps.iter().any(|s| s.title.starts_with("Bring rows over")),
        "{:?}",
        plan.steps
    );
}

fn wal_number(name: &Value) -> u64 {
    u64::from_str_radix(name.as_str().unwrap().get(8..).unwrap_or_default(), 16).unwrap_or_default()
}

#[test]
fn the_ladder_goes_on_when_a_rung_is_missing_or_was_tried() {
    let no_dump = evidence(|ev| ev["backups"][0]["dumps"] = json!({}));
    assert_eq!(plan(&no_dump).unwrap().remedy, Remedy::RestoreCluster);
    let no_backup = evidence(|ev| ev["backups"] = json!([]));
    // Without a backup there is nothing to compare with; the structure still tells.
    assert_eq!(plan(&no_backup).unwrap().remedy, Remedy::Salvage);
    let tried = PlanRequest {
        tried: vec![Remedy::Reindex],
        ..request()
    };
    let plan = DbCorruption::plan(&evidence(index_damage), &runbook(), &tried).unwrap();
    assert_eq!(plan.remedy, Remedy::RestoreDatabase);
}

#[test]
fn a_disk_that_cannot_hold_both_is_said_before_anything_starts() {
    let ev = evidence(|ev| ev["files"]["Ok"]["disk-free"] = json!(1_000_000));
    let refusal = plan(&ev).unwrap_err();
    assert!(
        refusal.reasons.iter().any(|r| r.contains("are free")),
        "{refusal:?}"
    );
}

#[test]
fn a_remedy_that_cannot_help_is_refused() {
    let chosen = PlanRequest {
        remedy: Some(Remedy::Reindex),
        ..request()
    };
    let refusal = DbCorruption::plan(&evidence(|_| {}), &runbook(), &chosen).unwrap_err();
    assert!(refusal.message.contains("does not help here"), "{refusal:?}");
    let chosen = PlanRequest {
        backup: Some("20200101T000000Z".into()),
        ..request()
    };
    let refusal = DbCorruption::plan(&evidence(|_| {}), &runbook(), &chosen).unwrap_err();
    assert!(refusal.message.contains("no usable backup"), "{refusal:?}");
}

#[test]
fn look_alikes_have_a_name_and_no_plan() {
    let cases: Vec<(&str, Evidence)> = vec![
        ("stopped", evidence(down("", ""))),
        (
            "paused",
            evidence(|ev| {
                down("", "")(ev);
                ev["container"]["status"] = json!("paused");
            }),
        ),
        (
            "permissions",
            // Permission first: an unreadable control file is not a damaged one.
            evidence(|ev| {
                down("control-file", "PANIC: could not open file \"global/pg_control\"")(ev);
                let denied = json!({"pattern": "permission", "at": null, "line": "FATAL: Permission denied"});
                ev["log"].as_array_mut().unwrap().insert(0, denied);
                ev["files"]["Ok"]["foreign"] = json!(["global/pg_control"]);
            }),
        ),
        (
            "config",
            evidence(down("configuration", "FATAL: configuration file contains errors")),
        ),
        (
            "disk-full",
            evidence(down(
                "disk-full",
                "PANIC: could not write: No space left on device",
            )),
        ),
        (
            // The server runs, and what is there can be read.
            "disk-full",
            evidence(|ev| {
                no_loss(ev);
                ev["log"] =
                    json!([{"pattern": "disk-full", "at": null, "line": "ERROR: could not extend file"}]);
                ev["files"]["Ok"]["disk-free"] = json!(40 << 20);
            }),
        ),
        (
            // Nobody has met it yet, and the log is on a disk of its own.
            "disk-full",
            evidence(|ev| {
                no_loss(ev);
                ev["files"]["Ok"]["wal-free"] = json!(15 << 20);
            }),
        ),
        (
            "wrong-major",
            evidence(|ev| {
                down(
                    "wrong-version",
                    "FATAL: database files are incompatible with server",
                )(ev);
                ev["files"]["Ok"]["version"] = json!("14");
            }),
        ),
        (
            "starting",
            evidence(|ev| {
                no_loss(ev);
                ev["log"] = json!([]);
                ev["connection"] = json!({"refused": {"sqlstate": "57P03", "message": "starting up"}});
            }),
        ),
        (
            "wrong-password",
            evidence(|ev| {
                ev["connection"] = json!({"refused": {"sqlstate": "28P01", "message": "password"}});
            }),
        ),
        (
            "slots-full",
            evidence(|ev| {
                ev["connection"] = json!({"refused": {"sqlstate": "53300", "message": "too many clients"}});
            }),
        ),
        (
            "shm-full",
            evidence(|ev| {
                no_loss(ev);
                ev["log"] = json!([]);
                ev["files"]["Ok"]["shm"] = json!([66_000_000, 67_108_864]);
            }),
        ),
    ];
    for (name, ev) in cases {
        let diagnosis = DbCorruption::diagnose(&ev, &runbook());
        assert_eq!(
            diagnosis.look_alike.as_ref().map(|l| l.name.as_str()),
            Some(name),
            "{diagnosis:?}"
        );
        assert_eq!(diagnosis.certainty, Certainty::Absent, "{name}");
        assert!(plan(&ev).is_err(), "{name} led to a plan");
    }
}

#[test]
fn deleted_rows_are_somebodys_order_and_not_damage() {
    let ev = evidence(|ev| {
        no_loss(ev);
        ev["log"] = json!([]);
        let relations = database(ev)["facts"]["relations"].as_array_mut().unwrap();
        let orders = relations.iter_mut().find(|r| r["name"] == "orders").unwrap();
        orders["rows"] = json!(100);
        orders["deleted"] = json!(1_000_000);
    });
    let diagnosis = DbCorruption::diagnose(&ev, &runbook());
    assert_eq!(diagnosis.look_alike.map(|l| l.name).as_deref(), Some("data-loss"));
}

#[test]
fn a_log_behind_the_backup_is_a_loss_everywhere() {
    let ev = evidence(|ev| {
        no_loss(ev);
        ev["log"] = json!([]);
        database(ev)["facts"]["lsn"] = json!("0/1000000");
    });
    let diagnosis = DbCorruption::diagnose(&ev, &runbook());
    assert_eq!(diagnosis.certainty, Certainty::Confirmed, "{diagnosis:?}");
    assert_eq!(plan(&ev).unwrap().remedy, Remedy::RestoreCluster);
}

#[test]
fn nothing_found_is_sound_and_nothing_examined_is_unknown() {
    let sound = evidence(|ev| {
        no_loss(ev);
        ev["log"] = json!([]);
    });
    assert_eq!(
        DbCorruption::diagnose(&sound, &runbook()).certainty,
        Certainty::Absent
    );
    let unknown = evidence(|ev| {
        no_loss(ev);
        ev["log"] = json!([]);
        database(ev)["examined"] = json!(0);
    });
    let in_part = evidence(|ev| {
        no_loss(ev);
        ev["log"] = json!([]);
        database(ev)["unfinished"] = json!(3);
    });
    assert_eq!(
        DbCorruption::diagnose(&in_part, &runbook()).certainty,
        Certainty::Unknown
    );
    let half_seen = evidence(|ev| {
        no_loss(ev);
        ev["log"] = json!([]);
        ev["files"] = json!({"Err": "the engine does not answer"});
    });
    assert_eq!(
        DbCorruption::diagnose(&half_seen, &runbook()).certainty,
        Certainty::Unknown
    );
    assert_eq!(
        DbCorruption::diagnose(&unknown, &runbook()).certainty,
        Certainty::Unknown
    );
}

#[test]
fn the_lint_refuses_plans_that_skip_a_safety_step() {
    use crate::plan::{Action, ClusterAction, LintError, Undo, WorkloadAction};
    let good = plan(&evidence(down(
        "control-file",
        "FATAL:  incorrect checksum in control file",
    )))
    .unwrap();
    let is_switch = |a: &Action| matches!(a, Action::Cluster(ClusterAction::Switch { .. }));
    let switch = good.steps.iter().position(|s| is_switch(&s.action)).unwrap();
    let without = |unwanted: &dyn Fn(&Action) -> bool| {
        let mut plan = good.clone();
        plan.steps.retain(|s| !unwanted(&s.action));
        lint(&plan)
    };
    let unproven = without(&|a| matches!(a, Action::Cluster(ClusterAction::ProveSide { .. })));
    assert_eq!(unproven, Err(LintError::Unproven(switch)));
    let running = without(&|a| matches!(a, Action::Workload(WorkloadAction::Stop { .. })));
    assert_eq!(running, Err(LintError::NotStopped(switch)));
    let left_down = without(&|a| matches!(a, Action::Workload(WorkloadAction::Start { .. })));
    assert_eq!(left_down, Err(LintError::LeftStopped("postgres".into())));
    let mut one_way = good.clone();
    one_way.steps[switch].undo = Undo::Impossible("no".into());
    assert_eq!(lint(&one_way), Err(LintError::NoWayBack(switch + 1)));
    let mut drops = good.clone();
    drops.steps[0].action = good.discard[0].clone();
    assert_eq!(lint(&drops), Err(LintError::Drops(1)));
    let mut no_proof = good;
    no_proof.expect.clear();
    assert_eq!(lint(&no_proof), Err(LintError::NoProof));
}

#[test]
fn a_line_of_an_earlier_start_does_not_hide_the_damage() {
    let ev = evidence(|ev| {
        down("control-file", "FATAL: incorrect checksum in control file")(ev);
        let denied = json!({"pattern": "permission", "at": null, "line": "FATAL: Permission denied"});
        ev["log"].as_array_mut().unwrap().insert(0, denied);
    });
    assert_eq!(plan(&ev).unwrap().remedy, Remedy::RestoreCluster);
}

#[test]
fn each_remedy_takes_the_newest_set_that_holds_what_it_needs() {
    let ev = evidence(|ev| {
        down("control-file", "FATAL: incorrect checksum in control file")(ev);
        let mut logical_only = ev["backups"][0].clone();
        logical_only["label"] = json!("20261120T194400Z");
        logical_only["base"] = Value::Null;
        ev["backups"].as_array_mut().unwrap().insert(0, logical_only);
    });
    let plan = plan(&ev).unwrap();
    assert_eq!(plan.remedy, Remedy::RestoreCluster);
    assert_eq!(plan.backup.as_deref(), Some("20261120T194357Z"));
}

#[test]
fn a_page_of_zeros_whose_index_forgot_it_is_seen_by_backup_or_counters() {
    let sound = |change: &dyn Fn(&mut Value)| {
        evidence(|ev| {
            no_loss(ev);
            ev["log"] = json!([]);
            database(ev)["empty-pages"] = json!([
                {"table": "public.orders", "path": "base/1/2", "blocks": [174], "filled-in": null}
            ]);
            change(ev);
        })
    };
    let certainty = |ev: &Evidence| DbCorruption::diagnose(ev, &runbook()).certainty;
    // A new page: nothing says that it ever held rows.
    assert_eq!(certainty(&sound(&|_| {})), Certainty::Absent);
    let in_backup = sound(&|ev| database(ev)["empty-pages"][0]["filled-in"] = json!("20261120T194357Z"));
    assert_eq!(certainty(&in_backup), Certainty::Confirmed);
    // More rows than the backup had, and fewer than were inserted since.
    let counted = sound(&|ev| {
        let relations = database(ev)["facts"]["relations"].as_array_mut().unwrap();
        let orders = relations.iter_mut().find(|r| r["name"] == "orders").unwrap();
        let (rows, inserted) = (
            orders["rows"].as_u64().unwrap(),
            orders["inserted"].as_u64().unwrap(),
        );
        orders["rows"] = json!(rows + 10);
        orders["inserted"] = json!(inserted + 70);
    });
    assert_eq!(certainty(&counted), Certainty::Confirmed);
}
