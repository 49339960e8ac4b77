//! Telling somebody how a run ended, with the one memory that the runs of a deployment share: `check` each time, and
//! `backup` when one fails and when the next is good.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Context;
use crate::check::memory::{self, Opened};
use crate::check::{Level, Memory, Message, backup_run, windows};
use crate::error::Error;
use crate::event::Event;
use crate::incident::StateDir;
use crate::notify::{self, Told};
use crate::runbook::{Notify, Runbook};

/// How often a memory is tried that a `check` is at.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a `check` looks at most, beyond the deadline for telling.
const LOOKS: Duration = Duration::from_secs(20);

/// The ways that take messages: pings do not, they belong to the runs of `check`.
fn ways(runbook: &Runbook) -> impl Iterator<Item = &Notify> {
    runbook
        .notify
        .iter()
        .filter(|way| !matches!(way, Notify::Ping(_)))
}

/// Puts a message to what waits for every way that takes one.
pub(super) fn enqueue(memory: &mut Memory, runbook: &Runbook, told: Option<&Message>) {
    let ways: Vec<String> = ways(runbook).map(notify::identity).collect();
    notify::hand_over(&mut memory.pending, &ways);
    if let Some(message) = told {
        for way in ways {
            notify::enqueue(memory.pending.entry(way).or_default(), message);
        }
    }
}

/// Takes out of the memory what has arrived; what has not waits for the next run, which is noted.
pub(super) fn arrived(memory: &mut Memory, told: Vec<Told>, notes: &mut Vec<String>) {
    for one in told {
        if let Some(why) = &one.failed {
            notes.push(format!(
                "nobody could be told by {}: {why}; the next run tries again",
                one.name
            ));
        }
        if let Some(waiting) = memory.pending.get_mut(&one.way) {
            waiting.drain(..one.delivered.min(waiting.len()));
        }
    }
}

/// Whether the next run finds it, as far as it is ours to see to that.
pub(super) fn save(opened: &mut Opened, memory: &Memory) -> bool {
    let Some(store) = &opened.store else { return true };
    let (is_kept, note) = match store.save(memory) {
        Ok(note) => (true, note),
        Err(why) => (false, Some(why)),
    };
    if let Some(note) = note.filter(|n| !opened.notes.contains(n)) {
        opened.notes.push(note);
    }
    is_kept
}

/// Tells somebody that a backup failed, or that one is good again. Whatever comes of that changes nothing else.
pub(super) async fn of_backup(cx: &Context, runbook: &Runbook, failed: Option<&Error>) {
    let Some(run) = backup_run::finding(failed) else {
        return;
    };
    let ways: Vec<Notify> = ways(runbook).cloned().collect();
    if ways.is_empty() {
        return;
    }
    let deployment = runbook.deployment.as_str();
    let mut opened = open(&cx.state, deployment, runbook.alerts.deadline + LOOKS).await;
    let mut memory = opened.memory.take().unwrap_or_default();
    let remembers = opened.store.is_some();
    if !remembers {
        // What waits in there is told by the run that holds it.
        memory.pending.clear();
    }
    let now = Timestamp::now();
    let next = failed
        .and_then(|e| e.next.first())
        .map_or("drctl backup", String::as_str);
    let mut message = backup_run::step(&mut memory, deployment, &run, runbook.alerts.reminder, next, now);
    if !remembers && failed.is_none() {
        // It would be told after each good one.
        message = None;
    }
    enqueue(&mut memory, runbook, message.as_ref());
    // Before anybody is told: killed in between, the next run tells it (again), and nothing is lost.
    save(&mut opened, &memory);
    // In a window it waits for the first run after it; what nobody remembers cannot wait.
    if !remembers || windows::until(&runbook.alerts.maintenance, now).is_none() {
        let told = notify::tell(
            &ways,
            &memory.pending,
            deployment,
            Level::Ok,
            "",
            runbook.alerts.deadline,
        )
        .await;
        arrived(&mut memory, told, &mut opened.notes);
        save(&mut opened, &memory);
    }
    for text in opened.notes {
        cx.reporter.event(&Event::Warning { text });
    }
}

/// The memory, when a `check` that is at it has ended, or as it is after `patience`.
async fn open(state: &StateDir, deployment: &str, patience: Duration) -> Opened {
    let until = Instant::now() + patience;
    loop {
        let mut opened = memory::open(state, deployment);
        if !opened.busy {
            return opened;
        }
        if Instant::now() >= until {
            // They say what a check does then.
            opened.notes.clear();
            return opened;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
