//! When somebody is told, and how: limits, patience, maintenance windows and the ways to reach a person.
//!
//! Like the rest of the file format these types come straight from YAML and are used unchanged.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::{DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::duration;
use super::raw::SecretRef;
use super::text::{BadText, Percent, WebUrl, shorten, text_type};

/// The same limits twice: those that warn and, one level deeper, those that are critical.
macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        limits!(@one
            /// Limits beyond which `drctl check` warns.
            Thresholds { $($(#[$doc])* $name: $kind,)* } {
                /// The same limits once more, beyond which it is critical. One without the other is fine.
                #[serde(default)]
                pub critical: CriticalThresholds,
            }
        );
        limits!(@one
            /// Limits beyond which `drctl check` calls it critical.
            CriticalThresholds { $($(#[$doc])* $name: $kind,)* } {}
        );
    };
    (@one $(#[$doc:meta])* $outer:ident { $($(#[$field:meta])* $name:ident: $kind:ty,)* } { $($more:tt)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $outer {
            $($(#[$field])* pub $name: Option<$kind>,)*
            $($more)*
        }
    };
}

limits! {
    /// Slowest acceptable response time at the 95th percentile, for example 500ms.
    #[serde(default, with = "duration::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<duration::DurationText>")]
    response_time_p95: Duration,
    /// Failed requests, in percent of all requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error_rate: Percent,
    /// Memory in use, in percent: of the machine, of a container's limit, of Redis's `maxmemory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Percent,
    /// Disk space in use, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Percent,
    /// Shortest acceptable time until a file system is full, if it goes on as in the last days, for example 72h.
    #[serde(default, with = "duration::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<duration::DurationText>")]
    disk_full_in: Duration,
    /// Lowest acceptable hit rate of Redis, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache_hit_rate: Percent,
    /// Number of user sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sessions: u64,
    /// Connections of PostgreSQL in use, in percent of those that the application can have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connections: Percent,
    /// Longest acceptable age of an open transaction.
    #[serde(default, with = "duration::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<duration::DurationText>")]
    transaction_age: Duration,
    /// Oldest acceptable last good backup. It is critical beyond `objectives.rpo` in any case.
    #[serde(default, with = "duration::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<duration::DurationText>")]
    backup_age: Duration,
}

/// When somebody is told of what `drctl check` finds, or of a `drctl backup` that fails.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Alerts {
    /// Runs of `check` in a row that must find the same thing wrong before anybody is told. A backup that fails is told at once.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub failures_in_a_row: u32,
    /// How often to tell again of what is still wrong. Default: once is enough.
    #[serde(default, with = "duration::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<duration::DurationText>")]
    pub reminder: Option<Duration>,
    /// How long one way of telling may take.
    #[serde(default = "default_deadline", with = "duration::deadline")]
    #[schemars(with = "duration::DeadlineText")]
    pub deadline: Duration,
    /// When nobody is told: what is found then waits until the window is over, a failed backup for the first `check` after it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maintenance: Vec<Maintenance>,
}

impl Default for Alerts {
    fn default() -> Self {
        Self {
            failures_in_a_row: one(),
            reminder: None,
            deadline: default_deadline(),
            maintenance: Vec::new(),
        }
    }
}

fn one() -> u32 {
    1
}

fn default_deadline() -> Duration {
    Duration::from_secs(10)
}

/// A window in which nobody is told.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Maintenance {
    /// Once.
    Once(OnceWindow),
    /// On the same days of each week.
    Weekly(WeeklyWindow),
    /// Every day.
    Daily(DailyWindow),
}

/// A window that comes once.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OnceWindow {
    /// Its beginning, as the clock on the wall says, for example 2026-11-28T22:00.
    pub from: LocalDateTime,
    /// Its end, likewise.
    pub to: LocalDateTime,
    /// Whose clock, for example Europe/Berlin. Default: UTC.
    #[serde(default)]
    pub time_zone: ZoneName,
}

/// A window that comes every week.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WeeklyWindow {
    /// The days on which it begins.
    #[schemars(length(min = 1))]
    pub days: Vec<Day>,
    /// When it begins, as the clock on the wall says, for example 02:30.
    pub at: ClockTime,
    /// How long it lasts.
    #[serde(rename = "for", with = "duration::required")]
    #[schemars(with = "duration::DurationText")]
    pub lasting: Duration,
    /// Whose clock, for example Europe/Berlin. Default: UTC.
    #[serde(default)]
    pub time_zone: ZoneName,
}

/// A window that comes every day.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DailyWindow {
    /// When it begins, as the clock on the wall says, for example 02:30.
    pub at: ClockTime,
    /// How long it lasts.
    #[serde(rename = "for", with = "duration::required")]
    #[schemars(with = "duration::DurationText")]
    pub lasting: Duration,
    /// Whose clock, for example Europe/Berlin. Default: UTC.
    #[serde(default)]
    pub time_zone: ZoneName,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the days of the week")]
pub enum Day {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

impl Day {
    /// The same day for the calendar.
    #[must_use]
    pub fn weekday(self) -> Weekday {
        match self {
            Self::Monday => Weekday::Monday,
            Self::Tuesday => Weekday::Tuesday,
            Self::Wednesday => Weekday::Wednesday,
            Self::Thursday => Weekday::Thursday,
            Self::Friday => Weekday::Friday,
            Self::Saturday => Weekday::Saturday,
            Self::Sunday => Weekday::Sunday,
        }
    }
}

/// One way of telling somebody.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Notify {
    /// A POST of `{"text": "…"}`, as Slack, Mattermost and others take it.
    Webhook(Webhook),
    /// A mail.
    Email(Email),
    /// A POST of the status line after each run of `check`, as healthchecks.io and others take it: the address itself when nothing is wrong, the address and `/fail` otherwise. They notice when the runs end.
    Ping(Ping),
    /// A program. The message is its standard input; `DRCTL_STATUS`, `DRCTL_DEPLOYMENT`, `DRCTL_SUBJECT` and `DRCTL_KIND` (alert, recovery or reminder) are in its environment.
    Command(NotifyCommand),
}

/// An address for messages.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Webhook {
    /// The address. Whoever knows it can write there, so it is usually a secret.
    pub url: Address,
}

/// An address that is called after each run.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ping {
    /// The address, without `/fail`.
    pub url: Address,
}

/// A web address, or where it is found.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Address {
    /// The absolute path of a file that holds it.
    File(
        #[schemars(with = "super::text::AbsolutePath", extend("examples" = ["/etc/drctl/webhook"]))]
        std::path::PathBuf,
    ),
    /// The name of an environment variable of drctl itself.
    Env(#[schemars(with = "super::text::VariableName")] String),
    /// A program and its arguments, run without a shell, whose output it is.
    Command(
        #[schemars(length(min = 1), inner(length(min = 1)), extend("examples" = [["pass", "show", "shop/webhook"]]))]
         Vec<String>,
    ),
    /// The address itself: anybody may know it. `drctl runbook show` prints no more of it than its host.
    Plain(WebUrl),
}

impl Address {
    /// The reference of a secret address; `Err` is an address that is none.
    ///
    /// # Errors
    /// The plain address.
    pub fn secret(&self) -> Result<SecretRef, &WebUrl> {
        match self {
            Self::Plain(url) => Err(url),
            Self::Env(name) => Ok(SecretRef::Env(name.clone())),
            Self::File(path) => Ok(SecretRef::File(path.clone())),
            Self::Command(argv) => Ok(SecretRef::Command(argv.clone())),
        }
    }
}

/// A mail, by SMTP.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Email {
    /// The mail server's name or address.
    #[schemars(length(min = 1))]
    pub host: String,
    /// Its port. Default: 587 with starttls, 465 with tls, 25 with none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// How the connection is encrypted.
    #[serde(default)]
    pub tls: EmailTls,
    /// The sender, for example `drctl <drctl@example.com>`.
    pub from: Mailbox,
    /// Who gets it.
    #[schemars(length(min = 1))]
    pub to: Vec<Mailbox>,
    /// The name to log in with. Default: no login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub user: Option<String>,
    /// Where the password is found. Needed with `user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
}

/// How a connection to a mail server is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EmailTls {
    /// It begins in the clear and must change to TLS.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Tls,
    /// In the clear: for a server on this machine.
    None,
}

/// A program that tells somebody.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NotifyCommand {
    /// The program and its arguments, run without a shell.
    #[schemars(length(min = 1), inner(length(min = 1)), extend("examples" = [["/usr/local/bin/tell", "ops"]]))]
    pub argv: Vec<String>,
}

text_type!(
    /// The name of a time zone, as `Europe/Berlin`.
    ZoneName, "drctl-time-zone", check_zone, { "examples": ["Europe/Berlin"] }
);
text_type!(
    /// A time of the day, `HH:MM`.
    ClockTime, "drctl-clock-time", check_clock, { "examples": ["02:30"] }
);
text_type!(
    /// A day and a time without a time zone, `YYYY-MM-DDTHH:MM`.
    LocalDateTime, "drctl-local-time", check_local, { "examples": ["2026-11-28T22:00"] }
);
text_type!(
    /// A mail address, with or without a name.
    Mailbox, "drctl-mailbox", check_mailbox, { "examples": ["ops@example.com"] }
);

impl Default for ZoneName {
    fn default() -> Self {
        Self::trusted("UTC")
    }
}

impl ZoneName {
    /// The zone; UTC should the database that knew it be gone.
    #[must_use]
    pub fn zone(&self) -> TimeZone {
        TimeZone::get(self.as_str()).unwrap_or(TimeZone::UTC)
    }
}

impl ClockTime {
    /// The time. It was checked when it was read.
    #[must_use]
    pub fn time(&self) -> Time {
        parse_clock(self.as_str()).unwrap_or_default()
    }
}

impl LocalDateTime {
    /// Day and time. They were checked when they were read.
    #[must_use]
    pub fn civil(&self) -> DateTime {
        self.as_str().parse().unwrap_or_default()
    }
}

/// `7:30` and `24:00` would be read differently by different people.
fn parse_clock(text: &str) -> Option<Time> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |t: &str| -> Option<i8> {
        (t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit()))
            .then(|| t.parse().ok())
            .flatten()
    };
    Time::new(two(hours)?, two(minutes)?, 0, 0).ok()
}

pub(super) fn check_clock(text: &str) -> Result<(), BadText> {
    match parse_clock(text) {
        Some(_) => Ok(()),
        None => Err(BadText::new(
            format!("`{}` is not a time of the day", shorten(text)),
            "for example `02:30`, from 00:00 to 23:59",
        )),
    }
}

pub(super) fn check_local(text: &str) -> Result<(), BadText> {
    let example = "for example `2026-11-28T22:00`; the zone is given by `time-zone`";
    if text.ends_with(['Z', 'z'])
        || text.contains('[')
        || text.get(11..).is_some_and(|t| t.contains(['+', '-']))
    {
        return Err(BadText::new("the time has a zone of its own", example));
    }
    DateTime::from_str(text)
        .map(drop)
        .map_err(|_| BadText::new(format!("`{}` is not a day and a time", shorten(text)), example))
}

pub(super) fn check_zone(text: &str) -> Result<(), BadText> {
    TimeZone::get(text).map(drop).map_err(|_| {
        BadText::new(
            format!("there is no time zone `{}`", shorten(text)),
            "for example `Europe/Berlin` or `UTC`",
        )
    })
}

pub(super) fn check_mailbox(text: &str) -> Result<(), BadText> {
    lettre::message::Mailbox::from_str(text).map(drop).map_err(|_| {
        BadText::new(
            format!("`{}` is not a mail address", shorten(text)),
            "for example `ops@example.com`",
        )
    })
}
