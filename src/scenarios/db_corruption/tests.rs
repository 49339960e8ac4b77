//! Diagnosis and ladder on evidence of a real server, and on that evidence with one thing
//! changed. The evidence file is also the fixture of its format.

use serde_json::{Value, json};

use super::{DbCorruption, Evidence};
use crate::plan::{Action, ClusterAction, Plan, Remedy, lint};
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

/// A second database with the same findings and facts.
fn second_database(ev: &mut Value) {
    let simgen = database(ev).clone();
    ev["databases"]["billing"] = simgen;
}

#[test]
fn damaged_indexes_of_two_databases_are_only_rebuilt() {
    use crate::plan::{Action, PostgresAction};
    let rebuilt = |plan: &Plan| -> Vec<(String, String)> {
        let of_step = |s: &crate::plan::Step| match &s.action {
            Action::Postgres(PostgresAction::Reindex { database, index, .. }) => {
                Some((database.clone(), index.clone()))
            }
            _ => None,
        };
        plan.steps.iter().filter_map(of_step).collect()
    };
    let own = evidence(|ev| {
        index_damage(ev);
        second_database(ev);
    });
    let diagnosis = DbCorruption::diagnose(&own, &runbook());
    assert!(diagnosis.summary.contains("in database billing"), "{diagnosis:?}");
    let plan_of_both = plan(&own).unwrap();
    assert_eq!(plan_of_both.remedy, Remedy::Reindex);
    let index = "public.orders_customer_id".to_owned();
    assert_eq!(
        rebuilt(&plan_of_both),
        [
            ("billing".to_owned(), index.clone()),
            ("simgen".to_owned(), index)
        ]
    );
    let shared = |kind: &str, relation: &str| {
        evidence(|ev| {
            index_damage(ev);
            let finding = &mut database(ev)["findings"][0];
            finding["kind"] = json!(kind);
            finding["relation"] = json!(relation);
            finding["table"] = json!("pg_catalog.pg_database");
            second_database(ev);
        })
    };
    let index = shared("index", "pg_catalog.pg_database_oid_index");
    let plan_of_shared = plan(&index).unwrap();
    assert_eq!(plan_of_shared.remedy, Remedy::Reindex);
    assert_eq!(rebuilt(&plan_of_shared).len(), 1, "once is enough");
    let table = shared("heap", "pg_catalog.pg_database");
    assert_eq!(plan(&table).unwrap().remedy, Remedy::RestoreCluster);
    // A table beside them takes the whole.
    let mixed = evidence(|ev| {
        index_damage(ev);
        second_database(ev);
        let finding = &mut database(ev)["findings"][0];
        finding["kind"] = json!("heap");
        finding["relation"] = json!("public.orders");
    });
    assert_eq!(plan(&mixed).unwrap().remedy, Remedy::RestoreCluster);
    // Once rebuilding was tried, no restore of one database helps both.
    let tried = PlanRequest {
        tried: vec![Remedy::Reindex],
        ..request()
    };
    let next = DbCorruption::plan(&own, &runbook(), &tried).unwrap();
    assert_eq!(next.remedy, Remedy::RestoreCluster);
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

/// What a remedy would need, when it is asked for.
fn obstacle(ev: &Evidence, remedy: Remedy) -> Option<String> {
    let chosen = PlanRequest {
        remedy: Some(remedy),
        ..request()
    };
    let refusal = DbCorruption::plan(ev, &runbook(), &chosen).err()?;
    Some(format!("{} {}", refusal.message, refusal.reasons.join(" ")))
}

#[test]
fn a_tablespace_is_not_shared_with_a_side_server() {
    for link in ["pg_tblspc/16400", "base/16384"] {
        let ev = evidence(|ev| ev["files"]["Ok"]["links"] = json!([link]));
        let why = obstacle(&ev, Remedy::RestoreCluster).unwrap();
        assert!(why.contains(link), "{why}");
        let plan = plan(&ev).unwrap();
        assert_eq!(plan.remedy, Remedy::RestoreDatabase);
        // Its log is not replayed beside the data either.
        assert!(
            plan.steps.iter().all(|s| !matches!(s.action, Action::Cluster(_))),
            "{:?}",
            plan.steps
        );
    }
    let waldir = evidence(|ev| ev["files"]["Ok"]["links"] = json!(["pg_wal"]));
    assert_eq!(obstacle(&waldir, Remedy::RestoreCluster), None);
}

#[test]
fn a_replayed_cluster_is_not_held_to_what_has_changed_since_the_backup() {
    let floors = |ev: &Evidence| -> Vec<(String, u64)> {
        let asked = PlanRequest {
            remedy: Some(Remedy::RestoreCluster),
            ..request()
        };
        let plan = DbCorruption::plan(ev, &runbook(), &asked).unwrap();
        let of_step = plan.steps.iter().find_map(|s| match &s.action {
            Action::Cluster(ClusterAction::ProveSide { floors, .. }) => Some(floors.clone()),
            _ => None,
        });
        let floors = of_step.unwrap().into_iter().flat_map(|(_, floors)| floors);
        floors.map(|f| (f.table, f.at_least)).collect()
    };
    let changed = |ev: &mut Value| {
        let relations = database(ev)["facts"]["relations"].as_array_mut().unwrap();
        relations.retain(|r| r["name"] != "order_lines");
        let orders = relations.iter_mut().find(|r| r["name"] == "orders").unwrap();
        orders["rows"] = json!(123);
    };
    // A queue that was drained, a table that was dropped, rows that were deleted all the same.
    assert_eq!(floors(&evidence(changed)), [("public.orders".to_owned(), 123)]);
    // With a hole in the log the backup's own state is what comes back.
    let hole = evidence(|ev| {
        changed(ev);
        ev["files"]["Ok"]["wal"] = json!([]);
    });
    assert!(floors(&hole).contains(&("public.order_lines".to_owned(), 40006)));
}

#[test]
fn a_database_that_replicates_is_not_replaced_by_its_dump() {
    let link = |database: &str, end: &str| {
        evidence(|ev| ev["logical"] = json!([{"database": database, "name": "Feed", "end": end}]))
    };
    for (end, step) in [
        ("subscription", "drop subscription \"Feed\""),
        ("slot", "pg_drop_replication_slot('Feed')"),
    ] {
        let why = obstacle(&link("simgen", end), Remedy::RestoreDatabase).unwrap();
        assert!(why.contains(step), "{why}");
        assert_eq!(obstacle(&link("other", end), Remedy::RestoreDatabase), None);
    }
}

#[test]
fn a_mount_inside_the_data_directory_is_seen_before_the_server_is_stopped() {
    let mounted = |at: &str| {
        evidence(|ev| {
            let mut mount = ev["container"]["mounts"][0].clone();
            mount["destination"] = json!(at);
            ev["container"]["mounts"].as_array_mut().unwrap().push(mount);
        })
    };
    let inside = mounted("/var/lib/postgresql/data/pg_wal");
    for remedy in [Remedy::RestoreCluster, Remedy::Salvage] {
        let why = obstacle(&inside, remedy).unwrap();
        assert!(why.contains("data/pg_wal is mounted by itself"), "{why}");
    }
    for beside in ["/var/lib/postgresql/data2", "/var/lib/postgresql"] {
        assert_eq!(
            obstacle(&mounted(beside), Remedy::RestoreCluster),
            None,
            "{beside}"
        );
    }
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
        counts_since(ev, "2026-11-20T08:00:00Z", "2026-11-20T08:00:00Z");
    });
    assert_eq!(certainty(&counted), Certainty::Confirmed);
}

/// Since when the server counted, then and now.
fn counts_since(ev: &mut Value, then: &str, now: &str) {
    ev["backups"][0]["facts"]["simgen"]["stats-since"] = json!(then);
    database(ev)["facts"]["stats-since"] = json!(now);
}

fn relation<'a>(facts: &'a mut Value, name: &str) -> &'a mut Value {
    let all = facts["relations"].as_array_mut().unwrap();
    all.iter_mut().find(|r| r["name"] == name).unwrap()
}

fn orders(ev: &mut Value) -> &mut Value {
    relation(&mut database(ev)["facts"], "orders")
}

/// A sound server with one thing changed; no line in its log.
fn sound(change: impl FnOnce(&mut Value)) -> Evidence {
    evidence(|ev| {
        no_loss(ev);
        ev["log"] = json!([]);
        change(ev);
    })
}

/// Certainty, the look-alike's name, and that only damage has a plan.
fn told(ev: &Evidence) -> (Certainty, Option<String>) {
    let diagnosis = DbCorruption::diagnose(ev, &runbook());
    let planned = plan(ev);
    assert_eq!(
        planned.is_ok(),
        diagnosis.certainty == Certainty::Confirmed,
        "{diagnosis:?}"
    );
    (diagnosis.certainty, diagnosis.look_alike.map(|l| l.name))
}

const CONFIRMED: (Certainty, Option<String>) = (Certainty::Confirmed, None);
const SUSPECTED: (Certainty, Option<String>) = (Certainty::Suspected, None);

fn alike(name: &str) -> (Certainty, Option<String>) {
    (Certainty::Absent, Some(name.to_owned()))
}

fn ended_early(ev: &mut Value) {
    ev["log"] = json!([{"pattern": "replay-ended-early", "at": null, "line": "invalid magic number"}]);
}

#[test]
fn an_unlogged_table_that_a_crash_emptied_is_no_loss_and_no_row_of_it_is_asked_for() {
    let emptied = |ev: &mut Value| {
        let orders = orders(ev);
        (orders["rows"], orders["bytes"], orders["unlogged"]) = (json!(0), json!(0), json!(true));
    };
    assert_eq!(told(&sound(emptied)), (Certainty::Absent, None));
    let floors_of = |ev: &Evidence| {
        let plan = plan(ev).unwrap();
        assert_eq!(plan.remedy, Remedy::RestoreCluster);
        serde_json::to_string(&plan.expect).unwrap()
    };
    let damaged = |unlogged: bool| {
        evidence(|ev| {
            down("control-file", "FATAL:  incorrect checksum in control file")(ev);
            relation(&mut ev["backups"][0]["facts"]["simgen"], "orders")["unlogged"] = json!(unlogged);
        })
    };
    assert!(floors_of(&damaged(false)).contains("public.orders\""));
    assert!(!floors_of(&damaged(true)).contains("public.orders\""));
    // A dump has its rows.
    let dumped = evidence(|ev| {
        relation(&mut ev["backups"][0]["facts"]["simgen"], "customers")["unlogged"] = json!(true);
    });
    let plan = plan(&dumped).unwrap();
    assert_eq!(plan.remedy, Remedy::RestoreDatabase);
    assert!(
        serde_json::to_string(&plan.expect)
            .unwrap()
            .contains("public.customers\"")
    );
}

#[test]
fn a_newest_row_that_went_back_proves_nothing_by_itself() {
    let back = |ev: &mut Value| orders(ev)["newest"]["at"] = json!("2026-11-01T00:00:00Z");
    assert_eq!(told(&sound(back)), SUSPECTED);
    let early = sound(|ev| {
        back(ev);
        ended_early(ev);
    });
    assert_eq!(told(&early), CONFIRMED);
    assert_eq!(plan(&early).unwrap().remedy, Remedy::RestoreCluster);
    // A row from after the backup was a mistake.
    let future = sound(|ev| {
        let then = &mut ev["backups"][0]["facts"]["simgen"];
        relation(then, "orders")["newest"]["at"] = json!("2029-01-01T00:00:00Z");
    });
    assert_eq!(told(&future), (Certainty::Absent, None));
    for counter in ["deleted", "updated"] {
        let changed = sound(|ev| {
            back(ev);
            relation(&mut ev["backups"][0]["facts"]["simgen"], "orders")[counter] = json!(4);
            orders(ev)[counter] = json!(5);
        });
        assert_eq!(told(&changed), alike("data-loss"), "{counter}");
    }
}

#[test]
fn a_table_that_a_command_wrote_anew_has_lost_its_rows_by_order() {
    // TRUNCATE counts no deletion. The table is one to which rows are only ever added.
    let truncated = |ev: &mut Value| {
        let orders = orders(ev);
        (orders["rows"], orders["bytes"], orders["pages"]) = (json!(0), json!(0), json!(0));
        orders["path"] = json!("base/16384/99999");
    };
    assert_eq!(told(&sound(truncated)), alike("data-loss"));
    let also_damaged = sound(|ev| {
        truncated(ev);
        database(ev)["findings"] = json!([{
            "relation": "public.orders", "kind": "heap", "table": "public.orders",
            "check": "heap-structure", "sqlstate": "XX001", "message": "invalid page in block 3",
            "blocks": [3], "rows-missing": null
        }]);
    });
    assert_eq!(told(&also_damaged), CONFIRMED);
}

#[test]
fn a_shorter_file_is_damage_only_where_no_vacuum_can_have_cut_it() {
    let page = 8192;
    let since = "2026-11-20T08:00:00Z";
    // 344 pages then, by file and by catalogue.
    let shorter = |ev: &mut Value| {
        let orders = orders(ev);
        (orders["rows"], orders["bytes"]) = (json!(10_000), json!(173 * page));
    };
    let vacuumed = |ev: &mut Value| {
        shorter(ev);
        (orders(ev)["pages"], orders(ev)["estimated-rows"]) = (json!(173), json!(10_000));
    };
    // Facts that do not say since when the server counts, and a crash in between.
    assert_eq!(told(&sound(vacuumed)), SUSPECTED);
    let crashed = sound(|ev| {
        vacuumed(ev);
        counts_since(ev, since, "2026-11-20T19:44:00Z");
    });
    assert_eq!(told(&crashed), SUSPECTED);
    let went_back = sound(|ev| {
        vacuumed(ev);
        counts_since(ev, since, since);
        relation(&mut ev["backups"][0]["facts"]["simgen"], "orders")["inserted"] = json!(100);
    });
    assert_eq!(told(&went_back), SUSPECTED);
    // Every deletion would have been counted.
    let counted = sound(|ev| {
        vacuumed(ev);
        counts_since(ev, since, since);
    });
    assert_eq!(told(&counted), CONFIRMED);
    // The catalogue is as it was: nobody vacuumed.
    let untouched = sound(|ev| {
        shorter(ev);
        relation(&mut ev["backups"][0]["facts"]["simgen"], "orders")["pages"] = json!(100);
        orders(ev)["pages"] = json!(100);
    });
    assert_eq!(told(&untouched), CONFIRMED);
    // A replay that ended too early explains it, too.
    let early = sound(|ev| {
        vacuumed(ev);
        ended_early(ev);
    });
    assert_eq!(told(&early), CONFIRMED);
    // Same file, same length: a deletion that a crash made the server forget.
    let fewer = sound(|ev| orders(ev)["rows"] = json!(19_000));
    assert_eq!(told(&fewer), SUSPECTED);
    // An index that is damaged says nothing about the rows, and is only built anew.
    let index = sound(|ev| {
        index_damage(ev);
        ev["log"] = json!([]);
        orders(ev)["rows"] = json!(19_000);
    });
    assert_eq!(plan(&index).unwrap().remedy, Remedy::Reindex);
}

#[test]
fn a_cluster_that_was_restored_to_before_the_backup_is_not_restored_again() {
    let restored = |ev: &mut Value| {
        ev["control"]["Ok"]["timeline"] = json!(2);
        ev["backups"][0]["timeline"] = json!(1);
        // Of a dump alone.
        ev["backups"][0]["base"] = Value::Null;
    };
    let ev = sound(|ev| {
        restored(ev);
        database(ev)["facts"]["lsn"] = json!("0/1000000");
        orders(ev)["rows"] = json!(10);
    });
    assert_eq!(told(&ev), alike("data-loss"));
    // Its log has grown beyond the backup since, which knows rows of the history that was given up.
    let ev = sound(|ev| {
        restored(ev);
        orders(ev)["rows"] = json!(19_000);
        let was = orders(ev)["bytes"].as_u64().unwrap();
        orders(ev)["bytes"] = json!(was - 8192);
    });
    assert_eq!(told(&ev), SUSPECTED);
}

#[test]
fn a_dropped_table_is_missed_only_when_the_runbook_names_it() {
    let without = |name: &'static str| {
        sound(move |ev| {
            let all = database(ev)["facts"]["relations"].as_array_mut().unwrap();
            all.retain(|r| r["name"] != name);
        })
    };
    assert_eq!(told(&without("sketches")), alike("data-loss"));
    assert_eq!(told(&without("accounts")), (Certainty::Absent, None));
    let diagnosis = DbCorruption::diagnose(&without("sketches"), &runbook());
    assert!(
        diagnosis
            .reasons
            .iter()
            .any(|r| r.contains("public.sketches") && r.contains("20261120T194357Z")),
        "{diagnosis:?}"
    );
}

#[test]
fn a_loss_that_no_order_explains_is_not_hidden_by_one_that_it_does() {
    let both = sound(|ev| {
        orders(ev)["rows"] = json!(19_000);
        let all = database(ev)["facts"]["relations"].as_array_mut().unwrap();
        all.retain(|r| r["name"] != "sketches");
    });
    assert_eq!(told(&both), SUSPECTED);
}

#[test]
fn another_cluster_is_named_and_never_compared_with() {
    let other = |ev: &mut Value| ev["control"]["Ok"]["system-identifier"] = json!("7710000000000000001");
    assert_eq!(told(&sound(other)), alike("wrong-volume"));
    let diagnosis = DbCorruption::diagnose(&sound(other), &runbook());
    for part in ["7710000000000000001", "7710334385389170723", "2026-11-20"] {
        assert!(diagnosis.summary.contains(part), "{diagnosis:?}");
    }
    // A fresh one has no such database either.
    let fresh = sound(|ev| {
        other(ev);
        refused_by(ev, "3D000", "database \"simgen\" does not exist");
    });
    assert_eq!(told(&fresh), alike("wrong-volume"));
    // One of several is enough, and without any backup there is nothing to say.
    let changed = sound(|ev| {
        let mut older = ev["backups"][0].clone();
        (older["label"], older["system-identifier"]) =
            (json!("20261101T000000Z"), json!("7710000000000000001"));
        ev["backups"].as_array_mut().unwrap().push(older);
        other(ev);
    });
    assert_eq!(told(&changed), (Certainty::Absent, None));
    let none = sound(|ev| {
        other(ev);
        ev["backups"] = json!([]);
    });
    assert_eq!(told(&none), (Certainty::Absent, None));
    // A control file that could not be read makes no backup a backup of this cluster.
    let unread = sound(|ev| {
        ev["control"] = json!({"Err": "the engine does not answer"});
        database(ev)["facts"]["lsn"] = json!("0/1000000");
    });
    assert_eq!(told(&unread), (Certainty::Unknown, None));
}

fn refused_by(ev: &mut Value, sqlstate: &str, message: &str) {
    let simgen = database(ev);
    simgen["connection"] = json!({"refused": {"sqlstate": sqlstate, "message": message}});
    (simgen["facts"], simgen["examined"]) = (Value::Null, json!(0));
}

#[test]
fn a_database_that_is_gone_or_closed_is_named_with_the_way_back() {
    let gone = sound(|ev| {
        refused_by(ev, "3D000", "database \"simgen\" does not exist");
        ev["present"] = json!(["postgres", "simgen_drctl_old_20261120t194500_1f3a"]);
    });
    assert_eq!(told(&gone), alike("database-missing"));
    let found = DbCorruption::diagnose(&gone, &runbook());
    let next = found.look_alike.unwrap().next.join("\n");
    assert!(
        next.contains("RESTORE.md") && next.contains("drctl backup list"),
        "{next}"
    );
    assert!(next.contains("drctl incident list"), "{next}");
    assert!(
        found.reasons.join("\n").contains("simgen_drctl_old_"),
        "{:?}",
        found.reasons
    );
    let closed = sound(|ev| {
        refused_by(
            ev,
            "55000",
            "database \"simgen\" is not currently accepting connections",
        );
    });
    assert_eq!(told(&closed), alike("database-closed"));
    let next = DbCorruption::diagnose(&closed, &runbook())
        .look_alike
        .unwrap()
        .next;
    assert!(
        next.iter().any(|n| n.contains("allow_connections true")),
        "{next:?}"
    );
    let half = sound(|ev| refused_by(ev, "55000", "cannot connect to invalid database \"simgen\""));
    assert_eq!(told(&half), alike("database-missing"));
}

#[test]
fn a_library_that_the_image_lacks_is_no_damage() {
    let setting = "FATAL 58P01: could not access file \"nolib\": No such file or directory";
    let one = sound(|ev| refused_by(ev, "58P01", setting));
    assert_eq!(told(&one), alike("library-missing"));
    let found = DbCorruption::diagnose(&one, &runbook()).look_alike.unwrap();
    assert!(
        found.explanation.contains("library nolib in database simgen"),
        "{found:?}"
    );
    assert!(
        found
            .next
            .iter()
            .any(|n| n.contains("alter database \"simgen\" reset session_preload_libraries")),
        "{found:?}"
    );
    let all = sound(|ev| ev["connection"] = json!({"refused": {"sqlstate": "58P01", "message": setting}}));
    assert_eq!(told(&all), alike("library-missing"));
    let extension = sound(|ev| {
        database(ev)["not-examined"] = json!([[
            "public.orders_name",
            "ERROR 58P01: could not access file \"$libdir/citext\": No such file or directory"
        ]]);
    });
    assert_eq!(told(&extension), alike("library-missing"));
    // A file of the data that is missing is damage as ever, and told before a library.
    let file = "FATAL 58P01: could not open file \"base/16384/1259\": No such file or directory";
    assert_eq!(told(&sound(|ev| refused_by(ev, "58P01", file))), CONFIRMED);
    let both = sound(|ev| {
        index_damage(ev);
        database(ev)["not-examined"] = json!([["public.orders_name", setting]]);
    });
    assert_eq!(plan(&both).unwrap().remedy, Remedy::Reindex);
}

#[test]
fn a_partitioned_table_that_only_grows_and_shrank_is_a_sign_where_no_order_is_known() {
    let shrunk = |change: &dyn Fn(&mut Value)| {
        sound(|ev| {
            // As the server shows one: no file, no counters.
            let mut part = orders(ev).clone();
            part["name"] = json!("orders_2026");
            for path in ["/backups/0/facts/simgen", "/databases/simgen/facts"] {
                let facts = ev.pointer_mut(path).unwrap();
                let whole = relation(facts, "orders");
                whole["kind"] = json!("partitioned");
                for gone in ["path", "inserted", "deleted", "updated"] {
                    whole.as_object_mut().unwrap().remove(gone);
                }
                (whole["bytes"], whole["pages"]) = (json!(0), json!(0));
                let all = facts["relations"].as_array_mut().unwrap();
                all.push(part.clone());
                for table in all.iter_mut().filter(|r| r["kind"] == "table") {
                    (table["deleted"], table["updated"]) = (json!(0), json!(0));
                }
            }
            orders(ev)["rows"] = json!(10);
            change(ev);
        })
    };
    assert_eq!(told(&shrunk(&|_| {})), SUSPECTED);
    assert_eq!(told(&shrunk(&ended_early)), CONFIRMED);
    // Old partitions are dropped, emptied or thinned out on purpose.
    let dropped = shrunk(&|ev| {
        let all = database(ev)["facts"]["relations"].as_array_mut().unwrap();
        all.retain(|r| r["name"] != "orders_2026");
    });
    assert_eq!(told(&dropped), (Certainty::Absent, None));
    let part = |ev: &mut Value, key: &str, value: Value| {
        relation(&mut database(ev)["facts"], "orders_2026")[key] = value;
    };
    let emptied = shrunk(&|ev| part(ev, "path", json!("base/16384/99999")));
    assert_eq!(told(&emptied), (Certainty::Absent, None));
    let deleted = shrunk(&|ev| part(ev, "deleted", json!(10)));
    assert_eq!(told(&deleted), (Certainty::Absent, None));
}
