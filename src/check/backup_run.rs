//! How the last `drctl backup` ended, in the memory that `check` has: somebody is told when one fails, once, and when
//! the next good one is made.

use std::slice;
use std::time::Duration;

use jiff::Timestamp;

use super::alerts::{self, Policy};
use super::finding::{Finding, Level};
use super::memory::{Memory, Message};
use super::message;
use crate::error::{Error, Kind};

/// The key under which it is remembered. `check` finds nothing of this name: how old the last good set is, it sees for
/// itself.
pub const KEY: &str = "backup-run";

/// What a run says; `None` where its end says nothing of backups: another one is at work, or a person ended it.
#[must_use]
pub fn finding(failed: Option<&Error>) -> Option<Finding> {
    let Some(e) = failed else {
        return Some(Finding::new(KEY, Level::Ok, "a new set is complete"));
    };
    let level = match e.kind {
        Kind::Locked | Kind::Usage | Kind::Declined | Kind::Interrupted | Kind::Terminated => return None,
        Kind::CouldNotVerify => Level::Warning,
        _ => Level::Critical,
    };
    let text = std::iter::once(&e.message)
        .chain(&e.causes)
        .map(String::as_str)
        .collect::<Vec<_>>();
    Some(Finding::new(KEY, level, text.join("; ")))
}

/// Takes a run into the memory, and gives what is to be told. Patience and windows are for what is looked at every few
/// minutes: a run is one of a night, and often the very reason for a window.
pub fn step(
    memory: &mut Memory,
    deployment: &str,
    run: &Finding,
    reminder: Option<Duration>,
    next: &str,
    now: Timestamp,
) -> Option<Message> {
    let policy = Policy {
        runs: 1,
        reminder,
        silent: false,
    };
    let news = alerts::step(&mut memory.tracks, slice::from_ref(run), &policy, now);
    memory.at = now;
    message::compose(deployment, run.level, slice::from_ref(run), &news, next, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_for_a_failure_and_one_for_the_next_good_set() {
        let mut memory = Memory::default();
        let failed = Error::new(Kind::Refused, "the disk is full");
        let unsure = Error::new(Kind::CouldNotVerify, "it could not be read");
        let busy = Error::new(Kind::Locked, "another one runs");
        let mut told = Vec::new();
        // Once a week: longer than `check` remembers what it does not find any more.
        for (week, end) in [
            None,
            Some(&unsure),
            Some(&failed),
            Some(&failed),
            Some(&busy),
            None,
            None,
        ]
        .into_iter()
        .enumerate()
        {
            let now = Timestamp::from_second(i64::try_from(week).unwrap() * 7 * 86_400).unwrap();
            let Some(run) = finding(end) else {
                told.push("nothing is known".to_owned());
                continue;
            };
            let message = step(&mut memory, "shop", &run, None, "drctl backup", now);
            told.push(message.map_or_else(String::new, |m| format!("{}: {}", m.subject, m.body)));
            // The runs of `check` in between.
            let policy = Policy {
                runs: 1,
                reminder: None,
                silent: false,
            };
            let later = now.checked_add(jiff::SignedDuration::from_hours(24 * 6)).unwrap();
            alerts::step(&mut memory.tracks, &[], &policy, later);
        }
        assert_eq!(
            told,
            [
                "",
                "[shop] WARNING: backup run: WARNING backup run: it could not be read\n\nNext: drctl backup",
                "[shop] CRITICAL: backup run: CRITICAL backup run: the disk is full\n\nNext: drctl backup",
                "",
                "nothing is known",
                "[shop] OK: backup run well again: well again after 672 h 0 min: backup run: a new set is complete",
                "",
            ]
        );
    }

    #[test]
    fn a_reminder_comes_with_the_next_run_that_fails() {
        let mut memory = Memory::default();
        let failed = finding(Some(&Error::new(Kind::Unreachable, "no answer"))).unwrap();
        let kinds: Vec<Option<String>> = (0..3)
            .map(|day| {
                let now = Timestamp::from_second(day * 86_400).unwrap();
                let reminder = Some(Duration::from_hours(24));
                step(&mut memory, "shop", &failed, reminder, "drctl backup", now).map(|m| m.kind)
            })
            .collect();
        assert_eq!(
            kinds,
            [
                Some("alert".to_owned()),
                Some("reminder".to_owned()),
                Some("reminder".to_owned())
            ]
        );
    }
}
