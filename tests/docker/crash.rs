//! Killed after any record of its journal, a recovery ends wholly old or wholly new, never mixed; and so does the
//! undo of one. What was tried and how it ended stands in `target/crash-table.md` too.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::stack::{Output, Stack};

/// All of the table, index aside. What the write check of each proof adds is left out.
const READ: &str = "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; \
                    select count(*), sum(amount), sum(hashtext(orders::text)) from orders where note is distinct from 'drctl check'";
/// What a fence or a swap changes of the database.
const SETTINGS: &str = "select d.oid, datallowconn, datconnlimit, datacl, s.setrole, s.setconfig from pg_database d \
                        left join pg_db_role_setting s on s.setdatabase = d.oid where datname = 'simgen' order by 5";

/// One line per crash, to standard output as it comes, and in the end a section of `target/crash-table.md`.
pub struct Table {
    title: String,
    lines: Vec<String>,
}

impl Table {
    pub fn new(title: &str, records: usize, points: usize) -> Self {
        let table = Self {
            title: title.to_owned(),
            lines: vec![
                format!("killed after {points} of {records} records (all with DRCTL_FULL_SWEEP=1)"),
                String::new(),
                "| record | kind               | then   | end | seconds |".to_owned(),
                "|-------:|--------------------|--------|-----|--------:|".to_owned(),
            ],
        };
        say(&format!("\n{title}: {}", table.lines.join("\n")));
        table
    }

    pub fn row(&mut self, n: usize, kind: &str, then: &str, end: &str, took: Duration) {
        let line = format!(
            "| {n:>6} | {kind:<18} | {then:<6} | {end} | {:>7.1} |",
            took.as_secs_f64()
        );
        say(&line);
        self.lines.push(line);
    }

    /// Takes the place of the section of the same title, and leaves the others.
    pub fn write(&self) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/crash-table.md");
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        let heading = format!("{}\n", self.title);
        let mut sections: Vec<String> = before
            .split("\n## ")
            .skip(1)
            .filter(|section| !section.starts_with(&heading))
            .map(|section| section.trim_end().to_owned())
            .collect();
        sections.push(format!("{heading}\n{}", self.lines.join("\n")));
        sections.sort();
        let text = format!("# Killed, and then\n\n## {}\n", sections.join("\n\n## "));
        std::fs::write(&path, text).unwrap();
        say(&format!("in {}", path.display()));
    }
}

/// To standard output past the harness, which keeps what a passing test prints.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The two ends that are allowed.
pub struct Ends {
    old: String,
    new: String,
}

/// How the database is now: its rows or why they cannot be read, and what belongs to its name.
fn state(stack: &Stack) -> String {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let rows = stack.psql(READ);
        // Just started, or just about to be.
        let not_yet = rows
            .as_ref()
            .is_err_and(|e| e.contains("57P03") || e.contains("could not connect") || e.contains("refused"));
        if !not_yet || Instant::now() > end {
            return rows.unwrap_or_else(|e| {
                let said = e.lines().find_map(|l| l.split_once("ERROR:"));
                said.map_or(&*e, |(_, words)| words).trim().to_owned()
            });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Ends {
    /// Which end this is; what it is instead, if it is none.
    pub fn of(&self, stack: &Stack, settings: &str) -> Result<&'static str, String> {
        let now = state(stack);
        let set = stack.psql(SETTINGS).unwrap_or_else(|e| e);
        // The oid is another one for a restored database, and everything else must be as before.
        let rest = |s: &str| {
            s.lines()
                .map(|l| l.split_once('|').map_or("", |(_, r)| r).to_owned())
                .collect::<Vec<_>>()
        };
        if rest(&set) != rest(settings) {
            return Err(format!(
                "the database's settings were {settings:?} and are {set:?}"
            ));
        }
        if now == self.old && set == settings {
            Ok("old")
        } else if now == self.new {
            Ok("new")
        } else {
            Err(format!("neither {:?} nor {:?} but {now:?}", self.old, self.new))
        }
    }
}

/// The newest incident: its identity and its directory. Two of one second are told apart by their number only.
pub fn newest(stack: &Stack) -> (String, PathBuf) {
    let number = |directory: &PathBuf| {
        let journal = std::fs::read_to_string(directory.join("journal.jsonl")).unwrap_or_default();
        let opened: Value =
            serde_json::from_str(journal.lines().next().unwrap_or_default()).unwrap_or_default();
        opened["record"]["opened"]["number"].as_u64()
    };
    let directory = std::fs::read_dir(stack.state().join("incidents"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .max_by_key(number)
        .unwrap();
    let id = directory.file_name().unwrap().to_string_lossy().into_owned();
    (id, directory)
}

/// What the records of a journal say, one word each.
pub fn kinds(directory: &std::path::Path) -> Vec<String> {
    std::fs::read_to_string(directory.join("journal.jsonl"))
        .unwrap()
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .map(|e| {
            let (kind, said) = e["record"].as_object().unwrap().iter().next().unwrap();
            said["step"]
                .as_u64()
                .map_or_else(|| kind.clone(), |n| format!("{kind} {n}"))
        })
        .collect()
}

pub fn recover_args(remedy: &str) -> Vec<&str> {
    vec!["recover", "db-corruption", "--remedy", remedy]
}

/// One run that is killed after record `n`. `None` when it came to its end instead.
fn crashed(stack: &Stack, remedy: &str, n: usize) -> Result<Option<(String, String)>, String> {
    let mut args = recover_args(remedy);
    args.extend(["--yes", "--confirm", &stack.name, "--json"]);
    let mut command = stack.command(&args);
    command.env("DRCTL_CRASH_AFTER_RECORD", n.to_string());
    let out = crate::stack::run(&mut command, None, Duration::from_secs(120));
    match out.code {
        Some(0) => return Ok(None),
        None => {}
        Some(code) => return Err(format!("exit code {code}: {}{}", out.stdout, out.stderr)),
    }
    let left = stack.running_leftovers(Duration::from_secs(5));
    if !left.is_empty() {
        return Err(format!("five seconds after the kill these are left: {left}"));
    }
    let (id, directory) = newest(stack);
    let kinds = kinds(&directory);
    if kinds.len() != n {
        return Err(format!("the journal has {} records", kinds.len()));
    }
    Ok(Some((id, kinds[n - 1].clone())))
}

pub fn expect_ok(what: &str, out: &Output) -> Result<(), String> {
    if out.code == Some(0) {
        return Ok(());
    }
    Err(format!("{what}: {:?} {}{}", out.code, out.stdout, out.stderr))
}

/// Finishes a run that was cut off, in one of the two ways, and goes back to the damage.
fn finish(
    stack: &Stack,
    ends: &Ends,
    settings: &str,
    id: &str,
    resume: bool,
) -> Result<&'static str, String> {
    let expected = if resume { "new" } else { "old" };
    let first = if resume { "resume" } else { "undo" };
    let out = stack.agreed(&["incident", first, id]);
    expect_ok(first, &out)?;
    let outcome = &out.event("report")["report"]["outcome"];
    if *outcome != if resume { "verified" } else { "undone" } {
        return Err(format!("{first} ended as {outcome}"));
    }
    let seen = ends.of(stack, settings)?;
    if seen != expected {
        return Err(format!("after {first} it is {seen}"));
    }
    if resume {
        expect_ok("undo", &stack.agreed(&["incident", "undo", id]))?;
        let back = ends.of(stack, settings)?;
        if back != "old" {
            return Err(format!("taken back, it is {back}"));
        }
    }
    close(stack, id)?;
    Ok(seen)
}

/// Closes an incident, after which nothing of it may be left.
pub fn close(stack: &Stack, id: &str) -> Result<(), String> {
    expect_ok("close", &stack.agreed(&["incident", "close", id]))?;
    let databases = stack.psql("select datname from pg_database where datname ~ 'drctl'")?;
    let mut files = stack.set_aside();
    files = files.lines().filter(|l| !l.starts_with("fault-")).collect();
    let left = stack.leftovers_after(Duration::from_secs(5));
    if databases.is_empty() && files.is_empty() && left.is_empty() {
        return Ok(());
    }
    Err(format!("closed, and left: {databases:?} {files:?} {left:?}"))
}

/// Which records to crash after: every one, or those that stand right before an effect, the last of a kind, and the
/// ends.
fn chosen(kinds: &[String], full: bool) -> Vec<usize> {
    let first_checked = kinds.iter().position(|k| k == "checked").map(|i| i + 1);
    (1..=kinds.len())
        .filter(|n| {
            let kind = kinds[n - 1].as_str();
            let first_check = first_checked == Some(*n);
            let last_step = kind.starts_with("step-finished")
                && kinds
                    .get(*n)
                    .is_some_and(|next| !next.starts_with("step-started"));
            full || *n == 1
                || kind.starts_with("step-started")
                || last_step
                || first_check
                || kind == "verified"
        })
        .collect()
}

/// Crashes after each chosen record. Even ones are resumed and odd ones undone; in the short sweep, where most
/// numbers are even, it alternates.
fn sweep(stack: &Stack, remedy: &str, ends: &Ends, settings: &str) -> Vec<String> {
    let full = std::env::var("DRCTL_FULL_SWEEP").as_deref() == Ok("1");
    let mut failures = Vec::new();
    // A run to the end tells which records there are.
    let whole = stack.agreed(&recover_args(remedy));
    if let Err(why) = expect_ok("recover", &whole) {
        return vec![format!("{remedy}: {why}")];
    }
    let (id, directory) = newest(stack);
    let kinds = kinds(&directory);
    if let Err(why) = expect_ok("undo", &stack.agreed(&["incident", "undo", &id]))
        .and_then(|()| expect_ok("close", &stack.agreed(&["incident", "close", &id])))
    {
        return vec![format!("{remedy}: {why}")];
    }
    let chosen = chosen(&kinds, full);
    let mut table = Table::new(remedy, kinds.len(), chosen.len());
    for (i, &n) in chosen.iter().enumerate() {
        let began = Instant::now();
        let resume = if full { n % 2 == 0 } else { i % 2 == 1 };
        let then = if resume { "resume" } else { "undo" };
        let seen = match crashed(stack, remedy, n) {
            Ok(Some((id, kind))) => finish(stack, ends, settings, &id, resume).map(|end| (kind, end)),
            Ok(None) => Err("it was not killed".into()),
            Err(why) => Err(why),
        };
        match seen {
            Ok((kind, end)) => table.row(n, &kind, then, end, began.elapsed()),
            Err(why) => {
                let why = format!("FAILED: {why}").replace('\n', " ");
                table.row(n, &kinds[n - 1], then, &why, began.elapsed());
                failures.push(format!("{remedy} {n}"));
                // The next one needs the damage back, and no incident half-way.
                let (id, _) = newest(stack);
                stack.agreed(&["incident", "undo", &id]);
                stack.agreed(&["incident", "close", &id]);
            }
        }
    }
    table.write();
    failures
}

/// Killed at some moment of a step that takes its time, and resumed.
fn killed_inside(stack: &Stack, remedy: &str, millis: u64) -> Result<String, String> {
    let mut args = recover_args(remedy);
    args.extend(["--yes", "--confirm", &stack.name, "--json"]);
    let mut child = stack
        .command(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (send, lines) = std::sync::mpsc::channel();
    let out = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let _ = send.send(line);
        }
    });
    let end = Instant::now() + Duration::from_secs(60);
    let step = loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains("\"step-started\"") => break line,
            Ok(_) => {}
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no step began: {e}"));
            }
        }
    };
    std::thread::sleep(Duration::from_millis(millis));
    let still = child.try_wait().unwrap().is_none();
    let _ = child.kill();
    let _ = child.wait();
    let left = stack.running_leftovers(Duration::from_secs(5));
    if !still || !left.is_empty() {
        return Err(format!(
            "running when killed: {still}; five seconds later: {left:?}"
        ));
    }
    let step: Value = serde_json::from_str(&step).unwrap_or_default();
    Ok(step["title"].as_str().unwrap_or_default().to_owned())
}

/// A backup, then a damaged page: the two ends, and what belongs to the database's name.
pub fn damaged(stack: &Stack) -> (Ends, String) {
    stack.drctl(&["backup"]).ok();
    let (new, settings) = (state(stack), stack.psql(SETTINGS).unwrap());
    stack.drctl(&["drill", "inject", "db-corruption/heap-page"]).ok();
    let ends = Ends {
        old: state(stack),
        new,
    };
    assert!(ends.old.contains("invalid page"), "{}", ends.old);
    (ends, settings)
}

/// Whether `DRCTL_TEST_ONLY` leaves it in.
pub fn asked_for(remedy: &str) -> bool {
    let only = std::env::var("DRCTL_TEST_ONLY").unwrap_or_default();
    only.is_empty() || only == remedy
}

#[test]
fn a_crash_after_any_record_leaves_old_or_new() {
    let Some(stack) = Stack::up("crash") else { return };
    let began = Instant::now();
    let (ends, settings) = damaged(&stack);
    let mut failures = Vec::new();
    for (remedy, moments) in [("restore-database", [250, 900]), ("restore-cluster", [120, 500])] {
        if !asked_for(remedy) {
            continue;
        }
        failures.extend(sweep(&stack, remedy, &ends, &settings));
        for millis in moments {
            let seen = killed_inside(&stack, remedy, millis).and_then(|title| {
                let (id, _) = newest(&stack);
                finish(&stack, &ends, &settings, &id, true).map(|end| format!("{title}: {end}"))
            });
            match seen {
                Ok(seen) => eprintln!("killed {millis} ms into {seen}"),
                Err(why) => {
                    eprintln!("killed {millis} ms into a step of {remedy}: FAILED {why}");
                    failures.push(format!("{remedy} at {millis} ms"));
                    let (id, _) = newest(&stack);
                    stack.agreed(&["incident", "undo", &id]);
                    stack.agreed(&["incident", "close", &id]);
                }
            }
        }
    }
    eprintln!("the sweep took {:.0} s", began.elapsed().as_secs_f64());
    assert_eq!(failures, [""; 0]);
    stack.drctl(&["drill", "heal", "--all", "--forget"]).ok();
}
