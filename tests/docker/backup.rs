//! Backups of a real stack: what they hold, what damages and interruptions leave, and that a person without drctl
//! gets everything back.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::mounted::Mounted;
use crate::silence::hanging_socket;
use crate::stack::{Stack, docker, run};

const ACCOUNTS: &str = "select count(*), sum(id) from accounts";
/// What drctl ends with when it is killed while a helper works.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn backups_hold_what_they_promise() {
    let Some(stack) = Stack::up("backup") else { return };
    // Enough that a backup takes a few seconds.
    stack
        .psql(
            "insert into accounts select m + n, 1, n, repeat(md5(n::text), 2) \
             from generate_series(1, 400000) n, (select coalesce(max(id), 0) m from accounts) s",
        )
        .unwrap();
    let part = |name: &str, what: &dyn Fn(&Stack)| {
        let began = Instant::now();
        what(&stack);
        eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
    };
    part("create, list, show, verify", &a_set_is_made_and_verified);
    part("damage is found", &damage_is_found);
    part("restore by hand", &a_person_restores_by_the_set_alone);
    part("kill -9", &killed_at_any_moment);
    part("two at once", &two_at_once);
    part("too small a disk", &too_small_a_disk);
    part("a disk that fills up", &a_disk_that_fills_up);
    part("shrunken", &what_shrank_is_not_believed);
    assert_eq!(stack.leftovers_after(PATIENCE), "");
}

fn backups(stack: &Stack) -> PathBuf {
    stack.dir.path().join("backups")
}

/// State by label, as `drctl backup list` tells it.
fn listed(stack: &Stack) -> BTreeMap<String, String> {
    let out = stack.drctl(&["backup", "list", "--json"]);
    let event = out.event("backups");
    let all = event["backups"].as_array().unwrap();
    all.iter()
        .map(|b| {
            let text = |key: &str| b[key].as_str().unwrap().to_owned();
            (text("label"), text("state"))
        })
        .collect()
}

/// Makes a set; gives its directory.
#[track_caller]
fn create(stack: &Stack, more: &[&str]) -> PathBuf {
    let mut args = vec!["backup", "--json"];
    args.extend(more);
    let out = stack.drctl(&args);
    assert_eq!(out.code, Some(0), "{}\n{}", out.stdout, out.stderr);
    PathBuf::from(out.event("backup")["path"].as_str().unwrap())
}

/// Every file of a tree with its length.
fn files(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            } else {
                found.insert(entry.path(), entry.metadata().unwrap().len());
            }
        }
    }
    found
}

/// The largest data file of a set's dump.
fn largest_data_file(set: &Path) -> PathBuf {
    files(&set.join("postgres/simgen"))
        .into_iter()
        .max_by_key(|(_, length)| *length)
        .unwrap()
        .0
}

fn a_set_is_made_and_verified(stack: &Stack) {
    let set = create(stack, &[]);
    let label = set.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(listed(stack)[&label], "good");
    for file in [
        "manifest.json",
        "RESTORE.md",
        "SHA256SUMS",
        "postgres/globals.sql",
        "postgres/base/PG_VERSION",
    ] {
        assert!(set.join(file).is_file(), "{file} is missing");
    }
    for file in files(&set.join("postgres/simgen")).keys() {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(
            name == "toc.dat" || name.ends_with(".dat.gz"),
            "{name} in the dump"
        );
    }
    let shown = stack.drctl(&["backup", "show", "--json"]);
    let manifest = &shown.event("backup-manifest")["manifest"];
    assert_eq!(manifest["label"], label.as_str());
    let rows = &manifest["postgres"]["postgres"]["logical"]["simgen"]["table-rows"];
    let counted = stack.psql("select count(*) from accounts").unwrap();
    assert_eq!(rows["public.accounts"].to_string(), counted);
    stack.drctl(&["backup", "verify"]).ok();
}

fn damage_is_found(stack: &Stack) {
    let set = create(stack, &["--logical-only"]);
    let file = largest_data_file(&set);
    let sound = fs::read(&file).unwrap();
    let mut flipped = sound.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    for (damage, content) in [("a flipped byte", &flipped[..]), ("a cut", &sound[..middle])] {
        fs::write(&file, content).unwrap();
        let out = stack.drctl(&["backup", "verify"]);
        assert_eq!(out.code, Some(11), "{damage}: {}\n{}", out.stdout, out.stderr);
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(
            (out.stdout + &out.stderr).contains(name),
            "{damage}: {name} is not named"
        );
        // Known to be damaged: no recovery and no check takes it for the last good one.
        let label = set.file_name().unwrap().to_str().unwrap();
        assert_eq!(listed(stack)[label], "failed");
        let latest = stack
            .drctl(&["backup", "show", "--json"])
            .event("backup-manifest");
        assert_ne!(latest["manifest"]["label"], label);
    }
    fs::write(&file, sound).unwrap();
    stack.drctl(&["backup", "verify"]).ok();
    assert_eq!(listed(stack)[set.file_name().unwrap().to_str().unwrap()], "good");
    fs::remove_dir_all(set).unwrap();
}

/// The blocks of a section of RESTORE.md, as they would be pasted.
fn commands(text: &str, heading: &str) -> String {
    let section = text.split("\n### ").find(|s| s.starts_with(heading)).unwrap();
    section
        .split("```sh\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .collect()
}

#[track_caller]
fn paste(set: &Path, script: &str) {
    let mut shell = Command::new("bash");
    shell
        .args(["-euo", "pipefail", "-c", script])
        .env("PGPASSWORD", "lab-owner")
        .current_dir(set);
    let out = run(&mut shell, None, Duration::from_secs(120));
    assert_eq!(out.code, Some(0), "{script}\n{}\n{}", out.stdout, out.stderr);
}

fn a_person_restores_by_the_set_alone(stack: &Stack) {
    let set = create(stack, &[]);
    let text = fs::read_to_string(set.join("RESTORE.md")).unwrap();
    let before = stack.psql(ACCOUNTS).unwrap();
    paste(&set, "sha256sum --check --quiet SHA256SUMS");

    stack.psql("delete from accounts where id % 3 = 0").unwrap();
    assert_ne!(stack.psql(ACCOUNTS).unwrap(), before);
    paste(&set, &commands(&text, "Database simgen"));
    stack.wait_healthy();
    assert_eq!(stack.psql(ACCOUNTS).unwrap(), before);
    stack.psql("drop database simgen_before_restore").unwrap();

    stack.psql("delete from accounts where id % 3 = 1").unwrap();
    paste(&set, &commands(&text, "The whole server"));
    stack.wait_healthy();
    assert_eq!(stack.psql(ACCOUNTS).unwrap(), before);
    assert_eq!(
        stack
            .psql("select count(*) from pg_database where datname ~ '_restore'")
            .unwrap(),
        "0"
    );
    let tidy = "rm -rf \"$PGDATA\"/.before-restore-*";
    docker(&["exec", &stack.container("postgres"), "sh", "-c", tidy]).ok();
}

/// Helpers that still run after `PATIENCE`. Between its creation and its start a helper has no lease yet, and the
/// engine knows no call that does both: one that was never started lies there, inert, until the next backup removes it.
fn still_at_work(stack: &Stack) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = stack.leftovers();
        let running: Vec<&str> = left.lines().filter(|l| !l.ends_with(" Created")).collect();
        if running.is_empty() || Instant::now() > end {
            return running.join("\n");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn killed_at_any_moment(stack: &Stack) {
    let good = |all: &BTreeMap<String, String>| all.values().filter(|s| *s == "good").count();
    for millis in [100, 500, 900, 1400, 2000, 3000] {
        let before = good(&listed(stack));
        let mut child = stack
            .command(&["backup"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(millis));
        let ended = child.try_wait().unwrap().is_some();
        let _ = child.kill();
        let _ = child.wait();
        assert_eq!(still_at_work(stack), "", "killed after {millis} ms");
        let after = listed(stack);
        assert_eq!(
            good(&after),
            before + usize::from(ended),
            "killed after {millis} ms: {after:?}"
        );
    }
    let never_started = killed_before_a_start(stack);
    let set = create(stack, &[]);
    let left = stack.leftovers_after(PATIENCE);
    assert_eq!(left, "", "of these: {never_started}");
    let after = listed(stack);
    assert!(after.values().all(|s| s == "good"), "{after:?}");
    assert!(set.is_dir());
}

/// Killed between the creation of a helper and its start, surely: the engine never answers the start. Gives the
/// helper that lies there.
fn killed_before_a_start(stack: &Stack) -> String {
    let socket = stack.dir.path().join("no-start.sock");
    hanging_socket(&socket, |_, request| {
        let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        line.contains("/containers/") && line.contains("/start")
    });
    let mut child = stack
        .command(&["backup"])
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while !stack.leftovers().contains(" Created") && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = child.kill();
    let _ = child.wait();
    let left = stack.leftovers();
    assert!(left.contains(" Created"), "no helper was created: {left:?}");
    left
}

fn two_at_once(stack: &Stack) {
    let mut first = stack
        .command(&["backup"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while !listed(stack).values().any(|s| s == "partial") && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = stack.drctl(&["backup"]);
    assert_eq!(second.code, Some(6), "{}", second.stderr);
    assert!(
        second.stderr.contains(&first.id().to_string()),
        "{}",
        second.stderr
    );
    assert!(
        second.stderr.contains("dump of") || second.stderr.contains("base backup of"),
        "it does not say how far: {}",
        second.stderr
    );
    assert_eq!(first.wait().unwrap().code(), Some(0));
}

/// A small file system of its own under the stack's directory, which the runbook names for backups.
struct SmallDisk<'a> {
    stack: &'a Stack,
    path: PathBuf,
    _mounted: Mounted,
}

impl<'a> SmallDisk<'a> {
    /// `None`, and said, where mounting is not allowed.
    fn mount(stack: &'a Stack, mib: u32) -> Option<Self> {
        let path = stack.dir.path().join(format!("disk-{mib}"));
        let mounted = Mounted::at(path.clone(), &format!("{mib}m"))?;
        let text = fs::read_to_string(stack.runbook()).unwrap();
        let usual = format!("directory: {}\n", backups(stack).display());
        assert!(text.contains(&usual));
        fs::write(
            stack.runbook(),
            text.replace(&usual, &format!("directory: {}\n", path.display())),
        )
        .unwrap();
        Some(Self {
            stack,
            path,
            _mounted: mounted,
        })
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        self.stack.write_runbook("lab");
    }
}

fn too_small_a_disk(stack: &Stack) {
    let Some(disk) = SmallDisk::mount(stack, 8) else {
        return;
    };
    let out = stack.drctl(&["backup"]);
    assert_eq!(out.code, Some(4), "{}", out.stderr);
    assert!(
        out.stderr.contains("8.00 MiB free, and the backup needs about"),
        "{}",
        out.stderr
    );
    assert_eq!(fs::read_dir(&disk.path).unwrap().count(), 0);
}

fn a_disk_that_fills_up(stack: &Stack) {
    let Some(disk) = SmallDisk::mount(stack, 400) else {
        return;
    };
    create(stack, &["--logical-only"]);
    let filler = disk.path.join("filler");
    // What is left is enough when the run begins.
    fill(&filler, 370 << 20);
    let before = files(&disk.path);
    let mut command = stack.command(&["backup", "--logical-only"]);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    let begun = || {
        let mut names = fs::read_dir(&disk.path).unwrap().flatten().map(|e| e.file_name());
        names.any(|n| n.to_string_lossy().ends_with(".partial"))
    };
    while !begun() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    let more = disk.path.join("more");
    fill(&more, 1 << 30);
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(8), "{said}");
    assert!(said.contains("filled up"), "{said}");
    fs::remove_file(more).unwrap();
    assert_eq!(files(&disk.path), before);
    assert_eq!(stack.leftovers_after(PATIENCE), "");
}

/// Writes a file of that size, or as much of it as there is room for.
fn fill(path: &Path, bytes: u64) {
    let mut file = fs::File::create(path).unwrap();
    let block = vec![1; 1 << 20];
    for _ in 0..bytes >> 20 {
        if file.write_all(&block).is_err() {
            break;
        }
    }
}

fn what_shrank_is_not_believed(stack: &Stack) {
    create(stack, &["--logical-only"]);
    let latest = stack
        .drctl(&["backup", "show", "--json"])
        .event("backup-manifest");
    stack
        .psql("delete from order_lines where ctid not in (select ctid from order_lines limit 10)")
        .unwrap();
    let out = stack.drctl(&["backup", "--logical-only"]);
    assert_eq!(out.code, Some(11), "{}", out.stderr);
    assert!(
        out.stderr.contains("public.order_lines has 10 rows"),
        "{}",
        out.stderr
    );
    let after = listed(stack);
    assert_eq!(after.values().filter(|s| *s == "suspect").count(), 1, "{after:?}");
    let now = stack
        .drctl(&["backup", "show", "--json"])
        .event("backup-manifest");
    assert_eq!(now["path"], latest["path"], "a suspect set became the latest");
    create(stack, &["--logical-only", "--accept-shrink"]);
}
