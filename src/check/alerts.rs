//! Who is told of what, and when: a state machine for each thing that is checked. Pure: findings and the time go in,
//! changes come out.
//!
//! Somebody is told when a thing has been wrong for so many runs in a row, when it becomes worse than what was told, when
//! it is well again, and, if the runbook wants it, at intervals while it stays wrong. A maintenance window holds all of
//! that back and forgets nothing: what is still wrong at its end is told then. So is an event, which only one run can see
//! (a service was restarted): it waits for no other run, and is kept until it was told.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::backup_run;
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
    /// An event of which nobody was told yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untold: Option<Untold>,
}

/// An event of which nobody was told yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Untold {
    /// How bad it is.
    pub level: Level,
    /// What was said of it.
    pub text: String,
    /// When it was found.
    pub at: Timestamp,
}

impl Untold {
    /// As it is told, and how the thing is now.
    fn told_with(self, now: &Finding, level: Level) -> News {
        let text = if self.text == now.text {
            self.text
        } else {
            let at = self.at.strftime("%H:%M UTC");
            format!("{} (at {at}); now: {}", self.text, now.text)
        };
        News {
            change: Change::Wrong,
            finding: Finding {
                level,
                text,
                ..now.clone()
            },
        }
    }
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
        news.extend(if finding.level == Level::Ok {
            well(tracks, finding, policy, now)
        } else {
            wrong(tracks, finding, policy, now)
        });
    }
    // Backups may be a week apart.
    tracks.retain(|key, track| key == backup_run::KEY || elapsed(track.seen, now) < FORGET);
    news
}

fn well(
    tracks: &mut BTreeMap<String, Track>,
    finding: &Finding,
    policy: &Policy,
    now: Timestamp,
) -> Option<News> {
    let track = tracks.get_mut(&finding.key)?;
    if track.untold.is_some() || (track.told.is_some() && policy.silent) {
        // Told when the window is over.
        track.level = Level::Ok;
        track.seen = now;
        track.runs = 0;
        if policy.silent {
            return None;
        }
    }
    // The run after this one tells that it is well again.
    if let Some(event) = track.untold.take() {
        let level = event.level;
        track.told = Some(Told { level, at: now });
        return Some(event.told_with(finding, level));
    }
    let track = tracks.remove(&finding.key)?;
    let change = track.told.map(|_| Change::Well(elapsed(track.since, now)))?;
    Some(News {
        change,
        finding: finding.clone(),
    })
}

fn wrong(
    tracks: &mut BTreeMap<String, Track>,
    finding: &Finding,
    policy: &Policy,
    now: Timestamp,
) -> Option<News> {
    let track = tracks.entry(finding.key.clone()).or_insert_with(|| Track {
        level: Level::Ok,
        text: String::new(),
        since: now,
        seen: now,
        runs: 0,
        told: None,
        untold: None,
    });
    if track.level == Level::Ok && track.told.is_none() && track.untold.is_none() {
        track.since = now;
    }
    // Of a thing that is known to be as bad, nothing more is told.
    let known = track.told.as_ref().map(|t| t.level.rank());
    if let Some(level) = finding.event
        && known.is_none_or(|k| k < level.rank())
        && track
            .untold
            .as_ref()
            .is_none_or(|u| u.level.rank() <= level.rank())
    {
        track.untold = Some(Untold {
            level,
            text: finding.text.clone(),
            at: now,
        });
    }
    track.level = finding.level;
    track.text = finding.text.clone();
    track.seen = now;
    track.runs = track.runs.saturating_add(1);
    if policy.silent {
        return None;
    }
    let is_certain = track.runs >= policy.runs;
    if let Some(event) = track.untold.take() {
        let level = if is_certain {
            event.level.or(finding.level)
        } else {
            event.level
        };
        track.told = Some(Told { level, at: now });
        return Some(event.told_with(finding, level));
    }
    if !is_certain {
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
    Some(News {
        change,
        finding: finding.clone(),
    })
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

    /// In the run of index 0 `x` is OK, in run 1 something happened, and from run 2 on nothing is seen of it.
    fn after_an_event(later: Level, silent: &[usize]) -> (String, BTreeMap<String, Track>) {
        let mut tracks = BTreeMap::new();
        let told = (0..6)
            .map(|i| {
                let policy = Policy {
                    runs: 3,
                    reminder: None,
                    silent: silent.contains(&i),
                };
                let finding = match i {
                    0 => Finding::new("x", O, "fine"),
                    1 => Finding {
                        event: Some(C),
                        ..Finding::new("x", C, "it broke")
                    },
                    _ => Finding::new("x", later, "as ever"),
                };
                let now = Timestamp::from_second(i64::try_from(i).unwrap() * 300).unwrap();
                match step(&mut tracks, &[finding], &policy, now).as_slice() {
                    [] => '.',
                    [one] if one.change == Change::Wrong => {
                        assert_eq!(one.finding.level, C);
                        assert!(one.finding.text.starts_with("it broke"), "{one:?}");
                        '!'
                    }
                    _ => '+',
                }
            })
            .collect();
        (told, tracks)
    }

    #[test]
    fn an_event_waits_for_no_other_run_and_for_the_end_of_a_window() {
        for (later, silent, told) in [
            (O, &[][..], ".!+..."),
            (O, &[1], "..!+.."),
            (O, &[1, 2, 3], "....!+"),
            // It is told as it was, and what is less is no news.
            (W, &[], ".!...."),
            (W, &[1, 2], "...!.."),
        ] {
            assert_eq!(after_an_event(later, silent).0, told, "{later:?} {silent:?}");
        }
        let (_, tracks) = after_an_event(O, &[1, 2, 3, 4, 5]);
        let text = serde_json::to_string(&tracks).unwrap();
        assert_eq!(
            serde_json::from_str::<BTreeMap<String, Track>>(&text).unwrap(),
            tracks
        );
        assert_eq!(tracks["x"].untold.as_ref().unwrap().text, "it broke");
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
