//! Old backup sets go by the runbook's rules, whatever kills the run in between; nothing else does.

use std::path::{Path, PathBuf};

use crate::stack::Stack;

/// A copy of a set under another label, and of another deployment if need be.
pub fn copy_set(set: &Path, label: &str, deployment: Option<(&str, &str)>) -> PathBuf {
    let copy = set.parent().unwrap().join(label);
    let mut command = std::process::Command::new("cp");
    command.arg("-a").arg(set).arg(&copy);
    crate::stack::run(&mut command, None, std::time::Duration::from_secs(60)).ok();
    let _ = std::fs::remove_file(copy.join("proof.json"));
    let file = copy.join("manifest.json");
    let own = set.file_name().unwrap().to_str().unwrap();
    let mut text = std::fs::read_to_string(&file).unwrap().replace(
        &format!("\"label\": \"{own}\""),
        &format!("\"label\": \"{label}\""),
    );
    if let Some((ours, theirs)) = deployment {
        text = text.replace(
            &format!("\"deployment\": \"{ours}\""),
            &format!("\"deployment\": \"{theirs}\""),
        );
    }
    std::fs::write(&file, text).unwrap();
    copy
}

/// Gives the runbook other rules.
pub fn keep(stack: &Stack, rules: &str) {
    let text = std::fs::read_to_string(stack.runbook()).unwrap();
    let mut lines: Vec<String> = text
        .lines()
        .filter(|l| !l.trim_start().starts_with("keep:"))
        .map(str::to_owned)
        .collect();
    let at = lines.iter().position(|l| l.starts_with("backup:")).unwrap();
    if !rules.is_empty() {
        lines.insert(at + 1, format!("  keep: {rules}"));
    }
    std::fs::write(stack.runbook(), lines.join("\n") + "\n").unwrap();
}

fn names(stack: &Stack) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(stack.dir.path().join("backups"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}

#[test]
fn old_backups_go_by_the_rules_and_nothing_else_does() {
    let Some(stack) = Stack::up("keep") else { return };
    keep(&stack, "");
    stack.drctl(&["backup"]).ok();
    let newest = names(&stack).pop().unwrap();
    let set = stack.dir.path().join("backups").join(&newest);
    for label in [
        "20250101T020000Z",
        "20250102T020000Z",
        "20250102T140000Z",
        "20250103T020000Z",
    ] {
        copy_set(&set, label, None);
    }
    copy_set(&set, "20240101T020000Z", Some((&stack.name, "another")));
    let before = names(&stack);
    let gone = |labels: &[&str]| {
        let mut left = before.clone();
        left.retain(|n| !labels.contains(&n.as_str()));
        left
    };

    // Without rules everything stays.
    let out = stack.agreed(&["backup", "prune"]);
    assert!(out.event("backup-prune")["remove"].as_array().unwrap().is_empty());
    out.ok();
    keep(&stack, "{ daily: 3 }");
    // Shown is not done, and nobody who could agree is a no.
    let shown = stack.drctl(&["backup", "prune", "--dry-run"]).ok();
    assert!(
        shown.contains("20250101T020000Z") && shown.contains("no rule wants it"),
        "{shown}"
    );
    assert_eq!(stack.drctl(&["backup", "prune"]).code, Some(4));
    assert_eq!(names(&stack), before);
    // A set whose files are gone is neither counted nor removed.
    std::fs::remove_file(set.parent().unwrap().join("20250103T020000Z/RESTORE.md")).unwrap();
    let out = stack.drctl(&["backup", "prune", "--dry-run", "--json"]);
    let kept = out.event("backup-prune")["keep"].to_string();
    assert!(kept.contains("not whole"), "{kept}");
    assert!(
        !out.event("backup-prune")["remove"]
            .to_string()
            .contains("20250101")
    );
    std::fs::copy(
        set.join("RESTORE.md"),
        set.parent().unwrap().join("20250103T020000Z/RESTORE.md"),
    )
    .unwrap();

    // While a backup or a recovery runs, nothing is removed.
    for lock in ["backup", "recover"] {
        let path = stack.state().join(format!("locks/{lock}-{}.lock", stack.name));
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .unwrap();
        file.lock().unwrap();
        assert_eq!(stack.agreed(&["backup", "prune"]).code, Some(6), "{lock}");
    }
    assert_eq!(names(&stack), before);

    // Killed when the removal has begun, and half-way: no restore takes what is left for a set, and the next run
    // finishes it.
    for place in ["begun", "half"] {
        let mut command = stack.command(&["backup", "prune", "--yes"]);
        command.env("DRCTL_CRASH_IN_PRUNE", place);
        let out = crate::stack::run(&mut command, None, std::time::Duration::from_secs(60));
        assert_eq!(out.code, None, "{}{}", out.stdout, out.stderr);
        let list = stack.drctl(&["backup", "list", "--json"]).ok();
        let pruned = list.matches("\"state\":\"pruned\"").count();
        assert_eq!(pruned, 1, "{list}");
        assert!(!names(&stack).is_empty());
        if place == "begun" {
            stack.agreed(&["backup", "prune"]).ok();
            assert_eq!(names(&stack), gone(&["20250101T020000Z", "20250102T020000Z"]));
            copy_set(&set, "20250102T020000Z", None);
        }
    }
    let out = stack.agreed(&["backup", "prune"]);
    assert!(
        out.event("backup-pruned")["bytes"]
            .as_u64()
            .is_some_and(|b| b > 0),
        "{}",
        out.stdout
    );
    out.ok();
    assert_eq!(names(&stack), gone(&["20250101T020000Z", "20250102T020000Z"]));

    // A new backup is verified, and only then old ones go. The oldest verified one that stays is the one before.
    keep(&stack, "{ last: 1 }");
    let out = stack.drctl(&["backup", "--json"]);
    let label = out.event("backup")["label"].as_str().unwrap().to_owned();
    assert_eq!(
        out.event("backup-pruned")["labels"].as_array().unwrap().len(),
        3,
        "{}",
        out.stdout
    );
    out.ok();
    assert_eq!(names(&stack), ["20240101T020000Z".to_owned(), label.clone()]);
    let proof =
        std::fs::read_to_string(stack.dir.path().join("backups").join(&label).join("proof.json")).unwrap();
    assert!(proof.contains("\"pass\""), "{proof}");
    stack.drctl(&["backup", "verify"]).ok();
}
