//! Who hears of a backup that fails. The engine is one that does not answer.

use std::fs;
use std::path::Path;

use super::help::drctl;

fn runbook(home: &Path, more: &str) -> String {
    let path = home.join("drctl.yaml");
    fs::write(
        &path,
        format!(
            "version: 1\ndeployment: shop\nenvironment: lab\nplatform: {{ docker: {{}} }}\n\
             objectives: {{ rto: 2h, rpo: 24h }}\nservices: {{ web: {{ kind: app }} }}\n\
             backup: {{ directory: {0}/backups }}\n\
             notify:\n  - command: {{ argv: [/bin/sh, -c, 'echo \"$DRCTL_KIND $DRCTL_STATUS $DRCTL_SUBJECT\" >> {0}/told; cat >> {0}/told'] }}\n{more}",
            home.display()
        ),
    )
    .unwrap();
    path.display().to_string()
}

fn told(home: &Path) -> String {
    fs::read_to_string(home.join("told")).unwrap_or_default()
}

#[test]
fn a_failed_backup_is_told_once_and_a_dry_run_is_not() {
    let home = tempfile::tempdir().unwrap();
    let runbook = runbook(home.path(), "");
    let out = drctl(home.path(), &["-r", &runbook, "backup", "--dry-run"]);
    assert_eq!(out.status.code(), Some(7));
    assert_eq!(told(home.path()), "");
    for _ in 0..2 {
        let out = drctl(home.path(), &["-r", &runbook, "backup"]);
        assert_eq!(
            out.status.code(),
            Some(7),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    let said = told(home.path());
    assert!(
        said.starts_with("alert CRITICAL [shop] CRITICAL: backup run\n"),
        "{said}"
    );
    assert!(
        said.contains("CRITICAL backup run: ") && said.contains("Next: "),
        "{said}"
    );
    assert_eq!(said.matches("alert").count(), 1, "{said}");
}

/// In a window it is kept, and a way that fails changes neither that nor the exit code.
#[test]
fn what_cannot_be_told_now_waits_for_the_next_run() {
    let home = tempfile::tempdir().unwrap();
    let always = "alerts: { maintenance: [{ daily: { at: '00:00', for: 12h } }, { daily: { at: '12:00', for: 12h } }] }\n";
    let in_window = runbook(home.path(), always);
    let out = drctl(home.path(), &["-r", &in_window, "backup"]);
    assert_eq!(out.status.code(), Some(7));
    assert_eq!(told(home.path()), "");

    // The way fails: nothing can be written where its output goes.
    fs::create_dir(home.path().join("told")).unwrap();
    let path = runbook(home.path(), "");
    let out = drctl(home.path(), &["-r", &path, "backup"]);
    assert_eq!(out.status.code(), Some(7));
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(stderr.contains("nobody could be told by command"), "{stderr}");

    // And the next one has it, here a check.
    fs::remove_dir(home.path().join("told")).unwrap();
    drctl(home.path(), &["-r", &path, "check"]);
    let said = told(home.path());
    assert!(said.contains("CRITICAL backup run: "), "{said}");
}
