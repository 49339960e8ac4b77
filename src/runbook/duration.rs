//! Durations as people write them: `2h`, `1h30m`, `500ms`.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serializer, de};

use super::text::{BadText, shorten};

/// The longest duration: ten years. What is added to a clock must not lead beyond its end.
const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);
/// The shortest duration.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest time-out. PostgreSQL counts milliseconds in 31 bits, and nobody waits for longer than a day.
const LONGEST_WAIT: Duration = Duration::from_hours(24);
/// The shortest time-out: no server is asked across a network in less.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// Reads a duration such as `2h`, `1h30m`, `500ms`: from a millisecond to ten years.
///
/// # Errors
/// The text is not a duration, or it is zero, negative, out of range, or counted in days (a day is not always 24 hours).
pub fn parse_duration(text: &str) -> Result<Duration, BadText> {
    let duration = positive(text)?;
    if duration > LONGEST {
        return Err(BadText::new(
            format!("`{}` is longer than ten years", shorten(text)),
            "at most `87600h`",
        ));
    }
    if duration < SHORTEST {
        return Err(BadText::new(
            format!("`{}` is shorter than a millisecond", shorten(text)),
            "at least `1ms`",
        ));
    }
    Ok(duration)
}

/// A duration of any length but none.
fn positive(text: &str) -> Result<Duration, BadText> {
    const EXAMPLE: &str = "for example `2h`, `1h30m`, `45s` or `500ms`";
    let bad = |message: &str| BadText::new(message, EXAMPLE);
    let number = text.trim();
    if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadText::new(
            "a duration needs a unit",
            format!("for example `{number}s` for seconds or `{number}m` for minutes"),
        ));
    }
    if let Some(days) = number
        .strip_suffix('d')
        .and_then(|n| n.trim().parse::<u32>().ok())
    {
        return Err(BadText::new(
            "days are not accepted: a day is not always 24 hours",
            format!("write hours: `{}h`", u64::from(days) * 24),
        ));
    }
    let signed: jiff::SignedDuration = text.parse().map_err(|_| {
        calendar_units(text).unwrap_or_else(|| bad(&format!("`{}` is not a duration", shorten(text))))
    })?;
    let duration = Duration::try_from(signed).map_err(|_| bad("a duration cannot be negative"))?;
    if duration.is_zero() {
        return Err(bad("a duration cannot be zero"));
    }
    Ok(duration)
}

/// What to write instead of days and weeks, if the text counts in them.
fn calendar_units(text: &str) -> Option<BadText> {
    let span: jiff::Span = text.parse().ok()?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Some(BadText::new(
            "months and years are not accepted: they are not always as long",
            "write hours, for example `720h`",
        ));
    }
    let (weeks, days) = (i64::from(span.get_weeks()), i64::from(span.get_days()));
    if weeks == 0 && days == 0 {
        return None;
    }
    let seconds = ((weeks * 7 + days) * 24 + i64::from(span.get_hours())) * 3600
        + span
            .get_minutes()
            .checked_mul(60)?
            .checked_add(span.get_seconds())?;
    let units = if weeks == 0 { "days" } else { "weeks" };
    Some(BadText::new(
        format!("{units} are not accepted: a day is not always 24 hours"),
        format!(
            "write hours: `{}`",
            format_duration(Duration::from_secs(u64::try_from(seconds).ok()?))
        ),
    ))
}

/// Reads the time after which drctl gives up: a duration from 100 ms to 24 h.
///
/// # Errors
/// As [`parse_duration`].
pub fn parse_deadline(text: &str) -> Result<Duration, BadText> {
    let duration = positive(text)?;
    let bad = |why: &str| {
        BadText::new(
            format!("`{}` is too {why} to wait for an answer", shorten(text)),
            "from `100ms` to `24h`",
        )
    };
    if duration < SHORTEST_WAIT {
        Err(bad("short"))
    } else if duration > LONGEST_WAIT {
        Err(bad("long"))
    } else {
        Ok(duration)
    }
}

/// Writes a duration as [`parse_duration`] reads it.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    jiff::SignedDuration::try_from(duration).map_or_else(
        |_| format!("{}s", duration.as_secs()),
        |signed| format!("{signed:#}").replace(' ', ""),
    )
}

/// The schema of a duration.
pub struct DurationText;

impl JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "drctl-duration", "examples": ["2h", "1h30m", "45s", "500ms"] })
    }
}

/// The schema of a time-out.
pub struct DeadlineText;

impl JsonSchema for DeadlineText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Deadline".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "drctl-deadline", "examples": ["2s", "500ms", "30m"] })
    }
}

/// For serde's `with`, where it is a time-out.
pub mod deadline {
    pub use super::required::serialize;
    use super::{Deserialize, Deserializer, Duration, de, parse_deadline};

    /// Reads a time-out such as `2s`.
    ///
    /// # Errors
    /// As [`parse_deadline`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse_deadline(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// For serde's `with`, where it is a time-out that may be absent.
pub mod optional_deadline {
    pub use super::optional::serialize;
    use super::{Deserialize, Deserializer, Duration, de, parse_deadline};

    /// Reads a time-out such as `2s`.
    ///
    /// # Errors
    /// As [`parse_deadline`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| parse_deadline(&text))
            .transpose()
            .map_err(de::Error::custom)
    }
}

/// For serde's `with`.
pub mod required {
    use super::{Deserialize, Deserializer, Duration, Serializer, de, format_duration, parse_duration};

    /// Reads a duration such as `2h`.
    ///
    /// # Errors
    /// As [`parse_duration`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse_duration(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }

    /// Writes a duration such as `2h`.
    ///
    /// # Errors
    /// Those of the serialiser.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(*duration))
    }
}

/// For serde's `with`, where the duration may be absent.
pub mod optional {
    use super::{Deserialize, Deserializer, Duration, Serializer, de, format_duration, parse_duration};

    /// Reads a duration such as `2h`.
    ///
    /// # Errors
    /// As [`parse_duration`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| parse_duration(&text))
            .transpose()
            .map_err(de::Error::custom)
    }

    /// Writes a duration such as `2h`.
    ///
    /// # Errors
    /// Those of the serialiser.
    #[allow(clippy::ref_option, reason = "the signature is serde's")]
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => serializer.serialize_some(&format_duration(*duration)),
            None => serializer.serialize_none(),
        }
    }
}
