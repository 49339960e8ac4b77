//! Killed after any record of an undo, the old state is reached all the same, by `resume` and by one more `undo`.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::crash::{Ends, Table, asked_for, close, damaged, expect_ok, kinds, newest, recover_args};
use crate::stack::{Stack, run};

/// Recovers wholly; gives the incident and how many records its journal has.
fn recovered(stack: &Stack, remedy: &str) -> Result<(String, usize), String> {
    expect_ok("recover", &stack.agreed(&recover_args(remedy)))?;
    let (id, directory) = newest(stack);
    let records = kinds(&directory).len();
    Ok((id, records))
}

/// Steps that have something to take back.
fn effects(directory: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(directory.join("plan.json")).unwrap();
    let plan: Value = serde_json::from_str(&text).unwrap();
    let steps = plan["steps"].as_array().unwrap();
    let with_action = |(_, step): &(u64, &Value)| !step["undo"]["action"].is_null();
    (1..).zip(steps).filter(with_action).map(|(n, _)| n).collect()
}

/// Which of the undo's records to crash after, from 1: all of them, or those before an effect and the last.
fn chosen(records: &[String], effects: &[u64], full: bool) -> Vec<usize> {
    let before_effect = |kind: &str| effects.iter().any(|n| kind == format!("undo-started {n}"));
    (1..=records.len())
        .filter(|k| {
            let kind = records[k - 1].as_str();
            full || before_effect(kind) || kind == "undone"
        })
        .collect()
}

/// One undo that is killed after its record `k`, and what is done then. Gives the verb and the end.
fn crashed(
    stack: &Stack,
    (ends, settings): (&Ends, &str),
    remedy: &str,
    (k, kind): (usize, &str),
    again: &'static str,
) -> Result<(&'static str, &'static str), String> {
    let (id, records) = recovered(stack, remedy)?;
    let seen = ends.of(stack, settings)?;
    if seen != "new" {
        return Err(format!("recovered, it is {seen}"));
    }
    let mut command = stack.command(&[
        "incident",
        "undo",
        &id,
        "--yes",
        "--confirm",
        &stack.name,
        "--json",
    ]);
    command.env("DRCTL_CRASH_AFTER_RECORD", (records + k).to_string());
    let out = run(&mut command, None, Duration::from_secs(120));
    if let Some(code) = out.code {
        return Err(format!(
            "not killed, exit code {code}: {}{}",
            out.stdout, out.stderr
        ));
    }
    let left = stack.running_leftovers(Duration::from_secs(5));
    if !left.is_empty() {
        return Err(format!("five seconds after the kill these are left: {left}"));
    }
    let (_, directory) = newest(stack);
    let now = kinds(&directory);
    if now.len() != records + k || now.last().map(String::as_str) != Some(kind) {
        return Err(format!("the journal ends with {:?}", now.last()));
    }
    // Only agreed to, it is not begun: going on with the incident would prove the recovery. Once all is taken back
    // there is nothing to go on with.
    let then = if now.iter().any(|r| r == "undone") {
        "close"
    } else if now.iter().any(|r| r == "undo-decided") {
        again
    } else {
        "undo"
    };
    if then != "close" {
        let out = stack.agreed(&["incident", then, &id]);
        expect_ok(then, &out)?;
        let outcome = &out.event("report")["report"]["outcome"];
        if outcome != "undone" {
            return Err(format!("{then} ended as {outcome}"));
        }
    }
    let end = ends.of(stack, settings)?;
    if end != "old" {
        return Err(format!("after {then} it is {end}"));
    }
    close(stack, &id)?;
    Ok((then, end))
}

fn sweep(stack: &Stack, remedy: &str, ends: &Ends, settings: &str) -> Result<Vec<String>, String> {
    let full = std::env::var("DRCTL_FULL_SWEEP").as_deref() == Ok("1");
    // A run to the end tells which records there are.
    let (id, before) = recovered(stack, remedy)?;
    expect_ok("undo", &stack.agreed(&["incident", "undo", &id]))?;
    let (_, directory) = newest(stack);
    let records = kinds(&directory).split_off(before);
    let chosen = chosen(&records, &effects(&directory), full);
    close(stack, &id)?;
    if chosen.len() < 3 {
        return Err(format!("{} records to crash after: {records:?}", chosen.len()));
    }
    let mut table = Table::new(&format!("undo of {remedy}"), records.len(), chosen.len());
    let mut failures = Vec::new();
    for (i, &k) in chosen.iter().enumerate() {
        let began = Instant::now();
        let kind = records[k - 1].as_str();
        let again = if i % 2 == 0 { "resume" } else { "undo" };
        match crashed(stack, (ends, settings), remedy, (k, kind), again) {
            Ok((then, end)) => table.row(k, kind, then, end, began.elapsed()),
            Err(why) => {
                let why = format!("FAILED: {why}").replace('\n', " ");
                table.row(k, kind, again, &why, began.elapsed());
                failures.push(format!("undo of {remedy} {k}"));
                // The next one needs the damage back, and no incident half-way.
                let (id, _) = newest(stack);
                stack.agreed(&["incident", "undo", &id]);
                stack.agreed(&["incident", "close", &id]);
            }
        }
    }
    table.write();
    Ok(failures)
}

#[test]
fn a_crash_during_an_undo_reaches_the_old_state() {
    let Some(stack) = Stack::up("crash-undo") else {
        return;
    };
    let (ends, settings) = damaged(&stack);
    let mut failures = Vec::new();
    for remedy in ["restore-database", "restore-cluster"] {
        if !asked_for(remedy) {
            continue;
        }
        match sweep(&stack, remedy, &ends, &settings) {
            Ok(failed) => failures.extend(failed),
            Err(why) => failures.push(format!("{remedy}: {why}")),
        }
    }
    assert_eq!(failures, [""; 0]);
    stack.drctl(&["drill", "heal", "--all", "--forget"]).ok();
}
