//! Who is told of what, and when: a state machine for each thing that is checked. Pure: findings and the time go in,
//! changes come out.
//!
//! Somebody is told when a thing has been wrong for so many runs in a row, when it becomes worse than what was told, when
//! it is well again, and, if the runbook wants it, at intervals while it stays wrong. A maintenance window holds all of
//! that back and forgets nothing: what is still wrong at its end is told then.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::finding::{Finding, Level};

/// What is not looked at any more is forgotten after this time: it has left the runbook.
const FORGET: Duration = Duration::from_hours(48);

/// What is remembered of one thing that is, or was, wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Track {
    /// How it was last.
    pub level: Level,
    /// What was said of it last.
    pub text: String,
    /// Since when it is wrong.
    pub since: Timestamp,
    /// When it was last looked at.
    pub seen: Timestamp,
    /// Runs in a row that have found it wrong.
    pub runs: u32,
    /// What somebody was told, if anybody was.
    pub told: Option<Told>,
}

/// What somebody was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Told {
    /// How bad it was.
    pub level: Level,
    /// When.
    pub at: Timestamp,
}

/// How patient to be.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Runs in a row before anybody is told.
    pub runs: u32,
    /// Between two reminders.
    pub reminder: Option<Duration>,
    /// Nobody is to be told now.
    pub silent: bool,
}

/// What somebody is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is wrong, or worse than what was told.
    Wrong,
    /// It is still wrong.
    Still,
    /// It is well again, after so long.
    Well(Duration),
}

/// One thing to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    /// What happened.
    pub change: Change,
    /// What is said of it now.
    pub finding: Finding,
}

/// Takes the findings of a run to what is remembered, and gives what is to be told. What this run did not look at stays
/// as it is.
pub fn step(
    tracks: &mut BTreeMap<String, Track>,
    findings: &[Finding],
    policy: &Policy,
    now: Timestamp,
) -> Vec<News> {
    let mut news = Vec::new();
    for finding in findings {
        let change = if finding.level == Level::Ok {
            well(tracks, finding, policy, now)
        } else {
            wrong(tracks, finding, policy, now)
        };
        news.extend(change.map(|change| News {
            change,
            finding: finding.clone(),
        }));
    }
    tracks.retain(|_, track| elapsed(track.seen, now) < FORGET);
    news
}

fn well(
    tracks: &mut BTreeMap<String, Track>,
    finding: &Finding,
    policy: &Policy,
    now: Timestamp,
) -> Option<Change> {
    let track = tracks.get_mut(&finding.key)?;
    if track.told.is_some() && policy.silent {
        // Told when the window is over.
        track.level = Level::Ok;
        track.seen = now;
        track.runs = 0;
        return None;
    }
    let track = tracks.remove(&finding.key)?;
    track.told.map(|_| Change::Well(elapsed(track.since, now)))
}

fn wrong(
    tracks: &mut BTreeMap<String, Track>,
    finding: &Finding,
    policy: &Policy,
    now: Timestamp,
) -> Option<Change> {
    let track = tracks.entry(finding.key.clone()).or_insert_with(|| Track {
        level: Level::Ok,
        text: String::new(),
        since: now,
        seen: now,
        runs: 0,
        told: None,
    });
    if track.level == Level::Ok && track.told.is_none() {
        track.since = now;
    }
    track.level = finding.level;
    track.text = finding.text.clone();
    track.seen = now;
    track.runs = track.runs.saturating_add(1);
    if policy.silent || track.runs < policy.runs {
        return None;
    }
    let change = match &track.told {
        None => Change::Wrong,
        Some(told) if finding.level.rank() > told.level.rank() => Change::Wrong,
        Some(told) if policy.reminder.is_some_and(|r| elapsed(told.at, now) >= r) => Change::Still,
        Some(_) => return None,
    };
    // Better than what was told is not told, and worse again is no news then: no message for each swing.
    let level = track
        .told
        .as_ref()
        .map_or(finding.level, |t| t.level.or(finding.level));
    track.told = Some(Told { level, at: now });
    Some(change)
}

/// Zero where the clock was set back.
fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const O: Level = Level::Ok;
    const U: Level = Level::Unknown;
    const W: Level = Level::Warning;
    const C: Level = Level::Critical;

    /// Runs five minutes apart; what is told in each: `!` wrong, `~` still, `+` well, `.` nothing.
    fn run(levels: &[Level], runs: u32, reminder: Option<u64>, silent: &[usize]) -> String {
        let mut tracks = BTreeMap::new();
        levels
            .iter()
            .enumerate()
            .map(|(i, level)| {
                let now = Timestamp::from_second(i64::try_from(i).unwrap() * 300).unwrap();
                let policy = Policy {
                    runs,
                    reminder: reminder.map(|m| Duration::from_secs(m * 60)),
                    silent: silent.contains(&i),
                };
                let news = step(&mut tracks, &[Finding::new("x", *level, "text")], &policy, now);
                match news.as_slice() {
                    [] => '.',
                    [one] => match one.change {
                        Change::Wrong => '!',
                        Change::Still => '~',
                        Change::Well(_) => '+',
                    },
                    _ => '?',
                }
            })
            .collect()
    }

    #[test]
    fn changes_and_recoveries_only() {
        for (levels, runs, reminder, silent, told) in [
            (&[O, C, O][..], 1, None, &[][..], ".!+"),
            (&[C, C, C, O, O], 1, None, &[], "!..+."),
            // Worse is news, better is not, and worse again after better is not either.
            (&[W, C, W, C, O], 1, None, &[], "!!..+"),
            (&[U, W, C, U, O], 1, None, &[], "!!!.+"),
            // Patience.
            (&[C, O, C, C, O, C, C, C], 2, None, &[], "...!+.!."),
            (&[W, C, C, O], 3, None, &[], "..!+"),
            (&[C, C, O], 3, None, &[], "..."),
            // Every ten minutes.
            (&[C, C, C, C, C, O], 1, Some(10), &[], "!.~.~+"),
            // Maintenance: told afterwards if it is still wrong, forgotten if not.
            (&[C, C, C, O], 1, None, &[0, 1], "..!+"),
            (&[C, C, O, O], 1, None, &[0, 1], "...."),
            // Began before, ended within: the recovery is told afterwards.
            (&[C, O, O, O], 1, None, &[1, 2], "!..+"),
            (&[C, O, C, O], 1, None, &[1], "!..+"),
            (&[C, C, C], 2, None, &[0, 1], "..!"),
        ] {
            assert_eq!(
                run(levels, runs, reminder, silent),
                told,
                "{levels:?} {runs} {silent:?}"
            );
        }
    }

    #[test]
    fn what_was_not_looked_at_stays_and_is_forgotten_in_the_end() {
        let policy = Policy {
            runs: 1,
            reminder: None,
            silent: false,
        };
        let mut tracks = BTreeMap::new();
        let at = |h: i64| Timestamp::from_second(h * 3600).unwrap();
        let of = |key: &str, level| Finding::new(key, level, "");
        assert_eq!(
            step(&mut tracks, &[of("a", C), of("b", C)], &policy, at(0)).len(),
            2
        );
        // Neither a recovery nor a second message.
        assert!(step(&mut tracks, &[of("a", C)], &policy, at(1)).is_empty());
        assert!(step(&mut tracks, &[of("a", C), of("b", C)], &policy, at(2)).is_empty());
        step(&mut tracks, &[of("a", C)], &policy, at(50));
        assert_eq!(tracks.keys().collect::<Vec<_>>(), ["a"]);
        let news = step(&mut tracks, &[of("a", O)], &policy, at(51));
        assert_eq!(news[0].change, Change::Well(Duration::from_hours(51)));
        assert!(tracks.is_empty());
    }

    proptest! {
        /// Whatever happens, tellings alternate: nobody hears of a recovery without a fault, or of a fault twice at the
        /// same level.
        #[test]
        fn a_recovery_follows_a_fault(levels in proptest::collection::vec(0_u8..4, 0..40), runs in 1_u32..4, silent in proptest::collection::vec(0_usize..40, 0..10)) {
            let levels: Vec<Level> = levels.iter().map(|l| [O, U, W, C][usize::from(*l)]).collect();
            let told = run(&levels, runs, None, &silent);
            let mut open = false;
            for c in told.chars() {
                match c {
                    '!' => open = true,
                    '+' => {
                        prop_assert!(open, "{told}");
                        open = false;
                    }
                    '.' => {}
                    other => prop_assert!(false, "{other} in {told}"),
                }
            }
            // Well for longer than anything holds back: nothing is open any more.
            let mut levels = levels;
            levels.extend([O; 41]);
            let told = run(&levels, runs, None, &silent);
            prop_assert!(told.rfind('!').is_none_or(|f| told.rfind('+').is_some_and(|r| r > f)), "{told}");
        }
    }
}
