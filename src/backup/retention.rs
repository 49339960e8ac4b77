//! Which backup sets are kept. Pure: the sets, the runbook's rules and what must not go come
//! in, a decision about each comes out.
//!
//! The rules are restic's of the same names (`restic forget --keep-last`, `--keep-hourly` to `--keep-yearly`; those by
//! tag and by duration have no counterpart): a set stays when any rule wants it;
//! `daily: 7` wants the newest set of each of the last seven days that have one, and while a
//! rule has room left the oldest set is wanted too, so that a yearly one can come into being.
//! Times are those of the labels, in UTC.
//!
//! Beyond the rules nothing takes away the newest set, the newest verified one that holds a
//! dump, the newest verified one that holds a copy of the server, or one that a recovery is
//! half-way with. A set that is not whole is neither counted nor removed: a person decides.

use std::fmt;

use super::Label;
use crate::runbook::Keep;

/// What is known of a set before it is decided about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name, which is its time.
    pub label: Label,
    /// Bytes on the disk.
    pub bytes: u64,
    /// It holds dumps.
    pub dump: bool,
    /// It holds copies of servers.
    pub base: bool,
    /// It was verified, and that held.
    pub verified: bool,
    /// What is wrong with it: files are missing, or its last verification failed.
    pub unsound: Option<String>,
    /// The recovery that is half-way with it.
    pub used_by: Option<String>,
}

/// Why a set stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// A rule wants it: its name, which of how many.
    Rule(&'static str, u32, u32),
    /// There is none newer.
    Newest,
    /// There is none newer that was verified and holds this.
    Verified(&'static str),
    /// A recovery is half-way with it.
    Used(String),
    /// It is not whole: not counted, and left to a person.
    Unsound(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule, number, of) => write!(f, "{rule} {number} of {of}"),
            Self::Newest => f.write_str("the newest"),
            Self::Verified(part) => write!(f, "the last verified {part}"),
            Self::Used(incident) => write!(f, "incident {incident} needs it"),
            Self::Unsound(why) => write!(f, "not whole, look at it: {why}"),
        }
    }
}

/// What becomes of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The set.
    pub label: Label,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Why it stays; empty: it goes.
    pub why: Vec<Why>,
}

impl Decision {
    /// It is removed.
    #[must_use]
    pub fn goes(&self) -> bool {
        self.why.is_empty()
    }

    /// Why it stays, in words.
    #[must_use]
    pub fn reasons(&self) -> String {
        self.why
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// One rule at work: the period of the set it kept last, and how many it still wants.
struct Rule {
    name: &'static str,
    wants: u32,
    left: u32,
    last: Option<String>,
    period: fn(&Label) -> String,
}

fn date(label: &Label) -> Option<jiff::civil::Date> {
    label.at().map(|at| at.to_zoned(jiff::tz::TimeZone::UTC).date())
}

fn rules(keep: &Keep) -> Vec<Rule> {
    let rule = |name, wants, period| Rule {
        name,
        wants,
        left: wants,
        last: None,
        period,
    };
    let week = |label: &Label| {
        date(label).map_or_else(String::new, |d| {
            let week = d.iso_week_date();
            format!("{}-{}", week.year(), week.week())
        })
    };
    vec![
        rule("last", keep.last, ToString::to_string as fn(&Label) -> String),
        rule("hourly", keep.hourly, |l| {
            l.at()
                .map_or_else(String::new, |at| at.strftime("%Y-%m-%dT%H").to_string())
        }),
        rule("daily", keep.daily, |l| {
            date(l).map_or_else(String::new, |d| d.to_string())
        }),
        rule("weekly", keep.weekly, week),
        rule("monthly", keep.monthly, |l| {
            date(l).map_or_else(String::new, |d| format!("{}-{}", d.year(), d.month()))
        }),
        rule("yearly", keep.yearly, |l| {
            date(l).map_or_else(String::new, |d| d.year().to_string())
        }),
    ]
}

/// Decides about every set; newest first.
#[must_use]
pub fn decide(sets: &[Candidate], keep: &Keep) -> Vec<Decision> {
    let mut sets: Vec<&Candidate> = sets.iter().collect();
    sets.sort_by(|a, b| b.label.cmp(&a.label));
    let sound = |c: &&Candidate| c.unsound.is_none();
    let newest = sets.first().map(|c| &c.label);
    let newest_sound = sets.iter().copied().find(sound).map(|c| &c.label);
    let oldest_sound = sets.iter().copied().rfind(sound).map(|c| &c.label);
    let verified = |holds: fn(&Candidate) -> bool| {
        sets.iter()
            .find(|c| c.verified && c.unsound.is_none() && holds(c))
            .map(|c| &c.label)
    };
    let (dump, base) = (verified(|c| c.dump), verified(|c| c.base));
    let mut rules = rules(keep);
    sets.iter()
        .map(|set| {
            let mut why = Vec::new();
            if let Some(what) = &set.unsound {
                why.push(Why::Unsound(what.clone()));
            } else {
                for rule in rules.iter_mut().filter(|r| r.left > 0) {
                    let period = (rule.period)(&set.label);
                    if rule.last.as_ref() != Some(&period) || oldest_sound == Some(&set.label) {
                        rule.last = Some(period);
                        rule.left -= 1;
                        why.push(Why::Rule(rule.name, rule.wants - rule.left, rule.wants));
                    }
                }
            }
            if newest == Some(&set.label) || newest_sound == Some(&set.label) {
                why.push(Why::Newest);
            }
            if dump == Some(&set.label) {
                why.push(Why::Verified("dump"));
            }
            if base == Some(&set.label) {
                why.push(Why::Verified("copy of the server"));
            }
            if let Some(incident) = &set.used_by {
                why.push(Why::Used(incident.clone()));
            }
            Decision {
                label: set.label.clone(),
                bytes: set.bytes,
                why,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(label: &str) -> Candidate {
        Candidate {
            label: label.parse().unwrap(),
            bytes: 1,
            dump: true,
            base: true,
            verified: true,
            unsound: None,
            used_by: None,
        }
    }

    fn kept(sets: &[Candidate], keep: Keep) -> Vec<String> {
        decide(sets, &keep)
            .into_iter()
            .filter(|d| !d.goes())
            .map(|d| d.label.to_string())
            .collect()
    }

    const NONE: Keep = Keep {
        last: 0,
        hourly: 0,
        daily: 0,
        weekly: 0,
        monthly: 0,
        yearly: 0,
    };

    #[test]
    fn each_rule_keeps_what_it_says() {
        // Two a day, over the turn of a year; 2027-01-03 is a Sunday, 2027-01-04 a Monday.
        let labels = [
            "20261130T020000Z",
            "20261230T020000Z",
            "20261231T020000Z",
            "20261231T140000Z",
            "20270103T020000Z",
            "20270104T020000Z",
            "20270104T140000Z",
            "20270105T020000Z",
        ];
        let sets: Vec<Candidate> = labels.iter().map(|l| set(l)).collect();
        let table: [(Keep, &[&str]); 8] = [
            (
                Keep { last: 3, ..NONE },
                &["20270105T020000Z", "20270104T140000Z", "20270104T020000Z"],
            ),
            (
                Keep { hourly: 2, ..NONE },
                &["20270105T020000Z", "20270104T140000Z"],
            ),
            (
                Keep { daily: 3, ..NONE },
                &["20270105T020000Z", "20270104T140000Z", "20270103T020000Z"],
            ),
            (
                Keep { weekly: 2, ..NONE },
                &["20270105T020000Z", "20270103T020000Z"],
            ),
            (
                Keep { monthly: 2, ..NONE },
                &["20270105T020000Z", "20261231T140000Z"],
            ),
            // There is room left for a third month and a third year: the oldest stays.
            (
                Keep { monthly: 9, ..NONE },
                &["20270105T020000Z", "20261231T140000Z", "20261130T020000Z"],
            ),
            (
                Keep { yearly: 3, ..NONE },
                &["20270105T020000Z", "20261231T140000Z", "20261130T020000Z"],
            ),
            (NONE, &["20270105T020000Z"]),
        ];
        for (keep, expected) in table {
            assert_eq!(kept(&sets, keep), expected, "{keep:?}");
        }
    }

    #[test]
    fn an_hour_ends_where_the_next_begins() {
        let labels = [
            "20270104T130000Z",
            "20270104T135959Z",
            "20270104T140000Z",
            "20270104T145959Z",
            "20270104T145959Z-2",
            "20270105T140000Z",
        ];
        let sets: Vec<Candidate> = labels.iter().map(|l| set(l)).collect();
        let hourly = Keep { hourly: 3, ..NONE };
        assert_eq!(
            kept(&sets, hourly),
            ["20270105T140000Z", "20270104T145959Z-2", "20270104T135959Z"]
        );
    }

    #[test]
    fn what_a_restore_may_need_is_never_taken() {
        let mut old = set("20261101T020000Z");
        old.base = true;
        let mut dumps: Vec<Candidate> = (10..20).map(|d| set(&format!("202611{d}T020000Z"))).collect();
        for d in &mut dumps {
            d.base = false;
            d.verified = false;
        }
        dumps.push(old);
        // Ten newer sets hold no copy of the server and were not verified.
        let decided = decide(&dumps, &Keep { last: 2, ..NONE });
        let last = decided.last().unwrap();
        assert_eq!(
            last.reasons(),
            "the last verified dump, the last verified copy of the server"
        );
        assert_eq!(decided.iter().filter(|d| !d.goes()).count(), 3);
        // A hollow newest set does not stand for a good one, and stays for a person to see.
        let mut hollow = set("20261130T020000Z");
        hollow.unsound = Some("files are missing".into());
        let mut sets = vec![hollow, set("20261129T020000Z"), set("20261128T020000Z")];
        sets[2].used_by = Some("i".into());
        let decided = decide(&sets, &Keep { last: 1, ..NONE });
        assert!(decided.iter().all(|d| !d.goes()), "{decided:?}");
        assert_eq!(decided[2].reasons(), "incident i needs it");
    }

    prop_compose! {
        fn candidate()(day in 0_i64..900, hour in 0_i64..24, bits in any::<[bool; 5]>()) -> Candidate {
            let start: jiff::Timestamp = "2024-12-01T00:00:00Z".parse().unwrap();
            let at = start.checked_add(jiff::SignedDuration::from_hours(day * 24 + hour)).unwrap();
            Candidate {
                label: Label::new(at, 1),
                bytes: 1,
                dump: bits[0],
                base: bits[1],
                verified: bits[2],
                unsound: (bits[3] && bits[4]).then(|| "x".to_owned()),
                used_by: None,
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_the_rules_are(
            sets in prop::collection::vec(candidate(), 0..40),
            counts in any::<[u8; 6]>(),
        ) {
            let mut sets = sets;
            sets.sort_by(|a, b| a.label.cmp(&b.label));
            sets.dedup_by(|a, b| a.label == b.label);
            let [last, hourly, daily, weekly, monthly, yearly] = counts.map(|n| u32::from(n % 9));
            let keep = Keep { last, hourly, daily, weekly, monthly, yearly };
            let decided = decide(&sets, &keep);
            prop_assert_eq!(decided.len(), sets.len());
            let goes = |c: &Candidate| decided.iter().any(|d| d.label == c.label && d.goes());
            // The newest, the newest sound, the newest verified of each kind, and the unsound stay.
            prop_assert!(sets.last().is_none_or(|c| !goes(c)));
            let newest = |f: &dyn Fn(&&Candidate) -> bool| sets.iter().rfind(|c| c.unsound.is_none() && f(c));
            prop_assert!(newest(&|_| true).is_none_or(|c| !goes(c)));
            prop_assert!(newest(&|c| c.verified && c.dump).is_none_or(|c| !goes(c)));
            prop_assert!(newest(&|c| c.verified && c.base).is_none_or(|c| !goes(c)));
            prop_assert!(sets.iter().filter(|c| c.unsound.is_some()).all(|c| !goes(c)));
            // At least so many sound ones as `last` wants, and no more than all rules together.
            let sound = sets.iter().filter(|c| c.unsound.is_none()).count();
            let kept = sets.iter().filter(|c| c.unsound.is_none() && !goes(c)).count();
            prop_assert!(kept >= sound.min(last as usize));
            prop_assert!(kept <= (last + hourly + daily + weekly + monthly + yearly) as usize + 3);
            // Deciding again about what is left removes nothing.
            let left: Vec<Candidate> = sets.iter().filter(|c| !goes(c)).cloned().collect();
            prop_assert!(decide(&left, &keep).iter().all(|d| !d.goes()));
        }
    }
}
