//! The committed runbooks and hostile files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drctl::runbook::{ProblemKind, load};

fn runbooks() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("runbooks")
}

/// Every committed runbook loads, names the schema for editors, and is valid by the committed schema as any other
/// validator reads it.
#[test]
fn the_committed_runbooks_are_valid() {
    let schema = fs::read_to_string(runbooks().join("schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&serde_json::from_str(&schema).unwrap()).unwrap();
    let mut count = 0;
    for entry in fs::read_dir(runbooks()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        count += 1;
        load(&path).unwrap_or_else(|invalid| panic!("{invalid}"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("# yaml-language-server: $schema=schema.json\n"),
            "{}",
            path.display()
        );
        let value: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(&value)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
    }
    assert!(count > 0);
}

#[test]
fn the_simgen_runbook_says_what_the_guide_says() {
    let runbook = load(&runbooks().join("simgen.yaml")).unwrap();
    assert_eq!(runbook.deployment.as_str(), "simgen");
    assert_eq!(runbook.objectives.rto, Duration::from_hours(2));
    assert_eq!(runbook.objectives.rpo, Duration::from_hours(24));
    assert_eq!(
        runbook.objectives.availability.map(drctl::runbook::Percent::get),
        Some(99.5)
    );
    let names: Vec<&str> = runbook
        .services
        .keys()
        .map(drctl::runbook::ServiceName::as_str)
        .collect();
    assert_eq!(
        names,
        ["api1", "api2", "cv_service", "nginx", "postgres", "redis"]
    );
    let (_, _, postgres) = runbook.postgres_services().next().unwrap();
    let tables: Vec<String> = postgres.databases["simgen"]
        .tables
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        tables,
        ["customers", "order_lines", "orders", "simulations", "sketches"]
    );
    let thresholds = &runbook.thresholds;
    assert_eq!(thresholds.response_time_p95, Some(Duration::from_millis(500)));
    assert_eq!(thresholds.sessions, Some(1000));
}

#[test]
fn the_trading_runbook_says_what_the_guide_says() {
    let runbook = load(&runbooks().join("trading.yaml")).unwrap();
    assert_eq!(runbook.docker().compose_project.as_str(), "deploy");
    assert_eq!(runbook.objectives.rto, Duration::from_mins(30));
    assert_eq!(runbook.objectives.rpo, Duration::from_hours(24));
    let percent = drctl::runbook::Percent::get;
    assert_eq!(runbook.objectives.availability.map(percent), Some(99.9));
    assert_eq!(runbook.thresholds.disk.map(percent), Some(90.0));
    let names: Vec<&str> = runbook
        .services
        .keys()
        .map(drctl::runbook::ServiceName::as_str)
        .collect();
    assert_eq!(names, ["api", "db", "redis"]);
    assert_eq!(
        runbook.endpoints["healthz"].url.as_str(),
        "http://127.0.0.1:8085/healthz"
    );
    let (_, _, postgres) = runbook.postgres_services().next().unwrap();
    assert_eq!(postgres.admin_user.as_str(), "postgres");
    assert_eq!(postgres.databases["trading"].validation.len(), 2);
}

fn refused_quickly(path: &Path) -> drctl::runbook::Problem {
    let start = Instant::now();
    let invalid = load(path).expect_err("the file should be refused");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "it took {:?}",
        start.elapsed()
    );
    assert_eq!(invalid.problems.len(), 1, "{invalid}");
    invalid.problems[0].clone()
}

#[test]
fn a_huge_file_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("huge.yaml");
    // Sparse: it is the size that counts.
    File::create(&path).unwrap().set_len(100 * 1024 * 1024).unwrap();
    let problem = refused_quickly(&path);
    assert_eq!(problem.kind, ProblemKind::TooLarge);
    assert!(
        problem.message.starts_with("the file has 104857600 bytes"),
        "{problem}"
    );
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    for (path, message) in [
        (fifo.as_path(), "the runbook is not a regular file"),
        (directory.path(), "the runbook is a directory"),
        (Path::new("/dev/zero"), "the runbook is not a regular file"),
        (
            Path::new("/nonexistent/drctl.yaml"),
            "cannot read the runbook: No such file or directory (os error 2)",
        ),
    ] {
        let problem = refused_quickly(path);
        assert_eq!(
            (problem.kind, problem.message.as_str()),
            (ProblemKind::Unreadable, message)
        );
    }
}

#[test]
fn bytes_that_are_not_utf8_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("latin1.yaml");
    fs::write(&path, b"version: 1\ndeployment: caf\xe9\n").unwrap();
    let problem = refused_quickly(&path);
    assert_eq!(
        (problem.kind, problem.line, problem.column),
        (ProblemKind::NotUtf8, Some(2), Some(16))
    );
    assert_eq!(problem.message, "the file is not UTF-8: byte 0xe9 at offset 26");
}
