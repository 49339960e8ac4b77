//! The small texts of a runbook: names, durations, addresses, percentages.
//!
//! Each is a type that cannot hold a bad value. One parser per type serves the deserialiser and the schema check (by
//! the JSON Schema `format` named here), so the two cannot disagree and both give the same message.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::docker_host::DockerHost;
use super::duration::{parse_deadline, parse_duration};

/// Why a text is not acceptable, and what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadText {
    /// What is wrong with the text.
    pub message: String,
    /// What to write instead.
    pub suggestion: Option<String>,
}

impl BadText {
    pub(super) fn new(message: impl Into<String>, suggestion: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            suggestion: Some(suggestion.into()),
        }
    }
}

/// A text check, as the schema check calls it.
pub(super) type Check = fn(&str) -> Result<(), BadText>;

/// The JSON Schema `format` names used below and the parser behind each.
pub(super) const FORMATS: &[(&str, Check)] = &[
    ("drctl-system-name", |s| SystemName::from_str(s).map(drop)),
    ("drctl-service-name", |s| ServiceName::from_str(s).map(drop)),
    ("drctl-role-name", |s| RoleName::from_str(s).map(drop)),
    ("drctl-database-name", |s| DatabaseName::from_str(s).map(drop)),
    ("drctl-column-name", |s| ColumnName::from_str(s).map(drop)),
    ("drctl-table-name", |s| TableName::from_str(s).map(drop)),
    ("drctl-http-url", |s| HttpUrl::from_str(s).map(drop)),
    ("drctl-docker-host", |s| DockerHost::from_str(s).map(drop)),
    ("drctl-duration", |s| parse_duration(s).map(drop)),
    ("drctl-deadline", |s| parse_deadline(s).map(drop)),
    ("drctl-absolute-path", check_absolute_path),
    ("drctl-backup-directory", check_backup_directory),
    ("drctl-variable-name", check_variable_name),
    ("drctl-container-variable-name", check_container_variable_name),
    ("drctl-web-url", |s| WebUrl::from_str(s).map(drop)),
    ("drctl-time-zone", super::alerting::check_zone),
    ("drctl-clock-time", super::alerting::check_clock),
    ("drctl-local-time", super::alerting::check_local),
    ("drctl-mailbox", super::alerting::check_mailbox),
];

/// A text newtype: parsed on the way in, printed as it was written, with a schema that names its check.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $format:literal, $parse:path, $schema:tt) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// A text that is known to be good.
            #[allow(dead_code, reason = "only some types have a default")]
            pub(super) fn trusted(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl FromStr for $name {
            type Err = BadText;

            fn from_str(text: &str) -> Result<Self, BadText> {
                $parse(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        text_type!(@serde $name, $format, $schema);
    };
    (@serde $name:ident, $format:literal, $schema:tt) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        text_type!(@schema $name, $format, $schema);
    };
    (@schema $name:ident, $format:literal, { $($key:literal: $value:tt),* $(,)? }) => {
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format, $($key: $value),* })
            }
        }
    };
}

pub(super) use text_type;

text_type!(
    /// The name of a deployment or of a compose project: `[a-z0-9][a-z0-9_.-]{0,62}`.
    SystemName, "drctl-system-name", check_system_name, { "pattern": "^[a-z0-9][a-z0-9_.-]{0,62}$" }
);
text_type!(
    /// The name of a service, as compose accepts it: `[A-Za-z0-9][A-Za-z0-9_.-]{0,62}`.
    ServiceName, "drctl-service-name", check_service_name, { "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$" }
);
text_type!(
    /// A PostgreSQL role. At most 63 bytes (PostgreSQL manual, 4.1.1 Identifiers and Key Words).
    RoleName, "drctl-role-name", check_identifier, { "minLength": 1, "maxLength": 63 }
);
text_type!(
    /// A PostgreSQL database. At most 63 bytes (PostgreSQL manual, 4.1.1 Identifiers and Key Words).
    DatabaseName, "drctl-database-name", check_identifier, { "minLength": 1, "maxLength": 63 }
);
text_type!(
    /// A column of a table. At most 63 bytes (PostgreSQL manual, 4.1.1 Identifiers and Key Words).
    ColumnName, "drctl-column-name", check_identifier, { "minLength": 1, "maxLength": 63 }
);
text_type!(
    /// An `http://` or `https://` address. It may hold the placeholder `{id}`, so it is kept as text.
    HttpUrl, "drctl-http-url", check_http_url, { "pattern": "^https?://" }
);
text_type!(
    /// An `http://` or `https://` address that holds no secret.
    WebUrl, "drctl-web-url", check_web_url, { "pattern": "^https?://", "examples": ["https://hooks.example.com/drctl"] }
);

impl DatabaseName {
    /// The maintenance database that every server has.
    pub(super) fn postgres() -> Self {
        Self("postgres".to_owned())
    }
}

impl SystemName {
    /// The name that a container or project of this deployment would have.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

fn name_problem(text: &str, upper_case: bool) -> Option<String> {
    let letter =
        |c: char| c.is_ascii_digit() || c.is_ascii_lowercase() || (upper_case && c.is_ascii_uppercase());
    let first = text.chars().next()?;
    if !letter(first) {
        return Some(format!("the name starts with {first:?}"));
    }
    if let Some(bad) = text
        .chars()
        .find(|&c| !letter(c) && !matches!(c, '_' | '.' | '-'))
    {
        return Some(format!("{bad:?} is not allowed in a name"));
    }
    (text.len() > 63).then(|| format!("the name has {} characters, more than 63", text.len()))
}

/// What `text` would be as a name, for "did you mean".
fn as_name(text: &str, upper_case: bool) -> String {
    let text = if upper_case {
        text.to_owned()
    } else {
        text.to_lowercase()
    };
    let name: String = text
        .trim()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') {
                c
            } else {
                '-'
            }
        })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(63)
        .collect();
    name.trim_end_matches('-').to_owned()
}

fn check_name(text: &str, upper_case: bool, example: &str, rule: &str) -> Result<(), BadText> {
    let problem = if text.is_empty() {
        Some("the name is empty".to_owned())
    } else {
        name_problem(text, upper_case)
    };
    let Some(problem) = problem else { return Ok(()) };
    let candidate = as_name(text, upper_case);
    let suggestion = if candidate.is_empty() { example } else { &candidate };
    Err(BadText::new(
        format!("{problem} ({rule})"),
        format!("for example `{suggestion}`"),
    ))
}

fn check_system_name(text: &str) -> Result<(), BadText> {
    check_name(
        text,
        false,
        "simgen",
        "lower-case letters, digits, `_`, `.` and `-`, starting with a letter or digit, at most 63",
    )
}

fn check_service_name(text: &str) -> Result<(), BadText> {
    check_name(
        text,
        true,
        "postgres",
        "letters, digits, `_`, `.` and `-`, starting with a letter or digit, at most 63",
    )
}

fn check_identifier(text: &str) -> Result<(), BadText> {
    if text.is_empty() {
        return Err(BadText::new(
            "the name is empty",
            "give the name as PostgreSQL shows it, without quotes",
        ));
    }
    if text.contains('\0') {
        return Err(BadText::new(
            "a NUL character is not allowed in a name",
            "give the name as PostgreSQL shows it",
        ));
    }
    if text.len() > 63 {
        return Err(BadText::new(
            format!(
                "the name has {} bytes, and PostgreSQL cuts names at 63",
                text.len()
            ),
            "give the name as PostgreSQL shows it",
        ));
    }
    Ok(())
}

fn check_http_url(text: &str) -> Result<(), BadText> {
    let example = "for example `http://127.0.0.1:8080/health`";
    let completed = format!("http://{text}");
    if !text.contains("://") && !text.is_empty() && reqwest::Url::parse(&completed).is_ok() {
        return Err(BadText::new(
            "the address has no http://",
            format!("did you mean `{}`?", shorten(&completed)),
        ));
    }
    let url = reqwest::Url::parse(text).map_err(|error| {
        let message = match error.to_string() {
            // The URL parser's words for "no scheme" mean nothing to somebody who left out `http://`.
            text if text.starts_with("relative URL") => "the address has no http://".to_owned(),
            text => format!("not an address: {text}"),
        };
        BadText::new(message, example)
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(BadText::new(
            format!("`{}:` is not an http:// or https:// address", url.scheme()),
            example,
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BadText::new(
            "the address holds a user name or password",
            "remove it: an address is printed in reports",
        ));
    }
    Ok(())
}

/// Without the text itself in the message: it may be the secret.
fn check_web_url(text: &str) -> Result<(), BadText> {
    let example = "for example `https://hooks.example.com/drctl`";
    if text.contains('…') {
        return Err(BadText::new(
            "the address is not whole: `drctl runbook show` leaves out all but its host",
            "write all of it, or better where it is found: `url: { file: /etc/drctl/webhook }`",
        ));
    }
    let url = reqwest::Url::parse(text)
        .map_err(|error| BadText::new(format!("not an address: {error}"), example))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(BadText::new(
            "the address begins with neither http:// nor https://",
            example,
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BadText::new(
            "the address holds a user name or password",
            "give it as a secret: `url: { file: /etc/drctl/webhook }`",
        ));
    }
    Ok(())
}

const BACKUP_EXAMPLE: &str = "for example `/var/backups/drctl/simgen`";

fn check_absolute_path(text: &str) -> Result<(), BadText> {
    check_path(text, "write the whole path, from `/` on")
}

fn check_path(text: &str, example: &str) -> Result<(), BadText> {
    let bad = |message: &str| Err(BadText::new(message, example));
    if text.chars().any(char::is_control) {
        return bad("a control character is not allowed in a path");
    }
    // No shell reads the runbook: a directory of that very name would be made.
    if text.starts_with('~') {
        return bad("`~` is not replaced by a home directory here");
    }
    if text.contains('$') {
        return bad("`$` is not replaced by a variable's value here");
    }
    if !Path::new(text).is_absolute() {
        // Cron and a person start drctl in different directories: a relative path would mean two places.
        return bad("the path is not absolute");
    }
    if text.ends_with(char::is_whitespace) {
        return bad("the path ends with a blank");
    }
    if Path::new(text)
        .components()
        .any(|part| part == std::path::Component::ParentDir)
    {
        return bad("the path holds `..`");
    }
    Ok(())
}

/// Backups are written, listed and removed there: not where other programs keep what is theirs.
fn check_backup_directory(text: &str) -> Result<(), BadText> {
    check_path(text, BACKUP_EXAMPLE)?;
    let path = Path::new(text);
    if path == Path::new("/") {
        return Err(BadText::new(
            "`/` is the whole machine, no directory for backups",
            BACKUP_EXAMPLE,
        ));
    }
    for (place, what) in [
        ("/var/lib/docker", "belongs to the Docker engine"),
        ("/proc", "is no place for files"),
        ("/sys", "is no place for files"),
        ("/dev", "is no place for files that must last"),
    ] {
        if path.starts_with(place) {
            return Err(BadText::new(format!("`{place}` {what}"), BACKUP_EXAMPLE));
        }
    }
    Ok(())
}

/// Without the text itself in the message: it may be the secret.
fn check_variable_name(text: &str) -> Result<(), BadText> {
    check_variable(text, "")
}

/// Docker takes more into a container's environment than a shell does.
fn check_container_variable_name(text: &str) -> Result<(), BadText> {
    check_variable(text, ".-")
}

fn check_variable(text: &str, more: &str) -> Result<(), BadText> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || more.contains(c);
    if text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.chars().all(fits) {
        return Ok(());
    }
    Err(BadText::new(
        "not the name of an environment variable",
        "give the name alone, for example `POSTGRES_PASSWORD`",
    ))
}

/// A table with its schema, written `table` (schema `public`) or `schema.table`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema, `public` where none was written.
    pub schema: String,
    /// The table.
    pub table: String,
}

impl FromStr for TableName {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let (schema, table) = text.split_once('.').unwrap_or(("public", text));
        check_identifier(schema)?;
        check_identifier(table)?;
        if table.contains('.') {
            return Err(BadText::new(
                "a table has at most one dot, after its schema",
                "for example `orders` or `sales.orders`",
            ));
        }
        Ok(Self {
            schema: schema.to_owned(),
            table: table.to_owned(),
        })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.schema == "public" {
            f.write_str(&self.table)
        } else {
            write!(f, "{}.{}", self.schema, self.table)
        }
    }
}

text_type!(@serde TableName, "drctl-table-name", { "minLength": 1 });

/// A percentage between 0 and 100, written as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Percent(f64);

impl Percent {
    /// 50 percent.
    pub(super) const HALF: Self = Self(50.0);

    /// A percentage, if the number is one.
    #[must_use]
    pub fn new(percent: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percent).then_some(Self(percent))
    }

    /// The number, 0 to 100.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // 50, as it was written, and not 50.0.
        match format!("{}", self.0).parse::<u8>() {
            Ok(whole) => serializer.serialize_u8(whole),
            Err(_) => serializer.serialize_f64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        Self::new(number).ok_or_else(|| de::Error::custom(format!("{number} is not between 0 and 100")))
    }
}

impl JsonSchema for Percent {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Percent".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0, "maximum": 100 })
    }
}

/// At most 40 characters of a text that is quoted in a message.
pub(super) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(40).map(crate::printable::visible).collect();
    if text.chars().nth(40).is_some() {
        short.push('…');
    }
    short
}

/// The schema of an absolute path.
pub struct AbsolutePath;

impl JsonSchema for AbsolutePath {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "AbsolutePath".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "drctl-absolute-path", "pattern": "^/" })
    }
}

/// The schema of the directory for backups.
pub struct BackupDirectory;

impl JsonSchema for BackupDirectory {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "BackupDirectory".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "drctl-backup-directory", "pattern": "^/", "examples": ["/var/backups/drctl/simgen"] })
    }
}

/// The schema of the name of a container's environment variable.
pub struct ContainerVariableName;

impl JsonSchema for ContainerVariableName {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ContainerVariableName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "drctl-container-variable-name", "pattern": "^[A-Za-z_][A-Za-z0-9_.-]*$", "examples": ["POSTGRES_PASSWORD"] })
    }
}

/// The schema of an environment variable's name.
pub struct VariableName;

impl JsonSchema for VariableName {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "VariableName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "drctl-variable-name", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$", "examples": ["POSTGRES_PASSWORD"] })
    }
}
