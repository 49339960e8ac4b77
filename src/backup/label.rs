//! The name of a backup set.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A set's name: the UTC second of its start, `20261120T020000Z`, with `-2`, `-3` … when
/// that is taken. Sorts by time, and is safe as a file name: nothing else parses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Label {
    stamp: String,
    number: u32,
}

/// Text that is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the label of a backup: labels look like 20261120T020000Z")]
pub struct NotALabel(String);

impl Label {
    /// The `number`-th label (from 1) of a second.
    #[must_use]
    pub fn new(at: Timestamp, number: u32) -> Self {
        Self {
            stamp: at.strftime("%Y%m%dT%H%M%SZ").to_string(),
            number: number.max(1),
        }
    }

    /// The second that the label names.
    #[must_use]
    pub fn at(&self) -> Option<Timestamp> {
        parse_stamp(&self.stamp)
    }
}

fn parse_stamp(stamp: &str) -> Option<Timestamp> {
    jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", stamp)
        .ok()?
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()
        .map(|z| z.timestamp())
}

impl PartialOrd for Label {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Label {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.stamp, self.number).cmp(&(&other.stamp, other.number))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.number > 1 {
            write!(f, "{}-{}", self.stamp, self.number)
        } else {
            f.write_str(&self.stamp)
        }
    }
}

impl FromStr for Label {
    type Err = NotALabel;

    fn from_str(text: &str) -> Result<Self, NotALabel> {
        let bad = || NotALabel(text.to_owned());
        let (stamp, number) = match text.split_once('-') {
            None => (text, 1),
            Some((stamp, number)) => {
                let parsed: u32 = number.parse().map_err(|_| bad())?;
                // One spelling for each label: no `-1`, `-02`, `-+2`.
                if parsed < 2 || parsed.to_string() != number {
                    return Err(bad());
                }
                (stamp, parsed)
            }
        };
        if stamp.len() != 16 || parse_stamp(stamp).is_none() {
            return Err(bad());
        }
        Ok(Self {
            stamp: stamp.to_owned(),
            number,
        })
    }
}

impl Serialize for Label {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labels_parse() {
        for good in ["20261120T020000Z", "20261120T020000Z-2", "20261120T020000Z-10"] {
            assert_eq!(good.parse::<Label>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "latest",
            "..",
            "../20261120T020000Z",
            "20261120T020000Z/..",
            "20261120T020000Z-1",
            "20261120T020000Z-02",
            "20261320T020000Z",
            "20261120T020000Z.partial",
            "20261120T020000Z-+2",
            " 20261120T020000Z",
            "2026-1120T02000Z",
        ] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_sort_by_time_then_number() {
        let mut labels: Vec<Label> = [
            "20261120T020000Z-10",
            "20261120T020001Z",
            "20261120T020000Z-2",
            "20261120T020000Z",
        ]
        .iter()
        .map(|l| l.parse().unwrap())
        .collect();
        labels.sort();
        let text: Vec<String> = labels.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "20261120T020000Z",
                "20261120T020000Z-2",
                "20261120T020000Z-10",
                "20261120T020001Z"
            ]
        );
        let at: Timestamp = "2026-11-20T02:00:00Z".parse().unwrap();
        assert_eq!(labels[0], Label::new(at, 1));
        assert_eq!(labels[0].at(), Some(at));
    }
}
