//! Durations as people write them: `2h`, `1h30m`, `500ms`.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serializer, de};

use super::text::{BadText, shorten};

/// Reads a duration such as `2h`, `1h30m`, `500ms`.
///
/// # Errors
/// The text is not a duration, or it is zero, negative, or counted in days (a day is not always 24 hours).
pub fn parse_duration(text: &str) -> Result<Duration, BadText> {
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
    let signed: jiff::SignedDuration = text
        .parse()
        .map_err(|_| bad(&format!("`{}` is not a duration", shorten(text))))?;
    let duration = Duration::try_from(signed).map_err(|_| bad("a duration cannot be negative"))?;
    if duration.is_zero() {
        Err(bad("a duration cannot be zero"))
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
