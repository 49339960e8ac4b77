//! Diagnosis and ladder on evidence with one thing changed.

use serde_json::json;

use super::super::service_crash::fixtures::container;
use super::super::{Certainty, PlanRequest, Refusal, Scenario};
use super::diagnose::diagnose;
use super::*;
use crate::plan::{Action, Risk, ServerAction, Undo, lint};
use crate::probe::containers::ContainerFacts;
use crate::probe::logs::LogPattern;
use crate::workload::{MountInfo, Status};

const NOW: &str = "2026-11-20T21:00:00Z";

fn runbook() -> Runbook {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml");
    crate::runbook::load(std::path::Path::new(path)).unwrap()
}

fn file_facts() -> FileFacts {
    serde_json::from_value(json!({
        "owner": "101:104", "mode": "700", "version": "15", "program-version": "15", "foreign": [],
        "missing-directories": [], "wal": ["000000010000000000000003"], "xact": ["0000"],
        "configuration-error": null, "data-bytes": 40_000_000, "disk-free": 50_000_000_000_u64,
        "disk-total": 100_000_000_000_u64, "shm": null
    }))
    .unwrap()
}

/// A container that has ended well, changed.
fn evidence(change: impl FnOnce(&mut ContainerFacts, &mut Evidence)) -> Evidence {
    let mut facts = container("postgres");
    facts.info.status = Status::Exited;
    facts.info.stop_signal = "SIGINT".into();
    facts.info.mounts = vec![MountInfo {
        volume: Some("simgen_pgdata".into()),
        source: "/var/lib/docker/volumes/simgen_pgdata/_data".into(),
        destination: "/var/lib/postgresql/data".into(),
        writable: true,
    }];
    facts.processes.clear();
    let mut ev = Evidence {
        format: EVIDENCE_FORMAT,
        taken_at: NOW.parse().unwrap(),
        service: "postgres".into(),
        port: 5432,
        data_directory: "/var/lib/postgresql/data".into(),
        container: ContainerState::Missing,
        connection: Connection::Closed {
            cause: "container is not running".into(),
        },
        log: vec![said(
            LogPattern::Ready,
            "LOG:  database system is ready to accept connections",
        )],
        control: Err("not looked at".into()),
        files: Ok(file_facts()),
        server_user: Some("101:104".into()),
        configuration: Some(Configuration::default()),
        sharing: vec![],
        rivals: vec![],
        replay_paused: None,
        replay: None,
        memory_available: Some(8 << 30),
    };
    change(&mut facts, &mut ev);
    ev.container = ContainerState::Found(Box::new(facts));
    ev
}

fn said(pattern: LogPattern, line: &str) -> LogFinding {
    LogFinding {
        pattern,
        at: None,
        line: line.into(),
    }
}

/// In a loop of crashes, with these last words.
fn looping(facts: &mut ContainerFacts, ev: &mut Evidence, pattern: LogPattern, line: &str) {
    facts.info.status = Status::Restarting;
    facts.info.exit_code = 1;
    facts.info.restart_count = 5;
    ev.log = vec![said(pattern, line)];
}

fn runs(facts: &mut ContainerFacts) {
    facts.info.status = Status::Running;
    facts.processes = vec!["Ss".into()];
}

fn refuses(facts: &mut ContainerFacts, ev: &mut Evidence, sqlstate: &str, message: &str) {
    runs(facts);
    ev.connection = Connection::Refused {
        sqlstate: sqlstate.into(),
        message: message.into(),
    };
}

fn line(file: &str, number: u32, begins: &str) -> ConfigLine {
    ConfigLine {
        file: file.into(),
        line: number,
        begins: begins.into(),
        why: "FATAL:  the server says so".into(),
    }
}

fn bad_config(facts: &mut ContainerFacts, ev: &mut Evidence) {
    looping(
        facts,
        ev,
        LogPattern::Configuration,
        "FATAL:  could not access file \"nolib\": No such file or directory",
    );
    ev.configuration = Some(Configuration {
        broken: vec![line(
            "postgresql.auto.conf",
            3,
            "shared_preload_libraries = 'nolib'",
        )],
        ..Configuration::default()
    });
}

fn elsewhere(facts: &mut ContainerFacts, ev: &mut Evidence) {
    runs(facts);
    let lock = ["1", "/d", "17", "5433", "/run", "*"];
    ev.files.as_mut().unwrap().lock_file = Some(lock.iter().map(ToString::to_string).collect());
    ev.configuration = Some(Configuration {
        port: Some(line("postgresql.auto.conf", 3, "port = 5433")),
        ..Configuration::default()
    });
}

fn permissions(facts: &mut ContainerFacts, ev: &mut Evidence) {
    refuses(
        facts,
        ev,
        "42501",
        "could not access directory \"base/5\": Permission denied",
    );
    ev.files.as_mut().unwrap().foreign = vec!["base (0:0, mode 700)".into(), "base/5 (0:0, mode 700)".into()];
}

fn out_of_memory(facts: &mut ContainerFacts, restarts: i64) {
    facts.info.oom_killed = true;
    facts.info.exit_code = 137;
    facts.info.restart_count = restarts;
    facts.info.memory_limit = 256 << 20;
}

fn signal(ev: &mut Evidence, files: &[&str]) {
    ev.files.as_mut().unwrap().signals = files.iter().map(ToString::to_string).collect();
}

fn stands_by(facts: &mut ContainerFacts, ev: &mut Evidence, has_source: bool) {
    runs(facts);
    ev.connection = Connection::Open {
        version: 150_020,
        started_at: None,
        in_recovery: true,
    };
    signal(ev, &["standby.signal"]);
    ev.configuration = Some(Configuration {
        has_source,
        ..Configuration::default()
    });
}

fn empty_directory(ev: &mut Evidence) {
    let files = ev.files.as_mut().unwrap();
    files.version = None;
    files.missing_directories = ["base", "global", "pg_wal", "pg_xact"]
        .map(str::to_owned)
        .to_vec();
    files.configuration_error = Some("could not access the server configuration file".into());
    ev.control = Err("could not open file \"global/pg_control\": No such file or directory".into());
}

/// Runs, and its port is not reached; what line 8 of its lock file says.
fn unreached(ev: &mut Evidence, says: &str) {
    ev.connection = Connection::Closed {
        cause: "connection refused".into(),
    };
    ev.log.clear();
    // 2026-11-20T20:00:00Z, when the container was started.
    let lock = ["1", "/d", "1795204800", "5432", "/run", "*", "5432001 0", says];
    ev.files.as_mut().unwrap().lock_file = Some(lock.iter().map(ToString::to_string).collect());
}

fn request() -> PlanRequest {
    PlanRequest {
        run: "20261120T210000Z-db-down-0001".into(),
        tried: vec![],
        remedy: None,
        backup: None,
        now: NOW.parse().unwrap(),
    }
}

fn plan(ev: &Evidence) -> Result<Plan, Refusal> {
    let plan = DbDown::plan(ev, &runbook(), &request());
    if let Ok(plan) = &plan {
        lint(plan).unwrap();
        assert!(plan.data_loss.none && plan.risk() < Risk::Destructive);
    }
    plan
}

type Change = fn(&mut ContainerFacts, &mut Evidence);

/// Evidence, how sure, a word of the summary, and the remedy.
const CONFIRMED: &[(Change, &str, Option<Remedy>)] = &[
    (|_, _| {}, "does not run", Some(Remedy::Start)),
    (
        |f, _| f.info.status = Status::Paused,
        "paused",
        Some(Remedy::Thaw),
    ),
    (
        |f, _| {
            runs(f);
            f.processes = vec!["Ts".into()];
        },
        "stopped by a signal",
        Some(Remedy::Thaw),
    ),
    (
        |f, ev| refuses(f, ev, "57P03", "the database system is starting up"),
        "replaying its log",
        Some(Remedy::Wait),
    ),
    (
        |f, ev| refuses(f, ev, "57P03", "the database system is shutting down"),
        "waits for its clients",
        Some(Remedy::Restart),
    ),
    (bad_config, "refuses its configuration", Some(Remedy::Reconfigure)),
    (elsewhere, "port 5433", Some(Remedy::Reconfigure)),
    (permissions, "wrong owner or mode", Some(Remedy::FixPermissions)),
    (
        // Said of the control file, and no damage.
        |f, ev| {
            looping(
                f,
                ev,
                LogPattern::ControlFile,
                "postgres: could not find the database system",
            );
            ev.log.push(said(
                LogPattern::Permission,
                "but could not open file \"/d/global/pg_control\": Permission denied",
            ));
        },
        "wrong owner or mode",
        Some(Remedy::FixPermissions),
    ),
    (
        |f, ev| {
            looping(
                f,
                ev,
                LogPattern::LockFile,
                "FATAL:  lock file \"postmaster.pid\" is empty",
            );
        },
        "postmaster.pid",
        Some(Remedy::ClearStale),
    ),
    (
        |f, ev| {
            looping(
                f,
                ev,
                LogPattern::LockFile,
                "FATAL:  lock file \"postmaster.pid\" already exists",
            );
            ev.sharing = vec!["other".into()];
        },
        "another container holds its data",
        None,
    ),
    (
        // Stopped, and nothing complains: another server was started on its volume.
        |_, ev| ev.rivals = vec!["other".into()],
        "another container holds its data",
        None,
    ),
    (
        // Nothing is done to files under another server, whatever is wrong with them.
        |f, ev| {
            bad_config(f, ev);
            ev.rivals = vec!["other".into()];
        },
        "another container holds its data",
        None,
    ),
    (|_, ev| empty_directory(ev), "its data directory is empty", None),
    (
        // As the image's own start says it.
        |f, ev| {
            let line = "postgres: could not access the server configuration file \"/d/postgresql.conf\"";
            looping(f, ev, LogPattern::Configuration, line);
            empty_directory(ev);
        },
        "its data directory is empty",
        None,
    ),
    (
        |f, ev| {
            stands_by(f, ev, false);
            signal(ev, &["recovery.signal"]);
            ev.replay_paused = Some(true);
        },
        "its recovery is paused",
        None,
    ),
    (
        |f, ev| {
            stands_by(f, ev, false);
            signal(ev, &["recovery.signal"]);
            ev.replay_paused = Some(false);
        },
        "replaying its log",
        Some(Remedy::Wait),
    ),
    (
        // Emptied while it was stopped: nothing has been said of it yet.
        |_, ev| {
            ev.configuration = Some(Configuration {
                rules_broken: Some("/d/pg_hba.conf holds no rule".into()),
                ..Configuration::default()
            });
        },
        "pg_hba.conf) are gone",
        None,
    ),
    (
        |f, ev| {
            looping(
                f,
                ev,
                LogPattern::Configuration,
                "FATAL:  could not load /d/pg_hba.conf",
            );
            f.info.status = Status::Exited;
            ev.configuration = Some(Configuration {
                rules_broken: Some("/d/pg_hba.conf is not there".into()),
                ..Configuration::default()
            });
        },
        "pg_hba.conf) are gone",
        None,
    ),
    (
        |f, ev| stands_by(f, ev, false),
        "standby of nobody",
        Some(Remedy::ClearStale),
    ),
    (
        |f, ev| {
            looping(
                f,
                ev,
                LogPattern::RecoverySource,
                "FATAL:  must specify restore_command …",
            );
            signal(ev, &["recovery.signal"]);
        },
        "recover from nowhere",
        Some(Remedy::ClearStale),
    ),
    (
        // An unfinished restore is none of a left-over file.
        |f, ev| {
            looping(
                f,
                ev,
                LogPattern::RecoverySource,
                "FATAL:  must specify restore_command …",
            );
            signal(ev, &["recovery.signal", "backup_label"]);
        },
        "a backup that was not brought up to date",
        None,
    ),
    (|f, _| out_of_memory(f, 0), "want of memory", Some(Remedy::Start)),
    (
        |f, _| out_of_memory(f, 4),
        "want of memory",
        Some(Remedy::RaiseLimit),
    ),
    (
        |f, ev| {
            out_of_memory(f, 4);
            ev.memory_available = Some(1 << 20);
        },
        "want of memory",
        None,
    ),
    (
        |f, _| {
            f.info.status = Status::Created;
            f.info.exit_code = 128;
            f.info.error = "Bind for 0.0.0.0:5432 failed: port is already allocated".into();
        },
        "another program has its port",
        None,
    ),
    (
        |f, ev| {
            looping(
                f,
                ev,
                LogPattern::WrongVersion,
                "FATAL:  database files are incompatible with server",
            );
            ev.files.as_mut().unwrap().version = Some("14".into());
        },
        "another major version",
        None,
    ),
    (
        |f, ev| {
            looping(
                f,
                ev,
                LogPattern::OtherFatal,
                "FATAL:  could not open directory \"pg_notify\"",
            );
        },
        "ends at its start",
        None,
    ),
    (
        |f, ev| {
            looping(
                f,
                ev,
                LogPattern::Configuration,
                "FATAL:  could not load /d/pg_hba.conf",
            );
            ev.configuration = Some(Configuration {
                broken: vec![line("pg_hba.conf", 9, "hosst all bad all reject")],
                ..Configuration::default()
            });
        },
        "others would be let in",
        None,
    ),
    (
        // Nothing was said of it yet: the next start would fail.
        |f, ev| {
            bad_config(f, ev);
            f.info.status = Status::Exited;
            f.info.exit_code = 0;
            ev.log = vec![said(
                LogPattern::Ready,
                "LOG:  database system is ready to accept connections",
            )];
        },
        "refuses its configuration",
        Some(Remedy::Reconfigure),
    ),
];

#[test]
fn each_cause_has_its_name_and_its_remedy() {
    for (change, words, remedy) in CONFIRMED {
        let ev = evidence(change);
        let d = diagnose(&ev);
        assert_eq!(d.certainty, Certainty::Confirmed, "{words}: {d:?}");
        assert!(
            d.look_alike.is_none() && d.summary.contains(words),
            "{words}: {d:?}"
        );
        match (plan(&ev), remedy) {
            (Ok(plan), Some(remedy)) => assert_eq!(plan.remedy, *remedy, "{words}"),
            (Err(refusal), None) => assert!(!refusal.next.is_empty(), "{words}: {refusal:?}"),
            (other, _) => panic!("{words}: {other:?}"),
        }
    }
}

#[test]
fn what_is_another_scenario_s_is_handed_over() {
    let cases: &[(Change, &str)] = &[
        (
            |f, ev| {
                looping(
                    f,
                    ev,
                    LogPattern::ControlFile,
                    "FATAL:  incorrect checksum in control file",
                );
            },
            "db-corruption",
        ),
        (
            |f, ev| refuses(f, ev, "XX001", "invalid page in block 0"),
            "db-corruption",
        ),
        (
            |f, ev| {
                let line = "PANIC:  could not write to file \"pg_wal/xlogtemp.1\": No space left on device";
                looping(f, ev, LogPattern::DiskFull, line);
            },
            "disk-full",
        ),
        (
            |f, ev| refuses(f, ev, "53300", "sorry, too many clients already"),
            "connection-exhaustion",
        ),
        (
            |f, ev| {
                let words = "FATAL 58P01: could not access file \"nolib\": No such file or directory";
                refuses(f, ev, "58P01", words);
            },
            "library-missing",
        ),
        (
            |f, ev| refuses(f, ev, "28P01", "password authentication failed"),
            "wrong-password",
        ),
        (
            |f, _| f.info.error = "network 0331 not found".into(),
            "network-partition",
        ),
        (
            |f, _| {
                runs(f);
                f.info.networks.clear();
                f.info.attachments.clear();
            },
            "network-partition",
        ),
        (|f, ev| stands_by(f, ev, true), "standby"),
    ];
    for (change, name) in cases {
        let d = diagnose(&evidence(change));
        assert_eq!(d.certainty, Certainty::Absent, "{name}: {d:?}");
        let other = d.look_alike.unwrap();
        assert_eq!(other.name, *name);
        assert!(!other.next.is_empty());
    }
}

#[test]
fn a_server_that_answers_is_let_be() {
    let ev = evidence(|f, ev| {
        runs(f);
        ev.connection = Connection::Open {
            version: 150_020,
            started_at: None,
            in_recovery: false,
        };
    });
    assert_eq!(diagnose(&ev).certainty, Certainty::Absent);
    assert!(plan(&ev).is_err());
}

#[test]
fn no_container_and_an_engine_that_does_not_tell() {
    let mut ev = evidence(|_, _| {});
    ev.container = ContainerState::Missing;
    assert_eq!(diagnose(&ev).certainty, Certainty::Confirmed);
    assert!(plan(&ev).unwrap_err().next[0].starts_with("docker compose up -d postgres"));
    ev.container = ContainerState::Unknown("no answer".into());
    assert_eq!(diagnose(&ev).certainty, Certainty::Unknown);
}

#[test]
fn old_complaints_of_a_server_that_was_stopped_are_not_why() {
    let ev = evidence(|_, ev| {
        let old = said(
            LogPattern::Permission,
            "ERROR:  could not open file: Permission denied",
        );
        ev.log.insert(0, old);
    });
    assert_eq!(plan(&ev).unwrap().remedy, Remedy::Start);
}

#[test]
fn a_mounted_configuration_is_left_to_its_host() {
    let ev = evidence(|f, ev| {
        bad_config(f, ev);
        f.info.mounts.push(MountInfo {
            volume: None,
            source: "/srv/postgresql.auto.conf".into(),
            destination: "/var/lib/postgresql/data/postgresql.auto.conf".into(),
            writable: true,
        });
    });
    let refusal = plan(&ev).unwrap_err();
    assert!(
        refusal.reasons[0].contains("mounted from the host"),
        "{refusal:?}"
    );
    let on_the_command_line = evidence(|f, ev| {
        elsewhere(f, ev);
        ev.configuration = Some(Configuration::default());
    });
    let refusal = plan(&on_the_command_line).unwrap_err();
    assert!(refusal.reasons[0].contains("command line"), "{refusal:?}");
}

#[test]
fn every_change_to_files_has_a_way_back() {
    for (change, words, _) in CONFIRMED {
        for step in plan(&evidence(change)).into_iter().flat_map(|p| p.steps) {
            let changes =
                matches!(&step.action, Action::Server(a) if !matches!(a, ServerAction::AwaitRecovery { .. }));
            assert!(
                !changes || matches!(step.undo, Undo::Action(_)),
                "{words}: {step:?}"
            );
        }
    }
}

#[test]
fn plans() {
    insta::assert_yaml_snapshot!("start", plan(&evidence(|_, _| {})).unwrap());
    insta::assert_yaml_snapshot!("bad-config", plan(&evidence(bad_config)).unwrap());
    insta::assert_yaml_snapshot!("wrong-port", plan(&evidence(elsewhere)).unwrap());
    insta::assert_yaml_snapshot!("permissions", plan(&evidence(permissions)).unwrap());
    let stale: Change = |f, ev| {
        looping(
            f,
            ev,
            LogPattern::LockFile,
            "FATAL:  lock file \"postmaster.pid\" is empty",
        );
    };
    insta::assert_yaml_snapshot!("stale-lock", plan(&evidence(stale)).unwrap());
    let replaying: Change = |f, ev| {
        refuses(f, ev, "57P03", "the database system is starting up");
        ev.replay = Some("startup recovering 000000010000000000000004".into());
    };
    insta::assert_yaml_snapshot!("replaying", plan(&evidence(replaying)).unwrap());
    insta::assert_yaml_snapshot!(
        "out-of-memory",
        plan(&evidence(|f, _| out_of_memory(f, 4))).unwrap()
    );
}

#[test]
fn saved_evidence_is_read_again() {
    let ev = evidence(bad_config);
    let again: Evidence = serde_json::from_value(serde_json::to_value(&ev).unwrap()).unwrap();
    assert_eq!(plan(&again), plan(&ev));
}

fn sound_control() -> crate::probe::control::ControlData {
    serde_json::from_value(json!({
        "state": "shut down", "system-identifier": "7", "redo": null, "timeline": 1, "next-xid": 700,
        "checksum-version": 1, "wal-segment-size": 16_777_216, "checksum-mismatch": false
    }))
    .unwrap()
}

#[test]
fn what_is_empty_at_each_start_is_made_anew_and_nothing_else() {
    let gone = |missing: &[&str], version: Option<&str>, inner: Option<&str>, control| {
        evidence(|facts, ev| {
            looping(
                facts,
                ev,
                LogPattern::OtherFatal,
                "FATAL:  could not open directory",
            );
            let files = ev.files.as_mut().unwrap();
            files.missing_directories = missing.iter().map(ToString::to_string).collect();
            files.version = version.map(str::to_owned);
            files.inner_version = inner.map(str::to_owned);
            ev.control = control;
        })
    };
    let made = |ev: &Evidence| {
        let plan = DbDown::plan(ev, &runbook(), &request()).ok()?;
        lint(&plan).unwrap();
        plan.steps.into_iter().find_map(|s| match s.action {
            Action::Server(ServerAction::MakeMissing {
                directories, version, ..
            }) => Some((directories, version)),
            _ => None,
        })
    };
    let notify = vec!["pg_notify".to_owned()];
    assert_eq!(
        made(&gone(&["pg_notify"], Some("15"), Some("15"), Ok(sound_control()))),
        Some((notify, None))
    );
    assert_eq!(
        made(&gone(&[], None, Some("15"), Ok(sound_control()))),
        Some((vec![], Some("15".to_owned())))
    );
    // What holds data is lost with its directory, and an empty one in its place would hide that.
    for others in [
        &["pg_notify", "pg_twophase"][..],
        &["pg_notify", "pg_replslot"],
        &["pg_wal"],
    ] {
        assert_eq!(
            made(&gone(others, Some("15"), Some("15"), Ok(sound_control()))),
            None
        );
    }
    // Of another version, or of none that could be read.
    assert_eq!(made(&gone(&[], None, Some("14"), Ok(sound_control()))), None);
    assert_eq!(made(&gone(&[], None, None, Ok(sound_control()))), None);
    assert_eq!(
        made(&gone(
            &["pg_notify"],
            Some("15"),
            Some("15"),
            Err("garbled".into())
        )),
        None
    );
}

#[test]
fn a_configuration_that_was_mended_since_is_tried_by_a_start() {
    let last_words = "FATAL:  configuration file \"/d/postgresql.conf\" contains errors";
    let mended = |status, configuration: Option<Configuration>| {
        evidence(|facts, ev| {
            looping(facts, ev, LogPattern::Configuration, last_words);
            facts.info.status = status;
            ev.configuration = configuration;
        })
    };
    let remedy = |ev: &Evidence| DbDown::plan(ev, &runbook(), &request()).ok().map(|p| p.remedy);
    let sound = Some(Configuration::default());
    assert_eq!(
        remedy(&mended(Status::Exited, sound.clone())),
        Some(Remedy::Start)
    );
    // The engine is trying already, and it does not help; or nothing is known of it.
    assert_eq!(remedy(&mended(Status::Restarting, sound)), None);
    assert_eq!(remedy(&mended(Status::Exited, None)), None);
}

#[test]
fn rules_of_access_are_tried_again_only_when_they_were_changed() {
    let failed = |changed: Option<&str>| {
        let ev = evidence(|facts, ev| {
            looping(
                facts,
                ev,
                LogPattern::Configuration,
                "FATAL:  could not load /d/pg_hba.conf",
            );
            facts.info.status = Status::Exited;
            // `postgres -C` accepts it: it does not read the rules.
            ev.configuration = Some(Configuration {
                rules_changed: changed.map(|at| at.parse().unwrap()),
                ..Configuration::default()
            });
        });
        plan(&ev).map(|p| p.remedy)
    };
    // The last start was at 20:00:00.
    assert_eq!(failed(Some("2026-11-20T20:30:00Z")), Ok(Remedy::Start));
    for not_since in [None, Some("2026-11-20T19:00:00Z"), Some("2026-11-20T20:00:00Z")] {
        let refusal = failed(not_since).unwrap_err();
        assert!(refusal.message.contains("pg_hba.conf"), "{refusal:?}");
        assert!(refusal.next.iter().any(|n| n.starts_with("docker start")));
    }
}

#[test]
fn a_server_that_says_it_is_ready_is_not_waited_for() {
    let of = |says: &str, log: &[LogFinding]| {
        let ev = evidence(|facts, ev| {
            runs(facts);
            unreached(ev, says);
            ev.log.extend(log.iter().cloned());
        });
        diagnose(&ev)
    };
    let ready = said(
        LogPattern::Ready,
        "LOG:  database system is ready to accept connections",
    );
    // The log goes elsewhere, or the line has left it.
    for says in ["ready   ", "standby "] {
        let d = of(says, &[]);
        assert_eq!(d.look_alike.unwrap().name, "network-partition", "{says}");
    }
    // Without a word of the file the log decides.
    assert_eq!(
        of("", std::slice::from_ref(&ready)).look_alike.unwrap().name,
        "network-partition"
    );
    for d in [of("starting", &[ready]), of("", &[])] {
        assert!(d.summary.contains("replaying its log"), "{d:?}");
    }
}

#[test]
fn an_empty_directory_names_the_disk_and_a_first_start_may_fill_it() {
    let refusal = plan(&evidence(|_, ev| empty_directory(ev))).unwrap_err();
    for command in [
        "findmnt -T /var/lib/docker/volumes/simgen_pgdata/_data",
        "docker inspect",
        "docker volume ls",
    ] {
        assert!(refusal.next.iter().any(|n| n.contains(command)), "{refusal:?}");
    }
    let never_ran = evidence(|facts, ev| {
        empty_directory(ev);
        facts.info.started_at = None;
        facts.info.status = Status::Created;
        ev.log.clear();
        ev.files.as_mut().unwrap().configuration_error = None;
    });
    assert_eq!(plan(&never_ran).unwrap().remedy, Remedy::Start);
}

#[test]
fn a_tool_on_the_same_data_does_not_keep_the_server_down() {
    let ev = evidence(|_, ev| ev.sharing = vec!["log-shipper".into()]);
    assert_eq!(plan(&ev).unwrap().remedy, Remedy::Start);
}
