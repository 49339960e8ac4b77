//! What a check says of one thing, in the terms of monitoring plugins (Monitoring Plugins Development Guidelines).

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::printable::is_control;

/// The four states of a monitoring plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Well.
    Ok,
    /// Could not be looked at.
    Unknown,
    /// Beyond a limit.
    Warning,
    /// Broken, or about to be.
    Critical,
}

impl Level {
    /// The exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }

    /// The word in the status line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// How bad it is: what is certain outweighs what could not be seen.
    #[must_use]
    pub fn rank(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Unknown => 1,
            Self::Warning => 2,
            Self::Critical => 3,
        }
    }

    /// The worse of two.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if other.rank() > self.rank() { other } else { self }
    }
}

/// A limit, and on which side of it the trouble lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// Trouble above.
    Above(f64),
    /// Trouble below.
    Below(f64),
}

impl Limit {
    /// Whether a value is on the wrong side.
    #[must_use]
    pub fn is_broken_by(self, value: f64) -> bool {
        match self {
            Self::Above(limit) => value > limit,
            Self::Below(limit) => value < limit,
        }
    }

    /// As a range of the guidelines: outside of it is trouble.
    fn range(self) -> String {
        match self {
            Self::Above(limit) => number(limit),
            Self::Below(limit) => format!("{}:", number(limit)),
        }
    }
}

/// A measured value for the status line.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// Its name.
    pub label: String,
    /// The value.
    pub value: f64,
    /// `s`, `%`, `B`, `c` (a counter) or nothing.
    pub unit: &'static str,
    /// Limit of a warning.
    pub warning: Option<Limit>,
    /// Limit of a critical state.
    pub critical: Option<Limit>,
    /// Largest possible value, if there is one.
    pub max: Option<f64>,
}

impl Measure {
    /// A value without limits.
    #[must_use]
    pub fn new(label: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            label: label.into(),
            value,
            unit,
            warning: None,
            critical: None,
            max: None,
        }
    }

    /// The same with limits.
    #[must_use]
    pub fn limits(mut self, warning: Option<Limit>, critical: Option<Limit>) -> Self {
        self.warning = warning;
        self.critical = critical;
        self
    }

    /// The same with a largest possible value.
    #[must_use]
    pub fn max(mut self, max: f64) -> Self {
        self.max = Some(max);
        self
    }

    /// What the limits say of the value.
    #[must_use]
    pub fn level(&self) -> Level {
        let broken = |limit: Option<Limit>| limit.is_some_and(|l| l.is_broken_by(self.value));
        if broken(self.critical) {
            Level::Critical
        } else if broken(self.warning) {
            Level::Warning
        } else {
            Level::Ok
        }
    }

    /// `'label'=value[UOM];[warn];[crit];[min];[max]`, without the fields at the end that are empty.
    #[must_use]
    pub fn perfdata(&self) -> String {
        let plain = self
            .label
            .chars()
            .map(|c| {
                if matches!(c, '\'' | '=' | '|') || is_control(c) {
                    '_'
                } else {
                    c
                }
            })
            .collect::<String>();
        let label = if plain.contains(char::is_whitespace) {
            format!("'{plain}'")
        } else {
            plain
        };
        // The word for a value that is not known stands without a unit.
        let unit = if self.value.is_finite() { self.unit } else { "" };
        let mut text = format!("{label}={}{unit};", number(self.value));
        let range = |limit: Option<Limit>| limit.map(Limit::range).unwrap_or_default();
        let _ = write!(
            text,
            "{};{};0;{}",
            range(self.warning),
            range(self.critical),
            self.max.map(number).unwrap_or_default()
        );
        text.trim_end_matches(';').to_owned()
    }
}

/// A number without an exponent, with at most three places, as readers of perfdata understand it.
fn number(value: f64) -> String {
    if !value.is_finite() {
        // The guidelines' word for a value that is not known.
        return "U".to_owned();
    }
    let text = format!("{value:.3}");
    let short = text.trim_end_matches('0').trim_end_matches('.');
    if short == "-0" {
        "0".to_owned()
    } else {
        short.to_owned()
    }
}

/// What is said of one thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What it is about, the same in every run: `service/redis`, `disk//`.
    pub key: String,
    /// How it is.
    pub level: Level,
    /// In a few words, without the name of what it is about.
    pub text: String,
    /// What was measured.
    pub measures: Vec<Measure>,
    /// Something happened since the last run, and the next one will not see it any more: how bad that is. Nobody waits
    /// for it to be found again.
    pub event: Option<Level>,
}

impl Finding {
    /// A finding without values.
    #[must_use]
    pub fn new(key: impl Into<String>, level: Level, text: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            level,
            text: text.into(),
            measures: Vec::new(),
            event: None,
        }
    }

    /// `redis: container is not running` for `service/redis`: as it is told.
    #[must_use]
    pub fn told(&self) -> String {
        format!("{}: {}", subject(&self.key), self.text)
    }
}

/// `service redis` for `service/redis`.
#[must_use]
pub fn subject(key: &str) -> String {
    match key.split_once('/') {
        Some((kind, name)) => format!("{} {name}", kind.replace('-', " ")),
        None => key.replace('-', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_certain_outweighs_what_could_not_be_seen() {
        use Level::{Critical, Ok, Unknown, Warning};
        for (a, b, worse) in [
            (Ok, Unknown, Unknown),
            (Unknown, Warning, Warning),
            (Unknown, Critical, Critical),
            (Warning, Critical, Critical),
            (Ok, Ok, Ok),
        ] {
            assert_eq!((a.or(b), b.or(a)), (worse, worse));
        }
        let codes = [Ok, Warning, Critical, Unknown].map(Level::code);
        assert_eq!(codes, [0, 1, 2, 3]);
    }

    #[test]
    fn perfdata_is_what_the_guidelines_want() {
        let above = |n| Some(Limit::Above(n));
        for (measure, text) in [
            (Measure::new("a", 0.25, "s"), "a=0.25s;;;0"),
            (
                Measure::new("a", 12.0, "").limits(above(10.0), above(20.5)),
                "a=12;10;20.5;0",
            ),
            (
                Measure::new("disk /", 81.126_4, "%")
                    .limits(above(80.0), None)
                    .max(100.0),
                "'disk /'=81.126%;80;;0;100",
            ),
            (
                Measure::new("hits", 59.0, "%").limits(Some(Limit::Below(60.0)), Some(Limit::Below(20.0))),
                "hits=59%;60:;20:;0",
            ),
            (
                Measure::new("it's=|\n", 1e18, "B"),
                "it_s___=1000000000000000000B;;;0",
            ),
            (Measure::new("n", f64::NAN, "s"), "n=U;;;0"),
            (Measure::new("n", -0.000_01, ""), "n=0;;;0"),
        ] {
            assert_eq!(measure.perfdata(), text);
        }
    }

    #[test]
    fn a_limit_itself_is_still_good() {
        let m = |v| Measure::new("x", v, "%").limits(Some(Limit::Above(80.0)), Some(Limit::Above(90.0)));
        assert_eq!(m(80.0).level(), Level::Ok);
        assert_eq!(m(80.1).level(), Level::Warning);
        assert_eq!(m(90.1).level(), Level::Critical);
        let m = |v| Measure::new("x", v, "%").limits(Some(Limit::Below(60.0)), None);
        assert_eq!((m(60.0).level(), m(59.9).level()), (Level::Ok, Level::Warning));
    }

    proptest! {
        /// Readers split at blanks and at the first `=`.
        #[test]
        fn perfdata_can_be_taken_apart(label in ".*", value in proptest::num::f64::ANY) {
            let text = Measure::new(label, value, "s").perfdata();
            prop_assert!(!text.contains(['|', '\n', '\r']));
            let rest = if let Some(quoted) = text.strip_prefix('\'') {
                quoted.split_once('\'').unwrap().1
            } else {
                prop_assert!(!text.contains(char::is_whitespace));
                &text[text.find('=').unwrap()..]
            };
            let value = rest.strip_prefix('=').unwrap().split(';').next().unwrap();
            prop_assert!(value == "U" || value.trim_end_matches('s').parse::<f64>().is_ok(), "{text}");
        }
    }
}
